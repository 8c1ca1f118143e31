"""Models that a server makes of what a client sent."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fedkd.engine.worker import Worker
from fedkd.privacy.lab.worlds import Values
from fedkd.privacy.release import over_classes
from fedkd.random import generator, key
from fedkd.students import build
from fedkd.training import fit, predict
from fedkd.work import Parameters, Samples, Soft

PROXY_EPOCHS = 20.0
"""Passes over the transfer set in which the server distils a client's soft labels."""


def plain(values: Values, worker: Worker) -> Values:
    """``values`` with soft labels over candidates brought back to all classes."""
    among = worker.public.among
    if among is None:
        return values
    classes = worker.data.task.classes
    return {
        name: over_classes(value, among, classes)
        if isinstance(value, Tensor) and value.dim() == 2 and len(value) == len(among)
        else value
        for name, value in values.items()
    }


def model(worker: Worker, client: int, values: Values) -> tuple[nn.Sequential, str] | None:
    """A model of what a client sent, and what it was."""
    for name, value in plain(values, worker).items():
        if isinstance(value, dict):
            model = loaded(worker, client, value)
            if model is not None:
                return model, f"the {name} it sent"
        elif value.dim() == 2 and value.shape[1] == worker.data.task.classes:
            labels = value.softmax(1) if name == "logits" else value
            words = name.replace("_", " ")
            return proxy(worker, client, labels), f"a student distilled from the {words} it sent"
    return None


def fresh(worker: Worker, client: int) -> nn.Sequential:
    """A student of the client's architecture, its weights those of nobody."""
    experiment, task = worker.experiment, worker.data.task
    name = experiment.architecture(client)
    seed = key(experiment.seed, "proxy", name)
    table = experiment.student
    return build(name, task.shape, task.classes, table, seed, tokens=task.tokens)


def loaded(worker: Worker, client: int, given: Parameters) -> nn.Sequential | None:
    """The client's student with the parameters it sent; None unless they are all of them."""
    model = fresh(worker, client)
    state = model.state_dict()
    if {name: value.shape for name, value in state.items()} != {
        name: value.shape for name, value in given.items()
    }:
        return None
    model.load_state_dict(given)
    return model


def proxy(worker: Worker, client: int, labels: Tensor) -> nn.Sequential:
    """A student that the server distils from one client's soft labels ``(M, C)``."""
    experiment, model = worker.experiment, fresh(worker, client)
    if worker.public.model is not None and experiment.student.init == "public":
        model.load_state_dict(worker.public.model.state_dict())
    draw = generator(experiment.seed, "proxy", client)
    samples = Samples(worker.data.transfer().inputs)
    training = experiment.training.model_copy(update={"min_steps": 0})
    fit(model, samples, [Soft(labels)], training, draw, epochs=PROXY_EPOCHS)
    return model


def laws(worker: Worker, client: int, given: Any) -> Tensor | None:
    """Soft labels ``(M, C)`` on the transfer set of parameters that a client sent."""
    model = loaded(worker, client, given)
    if model is None:
        return None
    return predict(model, worker.data.transfer().inputs).softmax(1)
