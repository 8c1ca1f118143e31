"""Random crops and flips, every draw from one generator."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(inputs: Tensor, generator: torch.Generator, flip: bool = True) -> Tensor:
    """Shift every image at random and, if ``flip``, mirror half of them.

    The crop is that of the usual CIFAR recipe: images are padded by 4 pixels, tiny ones by an
    eighth of their side, and cut back to their size at a random place. Padding is 0, the mean of
    normalised inputs.

    Parameters
    ----------
    inputs : Tensor
        ``(B, C, H, W)`` normalised images.
    generator : torch.Generator
        Every draw comes from here, one of each kind a sample.
    flip : bool
        Whether left and right may be swapped; not for digits and letters, which it turns into
        others.

    Returns
    -------
    Tensor
        ``(B, C, H, W)`` with channels-last strides.
    """
    batch, _, height, width = inputs.shape
    pad_y, pad_x = (min(4, max(1, side // 8)) for side in (height, width))

    def draw(choices: int) -> Tensor:
        drawn = torch.randint(choices, (batch, 1), generator=generator, device=generator.device)
        return drawn.to(inputs.device)

    rows = draw(2 * pad_y + 1) + torch.arange(height, device=inputs.device)
    columns = torch.arange(width, device=inputs.device).expand(batch, width)
    shift = draw(2 * pad_x + 1)
    if flip:
        columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    columns = columns + shift
    padded = torch.nn.functional.pad(inputs, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1)
    samples = torch.arange(batch, device=inputs.device)[:, None, None]
    return padded[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
