"""Test accuracy against how unlike the clients' data are: a line per method."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedkd.results import Run
from plots import against


def draw(runs: Sequence[Run], metric: str = "own_accuracy", stage: str = "fused") -> Figure:
    """Draw ``metric`` against ``data.alpha``, as :func:`plots.against.draw` does."""
    return against.draw(runs, "data.alpha", metric, stage)
