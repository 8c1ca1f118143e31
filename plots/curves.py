"""Test accuracy against rounds: a line per method, with a band over seeds or over clients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedkd.headline import ACCURACY
from fedkd.plots.gather import (
    METRICS,
    Line,
    check,
    lines,
    noted,
    over_seeds,
    panels,
    placed,
    said_of_seeds,
)
from fedkd.plots.style import grid, legend, outer, percent, styled, titles
from fedkd.results import FedkdError, Run

BAND = (10, 90)  # percentiles over clients
MARKERS_A_LINE = 8


@styled
def draw(runs: Sequence[Run], metric: str = "own_accuracy") -> Figure:
    """Draw ``metric``, mean over clients, against rounds: a panel a kind of data.

    Runs that differ only in their seed are one line, the mean over seeds. Where a method has
    several seeds, bands are 95 % intervals over them, or the range of two; else a band spans the
    10th to 90th percentile of clients. One method alone is shown after local training, dashed, and
    after fusion, solid. ``headline_accuracy`` is what each method's paper scores.

    Raises
    ------
    FedkdError
        A run has no measured round yet, or another metric was asked for.
    """
    check(metric)
    for run in runs:
        if not _means(run, metric, "fused"):
            raise FedkdError(f"{run.folder} has no round with a measured {metric} yet")
    parts, keys = panels(runs)
    methods = lines(runs, keys)
    cells = [[line.among(part.runs) for line in methods] for part in parts]
    counts = {cell.seeds for row in cells for cell in row if cell.runs}
    figure, axes = grid(len(parts), 2.3 if len(parts) == 1 else 1.9, sharex=True)
    for panel, row in zip(axes, cells):
        panel.xaxis.set_major_locator(
            MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
        )
        for line in row:
            if line.runs:
                _draw(panel, line, metric, alone=len(methods) == 1, counts=counts)
    percent(axes)
    outer(axes, "Round", METRICS[metric])
    band = said_of_seeds(counts) or f"{BAND[0]}th to {BAND[1]}th percentile of clients"
    stage = "" if len(methods) == 1 or metric == ACCURACY else "after fusion; "
    titles(figure, axes, [part.title for part in parts], f"{stage}line: mean, band: {band}")
    legend(figure, axes)
    return noted(figure, [(line.label, line.runs) for line in methods])


def _draw(axes: Axes, line: Line, metric: str, alone: bool, counts: set[int]) -> None:
    """A method's line, or two if it is alone, and its band."""
    label, style, many = line.label, line.style, line.seeds
    if len(counts) > 1:
        label += f" ({many} seed{'s' * (many > 1)})"
    if alone and metric != ACCURACY:
        style = style | {"linestyle": "-"}
        if any(_means(run, metric, "local") for run in line.runs):
            before = style | {"linestyle": "--", "markerfacecolor": "white"}
            _line(axes, line.runs, metric, "local", f"{label}, after local training", before)
            label += ", after fusion"
    _line(axes, line.runs, metric, "fused", label, style)
    if max(counts) == 1:
        found = _over_clients(line.runs, metric)
    elif many > 1:
        rounds, means = _together(line.runs, metric, "fused")
        found = {round: over_seeds(list(at))[1:] for round, at in zip(rounds, means)}
    else:
        return
    _band(axes, found, style["color"], 0.2 if alone else 0.1)


def _means(run: Run, metric: str, stage: str) -> dict[int, float]:
    """Mean over clients in every measured round, in percent."""
    metric, stage = placed(run, metric, stage)
    key = f"{metric}_mean"
    lines = [
        (line["round"], line if stage == "fused" else line.get("local", {})) for line in run.rounds
    ]
    return {round: 100 * line[key] for round, line in lines if line.get(key) is not None}


def _together(runs: list[Run], metric: str, stage: str) -> tuple[list[int], np.ndarray]:
    """Rounds that all runs have measured, and means ``(rounds, runs)``."""
    means = [_means(run, metric, stage) for run in runs]
    rounds = sorted(set.intersection(*map(set, means)))
    return rounds, np.array([[one[round] for one in means] for round in rounds])


def _line(
    axes: Axes, runs: list[Run], metric: str, stage: str, label: str, style: dict[str, Any]
) -> None:
    """Draw the mean over seeds, in the rounds that all of them have measured."""
    rounds, means = _together(runs, metric, stage)
    every = -(-len(rounds) // MARKERS_A_LINE) or 1
    first = len(axes.lines) % every  # markers of different lines stand side by side
    values = means.mean(1) if rounds else []
    axes.plot(rounds, values, label=label, markevery=(first, every), **style)


def _band(axes: Axes, found: dict[int, tuple[float, ...]], colour: str, alpha: float) -> None:
    """Shade from low to high, by round."""
    rounds = sorted(found)
    low, high = np.array([found[round] for round in rounds]).reshape(-1, 2).T
    if len(rounds) == 1:
        axes.vlines(rounds, low, high, color=colour, alpha=2 * alpha, linewidth=4)
    else:
        axes.fill_between(rounds, low, high, color=colour, alpha=alpha, linewidth=0)


def _over_clients(runs: list[Run], metric: str) -> dict[int, tuple[float, ...]]:
    """Percentiles over the clients of all runs, after fusion."""
    shares: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for round, clients in _per_client(run, metric).items():
            shares[round] += clients
    return {round: tuple(np.percentile(values, BAND)) for round, values in shares.items()}


def _per_client(run: Run, metric: str) -> dict[int, list[float]]:
    """Every client's ``metric`` in percent at the end of each measured round.

    A client whose student did not change since it was last measured has no line of its own and
    counts as it was then, as it does in the mean.
    """
    name, stage = placed(run, metric, "fused")
    measured: dict[int, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in run.clients:
        if line.get(name) is not None:
            measured[line["round"]][line["stage"]][line["client"]] = 100 * line[name]
    latest: dict[int, float] = {}
    found = {}
    for round in _means(run, metric, "fused"):
        latest |= measured[round]["local"] | (measured[round]["fused"] if stage == "fused" else {})
        if latest:
            found[round] = list(latest.values())
    return found
