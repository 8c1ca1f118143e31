"""Cohorts: clients that do the same steps with the same student, as one batched computation.

Their students are a *stack*: every parameter and buffer is ``(n, ...)``. Clients may have different
numbers of samples and steps. What a client computes is what it would compute alone, up to the order
in which floats are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedkd import students
from fedkd.engine import rule
from fedkd.engine.clients import Clients
from fedkd.engine.loyalty import together
from fedkd.engine.resolving import resolved
from fedkd.engine.sending import evaluated, predicted, represented, shared
from fedkd.engine.session import Session
from fedkd.engine.stack import Stack
from fedkd.engine.vectorised import filled_up, fit
from fedkd.random import generator
from fedkd.training.course import span
from fedkd.training.inference import in_bins, quality
from fedkd.training.losses import source_of
from fedkd.training.loyalty import Comparison, Loyalty
from fedkd.work import (
    Assignment,
    Evaluate,
    Fit,
    Load,
    Predict,
    Represent,
    Rows,
    Samples,
    Share,
    Step,
    origin,
)

CONTIGUOUS = torch.contiguous_format
ROWS = 4096
"""Rows of all students together that a forward pass takes at a time."""


class Cohort:
    """Assignments with the same steps, at work together: a session for each, and their stacks."""

    def __init__(self, clients: Clients, assignments: Sequence[Assignment]) -> None:
        self.clients = clients
        self.sessions = [
            _Member(clients, assignment, self, place)
            for place, assignment in enumerate(assignments)
        ]
        decided = rule.decisions(clients, assignments[0])
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
                represented(session, first, held, logits)
        elif isinstance(first, Predict):
            for place, (_, logits) in enumerate(self._forward(steps)):
                predicted(self.sessions[place], cast(Predict, steps[place]), logits)
        elif isinstance(first, Evaluate):
            for session, (_, logits) in zip(self.sessions, self._forward(steps), strict=True):
                labels = session.samples(first.on).labels
                if labels is not None and len(labels):
                    bins = in_bins(logits, labels) if first.bins else None
                    evaluated(session, first, quality(logits, labels), bins)
        for session in self.sessions:
            on = getattr(first, "on", "")
            session.metrics[f"cohort {type(first).__name__} {origin(on)}"] = 1.0

    def stack(self, student: str) -> Stack:
        """The sessions' students of this name."""
        if student not in self._stacks:
            clients, device = self.clients, self.clients.device
            states = [
                clients.parameters(session.assignment.client, student) for session in self.sessions
            ]
            tensors = {
                name: torch.stack([state[name] for state in states]).to(device)
                for name in states[0]
            }
            architecture = clients.architecture(self.sessions[0].assignment, student)
            self._stacks[student] = Stack(clients.template(architecture), tensors)
        return self._stacks[student]

    def _load(self, steps: tuple[Load, ...]) -> bool:
        """Take in parameters that all get and that are the whole student: without looking at it."""
        first, (student, shared) = steps[0], (steps[0].student, steps[0].parameters)
        if isinstance(shared, str) or any((step.keep, step.weight) != (0, 1) for step in steps):
            return False
        architecture = self.clients.architecture(self.sessions[0].assignment, student)
        template = self.clients.template(architecture)
        wanted = {name: tensor.shape for name, tensor in template.state_dict().items()}
        given = {name: tensor.shape for name, tensor in shared.items()}
        if first.part or given != wanted or any(step.parameters is not shared for step in steps):
            return False
        count, device = len(steps), self.clients.device
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
        counts, above = [len(samples.inputs) for samples in sources], sources[0].cut
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
                            filled_up(
                                samples.inputs[start : start + each], min(each, max(counts) - start)
                            )
                            for samples in sources
                        ]
                    )
                if not stack.dense:  # a layer may write into what it is given
                    inputs = inputs.clone()
                cuts = {cut} if cut else set()
                at, last = stack.forward(stack.tensors, inputs, cuts, above=above)
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
        first = wanted[0]
        alike = isinstance(first, str) or (
            isinstance(first, Rows) and all(on == first for on in wanted)
        )
        if isinstance(first, Samples) and all(on == first for on in wanted):
            return [self.sessions[0].samples(first)] * len(self.sessions)
        if alike and origin(first) in ("common", "transfer"):
            return [self.sessions[0].samples(first)] * len(self.sessions)
        if isinstance(first, str):
            whose = [session.assignment.client for session in self.sessions]
            return self.clients.together(first, whose)
        return [session.samples(on) for session, on in zip(self.sessions, wanted, strict=True)]

    # --- fit --------------------------------------------------------------------------------

    def _fit(self, steps: tuple[Fit, ...], phase: str) -> None:
        clients, first = self.clients, steps[0]
        training = self.sessions[0].training(first)
        sources = self._sources([step.on for step in steps])
        names = [peer.student for peer in first.peers]
        draws = [
            generator(clients.experiment.seed, "fit", *session.draws(step, phase)[0])
            for session, step in zip(self.sessions, steps, strict=True)
        ]
        terms = [
            [
                [
                    resolved(session, term, samples, step.on, {*names} - {name})
                    for term in step.peers[place].terms
                ]
                for session, step, samples in zip(self.sessions, steps, sources, strict=True)
            ]
            for place, name in enumerate(names)
        ]
        others = {
            on: self._sources([source_of(term) for term in column])
            for of_peer in terms
            for column in zip(*of_peer, strict=True)
            if (on := source_of(column[0])) is not None
        }
        stacks = [self.stack(name) for name in names]
        for stack in stacks:
            stack.own()
        part = training.part
        together = tuple(replace(peer, part=peer.part or part) for peer in first.together)
        first = replace(first, part=first.part or part, together=together)
        kept = [[each.beside.optimiser(first, name) for each in self.sessions] for name in names]
        blends = [[step.peers[place].at for step in steps] for place in range(len(names))]
        compared = [
            [
                session.compared(step, name, mine, samples)
                for session, step, mine, samples in zip(
                    self.sessions, steps, of_peer, sources, strict=True
                )
            ]
            for name, of_peer in zip(names, terms, strict=True)
        ]
        before = self._loyalties(stacks, compared)
        done = fit(
            stacks,
            sources,
            terms,
            training,
            draws,
            first,
            others,
            clients.augment,
            kept,
            blends,
            span(self.sessions[0].assignment.round, clients.experiment.rounds),
        )
        for peer, (losses, slopes) in zip(first.peers, done, strict=True):
            for session, loss, slope in zip(self.sessions, losses, slopes, strict=True):
                session.changed.add(peer.student)
                session.metrics[peer.key] = loss
                session.metrics |= dict.fromkeys(peer.keys[1:], slope)
        after = self._loyalties(stacks, compared)
        for session, mine, now in zip(self.sessions, before, after, strict=True):
            session.metrics |= session.loyalties.add(mine, now)

    def _loyalties(
        self, stacks: Sequence[Stack], compared: Sequence[Sequence[list[Comparison | None]]]
    ) -> list[list[Loyalty]]:
        """Of each session: the loyalties of its students, as they are now."""
        found = [together(*pair, ROWS) for pair in zip(stacks, compared, strict=True)]
        return [[one for of_stack in found for one in of_stack[n]] for n in range(len(found[0]))]


class _Member(Session):
    """A session whose students are in the stacks of its cohort."""

    def __init__(
        self, clients: Clients, assignment: Assignment, cohort: Cohort, place: int
    ) -> None:
        super().__init__(clients, assignment)
        self.cohort, self.place = cohort, place

    def student(self, name: str) -> nn.Sequential:
        """The client's student, taken out of the stack; valid until the next call."""
        stack = self.cohort.stack(name)
        client = self.assignment.client
        if name not in self.students:
            self.clients.probe(self.architecture(name))
            self.students[name] = self.clients.module(client, name)
        module = self.students[name]
        with torch.no_grad():
            for key, tensor in module.state_dict().items():
                tensor.copy_(stack.tensors[key][self.place])
        return module

    def do(self, step: Step, phase: str) -> None:
        if isinstance(step, Share):
            shared(self, step, self.cohort.stack(step.student).shared(self.place, step.part))
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
            self.clients.keep(self.assignment.client, name, mine)
        self.beside.keep()
