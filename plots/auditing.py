"""How near an audit of DP-SGD comes to its formal epsilon: both against the noise multiplier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fedkd.plots.gather import Line, lines, noted
from fedkd.plots.style import grid, legend, numeric, outer, styled, thin, titles
from fedkd.results import FedkdError, Run

NOISE = "training.dp.noise_multiplier"
GREY = "#555555"
FORMAL, IF_GAUSSIAN, AUDITED = "formal ε", "audited ε if noise is Gaussian", "audited ε"
CURVES: dict[str, dict[str, Any]] = {
    FORMAL: {"linestyle": "-", "marker": ""},
    IF_GAUSSIAN: {"linestyle": ":", "markersize": 3},
    AUDITED: {"linestyle": "--"},
}
"""How each kind of epsilon is drawn."""


@styled
def draw(runs: Sequence[Run]) -> Figure:
    """Draw formal and audited epsilon of DP-SGD against its noise multiplier, on log axes.

    A method or setting has a colour and three lines: what the ledger's noisy steps compose to, what
    gradient canaries prove, and what they prove if the noise is Gaussian. Epsilons are at the delta
    of ``training.dp``. Lines join means over seeds; where nothing is proved there is no point.

    Raises
    ------
    FedkdError
        A run was not audited with ``--gradient-canaries``.
    """
    for run in runs:
        if not (run.audit or {}).get("gradient_canaries"):
            raise FedkdError(
                f"{run.folder} was not audited by gradient canaries: fedkd audit {run.folder} "
                "--gradient-canaries"
            )
    methods = lines(runs, (NOISE,))
    figure, (axes,) = grid(1, 2.4)
    numeric(axes, sorted({_audit(run)["noise_multiplier"] for run in runs}), log=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for line in methods:
        _draw(axes, line)
    outer([axes], "Noise multiplier", "ε of a record")
    titles(figure, [axes], [""], "")
    legend(figure, [axes], *(_handle(name) for name in CURVES))
    thin(figure, [axes])
    return noted(figure, [(line.label, line.runs) for line in methods])


def _audit(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = (run.audit or {})["gradient_canaries"]
    return found


def _handle(name: str) -> Line2D:
    """A line of the legend that says what a kind of epsilon looks like."""
    return Line2D([], [], **{"color": GREY, "marker": "o"} | CURVES[name], label=name)


def _draw(axes: Axes, line: Line) -> None:
    """The lines of a method, each the mean over seeds at each noise multiplier."""
    by_noise: dict[float, list[dict[str, Any]]] = {}
    for run in line.runs:
        by_noise.setdefault(_audit(run)["noise_multiplier"], []).append(_audit(run))
    noises = sorted(by_noise)
    for name, style in CURVES.items():
        means = [fmean(_epsilon(one, name) for one in by_noise[noise]) for noise in noises]
        shown = [mean if mean > 0 else math.nan for mean in means]
        label = line.label if name == FORMAL else None
        axes.plot(noises, shown, **line.style | style, label=label)


def _epsilon(audit: dict[str, Any], name: str) -> float:
    stated = audit["bounds"][0]
    if name == FORMAL:
        return float(stated["formal"])
    if name == AUDITED:
        return float(stated["epsilon"])
    return float(audit["epsilon_as_sampled_gaussian"] or 0.0)
