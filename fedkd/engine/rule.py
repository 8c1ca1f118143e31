"""Which steps of which clients are done as one batched computation, and which one by one.

A rule of the student, the step, its batch and the device: nothing is timed while a run goes on, and
it does not matter who else is at work, so the same experiment always takes the same path.
``engine.cohort`` turns it on and off; ``auto`` also asks whether a cohort is faster, by
:data:`LIMITS`, which ``fedkd tune`` measures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from textwrap import shorten
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedkd.data.cache import folder
from fedkd.data.federated import FederatedData
from fedkd.engine.stack import Stack, dense
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy.dpsgd import sees_private
from fedkd.privacy.release import applies
from fedkd.students import named_blocks
from fedkd.students.build import HOOKS
from fedkd.students.probe import Probe, Traits, as_before, close, outputs
from fedkd.work import (
    Assignment,
    CrossEntropy,
    Evaluate,
    Fit,
    Predict,
    Represent,
    Samples,
    Source,
    Step,
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
WORDS = {"fit": "trains client by client", "forward": "answers client by client"}
"""What is done in a cohort, and how it is said that it is not."""
EVERYWHERE = (
    *("_global_forward_hooks", "_global_forward_pre_hooks"),
    *("_global_backward_hooks", "_global_backward_pre_hooks"),
)
"""Where torch keeps hooks on all modules."""
COPIES = 6
"""Times that a student is there while its cohort is trained: itself, its gradient, the optimiser's
two moments, what the client keeps, and room for a batch."""
MOST = 128
"""Clients of one cohort, at most."""
TUNED = "cohorts.json"
DIFFERENCE = 1e-3
"""Of the largest value: how far a cohort's outputs and gradients may be from a loop's."""


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
    student for which :func:`alone` has a reason; DP-SGD; a release policy, which works on one
    client's labels; what ``engine.remember`` remembers.
    """
    experiment = facts.experiment
    if experiment.engine.cohort == "off" or facts.data.task.tokens:
        return False
    if not isinstance(step, Fit | Predict | Represent | Evaluate):
        return False
    if isinstance(step, Fit):
        plain = all(term == CrossEntropy(term.weight) for term in step.terms)
        private = experiment.training.dp.noise_multiplier and sees_private(step)
        if private:
            return False
        if experiment.engine.remember and plain:
            return False
    if applies(step, experiment.release):
        return False
    model = facts.architecture(assignment, step.student)
    what = "fit" if isinstance(step, Fit) else "forward"
    if experiment.engine.cohort == "auto":
        rows = facts.rows(assignment.client, step.on)
        if isinstance(step, Fit):
            rows = min(rows, experiment.training.batch_size)
        if rows > limit(facts, model, what):
            return False
    return not getattr(facts.alone(model), what)


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


class Alone(NamedTuple):
    """Why students of an architecture cannot be in a cohort; empty where they can be.

    ``fit`` in training, ``forward`` when they answer. ``differs`` says how far a cohort is from
    what ``forward`` computes, where nothing but that speaks against it.
    """

    fit: str = ""
    forward: str = ""
    differs: str = ""


def alone(student: nn.Sequential, found: Probe, inputs: Tensor) -> Alone:
    """Why students like this one cannot be in a cohort.

    A cohort computes what a student's blocks compute from its parameters, for each sample by
    itself. It passes by hooks and whatever else was put on a module; of what cannot be read off,
    :func:`fedkd.students.probe` has ``found`` some, and the rest shows where cohort and loop are
    compared, in outputs and gradients, on ``inputs`` ``(4, ...)``.
    """
    if reason := _attached(student):
        return Alone(reason, reason)
    if found.error:
        return Alone(*[f"a pass ended in {found.error}"] * 2)
    if found.keeps:
        return Alone(*[f"it changes {found.keeps}, which its state_dict does not have"] * 2)
    reasons = {what: _trait(traits) for what, traits in zip(WORDS, (found.training, found.answers))}
    differs = ""
    for what in WORDS:
        if not reasons[what]:
            try:
                if apart := _apart(student, inputs, training=what == "fit"):
                    reasons[what] = differs = apart
            except Exception as error:  # whatever torch, or a layer, says to a batch of students
                message = shorten(str(error).split("\n")[0], 100, placeholder=" …")
                reasons[what] = f"torch cannot batch it over students ({message})"
    return Alone(**reasons, differs=differs)


def _trait(traits: Traits) -> str:
    if traits.draws:
        return "it draws random numbers"
    if traits.varies:
        return "it gives something else each time"
    if traits.mixes:
        return "a sample's output depends on the others of its batch"
    return "it writes to its buffers" if traits.writes else ""


