"""Every figure, of real runs: there is something on it, and all of it can be read in print."""

import itertools
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from test_plot_auditing import gradient_audit
from test_plot_objectives import study

import fedkd.plots
from fedkd.experiment import Experiment
from fedkd.plots.gather import find
from fedkd.plots.style import COLUMN, PAGE, save
from fedkd.results import Run
from fedkd.simulations.commands import plot

SMALLEST = 6.5  # points
HELPERS = {"__init__", "style", "gather"}
ONE_SETTING = "*/100-60-*"
FIGURES = {
    "curves": ("curves", "*", ()),
    "curves of one method": ("curves", "knfu/100-60-*", ()),
    "curves of one run": ("curves", "knfu/100-60-0", ()),
    "alpha": ("alpha", "*/*-60-*", ()),
    "alpha, common, local": ("alpha", "*", ("common_accuracy", "local")),
    "size": ("size", "*", ()),
    "against": ("against", "*/*-60-*", ("data.alpha",)),
    "weights": ("weights", "knfu/*-60-*", ()),
    "weights of one run": ("weights", "knfu/100-60-0", ()),
    "pareto": ("pareto", ONE_SETTING, ()),
    "pareto in panels": ("pareto", "*", ("common_accuracy",)),
    "objectives": ("objectives", None, ()),
    "calibration": ("calibration", ONE_SETTING, ()),
    "calibration in panels": ("calibration", "*", ()),
    "loyalty": ("loyalty", "*/*-60-*", ()),
    "loyalty of one run": ("loyalty", "knfu/100-60-0", ()),
    "reliability": ("reliability", ONE_SETTING, ()),
    "reliability of one run": ("reliability", "knfu/100-60-0", ()),
    "fairness": ("fairness", ONE_SETTING, ()),
    "fairness of many": ("fairness", "*", ()),
    "partition": ("partition", "knfu/0.1-60-0", ()),
    "cuts": ("cuts", None, ()),
    "exposure": ("exposure", None, ()),
    "tradeoff": ("tradeoff", None, ()),
    "profile": ("profile", None, ()),
    "reconstruction": ("reconstruction", None, ()),
    "auditing": ("auditing", None, ()),
    "budget": ("budget", None, ()),
}
NAMES_METHODS = ["curves", "alpha", "size", "pareto", "pareto in panels", "calibration"]


@pytest.fixture(scope="session")
def audited(tmp_path_factory):
    """A run from which images of two places were reconstructed."""
    experiment = Experiment()
    run = Run.at(experiment, tmp_path_factory.mktemp("audited") / "run").begin(experiment)
    run.append_round({"round": 1})
    images = np.random.default_rng(0).random((6, 1, 8, 8)).tolist()
    numbers = dict.fromkeys(("psnr", "psnr_guess"), 12.3) | dict.fromkeys(("ssim", "ssim_guess"), 1)
    shown = {"originals": images, "reconstructions": images, "attack": "linear decoder"}
    places = ("Represent prototypes", "Share parameters")
    found = [{"place": place, **shown, **numbers} for place in places]
    run.write_audit({"formal": {"epsilon": None}, "reconstructions": found})
    return run.folder


@pytest.fixture(scope="session")
def gradient_audits(tmp_path_factory):
    """Runs that were audited by gradient canaries, at three noise multipliers."""
    root = tmp_path_factory.mktemp("noise")
    for noise in (0.5, 2.0, 8.0):
        gradient_audit(root / f"{noise}", noise)
    return root


@pytest.fixture(scope="session")
def objective_runs(tmp_path_factory):
    """Runs of two methods with three objectives each."""
    root = tmp_path_factory.mktemp("objectives")
    study(root)
    return root


@pytest.fixture(scope="session")
def drawn(runs, cut_run, canary_runs, private_runs, audited, gradient_audits, objective_runs):
    """Every figure, drawn when it is first asked for."""
    others = {"cuts": cut_run, "exposure": canary_runs, "tradeoff": canary_runs}
    others |= {"profile": private_runs, "reconstruction": audited, "auditing": gradient_audits}
    others |= {"budget": private_runs, "objectives": objective_runs}
    figures = {}

    def draw(title):
        if title not in figures:
            name, pattern, options = FIGURES[title]
            folders = [others[name]] if pattern is None else sorted(runs.glob(pattern))
            figure = import_module(f"fedkd.plots.{name}").draw(find(folders), *options)
            FigureCanvasAgg(figure).draw()
            figures[title] = figure
        return figures[title]

    return draw


