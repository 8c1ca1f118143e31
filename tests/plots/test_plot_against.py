"""Accuracy against a number: where points stand and where lines cross."""

import numpy as np
import pytest
from test_plot_gather import fake_run

from fedkd.errors import FedkdError
from fedkd.plots import against, alpha, size
from fedkd.plots.against import crossings
from fedkd.simulations import cli

SENT = {"bytes_up": 10, "bytes_down": 10}


def study(root, values, key="data.alpha", seeds=(0,), more=()):
    """Runs of ``values[method][x]`` percent at ``key`` = x; ``local`` alone sends nothing."""
    return [
        fake_run(
            root / f"{method}-{x}-{seed}-{len(more)}",
            *(f"strategy.name={method}", f"{key}={x}", f"seed={seed}", *more),
            own_accuracy_mean=(percent + seed) / 100,
            own_accuracy_mean_local=(percent + seed - 5) / 100,
            common_accuracy_mean=(percent + seed - 9) / 100,
            **({} if method == "local" else SENT),
        )
        for method, points in values.items()
        for x, percent in points.items()
        for seed in seeds
    ]


def points(axes):
    """Heights of each line's points."""
    return {one.get_label(): one.lines[0].get_ydata() for one in axes.containers}


def rings(axes):
    return [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_markersize() == against.RING["markersize"]
    ]


def test_lines_that_cross_are_interpolated_on_the_log_axis():
    ((x, y),) = crossings([1, 100], [0, 2], [1, 1])
    assert (x, y) == pytest.approx((10, 1))
    ((x, y),) = crossings([1, 3], [0, 2], [1, 1], log=False)
    assert (x, y) == pytest.approx((2, 1))


def test_a_third_of_the_way_is_a_third_of_the_logarithm():
    ((x, _),) = crossings([1, 1000], [0, 3], [1, 1])
    assert x == pytest.approx(10)


@pytest.mark.parametrize(
    ("one", "other"), [([1, 2], [3, 4]), ([1, 1], [1, 1]), ([2, 1, 2], [1, 1, 1]), ([1], [2])]
)
def test_lines_that_do_not_cross_have_no_crossing(one, other):
    assert crossings(range(1, len(one) + 1), one, other) == []


def test_lines_that_meet_at_a_value_cross_there():
    assert crossings([1, 10, 100], [0, 1, 2], [1, 1, 1]) == [(pytest.approx(10), 1)]


def test_every_crossing_is_found():
    assert len(crossings([1, 10, 100, 1000], [0, 2, 0, 2], [1, 1, 1, 1])) == 3


def test_which_line_comes_first_changes_nothing():
    one, other = [40, 60, 80], [50, 55, 85]
    found = crossings([1, 2, 4], one, other)
    assert len(found) == 2
    assert np.allclose(found, crossings([1, 2, 4], other, one))


def test_points_are_means_over_seeds_in_percent(tmp_path):
    runs = study(tmp_path, {"knfu": {0.1: 50, 10: 80}}, seeds=(0, 2, 4))
    figure = alpha.draw(runs)
    assert points(figure.axes[0])["knfu"] == pytest.approx([52, 82])
    assert "95 % interval over 3 seeds" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("metric", "stage", "less"),
    [("own_accuracy", "fused", 0), ("own_accuracy", "local", 5), ("common_accuracy", "fused", 9)],
)
def test_the_metric_and_the_stage_that_are_asked_for_are_drawn(tmp_path, metric, stage, less):
    axes = alpha.draw(study(tmp_path, {"knfu": {0.1: 50, 10: 80}}), metric, stage).axes[0]
    assert points(axes)["knfu"] == pytest.approx([50 - less, 80 - less])
    assert axes.get_ylabel().lower().startswith(metric.split("_")[0])
    assert {"fused": "fusion", "local": "local training"}[stage] in axes.get_title(loc="left")


