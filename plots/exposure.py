"""How far secrets stand out on their way out of a client: exposure against repeats, arm by arm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from fedkd.escaping import plain
from fedkd.labels import by_seed, labels
from fedkd.plots.gather import noted, panels
from fedkd.plots.style import ARMS, COLOURS, COLUMN, PAGE, columns_of, look, styled
from fedkd.results import PLACES, FedkdError, Run
from fedkd.summaries import exposure

NULL = 1 / math.log(2)
"""Mean exposure, in bits, of a secret that nobody has seen (Carlini et al. 2019)."""
MOST = 24  # arms whose panels fit a page
WORDS = {"released": "released labels", "fused": "fused labels"}
"""What places are called where their name alone does not say it."""
LOOKS: dict[str, dict[str, Any]] = {
    "teacher": {"color": COLOURS[5], "marker": "s", "linestyle": "-"},
    "released": {"color": COLOURS[1], "marker": "^", "linestyle": "--"},
    "fused": {"color": COLOURS[6], "marker": "D", "linestyle": "-."},
    "student": {"color": COLOURS[0], "marker": "o", "markerfacecolor": "white", "linewidth": 1.8},
}
"""A place's colour, marker and line: told apart without colour too."""
ASIDE = 0.09  # between places, as a share of the distance between the closest levels
GREY, DASHES, DOTS = "#555555", (0, (4, 2)), (0, (1, 1.5))


