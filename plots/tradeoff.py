"""What a release costs and what it hides: utility against excess exposure, a point an arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fedkd.errors import nearest
from fedkd.plots.exposure import DASHES, GREY, NULL, WORDS, Arm, arms
from fedkd.plots.gather import noted
from fedkd.plots.style import COLUMN, PAGE, styled
from fedkd.results import PLACES, FedkdError, Run
from fedkd.summaries import exposure, utility, utility_name

PLAIN = "fkd"
LESS, WORSE = 0.8, 0.05
"""The region: at least this share less excess exposure than plain, at most this share worse."""
IN_A_COLUMN = 8  # arms; more take a page's width
MOST = 30  # arms whose names still fit a page
REACH = 1.0  # ranges of means that intervals widen an axis by; longer ones run out of the axes
SHADE = "#009e7322"
RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 8.5,
    "markerfacecolor": "none",
    "markeredgewidth": 0.8,
    "color": "#222222",
}
"""Around the plain arm."""
DARKER = 0.6  # names are of their arm's colour, dark enough to read
RINGS, WAYS = (5.0, 8.0, 12.0, 17.0, 24.0, 32.0, 42.0, 54.0, 68.0), 16
"""Where a name may stand: points from its point, and directions."""
TIED = 8.0  # points; a name further from its point is tied to it by a line
STEPS = [1, 2, 2.5, 5, 10]  # between ticks of perplexity
SWEEPS = 6  # at most: names soon stay where they are
MARKER = 3.5  # points from the middle of a marker that names keep off
HARD, SOFT = 20.0, 1.0
"""Points of distance that a square point of a marker or a name, or of a bar, is worth to miss."""
OWN, CLEAR = 2.0, 4.0
"""A name stands closer to its own point than to others, by so many points."""


@dataclass(frozen=True)
class Spot:
    """Where an arm stands: mean, low and high end on each axis; NaN where there is no interval."""

    arm: Arm
    x: tuple[float, float, float]
    y: tuple[float, float, float]


@styled
def draw(runs: Sequence[Run], place: str = "student", repeats: int | None = None) -> Figure:
    """Draw utility against exposure over that of secrets nobody has seen: a point an arm.

    Exposure is the mean over secrets and seeds, utility that over seeds; bars are 95 % intervals.
    Where there is one plain arm, the region of a much smaller excess at nearly its utility is
    shaded.

    Parameters
    ----------
    runs
        Finished runs with canaries.
    place
        Where exposure is measured: teacher, released, fused, student.
    repeats
        Secrets repeated so often; the highest level that all arms have when not given.

    Raises
    ------
    FedkdError
        A run has not ended or has no measured exposure; no arm was measured at ``place``, or not
        all of them with ``repeats``; runs differ in what utility is; there are too many arms.
    """
    found = arms(runs)
    if len(found) > MOST:
        raise FedkdError(f"{len(found)} arms do not fit into one figure; allowed: {MOST}")
    kind = _kind(found)
    here, level = _measured(found, place, repeats)
    spots = [_spot(arm, place, level, kind) for arm in here]
    width = COLUMN if len(spots) <= IN_A_COLUMN else PAGE
    figure = Figure(figsize=(width, 3.1 if width == COLUMN else 4.2))
    axes = figure.add_subplot()
    better = {"perplexity": "← better", "accuracy": "better →"}[kind]
    unit = {"perplexity": "Perplexity", "accuracy": "Test accuracy (%)"}[kind]
    axes.set_ylabel(f"{unit}   {better}")
    axes.set_xlabel("← leaks less   Excess exposure (bits)")
    plain = [spot for spot in spots if spot.arm.name == PLAIN]
    baseline = plain[0] if len(plain) == 1 else None
    _limits(axes, spots, kind, baseline)
    handles: list[Artist] = [axes.axvline(0, color=GREY, linewidth=0.8, linestyle=DASHES, zorder=1)]
    none = f"no excess: {NULL:.2f} bits, as of a secret nobody has seen"
    if place in ("released", "fused"):
        none = f"{NULL:.2f} bits; of {place} labels of unseen secrets it is another (fedkd canary)"
    handles[0].set_label(none)
    if baseline is not None and baseline.x[0] > 0:
        handles.append(_region(axes, baseline, kind))
    for spot in sorted(spots, key=lambda spot: spot in plain):
        _point(axes, spot)
    for spot in plain:
        axes.plot(spot.x[0], spot.y[0], **RING)
    axes.set_title(_title(found, here, place, level))
    figure.legend(handles=handles, loc="outside lower center", ncols=1 if width == COLUMN else 2)
    _name(axes, spots)
    return noted(figure, [(spot.arm.label, spot.arm.runs) for spot in spots])


def _kind(found: list[Arm]) -> str:
    """What utility is: the same for all runs."""
    kinds = {utility_name(run): run for arm in found for run in arm.runs}
    if len(kinds) > 1:
        said = " and ".join(f"{kind} ({run.folder})" for kind, run in sorted(kinds.items()))
        raise FedkdError(f"runs that are compared at {said} do not fit into one figure")
    return next(iter(kinds))


def _measured(found: list[Arm], place: str, repeats: int | None) -> tuple[list[Arm], int]:
    """The arms that were measured at ``place``, and the level of repeats to show."""
    places = [name for name in PLACES if any(name in arm.measured for arm in found)]
    if place not in places:
        raise FedkdError(
            f"place {place!r} was not measured{nearest(place, places)}; measured: "
            f"{', '.join(places)}"
        )
    here = [arm for arm in found if place in arm.measured]
    levels = sorted(set.intersection(*(set(arm.measured[place]) for arm in here)))
    if repeats is None and levels:
        return here, levels[-1]
    if repeats is None or repeats not in levels:
        wanted = "any number of repeats" if repeats is None else f"repeats = {repeats}"
        raise FedkdError(
            f"{wanted} was not measured in all runs; measured: "
            f"{', '.join(map(str, levels)) or 'none in all'}"
        )
    return here, repeats


def _spot(arm: Arm, place: str, level: int, kind: str) -> Spot:
    secrets = exposure(arm.runs, place, level)
    assert secrets is not None
    factor = 100 if kind == "accuracy" else 1
    over_seeds = np.array([factor * utility(run) for run in arm.runs])
    middle, half = float(over_seeds.mean()), math.nan
    if len(over_seeds) > 1:
        from scipy import stats

        error = over_seeds.std(ddof=1) / len(over_seeds) ** 0.5
        half = float(stats.t.ppf(0.975, len(over_seeds) - 1) * error)
    x = (secrets.mean - NULL, secrets.low - NULL, secrets.high - NULL)
    return Spot(arm, x, (middle, middle - half, middle + half))


def _title(found: list[Arm], here: list[Arm], place: str, level: int) -> str:
    """Where exposure was measured, of what, and who is missing."""
    seeds = {arm.seeds for arm in here}
    said = [f"{WORDS.get(place, place)}, {level} repeat{'s' * (level > 1)}"]
    if max(seeds) > 1:
        fewest = f"{min(seeds)} to " if len(seeds) > 1 else ""
        said.append(f"{fewest}{max(seeds)} seeds")
    lines = [f"{', '.join(said)}; bars: 95 % intervals"]
    if missing := [arm.label for arm in found if arm not in here]:
        lines.append(f"not measured there: {', '.join(missing)}")
    return "\n".join(lines)


# --- the axes -----------------------------------------------------------------------------------


def _limits(axes: Axes, spots: list[Spot], kind: str, plain: Spot | None) -> None:
    """Scales and limits: all means, 0 excess and the region; intervals as far as they may reach."""
    axes.set_xlim(*_reach(np.array([spot.x for spot in spots]), [0.0]))
    heights = np.array([spot.y for spot in spots])
    edge = [] if plain is None else [_edge(plain, kind)]
    if kind == "accuracy":
        axes.set_ylim(*_reach(heights, edge))
        return
    axes.set_yscale("log")
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = _reach(np.log(np.maximum(heights, 0)), list(np.log(edge)))
    axes.set_ylim(math.exp(low), math.exp(high))
    wide = high - low > math.log(5)
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6, steps=STEPS)
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _reach(ends: np.ndarray, others: list[float]) -> tuple[float, float]:
    """Limits for means and ends ``(n, 3)`` of intervals, and for other values."""
    means = np.concatenate([ends[:, 0], others])
    finite = ends[np.isfinite(ends)]
    most = REACH * float(np.ptp(means)) or float(np.ptp(finite)) or 0.1 * abs(means[0]) or 1.0
    ends = np.clip(finite, means.min() - most, means.max() + most)
    low, high = min(means.min(), ends.min()), max(means.max(), ends.max())
    margin = 0.08 * (high - low or most)
    return float(low - margin), float(high + margin)


def _edge(plain: Spot, kind: str) -> float:
    """The utility that is just good enough for the region."""
    return plain.y[0] * (1 + WORSE if kind == "perplexity" else 1 - WORSE)


def _region(axes: Axes, plain: Spot, kind: str) -> Rectangle:
    """Shade where the excess is so much less than that of plain, at nearly its utility."""
    (left, _), limits = axes.get_xlim(), axes.get_ylim()
    edge = _edge(plain, kind)
    end = limits[0] if kind == "perplexity" else limits[1]
    label = f"≥ {100 * LESS:.0f} % less excess than {PLAIN}, ≤ {100 * WORSE:.0f} % worse {kind}"
    size = ((1 - LESS) * plain.x[0] - left, abs(edge - end))
    region = Rectangle((left, min(edge, end)), *size, facecolor=SHADE, zorder=0.5, label=label)
    axes.add_patch(region)
    return region


def _point(axes: Axes, spot: Spot) -> None:
    """The arm's marker over its intervals."""
    bars = [[[at[0] - at[1]], [at[2] - at[0]]] for at in (spot.x, spot.y)]
    _, caps, lines = axes.errorbar(
        spot.x[0],
        spot.y[0],
        xerr=bars[0],
        yerr=bars[1],
        label=spot.arm.label,
        elinewidth=0.8,
        capsize=1.5,
        capthick=0.8,
        **spot.arm.style | {"linestyle": "none", "markersize": 4.5},
    )
    for line in (*caps, *lines):
        line.set_alpha(0.6)


