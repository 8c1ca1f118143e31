"""The inline engine: one worker in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedkd.engine.clients import State
from fedkd.engine.host import Answered, Host, HostGrid
from fedkd.engine.worker import Worker
from fedkd.work import Assignment, Reply


class Inline(Host):
    """One worker, here."""

    def __init__(self, worker: Worker) -> None:
        threads = worker.experiment.engine.threads
        self.worker, self.clients = worker, worker.data.clients
        self.plan = f"inline: {self.clients} clients in this process, {worker.device}, "
        self.plan += f"{threads} torch thread{'s' if threads > 1 else ''}"

    def perform(self, assignments: Sequence[Assignment], answered: Answered) -> list[Reply]:
        """One after the other, or in cohorts."""
        told = 0

        def progress(done: int) -> None:
            nonlocal told
            for _ in range(told, done):
                answered()
            told = done

        return self.worker.perform_all(assignments, progress)

    @property
    def states(self) -> Mapping[int, State]:
        """The worker's own."""
        return self.worker.states

    def restore(self, states: Mapping[int, State]) -> None:
        """Give the worker these."""
        self.worker.states = dict(states)

    def close(self) -> None:
        """Nothing was started."""


class InlineGrid(HostGrid):
    """The Grid of one worker in this process."""

    def __init__(self, worker: Worker, answered: Answered = lambda: None) -> None:
        super().__init__(Inline(worker), answered)
        self.worker = worker
