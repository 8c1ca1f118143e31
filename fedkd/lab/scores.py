"""Scores of records by one thing that a client sent: the higher, the more they speak for members.

The server compares what a client sent with a reference that it trains itself: the same experiment
with all records that may be members, so that it depends on nobody's membership. Which function is
for what follows from the step that was sent, and from the shape of its value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedkd.engine.worker import Worker
from fedkd.lab.likelihood_ratios import logit_confidence
from fedkd.lab.models import (
    architecture,
    confidence,
    distilled,
    loaded,
    over_all_classes,
    regression,
)
from fedkd.lab.worlds import Sent
from fedkd.students import named_blocks
from fedkd.training import on_all_items, predict, represent
from fedkd.work import (
    Count,
    Parameters,
    Predict,
    Represent,
    Rows,
    Samples,
    Select,
    Share,
    origin,
)

Scores: TypeAlias = "dict[str, np.ndarray]"
"""By attack: a score for each record ``(K,)``."""
LEAST_PROBABILITY = 1e-4
"""What stands for less in a regression of log-probabilities, as in labels that are one class."""
NEAREST = 5
"""Transfer samples that stand for variations of a record where labels or choices alone are seen."""


@dataclass
class Reference:
    """What the server's own run says of all records that may be members, by what it compares with.

    ``features`` and ``means`` are by client, round and place: of the records ``(K, d)``, and of
    their classes ``(C, d)``; ``rest`` are the parameters that a client does not send, by the same;
    ``bridges`` are regressions ``(K, M)`` from the transfer set to the records, by client;
    ``last`` is the round in which a client sends a thing for the last time, by client and place.
    """

    features: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)
    means: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)
    rest: dict[tuple[int, int, str], Parameters] = field(default_factory=dict)
    bridges: dict[int, Tensor] = field(default_factory=dict)
    last: dict[tuple[int, str], int] = field(default_factory=dict)

    def learn(self, worker: Worker, sent: Sent) -> None:
        """Take in what the server's own run has where ``sent`` was sent."""
        step, here = sent.step, (sent.client, sent.round, sent.place)
        self.last[sent.client, sent.place] = sent.round
        if isinstance(step, Select | Count):
            return
        if isinstance(step, Share):
            state = worker.parameters(sent.client, step.student)
            assert isinstance(sent.value, dict)
            if missing := {n: value.cpu() for n, value in state.items() if n not in sent.value}:
                self.rest[here] = missing
            return
        student = worker.module(sent.client, step.student)
        records = worker.samples(sent.client, "private")
        if worker.data.task.tokens:
            return
        if isinstance(sent.value, dict) and origin(step.on) == "private":
            self.features[here] = _as_sent(worker, step, sent.client, records.inputs)
            if step.per == "class":
                self.means[here] = sent.value["mean"]
        elif isinstance(sent.value, Tensor) and origin(step.on) == "transfer":
            # The last round's student counts: it is the best that the server has.
            blocks = [name for name, _ in named_blocks(student)]
            cut = blocks[-2] if len(blocks) > 1 else blocks[-1]
            transfer = worker.samples(sent.client, "transfer").inputs
            pair = [represent(student, inputs, cut)[0] for inputs in (records.inputs, transfer)]
            self.bridges[sent.client] = regression(*(part.clone().cpu() for part in pair))


def _as_sent(worker: Worker, step: Predict | Represent, client: int, inputs: Tensor) -> Tensor:
    """What the client's student says of each of some inputs, as ``step`` has it: ``(K, d)``."""
    student = worker.module(client, step.student)
    if isinstance(step, Predict):
        logits = predict(student, inputs).clone()
        found = logits if step.output == "logits" else (logits / step.temperature).softmax(1)
    else:
        found = represent(student, inputs, step.cut)[0].clone()
        found = found.mean((2, 3)) if step.pool and found.dim() == 4 else found
    return found.flatten(1).cpu()


def scores(worker: Worker, sent: Sent, records: Samples, reference: Reference) -> Scores:
    """Scores of a client's ``records`` by what it sent; empty where there is no attack on it."""
    step = sent.step
    if isinstance(step, Share):
        return _by_parameters(worker, sent, records, reference)
    if isinstance(step, Count):
        return _by_counts(sent, records)
    if isinstance(step, Select):
        return _by_selection(worker, sent, records)
    if isinstance(sent.value, Tensor):
        return _by_labels(worker, sent, records, reference)
    if (sent.client, sent.round, sent.place) not in reference.features:
        return {}
    if "mean" in sent.value:
        return _by_class_means(sent, records, reference)
    return _by_rows(sent, records, reference)


