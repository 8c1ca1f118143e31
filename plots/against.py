"""Test accuracy against a number of the experiment: a line per method, intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedkd.errors import nearest
from fedkd.labels import settings
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
from fedkd.plots.style import grid, legend, numeric, outer, percent, styled, thin, titles
from fedkd.results import FedkdError, Run

NAMES = {
    "data.alpha": "Dirichlet concentration \N{GREEK SMALL LETTER ALPHA} (unlike → alike clients)",
    "data.samples_per_client": "Training samples per client",
    "participation": "Share of clients in a round",
}
SHORT = {"data.alpha": "Concentration \N{GREEK SMALL LETTER ALPHA}"}
"""Where there is less room."""
ASIDE = 0.012  # between methods, as a share of the axis: so that intervals do not hide each other
RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 8,
    "markerfacecolor": "none",
    "markeredgecolor": "#222222",
}


@styled
def draw(
    runs: Sequence[Run], key: str, metric: str = "own_accuracy", stage: str = "fused"
) -> Figure:
    """Draw ``metric``, mean over clients at the end, against ``key``: a panel a kind of data.

    Data on which ``key`` has one value only, as alpha on a natural partition, are left out.
    Lines are means over seeds with 95 % intervals (the range of two seeds). Where one method sends
    nothing, as local training, rings mark where its line crosses another's, found by interpolating
    both lines as they are drawn; where they do not cross there is none.

    Parameters
    ----------
    runs
        Finished runs.
    key
        A key of the experiment whose values are numbers, as ``data.alpha``. The axis is a log one
        where all of them are above 0.
    metric
        ``own_accuracy`` or ``common_accuracy``.
    stage
        ``fused``: at the end of the last round; ``local``: in it, after local training.

    Raises
    ------
    FedkdError
        A run has not ended, did not measure ``metric``, or has no number under ``key``; or all have
        the same.
    """
    check(metric, stage)
    values = {run.folder: _number(run, key) for run in runs}
    log = min(values.values()) > 0
    parts, keys = panels(runs, key)
    parts = [part for part in parts if len({values[run.folder] for run in part.runs}) > 1]
    if not parts:
        have = ", ".join(f"{value:g}" for value in sorted(set(values.values())))
        raise FedkdError(
            f"all runs{' on the same data' * (',' in have)} have {key} = {have}; two values at "
            "least make a figure"
        )
    methods = lines([run for part in parts for run in part.runs], (key, *keys))
    cells = [
        [_points(line.among(part.runs), values, metric, stage) for line in methods]
        for part in parts
    ]
    figure, axes = grid(len(parts), 2.4 if len(parts) == 1 else 2.0)
    counts, crossed = set(), False
    for panel, row in zip(axes, cells):
        ticks = sorted({x for found in row for x in found})
        numeric(panel, ticks, log)
        for place, (line, found) in enumerate(zip(methods, row)):
            if found:
                _line(panel, line, found, ASIDE * (place - (len(methods) - 1) / 2), ticks, log)
                counts |= {len(seeds) for seeds in found.values()}
    percent(axes)
    silent = [place for place, line in enumerate(methods) if _silent(line)][:1]
    for panel, row in zip(axes, cells):
        panel.set_autoscale_on(False)
        for reference in silent:
            for line, found in zip(methods, row):
                crossed |= _cross(panel, line, found, row[reference], log)
    name = SHORT.get(key, NAMES.get(key, key)) if len(parts) > 1 else NAMES.get(key, key)
    outer(axes, name, METRICS[metric])
    said = ", ".join(filter(None, [said_of_stage(metric, stage), _bars(counts)]))
    titles(figure, axes, [part.title for part in parts], said)
    rings = []
    if crossed:
        label = f"{methods[silent[0]].label} crosses"
        ring = RING | {"markersize": 6, "linestyle": "none", "label": label}
        rings.append(Line2D([], [], **ring))
    legend(figure, axes, *rings)
    thin(figure, axes)
    return noted(figure, [(line.label, line.runs) for line in methods])


def _bars(counts: set[int]) -> str:
    said = said_of_seeds(counts)
    return f"bars: {said}" if said else ""


def _number(run: Run, key: str) -> float:
    """The run's value of ``key``."""
    table = settings(run)
    if key not in table:
        known = [name for name, value in table.items() if _is_number(value)]
        raise FedkdError(
            f"{key!r} is not a key of {run.folder}{nearest(key, known)}; keys with numbers: "
            f"{', '.join(known)}"
        )
    if not _is_number(table[key]):
        raise FedkdError(f"{key} = {table[key]!r} of {run.folder} is not a number")
    return float(table[key])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points(
    line: Line, values: dict[Path, float], metric: str, stage: str
) -> dict[float, list[float]]:
    """Percentages of every seed, by the value they were measured at."""
    found: dict[float, list[float]] = {}
    for run in line.runs:
        value = 100 * final(run, metric, stage)
        if math.isnan(value):
            raise FedkdError(
                f"{run.folder} has measured no {metric} {said_of_stage(metric, stage)}"
            )
        found.setdefault(values[run.folder], []).append(value)
    return dict(sorted(found.items()))


