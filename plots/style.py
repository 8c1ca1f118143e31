"""What all figures share: widths, fonts, the look of a method, how a figure is written.

A method's look depends on its name alone, so it is the same in every figure, whatever else is
drawn. Methods of the field have places of their own in ``PLACES``, and arms of the canary study in
``ARMS``; any other name gets a place from its hash, with a hollow marker, so that it never looks
like one of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fedkd.results import FedkdError

COLUMN, PAGE = 3.5, 7.16
"""Widths in inches of a column and a page of a two-column paper."""

COLOURS = (
    "#0072b2",  # blue; these are Okabe and Ito's, told apart by colour-blind readers,
    "#d55e00",  # vermilion; with grey for their yellow, too pale for a line on white
    "#009e73",  # green
    "#cc79a7",  # pink
    "#e69f00",  # orange
    "#000000",  # black
    "#56b4e9",  # sky
    "#7f7f7f",  # grey
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
ABOVE = 0.15  # inches for a line of text over all panels
NOTES, SMALL, GREY = 3, 6.5, "#555555"
"""Lines of notes under a figure, the size of their print, its colour."""
TIED = "\u00a0=\u00a0"
BESIDE_TICKS = 0.78  # share of a panel's width that ticks and labels leave to it
LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)))

PLACES = (
    *("knfu", "fedmd", "dsfl", "uniform", "fedavg", "local", "fedprox", "feddistill"),
    *("fedd2s", "fedgkt", "fml", "feddf", "fedproto", "ditto", "swing"),
    *("fedavg-ft", "fedper", "fedrep", "ktpfl", "selectivefd"),
    *("lg-fedavg", "fedgh", "fedgkd", "comet", "fedbn", "fedbabu", "fedcache"),
    *("scarlet", "cfd"),
    "fedkd-svd",
    *("scaffold", "feddyn", "moon", "fedntd"),
    *("fedlc", "fedrod", "apfl"),
    *("fedtgp", "", "fedgen", "fedhkd", "dense", "fedmrl", "", "", "selfdistill"),
)
"""Only ever add at the end: a name's place is its look in all figures; an empty one is an arm's."""

ARMS = {
    "fkd": (5, 0),
    "fkd-1": (7, 0),
    "fkd-2": (7, 2),
    "fkd-4": (7, 4),
    "fkd-10": (7, 6),
    "fkd-20": (7, 8),
    "swing": (6, 4),
    "shuffled": (6, 1),
    "oracle": (6, 3),
    "constant": (6, 5),
    "mixing": (6, 7),
    "same": (6, 9),
    "same-squared": (6, 8),
    "noise": (1, 2),
    "swing-noise": (1, 0),
    "own": (1, 4),
    "argmax": (2, 1),
    "sample": (2, 3),
    "top-k": (2, 7),
    "dp-sgd": (3, 0),
    "clean": (4, 1),
    "fedavg": (4, 4),
}
"""Colour and marker of what ``fedkd canary`` calls its arms, in the order that figures show them.

Arms of a kind share a colour: plain labels at another temperature, temperatures by score, noise,
a single answer. Methods' numbers are both even or both odd; these are not, so that no arm looks
like a method, but for the two that are one.
"""

RC: Any = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 7,
    "axes.titlelocation": "left",
    "axes.titlecolor": "#555555",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "text.parse_math": False,  # names are somebody else's: a $ in one is a $
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # TrueType: publishers refuse matplotlib's own Type 3
    "savefig.dpi": 300,
}
styled = rc_context(RC)
"""Decorator: the function draws in this style and leaves matplotlib's settings as they were."""