def _attached(student: nn.Sequential) -> str:
    """What a student has that is no part of its layers' computation, if anything."""
    if any(getattr(nn.modules.module, hooks, None) for hooks in EVERYWHERE):
        return "there are hooks on all modules"
    for name, module in student.named_modules():
        if parametrize.is_parametrized(module):
            return f"{name} is parametrised"
        if any(getattr(module, hooks) for hooks in HOOKS):
            return f"{name} has hooks"
        if "forward" in vars(module):
            return f"{name} has another forward than its class"
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in (
        *student.named_parameters(remove_duplicate=False),
        *student.named_buffers(remove_duplicate=False),
    ):
        if type(tensor) not in (nn.Parameter, nn.Buffer, Tensor) or type(tensor.data) is not Tensor:
            return f"{name} is a tensor of another class than torch's"
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            return f"{name} has hooks"
        if isinstance(tensor, nn.Parameter) and tensor.dtype != torch.float32:
            return f"{name} is not float32"
        if isinstance(tensor, nn.Parameter) and not tensor.dim():
            return f"{name} is a single number, which torch promotes otherwise in a batch"
        if not tensor.numel():
            continue
        extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride()))
        if extent < tensor.numel():
            return f"values of {name} share memory"
        start, size = tensor.data_ptr(), extent * tensor.element_size()
        held = spans.setdefault(tensor.untyped_storage().data_ptr(), [])
        for first, end, other in held:
            if start < end and first < start + size:
                return f"{name} and {other} share memory"
        held.append((start, start + size, name))
    return ""


def _apart(student: nn.Sequential, inputs: Tensor, training: bool) -> str:
    """How far two students in a stack are from the same two by themselves, if too far."""
    draw = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=draw, dtype=like.dtype).to(like.device)

    names = [name for name, _ in named_blocks(student)]
    learning = [name for name, p in student.named_parameters() if p.requires_grad and training]
    with as_before(student), torch.inference_mode(False), torch.enable_grad():
        student.train(training)
        tensors = student.state_dict()
        first = {name: tensor.clone() for name, tensor in tensors.items()}
        parameters = dict(student.named_parameters())
        other = {name: first[name] + 0.1 * noise(first[name]) for name in parameters}
        states = [first, first | other]
        stack = {name: torch.stack([state[name] for state in states]) for name in tensors}
        stack |= {name: stack[name].requires_grad_() for name in learning}
        held, logits = Stack(student, stack).forward(
            stack, inputs.expand(len(states), *inputs.shape).clone(), {*names}
        )
        held[names[-1]] = logits
        weights = noise(logits[0])
        slopes = _slopes(logits, weights, [stack[name] for name in learning])
        for place, state in enumerate(states):
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(state[name])
            given = outputs(student, inputs)
            own = dict(student.named_parameters())
            mine = _slopes(given[-1], weights, [own[name] for name in learning])
            pairs = [
                (f"what {name} gives", held[name][place], each) for name, each in zip(names, given)
            ]
            pairs += [
                (f"the gradient of {name}", slope[place], each)
                for name, slope, each in zip(learning, slopes, mine)
            ]
            for what, together, by_itself in pairs:
                if not close(by_itself.detach(), together.detach(), DIFFERENCE):
                    gap = float((by_itself - together).detach().abs().max())
                    return f"in a cohort {what} would differ by {gap:.2g}"
    return ""


def _slopes(logits: Tensor, weights: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Gradients of a weighted sum of logits."""
    if not parameters:
        return []
    value = (logits * weights).sum()
    slopes = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(slopes, parameters)]


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
    names = {getattr(step, "student", "own") for step in (*assignment.steps, *assignment.trial)}
    models = tuple(facts.architecture(assignment, name) for name in sorted(names))
    steps = shapes[id(assignment.steps)], shapes[id(assignment.trial)]
    return models, chosen, assignment.round, assignment.phase, steps


def _shape(thing: Any) -> Any:
    """A step, hashable, with the form of a tensor in the place of each tensor."""
    if isinstance(thing, Tensor):
        return thing.dtype, tuple(thing.shape[1:])
    if isinstance(thing, Samples):
        labelled = thing.labels is not None
        return "samples", tuple(thing.inputs.shape[1:]), labelled
    if is_dataclass(thing):
        return type(thing), *map(_shape, vars(thing).values())
    if isinstance(thing, Mapping):
        return tuple((name, _shape(value)) for name, value in thing.items())
    if isinstance(thing, tuple | list):
        return tuple(map(_shape, thing))
    return thing
