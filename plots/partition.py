"""Who holds what: training samples per client and class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedkd.escaping import plain
from fedkd.plots.gather import noted, one
from fedkd.plots.style import PAGE, styled
from fedkd.results import FedkdError, Run

COUNTED = (20, 12)  # up to so many clients and classes, counts are written into the cells
CLASSES_NAMED = 40  # classes that have room for their names; of more, some are named
CLIENTS_TICKED = 20
LONGEST_NAME = 30  # signs of a class's name
VECTOR_CELLS = 1000  # in a PDF; more are an image
SHADES = LinearSegmentedColormap.from_list("samples", colormaps["Blues"](np.linspace(0.12, 1, 256)))


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw classes against clients, the darker the more training samples; white is none.

    Above: training samples of each client in all.

    Raises
    ------
    FedkdError
        The run has recorded no partition yet, or there are several runs.
    """
    run = one(runs, "partition")
    partition = run.partition
    if not partition["clients"]:
        raise FedkdError(f"{run.folder} has no partition.json yet; nothing to draw")
    counts = np.array([client["labels"] for client in partition["clients"]]).T  # (C, N)
    classes, clients = counts.shape
    height = max(1.2, min(0.18 * classes, 5.0))
    figure = Figure(figsize=(PAGE, height + 1.2))
    above, cells = figure.subplots(2, 1, sharex=True, height_ratios=(0.5, height))
    above.bar(np.arange(clients), counts.sum(0), width=0.8, color="#7f7f7f")
    above.set_ylabel("Total")
    above.grid(axis="x", visible=False)
    above.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    above.tick_params(axis="x", length=0)
    mesh = cells.pcolormesh(
        np.arange(clients),
        np.arange(classes),
        np.ma.masked_equal(counts, 0),
        cmap=SHADES,
        norm=PowerNorm(0.5, vmin=0),  # few samples are still told from none
        rasterized=counts.size > VECTOR_CELLS,
    )
    cells.set(xlabel="Client", ylabel="Class")
    cells.grid(visible=False)
    cells.invert_yaxis()
    cells.xaxis.set_major_locator(MaxNLocator(CLIENTS_TICKED, steps=[1, 2, 5, 10], integer=True))
    every = -(-classes // CLASSES_NAMED)
    names = [_shortened(plain(name)) for name in partition["classes"][::every]]
    cells.set_yticks(range(0, classes, every), names, parse_math=False)
    figure.colorbar(mesh, ax=[above, cells], label="Training samples", pad=0.01, aspect=30)
    if clients <= COUNTED[0] and classes <= COUNTED[1]:
        _write_counts(cells, counts)
    return noted(figure, [(run.experiment.strategy.name, [run])])


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _write_counts(axes: Axes, counts: np.ndarray) -> None:
    """Write every count that is not zero into its cell."""
    for (label, client), count in np.ndenumerate(counts):
        if count:
            colour = "white" if count > 0.45 * counts.max() else "black"
            axes.text(client, label, count, color=colour, fontsize=6.5, ha="center", va="center")
