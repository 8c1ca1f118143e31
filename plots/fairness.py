"""How unequal clients end up: every client's own test accuracy, methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedkd.plots.gather import apart, noted
from fedkd.plots.style import COLUMN, PAGE, RC, styled, text_width
from fedkd.results import FedkdError, Run
from fedkd.summaries import spread

IN_A_COLUMN = 6  # methods; more take a page's width
MOST = 50  # methods whose names still fit a page
DARK = "#222222"
MARKS: dict[str, Any] = {
    "median": {"marker": "_", "markersize": 9, "markeredgewidth": 1.8},
    "mean": {"marker": "D", "markersize": 3.2, "markerfacecolor": "white"},
    "mean of the worst 10 %": {"marker": "s", "markersize": 3.2},
}
DOTS, SPREAD, BESIDE = -0.1, 0.5, 0.3
"""Where in a method's slot, of width 1, the dots' middle is, their width, and where the marks are;
in a slot wider than WIDEST inches they keep together as in one of that width."""
WIDEST = 0.9
ROOMY = 0.42  # inches; in a narrower slot, dots and marks are smaller
TICKS = RC["xtick.labelsize"]
GOLDEN = (5**0.5 - 1) / 2
ROOM = 0.62  # inches left of the axes
SLANTED, LINE = 80, 9  # points: longer names stand upright; height of a line of a name


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw every client's own test accuracy at the end, a column a method.

    Runs that differ only in their seed are one column with the clients of all. The marks are what
    ``fedkd compare`` shows: computed for each seed, then averaged.

    Raises
    ------
    FedkdError
        A run has no client with a measured own accuracy yet, or there are too many methods.
    """
    methods = apart(runs)
    if len(methods) > MOST:
        raise FedkdError(f"{len(methods)} methods do not fit into one figure; allowed: {MOST}")
    columns = [[_last(run) for run in line.runs] for line in methods]
    counts = [line.seeds for line in methods]
    seeds = sorted(set(counts))
    titles = [line.label for line in methods]
    if len(seeds) > 1:
        titles = [f"{title}, {n} seed{'s' * (n > 1)}" for title, n in zip(titles, counts)]
    width = COLUMN if len(methods) <= IN_A_COLUMN else PAGE
    slot = (width - ROOM) / len(methods)
    figure = Figure(figsize=(width, 2.4))
    axes = figure.add_subplot(xlabel="Method", ylabel="Own test accuracy (%)")
    most = max(sum(map(len, column)) for column in columns)
    close, small = min(1.0, WIDEST / slot), min(1.0, slot / ROOMY)
    size = small * float(np.clip(4 * (20 / most) ** 0.5, 1.5, 4))
    for place, (line, column, title) in enumerate(zip(methods, columns, titles)):
        style = line.style | {"linestyle": "none", "markersize": size}
        style["markeredgewidth"] = 0.7 if style["markerfacecolor"] == "white" else 0
        values = np.sort(np.concatenate(column))
        # Steps of the golden ratio keep clients of like accuracy apart, the same in every figure.
        aside = (np.arange(1, len(values) + 1) * GOLDEN) % 1 - 0.5
        where = place + close * (DOTS + SPREAD * aside)
        axes.plot(where, values, label=title, alpha=0.75 if most <= 60 else 0.5, **style)
    marks = _marks(axes, columns, close * BESIDE, small)
    several = f"{seeds[0]} seeds" if len(seeds) == 1 else "seeds"
    over = f"; marks: means of {several}" if seeds[-1] > 1 else ""
    axes.set_title(f"dot: a client at the end of a run{over}")
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.5, len(methods) - 0.5)
    _name(axes, titles, 72 * slot)
    dot = Line2D(
        [], [], color="#7f7f7f", marker="o", linestyle="none", markersize=3, label="client"
    )
    figure.legend(
        handles=[dot, *marks],
        loc="outside lower center",
        ncols=4,
        columnspacing=1.4,
        handletextpad=0.3,
    )
    return noted(figure, [(line.label, line.runs) for line in methods])


def _last(run: Run) -> list[float]:
    """Every client's own test accuracy in percent when it was last measured."""
    # Lines are in the order of measuring: within a round, after fusion comes last.
    latest = {
        line["client"]: 100 * line["own_accuracy"]
        for line in run.clients
        if line.get("own_accuracy") is not None
    }
    if not latest:
        raise FedkdError(f"{run.folder} has no client with a measured own_accuracy yet")
    return [latest[client] for client in sorted(latest)]


def _marks(
    axes: Axes, columns: list[list[list[float]]], beside: float, scale: float
) -> list[Line2D]:
    """Draw each method's marks beside its dots, tied by a thin line; return a line a kind."""
    per_run = [
        [{"median": np.median(own), **spread(own, "own")} for own in column] for column in columns
    ]
    found = {
        mark: [np.mean([one[key] for one in runs]) for runs in per_run]
        for mark, key in zip(MARKS, ("median", "own_mean", "own_worst10"), strict=True)
    }
    where = np.arange(len(columns)) + beside
    heights = np.array(list(found.values()))
    axes.vlines(where, heights.min(0), heights.max(0), color="#999999", linewidth=0.8, zorder=1.9)
    return [
        axes.plot(
            where,
            found[mark],
            label=mark,
            color=DARK,
            linestyle="none",
            **style | {"markersize": scale * style["markersize"]},
        )[0]
        for mark, style in MARKS.items()
    ]


def _name(axes: Axes, titles: list[str], slot: float) -> None:
    """Write the methods' names, level where they fit into ``slot`` points, and make room."""
    wrapped = [title.replace(", ", "\n") for title in titles]
    high = LINE * max(title.count("\n") + 1 for title in wrapped)
    long = max(text_width(line, TICKS) for title in wrapped for line in title.split("\n"))
    if long <= slot - 4:
        angle = 0
    elif high == LINE and long <= SLANTED and slot >= 2 * LINE:
        angle = 45
    else:
        angle = 90
        if high > 0.7 * slot:
            wrapped, high, long = titles, LINE, max(text_width(title, TICKS) for title in titles)
    axes.set_xticks(range(len(titles)), wrapped, rotation=angle)
    axes.tick_params(axis="x", length=0)
    for text in axes.get_xticklabels():
        text.set_multialignment("right" if angle else "center")
        if angle == 45:
            text.set(ha="right", va="center", rotation_mode="anchor")
    turn = np.radians(angle)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.set_figheight(2.4 + (long * np.sin(turn) + high * np.cos(turn)) / 72)
