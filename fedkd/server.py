"""Students that the server trains, with the same loop as the clients."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fedkd import students
from fedkd.data.federated import Task
from fedkd.engine.devices import device
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.hooks import trace
from fedkd.privacy.public import Public
from fedkd.random import generator, key
from fedkd.steps import about
from fedkd.terms import check_server_fit
from fedkd.training import BatchOfOne, fit, predict
from fedkd.work import Fit, Parameters, Samples, Term


class ServerStudents:
    """Students on the server, by name: a global student, heads on uploaded representations.

    Their parameters are part of a strategy's state, so a resumed run goes on with them.
    """

    def __init__(self, experiment: Experiment, public: Public | None = None) -> None:
        self._experiment, self._public = experiment, public
        self._device = device(experiment.engine.device)
        self._students: dict[str, nn.Sequential] = {}
        self._saved: dict[str, Parameters] = {}
        self._fits: Counter[tuple[str, int]] = Counter()
        # What was given out of each since it was last changed, and how it was then.
        self._copies: dict[str, tuple[Parameters, Any]] = {}

    def add(self, name: str, make: Callable[[], nn.Sequential]) -> None:
        """Have a student called ``name``, made by ``make`` unless it is there already."""
        if name in self._students:
            return
        student = make().to(self._device)
        if name in self._saved:
            student.load_state_dict(self._saved.pop(name))
        self._students[name] = student

    def fit(
        self,
        name: str,
        round: int,
        samples: Samples,
        terms: Sequence[Term],
        epochs: float,
        *,
        lr: float | None = None,
        batch_size: int | None = None,
        optimiser: Literal["adam", "adamw", "sgd"] | None = None,
    ) -> float:
        """Train the student ``name`` on ``samples``; the mean loss of the last pass.

        What is not given comes from ``[training]``; with an ``optimiser`` of its own the server
        has neither the clients' momentum nor their weight decay. A term with ``on="public"``
        draws from the transfer set as it was before canaries.

        Raises
        ------
        FedkdError
            There is no such student, or what is asked does not fit it, in one line.
        """
        student = self._student(name)
        public = Samples(torch.empty(0)) if self._public is None else self._public.samples
        asked = Fit(samples, cast(tuple[Term, ...], terms), epochs, 0, lr, student=name)
        with about(f"server student {name!r}"):
            check_server_fit(asked, student, samples, public)
        self._fits[name, round] += 1
        self._copies.pop(name, None)
        training = self._experiment.training
        if batch_size is not None:
            training = training.model_copy(update={"batch_size": batch_size})
        if optimiser is not None:
            own = {"optimiser": optimiser, "momentum": 0.0, "weight_decay": 0.0}
            training = training.model_copy(update=own)
        purpose = ("server", name, round, self._fits[name, round])
        try:
            return fit(
                student,
                self._on_device(samples),
                terms,
                training,
                generator(self._experiment.seed, "fit", *purpose),
                epochs=epochs,
                min_steps=0,
                lr=lr,
                sources={"public": partial(self._on_device, public)},
            )
        except BatchOfOne as error:
            raise FedkdError(f"the server's student {name!r}: {error}") from error

    def _student(self, name: str) -> nn.Sequential:
        if name not in self._students:
            known = ", ".join(self._students) or "none"
            raise FedkdError(f"server student {name!r} is not known; known: {known}")
        return self._students[name]

    def _on_device(self, samples: Samples) -> Samples:
        labels = None if samples.labels is None else samples.labels.to(self._device)
        return Samples(samples.inputs.to(self._device), labels)

    def predict(self, name: str, inputs: Tensor) -> Tensor:
        """Logits ``(K, C)``."""
        self._copies.pop(name, None)  # of a student that writes to its buffers
        seed = key(self._experiment.seed, "answer", "server", name)
        return predict(self._student(name), inputs.to(self._device), seed).clone().cpu()

    def load(self, name: str, parameters: Parameters) -> None:
        """Give the student these parameters and buffers, which are all that it has.

        Raises
        ------
        FedkdError
            They are not: one is missing, or of another shape.
        """
        tensors = self._student(name).state_dict()
        for each in (*tensors, *parameters):
            mine, given = tensors.get(each), parameters.get(each)
            if mine is None or given is None or mine.shape != given.shape:
                raise FedkdError(
                    f"server student {name!r}: {each} is {_shape(mine)}, and of the parameters it "
                    f"is {_shape(given)}"
                )
        self._copies.pop(name, None)
        with torch.no_grad():
            for each, tensor in tensors.items():
                tensor.copy_(parameters[each])

    def parameters(self, name: str) -> Parameters:
        """A copy of its parameters and buffers: one object as long as both stay as they are.

        So what many clients get is encoded, and kept, once.
        """
        copy, seen = self._copies.get(name, ({}, None))
        if seen is None or trace(copy) != seen:
            tensors = self._student(name).state_dict()
            copy = {key: tensor.cpu().clone() for key, tensor in tensors.items()}
            self._copies[name] = copy, trace(copy)
        return copy

    def state(self) -> dict[str, Parameters]:
        """All students' parameters, for a checkpoint."""
        return self._saved | {name: self.parameters(name) for name in self._students}

    def restore(self, state: dict[str, Parameters]) -> None:
        """Take in what :meth:`state` gave; students take it when they are added again."""
        self._students.clear()
        self._copies.clear()
        self._saved = dict(state)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"


def blocks_above(experiment: Experiment, task: Task, model: str, cut: str) -> nn.Sequential:
    """A fresh head with the shape of ``model``'s blocks above ``cut``, named as they are there."""
    seed = key(experiment.seed, "head", model, cut)
    student = students.build(
        model, task.shape, task.classes, experiment.student, seed, tokens=task.tokens
    )
    return student[students.cut_index(student, cut) :]


def small_head(
    experiment: Experiment, task: Task, shape: tuple[int, ...], hidden: int, name: str
) -> nn.Sequential:
    """A fresh head of one hidden layer on representations of ``shape``, whatever the student."""
    inputs = torch.Size(shape).numel()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(experiment.seed, "head", name))
        return nn.Sequential(
            OrderedDict(
                fc1=nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU()),
                head=nn.Linear(hidden, task.classes),
            )
        )
