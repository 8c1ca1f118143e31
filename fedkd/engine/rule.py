"""Which steps of which clients are done as one batched computation, and which one by one.

A rule of the student, the step, its batch and the device: nothing is timed while a run goes on, and
it does not matter who else is at work, so the same experiment always takes the same path.
``engine.cohort`` turns it on and off; ``auto`` also asks whether a cohort is faster, by
:data:`LIMITS`, which ``fedkd tune`` measures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedkd.compression import Delta
from fedkd.data.cache import folder
from fedkd.data.federated import FederatedData
from fedkd.engine.alone import WORDS, Alone
from fedkd.engine.stack import dense
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy.dpsgd import sees_private
from fedkd.privacy.release import applies
from fedkd.training.auxiliary import has_head
from fedkd.work import (
    Assignment,
    Blend,
    CrossEntropy,
    Evaluate,
    Fit,
    Load,
    Predict,
    Represent,
    Samples,
    Source,
    Step,
    Term,
)

LIMITS = {
    "cpu": {"dense": {"fit": 256, "forward": 128}, "other": {"fit": 0, "forward": 0}},
    "cuda": {"dense": {"fit": 2048, "forward": 2048}, "other": {"fit": 256, "forward": 1024}},
}
"""Rows of a batch up to which a cohort is the faster way, by device, student and what is done.

Of ``cpu`` measured by ``fedkd tune`` on two cores; of ``cuda`` no measurement exists yet.
"""
MEMORY = {"cpu": 2**29, "cuda": 2**33}
"""Bytes that the students of one cohort may take, with their gradients and optimiser states."""
COPIES = 6
"""Times that a student is there while its cohort is trained: itself, its gradient, the optimiser's
two moments, what the client keeps, and room for a batch."""
MOST = 128
"""Clients of one cohort, at most."""
TUNED = "cohorts.json"


class Facts(Protocol):
    """What the rule asks of whoever has clients, such as a worker."""

    experiment: Experiment
    data: FederatedData
    device: torch.device
    limits: dict[str, dict[str, dict[str, int]]]
    """Rows of a batch up to which cohorts are faster, as :data:`LIMITS` has them."""

    def rows(self, client: int, on: Source) -> int:
        """How many samples ``on`` means for ``client``."""

    def architecture(self, assignment: Assignment, student: str) -> str:
        """The architecture of a client's student, which the assignment may make it hold."""

    def kind(self, architecture: str) -> Kind:
        """What the rule asks of students of this architecture."""

    def alone(self, architecture: str) -> Alone:
        """Why students of this architecture cannot be in a cohort."""


def groups(facts: Facts, assignments: Sequence[Assignment]) -> list[list[Assignment]]:
    """The assignments that are performed together, in the order of their first ones."""
    if facts.experiment.engine.cohort == "off":
        return [[assignment] for assignment in assignments]
    found: dict[Any, list[list[Assignment]]] = {}
    ordered: list[list[Assignment]] = []
    shapes: dict[int, Any] = {}  # of steps, which several assignments may hold
    for assignment in assignments:
        chosen = decisions(facts, assignment)
        alike = None
        if any(chosen):
            for steps in (assignment.steps, assignment.trial):
                if id(steps) not in shapes:
                    shapes[id(steps)] = _shape(steps)
            alike = _alike(facts, assignment, chosen, shapes)
        known = found.setdefault(alike, [])
        most = facts.kind(facts.experiment.architecture(assignment.client)).most
        if not any(chosen) or not known or len(known[-1]) >= most:
            known.append([])
            ordered.append(known[-1])
        known[-1].append(assignment)
    return ordered


def decisions(facts: Facts, assignment: Assignment) -> tuple[bool, ...]:
    """For each step, then each step of the trial: whether it is done in a cohort."""
    if facts.experiment.engine.cohort == "off":
        return ()
    return tuple(cohort(facts, assignment, step) for step in (*assignment.steps, *assignment.trial))


def cohort(facts: Facts, assignment: Assignment, step: Step) -> bool:
    """Whether ``step`` of ``assignment`` is done in a cohort.

    Never where it cannot be: text, whose recurrent layers torch does not batch over students; a
    student for which :mod:`fedkd.engine.alone` has a reason; DP-SGD; a release policy, which works
    on one client's labels; what ``engine.remember`` remembers; students that have an auxiliary head
    beside them in training, or are a module in another network.
    """
    experiment = facts.experiment
    if experiment.engine.cohort == "off" or facts.data.task.tokens:
        return False
    if not isinstance(step, Fit | Predict | Represent | Evaluate):
        return False
    if isinstance(step, Evaluate) and not (step.prototypes is None and step.above is None):
        return False
    if isinstance(step, Fit):
        plain = all(term == CrossEntropy(term.weight) for term in step.terms)
        private = experiment.training.dp.noise_multiplier and sees_private(step)
        if private or any(_by_itself(term) for peer in step.peers for term in peer.terms):
            return False
        if experiment.engine.remember and plain and not step.together:
            return False
    if applies(step, experiment.release):
        return False
    names = [peer.student for peer in step.peers] if isinstance(step, Fit) else [step.student]
    models = {facts.architecture(assignment, name) for name in names}
    what = "fit" if isinstance(step, Fit) else "forward"
    if experiment.engine.cohort == "auto":
        rows = facts.rows(assignment.client, step.on)
        if isinstance(step, Fit):
            rows = min(rows, experiment.training_on(step.on).batch_size)
        if rows > min(limit(facts, model, what) for model in models):
            return False
    return not any(getattr(facts.alone(model), what) for model in models)


