"""Observers are told what happens while a run goes on; TensorBoard, and several as one."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import FedkdError
from fedkd.folder import reason
from fedkd.results import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MEASURED = ("own_", "common_")
"""How names of what is measured begin, on clients' own test split and on the common one."""


class Observer:
    """Told what happens while a run goes on; every method does nothing unless overridden."""

    def started(self, run: Run, first_round: int, rounds: int, plan: str) -> None:
        """Rounds are about to begin; ``plan`` says in a line what runs where."""

    def clients_done(self, round: int, done: int, total: int, phase: str) -> None:
        """``done`` of the ``total`` clients at work in this phase have replied."""

    def round_done(self, line: dict[str, Any]) -> None:
        """A round has ended, with this line in ``rounds.jsonl``."""

    def warned(self, message: str) -> None:
        """Something a person should act on."""

    def finished_before(self, run: Run) -> None:
        """The folder holds this run, finished: it is given back, and nothing else happens."""


class Observers(Observer):
    """Tells each of ``observers``, in the order given."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def started(self, run: Run, first_round: int, rounds: int, plan: str) -> None:
        """Tell each."""
        for observer in self.observers:
            observer.started(run, first_round, rounds, plan)

    def clients_done(self, round: int, done: int, total: int, phase: str) -> None:
        """Tell each."""
        for observer in self.observers:
            observer.clients_done(round, done, total, phase)

    def round_done(self, line: dict[str, Any]) -> None:
        """Tell each."""
        for observer in self.observers:
            observer.round_done(line)

    def warned(self, message: str) -> None:
        """Tell each."""
        for observer in self.observers:
            observer.warned(message)

    def finished_before(self, run: Run) -> None:
        """Tell each."""
        for observer in self.observers:
            observer.finished_before(run)


class TensorBoard(Observer):
    """Writes the numbers of every round for TensorBoard, on disk when the round ends.

    A run's events lie in ``folder/<name of the run's folder>``, so ``tensorboard --logdir folder``
    shows the runs side by side. Rounds that a resumed run does again take the place of the earlier
    ones.

    Parameters
    ----------
    folder
        TensorBoard's log directory.

    Raises
    ------
    FedkdError
        The package tensorboard is not installed, or ``folder`` cannot be written to.
    """

    def __init__(self, folder: Path | str) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise FedkdError(
                "--tensorboard needs the package tensorboard: pip install tensorboard "
                "(or pip install 'fedkd[tensorboard]')"
            )
        self.folder = Path(folder)
        self._writer: SummaryWriter | None = None
        self._rounds = 0

    def started(self, run: Run, first_round: int, rounds: int, plan: str) -> None:
        """Open the run's events, with its experiment as text."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        events = self.folder / run.folder.resolve().name
        self._rounds = rounds
        toml = run.experiment.to_toml().replace("\n", "\n    ")
        with self._writing():
            self._writer = SummaryWriter(str(events), purge_step=first_round)
            self._writer.add_text("experiment", f"    {toml}", first_round)

    def round_done(self, line: dict[str, Any]) -> None:
        """Write the round's scalars."""
        if self._writer is None:
            return
        with self._writing():
            for tag, value in scalars(line).items():
                self._writer.add_scalar(tag, value, line["round"])
            self._writer.flush()
            if line["round"] == self._rounds:
                self.close()

    def close(self) -> None:
        """Close the events; done by itself after the last round."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            raise FedkdError(
                f"--tensorboard {self.folder} cannot be written: {reason(error)}"
            ) from error


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """Every finite number of a round's line, by ``part/name``.

    Parts are ``local`` and ``fused`` (measured after local training and at the end of the round),
    ``strategy`` (what the method records) and ``round`` (bytes, losses, seconds; how many clients
    took part and were left out).
    """
    found: dict[str, Any] = {}
    for name, value in line.items():
        part = "fused" if name.startswith(MEASURED) else "round"
        if isinstance(value, dict):
            found |= {f"{name}/{key}": entry for key, entry in value.items()}
        elif name in ("participants", "left_out"):
            found[f"{part}/{name}"] = len(value)
        elif name != "round":
            found[f"{part}/{name}"] = value
    return {
        tag: float(value)
        for tag, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
