"""Worlds: an experiment run again to be attacked, and what its clients send in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from fedkd import registry, students
from fedkd.compression import Delta
from fedkd.data.federated import FederatedData
from fedkd.encodings import decoded, loaded, multiplied
from fedkd.engine.inline import InlineGrid
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy.ledger import SENDING, Aggregate
from fedkd.privacy.release import applies
from fedkd.records import AGGREGATE, HELD
from fedkd.work import Assignment, Parameters, Predict, Reply, Sending, Share

"""Begins the places of what a trusted server makes of what clients send."""


@dataclass(frozen=True)
class Sent:
    """One thing that a client sent in a round: the step that gave it, and its value.

    Where it is an ``aggregate``, the value is what a trusted server made of all that clients sent
    in such steps, which others see: a noisy mean, or the class with the most votes.
    """

    client: int
    round: int
    step: Sending
    value: Tensor | Parameters
    aggregate: bool = False

    @property
    def place(self) -> str:
        """What is sent, by the kind of the step and its key: ``"Predict soft_labels"``."""
        kind = AGGREGATE if self.aggregate else type(self.step).__name__
        return f"{kind} {self.step.key}"


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
        self.asked: dict[tuple[int, str], Sending] = {}
        """Steps that send something, by client and key, as they were last asked for."""
        self.sends_late = False
        """Whether something was sent after fusion, which in the last round is to be waited for."""

    def perform_all(
        self, assignments: Sequence[Assignment], *progress: Any, **care: Any
    ) -> list[Reply]:
        """Perform assignments, with trials only where a method waits for what they give.

        Behind secure aggregation nobody sees the labels of one client.
        """
        table = self.experiment.release
        masked = table.trust == "secure-aggregation"
        untested = [
            assignment
            if any(isinstance(step, SENDING) for step in assignment.trial)
            else replace(assignment, trial=())
            for assignment in assignments
        ]
        replies = super().perform_all(untested, *progress, **care)
        for assignment, reply in zip(untested, replies, strict=True):
            if reply.error:
                raise FedkdError(reply.error)
            for step in () if reply.failure else assignment.steps:
                if isinstance(step, SENDING):
                    self.sends_late |= assignment.phase != "learn"
                    self.asked[reply.client, step.key] = step
                    if not (masked and applies(step, table)):
                        value = self._decoded(assignment, step, reply.values[step.key])
                        self.listener(self, Sent(reply.client, assignment.round, step, value))
        return replies

    def _decoded(
        self,
        assignment: Assignment,
        step: Sending,
        value: Tensor | Parameters,
    ) -> Tensor | Parameters:
        """What the server sees of what a client has sent."""
        client = assignment.client
        if isinstance(step, Share) and step.encoding is not None:
            student = self.template(self.architecture(assignment, step.student))
            state, names = student.state_dict(), students.part_names(student, step.part)
            forms = {name: (state[name].shape, state[name].dtype) for name in names}
            return multiplied(value, forms, loaded(assignment.steps, step))
        how = step.encoding if isinstance(step, Predict) else None
        if how is None or not isinstance(step, Predict) or not isinstance(value, dict):
            return value
        rows, columns = self.label_rows(step.on), self.data.task.classes
        if isinstance(how, Delta):  # what the client takes for known by the server
            return self.state(client)[f"{HELD}sent {how.name}"]["values"][rows]
        if applies(step, self.experiment.release) and self.public.among is not None:
            columns = self.public.among.shape[1] + 1
        return decoded(value, how, (len(rows), columns))

    def show(self, round: int, aggregates: Sequence[Aggregate]) -> None:
        """Show the listener what the server made of what clients sent, once for each of them."""
        for aggregate in aggregates:
            for client in aggregate.clients:
                step = self.asked.get((client, aggregate.key))
                if step is not None:
                    self.listener(self, Sent(client, round, step, aggregate.value, aggregate=True))


def play(worker: WatchedWorker) -> None:
    """Run the worker's experiment from the start, until all has been sent that will be.

    What the server makes of it in the last round is left out, but for what it is trusted with.
    """
    experiment, data = worker.experiment, worker.data
    method = registry.load("strategies", experiment.strategy.name)
    strategy = method(
        experiment, data.task, data.label_counts(), data.transfer().inputs, public=worker.public
    )

    def heard(round: int, aggregates: Sequence[Aggregate]) -> None:
        worker.show(round, aggregates)
        if round == experiment.rounds and not worker.sends_late:
            raise _LastSent

    with suppress(_LastSent):
        strategy.start(InlineGrid(worker), on_aggregates=heard, world=worker.world)


def quiet(experiment: Experiment) -> Experiment:
    """``experiment`` in this process, measuring nothing before its last round."""
    engine = experiment.engine.model_copy(update={"name": "inline"})
    return experiment.model_copy(update={"engine": engine, "evaluate_every": experiment.rounds})
