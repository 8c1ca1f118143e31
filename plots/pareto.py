"""What accuracy costs to send: accuracy against bytes, a point a method, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fedkd.plots.gather import (
    METRICS,
    Line,
    check,
    final,
    lines,
    noted,
    over_seeds,
    panels,
    said_of_seeds,
    said_of_stage,
)
from fedkd.plots.style import grid, legend, outer, percent, size_of, styled, thin, titles
from fedkd.results import FedkdError, Run

FRONT: dict[str, Any] = {"color": "#777777", "linewidth": 0.9, "linestyle": (0, (4, 2))}
TICKS: tuple[tuple[float, ...], ...] = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))
"""Times powers of ten: the first of which there are three on the axis."""


@dataclass(frozen=True)
class Spot:
    """A method's mean, low and high bytes and percentages over seeds."""

    line: Line
    bytes: tuple[float, float, float]
    accuracy: tuple[float, float, float]


@styled
def draw(runs: Sequence[Run], metric: str = "own_accuracy", stage: str = "fused") -> Figure:
    """Draw ``metric`` at the end against the bytes of all clients, up and down, in the whole run.

    A panel a kind of data; points are means over seeds, bars 95 % intervals (the range of two
    seeds). A method that sends nothing is a horizontal line. The front joins the methods that no
    other beats with as few bytes.

    Raises
    ------
    FedkdError
        A run has not ended or did not measure ``metric``, or no method sends anything.
    """
    check(metric, stage)
    parts, keys = panels(runs)
    methods = lines(runs, keys)
    cells = [
        [_spot(found, metric, stage) for line in methods if (found := line.among(part.runs)).runs]
        for part in parts
    ]
    if not any(spot.bytes[0] for row in cells for spot in row):
        raise FedkdError("no run sends anything; accuracy against bytes needs one that does")
    figure, axes = grid(len(parts), 2.4 if len(parts) == 1 else 2.0, sharex=True)
    sent = [end for row in cells for spot in row for end in spot.bytes if end > 0]
    low, high = min(sent), max(sent)
    margin = max((high / low) ** 0.1, 1.5)
    for panel, row in zip(axes, cells):
        panel.set_xscale("log")
        panel.set_xlim(low / margin, high * margin)
        for spot in row:
            _draw(panel, spot)
        _front(panel, row, high * margin)
        panel.xaxis.set_major_locator(FixedLocator(_round(low / margin, high * margin)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(size_of))
        panel.yaxis.set_major_locator(MaxNLocator(6))
    percent(axes)
    outer(axes, "Sent in the run, up and down (bytes)", METRICS[metric])
    counts = {spot.line.seeds for row in cells for spot in row}
    said = said_of_seeds(counts)
    titles(
        figure,
        axes,
        [part.title for part in parts],
        said_of_stage(metric, stage) + (f", bars: {said}" if said else ""),
    )
    legend(figure, axes, Line2D([], [], label="Pareto front", **FRONT))
    thin(figure, axes)
    return noted(figure, [(line.label, line.runs) for line in methods])


def _round(low: float, high: float) -> list[float]:
    """Round numbers of bytes between two."""
    found: list[float] = []
    for steps in TICKS:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = [step * 10.0**power for power in powers for step in steps]
        found = [tick for tick in every if low <= tick <= high]
        if len(found) > 2:
            break
    return found


def _spot(line: Line, metric: str, stage: str) -> Spot:
    sent, shares = [], []
    for run in line.runs:
        share = 100 * final(run, metric, stage)
        if math.isnan(share):
            raise FedkdError(
                f"{run.folder} has measured no {metric} {said_of_stage(metric, stage)}"
            )
        summary = run.summary or {}
        sent.append(float(summary.get("bytes_up", 0) + summary.get("bytes_down", 0)))
        shares.append(share)
    return Spot(line, over_seeds(sent), over_seeds(shares))


def _draw(axes: Axes, spot: Spot) -> None:
    """A point with its bars, or a line across where nothing is sent."""
    label, style = spot.line.label, spot.line.style
    (x, *wide), (y, *high) = spot.bytes, spot.accuracy
    if not x:
        across = {"color": style["color"], "linewidth": 1.1, "linestyle": style["linestyle"]}
        axes.axhline(y, label=label, zorder=1.5, **across)
        if all(map(math.isfinite, high)):
            axes.axhspan(*high, color=style["color"], alpha=0.12, linewidth=0)
        return
    _, caps, bars = axes.errorbar(
        x,
        y,
        xerr=[[x - wide[0]], [wide[1] - x]],
        yerr=[[y - high[0]], [high[1] - y]],
        label=label,
        elinewidth=0.8,
        capsize=1.5,
        capthick=0.8,
        **style | {"linestyle": "none", "markersize": 5},
    )
    for part in (*caps, *bars):
        part.set_alpha(0.6)


def _front(axes: Axes, row: list[Spot], end: float) -> None:
    """Steps through the points of the front, from the least bytes on."""
    points = [(spot.bytes[0], spot.accuracy[0]) for spot in row]
    on = [points[n] for n in front(points)]
    if on:
        x, y = np.array([*on, (end, on[-1][1])]).T
        start = axes.get_xlim()[0]
        axes.step(np.maximum(x, start), y, where="post", zorder=1.2, **FRONT)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of ``(cost, value)`` are beaten by none, from the cheapest on.

    One is beaten by another that costs no more and is worth more, or costs less and is worth as
    much.
    """
    order = sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1]))
    found: list[int] = []
    for n in order:
        best = points[found[-1]] if found else (0.0, -math.inf)
        if points[n][1] > best[1] or points[n] == best:
            found.append(n)
    return found
