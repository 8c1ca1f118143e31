"""What comes of one round: its line in the run's folder, and the measurements of its clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedkd.replies import COHORT
from fedkd.work import Reply

Line = dict[str, Any]
"""A line of one of a run's files: numbers and texts by name."""


class Outcome:
    """What comes of one round, as it goes on.

    ``line`` goes to ``rounds.jsonl`` when the round has ended; ``measured`` has the metrics of each
    client by the stage after which it was measured: ``"local"`` and ``"fused"``.
    """

    def __init__(self, number: int) -> None:
        self.line: Line = {"round": number, "left_out": [], "bytes_up": 0, "bytes_down": 0}
        self.line["seconds_clients"] = 0.0
        self.measured: dict[str, dict[int, dict[str, float]]] = {"local": {}, "fused": {}}

    def warn(self, message: str) -> None:
        """Put a warning in the line."""
        self.line.setdefault("warnings", []).append(message)

    def leave_out(self, client: int, step: str, reason: str) -> None:
        """Note a client whose reply cannot be used, at which step or stage, and why."""
        self.line["left_out"].append({"client": client, "step": step, "reason": reason})

    def account(self, reply: Reply) -> None:
        """Take what the engine says of its work out of the metrics."""
        self.line["seconds_clients"] += reply.metrics.pop("seconds", 0.0)
        for name in [name for name in reply.metrics if name.startswith(COHORT)]:
            together = self.line.setdefault("cohort", {})
            step = name.removeprefix(COHORT)
            together[step] = together.get(step, 0) + int(reply.metrics.pop(name))

    def train_loss(self) -> Mapping[str, float]:
        """The mean training loss of the clients that say one, if any does."""
        losses = [m["train_loss"] for m in self.measured["local"].values() if "train_loss" in m]
        return {"train_loss_mean": sum(losses) / len(losses)} if losses else {}

    def client_lines(self) -> list[Line]:
        """The lines of ``clients.jsonl``: one a stage and client that was measured."""
        return [
            {"round": self.line["round"], "client": client, "stage": stage, **metrics}
            for stage, measured in self.measured.items()
            for client, metrics in sorted(measured.items())
            if metrics
        ]
