"""An objective: a loss for each row of logits, against its target."""

from __future__ import annotations

from torch import Tensor

from fedkd.distillation.objectives import SMALLEST, declare


@declare(targets="probabilities", tau_squared=True)
def hellinger(logits: Tensor, targets: Tensor, temperature: float | Tensor) -> Tensor:
    """Squared Hellinger distance of two laws, from 0 to 1."""
    student = (logits / temperature).softmax(-1)  # (B, C)
    return 1 - (student * targets).clamp_min(SMALLEST).sqrt().sum(-1)  # (B,)
