"""A data set: samples and labels, the same each time."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from fedkd.data.dataset import Dataset, Part

CLASSES = ("inner", "second", "third", "outer")


def rings(folder: Path | None, download: bool) -> Dataset:
    """Points of the plane on four rings, with noise; made up, no files are needed."""
    return Dataset("rings", _points(2_000, 0), _points(800, 1), CLASSES)


def _points(count: int, seed: int) -> Part:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    angle = 2 * math.pi * torch.rand(count, generator=draw)
    radius = 1 + labels + 0.1 * torch.randn(count, generator=draw)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)  # (n, 2)
    return Part(points, labels)
