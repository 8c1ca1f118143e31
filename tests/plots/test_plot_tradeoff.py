"""Trade-off: a point an arm, where its numbers are, with a name that can be read."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Annotation, Text

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.plots import tradeoff
from fedkd.plots.exposure import NULL
from fedkd.plots.style import ARMS, COLUMN, PAGE, look
from fedkd.plots.tradeoff import draw
from fedkd.results import PLACES, Run
from fedkd.simulations import cli
from fedkd.summaries import exposure

PLAIN = 9.0


def fake_run(
    folder,
    arm="fkd",
    bits=PLAIN,
    utility=100.0,
    kind="perplexity",
    seed=0,
    levels=(4, 64),
    places=PLACES,
    secrets=8,
    ended=True,
    **release,
):
    """A run whose secrets have ``bits`` of exposure on average at 64 repeats, less at others."""
    experiment = Experiment.from_dict(
        {"name": arm, "seed": seed, "strategy": {"name": "swing"}, "release": release}
        | {"canary": {"secrets": -(-secrets // 4), "repeats": levels}}
    )
    run = Run.at(experiment, folder).begin(experiment)
    around = np.linspace(-0.5, 0.5, secrets)
    lines = [
        {"round": 1, "place": place, "observer": None, "secret": 100 * level + n}
        | {"repeats": level, "holders": [n % 4]}
        | {"exposure": bits * math.log2(level) / 6 + around[n] + (PLACES.index(place) - 3) / 100}
        for place, level, n in itertools.product(places, levels, range(secrets))
    ]
    run.append_round({"round": 1}, exposures=lines)
    run.write_canaries({"log2_space": 19.93})
    if ended:
        run.write_summary({f"common_{kind}_mean": utility, f"own_{kind}_mean": utility})
    return run


def many(folder, count=None):
    """As many arms as the study has, all of them within little."""
    rng = np.random.default_rng(0)
    arms = list(ARMS)[:count]
    places = rng.uniform((1, 95), (5, 110), (len(arms), 2))
    return [
        fake_run(folder / arm, arm, bits, utility, levels=(64,), places=("student",))
        for arm, (bits, utility) in zip(arms, places.tolist())
    ]


def points(figure):
    """Each arm's point, by its name."""
    found = {one.get_label(): one.lines[0] for one in figure.axes[0].containers}
    return {label: (*line.get_xdata(), *line.get_ydata()) for label, line in found.items()}


def bars(figure, arm):
    """Ends of the two intervals of an arm, across and up; empty where there is none."""
    container = next(one for one in figure.axes[0].containers if one.get_label() == arm)
    ends = (bars.get_segments()[0].reshape(-1, 2) for bars in container.lines[2])
    return [list(both[:, axis]) for axis, both in enumerate(ends)]


def names(figure):
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation)]


def extents(texts):
    return [Text.get_window_extent(text) for text in texts]


