"""Whether students know what they know: expected calibration error against accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedkd.plots.gather import STAGES, Line, final, lines, noted, over_seeds, panels, said_of_seeds
from fedkd.plots.style import columns_of, grid, legend, outer, styled, titles
from fedkd.results import FedkdError, Run

TESTS = ("own", "common")
GREY = "#555555"
MARK: dict[str, Any] = {"marker": "o", "linestyle": "none", "color": GREY}


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw the mean expected calibration error of clients at the end against their accuracy.

    A panel a test set, own and common, and a kind of data. A method is two points, hollow after
    local training and full after fusion, tied by a line: which way fusion moves it. Means over
    seeds with 95 % intervals (the range of two seeds). The best corner is at the lower right.

    Raises
    ------
    FedkdError
        A run has not ended, or no run has measured a calibration error.
    """
    parts, keys = panels(runs)
    methods = lines(runs, keys)
    cells = [
        (part, tests, [line.among(part.runs) for line in methods])
        for tests in TESTS
        for part in parts
        if any(_measured(run, tests) for run in part.runs)
    ]
    if not cells:
        raise FedkdError("no run has measured a calibration error; nothing to draw")
    columns = columns_of(len(parts))
    even = len(parts) > 1 and len(parts) % columns == 0
    figure, axes = grid(
        len(cells),
        2.3 if len(cells) == 1 else 2.0,
        sharey="none",
        columns=columns if even else 0,
    )
    for panel, (_, tests, row) in zip(axes, cells):
        for line in row:
            _draw(panel, line, tests)
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, 0.0), high)
    return _finish(figure, axes, cells)


def _finish(figure: Figure, axes: list[Axes], cells: list[tuple[Any, str, list[Line]]]) -> Figure:
    """Titles, names of axes, the legend."""
    outer(axes, "Test accuracy (%)", "Calibration error (%)")
    counts = {line.seeds for _, _, row in cells for line in row}
    said = said_of_seeds(counts)
    each = [f"{tests} test set{', ' * bool(part.title)}{part.title}" for part, tests, _ in cells]
    titles(figure, axes, each, f"bars: {said}" if said else "")
    marks = [
        Line2D([], [], **MARK | {"markerfacecolor": face, "label": STAGES[stage]})
        for stage, face in (("local", "white"), ("fused", GREY))
    ]
    legend(figure, axes, *marks)
    shown: dict[str, dict[Path, Run]] = {}
    for _, tests, row in cells:
        for line in row:
            fit = {run.folder: run for run in line.runs if _measured(run, tests)}
            shown.setdefault(line.label, {}).update(fit)
    return noted(figure, [(name, list(runs.values())) for name, runs in shown.items()])


def _measured(run: Run, tests: str) -> bool:
    return all(math.isfinite(final(run, f"{tests}_{name}")) for name in ("ece", "accuracy"))


def _draw(axes: Axes, line: Line, tests: str) -> None:
    """A method after local training and after fusion, and the way between."""
    runs = [run for run in line.runs if _measured(run, tests)]
    ends = []
    for stage in ("local", "fused"):
        found = [
            over_seeds([100 * final(run, f"{tests}_{name}", stage) for run in runs])
            for name in ("accuracy", "ece")
        ]
        if not all(math.isfinite(value[0]) for value in found):
            continue
        (x, left, right), (y, low, high) = found
        ends.append((x, y))
        fused = stage == "fused"
        face = line.style["color"] if fused else "white"
        look = line.style | {"linestyle": "none", "markersize": 4.5, "markerfacecolor": face}
        _, caps, bars = axes.errorbar(
            x,
            y,
            xerr=[[x - left], [right - x]],
            yerr=[[y - low], [high - y]],
            label=line.label if fused else None,
            elinewidth=0.6,
            zorder=3 if fused else 2.5,
            **look,
        )
        for part in (*caps, *bars):
            part.set_alpha(0.45)
    if len(ends) == 2:
        axes.plot(*zip(*ends), color=line.style["color"], linewidth=0.8, zorder=2)
