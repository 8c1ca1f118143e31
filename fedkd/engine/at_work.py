"""An assignment at work: the students in use, and what has been gathered."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn

from fedkd.engine.beside import Beside
from fedkd.engine.clients import Clients
from fedkd.engine.loyalty import Loyalties
from fedkd.random import key
from fedkd.work import Assignment, Contrast, Parameters, Samples, Soft, Source, Step, origin


class AtWork:
    """The students of an assignment's client, as they are by now, and what its steps gave."""

    def __init__(self, clients: Clients, assignment: Assignment) -> None:
        self.clients, self.assignment = clients, assignment
        self.students: dict[str, nn.Sequential] = {}
        self.values: dict[str, Tensor | Parameters] = {}
        self.metrics: dict[str, float] = {}
        self.releases: list[dict[str, Any]] = []
        self.changed: set[str] = set()
        self.beside = Beside(clients, assignment)
        self.loyalties = Loyalties(clients.experiment, assignment)
        self.trying = False
        self._fits: Counter[tuple[str, str, str]] = Counter()
        self._answers: Counter[tuple[str, str, str]] = Counter()

    def student(self, name: str) -> nn.Sequential:
        """The client's student of this name, as it is by now."""
        if name not in self.students:
            self.clients.probe(self.architecture(name))
            self.students[name] = self.clients.module(self.assignment.client, name)
        return self.students[name]

    def architecture(self, name: str) -> str:
        """The architecture of the client's student of this name."""
        return self.clients.architecture(self.assignment, name)

    def wrote(self, name: str) -> None:
        """Note that the student of this name is no longer as it was."""
        self.changed.add(name)

    def keep(self) -> None:
        """Make the students, as they are now, the client's own."""
        for name in self.changed:
            self.clients.keep(self.assignment.client, name, self.students[name].state_dict())
        self.beside.keep()

    def samples(self, on: Source) -> Samples:
        """The samples that ``on`` means for the client."""
        return self.clients.samples(self.assignment.client, on)

    def seed(self, step: Step | Soft | Contrast, on: Source | None, student: str) -> int:
        """Key of what a student draws by itself in its next answer of this kind."""
        trial = " trial" if self.trying else ""
        kind = type(step).__name__, origin(on), student
        purpose = f"{self.assignment.phase}{trial} {' '.join(kind)} {self._answers[kind]}"
        self._answers[kind] += 1
        whose = self.assignment.client, self.assignment.round
        return key(self.clients.experiment.seed, "answer", *whose, purpose)