@dataclass(frozen=True)
class Arm:
    """Runs of the same experiment and name that differ in nothing but their seed.

    ``style`` are keywords of ``Axes.plot``; ``measured`` are the levels of repeats at each place.
    """

    name: str
    label: str
    style: dict[str, Any]
    runs: list[Run]
    measured: dict[str, list[int]]

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len({run.experiment.seed for run in self.runs})


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Gather runs by arm, in an order that does not depend on theirs.

    An arm is called by its experiment's name; arms of the same name also by what tells them apart,
    and, where runs are on data of several kinds, by its data.

    Raises
    ------
    FedkdError
        A run has not ended, or has no measured exposure.
    """
    for run in runs:
        _check(run)
    return [
        replace(arm, label=f"{arm.label}, {part.title}") if part.title else arm
        for part in panels(runs)[0]
        for arm in _arms(part.runs)
    ]


def _arms(runs: Sequence[Run]) -> list[Arm]:
    """The arms of runs on data of one kind."""
    by_name: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.experiment.seed, str(run.folder))):
        by_name.setdefault(run.experiment.name, []).append(run)
    # Arms may be the same experiment under two names.
    named = {name: by_seed(same) for name, same in by_name.items()}
    places = {name: place for place, name in enumerate(ARMS)}
    order = sorted(named, key=lambda name: (places.get(name, len(places)), name))
    return [arm for name in order for arm in _of_a_name(name, named[name], len(named) == 1)]


def _of_a_name(name: str, groups: list[list[Run]], alone: bool) -> list[Arm]:
    """The arms called ``name``; ``alone``: there is no other name."""
    if len(groups) == 1:
        return [Arm(name, name, look(name), groups[0], _measured(groups[0]))]
    found: list[Arm] = []
    variants: Counter[str] = Counter()
    titles = labels([group[0] for group in groups])
    for title, group in sorted(zip(titles, groups), key=lambda pair: pair[0]):
        method = group[0].experiment.strategy.name
        called = method if alone else name
        title = plain(called + title.removeprefix(method))
        style = look(called, variants[called])
        variants[called] += 1
        found.append(Arm(name, title, style, group, _measured(group)))
    return found


def _check(run: Run) -> None:
    if not run.experiment.canary.secrets:
        raise FedkdError(
            f"{run.folder} has no measured exposure: its experiment plants no canaries"
        )
    if run.summary is None:
        raise FedkdError(f"{run.folder} has not ended: exposure is that of the last round")
    if not run.exposures:
        raise FedkdError(f"{run.folder} has no measured exposure")


def _measured(runs: list[Run]) -> dict[str, list[int]]:
    """Levels of repeats, rising, at every place where any run has them."""
    pairs = {(line["place"], line["repeats"]) for run in runs for line in run.exposures}
    found = {place: sorted(level for at, level in pairs if at == place) for place in PLACES}
    return {place: levels for place, levels in found.items() if levels}


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw exposure in bits against the repeats of a secret: a panel an arm, a line a place.

    Means over secrets and seeds in the last measured round, with 95 % intervals. The dashed line is
    the mean of secrets that nobody has seen, the dotted one log2 of the number of possible secrets.
    That mean is of teachers and students; of released and fused labels it is another.

    Raises
    ------
    FedkdError
        A run has not ended or has no measured exposure; or there are too many arms.
    """
    found = arms(runs)
    if len(found) > MOST:
        raise FedkdError(f"{len(found)} arms do not fit into one figure; allowed: {MOST}")
    columns = columns_of(len(found))
    rows = -(-len(found) // columns)
    width = COLUMN if columns == 1 else PAGE
    figure = Figure(figsize=(width, 0.75 + rows * (1.9 if columns < 4 else 1.4)))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    levels = sorted({x for arm in found for measured in arm.measured.values() for x in measured})
    places = [place for place in PLACES if any(place in arm.measured for arm in found)]
    counts = {arm.seeds for arm in found}
    for number, (panel, arm) in enumerate(zip(panels, found)):
        _panel(panel, arm, levels, places)
        many = f", {arm.seeds} seed{'s' * (arm.seeds > 1)}" if len(counts) > 1 else ""
        panel.set_title(f"{arm.label}{many}")
        if number % columns == 0:
            panel.set_ylabel("Exposure (bits)")
        if number + columns >= len(found):
            panel.tick_params(labelbottom=True)
        if number // columns == rows - 1:
            panel.set_xlabel("Repeats of a secret")
    for panel in panels[len(found) :]:
        panel.remove()
    _axis(panels[0], levels)
    spaces = [space for arm in found if (space := _space(arm)) is not None]
    panels[0].set_ylim(0, 1.04 * max(spaces, default=panels[0].get_ylim()[1]))
    over = f", {max(counts)} seeds" if len(counts) == 1 < max(counts) else ""
    figure.suptitle(
        f"mean and 95 % interval over secrets{over}", x=0.01, ha="left", fontsize=7, color=GREY
    )
    _legend(figure, places, spaces, columns)
    return noted(figure, [(arm.label, arm.runs) for arm in found])


def _panel(axes: Axes, arm: Arm, levels: list[int], places: list[str]) -> None:
    """A line with intervals for each place; side by side, so that intervals do not overlap."""
    aside = ASIDE * _gap(levels)
    for place, measured in arm.measured.items():
        estimates = [exposure(arm.runs, place, level) for level in measured]
        found = np.array([(x.mean, x.mean - x.low, x.high - x.mean) for x in estimates if x])
        offset = aside * (places.index(place) - (len(places) - 1) / 2)
        line, _, _ = axes.errorbar(
            np.array(measured) * 2.0**offset,
            found[:, 0],
            found[:, 1:].T,
            label=WORDS.get(place, place),
            **{"markersize": 3.2, "elinewidth": 0.8, "capsize": 1.4, "capthick": 0.8}
            | LOOKS[place],
        )
        line.set(clip_on=False, zorder=3)  # exposures of 0 are whole on the axis
    axes.axhline(NULL, color=GREY, linewidth=0.8, linestyle=DASHES, zorder=1)
    if (space := _space(arm)) is not None:
        axes.axhline(space, color=GREY, linewidth=0.9, linestyle=DOTS, zorder=1)


def _space(arm: Arm) -> float | None:
    """Bits of a secret: log2 of how many there could be."""
    return (arm.runs[0].canaries or {}).get("log2_space")


def _gap(levels: list[int]) -> float:
    """Distance between the closest levels, in powers of two."""
    return float(np.diff(np.log2(levels)).min()) if len(levels) > 1 else 1.0


def _axis(axes: Axes, levels: list[int]) -> None:
    """Powers of two, with the levels as ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.xaxis.set_minor_locator(NullLocator())
    margin = 2.0 ** (0.35 * _gap(levels))
    axes.set_xlim(levels[0] / margin, levels[-1] * margin)


def _legend(figure: Figure, places: list[str], spaces: list[float], columns: int) -> None:
    """Name places and the two levels, under all panels."""
    handles = [Line2D([], [], label=WORDS.get(place, place), **LOOKS[place]) for place in places]
    handles.append(
        Line2D([], [], color=GREY, linewidth=0.8, linestyle=DASHES, label=f"null, {NULL:.2f} bits")
    )
    if spaces:
        most = f" = {spaces[0]:.1f}" if len(set(spaces)) == 1 else ""
        label = f"log₂|R|{most}"
        handles.append(Line2D([], [], color=GREY, linewidth=0.9, linestyle=DOTS, label=label))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3 if columns == 1 else len(handles),
        handlelength=2.2 if columns == 1 else 2.6,
        columnspacing=1.2,
    )