def test_every_figure_there_is_is_looked_at_here():
    files = {file.stem for file in Path(fedkd.plots.__file__).parent.glob("*.py")} - HELPERS
    assert {name for name, _, _ in FIGURES.values()} == files


def test_every_figure_has_a_command():
    commands = {command.callback.__name__ for command in plot.plot.registered_commands}
    assert {name for name, _, _ in FIGURES.values()} == commands


@pytest.mark.slow
@pytest.mark.parametrize("title", FIGURES)
def test_there_is_ink_in_every_panel(drawn, title):
    figure = drawn(title)
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, :3].astype(int)
    for panel in figure.axes:
        left, bottom, right, top = map(round, panel.bbox.extents)
        part = pixels[len(pixels) - top + 2 : len(pixels) - bottom - 2, left + 2 : right - 2]
        # Neither white nor the light grey of the grid.
        inked = (part.min(2) < 200) | (np.ptp(part, axis=2) > 8)
        assert inked.sum() > 30, panel


@pytest.mark.parametrize("title", FIGURES)
def test_axes_are_labelled(drawn, title):
    for panel in drawn(title).axes:
        place = panel.get_subplotspec()
        if place is None or "colorbar" in panel.get_label():
            assert panel.get_ylabel()
        else:
            below = [other for other in drawn(title).axes if _is_below(other, panel)]
            assert panel.get_xlabel() or below, panel
            assert panel.get_ylabel() or not place.is_first_col(), panel


def _is_below(other, panel):
    one, two = other.get_subplotspec(), panel.get_subplotspec()
    return one is not None and one.colspan == two.colspan and one.rowspan.start > two.rowspan.start


@pytest.mark.parametrize("title", NAMES_METHODS)
def test_the_legend_names_every_method_once(drawn, title):
    said = [text.get_text() for text in drawn(title).legends[0].get_texts()]
    assert all(said.count(method) == 1 for method in ("knfu", "fedavg", "local")), said


@pytest.mark.parametrize("title", FIGURES)
def test_no_words_overlap_and_none_leave_the_figure(drawn, title):
    figure = drawn(title)
    boxes = [(text.get_text(), box.padded(-0.5)) for text, box in words(figure)]
    assert len(boxes) > 5
    for name, box in boxes:
        inside = figure.bbox.padded(1)
        assert inside.x0 <= box.x0, name
        assert inside.y0 <= box.y0, name
        assert box.x1 <= inside.x1, name
        assert box.y1 <= inside.y1, name
    for (one, left), (other, right) in itertools.combinations(boxes, 2):
        assert not left.overlaps(right), (one, other)


@pytest.mark.parametrize("title", FIGURES)
def test_words_are_large_enough_to_read_in_print(drawn, title):
    figure = drawn(title)
    assert figure.get_figwidth() in (COLUMN, PAGE)
    assert min(text.get_fontsize() for text, _ in words(figure)) >= SMALLEST
    assert not [text for text, _ in words(figure) if "^" in text.get_text()]  # small exponents


def words(figure):
    """Every text that can be seen, and its box."""
    for text in figure.findobj(Text):
        if not text.get_text().strip() or not text.get_visible():
            continue
        if _is_a_hidden_tick(text, figure):
            continue
        yield text, Text.get_window_extent(text)


def _is_a_hidden_tick(text, figure):
    """Labels of ticks out of view, and those that their axis does not show, are not drawn."""
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            every = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            labels = [label for tick in every for label in (tick.label1, tick.label2)]
            if text in labels:
                shown = [label for tick in axis._update_ticks() for label in (tick.label1,)]
                return text not in shown
    return False


@pytest.mark.parametrize("title", ["alpha", "weights", "pareto"])
def test_a_pdf_embeds_truetype(drawn, title, tmp_path):
    _, pdf = save(drawn(title), tmp_path / "figure")
    assert b"/Type3" not in pdf.read_bytes()
    assert b"/FontFile2" in pdf.read_bytes()


def test_a_method_has_the_same_colour_in_every_figure(drawn):
    colours = {
        handle.get_color() if hasattr(handle, "get_color") else handle[0].get_color()
        for title in NAMES_METHODS
        for panel in drawn(title).axes
        for handle, name in zip(*panel.get_legend_handles_labels())
        if name == "knfu"
    }
    assert len(colours) == 1
