"""The suite of all methods: none is forgotten, none refused, and all accuracies are shown."""

import re
from pathlib import Path

import pytest
from pandas import DataFrame

from fedkd import registry
from fedkd.caveats import LOCAL_TRAINING, Caveat
from fedkd.errors import FedkdError
from fedkd.simulations import suite
from fedkd.simulations.accuracy_table import accuracies
from fedkd.simulations.table_formats import markdown

ROOT = Path(__file__).parents[2]
NOT_IN_THE_FIELD: dict[str, str] = {}
"""Methods that the suite leaves out, each with the reason, as that it is for text alone."""
HELD_AGAINST = {"local", "fedavg"}
"""Methods on CIFAR-10 whose clients send neither soft labels nor representations."""


def of(opened, data):
    """The methods of the suite's cells on a data set."""
    return {cell.labels["method"] for cell in opened.cells if cell.labels["data"] == data}


@pytest.fixture(scope="module")
def field():
    return suite.read("field")


def test_every_method_is_in_the_field_or_left_out_for_a_reason(field):
    assert of(field, "digits") == {*registry.shipped("strategies")} - NOT_IN_THE_FIELD.keys()
    assert all(NOT_IN_THE_FIELD.values())


def test_those_that_send_soft_labels_or_representations_are_on_cifar10_too(field):
    # What a method asks of clients is on a page that a test holds to the code.
    text = (ROOT / "docs" / "methods.md").read_text()
    asked = re.findall(r"^## (\S+)$.*?^\*\*Steps\.\*\* (.*?)$", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in asked] == registry.shipped("strategies")
    send = {name for name, steps in asked if re.search("`(Predict|Represent)`", steps)}
    assert of(field, "cifar10") == (send | HELD_AGAINST) - NOT_IN_THE_FIELD.keys()


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_no_cell_of_the_field_is_refused(scale):
    opened = suite.read("field", scale)
    suite.check(opened, [cell for cell in opened.cells if cell.labels["seed"] == 0])


def test_seeds_by_which_the_length_was_chosen_are_not_reported(field):
    assert not {90, 91, 92} & {cell.labels["seed"] for cell in field.cells}
    assert all(cell.experiment.rounds // 4 >= 2 for cell in field.cells)


def test_what_only_this_process_knows_is_not_in_a_suite_of_all_methods(field):
    @registry.register("strategies", "mine")
    class Mine(registry.load("strategies", "local")):
        """Somebody's own."""

    assert suite.read("field").axes["method"] == field.axes["method"]


def runs(**more):
    """Three seeds of two methods: a's paper scores the local stage, b's its server."""
    rows = []
    for method, base in (("a", 0.6), ("b", 0.7)):
        column = "own_accuracy_mean_local" if method == "a" else "own_server_accuracy_mean"
        for seed in range(3):
            row = {"method": method, "seed": seed, "strategy.name": method, "headline": column}
            row["own_accuracy_mean"] = base + 0.01 * seed
            row["own_accuracy_mean_local"] = base + 0.1 + 0.01 * seed
            if method == "b":
                row |= {"own_server_accuracy_mean": 0.9, "own_best_accuracy_mean": 0.8}
                row["common_server_accuracy_mean"] = 0.5 + 0.1 * seed
            row["headline_accuracy"] = row[column]
            row["warnings"] = (Caveat(LOCAL_TRAINING, "no more"),) if method == "a" else ()
            rows.append(row | more)
    return DataFrame(rows)


def test_all_accuracies_of_a_method_are_in_its_row():
    found = accuracies(runs(), "method")
    heads = ["as the paper scores it", "own, fused", "own, local", "own, named", "common, named"]
    assert list(found.columns) == heads
    a, b = ([entry and entry.text for entry in row] for row in found.cells)
    assert a == ["71.0 ± 1.0", "61.0 ± 1.0", "71.0 ± 1.0", None, None]
    named = ["server 90.0 ± 0.0; best 80.0 ± 0.0", "server 60.0 ± 10.0"]
    assert b == ["90.0 ± 0.0", "71.0 ± 1.0", "81.0 ± 1.0", *named]
    # What was local training is the best of nothing; named students are held against nothing.
    assert [[bool(entry and entry.best) for entry in row] for row in found.cells] == [
        [False] * 5,
        [True, True, True, False, False],
    ]
    text = markdown(found)
    assert "own_accuracy_mean_local of a; own_server_accuracy_mean of b" in text
    assert "no more" in text


def test_a_table_of_accuracies_without_any_is_one_line():
    with pytest.raises(FedkdError, match="no finished run has measured an accuracy"):
        accuracies(DataFrame([{"method": "a", "seed": 0}]), "method")
