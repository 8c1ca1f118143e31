"""Distillation losses: a student's logits against soft targets.

An objective is a function ``(logits (B, C), targets (B, C), temperature) -> (B,)``, in nats. The
temperature, a number or one a row ``(B, 1)``, divides the student's logits only: targets come as
they were softened, or not, by whoever sent them. They may hold exact zeros, and are constants: pass
them detached.

A plain function is an objective. :func:`traits` says what it expects; :func:`declare` marks one
that differs from the usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

Temperature = float | Tensor
Objective = Callable[[Tensor, Tensor, Temperature], Tensor]

SMALLEST = 1e-8
"""Least probability a target has where its logarithm is taken."""


class Traits(NamedTuple):
    """What an objective expects of the loss around it."""

    targets: Literal["probabilities", "logits"] = "probabilities"
    tau_squared: bool = True
    """Whether gradients shrink with the square of the temperature, which the loss makes up for."""


def declare(
    targets: Literal["probabilities", "logits"] = "probabilities", tau_squared: bool = True
) -> Callable[[Objective], Objective]:
    """Decorator that gives an objective other traits than the usual."""

    def mark(objective: Objective) -> Objective:
        objective.__dict__["traits"] = Traits(targets, tau_squared)
        return objective

    return mark


def traits(objective: Objective) -> Traits:
    """What ``objective`` was declared to expect, or the usual: probabilities, and tau squared."""
    return getattr(objective, "traits", Traits())


def forward_kl(logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
    """KL(target || student): covers what the teacher covers (Hinton, Vinyals & Dean 2015)."""
    return kl_div(log_softmax(logits / temperature, -1), targets, reduction="none").sum(-1)


def reverse_kl(logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
    """KL(student || target): seeks the teacher's modes (Gu et al. 2024, MiniLLM, section 2.1)."""
    student = log_softmax(logits / temperature, -1)
    return (student.exp() * (student - targets.clamp_min(SMALLEST).log())).sum(-1)


def jensen_shannon(logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
    """Mean KL of teacher and student to their mixture, at most ln 2 (Lin 1991)."""
    student = log_softmax(logits / temperature, -1)
    teacher = targets.clamp_min(SMALLEST)
    probabilities = student.exp()
    mixture = ((probabilities + teacher) / 2).log()
    return (teacher * (teacher.log() - mixture) + probabilities * (student - mixture)).sum(-1) / 2


@declare(targets="logits", tau_squared=False)
def mse_logits(logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
    """Mean squared difference of logits, without temperature (Ba & Caruana 2014, section 2)."""
    return (logits - targets).square().mean(-1)


@declare(targets="logits", tau_squared=False)
def mae_logits(logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
    """Mean absolute difference of logits, without temperature: FedMD's code (Li & Wang 2019)."""
    return (logits - targets).abs().mean(-1)


def cross_entropy(logits: Tensor, targets: Tensor, temperature: Temperature) -> Tensor:
    """Cross-entropy with soft targets: forward KL plus their entropy (Hinton et al. 2015)."""
    return -(targets * log_softmax(logits / temperature, -1)).sum(-1)
