"""The ray engine: long-lived Ray actors, on this machine or a cluster.

Only Ray's public interface is used. Common arrays are put into the object store once a phase;
every actor gets one call a phase.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
import numpy as np

# Ray prints these to the standard output, which is for results; the run's own warning says it.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died|killed due to memory pressure")

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedkd.engine.clients import State
from fedkd.engine.payload import Payload
from fedkd.engine.pool import (
    Done,
    Event,
    Failed,
    Lost,
    Pool,
    Progress,
    restore_states,
    serve_work,
)
from fedkd.engine.temporary import TemporaryFolder
from fedkd.engine.worker import Care, Worker
from fedkd.errors import FedkdError, blamed
from fedkd.experiment import Experiment
from fedkd.interrupt import interrupts_held_back

LOOKS_EVERY = 0.25
"""Seconds between looks at how far the actors are."""
TRAVELS_ALONG = 2**15
"""Bytes up to which arrays are sent with every call, which is sooner there than an object."""
ANSWERS_WITHIN = 5.0
"""Seconds that a cluster has to answer."""


class _Actor:
    """A worker, as an actor.

    ``reports``, if given, gets whose work begins before it does: what it knows is true also of a
    worker that is lost.
    """

    def __init__(self, toml: str, number: int, reports: Any) -> None:
        # Ray's handlers describe a crash at length, and the crashed work goes on in the meantime.
        faulthandler.disable()
        for crash in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
            with suppress(ValueError):  # not the main thread
                signal.signal(crash, signal.SIG_DFL)
        self._toml, self._number, self._reports = toml, number, reports
        self._worker: Worker | None = None
        self._progress = Progress(0, None)

    @ray.method(concurrency_group="looks")
    def place(self) -> tuple[str, int]:
        """Node and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    @ray.method(concurrency_group="looks")
    def progress(self) -> Progress:
        """How far the work of the phase is."""
        return self._progress

    def make(self) -> None:
        """Make the worker."""
        with suppress(FedkdError):  # the first piece of work tells of it
            self._made()

    def restore(self, frame: bytes, buffer: np.ndarray) -> None:
        """Keep these states."""
        restore_states(self._made(), frame, buffer)

    def perform(self, frame: bytes, buffer: np.ndarray, care: Care, restored: None) -> Event:
        """Do a piece of work, which Ray begins only if the states before it were ``restored``."""
        try:
            done, payload = serve_work(self._made(), frame, buffer, care, self._report)
            return Done(done, _arrays(payload))
        except (Exception, SystemExit) as error:
            return Failed.by(error)
        finally:
            self._report(Progress(0, ()))

    def _report(self, progress: Progress) -> None:
        self._progress = progress
        if self._reports is not None:
            ray.get(self._reports.enter.remote(self._number, progress))

    def _made(self) -> Worker:
        if self._worker is None:
            with blamed("its start"):
                self._worker = Worker(Experiment.from_toml(self._toml))
            self._report(Progress(0, ()))
        return self._worker


class _Reports:
    """How far workers are, kept in an actor of its own that outlives them."""

    def __init__(self) -> None:
        self._last: dict[int, Progress] = {}

    def enter(self, worker: int, progress: Progress) -> None:
        """Note what a worker reports."""
        self._last[worker] = progress

    def last(self, worker: int) -> Progress:
        """What a worker reported last."""
        return self._last[worker]


