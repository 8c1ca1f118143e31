"""What a privacy budget buys: utility and what attacks find, against the formal epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedkd.frames import audited
from fedkd.labels import settings
from fedkd.plots.gather import Line, lines, noted, over_seeds, said_of_seeds
from fedkd.plots.style import COLOURS, MARKERS, grid, legend, numeric, styled, thin, titles
from fedkd.privacy.guarantees import Formal, guarantees
from fedkd.results import FedkdError, Run
from fedkd.summaries import utility, utility_name

NOISE = (
    *("training.dp.noise_multiplier", "strategy.noise_multiplier"),
    *("release.scale", "release.clip", "release.draws"),
)
"""Keys that a budget is spent by: runs that differ in these alone are one line."""
UTILITIES = {"accuracy": "Test accuracy (%)", "perplexity": "Perplexity"}
GUESSING = 0.5
BESIDE = 1.15
"""How far the axis goes beyond its outer ticks, on a log scale."""


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw utility against formal epsilon, and beside it the AUC of membership inference.

    A line is runs that differ in noise alone: means over seeds with 95 % intervals. Epsilon is that
    of the first adversary that there is a guarantee against: the server, or else those who see what
    it makes; the AUC is that adversary's, by ``fedkd audit``. Runs without a guarantee are dashed
    lines across. Units differ between lines: of a record by DP-SGD, of a client by all else.

    Raises
    ------
    FedkdError
        No run guarantees anything, or runs are on several data sets.
    """
    sets = sorted({run.experiment.data.dataset for run in runs})
    if len(sets) > 1:
        raise FedkdError(
            f"runs on {' and '.join(sets)} do not fit into one figure: name those of one"
        )
    kind = utility_name(runs[0])
    formals = {run.folder: _formal(run) for run in runs}
    epsilons = {folder: one.epsilon if one else None for folder, one in formals.items()}
    if not any(formals.values()):
        why = guarantees(runs[0].releases, runs[0].experiment)[0].why
        raise FedkdError(f"no run guarantees anything; {runs[0].folder}: {why}")
    # Ways of protection have one method in common: here each has a look of its own.
    methods = [
        Line(line.label, line.style | _look(place), line.runs)
        for place, line in enumerate(lines(runs, NOISE))
    ]
    factor = 100 if kind == "accuracy" else 1
    shown: list[tuple[str, Callable[[Run], float]]] = [
        (UTILITIES[kind], lambda run: factor * utility(run))
    ]
    if any(run.audit for run in runs):
        shown.append(("AUC of membership inference", _auc))
    figure, axes = grid(len(shown), 2.4, sharey="none")
    ticks = sorted({float(f"{found:.2g}") for found in epsilons.values() if found is not None})
    counts = set()
    for panel, (name, value) in zip(axes, shown, strict=True):
        numeric(panel, ticks, log=True)
        for line in methods:
            counts |= _draw(panel, line, epsilons, value)
        panel.set_xlim(ticks[0] / BESIDE, ticks[-1] * BESIDE)
        panel.set_ylabel(name)
        panel.set_xlabel("Formal ε")
    if len(shown) > 1:
        axes[1].axhline(GUESSING, color="#555555", linewidth=0.8, linestyle=":")
    bars = said_of_seeds(counts)
    told = [f"bars: {bars}" if bars else "", _units(methods, formals)]
    titles(figure, axes, [""] * len(axes), "; ".join(filter(None, told)))
    legend(figure, axes)
    thin(figure, axes)
    return noted(figure, [(line.label, line.runs) for line in methods])


def _look(place: int) -> dict[str, Any]:
    """Look of a line by its place; from the ninth on colours come again, hollow and interrupted."""
    colour = COLOURS[place % len(COLOURS)]
    face = "none" if place >= len(COLOURS) else colour
    return {
        "color": colour,
        "marker": MARKERS[place % len(MARKERS)],
        "markerfacecolor": face,
        "markeredgecolor": colour,
        "linestyle": "-" if place < len(COLOURS) else "-.",
    }


def _formal(run: Run) -> Formal | None:
    """The first guarantee of a run that there is."""
    found = guarantees(run.releases, run.experiment)
    return next((formal for formal in found if formal.epsilon is not None), None)


def _units(methods: Sequence[Line], formals: Mapping[Path, Formal | None]) -> str:
    """What epsilon is of, by line."""
    named: dict[str, list[str]] = {}
    for line in methods:
        for unit in {formal.unit for run in line.runs if (formal := formals[run.folder])}:
            named.setdefault(unit, []).append(line.label)
    if len(named) == 1:
        return f"ε of a {next(iter(named))}"
    return ", ".join(
        f"ε of a {unit}: {', '.join(labels)}" for unit, labels in sorted(named.items())[::-1]
    )


def _auc(run: Run) -> float:
    """That of the adversary whom the guarantee is against; NaN where the run was not audited."""
    found = audited(run)
    # Behind secure aggregation the server sees no more than they do.
    alone = "membership_auc" not in found
    whose = "_others" if alone or "formal_epsilon_others" in found else ""
    return found.get(f"membership_auc{whose}", math.nan)


def _draw(
    axes: Axes,
    line: Line,
    epsilons: Mapping[Path, float | None],
    value: Callable[[Run], float],
) -> set[int]:
    """A line, or one across; the numbers of seeds in its points."""
    by_noise: dict[str, list[Run]] = {}
    for run in line.runs:
        table = settings(run)
        by_noise.setdefault(repr([table.get(key) for key in NOISE]), []).append(run)
    points, counts = [], set()
    for group in by_noise.values():
        values = [found for found in map(value, group) if not math.isnan(found)]
        if not values:
            continue
        counts.add(len(values))
        known = [found for run in group if (found := epsilons[run.folder]) is not None]
        x = sum(known) / len(known) if known else math.nan
        points.append((x, *over_seeds(values)))
    if not points:
        return counts
    x, mean, low, high = np.array(sorted(points)).T
    if np.isnan(x).any():
        again = line.style["linestyle"] != "-"
        style = line.style | {"marker": "", "linestyle": (0, (5, 1, 1, 1, 1, 1)) if again else "--"}
        axes.axhline(float(mean[0]), label=line.label, **style)
        return counts
    bars = np.nan_to_num(np.array([mean - low, high - mean]))
    _, caps, ends = axes.errorbar(
        x, mean, bars, label=line.label, elinewidth=0.8, capsize=1.5, capthick=0.8, **line.style
    )
    for part in (*caps, *ends):
        part.set_alpha(0.6)
    return counts
