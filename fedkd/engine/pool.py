"""Workers elsewhere: what processes and Ray actors have in common.

Each worker has clients of its own for as long as the run lasts. This side keeps a copy of what
clients are after each phase. A worker that is lost in the middle of one is started again, given its
clients as they were before the phase, and does its work anew: a worker's work is a function of
states and assignments, so the numbers are the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedkd.engine.host import Answered, Host
from fedkd.engine.payload import Payload, unpack
from fedkd.engine.worker import State, Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.work import Assignment, Fit, Hold, Load, Reply

PIECE = 512
"""Clients whose replies and states a worker holds ready at a time, for the sake of memory."""
MOST_LOSSES = 3
"""Times that one worker may be lost in one phase."""


@dataclass(frozen=True)
class Progress:
    """``done`` clients of a worker have done their work of the phase."""

    done: int


@dataclass(frozen=True)
class Done:
    """A worker has done its work: what :func:`serve_work` made of it."""

    frame: bytes
    buffer: Any


@dataclass(frozen=True)
class Lost:
    """A worker is gone; ``how`` says what is known of it."""

    how: str


Event = Progress | Done | Lost


class Pool(Host):
    """Workers elsewhere, each with its clients.

    Parameters
    ----------
    experiment
        The run's description.
    shares
        Clients of each worker.
    warned
        Told when a worker is lost.
    """

    def __init__(
        self,
        experiment: Experiment,
        shares: Sequence[Sequence[int]],
        warned: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.experiment, self.shares = experiment, shares
        self.clients = sum(map(len, shares))
        self._worker_of = {client: n for n, share in enumerate(shares) for client in share}
        self._warned = warned
        self._kept: dict[int, State] = {}

    @abstractmethod
    def _start(self, worker: int) -> None:
        """Start a worker, in place of the one that was lost if there was one."""

    @abstractmethod
    def _restore(self, worker: int, states: Mapping[int, State]) -> None:
        """Give a worker what its clients keep."""

    @abstractmethod
    def _place(self, payload: Payload) -> None:
        """Put a phase's arrays where every worker sees them."""

    @abstractmethod
    def _send(self, worker: int, frame: bytes) -> None:
        """Begin a worker's work of the phase; one that is gone is told of by :meth:`_events`."""

    @abstractmethod
    def _events(self, workers: set[int]) -> Iterable[tuple[int, Event]]:
        """Wait for at least one event of the workers that are at work."""

    def perform(self, assignments: Sequence[Assignment], answered: Answered) -> list[Reply]:
        """Give every worker its clients' assignments: in one piece, or more where they are many."""
        work: dict[int, list[Assignment]] = {}
        for assignment in assignments:
            work.setdefault(self._worker_of[assignment.client], []).append(assignment)
        payload = Payload()
        frames = {
            worker: [payload.frame(mine[at : at + PIECE]) for at in range(0, len(mine), PIECE)]
            for worker, mine in work.items()
        }
        self._place(payload)
        told, losses = dict.fromkeys(work, 0), dict.fromkeys(work, 0)
        replies: dict[int, Reply] = {}
        for worker, pieces in frames.items():
            self._send(worker, pieces[0])
        while frames:
            for worker, event in self._events(set(frames)):
                if isinstance(event, Progress):
                    for _ in range(told[worker], event.done):
                        answered()
                    told[worker] = max(told[worker], event.done)
                elif isinstance(event, Done):
                    mine, changed = unpack(event.frame, event.buffer)
                    replies |= {reply.client: _owned(reply) for reply in mine}
                    for client, state in changed.items():
                        self._keep(client, state)
                    for _ in range(told[worker], len(mine)):
                        answered()
                    told[worker] = 0
                    if len(frames[worker]) > 1:
                        frames[worker].pop(0)
                        self._send(worker, frames[worker][0])
                    else:
                        del frames[worker]
                else:
                    losses[worker] += 1
                    self._again(worker, event.how, losses[worker])
                    self._send(worker, frames[worker][0])
        return [replies[assignment.client] for assignment in assignments]

    def _again(self, worker: int, how: str, losses: int) -> None:
        if losses >= MOST_LOSSES:
            raise FedkdError(
                f"worker {worker} of engine.name = {self.experiment.engine.name!r} was lost "
                f"{losses} times in one phase ({how}): if memory is short, lower engine.workers "
                f"= {len(self.shares)}"
            )
        self._warned(f"worker {worker} was lost ({how}); it is started again, its work done anew")
        self._start(worker)
        states = {n: self._kept[n] for n in self.shares[worker] if n in self._kept}
        if states:
            self._restore(worker, states)

    def _keep(self, client: int, state: State) -> None:
        # New tensors: a checkpoint may yet need those before.
        self._kept |= _cloned({client: state})

    @property
    def states(self) -> Mapping[int, State]:
        """What this side keeps of clients that have changed."""
        return self._kept

    def restore(self, states: Mapping[int, State]) -> None:
        """Give every worker its clients' states."""
        self._kept = _cloned(states)
        for worker, share in enumerate(self.shares):
            mine = {client: states[client] for client in share if client in states}
            self._restore(worker, mine)


def serve_work(
    worker: Worker, frame: bytes, buffer: Any, answered: Callable[[int], None]
) -> tuple[bytes, Payload]:
    """Do a worker's work of a phase: the frame and payload of its replies and changed states."""
    torch.set_num_threads(worker.experiment.engine.threads)  # of this thread, whichever it is
    assignments: list[Assignment] = unpack(frame, buffer)
    replies = worker.perform_all(assignments, answered)
    changed = {
        assignment.client: worker.state(assignment.client)
        for assignment in assignments
        if any(isinstance(step, Fit | Load | Hold) for step in assignment.steps)
    }
    payload = Payload()
    return payload.frame((replies, changed)), payload


def restore_states(worker: Worker, frame: bytes, buffer: Any) -> None:
    """Have ``worker`` keep the states in a frame, and no others."""
    worker.states = _cloned(unpack(frame, buffer))


def _owned(reply: Reply) -> Reply:
    """A reply whose arrays no longer lie in its worker's buffer."""
    values = {
        key: {name: tensor.clone() for name, tensor in value.items()}
        if isinstance(value, Mapping)
        else value.clone()
        for key, value in reply.values.items()
    }
    return replace(reply, values=values)


def _cloned(states: Mapping[int, State]) -> dict[int, State]:
    return {
        client: {
            name: {key: tensor.clone() for key, tensor in tensors.items()}
            for name, tensors in state.items()
        }
        for client, state in states.items()
    }
