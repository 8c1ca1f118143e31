"""What moving the cut does: accuracies and bytes of a run against rounds, panel over panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from fedkd.escaping import plain
from fedkd.plots.gather import noted, one
from fedkd.plots.style import COLUMN, look, styled
from fedkd.results import FedkdError, Run

Series = dict[int, float]

MARKERS_A_LINE = 8
LEVEL = 9  # points between labels that stand above one another
FLAG = 2.5  # points between a line and its label
GAP = 4  # points between labels side by side
GREY, DASHES = "#555555", (0, (4, 2))
LOG_FROM = 20  # times the smallest: with more between them, bytes are drawn on a log axis
UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}
LEGEND: dict[str, Any] = {"loc": "lower left", "borderaxespad": 0.1, "borderpad": 0, "ncols": 2}


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw own accuracy, the server head's accuracy and bytes a round, on one axis of rounds.

    Vertical lines are where the cut moves, with the new cut on top; the first is named at the left.

    Raises
    ------
    FedkdError
        The run has no round that records a cut, or there are several runs.
    """
    run = one(runs, "cuts")
    lines = run.rounds
    cuts = _cuts(lines)
    if not cuts:
        raise FedkdError(
            f"{run.folder} has no round that records a cut; allowed: runs of a strategy that moves "
            "one, as fedd2s"
        )
    rounds = {line["round"]: line for line in lines}
    before = {round: line.get("local", {}) for round, line in rounds.items()}
    server = {round: line.get("strategy", {}) for round, line in rounds.items()}
    panels = {
        "Own test\naccuracy (%)": {
            "after fusion": _percent(rounds, "own_accuracy_mean"),
            "after local training": _percent(before, "own_accuracy_mean"),
        },
        "Server head\naccuracy (%)": {
            "on uploads": _percent(server, "head_accuracy"),
            "held out": _percent(server, "head_heldout_accuracy"),
        },
    }
    panels = {label: series for label, series in panels.items() if any(series.values())}
    unit, traffic = _traffic(rounds)
    panels[f"Traffic\n({unit} a round)"] = traffic
    style = look(run.experiment.strategy.name)
    figure = Figure(figsize=(COLUMN, 0.6 + 1.25 * len(panels)))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (label, series) in zip(axes, panels.items()):
        panel.set_ylabel(label)
        _lines(panel, series, style)
        for round in list(cuts)[1:]:
            panel.axvline(round, color=GREY, linewidth=0.8, linestyle=DASHES, zorder=1)
    _scale(axes[-1], traffic)
    axes[-1].set_xlabel("Round")
    axes[-1].xaxis.set_major_locator(
        MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    figure.align_ylabels(axes)
    for panel in axes[1:]:
        panel.legend(bbox_to_anchor=(0, 1), **LEGEND)
    _name(axes[0], cuts)
    return noted(figure, [(run.experiment.strategy.name, [run])])


def _cuts(lines: list[dict[str, Any]]) -> dict[int, str]:
    """The first cut, and every other at the round it moved there."""
    cuts: dict[int, str] = {}
    for line in lines:
        cut = line.get("strategy", {}).get("cut")
        name = plain(" + ".join(map(str, cut)) if isinstance(cut, list) else cut or "")
        if name and name != next(reversed(cuts.values()), None):
            cuts[line["round"]] = name
    return cuts


def _percent(rounds: dict[int, dict[str, Any]], key: str) -> Series:
    """The accuracy under ``key`` of every round that has it."""
    return {n: 100 * line[key] for n, line in rounds.items() if line.get(key) is not None}


def _traffic(rounds: dict[int, dict[str, Any]]) -> tuple[str, dict[str, Series]]:
    """Bytes a round of all clients, up and down, in a unit that suits them, and that unit."""
    series = {
        way: {n: line[f"bytes_{way}"] for n, line in rounds.items()} for way in ("up", "down")
    }
    most = max(max(amounts.values()) for amounts in series.values())
    unit = next((unit for unit, size in UNITS.items() if most >= size), "B")
    return unit, {
        way: {n: amount / UNITS[unit] for n, amount in amounts.items()}
        for way, amounts in series.items()
    }


def _scale(axes: Axes, series: dict[str, Series]) -> None:
    """A log axis where one way would lie flat on the bottom beside the other."""
    amounts = [amount for way in series.values() for amount in way.values()]
    if min(amounts) > 0 and max(amounts) > LOG_FROM * min(amounts):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)


def _lines(axes: Axes, series: dict[str, Series], style: dict[str, Any]) -> None:
    """The first series solid, the second dashed with hollow markers."""
    other = style | {"linestyle": "--", "markerfacecolor": "white"}
    for shown, (label, values) in zip((style | {"linestyle": "-"}, other), series.items()):
        if values:
            every = -(-len(values) // MARKERS_A_LINE)
            axes.plot(list(values), list(values.values()), label=label, markevery=every, **shown)


def _name(axes: Axes, cuts: dict[int, str]) -> None:
    """Write each cut above its line, like a flag on a pole, and the legend above all flags."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
    texts = [
        axes.annotate(name, (round, 1), (FLAG, 2), va="bottom", fontsize=7, **place)
        for round, name in cuts.items()
    ]
    texts[0].set_text(f"cut: {texts[0].get_text()}")
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in texts]
    levels = _levels([box.x0 for box in boxes], [box.x1 for box in boxes], GAP * figure.dpi / 72)
    for text, level, round in zip(texts, levels, cuts):
        text.set_position((FLAG, 2 + LEVEL * level))
        if level or text is not texts[0]:
            pole = {"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (round, 1), (0, LEVEL * (level + 1)), arrowprops=pole, **place)
    tall = 4 + LEVEL * (max(levels) + 1)
    above = axes.transAxes + ScaledTranslation(0, tall / 72, figure.dpi_scale_trans)
    axes.legend(bbox_to_anchor=(0, 1), bbox_transform=above, **LEGEND)
    figure.set_figheight(figure.get_figheight() + tall / 72)


def _levels(lefts: list[float], rights: list[float], gap: float) -> list[int]:
    """The level of each flag, from left to right, such that none touches another or its pole.

    A flag that reaches over the poles to its right flies above their flags.
    """
    levels: list[int] = []
    for right in reversed(rights):
        poles = lefts[len(lefts) - len(levels) :]
        under = [level for pole, level in zip(poles, reversed(levels)) if pole < right + gap]
        levels.append(max(under, default=-1) + 1)
    return levels[::-1]
