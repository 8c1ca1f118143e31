"""What all figures share: widths, fonts, the look of a method, how a figure is written.

A method's look depends on its name alone, so it is the same in every figure, whatever else is
drawn. Methods of the field have places of their own in ``PLACES``, and arms of the canary study in
``ARMS``; any other name gets a place from its hash, with a hollow marker, so that it never looks
like one of these.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

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
LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)))

PLACES = (
    *("knfu", "fedmd", "dsfl", "uniform", "fedavg", "local", "fedprox", "feddistill"),
    *("fedd2s", "fedgkt", "fml", "feddf", "fedproto", "ditto", "swing"),
    *("fedavg-ft", "fedper", "fedrep", "ktpfl"),
)
"""Only ever add at the end: a name's place is its look in all figures."""

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


@styled
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` (300 dpi) and ``stem.pdf`` (embedded TrueType) and return their paths.

    Raises
    ------
    FedkdError
        The files cannot be written.
    """
    name = stem.stem if stem.suffix in (".png", ".pdf") else stem.name
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