def _line(
    axes: Axes,
    line: Line,
    found: dict[float, list[float]],
    aside: float,
    ticks: list[float],
    log: bool,
) -> None:
    """A method's means, joined, with bars; a little aside of the others."""
    x = np.array(list(found))
    x = x * (ticks[-1] / ticks[0]) ** aside if log else x + aside * (ticks[-1] - ticks[0])
    mean, low, high = np.array([over_seeds(seeds) for seeds in found.values()]).T
    drawn, caps, bars = axes.errorbar(
        x,
        mean,
        np.array([mean - low, high - mean]),
        label=line.label,
        elinewidth=0.8,
        capsize=1.5,
        capthick=0.8,
        **line.style,
    )
    for part in (*caps, *bars):
        part.set_alpha(0.6)
    drawn.set_clip_on(False)


def _silent(line: Line) -> bool:
    """Whether the method's clients neither send nor receive anything."""
    summaries = [run.summary or {} for run in line.runs]
    return not any(summary.get(f"bytes_{way}") for summary in summaries for way in ("up", "down"))


def _cross(
    axes: Axes,
    line: Line,
    found: dict[float, list[float]],
    reference: dict[float, list[float]],
    log: bool,
) -> bool:
    """Ring the points where two lines cross; whether there are any."""
    shared = sorted(set(found) & set(reference))
    where = crossings(
        shared,
        [float(np.mean(found[x])) for x in shared],
        [float(np.mean(reference[x])) for x in shared],
        log,
    )
    for x, y in where:
        axes.plot(x, y, linestyle="none", zorder=4, **RING)
        axes.vlines(
            x,
            axes.get_ylim()[0],
            y,
            color=line.style["color"],
            linewidth=0.8,
            linestyle=":",
            zorder=1,
        )
    return bool(where)


def crossings(
    x: Sequence[float], one: Sequence[float], other: Sequence[float], log: bool = True
) -> list[tuple[float, float]]:
    """Points in which two lines through ``(x, one)`` and ``(x, other)`` cross, from left to right.

    Between two values of ``x`` both are straight, on a log axis if it is ``log``. Lines that touch
    and part again on the same side do not cross; lines that are one for a while cross where they
    part.
    """
    along = np.log(x) if log and len(x) else np.asarray(x, float)
    apart = np.subtract(one, other)
    found = []
    before = None
    for n, difference in enumerate(apart):
        if not difference:
            continue
        if before is not None and difference * apart[before] < 0:
            start = n - 1
            share = apart[start] / (apart[start] - difference)
            place = float(along[start] + share * (along[n] - along[start]))
            height = float(one[start] + share * (one[n] - one[start]))
            found.append((math.exp(place) if log else place, height))
        before = n
    return found
