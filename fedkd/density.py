"""Which samples are like given ones: the ratio of their density to that of uniform noise.

KuLSIF (Kanamori, Suzuki & Sugiyama, Machine Learning 86, 2012): of a Gaussian kernel k, known
samples x ``(m, d)`` and noise u ``(n, d)``::

    r(v) = 1/(lambda m) sum_j k(v, x_j) + sum_i a_i k(v, u_i)
    (K/n + lambda I) a = -1/(lambda n m) sum_j k(u, x_j),   K = k(u, u'),   lambda = n^(-1/2)

It minimises ``1/2 mean r(u)^2 - mean r(x) + lambda/2 |r|^2`` over the kernel's functions r.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NOISE = 250
"""Rows of noise, as in the public code of Selective-FD."""
MOST = 500
"""Known samples that a ratio is estimated from, and that its threshold is taken from, at most."""


def alike(
    samples: Tensor, own: Tensor, width: float, quantile: float, draw: torch.Generator
) -> Tensor:
    """Which of ``samples`` ``(M, ...)`` are like one's ``own`` ``(K, ...)``: ``(M,)`` bool.

    Those whose density ratio, estimated from one half of ``own``, is above a quantile of the
    ratios of the other half (Shao, Wu & Zhang 2024). All are, where the own samples are not two
    that differ.

    Parameters
    ----------
    width
        Of the kernel, as a share of the median distance between two of the known samples.
    quantile
        Share of the other half that lies at or below the threshold.
    draw
        Draws the halves, and the noise: uniform over the range of ``samples``.
    """
    order = torch.randperm(len(own), generator=draw).to(own.device)
    own, samples = (rows.flatten(1).double() for rows in (own[order], samples))
    known, held_out = own[: (len(own) + 1) // 2][:MOST], own[(len(own) + 1) // 2 :][:MOST]
    scale = float(torch.pdist(known).median()) if len(known) > 1 else 0.0
    if not scale or not len(samples):
        return torch.ones(len(samples), dtype=torch.bool, device=samples.device)
    noise = torch.rand(NOISE, samples.shape[1], generator=draw, dtype=torch.float64).to(samples)
    noise = samples.min() + (samples.max() - samples.min()) * noise
    ratio = density_ratio(known, noise, width * scale)
    return ratio(samples) > ratio(held_out).quantile(quantile)


def density_ratio(known: Tensor, noise: Tensor, width: float) -> Callable[[Tensor], Tensor]:
    """The ratio r of the densities of ``known`` ``(m, d)`` and ``noise`` ``(n, d)``: KuLSIF.

    The function that is returned takes rows ``(M, d)`` and gives ``(M,)``.
    """
    penalty, count = len(noise) ** -0.5, len(noise)
    matrix = kernel(noise, noise, width) / count
    matrix.diagonal().add_(penalty)
    right = -kernel(noise, known, width).mean(1) / (penalty * count)
    weights = torch.linalg.solve(matrix, right)

    def ratio(rows: Tensor) -> Tensor:
        near = kernel(rows, known, width).mean(1) / penalty
        return near + kernel(rows, noise, width) @ weights

    return ratio


def kernel(one: Tensor, other: Tensor, width: float) -> Tensor:
    """Gaussian kernel ``exp(-|v - w|^2 / (2 width^2))`` of rows: ``(M, n)``."""
    return (-(torch.cdist(one, other) / width).square() / 2).exp()
