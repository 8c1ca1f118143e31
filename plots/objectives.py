"""What an objective is worth in a method: differences to one of them, with intervals at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedkd.errors import nearest
from fedkd.plots.gather import MOST, check, final, noted, panels, said_of_stage
from fedkd.plots.style import COLOURS, GREY, grid, legend, outer, styled, titles
from fedkd.results import FedkdError, Run
from fedkd.statistics import Interval, at_once

DEFAULT = "default"
LINE = 0.17
"""Inches that an objective takes of a panel's height."""
TOLD = {"better": COLOURS[0], "worse": COLOURS[1], "not told": GREY}

Seeds = Mapping[int, Run]


@styled
def draw(
    runs: Sequence[Run], reference: str = "forward_kl", metric: str = "headline_accuracy"
) -> Figure:
    """Draw what each objective adds to accuracy at the end, against ``reference``.

    A panel a method and kind of data, a line an objective, the best on top: the mean difference
    over the seeds that both have, with intervals by Student's t that hold at once for all of a
    panel (Bonferroni). Panels without the reference are left out.

    Raises
    ------
    FedkdError
        A run has not ended, or nowhere are two objectives, measured by ``metric``, of which one
        is the reference.
    """
    check(metric)
    known: set[str] = set()
    cells: list[tuple[str, dict[str, Interval], list[Run]]] = []
    parts, _ = panels(runs)
    for part in parts:
        for method, by in _methods(part.runs).items():
            known |= by.keys()
            if found := differences(by, reference, metric):
                title = ", ".join(filter(None, [method, part.title]))
                shown = [run for name in (*found, reference) for run in by[name].values()]
                cells.append((title, found, shown))
    if not cells:
        raise FedkdError(
            f"--reference {reference!r} has nothing beside it{nearest(reference, sorted(known))}; "
            f"objectives of these runs: {', '.join(sorted(known))}"
        )
    if len(cells) > MOST:
        raise FedkdError(f"{len(cells)} methods and kinds of data do not fit; allowed: {MOST}")
    most = max(len(found) for _, found, _ in cells)
    figure, axes = grid(len(cells), 0.8 + LINE * most, sharey="none")
    for panel, (_, found, _) in zip(axes, cells):
        _panel(panel, found)
    outer(axes, f"Gain over {reference}\n(accuracy, points)", "Objective")
    seeds = {it.n for _, found, _ in cells for it in found.values()}
    said = f"95 % intervals of a panel at once, over {_span(seeds)} seeds"
    titles(
        figure, axes, [title for title, _, _ in cells], f"{said_of_stage(metric, 'fused')}; {said}"
    )
    handles = [
        Line2D([], [], marker="o", linestyle="none", color=colour, label=name)
        for name, colour in TOLD.items()
    ]
    legend(figure, axes, *handles)
    return noted(figure, [(title, shown) for title, _, shown in cells])


def differences(
    by: Mapping[str, Seeds], reference: str, metric: str = "headline_accuracy"
) -> dict[str, Interval]:
    """Of each other objective the mean difference in percentage points, the largest first.

    Paired over the seeds that both have; intervals hold for all of them at once.
    """
    if reference not in by:
        return {}
    values = {
        name: {seed: 100 * final(run, metric) for seed, run in seeds.items()}
        for name, seeds in by.items()
    }
    pairs = {}
    for name, own in values.items():
        both = [seed for seed in own if seed in values[reference]]
        apart = [own[seed] - values[reference][seed] for seed in both]
        if name != reference and apart and all(map(math.isfinite, apart)):
            pairs[name] = apart
    found = dict(zip(pairs, at_once(list(pairs.values())), strict=True)) if pairs else {}
    return dict(sorted(found.items(), key=lambda pair: -pair[1].mean))


def objective_of(run: Run) -> str:
    """The objective that a run names, with its options; ``default`` where it names none.

    Whose classes count as true ones is no name's part.
    """
    chosen: Any = run.experiment.strategy.options.get("objective", DEFAULT)
    if isinstance(chosen, str):
        return chosen
    said = [f"{key} {value}" for key, value in chosen.items() if key not in ("name", "labels")]
    return ", ".join([str(chosen["name"]), *said])


def _methods(runs: Sequence[Run]) -> dict[str, dict[str, dict[int, Run]]]:
    """Runs by method, objective and seed."""
    found: dict[str, dict[str, dict[int, Run]]] = {}
    for run in runs:
        objective = objective_of(run)
        method, seed = run.experiment.strategy.name, run.experiment.seed
        seeds = found.setdefault(method, {}).setdefault(objective, {})
        if seed in seeds:
            raise FedkdError(
                f"{run.folder} and {seeds[seed].folder} are both of {method}, {objective} and seed "
                f"{seed}: give those of one setting"
            )
        seeds[seed] = run
    return found


def _panel(axes: Axes, found: Mapping[str, Interval]) -> None:
    """The differences of a panel, the first at the top."""
    axes.axvline(0.0, color="black", linewidth=0.8, zorder=1)
    for place, it in enumerate(found.values()):
        colour = TOLD["better" if it.low > 0 else "worse" if it.high < 0 else "not told"]
        if math.isfinite(it.low):
            axes.plot([it.low, it.high], [place, place], color=colour, linewidth=1.0)
        axes.plot([it.mean], [place], marker="o", linestyle="none", color=colour)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.grid(False, axis="y")


def _span(seeds: set[int]) -> str:
    low, high = min(seeds), max(seeds)
    return str(low) if low == high else f"{low} to {high}"
