"""A student: a sequence of named blocks."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from torch import nn


def tower(shape: tuple[int, ...], classes: int, norm: str, width: float) -> nn.Sequential:
    """Two hidden layers of 32 units; ``norm`` has no effect."""
    units = max(1, round(32 * width))
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), units), nn.ReLU()),
            fc2=nn.Sequential(nn.Linear(units, units), nn.ReLU()),
            head=nn.Linear(units, classes),
        )
    )
