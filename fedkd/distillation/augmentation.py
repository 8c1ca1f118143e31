"""Mixtures of samples that teachers and students are asked about, every draw from one generator."""

from __future__ import annotations

import torch
from torch import Tensor


def partners(count: int, generator: torch.Generator, share: float = 1.0) -> Tensor:
    """With which of ``count`` samples each is mixed, ``(M,)``: itself where it stays as it is.

    ``round(share * count)`` samples, drawn without replacement, are given one of all samples. In
    Choi et al. 2023 those that stay are drawn with replacement, and fewer stay than is asked for.
    """
    own = torch.arange(count)
    drawn = torch.randperm(count, generator=generator)
    mixed = torch.randperm(count, generator=generator)[: round(share * count)]
    return own.index_copy(0, mixed, drawn[mixed])


def shares(count: int, beta: float, generator: torch.Generator) -> Tensor:
    """``(M,)`` float64 numbers of a Beta(beta, beta) law: what a sample keeps of itself."""
    # A Beta number from two of the Gamma law; torch's own draws take no generator.
    gamma = torch._standard_gamma(
        torch.full((2, count), beta, dtype=torch.float64), generator=generator
    ).clamp_min(1e-300)
    return gamma[0] / gamma.sum(0)


def mixup(inputs: Tensor, other: Tensor, kept: Tensor) -> Tensor:
    """``kept * inputs + (1 - kept) * inputs[other]``, samples ``(M, ...)`` in floats.

    Zhang et al. 2018; ``other`` ``(M,)`` has numbers of samples and ``kept`` ``(M,)`` shares.
    """
    weights = kept.to(inputs).view(-1, *[1] * (inputs.dim() - 1))
    return inputs.lerp(inputs[other], 1 - weights)


def cutmix(
    images: Tensor, other: Tensor, kept: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images ``(M, C, H, W)`` with a rectangle of another each, and the share kept of each, (M,).

    The rectangle has the shape of the image and ``1 - kept`` of its area, its middle anywhere in
    the image; what lies outside is cut off, and the share is what is left (Yun et al. 2019).
    """
    count, _, height, width = images.shape
    side = (1 - kept.double()).sqrt()
    inside = []
    for size in (height, width):
        middle = torch.randint(size, (count,), generator=generator)
        half = (side * size / 2).round().long()
        places = torch.arange(size)
        first, last = (middle - half)[:, None], (middle + half)[:, None]
        inside.append((places >= first) & (places < last))
    pasted = (
        inside[0][:, :, None]
        & inside[1][:, None, :]
        & (other != torch.arange(count))[:, None, None]
    )
    mixed = torch.where(pasted[:, None].to(images.device), images[other], images)
    return mixed, 1 - pasted.double().mean((1, 2))
