"""The procs engine: long-lived worker processes on this machine, arrays through shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from fedkd.engine.blocks import NAMELESS, Block, Window
from fedkd.engine.clients import State
from fedkd.engine.payload import Payload
from fedkd.engine.pool import Done, Event, Lost, Pool
from fedkd.engine.worker import Care
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.interrupt import interrupts_held_back

CHILD = "from fedkd.engine.child import main; main()"
ENDS_WITHIN = 5.0
"""Seconds that a worker process has to end by itself, when it is told to."""
DIES_WITHIN = 0.5
"""Seconds from the end of a worker's pipe to the end of its process."""
LOOKS_EVERY = 1.0
"""Seconds between looks at whether processes are there that say nothing."""


class Procs(Pool):
    """Worker processes. They are begun as this is made, and load the data each for itself.

    A worker is a fresh interpreter that never imports the program it was begun from, so that
    ``fedkd.run`` needs no guard in a script. It ends when this process does.
    """

    name = "procs"

    def __init__(
        self,
        experiment: Experiment,
        shares: Sequence[Sequence[int]],
        warned: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(experiment, shares, warned)
        self._folder = None if NAMELESS else tempfile.TemporaryDirectory(prefix="fedkd-procs-")
        self._block = self._new_block()
        self._looked = 0.0
        self._members: list[_Member | None] = [None] * len(shares)
        try:
            for worker in range(len(shares)):
                self._start(worker)
        except BaseException:
            self.close()
            raise

    def _new_block(self) -> Block:
        return Block(self._folder.name if self._folder else "")

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [member.process.pid for member in self._members if member is not None]

    def close(self) -> None:
        """End the workers."""
        members = [member for member in self._members if member is not None]
        for member in members:
            member.release()
        for member in members:
            member.end()
        self._members = [None] * len(self.shares)
        if self._folder:
            self._folder.cleanup()

    def _start(self, worker: int) -> None:
        if (before := self._members[worker]) is not None:
            before.end()
        folder = self._folder.name if self._folder else ""
        try:
            with interrupts_held_back():
                self._members[worker] = _Member(self.experiment, folder)
        except OSError as error:
            raise FedkdError(
                f"engine.name = 'procs': worker {worker} of {len(self.shares)} cannot be started "
                f"({error}); lower engine.workers"
            ) from error

    def _kill(self, worker: int) -> None:
        self._member(worker).process.kill()

    def _member(self, worker: int) -> _Member:
        member = self._members[worker]
        assert member is not None, "the workers have been ended"
        return member

    def _restore(self, worker: int, states: Mapping[int, State]) -> None:
        payload = Payload()
        frame = payload.frame(states)
        block = self._new_block()
        payload.write(block.room(payload.size))
        member = self._member(worker)
        member.owed.append(block)
        with suppress(OSError):
            member.connection.send(("restore", block.name, frame))

    def _place(self, payload: Payload) -> None:
        payload.write(self._block.room(payload.size))

    def _send(self, worker: int, frame: bytes, care: Care) -> None:
        with suppress(OSError):
            self._member(worker).connection.send(("perform", self._block.name, frame, care))

    def _events(self, workers: set[int], seconds: float) -> Iterable[tuple[int, Event]]:
        members = {worker: self._member(worker) for worker in sorted(workers)}
        connections = [member.connection for member in members.values()]
        self._looked = time.monotonic()
        ready = set(wait(connections, min(seconds, LOOKS_EVERY)))
        if ready:
            return [
                (worker, self._event(worker))
                for worker, member in members.items()
                if member.connection in ready
            ]
        # The pipe of a process that is gone stays open where one that it has begun holds it too.
        return [
            (worker, Lost(member.end()))
            for worker, member in members.items()
            if member.process.poll() is not None and not member.connection.poll()
        ]

    def _known_until(self, worker: int) -> float:
        return self._looked

    def _event(self, worker: int) -> Event:
        member = self._member(worker)
        try:
            event: Event = member.connection.recv()
            if isinstance(event, Done):
                event = replace(event, buffer=member.window.at(event.buffer))
                member.settle()
            return event
        except (EOFError, OSError):
            return Lost(member.end())


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
        except OSError:
            self.release()
            self.connection.close()
            raise
        finally:
            theirs.close()
            os.close(life)
        with suppress(OSError):  # it is gone already, which is seen later
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
        """Have no process left, nor one that it has begun, and say how it ended."""
        if self._life >= 0:  # it may be about to end, and should say how by itself
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(DIES_WITHIN)
        self.release()
        try:
            code = self.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        self.settle()
        if code < 0:
            with suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"it ended with code {code}"
