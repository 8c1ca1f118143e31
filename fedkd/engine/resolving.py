"""Terms with their targets at hand: what names, mixtures and encodings stand for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

from torch import Tensor

from fedkd.compression import Delta
from fedkd.distillation.objectives import columns_of
from fedkd.encodings import decoded
from fedkd.engine.at_work import AtWork
from fedkd.mixtures import Mixture, travelling, with_travelling
from fedkd.training import class_targets, made_targets, predict, represent, said
from fedkd.training.student import names_around
from fedkd.work import Contrast, CrossEntropy, Head, Samples, Soft, Source, Term


def resolved(
    work: AtWork, term: Term, samples: Samples, on: Source, peers: Collection[str] = ()
) -> Term:
    """``term`` of a step on ``on``, its targets at hand.

    They are what another student says in the place of that student's name, made of parts, or
    decoded. Not of ``peers``, which learn together: what they say comes with each batch.
    """
    if isinstance(term, CrossEntropy | Soft) and term.through is not None:
        term = replace(term, through=_framed(work, term.through))
    if isinstance(term, Contrast):
        return _contrasted(work, term, samples)
    if isinstance(term, Soft) and term.encoding is not None:
        term = _decoded(work, term, on if term.on is None else term.on)
    if not isinstance(term, Soft) or not isinstance(term.targets, str | Mixture):
        return term
    if isinstance(term.targets, str) and term.targets in peers:
        return term
    source = samples if term.on is None else work.samples(term.on)
    answer = partial(_answer, work, term, source)
    if isinstance(term.targets, Mixture):
        targets = made_targets(term, source, work.clients.data.task.classes, answer)
    else:
        targets = answer(term.targets)
    return replace(term, targets=targets)


def _answer(work: AtWork, term: Soft, source: Samples, name: str) -> Tensor:
    """What the student of this name says of the samples, in the place of targets."""
    seed = work.seed(term, term.on, name)
    logits = predict(work.student(name), source.inputs, seed, source.cut).clone()
    if term.per == "class":
        return class_targets(term, logits, source)
    return said(term, logits)


def _framed(work: AtWork, head: Head) -> Head:
    """A head with a student's parameters in the place of its name."""
    if not isinstance(head.parameters, str):
        return head
    student = work.student(head.parameters)
    names, tensors = names_around(student, head.below, head.cut), student.state_dict()
    return replace(head, parameters={name: tensors[name].clone() for name in names})


def _decoded(work: AtWork, term: Soft, on: Source) -> Soft:
    """``term`` with the targets that were encoded for the way."""
    client, how = work.assignment.client, term.encoding
    (given,) = travelling(term.targets)
    assert isinstance(given, dict)
    assert how is not None
    columns = columns_of(term.objective, work.clients.data.task.classes)
    columns = columns if term.among is None else term.among.shape[1] + 1
    known = None
    if isinstance(how, Delta):
        known = work.clients.held(client, "received", how, on)
        if how.since and known is None:
            raise RuntimeError(f"soft labels {how.name!r} of version {how.since} are not held")
    shape = len(work.clients.label_rows(on)), columns
    targets = decoded(given, how, shape, known)
    if isinstance(how, Delta):
        work.clients.hold_labels(client, "received", how, on, targets)
    return replace(term, targets=with_travelling(term.targets, targets), encoding=None)


def _contrasted(work: AtWork, term: Contrast, samples: Samples) -> Contrast:
    """``term`` with other students' representations in the place of their names."""
    source = samples if term.on is None else work.samples(term.on)

    def of(given: Tensor | str) -> Tensor:
        if isinstance(given, Tensor):
            return given
        seed = work.seed(term, term.on, given)
        student, above = work.student(given), source.cut
        held, _ = represent(student, source.inputs, term.cut, seed, above)
        return held.flatten(1).clone()

    return replace(term, positive=of(term.positive), negative=of(term.negative))