def test_the_axis_is_a_log_one_with_ticks_at_the_values(tmp_path):
    axes = alpha.draw(study(tmp_path, {"knfu": {0.1: 50, 1: 60, 100: 80}})).axes[0]
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == pytest.approx([0.1, 1, 100])


def test_a_key_that_may_be_zero_has_a_linear_axis(tmp_path):
    runs = study(tmp_path, {"knfu": {0: 50, 2: 60}}, key="strategy.beta")
    assert against.draw(runs, "strategy.beta").axes[0].get_xscale() == "linear"


def test_the_crossing_with_the_method_that_sends_nothing_is_ringed(tmp_path):
    runs = study(tmp_path, {"local": {1: 60, 100: 60}, "knfu": {1: 50, 100: 70}})
    figure = alpha.draw(runs)
    assert rings(figure.axes[0]) == [(pytest.approx(10), pytest.approx(60))]
    assert "local crosses" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_no_crossing_has_no_ring_and_no_entry(tmp_path):
    runs = study(tmp_path, {"local": {1: 40, 100: 60}, "knfu": {1: 50, 100: 70}})
    figure = alpha.draw(runs)
    assert rings(figure.axes[0]) == []
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["local", "knfu"]


def test_data_on_which_the_key_never_changes_are_left_out(tmp_path):
    runs = study(tmp_path, {"knfu": {1: 50, 100: 70}}, more=("data.dataset=mnist",))
    runs += study(tmp_path / "b", {"knfu": {1: 40}}, more=("data.dataset=femnist",))
    figure = alpha.draw(runs)
    assert len(figure.axes) == 1
    assert points(figure.axes[0])["knfu"] == pytest.approx([50, 70])
    with pytest.raises(FedkdError, match=r"on the same data have data\.alpha = 1, 100"):
        alpha.draw(runs[1:])


def test_methods_that_both_send_are_not_compared(tmp_path):
    runs = study(tmp_path, {"fedmd": {1: 60, 100: 60}, "knfu": {1: 50, 100: 70}})
    assert rings(alpha.draw(runs).axes[0]) == []


def test_size_has_a_panel_an_alpha_and_all_points_are_inside(tmp_path):
    key = "data.samples_per_client"
    runs = [
        run
        for n, (level, percent) in enumerate({0.1: 20, 100: 90}.items())
        for run in study(
            tmp_path / str(n),
            {"knfu": {20: percent, 80: percent + 5}, "local": {20: percent + 1, 80: percent}},
            key,
            more=(f"data.alpha={level}",),
        )
    ]
    figure = size.draw(runs)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["alpha = 0.1", "alpha = 100"]
    for panel in figure.axes:
        low, high = panel.get_ylim()
        heights = np.concatenate(list(points(panel).values()))
        assert low < heights.min()
        assert heights.max() < high
        assert len(rings(panel)) == 1


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("data.alpha", "all runs have data.alpha = 0.5; two values at least"),
        ("data.partition", "data.partition = 'dirichlet' of .* is not a number"),
        ("data.samples_per_client", "data.samples_per_client = None of .* is not a number"),
        ("data.alhpa", "is not a key of .*data.alpha"),
    ],
)
def test_a_key_that_cannot_be_drawn_against_is_one_line(tmp_path, capsys, key, said):
    fake_run(tmp_path / "a")
    with pytest.raises(FedkdError, match=said):
        against.draw([fake_run(tmp_path / "a")], key)
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", "against", key, str(tmp_path / "a")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_metric_that_was_not_measured_is_one_line(tmp_path):
    runs = [fake_run(tmp_path / str(n), f"data.alpha={n}") for n in (1, 2)]
    with pytest.raises(FedkdError, match="has measured no common_accuracy after fusion"):
        alpha.draw(runs, "common_accuracy")


@pytest.mark.parametrize("options", [("speed",), ("own_accuracy", "later")])
def test_another_metric_or_stage_is_refused_with_the_known_ones(options):
    with pytest.raises(FedkdError, match="is not known; known: "):
        alpha.draw([], *options)