def _by_itself(term: Term) -> bool:
    """Whether a student learns by a term that no stack has."""
    through = getattr(term, "through", None)
    return has_head(term) or (through is not None and (through.below or not through.cut))


def limit(facts: Facts, architecture: str, what: str) -> int:
    """Rows of a batch up to which ``auto`` has a cohort ``fit``, or go ``forward``."""
    kind = "dense" if facts.kind(architecture).dense else "other"
    return facts.limits.get(facts.device.type, LIMITS["cpu"])[kind][what]


def note(facts: Facts) -> str:
    """Which students go client by client though ``engine.cohort`` has cohorts, and why: a line.

    Empty where there are none, and where cohorts would not be faster in any case.
    """
    how, found = facts.experiment.engine.cohort, []
    if how == "off":
        return ""
    if facts.data.task.tokens:
        return "client by client: text" if how == "on" else ""
    for model in dict.fromkeys(facts.experiment.student.models):
        wanted = [what for what in WORDS if how == "on" or limit(facts, model, what)]
        reasons = {what: getattr(facts.alone(model), what) for what in wanted}
        reasons = {what: reason for what, reason in reasons.items() if reason}
        if len({*reasons.values()}) == 1 and len(reasons) == len(WORDS):
            found.append(f"{model} client by client: {reasons['fit']}")
        else:
            found += [f"{model} {WORDS[what]}: {reason}" for what, reason in reasons.items()]
    return "; ".join(found)


@cache
def limits() -> dict[str, dict[str, dict[str, int]]]:
    """:data:`LIMITS`, or what ``fedkd tune`` has found on this machine.

    Raises
    ------
    FedkdError
        What was found is not to be read.
    """
    place = folder()
    file = None if place is None else place / TUNED
    if file is None or not file.is_file():
        return LIMITS
    try:
        found = json.loads(file.read_text())
        for device, kinds in LIMITS.items():
            for kind, operations in kinds.items():
                for name in operations:
                    operations_found = found.get(device, kinds)[kind]
                    if type(operations_found[name]) is not int:
                        raise ValueError(f"{device}.{kind}.{name}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FedkdError(
            f"{file} is not what fedkd tune wrote ({error}); delete it or run fedkd tune again"
        ) from error
    return LIMITS | found


class Kind(NamedTuple):
    """What the rule asks of an architecture: is it dense, and how many fit in a cohort's memory."""

    dense: bool
    most: int


def kind_of(student: nn.Sequential, device: str) -> Kind:
    """The kind of students like this one."""
    size = sum(tensor.nbytes for tensor in student.state_dict().values())
    memory = MEMORY.get(device, MEMORY["cpu"])
    return Kind(dense(student), max(1, min(MOST, memory // (COPIES * max(1, size)))))


def _alike(
    facts: Facts, assignment: Assignment, chosen: tuple[bool, ...], shapes: Mapping[int, Any]
) -> Any:
    """What assignments have in common that can be performed as one."""
    names = set()
    for step in (*assignment.steps, *assignment.trial):
        names |= {getattr(step, "student", "own")}
        names |= {peer.student for peer in step.together} if isinstance(step, Fit) else set()
    models = tuple(facts.architecture(assignment, name) for name in sorted(names))
    steps = shapes[id(assignment.steps)], shapes[id(assignment.trial)]
    return models, chosen, assignment.round, assignment.phase, steps


def _shape(thing: Any) -> Any:
    """A step, hashable, with the form of a tensor in the place of each tensor."""
    if isinstance(thing, Tensor):
        return thing.dtype, tuple(thing.shape[1:])
    if isinstance(thing, Delta):  # to what each client holds, which may differ
        return Delta, thing.rows, thing.name
    if isinstance(thing, Blend):  # by shares that may differ
        return Blend, thing.student, thing.cut, thing.slope
    if isinstance(thing, Load):  # likewise
        thing = replace(thing, keep=0.0, weight=0.0)
    if isinstance(thing, Samples):
        labelled = thing.labels is not None
        return "samples", tuple(thing.inputs.shape[1:]), labelled, thing.cut
    if isinstance(thing, Fit):
        # Who shares mini-batches between terms, and who does not, may differ by client.
        drawn = [getattr(term, "on", None) for peer in thing.peers for term in peer.terms]
        shared = [drawn.index(on) for on in drawn]
        return Fit, tuple(shared), *map(_shape, vars(thing).values())
    if is_dataclass(thing):
        return type(thing), *map(_shape, vars(thing).values())
    if isinstance(thing, Mapping):
        return tuple((name, _shape(value)) for name, value in thing.items())
    if isinstance(thing, tuple | list):
        return tuple(map(_shape, thing))
    return thing
