"""Calibration: two points a method, where its numbers are."""

import pytest
from test_plot_gather import fake_run

from fedkd.errors import FedkdError
from fedkd.plots.calibration import draw

LOCAL, FUSED = (0.6, 0.10), (0.8, 0.2)


def measured(folder, *overrides, tests=("own", "common"), shift=0.0):
    """A run with the accuracies and errors of LOCAL and FUSED."""
    summary = {}
    for name in tests:
        for ending, (accuracy, error) in (("_local", LOCAL), ("", FUSED)):
            summary[f"{name}_accuracy_mean{ending}"] = accuracy + shift
            summary[f"{name}_ece_mean{ending}"] = error + shift
    return fake_run(folder, *overrides, **summary)


def points(panel):
    return [(bar.lines[0].get_xdata()[0], bar.lines[0].get_ydata()[0]) for bar in panel.containers]


def test_a_method_is_hollow_after_local_training_and_full_after_fusion(tmp_path):
    own, common = draw([measured(tmp_path / "a")]).axes
    for panel in (own, common):
        assert points(panel) == [pytest.approx((60, 10)), pytest.approx((80, 20))]
        faces = [bar.lines[0].get_markerfacecolor() for bar in panel.containers]
        assert faces[0] == "white" != faces[1]


def test_panels_are_own_and_common_and_axes_have_units(tmp_path):
    own, common = draw([measured(tmp_path / "a")]).axes
    titles = [panel.get_title(loc="left") for panel in (own, common)]
    assert titles == ["own test set", "common test set"]
    assert own.get_ylabel() == "Calibration error (%)"
    assert own.get_xlabel() == "Test accuracy (%)"


def test_a_test_set_that_was_not_measured_has_no_panel(tmp_path):
    (panel,) = draw([measured(tmp_path / "a", tests=("own",))]).axes
    assert panel.get_title(loc="left") == "own test set"


def test_seeds_are_averaged(tmp_path):
    runs = [measured(tmp_path / str(n), f"seed={n}", shift=n / 100) for n in range(3)]
    own = draw(runs).axes[0]
    assert points(own) == [pytest.approx((61, 11)), pytest.approx((81, 21))]


def test_a_method_is_named_once_and_the_two_stages_too(tmp_path):
    runs = [measured(tmp_path / name, f"strategy.name={name}") for name in ("knfu", "local")]
    said = [text.get_text() for text in draw(runs).legends[0].get_texts()]
    assert said == ["knfu", "local", "after local training", "after fusion"]


def test_runs_without_a_calibration_error_are_one_line(tmp_path):
    with pytest.raises(FedkdError, match="no run has measured a calibration error"):
        draw([fake_run(tmp_path / "a")])
