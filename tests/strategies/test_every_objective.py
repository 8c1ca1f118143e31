"""Any method that distils takes any objective that it has the needs of, or says so in a line."""

import itertools
import re

import pytest
from lines import SMALL, settled

from fedkd import FedkdError, check, registry, run
from fedkd.distillation.objectives import traits
from fedkd.experiment import Experiment
from fedkd.results import Run

METHODS = [
    name
    for name in registry.shipped("strategies")
    if registry.load("strategies", name).knowledge is not None
]
OBJECTIVES = registry.shipped("objectives")
SETTINGS = ("knfu", "fedmd", "feddistill", "feddf", "selfdistill")
# Every objective in every setting; every third one with the other methods, which share their steps.
PAIRS = [
    (name, objective)
    for n, name in enumerate(METHODS)
    for m, objective in enumerate(OBJECTIVES)
    if name in SETTINGS or (n + m) % 3 == 0
]
REFUSED = r"^strategy\.objective = '(\w+)' (is not allowed: it takes (logits|parts)|needs )"
TINY = ["data.clients=2", "data.samples_per_client=24", "data.transfer.size=16"]
TINY += ["data.test.common=10", "training.local_epochs=1", "student.models=['mlp']"]


def tiny(name, objective, *more):
    """Two rounds of a few steps."""
    overrides = [f"strategy.name={name}", *TINY, f"strategy.objective={objective}", *more]
    return Experiment.from_toml(SMALL, settled(overrides))


def said(doing):
    """The line in which something was refused; empty where it was not."""
    try:
        doing()
    except FedkdError as error:
        return str(error)
    return ""


def fit_or_said(name, objective):
    """Whether the method takes the objective; else it has been refused in one line."""
    line = said(lambda: check(tiny(name, objective)))
    assert not line or re.search(REFUSED, line), line
    assert "\n" not in line
    return not line


def test_who_distils_has_an_objective():
    assert {"knfu", "fedmd", "feddistill", "fedgkt", "feddf", "dense", "swing"} < {*METHODS}
    for name in METHODS:
        assert "objective" in registry.load("strategies", name).Options.model_fields


@pytest.mark.parametrize("name", METHODS)
def test_every_objective_is_taken_or_refused_in_one_line(name):
    taken = {objective for objective in OBJECTIVES if fit_or_said(name, objective)}
    assert {"forward_kl", "reverse_kl", "jensen_shannon", "cross_entropy"} <= taken
    knowledge = registry.load("strategies", name).knowledge
    assert ("mse_logits" in taken) == (knowledge.kind == "logits")
    assert ("dkd" in taken) == knowledge.labelled


RUN_FAST = [("knfu", "reverse_kl"), ("dsfl", "jensen_shannon"), ("feddistill", "dkd")]
RUN_FAST += [("fedgkt", "not_true"), ("feddf", "mse_logits"), ("fedcache", "mae_logits")]


def runs(name, objective, folder):
    """A run that ends in finite numbers, or in one line."""
    if not fit_or_said(name, objective):
        return
    line = said(lambda: run(tiny(name, objective), folder))
    assert not line or "objective" in line, line
    assert "\n" not in line
    assert line or Run(folder).rounds[-1]["own_loss_mean"] < float("inf")


@pytest.mark.parametrize(("name", "objective"), RUN_FAST)
def test_some_run(name, objective, tmp_path):
    assert fit_or_said(name, objective)
    runs(name, objective, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "objective"), [pair for pair in PAIRS if pair not in RUN_FAST])
def test_all_run(name, objective, tmp_path):
    runs(name, objective, tmp_path / "run")


UNLABELLED = ["knfu", "fedmd", "feddf", "dense"]
WITH_LABELS = [o for o in OBJECTIVES if "labels" in traits(registry.load("objectives", o)).needs]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "objective"), itertools.product(UNLABELLED, WITH_LABELS))
def test_the_teachers_likeliest_class_takes_the_place_of_labels(name, objective, tmp_path):
    runs(name, f'{{name="{objective}", labels="argmax"}}', tmp_path / "run")


def test_logits_of_probabilities_end_a_command_in_one_line(fedkd):
    code, out, err = fedkd("run", "quickstart", "--set", "strategy.objective=mse_logits")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "with strategy.name = 'knfu'" in err
