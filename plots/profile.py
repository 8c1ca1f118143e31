"""What runs guarantee at any delta: formal epsilon against delta, a line a method or setting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from fedkd.plots.gather import Line, apart, noted
from fedkd.plots.style import grid, legend, outer, styled, thin, titles
from fedkd.privacy.guarantees import Profile, guarantees, profiles
from fedkd.results import FedkdError, Run

TICKS = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2)
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw formal epsilon against delta.

    A panel a kind of guarantee: its unit, its neighbours and the adversary that it is against. A
    line is of the seed that is worst at each delta; a dot is at the delta that is stated. The
    legend has mu of Gaussian DP where all noise is Gaussian.

    Raises
    ------
    FedkdError
        No run guarantees anything.
    """
    methods = apart(runs)
    panels: dict[str, list[tuple[Line, list[Profile]]]] = {}
    for line in methods:
        by_kind: dict[str, list[Profile]] = {}
        for run in line.runs:
            for profile in profiles(run.releases, run.experiment):
                by_kind.setdefault(_kind(profile), []).append(profile)
        for kind, found in by_kind.items():
            if len(found) == len(line.runs):
                panels.setdefault(kind, []).append((line, found))
    if not panels:
        why = guarantees(runs[0].releases, runs[0].experiment)[0].why
        raise FedkdError(f"no run guarantees anything; {runs[0].folder}: {why}")
    figure, axes = grid(len(panels), 2.4 if len(panels) == 1 else 2.0, sharey="none")
    for panel, rows in zip(axes, panels.values(), strict=True):
        for line, found in rows:
            _draw(panel, line, found)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator(TICKS))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(PLAIN)
        if panel.get_ylim()[0] > 0 and _spread(rows) > 10:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_formatter(PLAIN)
    outer(axes, "δ", "Formal ε")
    titles(figure, axes, list(panels), "")
    legend(figure, axes)
    thin(figure, axes)
    shown = {line.label: line.runs for rows in panels.values() for line, _ in rows}
    return noted(figure, list(shown.items()))


def _kind(profile: Profile) -> str:
    """The title of the panel that a profile is in."""
    formal = profile.formal
    relation = formal.neighbours.split("(")[0].strip()
    return f"{relation}, against {formal.adversary}"


def _spread(rows: Sequence[tuple[Line, list[Profile]]]) -> float:
    """The largest epsilon of a panel over the smallest."""
    every = [epsilon for _, found in rows for one in found for epsilon in one.epsilons]
    return max(every) / max(min(every), 1e-3)


def _draw(axes: Axes, line: Line, found: Sequence[Profile]) -> None:
    """A line, and its dot."""
    worst = np.max([profile.epsilons for profile in found], axis=0)
    mu = max(profile.mu for profile in found)
    gaussian = f", μ = {mu:.3g}" if all(profile.exact for profile in found) else ""
    style = line.style | {"marker": "", "label": f"{line.label}{gaussian}"}
    axes.plot(found[0].deltas, worst, **style)
    stated = max((profile.formal for profile in found), key=lambda formal: formal.epsilon or 0.0)
    dot = {"marker": "o", "linestyle": "none", "color": style["color"]}
    axes.plot([stated.delta], [stated.epsilon or 0.0], **dot)
