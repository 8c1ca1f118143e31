"""How loyal clients' students are to what they distil from: measured as their fits are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedkd.engine.stack import Stack
from fedkd.engine.vectorised import filled_up
from fedkd.experiment import Experiment
from fedkd.random import key
from fedkd.students.probe import Probe
from fedkd.training.losses import source_of
from fedkd.training.loyalty import Comparison, Loyalty, comparison, loyalties, metrics
from fedkd.work import Assignment, Samples, Source, Term


class Loyalties:
    """The loyalties of one client's students in the fits of an assignment."""

    def __init__(self, experiment: Experiment, assignment: Assignment) -> None:
        whose = assignment.client, assignment.round
        self._most = experiment.measure.loyalty if experiment.measured(assignment.round) else 0
        self._draws = key(experiment.seed, "loyalty", *whose)
        self._before: list[Loyalty] = []
        self._after: list[Loyalty] = []

    def comparisons(
        self,
        terms: Sequence[Term],
        samples: Samples,
        named: Callable[[Source], Samples],
        probe: Callable[[], Probe],
    ) -> list[Comparison | None]:
        """What to compare a student with that learns by ``terms``: for each, or None.

        ``samples`` are the step's own, ``named`` gives those of other sources. A student that is
        changed by answering (``probe`` tells) is not measured, nor is one that nothing asks for.
        """
        found: list[Comparison | None] = []
        for term in terms if self._most else ():
            on = source_of(term)
            source = samples if on is None else named(on)
            found.append(comparison(term, source, self._most))
        if any(found) and ((known := probe()).answers.writes or known.counts):
            return []
        return found

    def of(self, student: nn.Sequential, found: Sequence[Comparison | None]) -> list[Loyalty]:
        """The student's loyalties as it is now."""
        return loyalties(student, found, self._draws)

    def add(self, before: Sequence[Loyalty], after: Sequence[Loyalty]) -> dict[str, float]:
        """Note what a fit has changed; the metrics of all fits up to now."""
        self._before += before
        self._after += after
        return metrics(self._before, self._after)


def together(
    stack: Stack, found: Sequence[Sequence[Comparison | None]], most: int
) -> list[list[Loyalty]]:
    """What :meth:`Loyalties.of` gives of each student of a stack, for its comparisons.

    A forward pass takes ``most`` rows of all students together.
    """
    each: list[list[Loyalty]] = [[] for _ in found]
    for column in zip(*found, strict=True) if all(found) else ():
        there = [one for one in column if one is not None]
        if not there:
            continue
        answers = _answers(stack, [one or there[0] for one in column], most)
        for one, logits, mine in zip(column, answers, each, strict=True):
            if one is not None:
                mine.append(one.loyalty(logits))
    return each


@torch.inference_mode()
def _answers(stack: Stack, found: Sequence[Comparison], most: int) -> list[Tensor]:
    """Logits ``(K, C)`` of each student on the samples that it is compared on."""
    first, counts = found[0], [len(one.index) for one in found]
    shared = all(
        one.samples is first.samples and torch.equal(one.index, first.index) for one in found
    )
    each, pieces = max(1, most // len(found)), []
    stack.module.eval()
    for start in range(0, max(counts), each):
        stop = min(start + each, max(counts))
        parts = [_inputs(one, start, stop) for one in (found[:1] if shared else found)]
        inputs = torch.stack(parts)
        if shared:
            inputs = inputs.expand(len(found), *parts[0].shape)
            inputs = inputs if stack.dense else inputs.clone()  # a layer may write to its inputs
        _, logits = stack.forward(stack.tensors, inputs, set(), above=first.samples.cut)
        pieces.append(logits.float())
    whole = torch.cat(pieces, 1)
    return [logits[:count] for logits, count in zip(whole, counts, strict=True)]


def _inputs(one: Comparison, start: int, stop: int) -> Tensor:
    """Inputs of the samples from ``start`` to ``stop``, filled up where there are fewer."""
    return filled_up(one.samples.inputs[one.index[start:stop]], stop - start)
