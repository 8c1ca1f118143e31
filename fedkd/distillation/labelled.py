"""Objectives that need the true classes of the samples, or take the teacher's for them.

The parts they are made of: log-probabilities and probabilities among all classes but the true one,
and of the true one against all others together.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from fedkd.distillation.objectives import Objective, Temperature, declare
from fedkd.distillation.targets import retemper


def not_true_logs(logits: Tensor, labels: Tensor) -> Tensor:
    """``log_softmax`` of the logits of all classes but the true one, ``(..., C)``.

    In the true class's place stands 0, which is to be multiplied by no probability.
    """
    place = labels[..., None]
    return log_softmax(logits.scatter(-1, place, -torch.inf), -1).scatter(-1, place, 0.0)


def not_true_shares(targets: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of all classes but the true one, made to sum to 1, ``(..., C)``.

    A target that has nothing for the others has no say: its row is 0.
    """
    others = targets.scatter(-1, labels[..., None], 0.0)
    return others / others.sum(-1, keepdim=True).clamp_min(torch.finfo(targets.dtype).tiny)


def two_way(logs: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of the true class and of all others together, ``(..., 2)``.

    The logarithm of a sum of probabilities would be that of 0 where they underflow.
    """
    place = labels[..., None]
    rest = logs.scatter(-1, place, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logs.gather(-1, place), rest], -1)


@declare(tau_squared=False, needs=("labels",))
def not_true(
    logits: Tensor, targets: Tensor, temperature: Temperature, *, labels: Tensor
) -> Tensor:
    """KL(target || student) among all classes but the true one (Lee et al. 2022, FedNTD)."""
    student = not_true_logs(logits / temperature, labels)
    return kl_div(student, not_true_shares(targets, labels), reduction="none").sum(-1)


@declare(needs=("labels", "progress"))
class DKD(Objective):
    """KL in two parts: the true class against the rest, and among the rest (Zhao et al. 2022).

    Equation 7, the parts weighted apart: ``alpha KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + beta KL(p
    without y || q without y)``. The paper's runs have beta = 8 at temperature 4, beside a
    cross-entropy of weight 1. Teacher and student alike give 0.
    """

    alpha: float = Field(1.0, ge=0)
    """Weight of the true class against the rest."""
    beta: float = Field(8.0, ge=0)
    """Weight of the KL among the rest, which is that of ``not_true``."""
    warmup: float = Field(0.0, ge=0, le=1)
    """Share of the run's training over which the weight of all of it rises from 0 to 1."""

    def spared(self) -> set[str]:
        """Without a warm-up, how far training has come."""
        return set() if self.warmup else {"progress"}

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        temperature: Temperature,
        *,
        labels: Tensor,
        progress: float | Tensor = 1.0,
    ) -> Tensor:
        """``min(progress / warmup, 1) (alpha KL of two + beta KL among the rest)``."""
        place, student = labels[..., None], two_way(log_softmax(logits / temperature, -1), labels)
        others = targets.scatter(-1, place, 0.0).sum(-1, keepdim=True)
        teacher = torch.cat([targets.gather(-1, place), others], -1)
        binary = kl_div(student, teacher, reduction="none").sum(-1)
        among = not_true(logits, targets, temperature, labels=labels)
        found = self.alpha * binary + self.beta * among
        return found * one_a_row(progress / self.warmup, at_most=1.0) if self.warmup else found


@declare(tau_squared=False, needs=("labels",), among=False)
class NKD(Objective):
    """Cross-entropy weighed by the teacher's trust, and one among the rest (Yang et al. 2023).

    Equation 8: ``-p_y log q_y - gamma tau^2 sum_i P_i log Q_i``, P and Q the probabilities of all
    classes but the true one, made to sum to 1. The first part is at temperature 1, whatever the
    targets were softened at. The paper's runs have gamma = 1.5 at temperature 1 (ImageNet), and 3.5
    at 3 (CIFAR-100), beside the student's own cross-entropy. It is a cross-entropy, not a
    divergence: teacher and student alike do not give 0.
    """

    gamma: float = Field(1.5, ge=0)
    """Weight of the part among the rest."""

    def __call__(
        self, logits: Tensor, targets: Tensor, temperature: Temperature, *, labels: Tensor
    ) -> Tensor:
        """``-p_y log q_y - gamma tau^2 sum_i P_i log Q_i``."""
        place = labels[..., None]
        trust = retemper(targets, temperature).gather(-1, place)[..., 0]
        true = trust * log_softmax(logits, -1).gather(-1, place)[..., 0]
        student = not_true_logs(logits / temperature, labels)
        among = (not_true_shares(targets, labels) * student).sum(-1)
        return -true - self.gamma * one_a_row(temperature) ** 2 * among


