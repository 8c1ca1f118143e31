"""Pairwise divergences between class distributions, in nats: how unlike clients are.

``(N, C)`` probabilities give the ``(N, N)`` matrix d(n, m), in float64. Probabilities are clipped
at 1e-8 and scaled to sum to 1 again, so that no divergence is negative beyond rounding, and those
of equal distributions are exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def kl(distributions: Tensor) -> Tensor:
    """KL(P_n || P_m)."""
    clipped = _clipped(distributions)
    logs = clipped.log()
    return torch.stack([(p * (log - logs)).sum(-1) for p, log in zip(clipped, logs)])


def reverse_kl(distributions: Tensor) -> Tensor:
    """KL(P_m || P_n)."""
    return kl(distributions).T.contiguous()


def symmetric_kl(distributions: Tensor) -> Tensor:
    """Mean of KL(P_n || P_m) and KL(P_m || P_n): half of Jeffreys' divergence."""
    forward = kl(distributions)
    return (forward + forward.T) / 2


def jensen_shannon(distributions: Tensor) -> Tensor:
    """Mean KL of P_n and P_m to their mixture, at most ln 2 (Lin 1991)."""
    clipped = _clipped(distributions)
    logs = clipped.log()
    rows = []
    for p, log in zip(clipped, logs):
        mixture = ((p + clipped) / 2).log()
        rows.append((p * (log - mixture) + clipped * (logs - mixture)).sum(-1) / 2)
    return torch.stack(rows)


DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "jensen_shannon": jensen_shannon,
}


def _clipped(distributions: Tensor) -> Tensor:
    clipped = distributions.to(torch.float64).clamp_min(1e-8)
    return clipped / clipped.sum(-1, keepdim=True)
