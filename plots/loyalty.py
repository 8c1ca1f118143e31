"""Loyalty to what students distil from, before and after distillation: against rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedkd.plots.gather import Line, lines, noted, over_seeds, panels, said_of_seeds
from fedkd.plots.style import grid, legend, outer, percent, styled, titles
from fedkd.results import FedkdError, Run

MEASURES = {"label": "label loyalty", "probability": "probability loyalty"}
MARKERS_A_LINE = 8
GREY = "#555555"
WHEN: dict[str, dict[str, Any]] = {
    "before": {"linestyle": ":", "markerfacecolor": "white"},
    "after": {"linestyle": "-"},
}
"""How each is drawn: beside a method's colour and marker."""


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw clients' loyalty before and after distillation, against rounds.

    A panel a measure, label loyalty (how often a student's likeliest class is that of its targets)
    and probability loyalty (how near its probabilities are to theirs), and a kind of data. A method
    has a dotted line, before, and a solid one, after: means over its seeds, with 95 % intervals
    (the range of two) as bands. Runs that record no loyalty are left out.

    Raises
    ------
    FedkdError
        No run records a loyalty.
    """
    recorded = [run for run in runs if _means(run, "label", "after")]
    if not recorded:
        raise FedkdError(
            f"{runs[0].folder} has no round that records loyalty_label_after; allowed: runs of a "
            "method whose clients distil from targets, with measure.loyalty above 0"
        )
    parts, keys = panels(recorded)
    methods = lines(recorded, keys)
    cells = [
        (part.title, measure, [line.among(part.runs) for line in methods])
        for measure in MEASURES
        for part in parts
    ]
    figure, axes = grid(len(cells), 2.2, sharex=True)
    for panel, (_, measure, row) in zip(axes, cells):
        panel.xaxis.set_major_locator(
            MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
        )
        for line in row:
            for when in WHEN if line.runs else ():
                _draw(panel, line, measure, when)
    percent(axes)
    outer(axes, "Round", "Loyalty to the targets (%)")
    band = said_of_seeds({line.seeds for _, _, row in cells for line in row if line.runs})
    each = [f"{MEASURES[measure]}{', ' * bool(title)}{title}" for title, measure, _ in cells]
    titles(figure, axes, each, f"line: mean over clients{band and ', band: '}{band}")
    marks = [
        Line2D([], [], marker="o", color=GREY, label=f"{when} distillation", **look)
        for when, look in WHEN.items()
    ]
    legend(figure, axes, *marks)
    return noted(figure, [(line.label, line.runs) for line in methods])


def _draw(axes: Axes, line: Line, measure: str, when: str) -> None:
    """A method's mean over seeds in the rounds that all have, and its band."""
    found = [_means(run, measure, when) for run in line.runs]
    rounds = sorted(set.intersection(*map(set, found)))
    if not rounds:
        return
    values = [over_seeds([one[round] for one in found]) for round in rounds]
    means, low, high = np.array(values).T
    every = -(-len(rounds) // MARKERS_A_LINE)
    label = line.label if when == "after" else None
    style = line.style | WHEN[when]
    if when == "after":
        style["markerfacecolor"] = line.style["color"]
    axes.plot(
        rounds,
        means,
        label=label,
        markevery=(len(axes.lines) % every, every),
        clip_on=False,
        **style,
    )
    if line.seeds > 1:
        axes.fill_between(rounds, low, high, color=line.style["color"], alpha=0.12, linewidth=0)


def _means(run: Run, measure: str, when: str) -> dict[int, float]:
    """Mean over clients in every round that records it, in percent."""
    name = f"loyalty_{measure}_{when}"
    return {line["round"]: 100 * line[name] for line in run.rounds if line.get(name) is not None}
