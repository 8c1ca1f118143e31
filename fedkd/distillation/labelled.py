"""Objectives that need the true classes of the samples."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from fedkd.distillation.objectives import Objective, Temperature, declare


@declare(tau_squared=False, needs=("labels",))
def not_true(
    logits: Tensor, targets: Tensor, temperature: Temperature, *, labels: Tensor
) -> Tensor:
    """KL(target || student) among all classes but the true one (Lee et al. 2022, FedNTD)."""
    place = labels[..., None]
    student = log_softmax((logits / temperature).scatter(-1, place, -torch.inf), -1)
    teacher = targets.scatter(-1, place, 0.0)
    # A target that has nothing for the others has no say.
    least = torch.finfo(targets.dtype).tiny
    teacher = teacher / teacher.sum(-1, keepdim=True).clamp_min(least)
    return kl_div(student.scatter(-1, place, 0.0), teacher, reduction="none").sum(-1)


@declare(needs=("labels",))
class DKD(Objective):
    """KL in two parts: the true class against the rest, and among the rest (Zhao et al. 2022)."""

    alpha: float = Field(1.0, ge=0)
    """Weight of the true class against the rest."""
    beta: float = Field(8.0, ge=0)
    """Weight of the KL among the rest, which is that of ``not_true``."""

    def __call__(
        self, logits: Tensor, targets: Tensor, temperature: Temperature, *, labels: Tensor
    ) -> Tensor:
        """``alpha KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + beta KL(p without y || q without y)``."""
        place, logs = labels[..., None], log_softmax(logits / temperature, -1)
        # The logarithm of a sum of probabilities would be that of 0 where they underflow.
        rest = logs.scatter(-1, place, -torch.inf).logsumexp(-1, keepdim=True)
        student = torch.cat([logs.gather(-1, place), rest], -1)
        others = targets.scatter(-1, place, 0.0).sum(-1, keepdim=True)
        teacher = torch.cat([targets.gather(-1, place), others], -1)
        binary = kl_div(student, teacher, reduction="none").sum(-1)
        return self.alpha * binary + self.beta * not_true(
            logits, targets, temperature, labels=labels
        )
