"""What canary images look like: blocks of random colours, unlike any picture.

Where a secret is the labels of images, each image has colours of its own (:func:`random_blocks`).
Where the secret is an image, all secrets share an :class:`ImageTemplate`: blocks that everybody
knows, and some that are black or white as the secret has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.random import key

BLOCKS = 4
"""Canary images are this many blocks high and wide, or more where a secret takes more."""
BLACK_AND_WHITE = (0, 255)
"""Grey levels of the blocks that hold a secret."""


def random_blocks(seed: int, owner: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Images ``(count, H, W, C)`` uint8 of random blocks, no two the same."""
    channels, *size = shape
    rng = np.random.default_rng(key(seed, "canary", "images", owner))
    blocks = rng.integers(256, size=(count, BLOCKS, BLOCKS, channels), dtype=np.uint8)
    rows, columns = _grid(BLOCKS, size)
    return torch.from_numpy(blocks[:, rows][:, :, columns])


@dataclass(frozen=True)
class ImageTemplate:
    """A public image with slots: blocks that each hold one symbol of a secret.

    Parameters
    ----------
    background : Tensor
        ``(H, W, C)`` uint8; what it has in the slots does not count.
    slots : Tensor
        ``(H, W)`` int64: which symbol a pixel shows, -1 where it is the background.
    """

    background: Tensor
    slots: Tensor

    @classmethod
    def draw(cls, seed: int, shape: tuple[int, ...], length: int) -> ImageTemplate:
        """The template of a run: ``length`` slots, and blocks of random colours around them.

        Raises
        ------
        FedkdError
            The images have too few pixels.
        """
        channels, *size = shape
        side = max(BLOCKS, math.ceil(math.sqrt(length)))
        if side > min(size):
            raise FedkdError(
                f"canary.length = {length} is too many for images of {size[0]}x{size[1]}: a secret "
                f"takes a block of at least one pixel for each symbol; allowed: at most "
                f"{min(size) ** 2}"
            )
        rng = np.random.default_rng(key(seed, "canary", "template"))
        colours = rng.integers(256, size=(side, side, channels), dtype=np.uint8)
        slots = np.full(side * side, -1)
        slots[np.sort(rng.permutation(side * side)[:length])] = np.arange(length)
        rows, columns = _grid(side, size)
        placed = slots.reshape(side, side)[rows][:, columns]
        return cls(torch.from_numpy(colours[rows][:, columns]), torch.from_numpy(placed))

    def filled(self, levels: Tensor) -> Tensor:
        """Images ``(B, H, W, C)`` uint8 whose slots have the grey levels ``(B, L)``."""
        images = self.background.repeat(len(levels), 1, 1, 1)
        there = self.slots >= 0
        images[:, there] = levels[:, self.slots[there], None].to(torch.uint8)
        return images


def _grid(side: int, size: list[int]) -> list[np.ndarray]:
    """Which of ``side`` blocks each row and each column of an image is in."""
    return [np.arange(pixels) * side // pixels for pixels in size]
