"""What a client keeps beside its students: what their optimisers keep, and auxiliary heads."""

from __future__ import annotations

from fedkd.engine.clients import Clients
from fedkd.random import key
from fedkd.records import AUXILIARY, OPTIMISER
from fedkd.training import Auxiliary
from fedkd.work import Assignment, Fit, Parameters, origin


class Beside:
    """What is beside the students of an assignment's client, as it is by now."""

    def __init__(self, clients: Clients, assignment: Assignment) -> None:
        self._clients, self._client = clients, assignment.client
        self._optimisers: dict[str, Parameters] = {}
        self._auxiliary: dict[str, Auxiliary] = {}

    def optimiser(self, step: Fit, student: str) -> Parameters | None:
        """What the student's optimiser keeps on this source, to be changed in place.

        None where ``[training]`` has optimisers start afresh.
        """
        if not self._clients.experiment.training.keep_optimiser:
            return None
        name = f"{OPTIMISER}{student} {origin(step.on)}"
        return self._optimisers.setdefault(name, dict(self._before.get(name, {})))

    def auxiliary(self, student: str) -> Auxiliary:
        """The auxiliary heads of a student, to be changed as it learns."""
        if student not in self._auxiliary:
            seed = key(self._clients.experiment.seed, "auxiliary", self._client, student)
            begins = f"{AUXILIARY}{student}:"
            mine = [name for name in self._before if name.startswith(begins)]
            heads = {name.removeprefix(begins): self._before[name] for name in mine}
            self._auxiliary[student] = Auxiliary(seed, heads)
        return self._auxiliary[student]

    def keep(self) -> None:
        """Make all of it, as it is now, the client's own."""
        for name, arrays in self._optimisers.items():
            self._clients.keep_beside(self._client, name, arrays)
        for student, auxiliary in self._auxiliary.items():
            begins = f"{AUXILIARY}{student}:"
            dropped = {n for n in self._before if n.startswith(begins)}
            for name in dropped - {f"{begins}{head}" for head in auxiliary.heads}:
                self._clients.keep_beside(self._client, name, {})
            for head, arrays in auxiliary.heads.items():
                self._clients.keep_beside(self._client, f"{begins}{head}", arrays)

    @property
    def _before(self) -> dict[str, Parameters]:
        return self._clients.states.get(self._client, {})
