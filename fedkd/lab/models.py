"""Models that a server makes of what a client sent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.engine.worker import Worker
from fedkd.lab.likelihood_ratios import logit_confidence
from fedkd.privacy.candidates import over_classes
from fedkd.privacy.release import known_of
from fedkd.random import generator, key
from fedkd.students import build
from fedkd.students.pair import table_of
from fedkd.training import fit, item_labels, predict
from fedkd.work import Parameters, Samples, Soft, Source

PROXY_EPOCHS = 5.0
"""Passes over the transfer set in which the server distils a client's soft labels.

More tell no more of who is a member: on 200 rows of pydoc the AUC is 0.925 after 5 passes and 0.930
after 20, each within 0.025.
"""
RIDGE = 0.1
"""Of kernel regression, in units of the kernel's largest value."""


def over_all_classes(worker: Worker, value: Tensor, on: Source) -> Tensor:
    """Soft labels ``(R, C)`` of a source, whether or not they came over candidates."""
    among = known_of(worker.public, on, len(value)).among
    if among is None or value.dim() != 2 or len(value) != len(among):
        return value
    return over_classes(value, among, worker.data.task.classes)


def architecture(worker: Worker, client: int, student: str) -> str:
    """The architecture of the client's student of this name."""
    kept_as = worker.key(client, student) or student
    return kept_as.partition(":")[2] or worker.experiment.architecture(client)


def fresh(worker: Worker, model: str) -> nn.Sequential:
    """A student of this architecture, its weights those of nobody."""
    experiment, task = worker.experiment, worker.data.task
    seed = key(experiment.seed, "proxy", model)
    table = table_of(experiment)
    return build(model, task.shape, task.classes, table, seed, tokens=task.tokens)


def loaded(
    worker: Worker, model: str, given: Parameters, rest: Parameters | None = None
) -> nn.Sequential | None:
    """A student with the parameters ``given``, and of the ``rest`` what these lack.

    None unless together they are all of its parameters.
    """
    student = fresh(worker, model)
    state = student.state_dict()
    tensors = {**(rest or {}), **given}
    if {name: value.shape for name, value in state.items()} != {
        name: value.shape for name, value in tensors.items()
    }:
        return None
    student.load_state_dict(tensors)
    return student


def distilled(worker: Worker, client: int, labels: Tensor) -> nn.Sequential:
    """A student that the server distils from one client's soft labels ``(M, C)``."""
    experiment, student = worker.experiment, fresh(worker, worker.experiment.architecture(client))
    if worker.public.model is not None and experiment.student.init == "public":
        student.load_state_dict(worker.public.model.state_dict())
    draw = generator(experiment.seed, "proxy", client)
    samples = Samples(worker.data.transfer().inputs)
    training = experiment.training.model_copy(update={"min_steps": 0})
    fit(student, samples, [Soft(labels)], training, draw, epochs=PROXY_EPOCHS)
    return student


def confidence(student: nn.Sequential, samples: Samples) -> np.ndarray:
    """``(K,)``: log odds of each record's label; of text, the mean log-likelihood of its tokens."""
    logits = predict(student, samples.inputs)
    labels = item_labels(samples)
    assert labels is not None
    if samples.labels is not None and samples.labels.dim() == 1:
        return logit_confidence(logits.softmax(1), labels).numpy()
    there = labels >= 0
    likelihood = logits.log_softmax(1).gather(1, labels.clamp_min(0)[:, None])[:, 0] * there
    rows = (samples.inputs != 0).sum(1)
    owner = torch.arange(len(rows)).repeat_interleave(rows)
    total = torch.zeros(len(rows)).index_add_(0, owner, likelihood)
    return (total / torch.zeros(len(rows)).index_add_(0, owner, there.float()).clamp_min(1)).numpy()


def regression(features: Tensor, known: Tensor) -> Tensor:
    """The kernel ridge regression ``(K, M)`` that brings values at ``known`` to ``features``.

    A Gaussian kernel, as wide as the median distance between two of ``known``; its product with
    any values ``(M, C)`` is their regression at the K features.

    Parameters
    ----------
    features : Tensor of shape (K, d)
        Where values are wanted.
    known : Tensor of shape (M, d)
        Where they are known.
    """
    features, known = features.double().flatten(1), known.double().flatten(1)
    apart = torch.cdist(known, known)
    width = apart.median().clamp_min(1e-12)
    kernel = (-((apart / width) ** 2) / 2).exp()
    kernel += RIDGE * torch.eye(len(known), dtype=torch.float64)
    across = (-((torch.cdist(features, known) / width) ** 2) / 2).exp()
    return torch.linalg.solve(kernel, across.T).T