class Actors(Pool):
    """Ray actors. Ray is started unless it runs already, and what was started is shut down.

    Raises
    ------
    FedkdError
        There is no such cluster, or it has too little for the workers.
    """

    name = "ray"

    def __init__(
        self,
        experiment: Experiment,
        shares: Sequence[Sequence[int]],
        warned: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(experiment, shares, warned)
        self._toml = experiment.located().to_toml()
        self._actors: list[Any] = [None] * len(shares)
        self._places: dict[int, Any] = {}
        self._making: dict[int, Any] = {}
        self._restored: dict[int, Any] = {}
        self._looks: dict[int, tuple[Any, float]] = {}  # what was asked, and when
        self._known: dict[int, float] = {}
        self._calls: dict[Any, int] = {}
        self._buffer: Any = None
        self._reports: Any = None
        self._reporting: set[int] = set()  # workers that report before they begin
        self._folder: TemporaryFolder | None = None
        self._ours = not ray.is_initialized()
        try:
            if self._ours:
                with interrupts_held_back() as held:
                    try:
                        self._connect()
                    except SystemExit:  # of Ray's handler of SIGTERM, which it has just installed
                        held.append(signal.SIGTERM)
            self._check_room()
            for worker in range(len(shares)):
                self._start(worker)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        table = self.experiment.engine
        # Without a share of a GPU a worker sees them all; Ray warns unless this is said.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Workers have this process's own priority, and not that of background work.
        os.environ.setdefault("RAY_worker_niceness", "0")
        local: dict[str, Any] = {}
        before = os.environ.get("RAY_TMPDIR")
        try:
            _check_address(table.address)
            if table.address == "local":
                local["num_cpus"] = max(1, int(np.ceil(table.cpus_per_worker * len(self.shares))))
                local["include_dashboard"] = False
                self._folder = TemporaryFolder("fedkd-ray-")
                os.environ["RAY_TMPDIR"] = str(self._folder.path)
            ray.init(table.address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as error:
            place = f"engine.address = {table.address!r}"
            if table.address == "local":
                raise FedkdError(f"{place}: Ray does not start here ({_line(error)})") from error
            raise FedkdError(
                f"{place}: no Ray there ({_line(error)}); allowed: local, auto (a cluster that "
                "this machine is part of), HOST:PORT"
            ) from error
        finally:
            os.environ.pop("RAY_TMPDIR", None)
            if before is not None:
                os.environ["RAY_TMPDIR"] = before

    def _check_room(self) -> None:
        table, there = self.experiment.engine, ray.cluster_resources()
        for key, name, each in (
            ("cpus_per_worker", "CPU", table.cpus_per_worker),
            ("gpus_per_worker", "GPU", table.gpus_per_worker),
        ):
            if each * len(self.shares) > there.get(name, 0.0) + 1e-9:
                raise FedkdError(
                    f"engine.{key} = {each:g} is too much for {len(self.shares)} workers: Ray has "
                    f"{there.get(name, 0.0):g} {name}s; lower it or engine.workers"
                )

    def close(self) -> None:
        """Kill the actors, and shut down a Ray that was started for them."""
        if ray.is_initialized():
            for actor in (*self._actors, self._reports):
                if actor is not None:
                    ray.kill(actor)
        self._actors = [None] * len(self.shares)
        self._reports = None
        self._calls.clear()
        self._buffer = None
        if self._ours:  # also one that is half started
            with interrupts_held_back():
                ray.shutdown()
            self._ours = False
        if self._folder is not None:
            self._folder.close()

    def _start(self, worker: int) -> None:
        table = self.experiment.engine
        remote: Any = ray.remote  # its types know no concurrency_groups
        if (before := self._actors[worker]) is not None:
            ray.kill(before)
            if self._reports is None:
                self._reports = remote(num_cpus=0)(_Reports).remote()
            ray.get(self._reports.enter.remote(worker, Progress(0, None)))
            self._reporting.add(worker)
        kind = remote(
            num_cpus=table.cpus_per_worker,
            num_gpus=table.gpus_per_worker,
            concurrency_groups={"looks": 1},
            runtime_env={"env_vars": _settings(table.address)},
        )(_Actor)
        self._looks.pop(worker, None)
        self._restored.pop(worker, None)
        self._calls = {call: n for call, n in self._calls.items() if n != worker}
        self._actors[worker] = kind.remote(self._toml, worker, self._reports)
        self._places[worker] = self._actors[worker].place.remote()
        self._making[worker] = self._actors[worker].make.remote()

    def _kill(self, worker: int) -> None:
        # Ray asks an actor to end itself, which one that stands still does not do.
        node, process = ray.get(self._places[worker])
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        remote: Any = ray.remote  # its types know no such strategy
        ray.get(remote(num_cpus=0, scheduling_strategy=there)(_end).remote(process))

    def _restore(self, worker: int, states: Mapping[int, State]) -> None:
        payload = Payload()
        frame = payload.frame(states)
        self._restored[worker] = self._actors[worker].restore.remote(frame, _put(payload))

    def _place(self, payload: Payload) -> None:
        self._buffer = _put(payload)

    def _send(self, worker: int, frame: bytes, care: Care) -> None:
        restored = self._restored.get(worker)
        call = self._actors[worker].perform.remote(frame, self._buffer, care, restored)
        self._calls[call] = worker

    def _events(self, workers: set[int], seconds: float) -> Iterable[tuple[int, Event]]:
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=LOOKS_EVERY)
        ended = {self._calls[call] for call in ready}
        events = [event for worker in workers - ended for event in self._looked(worker)]
        return [*events, *(event for call in ready for event in self._ended(call))]

    def _looked(self, worker: int) -> Iterable[tuple[int, Event]]:
        """How far a worker is, if that is known since it was asked."""
        if worker in self._making and ray.wait([self._making[worker]], timeout=0)[0]:
            del self._making[worker]
            yield worker, Progress(0, ())
        look, asked = self._looks.pop(worker, (None, 0.0))
        if look is not None and ray.wait([look], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # its call tells of it
                progress = ray.get(look)
                self._known[worker] = asked
                yield worker, progress
            look = None
        if look is None:
            asked = time.monotonic()
            known = worker in self._reporting
            there = self._reports.last if known else self._actors[worker].progress
            look = there.remote(worker) if known else there.remote()
        self._looks[worker] = look, asked

    def _known_until(self, worker: int) -> float:
        return self._known.get(worker, 0.0)

    def _ended(self, call: Any) -> Iterable[tuple[int, Event]]:
        worker = self._calls.pop(call)
        self._looks.pop(worker, None)
        try:
            yield worker, ray.get(call)
        except ray.exceptions.RayTaskError as error:
            yield worker, Failed(_line(error.cause), str(error))
        except ray.exceptions.RayError as error:
            if reporting := worker in self._reporting:
                yield worker, ray.get(self._reports.last.remote(worker))
            yield worker, Lost(_line(error), sure=reporting)


def _end(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _check_address(address: str) -> None:
    """Find out soon what Ray takes minutes for: that nobody answers at HOST:PORT, or no Ray."""
    place = address.removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if not (colon and port.isdecimal()):
        return
    socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN).close()
    if "RAY_USE_TLS" in os.environ:
        return
    with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(ANSWERS_WITHIN)
        except grpc.FutureTimeoutError as error:
            raise ValueError("something else answers") from error


def _put(payload: Payload) -> Any:
    """The arrays as one object in the store; few of them travel with the call itself."""
    arrays = _arrays(payload)
    return arrays if payload.size <= TRAVELS_ALONG else ray.put(arrays)


def _arrays(payload: Payload) -> np.ndarray | None:
    if not payload.size:
        return None
    arrays = np.empty(payload.size, dtype=np.uint8)
    payload.write(arrays)
    return arrays


def _settings(address: str) -> dict[str, str]:
    """What of this process's environment a worker computes by."""
    found = {name: value for name, value in os.environ.items() if name.startswith("FEDKD_")}
    if address == "local":  # elsewhere, modules lie in other places
        found["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    if cache := found.get("FEDKD_CACHE"):
        found["FEDKD_CACHE"] = os.path.abspath(os.path.expanduser(cache))
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
