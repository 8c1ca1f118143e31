"""The procs engine: long-lived worker processes on this machine, arrays through shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from fedkd.engine.blocks import Block, Window
from fedkd.engine.payload import Payload
from fedkd.engine.pool import Done, Event, Lost, Pool, Progress
from fedkd.engine.worker import State
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment

CHILD = "from fedkd.engine.child import main; main()"
ENDS_WITHIN = 5.0
"""Seconds that a worker process has to end by itself, when it is told to."""


class Procs(Pool):
    """Worker processes. They are begun as this is made, and load the data each for itself.

    A worker is a fresh interpreter that never imports the program it was begun from, so that
    ``fedkd.run`` needs no guard in a script. It ends when this process does.
    """

    def __init__(
        self,
        experiment: Experiment,
        shares: Sequence[Sequence[int]],
        warned: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(experiment, shares, warned)
        self._folder = tempfile.TemporaryDirectory(prefix="fedkd-procs-")
        self._block = Block(self._folder.name)
        self._members: list[_Member | None] = [None] * len(shares)
        try:
            for worker in range(len(shares)):
                self._start(worker)
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [member.process.pid for member in self._members if member is not None]

    def close(self) -> None:
        """End the workers."""
        for member in self._members:
            if member is not None:
                member.release()
        for worker, member in enumerate(self._members):
            if member is not None:
                member.end()
                self._members[worker] = None
        self._folder.cleanup()

    def _start(self, worker: int) -> None:
        before = self._members[worker]
        if before is not None:
            before.release()
            before.end()
        self._members[worker] = _Member(self.experiment, self._folder.name)

    def _member(self, worker: int) -> _Member:
        member = self._members[worker]
        assert member is not None, "the workers have been ended"
        return member

    def _restore(self, worker: int, states: Mapping[int, State]) -> None:
        payload = Payload()
        frame = payload.frame(states)
        block = Block(self._folder.name)
        payload.write(block.room(payload.size))
        member = self._member(worker)
        member.owed.append(block)
        with suppress(OSError):
            member.connection.send(("restore", block.name, frame))

    def _place(self, payload: Payload) -> None:
        payload.write(self._block.room(payload.size))

    def _send(self, worker: int, frame: bytes) -> None:
        with suppress(OSError):
            self._member(worker).connection.send(("perform", self._block.name, frame))

    def _events(self, workers: set[int]) -> Iterable[tuple[int, Event]]:
        at_work = {self._member(worker).connection: worker for worker in sorted(workers)}
        ready = set(wait(list(at_work)))
        return [
            (worker, self._event(worker))
            for connection, worker in at_work.items()
            if connection in ready
        ]

    def _event(self, worker: int) -> Event:
        member = self._member(worker)
        try:
            kind, *told = member.connection.recv()
            if kind == "progress":
                return Progress(told[0])
            if kind == "done":
                name, frame = told
                done = Done(frame, member.window.at(name))
                member.settle()
                return done
        except (EOFError, OSError):
            return Lost(member.end())
        if kind == "wrong":
            raise FedkdError(told[0])
        raise RuntimeError(f"worker {worker} failed:\n{told[0]}")


class _Member:
    """A worker process, from this side."""

    def __init__(self, experiment: Experiment, folder: str) -> None:
        self.window, self.owed = Window(), list[Block]()
        self.connection, theirs = Pipe()
        life, self._life = os.pipe()
        command = [sys.executable, "-P", "-c", CHILD]
        command += [str(theirs.fileno()), str(life), folder]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=(theirs.fileno(), life),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a student prints is no result
                process_group=0,  # Ctrl-C is for this process, which then ends the workers
            )
        finally:
            theirs.close()
            os.close(life)
        self.connection.send(experiment.to_toml())

    connection: Connection

    def settle(self) -> None:
        """Give back what the worker has read by now."""
        while self.owed:
            self.owed.pop().close()

    def release(self) -> None:
        """Let the process end by itself, at once."""
        if self._life >= 0:
            os.close(self._life)
            self._life = -1

    def end(self) -> str:
        """Have no process left, and say how it ended."""
        self.release()
        try:
            code = self.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.connection.close()
        self.settle()
        if code < 0:
            with suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"it ended with code {code}"
