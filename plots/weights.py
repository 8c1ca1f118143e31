"""Whom clients listen to: weights of personalised fusion, and how many of them amount to some."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, MaxNLocator

from fedkd.plots.gather import Line, apart, noted, over_seeds, said_of_seeds
from fedkd.plots.style import PAGE, legend, styled
from fedkd.results import FedkdError, Run

SHOWN = 3  # rounds as heat maps: the first, one between, the last
MOST = 4  # rows of heat maps
TICKS = 5
MARKERS_A_LINE = 8
GREY, DASHES = "#555555", (0, (4, 2))


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw the weight matrix of some rounds, and effective contributors against rounds.

    A row of heat maps a method: row n is whom client n's target is made of, in the first run (the
    lowest seed); rows sum to 1. At the right, effective contributors ``1 / sum_m w(n, m)^2``, mean
    over clients, and over seeds with a band: the number of clients if all weigh the same, 1 if a
    client hears one alone. Runs that record no weights are left out.

    Raises
    ------
    FedkdError
        No run has a round that records weights; or there are too many methods.
    """
    recorded = [run for run in runs if _weights(run)]
    if not recorded:
        raise FedkdError(
            f"{runs[0].folder} has no round that records weights; allowed: runs of a strategy that "
            "fuses for each client, as knfu"
        )
    methods = apart(recorded)
    if len(methods) > MOST:
        raise FedkdError(f"{len(methods)} methods do not fit into one figure; allowed: {MOST}")
    rows = len(methods)
    figure = Figure(figsize=(PAGE, max(2.1, 1.55 * rows + 0.35)))
    layout = figure.add_gridspec(rows, SHOWN + 1, width_ratios=[1] * SHOWN + [1.7])
    maps, top = [], 0.0
    for row, line in enumerate(methods):
        shown = _weights(min(line.runs, key=lambda run: run.experiment.seed))
        rounds = sorted(shown)
        picked = sorted({rounds[0], rounds[(len(rounds) - 1) // 2], rounds[-1]})
        for column, round in enumerate(picked):
            axes = figure.add_subplot(layout[row, column])
            maps.append(_map(axes, *shown[round]))
            top = max(top, float(shown[round][1].max()))
            title = f"round {round}"
            axes.set_title(f"{line.label}\n{title}" if rows > 1 and not column else title)
            if not column:
                axes.set_ylabel("Client")
            axes.tick_params(labelbottom=row == rows - 1)
            if row == rows - 1:
                axes.set_xlabel("Weight of client")
    for mesh in maps:
        mesh.set_clim(0, top)
    figure.colorbar(
        maps[0], ax=[mesh.axes for mesh in maps], label="Weight", pad=0.01, aspect=25, fraction=0.05
    )
    axes = figure.add_subplot(layout[:, SHOWN], xlabel="Round", ylabel="Effective contributors")
    _contributors(axes, methods)
    legend(figure, [axes])
    return noted(figure, [(line.label, line.runs) for line in methods])


def _weights(run: Run) -> dict[int, tuple[list[int], np.ndarray]]:
    """Clients that took part and their weights (n, n), of every round that records them."""
    found = {}
    for line in run.rounds:
        try:
            weights = np.array(line.get("strategy", {}).get("weights", []), dtype=float)
        except (TypeError, ValueError):
            continue  # another method's weights are something else
        if weights.ndim == 2 and weights.size:
            clients = line.get("participants", [])
            fits = len(clients) == len(weights)
            found[line["round"]] = (clients if fits else list(range(len(weights))), weights)
    return found


def _map(axes: Axes, clients: list[int], weights: np.ndarray) -> AxesImage:
    """A heat map with the clients' numbers at some rows and columns."""
    mesh = axes.imshow(weights, cmap="Blues", interpolation="nearest", aspect="equal")
    axes.grid(visible=False)
    every = -(-len(clients) // TICKS)
    places = range(0, len(clients), every)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(list(places)))
        axis.set_ticklabels([str(clients[place]) for place in places])
    return mesh


def _contributors(axes: Axes, methods: list[Line]) -> None:
    """A line a method with a band over seeds, and the two limits."""
    most = 1
    for line in methods:
        seeds = []
        for run in line.runs:
            found = _weights(run)
            seeds.append({n: float((1 / (w**2).sum(1)).mean()) for n, (_, w) in found.items()})
            most = max([most, *(len(w) for _, w in found.values())])
        rounds = sorted(set.intersection(*map(set, seeds)))
        if not rounds:
            continue
        mean, low, high = np.array(
            [over_seeds([one[round] for one in seeds]) for round in rounds]
        ).T
        every = -(-len(rounds) // MARKERS_A_LINE)
        axes.plot(rounds, mean, label=line.label, markevery=every, **line.style)
        axes.fill_between(rounds, low, high, color=line.style["color"], alpha=0.15, linewidth=0)
    for limit, name in ((most, "all weigh the same"), (1, "one alone")):
        axes.axhline(limit, color=GREY, linewidth=0.8, linestyle=DASHES, zorder=1)
        axes.annotate(
            name,
            (1, limit),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=7,
            color=GREY,
        )
    axes.set_ylim(0, most + 0.5 + 0.08 * most)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    said = said_of_seeds({line.seeds for line in methods})
    if said:
        axes.set_title(f"band: {said}")
