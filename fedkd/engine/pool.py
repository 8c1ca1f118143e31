"""Workers elsewhere: what processes and Ray actors have in common.

Each worker has clients of its own for as long as the run lasts. This side keeps a copy of what
clients are after each phase. A worker that is lost in the middle of one is started again, given its
clients as they were before the phase, and does its work anew: a worker's work is a function of
states and assignments, so the numbers are the same.

Workers say whose work they begin. A client at whose work a worker is lost for the second time, or
whose work takes longer than ``engine.timeout``, has failed: its worker goes on without it. A client
is late only if its worker, asked after that time, is still at its work: what a worker has said but
this side has not heard yet accuses nobody.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from traceback import format_exception
from typing import Any, ClassVar, NoReturn

import torch

from fedkd.compression import Delta
from fedkd.engine.clients import State
from fedkd.engine.host import Answered, Host
from fedkd.engine.payload import Payload, unpack
from fedkd.engine.worker import Care, Worker
from fedkd.errors import FedkdError, summary_of
from fedkd.experiment import Experiment
from fedkd.work import (
    Assignment,
    Fit,
    Hold,
    Load,
    Predict,
    Reply,
    Step,
)

PIECE = 512
"""Clients whose replies and states a worker holds ready at a time, for the sake of memory."""
MOST_LOSSES = 3
"""Times that one worker may be lost in one phase for no cause that is known."""
HEARD_WITHIN = 5.0
"""Seconds past ``engine.timeout`` in which a worker has to say whose work it is still at."""


@dataclass(frozen=True)
class Progress:
    """``done`` clients of a worker's piece have done their work; ``at_work`` are doing theirs.

    Several are at work as a cohort, none while a piece begins or ends. None stands for a worker
    that is only being made.
    """

    done: int
    at_work: tuple[int, ...] | None


@dataclass(frozen=True)
class Done:
    """A worker has done its work: what :func:`serve_work` made of it."""

    frame: bytes
    buffer: Any


@dataclass(frozen=True)
class Lost:
    """A worker is gone; ``how`` says what is known of it.

    Its last :class:`Progress` says who was at work, unless it is not ``sure``.
    """

    how: str
    sure: bool = True


@dataclass(frozen=True)
class Failed:
    """A worker itself, and not a client's work, has failed: a line, and perhaps a traceback."""

    message: str
    trace: str = ""

    @classmethod
    def by(cls, error: BaseException) -> Failed:
        """What a worker says of an exception that it cannot go on after."""
        known = isinstance(error, FedkdError)
        trace = "" if known and not error.__cause__ else "".join(format_exception(error))
        return cls(str(error) if known else summary_of(error), trace)


