"""Objectives of a student with an auxiliary head, which is trained beside it and then left out."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softplus

from fedkd.distillation.groups import group_means
from fedkd.distillation.labelled import not_true_logs, not_true_shares, one_a_row
from fedkd.distillation.objectives import (
    SMALLEST,
    Objective,
    Temperature,
    declare,
    forward_kl,
)


@declare(tau_squared=False, needs=("auxiliary",), among=False)
class DHKD(Objective):
    """KL on the student's head, and two binary KLs a class on an auxiliary one (Yang et al. 2024).

    ``tau^2 (main KL(p || q) + alpha sum_c log cosh((a_c - t_c) / 2 tau))``: a are the auxiliary
    head's logits and t the teacher's, both less their row's mean, t being ``tau log p``. The second
    part is the paper's, in closed form (half of the two KLs of ``sigmoid((a - t) / tau)`` to one
    half); its slope is at most tau / 2. With labels it is meant to be the only word of the teacher,
    which spares the student's own head: there, have ``main = 0`` and a cross-entropy beside it.
    """

    cut: str = ""
    """The block that the head is on; empty: the last below the classifier."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the auxiliary head's part: 1 on CIFAR-100, 0.1 on ImageNet in the paper."""
    main: float = Field(1.0, ge=0)
    """Weight of the KL on the student's own head, which without labels has nothing else."""

    def __call__(
        self, logits: Tensor, targets: Tensor, temperature: Temperature, *, auxiliary: Tensor
    ) -> Tensor:
        """``tau^2 (main KL(p || q) + alpha sum_c log cosh((a_c - t_c) / 2 tau))``."""
        teacher = _centred(targets.clamp_min(SMALLEST).log())
        apart = _centred(auxiliary / temperature) - teacher
        found = self.alpha * log_cosh(apart / 2).sum(-1)
        found = found + self.main * forward_kl(logits, targets, temperature)
        return one_a_row(temperature) ** 2 * found


@declare(tau_squared=False, needs=("labels", "auxiliary", "groups"), among=False)
class USKD(Objective):
    """Self-distillation without a teacher: made-up targets for all classes (Yang et al. 2023).

    ``-alpha P log q_y - beta sum_i z_i log Q_i + mu CE(smoothed label, w)``, w the auxiliary head's
    probabilities and Q the student's without the true class y. ``P = q_y^2 + 1 - mean of q_y^2``
    over the batch, without gradient; its mean is 1. Others' shares z are one over their rank by w
    and q, made to sum to 1. It takes the place of the cross-entropy. Targets and temperature have
    no effect.
    """

    cut: str = ""
    """The block that the head is on; empty: the last below the classifier."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the true class's part."""
    beta: float = Field(0.1, ge=0)
    """Weight of the part among the others."""
    mu: float = Field(0.005, ge=0)
    """Weight of the cross-entropy that trains the auxiliary head."""
    ranks: Literal["logs", "probabilities"] = "logs"
    """Whether the student is ranked by log-probabilities, as the authors' code does, or as their
    text has it."""

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        temperature: Temperature,
        *,
        labels: Tensor,
        auxiliary: Tensor,
        groups: Tensor,
    ) -> Tensor:
        """``-alpha P log q_y - beta sum_i z_i log Q_i + mu CE(smoothed label, w)``."""
        place, logs = labels[:, None], log_softmax(logits, 1)
        true = logs.gather(1, place)[:, 0]
        weak = cross_entropy(auxiliary, labels, reduction="none", label_smoothing=0.1)
        with torch.no_grad():
            squares = true.exp().square()
            trust = squares + 1 - group_means(squares, groups)
            shares = self._shares(logs, auxiliary.softmax(1), labels)
        others = (shares * not_true_logs(logits, labels)).sum(1)
        return -self.alpha * trust * true - self.beta * others + self.mu * weak

    def _shares(self, logs: Tensor, weak: Tensor, labels: Tensor) -> Tensor:
        """What the classes but the true one have of the target: one over their rank, ``(B, C)``."""
        place, student = labels[:, None], logs if self.ranks == "logs" else logs.exp()
        parts = [each / (1 - each.gather(1, place) + 1e-6) for each in (weak, student)]
        order = (parts[0] + parts[1]).argsort(stable=True, dim=1, descending=True)
        ranks = order.argsort(1) + 1
        return not_true_shares(1 / ranks.to(logs), labels)


def log_cosh(x: Tensor) -> Tensor:
    """``log cosh x``, which is ``|x| - log 2`` far from 0 and ``x^2 / 2`` near it."""
    return softplus(2 * x) - x - math.log(2)


def _centred(scores: Tensor) -> Tensor:
    """Scores of each row less their mean."""
    return scores - scores.mean(-1, keepdim=True)