def said(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_point_stands_at_excess_exposure_and_utility(tmp_path):
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", "swing", 2.0, 104.0)]
    found = points(draw(runs))
    assert found["fkd"] == pytest.approx((PLAIN - NULL, 100))
    assert found["swing"] == pytest.approx((2 - NULL, 104))


def test_intervals_are_those_of_the_results_and_of_student_over_seeds(tmp_path):
    utilities = (98.0, 100.0, 105.0)
    runs = [
        fake_run(tmp_path / f"{seed}", bits=PLAIN + seed, utility=utility, seed=seed)
        for seed, utility in enumerate(utilities)
    ]
    across, up = bars(draw(runs), "fkd")
    found = exposure(runs, "student", 64)
    assert across == pytest.approx([found.low - NULL, found.high - NULL])
    half = 4.302653 * np.std(utilities, ddof=1) / 3**0.5  # t of 97.5 % at 2 degrees of freedom
    assert up == pytest.approx([101 - half, 101 + half])


def test_one_seed_has_no_interval_of_utility(tmp_path):
    across, up = bars(draw([fake_run(tmp_path / "a")]), "fkd")
    assert len(across) == 2
    assert not up


def test_place_and_repeats_choose_the_exposure(tmp_path):
    run = fake_run(tmp_path / "a")
    assert points(draw([run], "teacher", 4))["fkd"][0] == pytest.approx(
        PLAIN / 3 - 0.03 - NULL, abs=1e-9
    )
    title = draw([run], "released", 4).axes[0].get_title(loc="left")
    assert title.startswith("released labels, 4 repeats")


def test_the_highest_level_that_all_arms_have_counts_unless_told(tmp_path):
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", "swing", levels=(1, 4))]
    assert "student, 4 repeats" in draw(runs).axes[0].get_title(loc="left")


def test_accuracy_is_in_percent_on_a_linear_axis_and_better_above(tmp_path):
    run = fake_run(tmp_path / "a", utility=0.6, kind="accuracy")
    figure = draw([run, fake_run(tmp_path / "b", "swing", 2.0, 0.5, "accuracy")])
    axes = figure.axes[0]
    assert points(figure)["fkd"][1] == pytest.approx(60)
    assert axes.get_yscale() == "linear"
    assert axes.get_ylabel() == "Test accuracy (%)   better →"


def test_perplexity_is_on_a_log_axis_and_better_below(tmp_path):
    axes = draw([fake_run(tmp_path / "a")]).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "Perplexity   ← better"
    assert axes.get_xlabel() == "← leaks less   Excess exposure (bits)"


@pytest.mark.parametrize("utilities", [(100, 101), (100, 300), (100, 3000), (100, 100)])
def test_the_log_axis_has_ticks_with_numbers_whatever_its_range(tmp_path, utilities):
    arms = zip(("fkd", "swing"), utilities)
    axes = draw([fake_run(tmp_path / arm, arm, 5.0, float(u)) for arm, u in arms]).axes[0]
    low, high = axes.get_ylim()
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert 2 <= len(shown) <= 9
    assert axes.yaxis.get_major_formatter()(125.0) == "125"


def test_no_excess_is_a_vertical_line_inside_the_axes(tmp_path):
    figure = draw([fake_run(tmp_path / "a"), fake_run(tmp_path / "b", "swing", 0.2)])
    axes = figure.axes[0]
    assert [0, 0] in [list(line.get_xdata()) for line in axes.lines]
    assert axes.get_xlim()[0] < 0.2 - NULL
    assert "1.44 bits" in said(figure)[0]


@pytest.mark.parametrize(
    ("kind", "plain", "edge"), [("perplexity", 100.0, 105.0), ("accuracy", 0.8, 76.0)]
)
def test_the_region_ends_at_a_fifth_of_the_excess_and_one_twentieth_worse(
    tmp_path, kind, plain, edge
):
    runs = [fake_run(tmp_path / "a", utility=plain, kind=kind)]
    runs += [fake_run(tmp_path / "b", "swing", 2.0, 0.9 * plain, kind)]
    figure = draw(runs)
    (region,) = figure.axes[0].patches
    box, limits = region.get_bbox(), figure.axes[0].get_ylim()
    assert box.x1 == pytest.approx(0.2 * (PLAIN - NULL))
    assert box.x0 == pytest.approx(figure.axes[0].get_xlim()[0])
    heights = (limits[0], edge) if kind == "perplexity" else (edge, limits[1])
    assert (box.y0, box.y1) == pytest.approx(heights)
    assert said(figure)[1] == f"≥ 80 % less excess than fkd, ≤ 5 % worse {kind}"


@pytest.mark.parametrize("arms", [{"swing": PLAIN, "noise": 3.0}, {"fkd": 1.0, "swing": 0.5}])
def test_without_a_plain_arm_that_leaks_there_is_no_region(tmp_path, arms):
    figure = draw([fake_run(tmp_path / arm, arm, bits) for arm, bits in arms.items()])
    assert not figure.axes[0].patches
    assert len(said(figure)) == 1


def test_two_plain_arms_have_no_region(tmp_path):
    runs = [fake_run(tmp_path / f"{tau}", tau_max=tau) for tau in (10.0, 20.0)]
    figure = draw([*runs, fake_run(tmp_path / "b", "swing")])
    assert not figure.axes[0].patches
    assert "fkd, tau_max = 10" in points(figure)


def test_the_plain_arm_has_a_ring_and_a_bold_name(tmp_path):
    figure = draw([fake_run(tmp_path / "a"), fake_run(tmp_path / "b", "swing", 2.0)])
    plain, other = sorted(names(figure), key=lambda text: text.get_text())
    assert (plain.get_text(), other.get_text()) == ("fkd (plain)", "swing")
    assert plain.get_fontweight() == "bold" != other.get_fontweight()
    rings = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert [(*ring.get_xdata(), *ring.get_ydata()) for ring in rings] == [points(figure)["fkd"]]


def test_an_arm_looks_the_same_whatever_else_is_drawn(tmp_path):
    swing = fake_run(tmp_path / "b", "swing", 2.0)
    for runs in ([swing], [fake_run(tmp_path / "a"), swing]):
        container = next(one for one in draw(runs).axes[0].containers if one.get_label() == "swing")
        line = container.lines[0]
        assert (to_hex(line.get_color()), line.get_marker()) == (
            look("swing")["color"],
            look("swing")["marker"],
        )


def test_every_arm_has_a_name_that_overlaps_no_other_and_no_other_marker(tmp_path):
    figure = draw(many(tmp_path))
    figure.draw_without_rendering()
    texts = names(figure)
    boxes = extents(texts)
    assert {text.get_text().removesuffix(" (plain)") for text in texts} == set(ARMS)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    where = figure.axes[0].transData.transform(list(points(figure).values()))
    assert not any(box.contains(*point) for box in boxes for point in where)


@pytest.mark.slow
def test_names_stay_inside_the_axes_and_far_ones_are_tied_to_their_points(tmp_path):
    figure = draw(many(tmp_path))
    figure.draw_without_rendering()
    frame = figure.axes[0].bbox
    for text, box in zip(names(figure), extents(names(figure))):
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1
        (x, y) = figure.axes[0].transData.transform(text.xy)
        gap = np.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))
        assert text.arrow_patch.get_visible() == (72 / figure.dpi * gap > tradeoff.TIED)