@declare(tau_squared=False, needs=("labels",))
class OFA(Objective):
    """Cross-entropy whose target has the true class enhanced (Hao et al. 2023, OFA-KD).

    Equation 6: ``-sum_c ((p_c + [c = y])^epsilon - [c = y]) log q_c``, without the paper's exits at
    inner blocks. At epsilon 1 it is the cross-entropy with soft targets; the larger, the more of it
    is the true class's. ``power`` is the same without labels.
    """

    epsilon: float = Field(1.0, gt=0, le=10)
    """The power that targets are raised to, 1 to 2 in the paper."""

    def __call__(
        self, logits: Tensor, targets: Tensor, temperature: Temperature, *, labels: Tensor
    ) -> Tensor:
        """``-sum_c ((p_c + [c = y])^epsilon - [c = y]) log q_c``."""
        true = torch.zeros_like(targets).scatter(-1, labels[..., None], 1.0)
        enhanced = (targets + true) ** self.epsilon - true
        return -(enhanced * log_softmax(logits / temperature, -1)).sum(-1)


@declare(tau_squared=False, needs=("labels",))
class Borup(Objective):
    """Squared error to the label and to the teacher (Borup & Andersen 2021, ground-truth weights).

    ``alpha MSE(q, label) + (1 - alpha) MSE(q, p)``, means over the classes. The gradient is that of
    the squared error to ``alpha label + (1 - alpha) p``. Where the teacher is oneself of the round
    before, it is their self-distillation; :func:`label_weight` finds alpha on validation samples.
    """

    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the label; at 1 the teacher has none."""

    def __call__(
        self, logits: Tensor, targets: Tensor, temperature: Temperature, *, labels: Tensor
    ) -> Tensor:
        """``alpha MSE(q, label) + (1 - alpha) MSE(q, p)``."""
        student = (logits / temperature).softmax(-1)
        true = torch.zeros_like(student).scatter(-1, labels[..., None], 1.0)
        errors = (student - true).square().mean(-1), (student - targets).square().mean(-1)
        return self.alpha * errors[0] + (1 - self.alpha) * errors[1]


def label_weight(from_labels: Tensor, from_teacher: Tensor, labels: Tensor) -> float:
    """The weight of labels in :class:`Borup` that is best on validation samples.

    Predictions ``(M, C)`` of a student that was fitted to labels alone, f, and of one fitted to the
    teacher alone, g, and the true classes ``(M,)`` give ``<f - g, label - g> / |f - g|^2`` within
    [0, 1], which is exact where predictions are linear in targets; 1 where f and g are equal.
    Derived from Borup & Andersen 2021; no code was found.
    """
    true = torch.zeros_like(from_labels).scatter(1, labels[:, None], 1.0)
    apart = from_labels - from_teacher
    length = apart.square().sum()
    if length == 0:
        return 1.0
    return float(((apart * (true - from_teacher)).sum() / length).clamp(0, 1))


@declare(tau_squared=False, needs=("labels",), among=False)
def pld(logits: Tensor, targets: Tensor, temperature: Temperature, *, labels: Tensor) -> Tensor:
    """Plackett-Luce likelihood of the teacher's ranking, the true class first (Bassam et al. 2025).

    With c_1 the true class and c_2, c_3, ... the others by falling probability (ties in the order
    of classes): ``sum_k p_{c_k} (logsumexp_{j >= k} z_{c_j} - z_{c_k})``. It takes the place of
    cross-entropy and distillation together. A temperature softens the targets alone; logits z are
    taken as they are. No divergence: teacher and student alike do not give 0. It is convex, and
    cross-entropy where the teacher is certain of the true class.
    """
    order = targets.scatter(-1, labels[..., None], torch.inf)
    order = order.argsort(stable=True, dim=-1, descending=True)
    scores, weights = logits.gather(-1, order), targets.gather(-1, order)
    remaining = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return (weights * (remaining - scores)).sum(-1)


def one_a_row(number: float | Tensor, at_most: float | None = None) -> float | Tensor:
    """A number, or one a row ``(..., 1)`` as ``(...)``."""
    if isinstance(number, Tensor):
        number = number[..., 0] if number.ndim else number
        return number if at_most is None else number.clamp_max(at_most)
    return number if at_most is None else min(number, at_most)
