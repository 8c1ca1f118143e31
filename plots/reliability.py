"""Reliability diagrams: whether predictions that are so sure are right so often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedkd.plots.gather import MOST, STAGES, Line, apart, noted
from fedkd.plots.style import columns_of, grid, legend, outer, styled, titles
from fedkd.results import FedkdError, Run

TESTS = {"own": "own tests", "common": "common test set"}
GREY = "#555555"
LEAST = 10
"""Predictions in a bin, below which its accuracy is chance and is not drawn."""
TICKS = (0, 25, 50, 75, 100)
BARS = 0.22
"""How high the bar of the fullest bin is, as a share of the panel."""
LOOKS: dict[str, dict[str, Any]] = {
    "local": {"linestyle": ":", "markerfacecolor": "white", "zorder": 2.5},
    "fused": {"linestyle": "-", "zorder": 3},
}
"""How each stage is drawn: beside a method's colour and marker."""


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw accuracy against confidence, in bins of confidence, at the end of runs.

    A panel a method or setting and a set of tests, own and common. Bins are those of the expected
    calibration error, over the predictions of all clients and seeds: dotted after local training,
    solid after fusion. On the diagonal a student is as right as it is sure, below it too sure. Grey
    bars, in units of their own, say how many predictions after fusion each bin has; one of few has
    no point. ECE is that of all predictions after fusion. Runs that record no bins are left out.

    Raises
    ------
    FedkdError
        No run has recorded bins; or there are more panels than fit into a figure.
    """
    recorded = [run for run in runs if run.reliability]
    if not recorded:
        raise FedkdError(
            f"{runs[0].folder} has no reliability.json; allowed: runs with tests that have ended, "
            "of a version of fedkd that writes it"
        )
    methods = apart(recorded)
    cells = [
        (line, tests, found)
        for tests in TESTS
        for line in methods
        if (found := _stages(line, tests))
    ]
    if len(cells) > MOST:
        raise FedkdError(
            f"{len(cells)} panels, one a method or setting and set of tests, do not fit into one "
            f"figure; allowed: {MOST}, with the folders of fewer runs"
        )
    even = 2 * len(methods) == len(cells) and 1 < len(methods) < 5
    columns = len(methods) if even else columns_of(len(cells))
    figure, axes = grid(len(cells), 2.6 if columns < 3 else 2.2, columns=columns)
    for panel, (line, _, found) in zip(axes, cells):
        _draw(panel, line, found)
    outer(axes, "Confidence (%)", "Accuracy (%)")
    each = [
        f"{line.label}, {TESTS[tests]}, ECE\N{NO-BREAK SPACE}{_error(found):.1f}\N{NO-BREAK SPACE}%"
        for line, tests, found in cells
    ]
    titles(
        figure,
        axes,
        each,
        f"ECE after fusion, of all clients and seeds; bins of under {LEAST} have no point",
    )
    marks = [
        Line2D([], [], marker="o", color=GREY, label=STAGES[stage], **look)
        for stage, look in LOOKS.items()
    ]
    bars = Line2D([], [], color="#cccccc", linewidth=5, label="how many predictions, no scale")
    diagonal = Line2D([], [], color=GREY, linewidth=0.8, linestyle="--", label="as right as sure")
    legend(figure, [], *marks, bars, diagonal)
    shown = {line.label: line.runs for line, _, _ in cells}
    return noted(figure, shown.items())


def _stages(line: Line, tests: str) -> dict[str, np.ndarray]:
    """By stage: ``(bins, 3)``, count, sum of confidences, sum of hits, over all seeds."""
    found: dict[str, np.ndarray] = {}
    for run in line.runs:
        for stage, bins in ((run.reliability or {}).get(tests) or {}).items():
            count = np.array(bins["count"], dtype=float)
            means = np.array([bins["confidence"], bins["accuracy"]], dtype=float)
            total = np.vstack([count, np.nan_to_num(means) * count]).T
            known = found.get(stage)
            if known is not None and known.shape != total.shape:
                raise FedkdError(f"{run.folder} has {len(total)} bins, and others {len(known)}")
            found[stage] = total if known is None else known + total
    return {stage: total for stage, total in found.items() if total[:, 0].any()}


def _error(found: dict[str, np.ndarray]) -> float:
    """The expected calibration error in percent of all predictions, after fusion if known."""
    total = found.get("fused", next(iter(found.values())))
    return float(100 * np.abs(total[:, 1] - total[:, 2]).sum() / total[:, 0].sum())


def _draw(axes: Axes, line: Line, found: dict[str, np.ndarray]) -> None:
    """One diagram: the diagonal, bars of counts, a line a stage."""
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    bars = found.get("fused", next(iter(found.values())))[:, 0]
    width = 100 / len(bars)
    height = 100 * BARS * bars / bars.max()
    axes.bar(
        width * np.arange(len(bars)), height, 0.9 * width, align="edge", color="#cccccc", zorder=0.5
    )
    for stage, total in found.items():
        count, confidence, hits = total[total[:, 0] >= LEAST].T
        style = line.style | LOOKS[stage]
        if stage == "fused":
            style["markerfacecolor"] = line.style["color"]
        axes.plot(
            100 * confidence / count, 100 * hits / count, **style | {"markersize": 3}, clip_on=False
        )
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=TICKS, yticks=TICKS)
