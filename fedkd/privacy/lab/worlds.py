"""Worlds: an experiment run again to be attacked, and what its clients send in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from flwr.app import Message
from torch import Tensor

from fedkd import registry
from fedkd.data.federated import FederatedData
from fedkd.engine.inline import InlineGrid
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.work import Assignment, Parameters, Predict, Reply, Represent, Share


@dataclass(frozen=True)
class Sent:
    """One thing that a client sent in a round: the step that gave it, and its value."""

    client: int
    round: int
    step: Predict | Represent | Share
    value: Tensor | Parameters

    @property
    def place(self) -> str:
        """What is sent, by the kind of the step and its key: ``"Predict soft_labels"``."""
        return f"{type(self.step).__name__} {self.step.key}"


Listener: TypeAlias = "Callable[[Worker, Sent], None]"


class _LastSent(Exception):
    """Nothing more will be sent."""


class WatchedWorker(Worker):
    """Shows a listener all that clients send, and measures nothing beside it."""

    def __init__(
        self,
        experiment: Experiment,
        listener: Listener,
        data: FederatedData | None = None,
        world: int = 0,
    ) -> None:
        super().__init__(experiment, data, world)
        self.listener = listener
        self.sends_late = False
        """Whether something was sent after fusion, which in the last round is to be waited for."""

    def perform_all(
        self, assignments: Sequence[Assignment], *progress: Any, **care: Any
    ) -> list[Reply]:
        """Perform assignments without their trials."""
        untested = [replace(assignment, trial=()) for assignment in assignments]
        replies = super().perform_all(untested, *progress, **care)
        for assignment, reply in zip(untested, replies, strict=True):
            if reply.error:
                raise FedkdError(reply.error)
            for step in () if reply.failure else assignment.steps:
                if isinstance(step, Predict | Represent | Share):
                    self.sends_late |= assignment.phase != "learn"
                    value = reply.values[step.key]
                    self.listener(self, Sent(reply.client, assignment.round, step, value))
        return replies


class _ShortGrid(InlineGrid):
    """Ends the run when clients have sent something for the last time."""

    worker: WatchedWorker

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        answers = list(super().send_and_receive(messages, timeout=timeout))
        last = str(self.worker.experiment.rounds)
        learnt = [answer for answer in answers if answer.metadata.message_type == "train"]
        if not self.worker.sends_late and any(one.metadata.group_id == last for one in learnt):
            raise _LastSent
        return answers


def play(worker: WatchedWorker) -> None:
    """Run the worker's experiment from the start, until clients have sent all that they send.

    What the server makes of it in the last round is left out.
    """
    experiment, data = worker.experiment, worker.data
    method = registry.load("strategies", experiment.strategy.name)
    strategy = method(
        experiment, data.task, data.label_counts(), data.transfer().inputs, public=worker.public
    )
    grid = _ShortGrid(worker)
    with suppress(_LastSent):
        strategy.start(grid)


def quiet(experiment: Experiment) -> Experiment:
    """``experiment`` in this process, measuring nothing before its last round."""
    engine = experiment.engine.model_copy(update={"name": "inline"})
    return experiment.model_copy(update={"engine": engine, "evaluate_every": experiment.rounds})