def _by_parameters(worker: Worker, sent: Sent, records: Samples, reference: Reference) -> Scores:
    """Log odds of the record's label by the model that was sent.

    Blocks that were not sent are those of the server's own run.
    """
    step = sent.step
    assert isinstance(step, Share)
    assert isinstance(sent.value, dict)
    rest = reference.rest.get((sent.client, sent.round, sent.place))
    model = architecture(worker, sent.client, step.student)
    student = loaded(worker, model, sent.value, rest)
    if student is None:
        return {}
    name = "confidence" if rest is None else "confidence under the server's own head"
    return {name: confidence(student, records)}


def _by_labels(worker: Worker, sent: Sent, records: Samples, reference: Reference) -> Scores:
    """Log odds of the record's label, from labels of the transfer set.

    By kernel regression of log-probabilities in the features of the server's own student: on digits
    it told members as well as a student distilled from the labels did, in one comparison, and takes
    no training. Of text a student is distilled, from what the client sends last. Where each label
    is one class alone, also by how many of the nearest transfer samples got the record's.
    """
    step = sent.step
    assert isinstance(step, Predict)
    assert isinstance(sent.value, Tensor)
    value, tokens = over_all_classes(worker, sent.value, step.on), worker.data.task.tokens
    if origin(step.on) != "transfer" or value.shape[-1] != worker.data.task.classes:
        return {}
    if isinstance(step.on, Rows):  # an even row weighs on no class, and one of NaN is no target
        inputs, others = worker.data.transfer().inputs, math.nan if tokens else None
        value = on_all_items(value, step.on.index, inputs, others)
    probabilities = value.double().softmax(1) if step.output == "logits" else value.double()
    if tokens:
        if reference.last[sent.client, sent.place] > sent.round:
            return {}
        student = distilled(worker, sent.client, probabilities.float())
        return {"confidence of a distilled student": confidence(student, records)}
    assert records.labels is not None
    bridge = reference.bridges[sent.client]
    rows = (bridge @ probabilities.clamp_min(LEAST_PROBABILITY).log()).softmax(1)
    found = {"kernel regression": logit_confidence(rows, records.labels).numpy()}
    if bool((probabilities.max(1).values > 1 - 1e-6).all()):
        hard = probabilities.argmax(1)
        near = bridge.topk(min(NEAREST, bridge.shape[1]), 1).indices
        agreeing = (hard[near] == records.labels[:, None]).double().mean(1)
        found["label-only: agreement of the nearest"] = agreeing.numpy()
    return found


def _by_selection(worker: Worker, sent: Sent, records: Samples) -> Scores:
    """How many of the samples that are nearest to a record are said to be like the client's own."""
    step = sent.step
    assert isinstance(step, Select)
    assert isinstance(sent.value, Tensor)
    samples = worker.samples(sent.client, step.on).inputs
    apart = torch.cdist(records.inputs.flatten(1), samples.flatten(1)).cpu()
    near = apart.topk(min(NEAREST, len(samples)), 1, largest=False).indices
    return {"selected among the nearest": sent.value[near].double().mean(1).numpy()}


def _by_counts(sent: Sent, records: Samples) -> Scores:
    """How many samples of a record's class there are."""
    assert isinstance(sent.value, Tensor)
    assert records.labels is not None
    if records.labels.dim() > 1:  # a record of text has many tokens
        return {}
    return {"count": sent.value.double()[records.labels].numpy()}


def _by_class_means(sent: Sent, records: Samples, reference: Reference) -> Scores:
    """Scores by the mean of each class, and how many records it is of.

    Tracing (Homer et al. 2008; Dwork et al. 2015): the inner product of what the mean has beyond
    the server's own with what the record has, times the number of records. Distance: how near the
    record is to the mean of its class. Count: how many of its class there are.
    """
    assert isinstance(sent.value, dict)
    assert records.labels is not None
    here = (sent.client, sent.round, sent.place)
    labels = records.labels
    own = reference.features[here].double()
    centre, mean = (each.double()[labels] for each in (reference.means[here], sent.value["mean"]))
    count = sent.value["count"].double()[labels]
    return {
        "tracing": (count * ((mean - centre) * (own - centre)).sum(1)).numpy(),
        "distance to the mean": -(own - mean).norm(dim=1).numpy(),
        "count": count.numpy(),
    }


def _by_rows(sent: Sent, records: Samples, reference: Reference) -> Scores:
    """How near the nearest row of the record's class is: members are rows themselves."""
    assert isinstance(sent.value, dict)
    assert records.labels is not None
    own = reference.features[sent.client, sent.round, sent.place]
    rows = sent.value["inputs"].flatten(1).to(own.dtype)
    apart = torch.cdist(own, rows)
    if (labels := sent.value.get("labels")) is not None:
        other = records.labels[:, None] != labels[None]
        # Of a class that nobody has, every row is as far as the farthest.
        apart = apart.masked_fill(other, float(apart.max()) if apart.numel() else 0.0)
    nearest = apart.min(1).values
    return {
        "nearest row (members are the rows)": -(nearest / own.norm(dim=1).clamp_min(1e-12))
        .double()
        .numpy()
    }
