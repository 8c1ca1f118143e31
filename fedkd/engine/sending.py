"""What the outcomes of steps are sent as, with their lines of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from fedkd.compression import Delta
from fedkd.distillation.objectives import SMALLEST
from fedkd.encodings import as_received, encoded, factorised, loaded
from fedkd.engine.at_work import AtWork
from fedkd.errors import FedkdError
from fedkd.privacy.accounting import Release
from fedkd.privacy.release import applies, known_of, release
from fedkd.random import privacy_noise
from fedkd.training import class_means, item_labels
from fedkd.work import Evaluate, Parameters, Predict, Represent, Samples, Sending, Share, origin


def evaluated(
    work: AtWork, step: Evaluate, found: Mapping[str, float], bins: Tensor | None = None
) -> None:
    """Give out what was measured, as the step has it."""
    if step.bins and found and bins is not None:
        work.values[step.bins_key] = bins
    work.metrics |= {f"{step.key}_{name}": value for name, value in found.items()}


def give(
    work: AtWork,
    step: Sending,
    value: Tensor | Parameters,
    items: int,
    **details: Any,
) -> None:
    """Give out ``value``, with a line of the ledger unless it is only tried out.

    ``items`` is the number of rows; ``details`` say what was done to them, which is nothing
    where there are none.
    """
    work.values[step.key] = value
    if work.trying:
        return
    line = Release(
        round=work.assignment.round,
        client=work.assignment.client,
        step=type(step).__name__,
        key=step.key,
        items=items,
        on=origin(getattr(step, "on", "")),
        **details,
    )
    work.releases.append(line.to_dict(brief=True))


def shared(work: AtWork, step: Share, parameters: Parameters) -> None:
    """Give out parameters, as the step has it."""
    if step.encoding is not None:
        known = loaded(work.assignment.steps, step)
        parameters = factorised(parameters, step.encoding, known)
    give(work, step, parameters, 1)


def predicted(work: AtWork, step: Predict, given: Tensor) -> None:
    """Give out logits ``(M, C)``, as the step has it."""
    if applies(step, work.clients.experiment.release) and not work.trying:
        released(work, step, given)
        return
    if step.output == "probabilities":
        given = (given / step.temperature).softmax(1)
    if step.per == "sample":
        give(work, step, as_sent(work, step, given.cpu()), len(given))
        return
    means = means_by_class(work, given, work.samples(step.on))
    give(work, step, means, len(means["mean"]))


def released(work: AtWork, step: Predict, logits: Tensor) -> None:
    """Give out what ``[release]`` makes of logits; where they are asked for, its logarithm."""
    clients, assignment = work.clients, work.assignment
    table, seed, classes = clients.experiment.release, clients.experiment.seed, logits.shape[1]
    public = known_of(clients.public, step.on, len(logits))
    # Whoever names no answer asks for a new one.
    new = f"{assignment.round} {assignment.phase} unnamed {len(work.releases)}"
    purpose = (assignment.client, step.answer or new)
    draw = privacy_noise(table.secure, seed, "release", *purpose, *clients.world)
    labels = release(logits, step.temperature, table, public, draw).cpu()
    value = labels.clamp_min(SMALLEST).log() if step.output == "logits" else labels
    details = clients.charge(step.temperature, public, classes)
    given = as_sent(work, step, value)
    give(work, step, given, len(labels), answer=step.answer, **details)


def represented(work: AtWork, step: Represent, held: Tensor, logits: Tensor) -> None:
    """Give out representations ``(K, ...)`` and logits ``(K, C)``, as the step has it."""
    samples = work.samples(step.on)
    if step.pool and held.dim() == 4:
        held = held.mean((2, 3))
    if step.per == "class":
        means = means_by_class(work, held.flatten(1), samples)
        give(work, step, means, len(means["mean"]))
        return
    labels = {} if samples.labels is None else {"labels": samples.labels.cpu()}
    soft_labels = (logits / step.temperature).softmax(1).cpu()
    give(work, step, {"inputs": held.cpu(), "soft_labels": soft_labels, **labels}, len(held))


def as_sent(work: AtWork, step: Predict, labels: Tensor) -> Tensor | Parameters:
    """Soft labels ``(R, C)`` as they travel."""
    how, client = step.encoding, work.assignment.client
    if how is None or work.trying:
        return labels
    if not isinstance(how, Delta):
        return encoded(labels, how)
    known = work.clients.held(client, "sent", how, step.on)
    # To a version that is not here, all rows have changed.
    arrays = encoded(labels, how, known)
    now = how if known is not None else replace(how, since=0)
    work.clients.hold_labels(client, "sent", now, step.on, as_received(labels, how))
    return arrays


def means_by_class(work: AtWork, values: Tensor, samples: Samples) -> Parameters:
    """The means of rows ``(K, d)`` by class, and how many there are."""
    if samples.labels is None:
        raise FedkdError("per class: the samples have no labels (the transfer set never has)")
    labels = cast(Tensor, item_labels(samples))
    means = class_means(values, labels, work.clients.data.task.classes)
    return {name: value.cpu() for name, value in means.items()}
