"""Test accuracy against rounds: a line per method, with a band over clients."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedkd.results import FedkdError, Run, by_seed, labels
from plots.style import COLUMN, look, styled

METRICS = {
    "own_accuracy": "Own test accuracy (%)",
    "common_accuracy": "Common test accuracy (%)",
}
BAND = (10, 90)  # percentiles over clients
MARKERS_A_LINE = 8
LEGEND_WIDTH = 62  # characters of the legend's font across a column


@styled
def draw(runs: Sequence[Run], metric: str = "own_accuracy") -> Figure:
    """Draw ``metric``, mean over clients, against rounds.

    Runs that differ only in their seed are one line, the mean over seeds. A band spans the 10th to
    90th percentile of clients. One method alone is shown after local training, dashed, and after
    fusion, solid.

    Raises
    ------
    FedkdError
        A run has no measured round yet, or another metric was asked for.
    """
    if metric not in METRICS:
        raise FedkdError(f"metric {metric!r} is not known; known: {', '.join(METRICS)}")
    for run in runs:
        if not _means(run, metric, "fused"):
            raise FedkdError(f"{run.folder} has no round with a measured {metric} yet")
    groups = by_seed(runs)
    counts = [len({run.experiment.seed for run in group}) for group in groups]
    seeds = sorted(set(counts))
    variants: Counter[str] = Counter()
    figure = Figure()
    axes = figure.add_subplot(xlabel="Round", ylabel=METRICS[metric])
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    titles = labels([group[0] for group in groups])
    for group, label, count in zip(groups, titles, counts):
        method = group[0].experiment.strategy.name
        style = look(method, variants[method])
        variants[method] += 1
        if len(seeds) > 1:
            label += f" ({count} seed{'s' * (count > 1)})"
        if len(groups) == 1:
            style["linestyle"] = "-"
            if any(_means(run, metric, "local") for run in group):
                before = style | {"linestyle": "--", "markerfacecolor": "white"}
                _line(axes, group, metric, "local", f"{label}, after local training", before)
                label += ", after fusion"
        _line(axes, group, metric, "fused", label, style)
        _band(axes, group, metric, style["color"], alpha=0.2 if len(groups) == 1 else 0.08)
    over = f" ({seeds[0]} seeds)" if len(seeds) == 1 < seeds[0] else ""
    axes.set_title(f"line: mean, band: {BAND[0]}th to {BAND[1]}th percentile of clients{over}")
    return _with_legend(figure)


def _means(run: Run, metric: str, stage: str) -> dict[int, float]:
    """Mean over clients in every measured round, in percent."""
    key = f"{metric}_mean"
    lines = [
        (line["round"], line if stage == "fused" else line.get("local", {})) for line in run.rounds
    ]
    return {round: 100 * line[key] for round, line in lines if line.get(key) is not None}


def _line(
    axes: Axes, group: list[Run], metric: str, stage: str, label: str, style: dict[str, Any]
) -> None:
    """Draw the mean over seeds, in the rounds that all of them have measured."""
    seeds = [_means(run, metric, stage) for run in group]
    rounds = sorted(set.intersection(*(set(means) for means in seeds)))
    values = [np.mean([means[round] for means in seeds]) for round in rounds]
    every = -(-len(rounds) // MARKERS_A_LINE)
    first = len(axes.lines) % every  # markers of different lines stand side by side
    axes.plot(rounds, values, label=label, markevery=(first, every), **style)


def _band(axes: Axes, group: list[Run], metric: str, colour: str, alpha: float) -> None:
    """Percentiles over the clients of all seeds, after fusion."""
    shares: dict[int, list[float]] = defaultdict(list)
    for run in group:
        for round, clients in _per_client(run, metric).items():
            shares[round] += clients
    rounds = sorted(shares)
    low, high = np.array([np.percentile(shares[round], BAND) for round in rounds]).reshape(-1, 2).T
    if len(rounds) == 1:
        axes.vlines(rounds, low, high, color=colour, alpha=2 * alpha, linewidth=4)
    else:
        axes.fill_between(rounds, low, high, color=colour, alpha=alpha, linewidth=0)


def _per_client(run: Run, metric: str) -> dict[int, list[float]]:
    """Every client's ``metric`` in percent at the end of each measured round.

    A client whose student did not change since it was last measured has no line of its own and
    counts as it was then, as it does in the mean.
    """
    measured: dict[int, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in run.clients:
        if line.get(metric) is not None:
            measured[line["round"]][line["stage"]][line["client"]] = 100 * line[metric]
    latest: dict[int, float] = {}
    found = {}
    for round in _means(run, metric, "fused"):
        latest |= measured[round]["local"] | measured[round]["fused"]
        if latest:
            found[round] = list(latest.values())
    return found


def _with_legend(figure: Figure) -> Figure:
    """Put the legend under the axes, in as many columns as fit, and make room for it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    widest = max(len(label) for label in labels)
    columns = max(1, min(3, len(labels), LEGEND_WIDTH // (widest + 9)))
    figure.set_size_inches(COLUMN, 2.3 + 0.14 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3)
    return figure
