"""Test accuracy against how unlike the clients' data are: a line per method."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedkd.plots import against
from fedkd.results import Run


def draw(runs: Sequence[Run], metric: str = "own_accuracy", stage: str = "fused") -> Figure:
    """Draw ``metric`` against ``data.alpha``, as ``against.draw`` does."""
    return against.draw(runs, "data.alpha", metric, stage)
