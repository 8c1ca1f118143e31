"""The figures of a suite's page, as PNG images inside it."""

from __future__ import annotations

import base64
import importlib
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedkd.errors import FedkdError
from fedkd.plots.style import styled
from fedkd.results import Run
from fedkd.simulations.cells import SEED, Cell, Suite, compared_axis, panels, where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
INCH = 96  # CSS pixels
MOST = 12  # figures of a kind; the others are a command
DATA = "data"
FIGURES = {
    "alpha": "Accuracy against heterogeneity",
    "size": "Accuracy against local size",
    "curves": "Accuracy by round",
    "pareto": "Accuracy against bytes",
    "fairness": "Accuracy of every client",
    "calibration": "Calibration",
    "exposure": "Exposure of planted secrets",
    "tradeoff": "Privacy and utility",
    "weights": "Weights between clients",
    "cuts": "Cuts",
    "partition": "Who holds what",
}
"""Modules of ``plots``, and their titles; each tells by itself whether runs fit."""
SINGLE = ("cuts", "partition")
"""Figures of one run."""
APART = ("fairness",)
"""Figures that have no panels of their own: one for each combination of the other axes."""
RECORDED = {"weights": "weights", "cuts": "cut"}
"""What a method must record for a figure of it."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page: a PNG as a ``data:`` URI, its size in CSS pixels, what it is of."""

    where: str
    uri: str
    width: int
    height: int
    command: str


def figures_of(suite: Suite) -> dict[str, list[Picture]]:
    """The figures that the suite's runs make, by title."""
    found = {
        title: _singles(name, suite) if name in SINGLE else _pictures(name, suite)
        for name, title in FIGURES.items()
    }
    return {title: pictures for title, pictures in found.items() if pictures}


def _pictures(name: str, suite: Suite) -> list[Picture]:
    """One figure a data set; where that is too much, one for what is apart by anything else."""
    close = {compared_axis(suite), SEED}
    for shown in [close] if name in APART else [{*suite.axes} - {DATA}, close]:
        found = []
        for labels, panel in panels(suite, shown):
            cells = [cell for cell in panel if _has(name, cell)]
            if picture := _picture(name, labels, cells):
                found.append(picture)
        if found:
            if [picture.where for picture in found] == [""]:
                whole = shlex.join(["fedkd", "plot", name, str(suite.folder)])
                return [replace(found[0], command=whole)]
            return found[:MOST]
    return []


def _singles(name: str, suite: Suite) -> list[Picture]:
    """Figures of one run: of the first seed, and of runs that would look the same only once."""
    found: dict[str, Picture] = {}
    for labels, (cell, *_) in panels(suite, (SEED,)):
        if not _has(name, cell) or len(found) == MOST:
            continue
        same = str(cell.folder)
        if name == "partition":
            partition = Run(cell.folder).partition
            same = str([client["labels"] for client in partition["clients"]])
            labels.pop(compared_axis(suite), None)
        if SEED in cell.labels:
            labels[SEED] = cell.labels[SEED]
        if same not in found and (picture := _picture(name, labels, [cell])):
            found[same] = picture
    return list(found.values())


def _has(name: str, cell: Cell) -> bool:
    """Whether a run's method records what the figure shows."""
    key = RECORDED.get(name)
    return key is None or any(key in line.get("strategy", {}) for line in Run(cell.folder).rounds)


@styled
def _picture(name: str, labels: dict[str, Any], cells: Sequence[Cell]) -> Picture | None:
    """The figure, or nothing where these runs have not what it shows."""
    if not cells:
        return None
    runs = [Run(cell.folder) for cell in cells]
    try:
        draw = importlib.import_module(f"fedkd.plots.{name}").draw
        figure: Figure = draw(runs)
    except FedkdError:
        return None
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    width, height = (round(INCH * inches) for inches in figure.get_size_inches())
    uri = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    words = ["fedkd", "plot", name, *(str(run.folder) for run in runs)]
    return Picture(where(labels), uri, width, height, shlex.join(words))
