"""Test accuracy against how much data a client has: a line per method, a panel an alpha."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedkd.results import Run
from plots import against


def draw(runs: Sequence[Run], metric: str = "own_accuracy", stage: str = "fused") -> Figure:
    """Draw ``metric`` against ``data.samples_per_client``, as :func:`plots.against.draw` does."""
    return against.draw(runs, "data.samples_per_client", metric, stage)
