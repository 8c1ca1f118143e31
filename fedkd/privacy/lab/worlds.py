"""Worlds: an experiment run again to be attacked, and what its clients send in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeAlias

from flwr.app import Message
from torch import Tensor

from fedkd import registry
from fedkd.engine.inline import InlineGrid
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.work import Assignment, Parameters, Reply, decode

Values: TypeAlias = "dict[str, Tensor | Parameters]"


class _Heard(Exception):
    """The last round's knowledge has been sent."""


class Untested(Worker):
    """Measures nothing, as an attack looks at what is sent alone."""

    def perform_all(
        self, assignments: Sequence[Assignment], *progress: Any, **care: Any
    ) -> list[Reply]:
        """Perform assignments without their trials."""
        untested = [replace(assignment, trial=()) for assignment in assignments]
        return super().perform_all(untested, *progress, **care)


class _Listening(InlineGrid):
    """Keeps what clients sent last, and ends the run when they have sent it for the last time."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self.heard: dict[int, Values] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        asked = list(messages)
        answers = list(super().send_and_receive(asked, timeout=timeout))
        learnt = [message for message in answers if message.metadata.message_type == "train"]
        for message in learnt:
            reply: Reply = decode(message.content)
            if reply.error:
                raise FedkdError(reply.error)
            if reply.failure:
                continue
            sent = {line["key"] for line in reply.releases}
            self.heard[reply.client] = {k: v for k, v in reply.values.items() if k in sent}
        last = str(self.worker.experiment.rounds)
        if any(message.metadata.group_id == last for message in learnt):
            raise _Heard
        return answers


def knowledge(worker: Worker) -> dict[int, Values]:
    """What each client sends last in the worker's experiment, which is run from the start.

    What the server makes of it in the last round is left out.
    """
    experiment, data = worker.experiment, worker.data
    method = registry.load("strategies", experiment.strategy.name)
    strategy = method(
        experiment, data.task, data.label_counts(), data.transfer().inputs, public=worker.public
    )
    grid = _Listening(worker)
    with suppress(_Heard):
        strategy.start(grid)
    return grid.heard


def quiet(experiment: Experiment) -> Experiment:
    """``experiment`` in this process, measuring nothing before its last round."""
    engine = experiment.engine.model_copy(update={"name": "inline"})
    return experiment.model_copy(update={"engine": engine, "evaluate_every": experiment.rounds})