# --- names ----------------------------------------------------------------------------------------


def _name(axes: Axes, spots: list[Spot]) -> None:
    """Write each arm's name where it covers no marker and no other name, close to its point."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    texts = [
        axes.annotate(
            f"{spot.arm.label} (plain)" if spot.arm.name == PLAIN else spot.arm.label,
            (spot.x[0], spot.y[0]),
            (0, TIED),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            fontweight="bold" if spot.arm.name == PLAIN else "normal",
            color=tuple(DARKER * np.array(to_rgb(spot.arm.style["color"]))),
            in_layout=False,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkB": 2.5},
        )
        for spot in spots
    ]
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    sizes = points * np.array([Text.get_window_extent(text).size for text in texts])
    at = points * axes.transData.transform([(spot.x[0], spot.y[0]) for spot in spots])
    frame = points * np.array(axes.bbox.extents)
    bars = np.concatenate([points * _bars(axes, spot) for spot in spots])
    for text, offset, size in zip(texts, _offsets(at, sizes, frame, bars), sizes):
        text.set_position(tuple(offset))
        assert text.arrow_patch is not None
        text.arrow_patch.set_visible(bool(_away(offset, size) > TIED))


def _bars(axes: Axes, spot: Spot) -> np.ndarray:
    """Boxes ``(2, 4)`` in pixels around the intervals: left, bottom, right, top."""
    (x, *wide), (y, *high) = [np.nan_to_num(ends, nan=ends[0]) for ends in (spot.x, spot.y)]
    if axes.get_yscale() == "log":
        high = list(np.maximum(high, axes.get_ylim()[0]))
    ends = axes.transData.transform([(wide[0], y), (wide[1], y), (x, high[0]), (x, high[1])])
    return np.array([(*ends[0] - 1, *ends[1] + 1), (*ends[2] - 1, *ends[3] + 1)])


def _offsets(at: np.ndarray, sizes: np.ndarray, frame: np.ndarray, bars: np.ndarray) -> np.ndarray:
    """Where the middle of each name stands from its point, in points.

    Names take turns, each the place that is best beside where the others are, until none moves.

    Parameters
    ----------
    at : np.ndarray
        ``(n, 2)``: the points.
    sizes : np.ndarray
        ``(n, 2)``: width and height of the names.
    frame : np.ndarray
        ``(4,)``: left, bottom, right and top, which names stay within.
    bars : np.ndarray
        ``(m, 4)``: boxes of the intervals, which names avoid where they can.
    """
    turns = 2 * np.pi * np.arange(WAYS) / WAYS
    ways = np.stack([np.cos(turns), np.sin(turns)], 1)
    corners = np.clip(1.5 * ways, -1, 1)
    choices = [
        np.concatenate([ring * ways + size / 2 * corners for ring in RINGS]) for size in sizes
    ]
    chosen = np.stack([options[0] for options in choices])
    markers = np.concatenate([at - MARKER, at + MARKER], 1)
    along = np.linspace(0.1, 0.9, 9)[:, None]
    for sweep in range(SWEEPS):
        before = chosen.copy()
        for n, options in enumerate(choices):
            # In the first sweep there are only the names that have had a turn.
            others = [k for k in range(len(at) if sweep else n) if k != n]
            boxes = _boxes(at[n] + options, sizes[n] + 2)
            names = _boxes(at[others] + chosen[others], sizes[others])
            ties = np.array([along * chosen[k] + at[k] for k in others]).reshape(-1, 2)
            line = at[n] + along * options[:, None]
            away = _away(options, sizes[n])
            rivals = _between(np.delete(at, n, 0), boxes).min(1, initial=np.inf)
            cost = away + SOFT * _shared(boxes, bars).sum(1)
            cost += OWN * np.maximum(away + CLEAR - rivals, 0)
            cost += HARD * _shared(boxes, np.concatenate([markers, names])).sum(1)
            cost += HARD * (np.prod(sizes[n] + 2) - _shared(boxes, frame[None])[:, 0])
            cost += HARD * _inside(ties, boxes[:, None]).sum(1)
            crossed = np.concatenate([np.delete(markers, n, 0), names])
            cost += HARD * (away > TIED) * _inside(line[:, :, None], crossed).sum((1, 2))
            chosen[n] = options[int(cost.argmin())]
        if (chosen == before).all():
            break
    return chosen


def _boxes(middles: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes ``(..., 4)`` of ``sizes`` around ``middles``: left, bottom, right, top."""
    return np.concatenate([middles - sizes / 2, middles + sizes / 2], -1)


def _shared(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area ``(a, b)`` that each of ``some`` boxes ``(a, 4)`` shares with each of the others."""
    low = np.maximum(some[:, None, :2], others[:, :2])
    high = np.minimum(some[:, None, 2:], others[:, 2:])
    return np.prod(np.maximum(high - low, 0), -1)


def _between(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Distance ``(b, p)`` of points ``(p, 2)`` from boxes ``(b, 4)``, 0 inside."""
    low, high = boxes[:, None, :2] - points, points - boxes[:, None, 2:]
    return np.hypot(*np.moveaxis(np.maximum(np.maximum(low, high), 0), -1, 0))


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which points ``(..., 2)`` lie in which boxes ``(..., 4)``."""
    return np.all((points > boxes[..., :2]) & (points < boxes[..., 2:]), axis=-1)


def _away(offsets: np.ndarray, size: np.ndarray) -> np.ndarray:
    """How far from their point the edges of names are whose middles are at ``offsets``."""
    return np.hypot(*np.maximum(abs(offsets) - size / 2, 0).T)