def test_arms_at_one_point_have_names_side_by_side(tmp_path):
    figure = draw([fake_run(tmp_path / arm, arm) for arm in list(ARMS)[:6]])
    figure.draw_without_rendering()
    boxes = extents(names(figure))
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_an_interval_as_of_two_seeds_does_not_squeeze_the_others(tmp_path):
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", "swing", 2.0, 110.0)]
    runs += [
        fake_run(tmp_path / "c", "noise", 5.0, 60.0),
        fake_run(tmp_path / "d", "noise", 5.0, 140.0, seed=1),
    ]
    figure = draw(runs)
    low, high = figure.axes[0].get_ylim()
    assert bars(figure, "noise")[1][0] < 0 < low
    assert high / low < 2


def test_few_arms_fit_a_column_and_many_a_page(tmp_path):
    assert draw(many(tmp_path, 3)).get_figwidth() == COLUMN
    assert draw(many(tmp_path, 12)).get_figwidth() == PAGE


def test_the_order_of_runs_does_not_matter(tmp_path):
    runs = many(tmp_path, 8)

    def shown(runs):
        figure = draw(runs)
        return points(figure), [(text.get_text(), text.get_position()) for text in names(figure)]

    assert shown(runs) == shown(runs[::-1])


def test_arms_that_were_not_measured_at_the_place_are_told(tmp_path):
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", "fedavg", places=("student",))]
    figure = draw(runs, "released")
    assert list(points(figure)) == ["fkd"]
    assert "not measured there: fedavg" in figure.axes[0].get_title(loc="left")


def test_a_place_that_is_not_there_is_one_line(tmp_path):
    run = fake_run(tmp_path / "a", places=("teacher", "student"))
    with pytest.raises(FedkdError, match=r"'studnt' .*'student'.*measured: teacher, student$"):
        draw([run], "studnt")


def test_repeats_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(FedkdError, match=r"repeats = 16 was not measured .*measured: 4, 64$"):
        draw([fake_run(tmp_path / "a")], repeats=16)
    runs = [fake_run(tmp_path / f"{n}", f"arm-{n}", levels=(n,)) for n in (4, 16)]
    with pytest.raises(FedkdError, match="measured: none in all"):
        draw(runs)


def test_runs_compared_at_different_things_are_one_line(tmp_path):
    runs = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", "swing", 2.0, 0.5, "accuracy")]
    with pytest.raises(FedkdError, match=r"accuracy \(.*b\) and perplexity \(.*a\)"):
        draw(runs)


def test_a_run_without_canaries_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match="its experiment plants no canaries"):
        draw([fake_run(tmp_path / "a", secrets=0)])


def test_a_run_that_has_not_ended_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match="a has not ended"):
        draw([fake_run(tmp_path / "a", ended=False)])


def test_more_arms_than_fit_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tradeoff, "MOST", 2)
    with pytest.raises(FedkdError, match="3 arms do not fit into one figure; allowed: 2"):
        draw(many(tmp_path, 3))


def test_the_command_writes_png_and_pdf_beside_the_first_run(tmp_path, capsys):
    folders = [str(fake_run(tmp_path / arm, arm).folder) for arm in ("fkd", "swing")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", "tradeoff", *folders, "--place", "released", "--repeats", "4"])
    stem = tmp_path / "fkd" / "plots" / "tradeoff"
    assert not ended.value.code
    assert capsys.readouterr().out.split() == [f"{stem}.png", f"{stem}.pdf"]