Event = Progress | Done | Lost | Failed


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text: the cause of the line about it."""


@dataclass
class _Work:
    """What a worker has to do in a phase: frames and clients of its pieces, the first under way.

    ``reported`` clients of the first piece are done; ``at_work`` are doing their
    work since ``since``. ``losses`` counts for each client how often the worker was lost at its
    work, ``unexplained`` holds who was at work at losses without a known cause.
    """

    pieces: list[tuple[bytes, set[int]]]
    reported: int = 0
    at_work: tuple[int, ...] | None = None
    since: float = 0.0
    care: Care = field(default_factory=Care)
    losses: Counter[int] = field(default_factory=Counter)
    unexplained: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def clients(self) -> set[int]:
        """Clients of the first piece that have not failed."""
        return self.pieces[0][1] - self.care.left_out


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

    name: ClassVar[str]
    """What ``engine.name`` calls it."""

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
        self._ready: set[int] = set()  # workers heard of since they were started
        self._suspects: set[int] = set()  # clients that were the cause of a loss before

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
    def _send(self, worker: int, frame: bytes, care: Care) -> None:
        """Begin a piece of work; a worker that is gone is told of by :meth:`_events`."""

    @abstractmethod
    def _events(self, workers: set[int], seconds: float) -> Iterable[tuple[int, Event]]:
        """What happens next to workers that are at work; nothing if it takes so long."""

    @abstractmethod
    def _known_until(self, worker: int) -> float:
        """The time (``time.monotonic``) up to which :meth:`_events` told all that a worker did."""

    @abstractmethod
    def _kill(self, worker: int) -> None:
        """End a worker that does not answer; :meth:`_start` comes next."""

    def perform(self, assignments: Sequence[Assignment], answered: Answered) -> list[Reply]:
        """Give every worker its clients' assignments: in one piece, or more where they are many."""
        given: dict[int, list[Assignment]] = {}
        for assignment in assignments:
            given.setdefault(self._worker_of[assignment.client], []).append(assignment)
        payload, todo = Payload(), dict[int, _Work]()
        for worker, mine in given.items():
            pieces = [mine[at : at + PIECE] for at in range(0, len(mine), PIECE)]
            todo[worker] = _Work([(payload.frame(p), {a.client for a in p}) for p in pieces])
        self._place(payload)
        for worker in list(todo):
            self._begin(worker, todo)
        replies: dict[int, Reply] = {}
        while todo:
            lost: dict[int, str] = {}
            for worker, event in self._events(set(todo), self._patience(todo)):
                if isinstance(event, Lost):
                    lost[worker] = event.how
                    if not event.sure:
                        todo[worker].at_work = None
                elif isinstance(event, Failed):
                    message = f"worker {worker} of engine.name = {self.name!r}: {event.message}"
                    raise FedkdError(message) from WorkerTraceback(event.trace or event.message)
                else:
                    replies |= self._heard(worker, event, todo, answered)
            for worker, work in todo.items():
                if worker not in lost and self._late(worker, work):
                    self._kill(worker)
                    lost[worker] = ""
            for worker, how in lost.items():
                failed = self._again(worker, todo[worker], how)
                for _ in failed:
                    answered()
                replies |= failed
                self._begin(worker, todo)
        return [replies[assignment.client] for assignment in assignments]

    def _begin(self, worker: int, todo: dict[int, _Work]) -> None:
        """Have a worker begin the next piece that somebody is left of, if there is one."""
        work = todo[worker]
        while work.pieces and not work.clients:
            work.pieces.pop(0)
        if not work.pieces:
            del todo[worker]
            return
        work.at_work, work.since = () if worker in self._ready else None, time.monotonic()
        self._send(worker, work.pieces[0][0], work.care)

    def _heard(
        self, worker: int, event: Progress | Done, todo: dict[int, _Work], answered: Answered
    ) -> dict[int, Reply]:
        """Take in what a worker says: the replies of a piece that is done."""
        work = todo[worker]
        done = event.done if isinstance(event, Progress) else len(work.clients)
        for _ in range(work.reported, done):
            answered()
        work.reported = max(work.reported, done)
        if isinstance(event, Progress):
            if event.at_work is not None:
                self._ready.add(worker)
                if event.at_work != work.at_work:
                    work.at_work, work.since = event.at_work, time.monotonic()
            return {}
        replies, changed = unpack(event.frame, event.buffer)
        for client, state in changed.items():
            self._keep(client, state)
        work.pieces.pop(0)
        work.reported = 0
        owned = {reply.client: _owned(reply) for reply in replies}
        self._begin(worker, todo)
        return owned

    # --- workers that are lost or do not answer -----------------------------------------------

    def _limit(self, work: _Work) -> float:
        """The time (``time.monotonic``) by which those who are at work are to be done."""
        seconds = self.experiment.engine.timeout
        if seconds is None or work.at_work is None:
            return math.inf
        return work.since + seconds * max(1, len(work.at_work))

    def _late(self, worker: int, work: _Work) -> bool:
        """Whether those at work are late, or the worker is silent: then who is at work is unknown.

        It may be somebody else by now, if the worker has not been heard since the limit.
        """
        limit = self._limit(work)
        if self._known_until(worker) > limit:
            return True
        if time.monotonic() <= limit + HEARD_WITHIN:
            return False
        work.at_work = None
        return True

    def _patience(self, todo: Mapping[int, _Work]) -> float:
        """Seconds until somebody may be late."""
        return max(0.0, min(map(self._limit, todo.values())) - time.monotonic())

    def _again(self, worker: int, work: _Work, how: str) -> dict[int, Reply]:
        """Start a worker that was lost again; the reply of the client that was the cause, if known.

        ``how`` is empty if it was ended as it did not answer.
        """
        limit = f"within engine.timeout = {self.experiment.engine.timeout} s"
        late, how = not how, how or f"no answer {limit}"
        clients = work.at_work or ()
        work.losses.update(clients)
        again = any(work.losses[client] + (client in self._suspects) > 1 for client in clients)
        failed: dict[int, Reply] = {}
        if not clients or not (late or again):
            work.unexplained.append(clients)
            if len(work.unexplained) == MOST_LOSSES:
                self._give_up(worker, work, how)
            then = "does its work anew"
        elif len(clients) > 1:
            work.unexplained.clear()
            work.care = replace(work.care, alone=work.care.alone | set(clients))
            then = "does its work anew, theirs one by one"
        else:
            work.unexplained.clear()
            (client,) = clients
            reason = (
                f"did not answer {limit}" if late else f"its worker was lost at its work ({how})"
            )
            failed = {client: Reply(client, failure=reason)}
            self._suspects |= set() if late else {client}
            work.care = replace(work.care, left_out=work.care.left_out | {client})
            then = "does the others' work anew"
        where = _at(clients) if worker in self._ready else " as it began"
        self._warned(f"worker {worker} was lost ({how}){where}; it is started again and {then}")
        self._ready.discard(worker)
        self._start(worker)
        states = {n: self._kept[n] for n in self.shares[worker] if n in self._kept}
        if states:
            self._restore(worker, states)
        return failed

    def _give_up(self, worker: int, work: _Work, how: str) -> NoReturn:
        clients = sorted({client for clients in work.unexplained for client in clients})
        raise FedkdError(
            f"worker {worker} of engine.name = {self.name!r} was lost "
            f"{len(work.unexplained)} times in one phase ({how}){_at(clients)}: if memory is "
            f"short, lower engine.workers = {len(self.shares)}"
        )

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
    worker: Worker,
    frame: bytes,
    buffer: Any,
    care: Care,
    progress: Callable[[Progress], None],
) -> tuple[bytes, Payload]:
    """Do a piece of a worker's work: the frame and payload of its replies and changed states."""
    torch.set_num_threads(worker.experiment.engine.threads)  # of this thread, whichever it is
    assignments: list[Assignment] = unpack(frame, buffer)
    done = 0

    def answered(count: int) -> None:
        nonlocal done
        done = count

    replies = worker.perform_all(
        assignments, answered, lambda clients: progress(Progress(done, tuple(clients))), care
    )
    progress(Progress(done, ()))
    done_by = {reply.client for reply in replies if not (reply.error or reply.failure)}
    changed = {
        assignment.client: worker.state(assignment.client)
        for assignment in assignments
        if assignment.client in done_by and any(map(_changes, assignment.steps))
    }
    payload = Payload()
    return payload.frame((replies, changed)), payload


def _changes(step: Step) -> bool:
    """Whether a step may change what its client keeps."""
    if isinstance(step, Predict):
        return isinstance(step.encoding, Delta)
    return isinstance(step, Fit | Load | Hold)


def restore_states(worker: Worker, frame: bytes, buffer: Any) -> None:
    """Have ``worker`` keep the states in a frame, and no others."""
    worker.states = _cloned(unpack(frame, buffer))


def _at(clients: Sequence[int]) -> str:
    if not clients:
        return ""
    return f" at the work of client{'s' * (len(clients) > 1)} {', '.join(map(str, clients))}"


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
