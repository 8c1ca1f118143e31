"""Curves: what is drawn, told from run folders."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.plots.curves import draw
from fedkd.plots.style import look
from fedkd.results import Run
from fedkd.summaries import spread

CLIENTS = 10


def fake_run(folder, method="knfu", seed=0, rounds=(1, 2, 3), accuracy=0.5, alpha=0.5, **options):
    """A run in which client n has ``accuracy + n / 100`` after fusion, 0.1 less before."""
    strategy = {"name": method, **options}
    data = {"alpha": alpha}
    experiment = Experiment.from_dict({"seed": seed, "data": data, "strategy": strategy})
    run = Run.at(experiment, folder).begin(experiment)
    for round in rounds:
        line, clients = {"round": round}, []
        for stage, value in (("local", accuracy - 0.1), ("fused", accuracy)):
            values = value + np.arange(CLIENTS) / 100
            metrics = {"own_accuracy": values, "common_accuracy": values / 2}
            for name, each in metrics.items():
                where = line if stage == "fused" else line.setdefault("local", {})
                where |= spread(each, name)
            clients += [
                {"round": round, "client": n, "stage": stage}
                | {name: float(each[n]) for name, each in metrics.items()}
                for n in range(CLIENTS)
            ]
        run.append_round(line, clients)
    return run


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_axes_are_labelled_with_units(tmp_path):
    axes = draw([fake_run(tmp_path / "a")], "common_accuracy").axes[0]
    assert axes.get_xlabel() == "Round"
    assert axes.get_ylabel() == "Common test accuracy (%)"


def test_the_legend_has_an_entry_per_method(tmp_path):
    methods = ["knfu", "fedmd", "local", "my_own"]
    assert legend(draw([fake_run(tmp_path / name, name) for name in methods])) == methods


def test_the_legend_lies_outside_the_axes(tmp_path):
    figure = draw([fake_run(tmp_path / name, name) for name in ("knfu", "fedmd", "fedavg", "dsfl")])
    figure.draw_without_rendering()
    box, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
    assert box.y1 <= axes.y0
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("others", [[], ["fedmd"], ["aaa", "zzz", "fedavg"]])
def test_a_method_has_the_same_colour_whatever_else_is_drawn(tmp_path, others):
    runs = [fake_run(tmp_path / name, name) for name in [*others, "knfu", "my_own"]]
    for method in ("knfu", "my_own"):
        assert to_hex(lines(draw(runs))[method].get_color()) == look(method)["color"]


def test_a_run_alone_shows_both_stages_dashed_before_solid_after(tmp_path):
    drawn = lines(draw([fake_run(tmp_path / "a", accuracy=0.5)]))
    before, after = drawn["knfu, after local training"], drawn["knfu, after fusion"]
    assert (before.get_linestyle(), after.get_linestyle()) == ("--", "-")
    assert before.get_ydata() == pytest.approx([44.5] * 3)
    assert after.get_ydata() == pytest.approx([54.5] * 3)


def test_seeds_of_one_experiment_are_one_line_their_mean(tmp_path):
    runs = [fake_run(tmp_path / f"{s}", seed=s, accuracy=0.4 + s / 10) for s in range(3)]
    figure = draw([*runs, fake_run(tmp_path / "other", "fedmd")])
    assert legend(figure) == ["knfu (3 seeds)", "fedmd (1 seed)"]
    assert lines(figure)["knfu (3 seeds)"].get_ydata() == pytest.approx([54.5] * 3)


def test_with_several_seeds_the_band_is_the_interval_over_them(tmp_path):
    runs = [fake_run(tmp_path / f"{s}", seed=s, accuracy=0.4 + s / 100) for s in range(3)]
    axes = draw(runs).axes[0]
    assert "95 % interval over 3 seeds" in axes.get_title(loc="left")
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    half = 4.302653 / 3**0.5  # t of two degrees of freedom, a standard deviation of a point
    assert [heights.min(), heights.max()] == pytest.approx([45.5 - half, 45.5 + half])


def test_of_two_seeds_the_band_is_the_range(tmp_path):
    runs = [fake_run(tmp_path / f"{s}", seed=s, accuracy=0.4 + s / 100) for s in range(2)]
    axes = draw(runs).axes[0]
    assert "range over 2 seeds" in axes.get_title(loc="left")
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert [heights.min(), heights.max()] == pytest.approx([44.5, 45.5])


def test_a_method_with_one_seed_beside_others_has_no_band(tmp_path):
    runs = [fake_run(tmp_path / f"{s}", seed=s) for s in range(3)]
    assert len(draw([*runs, fake_run(tmp_path / "b", "fedmd")]).axes[0].collections) == 1


def test_other_data_are_other_panels_that_show_every_line_whole(tmp_path):
    runs = [
        fake_run(tmp_path / f"{method}-{alpha}", method, accuracy=accuracy, alpha=alpha)
        for method in ("knfu", "fedmd")
        for alpha, accuracy in ((0.1, 0.3), (1.0, 0.8))
    ]
    figure = draw(runs)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["alpha = 0.1", "alpha = 1"]
    assert legend(figure) == ["knfu", "fedmd"]
    for panel in figure.axes:
        low, high = panel.get_ylim()
        drawn = np.concatenate([line.get_ydata() for line in panel.lines])
        assert low < drawn.min()
        assert drawn.max() < high


def test_seeds_are_compared_only_in_rounds_that_all_have(tmp_path):
    long, short = fake_run(tmp_path / "a"), fake_run(tmp_path / "b", seed=1, rounds=(1, 2))
    drawn = lines(draw([long, short]))["knfu, after fusion"]
    assert list(drawn.get_xdata()) == [1, 2]


def test_a_folder_given_twice_counts_once(tmp_path):
    run = fake_run(tmp_path / "a")
    assert len(draw([run, Run(tmp_path / "." / "a")]).axes[0].lines) == 2


def test_variants_of_a_method_are_named_by_what_differs(tmp_path):
    runs = [fake_run(tmp_path / f"{beta}", beta=beta) for beta in (1, 3)]
    assert legend(draw(runs)) == ["knfu, beta = 1", "knfu, beta = 3"]


def test_the_band_spans_what_it_says_over_clients(tmp_path):
    axes = draw([fake_run(tmp_path / "a", accuracy=0.5)]).axes[0]
    assert "10th to 90th percentile of clients" in axes.get_title(loc="left")
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert [heights.min(), heights.max()] == pytest.approx(
        np.percentile(50 + np.arange(10), [10, 90])
    )


def test_a_client_that_was_not_measured_again_counts_as_it_was(tmp_path):
    run = fake_run(tmp_path / "a", rounds=(1,), accuracy=0.5)
    run.append_round(
        {"round": 2, "own_accuracy_mean": 0.5},
        [{"round": 2, "client": 0, "stage": "local", "own_accuracy": 0.0}],
    )
    heights = draw([run]).axes[0].collections[0].get_paths()[0].vertices
    assert heights[heights[:, 0] == 2, 1].max() == pytest.approx(
        np.percentile([0, *range(51, 60)], 90)
    )


def test_rounds_that_were_not_measured_are_passed_over(tmp_path):
    run = fake_run(tmp_path / "a", rounds=(1, 2))
    run.append_round({"round": 3}, [])
    assert list(lines(draw([run]))["knfu, after fusion"].get_xdata()) == [1, 2]


def test_one_round_alone_can_be_drawn(tmp_path):
    figure = draw([fake_run(tmp_path / "a", rounds=(1,))])
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1]


def test_a_run_without_a_measured_round_is_one_line(tmp_path):
    run = fake_run(tmp_path / "a", rounds=())
    with pytest.raises(FedkdError, match="no round with a measured own_accuracy"):
        draw([run])


def test_another_metric_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(FedkdError, match="known: own_accuracy, common_accuracy"):
        draw([fake_run(tmp_path / "a")], "speed")


def test_without_clients_lines_the_mean_is_drawn_alone(tmp_path):
    run = fake_run(tmp_path / "a", rounds=())
    run.append_round({"round": 1, "own_accuracy_mean": 0.5}, [])
    assert list(lines(draw([run]))["knfu"].get_ydata()) == [50]


def test_runs_that_cannot_be_told_apart_by_their_keys_are_named_by_folder(tmp_path):
    run = fake_run(tmp_path / "a")
    more = run.experiment.model_copy(update={"rounds": 20})
    longer = Run.at(more, tmp_path / "b").begin(more)
    longer.append_round({"round": 1, "own_accuracy_mean": 0.5}, [])
    assert legend(draw([run, longer])) == ["knfu, a", "knfu, b"]


def test_labels_too_long_for_the_column_give_way_to_the_folder(tmp_path):
    options = dict.fromkeys(("first_option", "second_option", "third_option"), 1)
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", **options)]
    assert legend(draw(runs))[1] == "knfu, b"
