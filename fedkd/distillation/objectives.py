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

from collections.abc import Callable, Mapping, Set
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, ValidationInfo
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
TAKEN = {"name", "labels", "keys", "kind", "length", "floats"}
"""What no option may be called: tables of options and messages give these names a meaning."""
NEEDS = {
    "labels": "the true classes (B,)",
    "progress": "the share of the run's training that is done, 0 to below 1; a stack has (B, 1)",
    "groups": "which student's batch a row is of (B,)",
    "memory": "a dictionary of its own tensors (n,), one entry a student, empty as a fit begins",
    "auxiliary": "the logits (B, C) of an auxiliary head that is trained beside the student",
}
"""What an objective may be given besides, as keyword arguments of these names."""
COUPLING = {"groups", "memory"}
"""Needs of objectives in which the loss of a row depends on other rows."""
LABELS = ("own", "argmax")
"""Where labels come from: the samples' own, or the likeliest class of each target."""


class Traits(NamedTuple):
    """What an objective expects of the loss around it."""

    targets: Literal["probabilities", "logits"] = "probabilities"
    tau_squared: bool = True
    """Whether gradients shrink with the square of the temperature, which the loss makes up for."""
    needs: tuple[str, ...] = ()
    """Names of :data:`NEEDS` that it is given besides."""
    among: bool = True
    """Whether its columns may be candidate classes and one for all others together."""


def declare(
    targets: Literal["probabilities", "logits"] = "probabilities",
    tau_squared: bool = True,
    needs: tuple[str, ...] = (),
    among: bool = True,
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
        setattr(objective, "traits", Traits(targets, tau_squared, needs, among))  # noqa: B010
        return objective

    return mark


def traits(objective: Function) -> Traits:
    """What ``objective`` was declared to expect, or the usual: probabilities, and tau squared.

    Of one with options, without what it needs for other options alone: :meth:`Objective.spared`.
    """
    given: Traits = getattr(objective, "traits", Traits())
    if isinstance(objective, Objective):
        spared = objective.spared()
        given = given._replace(needs=tuple(need for need in given.needs if need not in spared))
    return given


def couples(objective: Function) -> bool:
    """Whether the loss of a row depends on other rows, so that no sample has a gradient alone."""
    return not COUPLING.isdisjoint(traits(objective).needs)


class Memory(dict[str, Tensor]):
    """What an objective keeps through a fit: tensors ``(n,)``, an entry for each of n students.

    Entries belong to ``groups``, which are 0 to ``students - 1``: a tensor may end where no later
    student has had a row yet. It is empty when a fit begins.
    """

    def __init__(self, students: int = 1) -> None:
        super().__init__()
        self.students = students

    def settle(self, objective: str) -> None:
        """Cut what was written off its graph.

        Raises
        ------
        FedkdError
            It is not one entry a student, in their order.
        """
        for name, tensor in self.items():
            entries = isinstance(tensor, Tensor) and tensor.dim() == 1
            if not entries or len(tensor) > self.students:
                shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise FedkdError(
                    f"objective = {objective!r}: memory[{name!r}] is {shape}; allowed: a tensor "
                    f"({self.students},), an entry for each of memory.students"
                )
            self[name] = tensor.detach()

    def keep(self, students: Tensor) -> None:
        """Go on with some of the students alone: their places ``(k,)``, ascending."""
        self.students = len(students)
        for name, tensor in self.items():
            self[name] = tensor[students[students < len(tensor)].to(tensor.device)]


class Objective(Table):
    """Base of objectives with options, which are its fields, declared as those of a method are.

    A subclass is called as a function is: ``__call__(logits, targets, temperature)``, and with
    what it is declared to need, by name.

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

    def spared(self) -> Set[str]:
        """Of the needs that are declared, those that the options as they are make do without."""
        return set()

    def columns(self, classes: int) -> int:
        """Columns of its targets, and of the logits of its auxiliary head if it has one."""
        return classes


Chosen = str | Mapping[str, Any]
"""The name of an objective; or a table of its ``name`` and of options."""


def made(chosen: Chosen, key: str = "objective") -> Function:
    """The objective that is chosen, with its options; ``labels`` is not one: :func:`labels_of`.

    ``key`` is where it was chosen, to begin complaints with.

    Raises
    ------
    FedkdError
        One line naming the key, its value and what is allowed: the name is not known or missing, or
        an option is not known, or not of its type or range; or ``labels`` has no effect.
    """
    options = {} if isinstance(chosen, str) else dict(chosen)
    name = chosen if isinstance(chosen, str) else options.pop("name", None)
    if not isinstance(name, str):
        known = ", ".join(registry.names("objectives"))
        raise FedkdError(f"{key}.name = {name!r} is not allowed; known: {known}")
    labels = options.pop("labels", None)
    found = registry.load("objectives", name, key)
    # A function has no options.
    table: Any = validated(found if isinstance(found, type) else Table, options, f"{key}.")
    if labels is not None and labels not in LABELS:
        allowed = ", ".join(map(repr, LABELS))
        raise FedkdError(f"{key}.labels = {labels!r} is not allowed; allowed: {allowed}")
    if labels is not None and "labels" not in traits(found).needs:
        raise FedkdError(f"{key}.labels = {labels!r} has no effect: {name!r} needs no labels")
    return table if isinstance(found, type) else found


def name_of(chosen: Chosen) -> str:
    """The name of the objective that is chosen."""
    return chosen if isinstance(chosen, str) else str(chosen["name"])


def check_candidates(chosen: Chosen) -> None:
    """Refuse an objective that works on all classes alone, where there are candidate classes.

    Raises
    ------
    FedkdError
        One line naming the objective.
    """
    expects, said = traits(made(chosen)), f"Soft: objective = {name_of(chosen)!r} is not allowed"
    if expects.targets != "probabilities":
        raise FedkdError(
            f"{said} with candidates: it takes logits, and all other classes together have none"
        )
    if not expects.among:
        raise FedkdError(
            f"{said} with candidates: it is one of all classes, each by itself; allowed: one that "
            "fedkd list objectives shows without 'no candidates'"
        )


def labels_of(chosen: Chosen) -> str:
    """Where the labels of an objective that needs some come from: one of :data:`LABELS`."""
    return "own" if isinstance(chosen, str) else str(chosen.get("labels", "own"))


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