def look(method: str, variant: int = 0) -> dict[str, Any]:
    """Colour, marker and line of ``method``, as keywords of ``Axes.plot``.

    Variants of one method in one figure (another beta, say) keep its colour, not marker and line.
    """
    if method in PLACES:
        colour = marker = PLACES.index(method)
        marker += 7 * (colour // 40)  # the pairs of colour and marker have come round by then
        line, hollow = colour // len(COLOURS), False
    elif method in ARMS:
        (colour, marker), line, hollow = ARMS[method], 0, False
    else:
        digest = int.from_bytes(hashlib.blake2b(method.encode(), digest_size=8).digest())
        digest, colour = divmod(digest, len(COLOURS))
        digest, marker = divmod(digest, len(MARKERS))
        line, hollow = digest % len(LINES), True
    shown = COLOURS[colour % len(COLOURS)]
    return {
        "color": shown,
        "marker": MARKERS[(marker + variant) % len(MARKERS)],
        "linestyle": LINES[(line + variant) % len(LINES)],
        "markerfacecolor": "white" if hollow else shown,
    }


def grid(
    panels: int,
    height: float,
    *,
    sharex: bool = False,
    sharey: Literal["row", "none"] = "row",
    columns: int = 0,
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, in rows, each row ``height`` inches: a column wide, or a page.

    ``columns`` are panels in a row, if not as many as :func:`columns_of` has it.
    """
    columns = columns or columns_of(panels)
    rows = -(-panels // columns)
    width = COLUMN if columns == 1 else PAGE
    figure = Figure(figsize=(width, rows * height + ABOVE * (panels > 1)))
    axes = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False).ravel()
    for spare in axes[panels:]:
        spare.remove()
    for place, panel in enumerate(axes[:panels]):
        panel.tick_params(labelbottom=not sharex or place + columns >= panels)
    return figure, list(axes[:panels])


def columns_of(panels: int) -> int:
    """Panels in a row, with few places left empty."""
    if panels <= 2 or panels == 4:
        return min(panels, 2)
    return 3 if panels <= 6 else 4


def outer(axes: Sequence[Axes], xlabel: str, ylabel: str) -> None:
    """Label the axes at the left and those with nothing below."""
    columns = _columns(axes)
    for place, panel in enumerate(axes):
        if place % columns == 0:
            panel.set_ylabel(ylabel)
        if place + columns >= len(axes):
            panel.set_xlabel(xlabel)


def _columns(axes: Sequence[Axes]) -> int:
    """Panels in a row of a grid."""
    layout = axes[0].get_gridspec()
    assert layout is not None
    return int(layout.ncols)


def titles(figure: Figure, axes: Sequence[Axes], each: Sequence[str], overall: str) -> None:
    """Write a panel's title over each, and ``overall`` over all; over one panel, both in one.

    Titles that are wider than their panel go on in another line.
    """
    room = BESIDE_TICKS * 72 * figure.get_figwidth() / _columns(axes)
    if len(axes) == 1:
        axes[0].set_title(wrapped("; ".join(filter(None, [each[0], overall])), room))
        return
    for panel, title in zip(axes, each, strict=True):
        panel.set_title(wrapped(title, room))
    if overall:
        figure.suptitle(overall, x=0.01, ha="left", fontsize=7, color="#555555")


def wrapped(text: str, room: float, size: float = RC["axes.titlesize"]) -> str:
    """``text`` as a title, in lines that are at most ``room`` points wide where words are."""
    lines, taken = [""], 0.0
    blank = text_width("n n", size) - 2 * text_width("n", size)
    for word in text.replace(" = ", TIED).split(" "):
        width = text_width(word, size)
        if lines[-1] and taken + blank + width > room:
            lines.append(word)
            taken = width
        else:
            taken += width + blank * bool(lines[-1])
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines).replace(TIED, " = ")


def legend(figure: Figure, axes: Sequence[Axes], *further: Artist) -> None:
    """Put a legend under everything, in as many columns as fit, and make the figure higher by it.

    Its entries are what has a label in ``axes``, each label once, and ``further`` handles.
    """
    shown: dict[str, Any] = {}
    for panel in axes:
        for handle, name in zip(*panel.get_legend_handles_labels()):
            shown.setdefault(name, handle)
    entries = [*shown.items(), *((str(handle.get_label()), handle) for handle in further)]
    size, room = RC["legend.fontsize"], 72 * figure.get_figwidth() - 8
    widths = np.array([text_width(name, size) for name, _ in entries]) + (3 + 0.8) * size
    columns = next(
        (
            count
            for count in range(len(entries), 1, -1)
            if sum(part.max() for part in np.array_split(widths, count)) + 1.4 * size * count
            <= room
        ),
        1,
    )
    figure.legend(
        [handle for _, handle in entries],
        [name for name, _ in entries],
        loc="outside lower center",
        ncols=columns,
        handlelength=3,
        columnspacing=1.4,
    )
    figure.set_figheight(figure.get_figheight() + 0.15 * -(-len(entries) // columns) + 0.1)


def footnote(figure: Figure, facts: str, notes: Sequence[str]) -> Figure:
    """Write ``facts`` and below them ``notes`` in small print under everything; the figure.

    The figure grows by what they take. Notes take three lines at most: a long one is cut short, and
    of many the last are counted.
    """
    # On a screen letters are set wider than they are: up to one part in twenty.
    room = 0.95 * (72 * figure.get_figwidth() - 8)
    if len(notes) > NOTES:
        more = f"and {len(notes) - NOTES + 1} more kinds of warnings: fedkd compare lists them all"
        notes = [*notes[: NOTES - 1], more]
    lines, left = wrapped(facts, room, SMALL).split("\n"), NOTES
    for place, note in enumerate(notes):
        found = wrapped(note, room - 2 * SMALL, SMALL).split("\n")
        allowed = left - (len(notes) - place - 1)
        if len(found) > allowed:
            found = [*found[: allowed - 1], f"{found[allowed - 1]} …"]
        left -= len(found)
        lines += found
    below = (1.25 * SMALL * len(lines) + 4) / 72
    height = figure.get_figheight() + below
    figure.set_figheight(height)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0.0, below / height, 1.0, 1 - below / height))
    for outside in figure.legends:
        outside.borderaxespad += 72 * below / RC["legend.fontsize"]
    figure.text(
        4 / 72 / figure.get_figwidth(),
        3 / 72 / height,
        "\n".join(lines),
        ha="left",
        va="bottom",
        fontsize=SMALL,
        linespacing=1.25,
        color=GREY,
        in_layout=False,
    )
    return figure


@cache
def text_width(text: str, size: float) -> float:
    """Points that a line of text takes at ``size`` points."""
    return float(TextPath((0, 0), text, size=size).get_extents().width) if text.strip() else 0.0


def percent(axes: Sequence[Axes]) -> None:
    """Let axes of percentages end where percentages do, once all is drawn."""
    for panel in axes:
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, -1.0), min(high, 101.0))


def numeric(axes: Axes, values: Sequence[float], log: bool) -> None:
    """An x axis with ticks at ``values``, which rise; a log one where it is ``log``."""
    low, high = values[0], values[-1]
    if log:
        axes.set_xscale("log")
        ratio = (high / low) ** 0.08 if high > low else 2.0
        axes.set_xlim(low / ratio, high * ratio)
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def thin(figure: Figure, axes: Sequence[Axes], gap: float = 3.0) -> None:
    """Drop ticks of x axes whose labels would come closer than ``gap`` points to their left one."""
    figure.draw_without_rendering()
    for panel in axes:
        kept: list[float] = []
        edge = -np.inf
        low, high = panel.get_xlim()
        said = panel.xaxis.get_major_formatter()
        for tick in panel.get_xticks():
            half = text_width(said(tick), RC["xtick.labelsize"]) / 2
            middle = panel.transData.transform((tick, 1.0))[0] * 72 / figure.dpi
            if low <= tick <= high and middle - half >= edge + gap:
                kept.append(float(tick))
                edge = middle + half
        panel.xaxis.set_major_locator(FixedLocator(kept))


def size_of(count: float, _: Any = None) -> str:
    """Bytes in a unit that suits them: the text of a tick."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor * 0.9995:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.3g} B"


@styled
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` (300 dpi) and ``stem.pdf`` (embedded TrueType) and return their paths.

    Raises
    ------
    FedkdError
        The files cannot be written.
    """
    name = stem.stem if stem.suffix in (".png", ".pdf") else stem.name
    if not name.strip("."):
        raise FedkdError(f"the figure cannot be written: {stem} is not the name of a file")
    files = [stem.with_name(f"{name}.{kind}") for kind in ("png", "pdf")]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            # Without the date, the same run gives the same file.
            metadata = {"CreationDate": None} if file.suffix == ".pdf" else {}
            figure.savefig(file, metadata=metadata)
    except OSError as error:
        raise FedkdError(f"the figure cannot be written: {error}") from error
    return files
