"""Divergences with an upper bound, for terms that make them large."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from fedkd.distillation.objectives import Objective, Temperature, reverse_kl


class CappedReverseKL(Objective):
    """KL(student || target), at most ``most`` ln C: to be made large, by a weight below 0.

    Of a sample beyond that there is no gradient. Over the samples of a class whose mean is the
    target, the KL is on the mean ``H(mean) - mean H <= ln C`` (MCMI: Ye et al. 2024, without a
    bound).
    """

    most: float = Field(1.0, gt=0)
    """Upper bound, in units of ln C nats."""

    def __call__(self, logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
        """``min(KL(q || p), most ln C)``."""
        bound = self.most * math.log(max(2, logits.shape[-1]))
        return reverse_kl(logits, targets, temperature).clamp_max(bound)
