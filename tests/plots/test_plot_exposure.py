"""Exposure: a panel an arm, a line a place, and the two levels it lies between."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.plots import exposure as figure_of
from fedkd.plots.exposure import LOOKS, NULL, draw
from fedkd.plots.style import ARMS, COLUMN, PAGE, look
from fedkd.plots.style import PLACES as METHODS
from fedkd.results import PLACES, Run
from fedkd.simulations import cli
from fedkd.summaries import exposure

SPACE = 19.93
LEVELS = (1, 4, 16, 64)


def fake_run(
    folder, arm="fkd", seed=0, levels=LEVELS, places=PLACES, secrets=8, ended=True, **release
):
    """A run whose secrets are the more exposed the earlier the place and the more the repeats."""
    experiment = Experiment.from_dict(
        {"name": arm, "seed": seed, "strategy": {"name": "swing"}, "release": release}
        | {"canary": {"secrets": -(-secrets // 4), "repeats": levels}}
    )
    run = Run.at(experiment, folder).begin(experiment)
    lines = [
        {"round": 1, "place": place, "observer": None, "secret": 100 * level + n}
        | {"repeats": level, "holders": [n % 4]}
        | {"exposure": 1.0 + (4 - PLACES.index(place)) * math.log2(level) / 2 + n / 8 + seed / 4}
        for place, level, n in itertools.product(places, levels, range(secrets))
    ]
    run.append_round({"round": 1}, exposures=lines)
    run.write_canaries({"log2_space": SPACE})
    if ended:
        run.write_summary({"common_perplexity_mean": 100.0, "own_perplexity_mean": 90.0})
    return run


def panels(figure):
    return {panel.get_title(loc="left"): panel for panel in figure.axes}


def places(panel):
    """The lines of a panel with their intervals, by place."""
    return {container.get_label(): container for container in panel.containers}


def means(container):
    return container.lines[0].get_ydata()


def intervals(container):
    """Low and high ends, ``(n, 2)``."""
    return np.array([[ends[0][1], ends[1][1]] for ends in container.lines[2][0].get_segments()])


def levels(panel):
    """Heights of the level lines."""
    return [line.get_ydata()[0] for line in panel.lines if list(line.get_xdata()) == [0, 1]]


def test_there_is_a_panel_an_arm_and_a_line_a_place(tmp_path):
    runs = [fake_run(tmp_path / arm, arm) for arm in ("swing", "fkd", "noise")]
    found = panels(draw(runs))
    assert list(found) == ["fkd", "swing", "noise"]
    for panel in found.values():
        assert list(places(panel)) == ["teacher", "released labels", "fused labels", "student"]


def test_means_and_intervals_are_those_of_the_results(tmp_path):
    runs = [fake_run(tmp_path / f"{seed}", seed=seed) for seed in range(3)]
    drawn = places(panels(draw(runs))["fkd"])["student"]
    found = [exposure(runs, "student", level) for level in LEVELS]
    assert means(drawn) == pytest.approx([one.mean for one in found])
    assert intervals(drawn) == pytest.approx(np.array([(one.low, one.high) for one in found]))


def test_intervals_of_places_stand_side_by_side_around_their_level(tmp_path):
    panel = panels(draw([fake_run(tmp_path / "a")]))["fkd"]
    where = np.log2([line.lines[0].get_xdata() for line in places(panel).values()])
    assert where.mean(0) == pytest.approx(np.log2(LEVELS))
    assert np.diff(where, axis=0).min() > 0.05
    assert np.ptp(where, axis=0).max() < 0.5 * np.diff(np.log2(LEVELS)).min()


def test_the_levels_of_repeats_are_the_ticks_of_an_axis_of_powers_of_two(tmp_path):
    panel = draw([fake_run(tmp_path / "a")]).axes[0]
    assert panel.get_xscale() == "log"
    assert list(panel.get_xticks()) == list(LEVELS)
    assert [text.get_text() for text in panel.get_xticklabels()] == ["1", "4", "16", "64"]


def test_the_null_is_dashed_and_the_size_of_the_space_dotted(tmp_path):
    figure = draw([fake_run(tmp_path / "a")])
    assert pytest.approx(1.443, abs=1e-3) == NULL
    assert levels(figure.axes[0]) == pytest.approx([NULL, SPACE])
    assert figure.axes[0].get_ylim()[0] == 0
    assert figure.axes[0].get_ylim()[1] > SPACE
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said[:4] == ["teacher", "released labels", "fused labels", "student"]
    assert "1.44 bits" in said[4]
    assert "19.9" in said[5]


def test_axes_are_labelled_with_units(tmp_path):
    figure = draw([fake_run(tmp_path / f"{n}", f"arm-{n}") for n in range(6)])
    assert [panel.get_ylabel() for panel in figure.axes] == ["Exposure (bits)", "", ""] * 2
    assert [panel.get_xlabel() for panel in figure.axes[3:]] == ["Repeats of a secret"] * 3


def test_places_differ_in_marker_line_or_fill_and_in_grey():
    for one, other in itertools.combinations(LOOKS.values(), 2):
        assert one["marker"] != other["marker"]
        greys = [np.dot(to_rgb(style["color"]), (0.299, 0.587, 0.114)) for style in (one, other)]
        assert abs(greys[0] - greys[1]) > 0.1 or one.get("linestyle") != other.get("linestyle")


def test_a_place_that_an_arm_does_not_have_is_left_out_and_keeps_its_look(tmp_path):
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", "fedavg", places=("student",))]
    found = panels(draw(runs))
    alone, beside = (places(found[arm]) for arm in ("fedavg", "fkd"))
    assert list(alone) == ["student"]
    for line in (alone["student"], beside["student"]):
        assert line.lines[0].get_color() == LOOKS["student"]["color"]
    assert list(alone["student"].lines[0].get_xdata()) == list(
        beside["student"].lines[0].get_xdata()
    )


def test_the_last_measured_round_counts(tmp_path):
    run = fake_run(tmp_path / "a", levels=(4,), places=("student",), ended=False)
    line = {"place": "student", "observer": None, "secret": 400, "repeats": 4, "holders": [0]}
    run.append_round({"round": 2}, exposures=[{"round": 2, **line, "exposure": 17.0}])
    run.write_summary({"common_perplexity_mean": 100.0})
    assert list(means(places(draw([run]).axes[0])["student"])) == [17.0]


def test_one_secret_has_no_interval(tmp_path):
    drawn = places(draw([fake_run(tmp_path / "a", secrets=1)]).axes[0])["student"]
    assert np.isfinite(means(drawn)).all()
    assert not any(len(bar) for bar in drawn.lines[2][0].get_segments())


def test_one_level_alone_is_drawn(tmp_path):
    panel = draw([fake_run(tmp_path / "a", levels=(16,))]).axes[0]
    left, right = panel.get_xlim()
    assert left < 16 < right
    assert len(places(panel)) == 4


def test_exposures_of_zero_are_whole_on_the_axis(tmp_path):
    panel = draw([fake_run(tmp_path / "a")]).axes[0]
    assert not any(line.lines[0].get_clip_on() for line in panel.containers)
    assert all(bars.get_clip_on() for line in panel.containers for bars in line.lines[2])


def test_seeds_are_one_panel_and_told_where_they_differ(tmp_path):
    runs = [fake_run(tmp_path / f"{seed}", seed=seed) for seed in range(3)]
    assert "3 seeds" in draw(runs).get_suptitle()
    other = fake_run(tmp_path / "b", "swing", tau_max=20.0)
    assert list(panels(draw([*runs, other]))) == ["fkd, 3 seeds", "swing, 1 seed"]


def test_the_same_experiment_under_two_names_is_two_arms(tmp_path):
    runs = [fake_run(tmp_path / arm, arm) for arm in ("same", "swing")]
    assert list(panels(draw(runs))) == ["swing", "same"]


def test_runs_of_one_name_are_told_apart_by_what_differs(tmp_path):
    hotter = [fake_run(tmp_path / f"{tau}", "mine", tau_max=tau) for tau in (10.0, 20.0)]
    assert list(panels(draw(hotter))) == ["swing, tau_max = 10", "swing, tau_max = 20"]
    beside = [*hotter, fake_run(tmp_path / "fkd")]
    assert list(panels(draw(beside))) == ["fkd", "mine, tau_max = 10", "mine, tau_max = 20"]


def test_the_order_of_runs_does_not_matter(tmp_path):
    runs = [
        fake_run(tmp_path / f"{arm}-{tau}-{seed}", arm, seed, tau_max=tau)
        for arm in ("swing", "fkd")
        for tau in (10.0, 20.0)
        for seed in (0, 1)
    ]

    def shown(runs):
        return [
            (title, [list(means(line)) for line in panel.containers])
            for title, panel in panels(draw(runs)).items()
        ]

    assert shown(runs) == shown(runs[::-1])


@pytest.mark.parametrize(("arms", "width", "rows"), [(1, COLUMN, 1), (6, PAGE, 2), (9, PAGE, 3)])
def test_one_arm_fits_a_column_and_more_a_page(tmp_path, arms, width, rows):
    figure = draw([fake_run(tmp_path / f"{n}", f"arm-{n}", levels=(4,)) for n in range(arms)])
    assert figure.get_figwidth() == width
    assert len(figure.axes) == arms
    assert figure.axes[0].get_gridspec().nrows == rows
    assert len({panel.get_ylim() for panel in figure.axes}) == 1


def test_the_legend_fits_a_column(tmp_path):
    figure = draw([fake_run(tmp_path / "a")])
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_arms_of_the_study_differ_in_colour_or_marker_from_one_another_and_from_methods():
    names = list(dict.fromkeys([*ARMS, *filter(None, METHODS)]))
    looks = [(look(name)["color"], look(name)["marker"]) for name in names]
    assert len(set(looks)) == len(names)
    assert all(look(arm)["markerfacecolor"] != "white" for arm in ARMS)


def test_a_run_without_canaries_is_one_line(tmp_path):
    run = fake_run(tmp_path / "a", secrets=0)
    with pytest.raises(FedkdError, match="no measured exposure: its experiment plants no canaries"):
        draw([run])


def test_a_run_that_measured_nothing_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match=r"a has no measured exposure$"):
        draw([fake_run(tmp_path / "a", places=())])


def test_a_run_that_has_not_ended_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match="a has not ended"):
        draw([fake_run(tmp_path / "a", ended=False)])


def test_more_arms_than_fit_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(figure_of, "MOST", 1)
    runs = [fake_run(tmp_path / arm, arm) for arm in ("fkd", "swing")]
    with pytest.raises(FedkdError, match="2 arms do not fit into one figure; allowed: 1"):
        draw(runs)


def test_the_command_writes_png_and_pdf_beside_the_first_run(tmp_path, capsys):
    folders = [str(fake_run(tmp_path / arm, arm).folder) for arm in ("fkd", "swing")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", "exposure", *folders])
    stem = tmp_path / "fkd" / "plots" / "exposure"
    assert not ended.value.code
    assert capsys.readouterr().out.split() == [f"{stem}.png", f"{stem}.pdf"]


def test_arms_on_other_data_are_named_by_the_data(tmp_path):
    runs = []
    for dataset in ("pydoc", "shakespeare"):
        folder = tmp_path / dataset
        folder.mkdir()
        runs.append(fake_run(folder / "fkd"))
        runs.append(fake_run(folder / "swing", "swing", tau_max=4.0))
    for run, dataset in zip(runs, ("pydoc", "pydoc", "shakespeare", "shakespeare")):
        changed = run.experiment.to_toml().replace('dataset = "digits"', f'dataset = "{dataset}"')
        (run.folder / "experiment.toml").write_text(changed)
        run.write_summary(run.summary)
    found = list(panels(draw(runs)))
    assert found == ["fkd, pydoc", "swing, pydoc", "fkd, shakespeare", "swing, shakespeare"]
