"""Test accuracy against how much data a client has: a line per method, a panel an alpha."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedkd.plots import against
from fedkd.results import Run


def draw(runs: Sequence[Run], metric: str = "own_accuracy", stage: str = "fused") -> Figure:
    """Draw ``metric`` against ``data.samples_per_client``, as ``against.draw`` does."""
    return against.draw(runs, "data.samples_per_client", metric, stage)
