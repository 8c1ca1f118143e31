"""Cuts: three panels, and a named line wherever the cut moves."""

import itertools

import pytest
from matplotlib.text import Text

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.plots.cuts import draw
from fedkd.results import Run
from fedkd.simulations import cli

TRAFFIC = {"bytes_up": 3_000_000, "bytes_down": 1_000_000}


def fake_run(folder, cuts, traffic=TRAFFIC, held_out=True, every=1):
    """A run whose round t has the cut ``cuts[t - 1]``, own accuracy 0.5 + t / 1000 after fusion."""
    experiment = Experiment.from_dict({"strategy": {"name": "fedd2s"}})
    run = Run.at(experiment, folder).begin(experiment)
    for round, cut in enumerate(cuts, 1):
        server = {"cut": cut, "head_loss": 1.0, "head_accuracy": 0.7}
        line = {"round": round, **traffic, "strategy": server if cut else {}}
        if held_out:
            server["head_heldout_accuracy"] = 0.4
        if round % every == 0:
            accuracy = 0.5 + round / 1000
            line |= {
                "own_accuracy_mean": accuracy,
                "local": {"own_accuracy_mean": accuracy - 0.1},
            }
        run.append_round(line, [])
    return run


def flags(figure):
    """The names of the cuts on top, and the round each stands at."""
    return {text.xy[0]: text.get_text() for text in figure.axes[0].texts if text.get_text()}


def moves(axes):
    """The rounds at which a vertical line stands."""
    lines = [line for line in axes.lines if list(line.get_ydata()) == [0, 1]]
    return [line.get_xdata()[0] for line in lines]


