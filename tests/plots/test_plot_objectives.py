"""Objectives against one of them, by known answers and laws."""

import numpy as np
import pytest
from test_plot_gather import fake_run

from fedkd import FedkdError
from fedkd.plots.objectives import TOLD, draw, objective_of
from fedkd.statistics import interval

NOISE = np.array([0.3, -0.2, 0.1, -0.4, 0.2])
MEANS = {"forward_kl": 80.0, "reverse_kl": 82.0, "jensen_shannon": 80.1}


def study(root, methods=("knfu", "fedmd"), means=MEANS, own=0.5, seeds=range(5)):
    draws = np.random.default_rng(0)
    return [
        fake_run(
            root / f"{method}-{objective}-{seed}",
            f"strategy.name={method}",
            f"strategy.objective={objective}",
            f"seed={seed}",
            headline="own_accuracy_mean",
            own_accuracy_mean=(mean + NOISE[seed] + own * draws.standard_normal()) / 100,
        )
        for method in methods
        for objective, mean in means.items()
        for seed in seeds
    ]


def test_a_panel_a_method_the_best_on_top(tmp_path):
    figure = draw(study(tmp_path))
    assert {panel.get_title("left") for panel in figure.axes} == {"fedmd", "knfu"}
    for panel in figure.axes:
        assert [text.get_text() for text in panel.get_yticklabels()] == [
            "reverse_kl",
            "jensen_shannon",
        ]
        low, high = panel.get_ylim()
        assert low > high


def test_the_axis_says_what_is_less_than_what(tmp_path):
    labels = {panel.get_xlabel() for panel in draw(study(tmp_path), reference="reverse_kl").axes}
    assert "Gain over reverse_kl\n(accuracy, points)" in labels


def test_intervals_hold_at_once(tmp_path):
    runs = study(tmp_path, methods=("knfu",))
    by = {}
    for run in runs:
        by.setdefault(objective_of(run), []).append(100 * run.summary["own_accuracy_mean"])
    expected = interval(np.subtract(by["reverse_kl"], by["forward_kl"]), 1 - 0.05 / 2)
    (panel,) = draw(runs).axes
    bars = [line for line in panel.lines if line.get_color() == TOLD["better"]]
    assert bars[0].get_xdata() == pytest.approx([expected.low, expected.high])
    assert bars[1].get_xdata() == pytest.approx([expected.mean])


def test_the_reference_may_be_another_and_turns_the_sign(tmp_path):
    runs = study(tmp_path, methods=("knfu",), means={"forward_kl": 80.0, "reverse_kl": 82.0})

    def drawn(**options):
        return draw(runs, **options).axes[0].lines[-1].get_xdata()[0]

    assert drawn(reference="reverse_kl") == pytest.approx(-drawn())


def test_options_are_in_the_name_and_where_labels_come_from_is_not(tmp_path):
    options = 'strategy.objective={name="dkd", beta=2.0}'
    assert (
        objective_of(fake_run(tmp_path / "b", "strategy.name=fedntd", options)) == "dkd, beta 2.0"
    )
    assert objective_of(fake_run(tmp_path / "c", "strategy.name=local")) == "default"


def test_what_cannot_be_compared_is_said_in_a_line(tmp_path):
    runs = study(tmp_path, methods=("knfu",))
    with pytest.raises(FedkdError, match=r"'forward_k' has nothing beside it .*did you mean 'forw"):
        draw(runs, "forward_k")
    with pytest.raises(FedkdError, match="objectives of these runs: default"):
        draw([fake_run(tmp_path / "local", "strategy.name=local")])
