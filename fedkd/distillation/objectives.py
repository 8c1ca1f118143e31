"""Distillation losses: a student's logits against soft targets.

An objective is a function ``(logits (B, C), targets (B, C), temperature) -> (B,)``, in nats. The
temperature, a number or one a row ``(B, 1)``, divides the student's logits only: targets come as
they were softened, or not, by whoever sent them. They may hold exact zeros, and are constants: pass
them detached.

A plain function is an objective. :func:`traits` says what it expects; :func:`declare` marks one
that differs from the usual. One with options is a subclass of :class:`Objective`, whose fields they
are; a name, or a table of a name and options, stands for it: :func:`made`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import AfterValidator, Field, ValidationInfo
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from fedkd import registry
from fedkd.errors import FedkdError
from fedkd.options import Table, validated

Temperature = float | Tensor
Function = Callable[..., Tensor]
Marked = TypeVar("Marked")

SMALLEST = 1e-8
"""Least probability a target has where its logarithm is taken."""
TAKEN = {"name", "keys", "kind", "length", "floats"}
"""What no option may be called: tables of options and messages give these names a meaning."""
NEEDS = {
    "labels": "the true classes (B,)",
    "auxiliary": "logits (B, C) of a linear head that is trained beside the student",
}
"""What an objective may be given besides, as keyword arguments of these names."""


class Traits(NamedTuple):
    """What an objective expects of the loss around it."""

    targets: Literal["probabilities", "logits"] = "probabilities"
    tau_squared: bool = True
    """Whether gradients shrink with the square of the temperature, which the loss makes up for."""
    needs: tuple[str, ...] = ()
    """Names of :data:`NEEDS` that it is given besides."""


def declare(
    targets: Literal["probabilities", "logits"] = "probabilities",
    tau_squared: bool = True,
    needs: tuple[str, ...] = (),
) -> Callable[[Marked], Marked]:
    """Decorator that gives an objective, a function or a class, other traits than the usual.

    Raises
    ------
    FedkdError
        It needs what no objective is given.
    """
    if unknown := [name for name in needs if name not in NEEDS]:
        raise FedkdError(
            f"an objective cannot need {unknown[0]!r}; it may need: {', '.join(NEEDS)}"
        )

    def mark(objective: Marked) -> Marked:
        setattr(objective, "traits", Traits(targets, tau_squared, needs))  # noqa: B010
        return objective

    return mark


def traits(objective: Function) -> Traits:
    """What ``objective`` was declared to expect, or the usual: probabilities, and tau squared."""
    return getattr(objective, "traits", Traits())


class Objective(Table):
    """Base of objectives with options, which are its fields, declared as those of a method are.

    A subclass is called as a function is: ``__call__(logits, targets, temperature)``, and with
    ``labels`` where it is declared to need them.

    Raises
    ------
    FedkdError
        A subclass has an option of a name in :data:`TAKEN`.
    """

    @classmethod
    def __pydantic_init_subclass__(cls, **given: Any) -> None:
        super().__pydantic_init_subclass__(**given)
        if taken := TAKEN & cls.model_fields.keys():
            raise FedkdError(
                f"an objective cannot have an option {min(taken)!r}: the name has a meaning where "
                "objectives are chosen or travel; give it another"
            )

    def columns(self, classes: int) -> int:
        """Columns of its targets, and of the logits of its auxiliary head if it has one."""
        return classes


Chosen = str | Mapping[str, Any]
"""The name of an objective; or a table of its ``name`` and of options."""


def made(chosen: Chosen, key: str = "objective") -> Function:
    """The objective that is chosen, with its options.

    ``key`` is where it was chosen, to begin complaints with.

    Raises
    ------
    FedkdError
        One line naming the key, its value and what is allowed: the name is not known or missing, or
        an option is not known, or not of its type or range.
    """
    options = {} if isinstance(chosen, str) else dict(chosen)
    name = chosen if isinstance(chosen, str) else options.pop("name", None)
    if not isinstance(name, str):
        known = ", ".join(registry.names("objectives"))
        raise FedkdError(f"{key}.name = {name!r} is not allowed; known: {known}")
    found = registry.load("objectives", name, key)
    if isinstance(found, type):
        return validated(found, options, f"{key}.")
    validated(Table, options, f"{key}.")  # a function has no options
    return found


def name_of(chosen: Chosen) -> str:
    """The name of the objective that is chosen."""
    return chosen if isinstance(chosen, str) else str(chosen["name"])


def columns_of(chosen: Chosen, classes: int) -> int:
    """Columns of the targets of an objective, and of its auxiliary head: mostly, the classes."""
    objective = made(chosen)
    return objective.columns(classes) if isinstance(objective, Objective) else classes


def takes_probabilities(chosen: Chosen) -> bool:
    """Whether the targets of an objective are probabilities, which have a temperature."""
    return traits(made(chosen)).targets == "probabilities"


def _checked(chosen: Chosen, info: ValidationInfo) -> Chosen:
    made(chosen, f"strategy.{info.field_name}")
    return chosen


ObjectiveOption = Annotated[str | dict[str, Any], AfterValidator(_checked)]
"""An option of a method that chooses an objective, by name or by ``{name = "...", ...}``."""


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