def curves(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_three_panels_share_the_rounds_and_are_labelled_with_units(tmp_path):
    axes = draw([fake_run(tmp_path, ["fc1"] * 3 + ["conv2"] * 3)]).axes
    assert [" ".join(panel.get_ylabel().split()) for panel in axes] == [
        "Own test accuracy (%)",
        "Server head accuracy (%)",
        "Traffic (MB a round)",
    ]
    assert axes[-1].get_xlabel() == "Round"
    assert len({panel.get_xlim() for panel in axes}) == 1


def test_each_panel_has_its_two_curves_at_the_runs_numbers(tmp_path):
    own, head, traffic = (curves(axes) for axes in draw([fake_run(tmp_path, ["fc1"] * 2)]).axes)
    assert own["after fusion"].get_ydata() == pytest.approx([50.1, 50.2])
    assert own["after local training"].get_ydata() == pytest.approx([40.1, 40.2])
    assert head["on uploads"].get_ydata() == pytest.approx([70, 70])
    assert head["held out"].get_ydata() == pytest.approx([40, 40])
    assert traffic["up"].get_ydata() == pytest.approx([3, 3])
    assert traffic["down"].get_ydata() == pytest.approx([1, 1])


def test_held_out_accuracy_is_drawn_only_where_it_is_recorded(tmp_path):
    head = draw([fake_run(tmp_path, ["fc1"] * 2, held_out=False)]).axes[1]
    assert list(curves(head)) == ["on uploads"]


def test_lines_stand_where_the_cut_moves_in_every_panel_with_the_new_cut_on_top(tmp_path):
    figure = draw([fake_run(tmp_path, ["fc1"] * 10 + ["conv3"] * 10 + ["conv2"] * 10)])
    assert [moves(panel) for panel in figure.axes] == [[11, 21]] * 3
    assert flags(figure) == {1: "cut: fc1", 11: "conv3", 21: "conv2"}


def test_a_cut_that_never_moves_is_named_and_has_no_line(tmp_path):
    figure = draw([fake_run(tmp_path, ["fc1"] * 5)])
    assert flags(figure) == {1: "cut: fc1"}
    assert [moves(panel) for panel in figure.axes] == [[]] * 3


def test_active_cuts_are_all_named(tmp_path):
    figure = draw([fake_run(tmp_path, [["fc1", "conv2"]] * 4 + ["conv2"] * 4)])
    assert flags(figure) == {1: "cut: fc1 + conv2", 5: "conv2"}


def test_one_active_cut_is_the_same_cut_however_it_is_written(tmp_path):
    assert moves(draw([fake_run(tmp_path, [["fc1"], "fc1"])]).axes[0]) == []


def test_a_round_that_records_no_cut_moves_nothing(tmp_path):
    figure = draw([fake_run(tmp_path, ["fc1", None, "fc1", "conv2"])])
    assert flags(figure) == {1: "cut: fc1", 4: "conv2"}


@pytest.mark.parametrize(
    ("rounds", "every", "names"),
    [
        (30, 10, ["fc1", "conv3", "conv2"]),
        (60, 2, ["fc1", "conv4", "conv3", "conv2", "conv1"]),
        (30, 7, ["fc1", "conv4", "conv3", "conv2", "a_block_with_a_long_name"]),
        (30, 4, [["fc1", "conv3", "conv2"], ["conv3", "conv2"], ["conv2"]]),
        (12, 1, [f"block{n}" for n in range(12)]),
    ],
)
def test_labels_of_cuts_never_overlap_each_other_the_legend_or_a_line(
    tmp_path, rounds, every, names
):
    cuts = [names[min(len(names) - 1, round // every)] for round in range(rounds)]
    figure = draw([fake_run(tmp_path, cuts)])
    figure.draw_without_rendering()
    top = figure.axes[0]
    labels = [text for text in top.texts if text.get_text()]
    boxes = [Text.get_window_extent(text) for text in labels]
    poles = [text.arrow_patch.get_window_extent() for text in top.texts if not text.get_text()]
    others = [top.get_window_extent(), top.get_legend().get_window_extent(), *poles]
    assert len(boxes) == len(names)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.overlaps(other) for box in boxes for other in others)
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_legends_never_touch_the_panel_above(tmp_path):
    figure = draw([fake_run(tmp_path, ["fc1"] * 3 + ["conv2"] * 3)])
    figure.draw_without_rendering()
    for above, below in itertools.pairwise(figure.axes):
        legend = below.get_legend().get_window_extent()
        assert below.get_window_extent().y1 <= legend.y0
        assert legend.y1 <= above.get_window_extent().y0


def test_traffic_has_a_unit_that_suits_it(tmp_path):
    little = {"bytes_up": 2_000, "bytes_down": 1_500}
    axes = draw([fake_run(tmp_path, ["fc1"], traffic=little)]).axes[-1]
    assert "kB" in axes.get_ylabel()
    assert curves(axes)["up"].get_ydata() == pytest.approx([2])


@pytest.mark.parametrize(("down", "scale"), [(1_000_000, "linear"), (1_000, "log"), (0, "linear")])
def test_traffic_is_on_a_log_axis_where_one_way_would_lie_on_the_bottom(tmp_path, down, scale):
    traffic = {"bytes_up": 3_000_000, "bytes_down": down}
    assert draw([fake_run(tmp_path, ["fc1"] * 2, traffic)]).axes[-1].get_yscale() == scale


def test_rounds_that_were_not_measured_are_passed_over(tmp_path):
    own = curves(draw([fake_run(tmp_path, ["fc1"] * 6, every=3)]).axes[0])
    assert list(own["after fusion"].get_xdata()) == [3, 6]


def test_a_run_without_cuts_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match="has no round that records a cut") as error:
        draw([fake_run(tmp_path, [None] * 3)])
    assert "\n" not in str(error.value)


def test_several_runs_are_one_line(tmp_path):
    runs = [fake_run(tmp_path / name, ["fc1"]) for name in "ab"]
    with pytest.raises(FedkdError, match="cuts shows one run and 2 were given; name one, as"):
        draw(runs)


def test_the_command_writes_png_and_pdf_into_the_runs_folder(tmp_path, capsys):
    fake_run(tmp_path / "a", ["fc1", "conv2"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", "cuts", str(tmp_path / "a")])
    stem = tmp_path / "a" / "plots" / "cuts"
    assert not ended.value.code
    assert capsys.readouterr().out.split() == [f"{stem}.png", f"{stem}.pdf"]
