"""Objectives that weigh forward against reverse KL, and cross-entropy with powers of targets."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.special import entr

from fedkd.distillation.objectives import SMALLEST, Objective, Temperature, declare


@declare()
class BDKD(Objective):
    """Forward and reverse KL, one of them weighted up by who is surer (Amara et al. 2022, BD-KD).

    ``a KL(p || q) + b KL(q || p)``: where the student's entropy H(q) is below the teacher's, a is
    delta and b is 1, else the other way round. The weights are no part of the gradient. At delta 1
    it is Jeffreys' divergence. After the public description; no code was found, and which of the
    two is weighted up is read into it.
    """

    delta: float = Field(2.0, ge=0)
    """The weight of one of the two where the other has 1."""
    width: float = Field(0.0, ge=0)
    """Nats of difference in entropy over which the weights pass over; at 0 they jump."""

    def __call__(self, logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
        """``a KL(p || q) + b KL(q || p)``."""
        student = log_softmax(logits / temperature, -1)
        probabilities, teacher = student.exp(), targets.clamp_min(SMALLEST).log()
        forward = (targets * (teacher - student)).sum(-1)
        reverse = (probabilities * (student - teacher)).sum(-1)
        with torch.no_grad():
            surer = entr(targets).sum(-1) + (probabilities * student).sum(-1)  # H(p) - H(q)
            share = (surer / self.width).sigmoid() if self.width else (surer > 0).to(surer)
        more = self.delta - 1
        return (1 + more * share) * forward + (1 + more * (1 - share)) * reverse


@declare()
class TopKKL(Objective):
    """Forward KL on the teacher's likeliest classes, reverse KL on the rest (TopKLD, 2025).

    With K the k likeliest classes: ``sum_K (p log(p / q) - p + q) + sum_rest (q log(q / p) - q +
    p)``, no summand of which is negative. All classes in K give forward KL, none reverse KL. After
    the public description of Ding et al. 2025; no code was found.
    """

    k: int | None = Field(None, ge=0)
    """How many classes are covered forwards; where it is not given, a tenth, and at least one."""

    def __call__(self, logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
        """The sum over classes, ``(B, C)`` to ``(B,)``."""
        classes = targets.shape[-1]
        k = max(1, classes // 10) if self.k is None else min(self.k, classes)
        top = torch.zeros_like(targets, dtype=torch.bool)
        top = top.scatter(-1, targets.topk(k, -1).indices, True)
        student = log_softmax(logits / temperature, -1)
        probabilities, clamped = student.exp(), targets.clamp_min(SMALLEST)
        teacher = clamped.log()
        forward = targets * (teacher - student) - targets + probabilities
        reverse = probabilities * (student - teacher) - probabilities + clamped
        return torch.where(top, forward, reverse).sum(-1)


@declare(tau_squared=False)
class Power(Objective):
    """Cross-entropy with targets raised to a power: sharper, not made to sum to 1 again.

    ``-sum_c p_c^epsilon log q_c``: OFA-KD's target (Hao et al. 2023) without the label, for samples
    that have none. At epsilon 1 it is the cross-entropy with soft targets. The student that fits
    best has ``q = p^epsilon / sum p^epsilon``; surer teachers have more weight.
    """

    epsilon: float = Field(1.0, gt=0, le=10)
    """The power that targets are raised to."""

    def __call__(self, logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
        """``-sum_c p_c^epsilon log q_c``."""
        return -(targets**self.epsilon * log_softmax(logits / temperature, -1)).sum(-1)
