"""What a person sees of a suite: a live table on a terminal, a line a cell in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fedkd.results import Run
from fedkd.simulations.cells import Cell
from fedkd.simulations.suite import Outcome, Watch

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class SuiteScreen(Watch):
    """Shows cells done, running, left and failed, and the time left; use it in a ``with``."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self.console = console
        self.done = self.failed = 0
        self.there = 0
        self.left: dict[Path, Cell] = {}
        self.running: dict[Path, float] = {}
        self.clock = Clock([], 1)
        terminal = sys.stderr.isatty() and not console.is_dumb_terminal
        self.live = Live(
            console=console, get_renderable=self._shown, refresh_per_second=2, transient=True
        )
        self.shows = terminal

    def __enter__(self) -> SuiteScreen:
        """Begin to show."""
        if self.shows:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the screen as it was."""
        if self.shows:
            self.live.stop()

    def begins(self, there: Sequence[Cell], left: Sequence[Cell], jobs: int) -> None:
        """Say what there is to do."""
        self.there = len(there)
        self.left = {cell.folder: cell for cell in left}
        self.clock = Clock(there, jobs)
        if left:
            self.console.print(
                f"{len(there)} there already, {len(left)} to run, {jobs} at a time", style="dim"
            )

    def started(self, cell: Cell) -> None:
        """Count the time of a cell."""
        self.running[cell.folder] = time.monotonic()

    def ended(self, cell: Cell, seconds: float, why: str) -> None:
        """Count a cell; in a log, a line."""
        self.left.pop(cell.folder)
        self.running.pop(cell.folder, None)
        if why:
            self.failed += 1
        else:
            self.done += 1
            self.clock.add(cell, seconds)
        if why or not self.shows:
            many = self.done + self.failed
            took = f"failed: {why}" if why else f"{seconds:.0f} s"
            left = f", {self._time()} left" if self.left and self._time() else ""
            style = "red" if why else ""
            line = f"{many}/{many + len(self.left)} {cell.title}: {took}{left}"
            self.console.print(line, style=style, soft_wrap=True)

    def _time(self) -> str:
        now = time.monotonic()
        running = {folder: now - begun for folder, begun in self.running.items()}
        seconds = self.clock.left(list(self.left.values()), running)
        if seconds is None:
            return ""
        minutes, rest = divmod(round(seconds), 60)
        return (
            f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
            if minutes >= 60
            else (f"{minutes}:{rest:02}")
        )

    def _shown(self) -> RenderableType:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_edge=False)
        for head in ("done", "running", "left", "failed", "time left"):
            table.add_column(head, justify="right")
        waiting = len(self.left) - len(self.running)
        numbers = (self.there + self.done, len(self.running), waiting, self.failed)
        table.add_row(*map(str, numbers), self._time() or "-")
        both = Table.grid()
        both.add_row(table)
        now = time.monotonic()
        for folder, begun in self.running.items():
            both.add_row(f"  {self.left[folder].title}, {now - begun:.0f} s")
        return both


class Clock:
    """How long what is left will take, by what alike cells have taken."""

    def __init__(self, there: Sequence[Cell], jobs: int) -> None:
        self.jobs = jobs
        self.took: dict[tuple[str, ...], list[float]] = {}
        for cell in there:
            self.add(cell, (Run(cell.folder).summary or {}).get("seconds", 0.0))

    def add(self, cell: Cell, seconds: float) -> None:
        """A run of ``cell`` has taken so long."""
        for kind in _kinds(cell):
            self.took.setdefault(kind, []).append(seconds)

    def left(self, waiting: Sequence[Cell], running: Mapping[Path, float]) -> float | None:
        """Seconds until all is done; ``running`` is how long runs by folder have been at it.

        None while nothing has ended yet.
        """
        if not self.took:
            return None
        total = 0.0
        for cell in waiting:
            known = next(self.took[kind] for kind in _kinds(cell) if kind in self.took)
            total += max(0.0, sum(known) / len(known) - running.get(cell.folder, 0.0))
        return total / self.jobs


def _kinds(cell: Cell) -> list[tuple[str, ...]]:
    """What makes runs alike in cost, the closest first: data and method, data, nothing."""
    data, method = cell.experiment.data.dataset, cell.experiment.strategy.name
    return [(data, method), (data,), ()]


def told(outcome: Outcome) -> list[str]:
    """What became of a suite's cells, a line a kind, failures last."""
    counts = {
        "ran": len(outcome.ran),
        "there already": len(outcome.there),
        "skipped": len(outcome.skipped),
        "failed": len(outcome.failed),
    }
    lines = [", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing"]
    reasons = list(dict.fromkeys(cell.missing for cell in outcome.skipped))
    for why in reasons:
        many = sum(cell.missing == why for cell in outcome.skipped)
        lines.append(f"skipped {many} cell{'s' * (many > 1)}: {why}")
    return [*lines, *(f"failed: {cell.title}: {why}" for cell, why in outcome.failed)]


def state(cell: Cell) -> str:
    """Where a cell stands, in a word or two."""
    if cell.finished:
        return "there"
    if cell.damaged:
        return "damaged"
    if cell.missing:
        return "no data"
    return "begun" if cell.folder.is_dir() else "to run"
