"""Cohorts: clients that do the same steps with the same student, as one batched computation.

Their students are a *stack*: every parameter and buffer is ``(n, ...)``. Fully connected blocks are
batched products, written by hand; any other block goes through ``torch.vmap``. Clients may have
different numbers of samples and steps: a batch is filled up with rows that count nowhere, and who
has done its steps leaves the stack. What a client computes is what it would compute alone, up to
the order in which floats are summed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedkd import optimisers, students
from fedkd.engine import rule
from fedkd.engine.stack import Stack
from fedkd.engine.worker import Session, Worker
from fedkd.experiment import TrainingTable
from fedkd.random import generator
from fedkd.training.batches import Batch, Batches
from fedkd.training.inference import quality
from fedkd.training.items import take
from fedkd.training.loop import Optimiser, descend
from fedkd.training.losses import Loss, source_of
from fedkd.training.student import check_learning, learning_names, set_modes
from fedkd.work import (
    Assignment,
    Evaluate,
    Fit,
    Head,
    Load,
    Parameters,
    Predict,
    Proximal,
    Represent,
    Samples,
    Share,
    Step,
    Term,
)

CONTIGUOUS = torch.contiguous_format
ROWS = 4096
"""Rows of all students together that a forward pass takes at a time."""


class Cohort:
    """Assignments with the same steps, at work together: a session for each, and their stacks."""

    def __init__(self, worker: Worker, assignments: Sequence[Assignment]) -> None:
        self.worker = worker
        self.sessions = [
            _Member(worker, assignment, self, place) for place, assignment in enumerate(assignments)
        ]
        decided = rule.decisions(worker, assignments[0])
        self._decided = {
            id(step): together
            for assignment in assignments
            for step, together in zip((*assignment.steps, *assignment.trial), decided, strict=True)
        }
        self._stacks: dict[str, Stack] = {}

    def do(self, steps: tuple[Step, ...], phase: str) -> None:
        """Do one step of each, together if the rule says so."""
        first, together = steps[0], self._decided[id(steps[0])]
        if isinstance(first, Load) and self._load(cast(tuple[Load, ...], steps)):
            return
        if not together:
            for session, step in zip(self.sessions, steps, strict=True):
                session.do(step, phase)
            return
        if isinstance(first, Fit):
            self._fit(cast(tuple[Fit, ...], steps), phase)
        elif isinstance(first, Represent):
            given = self._forward(steps, first.cut)
            for session, (held, logits) in zip(self.sessions, given, strict=True):
                session.represented(first, held, logits)
        elif isinstance(first, Predict):
            for session, (_, logits) in zip(self.sessions, self._forward(steps), strict=True):
                session.predicted(first, logits)
        elif isinstance(first, Evaluate):
            for session, (_, logits) in zip(self.sessions, self._forward(steps), strict=True):
                labels = session.samples(first.on).labels
                if labels is not None and len(labels):
                    session.evaluated(first, quality(logits, labels))
        for session in self.sessions:
            on = getattr(first, "on", "")
            name = f"{type(first).__name__} {on if isinstance(on, str) else 'samples'}"
            session.metrics[f"cohort {name}"] = 1.0

    def stack(self, student: str) -> Stack:
        """The sessions' students of this name."""
        if student not in self._stacks:
            worker, device = self.worker, self.worker.device
            clients = [session.assignment.client for session in self.sessions]
            states = [worker.parameters(client, student) for client in clients]
            tensors = {
                name: torch.stack([state[name] for state in states]).to(device)
                for name in states[0]
            }
            architecture = worker.architecture(self.sessions[0].assignment, student)
            self._stacks[student] = Stack(worker.template(architecture), tensors)
        return self._stacks[student]

    def _load(self, steps: tuple[Load, ...]) -> bool:
        """Take in parameters that all get and that are the whole student: without looking at it."""
        first, (student, shared) = steps[0], (steps[0].student, steps[0].parameters)
        architecture = self.worker.architecture(self.sessions[0].assignment, student)
        template = self.worker.template(architecture)
        wanted = {name: tensor.shape for name, tensor in template.state_dict().items()}
        given = {name: tensor.shape for name, tensor in shared.items()}
        if first.part or given != wanted or any(step.parameters is not shared for step in steps):
            return False
        count, device = len(steps), self.worker.device
        tensors = {
            name: tensor.to(device).expand(count, *tensor.shape).clone(memory_format=CONTIGUOUS)
            for name, tensor in shared.items()
        }
        self._stacks[student] = Stack(template, tensors)
        for session in self.sessions:
            session.changed.add(student)
        return True

    # --- forward ----------------------------------------------------------------------------

    def _forward(self, steps: Sequence[Any], cut: str | None = None) -> list[tuple[Tensor, Tensor]]:
        """Of each session: representations ``(K, ...)`` at ``cut``, if any, and logits ``(K, C)``.

        Without a cut, the logits twice.
        """
        sources = self._sources([step.on for step in steps])
        stack = self.stack(steps[0].student)
        if cut is not None:
            students.cut_index(stack.module, cut)  # refuses one that is not there
        counts = [len(samples.inputs) for samples in sources]
        shared = all(samples is sources[0] for samples in sources)
        each = max(1, ROWS // len(sources))
        held_pieces, logit_pieces = [], []
        with torch.inference_mode():
            stack.module.eval()
            for start in range(0, max(counts), each):
                if shared:
                    inputs = sources[0].inputs[start : start + each]
                    inputs = inputs.expand(len(sources), *inputs.shape)
                else:
                    inputs = torch.stack(
                        [
                            _filled(
                                samples.inputs[start : start + each], min(each, max(counts) - start)
                            )
                            for samples in sources
                        ]
                    )
                if not stack.dense:  # a layer may write into what it is given
                    inputs = inputs.clone()
                at, last = stack.forward(stack.tensors, inputs, {cut} if cut else set())
                logit_pieces.append(last.float())
                held_pieces.append(at[cut].float() if cut else logit_pieces[-1])
            whole, given = torch.cat(held_pieces, 1), torch.cat(logit_pieces, 1)
        logits = [given[place, :count].clone() for place, count in enumerate(counts)]
        if cut is None:
            return list(zip(logits, logits, strict=True))
        held = [whole[place, :count].clone() for place, count in enumerate(counts)]
        return list(zip(held, logits, strict=True))

    def _sources(self, wanted: Sequence[Any]) -> list[Samples]:
        """Each session's samples; one object where they are everybody's."""
        if wanted[0] in ("common", "transfer"):
            return [self.sessions[0].samples(wanted[0])] * len(self.sessions)
        if isinstance(wanted[0], str):
            clients = [session.assignment.client for session in self.sessions]
            return self.worker.together(wanted[0], clients)
        return [session.samples(on) for session, on in zip(self.sessions, wanted, strict=True)]

    # --- fit --------------------------------------------------------------------------------

    def _fit(self, steps: tuple[Fit, ...], phase: str) -> None:
        worker, first = self.worker, steps[0]
        training = worker.experiment.training
        sources = self._sources([step.on for step in steps])
        draws = [
            generator(worker.experiment.seed, "fit", *session.draw(step, phase))
            for session, step in zip(self.sessions, steps, strict=True)
        ]
        terms = []
        for session, step, samples in zip(self.sessions, steps, sources, strict=True):
            terms.append([session.resolved(term, samples) for term in step.terms])
        others = {
            on: self._sources([on] * len(steps))
            for term in terms[0]
            if (on := source_of(term)) is not None
        }
        stack = self.stack(first.student)
        stack.own()
        first = replace(first, part=first.part or training.part)
        lost = fit(stack, sources, terms, training, draws, first, others, worker.augment)
        for session, loss in zip(self.sessions, lost, strict=True):
            session.changed.add(first.student)
            session.metrics[first.key] = loss


class _Member(Session):
    """A session whose students are in the stacks of its cohort."""

    def __init__(self, worker: Worker, assignment: Assignment, cohort: Cohort, place: int) -> None:
        super().__init__(worker, assignment)
        self.cohort, self.place = cohort, place

    def student(self, name: str) -> nn.Sequential:
        """The client's student, taken out of the stack; valid until the next call."""
        stack = self.cohort.stack(name)
        client = self.assignment.client
        if name not in self.students:
            self.worker.probe(self.architecture(name))
            self.students[name] = self.worker.module(client, name)
        module = self.students[name]
        with torch.no_grad():
            for key, tensor in module.state_dict().items():
                tensor.copy_(stack.tensors[key][self.place])
        return module

    def do(self, step: Step, phase: str) -> None:
        if isinstance(step, Share):
            self.give(step, self.cohort.stack(step.student).shared(self.place, step.part), 1)
            return
        super().do(step, phase)

    def wrote(self, name: str) -> None:
        super().wrote(name)
        stack = self.cohort.stack(name)
        stack.own()
        with torch.no_grad():
            for key, tensor in self.students[name].state_dict().items():
                stack.tensors[key][self.place].copy_(tensor)

    def keep(self) -> None:
        for name in self.changed:
            tensors = self.cohort.stack(name).tensors
            mine = {key: tensor[self.place] for key, tensor in tensors.items()}
            self.worker.keep(self.assignment.client, name, mine)


# --- the training loop of a stack ---------------------------------------------------------------


def fit(
    stack: Stack,
    sources: Sequence[Samples],
    terms: Sequence[Sequence[Term]],
    training: TrainingTable,
    generators: Sequence[torch.Generator],
    step: Fit,
    others: dict[str, list[Samples]],
    augment: Any = None,
) -> list[float]:
    """What :func:`fedkd.training.fit` does with each of the stack's students, done together.

    Parameters
    ----------
    sources, terms, generators
        Of each student.
    step
        Its ``epochs``, ``min_steps``, ``lr`` and ``part``, the same for all.
    others
        For each source that a term draws from by itself: every student's samples.

    Returns
    -------
    list of float
        Of each student: the mean loss over the steps of its last pass.
    """
    module, count = stack.module, len(sources)
    batches = [
        Batches(samples, training.batch_size, draw, augment)
        for samples, draw in zip(sources, generators, strict=True)
    ]
    epochs = training.local_epochs if step.epochs is None else step.epochs
    least = training.min_steps if step.min_steps is None else step.min_steps
    there = [len(samples.inputs) > 0 for samples in sources]
    passes = [source.per_epoch for source in batches]
    steps = [
        max(math.ceil(epochs * each - 1e-9), least) if any_ else 0
        for each, any_ in zip(passes, there, strict=True)
    ]
    total = [0.0] * count
    if not any(steps):
        return total
    drawn_from = {
        on: [
            Batches(samples, training.batch_size, draw, augment)
            for samples, draw in zip(held, generators, strict=True)
        ]
        for on, held in others.items()
    }
    device = sources[0].inputs.device
    # A gradient that comes once a step, and through layers alone, need not be there as a whole.
    simple = not others and not any(
        isinstance(term, Proximal) or getattr(term, "reach", ()) for term in terms[0]
    )
    live = _Live(stack, step, training, count, simple)
    joints = {None: _Joint(batches, device)} | {
        on: _Joint(held, device) for on, held in drawn_from.items()
    }
    losses = []
    for column in zip(*terms, strict=True):
        on = source_of(column[0])
        joined = _joined(column)
        losses.append(Loss(module, joined, joints[on].all, live.learning, stacked=count))
    live.losses = losses
    cuts = {loss.cut for loss in losses if loss.cut}
    check_learning(module, list(live.learning), step.part)
    set_modes(module, live.learning)
    sums = torch.zeros(count, device=device)
    last = torch.tensor(
        [many - each for many, each in zip(steps, passes, strict=True)], device=device
    )
    for now in range(max(steps)):
        live.leave([place for place in live.who if steps[place] <= now])
        batch = joints[None].draw(live, cuts)
        drawn = {on: joint.draw(live, cuts) for on, joint in joints.items() if on is not None}
        zero = sums.new_zeros(len(live.who))
        value = descend(losses, batch, drawn, live.optimiser, zero)
        places = live.places
        sums.index_add_(0, places, torch.where(last[places] <= now, value, zero))
    live.leave(list(live.who))
    found = sums.tolist()
    return [
        loss / max(1, min(many, each))
        for loss, many, each in zip(found, steps, passes, strict=True)
    ]


class _Live:
    """The students of a stack that still learn: ``who`` of them, and the parameters that change.

    With ``simple``, plain gradient descent of a fully connected student is done by its layers, at
    the rate ``direct``.
    """

    def __init__(
        self, stack: Stack, step: Fit, training: TrainingTable, count: int, simple: bool
    ) -> None:
        self.stack, self.who = stack, list(range(count))
        self.losses: list[Loss] = []
        self._training, self._lr = training, step.lr or training.lr
        plain = training.optimiser == "sgd" and not (training.momentum or training.weight_decay)
        device = next(iter(stack.tensors.values())).device
        plain = plain and not torch.is_autocast_enabled(device.type)
        self.direct = self._lr if simple and plain and stack.dense else 0.0
        names = learning_names(stack.module, step.part)
        self.places = torch.arange(count, device=device)
        self._whole = True  # the parameters that learn are still the stack's own memory
        self.learning = {name: nn.Parameter(stack.tensors[name]) for name in names}
        self.tensors = {**stack.tensors, **self.learning}
        self.optimiser: Optimiser = self._optimiser()

    def _optimiser(self) -> Any:
        if self.direct:
            return _Done()
        return optimisers.optimiser(list(self.learning.values()), self._training, self._lr)

    def leave(self, done: list[int]) -> None:
        """Put students that have done their steps back into the stack."""
        if not done:
            return
        with torch.no_grad():
            if not self._whole:
                for name, parameter in self.learning.items():
                    self.stack.tensors[name][self.places] = parameter
            staying = [at for at, place in enumerate(self.who) if place not in set(done)]
            self.who = [self.who[at] for at in staying]
            if not self.who:
                return
            index = torch.tensor(staying, device=self.places.device)
            self.places, self._whole = self.places[index], False
            before, old = self.learning.copy(), cast(torch.optim.Optimizer, self.optimiser)
            self.tensors = {name: tensor.detach()[index] for name, tensor in self.tensors.items()}
            for name in before:
                self.learning[name] = nn.Parameter(self.tensors[name])
            self.tensors |= self.learning
            new = self._optimiser()
            for name, parameter in before.items():
                new.state[self.learning[name]] = {
                    key: value[index] if isinstance(value, Tensor) and value.dim() else value
                    for key, value in old.state[parameter].items()
                }
            self.optimiser = new
            for loss in self.losses:
                loss.keep(index)


class _Done:
    """Stands for an optimiser whose work the layers have done."""

    def __init__(self) -> None:
        self.state: dict[nn.Parameter, dict[str, Any]] = defaultdict(dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """There are no gradients."""

    def step(self) -> None:
        """There is nothing left to do."""


class _Joint:
    """One source of every student: their batches as one, of rows that lie behind one another."""

    def __init__(self, batches: Sequence[Batches], device: torch.device) -> None:
        self.batches, self.device = batches, device
        samples = [source.samples for source in batches]
        self.common = all(one is samples[0] for one in samples)
        counts = [len(one.inputs) for one in samples]
        self.offsets = torch.tensor([0, *counts[:-1]], device=device).cumsum(0)
        labels = [one.labels for one in samples]
        held = [one for one in labels if one is not None]
        joined = torch.cat(held) if len(held) == len(labels) else None
        if self.common:
            self.inputs = samples[0].inputs
        elif samples[0].inputs.dim() == 4:
            whole = torch.cat([one.inputs.permute(0, 2, 3, 1) for one in samples])
            self.inputs = whole.permute(0, 3, 1, 2)
        else:
            self.inputs = torch.cat([one.inputs for one in samples])
        # Losses look at how many rows there are, and of what kind.
        self.all = Samples(self.inputs.new_empty(1).expand(sum(counts)), joined)

    def draw(self, live: _Live, cuts: set[str]) -> Batch:
        """The next batch of those that still learn."""
        indices = [self.batches[place].index() for place in live.who]
        sizes = [len(index) for index in indices]
        most, count, device = max(sizes), len(sizes), self.device
        ragged = min(sizes) < most
        offsets = self.offsets[live.places]
        if ragged:
            filled = torch.stack([_filled(index, most) for index in indices])
        else:
            filled = torch.stack(indices)
        if self.batches[0].augment is not None and self.inputs.dim() == 4:
            pieces = [
                _filled(self.batches[place].inputs(index), most)
                for place, index in zip(live.who, indices, strict=True)
            ]
            inputs = torch.stack(pieces)
        else:
            flat = filled if self.common else filled + offsets[:, None]
            inputs = take(self.inputs, flat.flatten()).unflatten(0, (count, most))
        owners = torch.arange(count, device=device).repeat_interleave(most)
        chosen = None
        index = (filled + offsets[:, None]).flatten()
        shares = torch.full((len(index),), 1 / most, device=device)
        if ragged:
            lengths = torch.tensor(sizes, device=device)
            chosen = (
                (torch.arange(most, device=device) < lengths[:, None]).flatten().nonzero()[:, 0]
            )
            owners, index = owners[chosen], index[chosen]
            shares = (1 / lengths)[owners]
        held, logits = live.stack.forward(live.tensors, inputs, cuts, live.direct)
        labels = None if self.all.labels is None else self.all.labels[index]
        logits = logits.flatten(0, 1).float()
        if chosen is None:
            chosen = torch.arange(len(index), device=device)
        else:
            logits = logits.index_select(0, chosen)
        return Batch(
            index,
            labels,
            logits,
            held,
            chosen,
            drawn=len(index),
            owners=owners,
            shares=shares,
            places=live.places[owners],
            students=count,
        )


def _filled(rows: Tensor, count: int) -> Tensor:
    """``rows`` ``(k, ...)`` as ``(count, ...)``, the rest zeros."""
    if len(rows) == count:
        return rows
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def _joined(terms: Sequence[Term]) -> Term:
    """One term of all students: targets behind one another, other arrays ``(n, ...)``."""
    first = terms[0]
    changes: dict[str, Any] = {}
    for part in fields(first):
        values = [getattr(term, part.name) for term in terms]
        if isinstance(values[0], Tensor):
            changes[part.name] = torch.cat(values)
        elif isinstance(values[0], Head):
            heads = [cast(Head, value).parameters for value in values]
            changes[part.name] = replace(values[0], parameters=_stacked(heads))
        elif isinstance(first, Proximal) and values[0] is not None and part.name == "anchor":
            changes[part.name] = _stacked(values)
    return replace(first, **changes)


def _stacked(tensors: Sequence[Parameters]) -> Parameters:
    return {name: torch.stack([one[name] for one in tensors]) for name in tensors[0]}
