"""What comes of one round: its line in the run's folder, and the measurements of its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedkd.records import LOYALTY
from fedkd.replies import COHORT
from fedkd.training.loyalty import LOYALTIES, means
from fedkd.work import Evaluate, Reply

TESTED_ON = ("own", "common")
"""Sets of tests whose confidences are put into bins."""
Bins = dict[str, Tensor]
"""By the set of tests: see :func:`fedkd.distillation.calibration.reliability_bins`."""
SERVER = f"{LOYALTY}server_"
"""Begins the names of the loyalties of students on the server."""

Line = dict[str, Any]
"""A line of one of a run's files: numbers and texts by name."""


class Outcome:
    """What comes of one round, as it goes on.

    ``line`` goes to ``rounds.jsonl`` when the round has ended; ``measured`` has the metrics of each
    client by the stage after which it was measured: ``"local"`` and ``"fused"``; ``bins`` has its
    confidences.
    """

    def __init__(self, number: int) -> None:
        self.line: Line = {"round": number, "left_out": [], "bytes_up": 0, "bytes_down": 0}
        self.line["seconds_clients"] = 0.0
        self.measured: dict[str, dict[int, dict[str, float]]] = {"local": {}, "fused": {}}
        self.bins: dict[str, dict[int, Bins]] = {"local": {}, "fused": {}}
        self._loyalty: dict[str, dict[int, dict[str, float]]] = {"local": {}, "fused": {}}

    def warn(self, message: str) -> None:
        """Put a warning in the line."""
        self.line.setdefault("warnings", []).append(message)

    def leave_out(self, client: int, step: str, reason: str) -> None:
        """Note a client whose reply cannot be used, at which step or stage, and why."""
        self.line["left_out"].append({"client": client, "step": step, "reason": reason})

    def account(self, reply: Reply, stage: str) -> None:
        """Take what the engine says of its work, and of loyalties, out of the metrics."""
        loyalty = {name: reply.metrics.pop(name) for name in LOYALTIES if name in reply.metrics}
        if loyalty:
            self._loyalty[stage][reply.client] = loyalty
        keys = {tests: Evaluate(key=tests).bins_key for tests in TESTED_ON}
        bins = {tests: reply.values.pop(key) for tests, key in keys.items() if key in reply.values}
        self.bins[stage][reply.client] = {k: v for k, v in bins.items() if isinstance(v, Tensor)}
        self.line["seconds_clients"] += reply.metrics.pop("seconds", 0.0)
        for name in [name for name in reply.metrics if name.startswith(COHORT)]:
            together = self.line.setdefault("cohort", {})
            step = name.removeprefix(COHORT)
            together[step] = together.get(step, 0) + int(reply.metrics.pop(name))

    def train_loss(self) -> Mapping[str, float]:
        """The mean training loss of the clients that say one, if any does."""
        losses = [m["train_loss"] for m in self.measured["local"].values() if "train_loss" in m]
        return {"train_loss_mean": sum(losses) / len(losses)} if losses else {}

    def loyalty(self, of_server: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
        """Mean loyalties of the clients that distilled, and of the server's fits if there were."""
        of_clients = [one for found in self._loyalty.values() for one in found.values()]
        return means(of_clients) | means(of_server, SERVER)

    def client_lines(self) -> list[Line]:
        """The lines of ``clients.jsonl``: one a stage and client that was measured."""
        return [
            {"round": self.line["round"], "client": client, "stage": stage, **numbers}
            for stage, measured in self.measured.items()
            for client, metrics in sorted(measured.items())
            if (numbers := metrics | self._loyalty[stage].get(client, {}))
        ]
