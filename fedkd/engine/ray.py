"""The ray engine: long-lived Ray actors, on this machine or a cluster.

Only Ray's public interface is used. Common arrays are put into the object store once a phase;
every actor gets one call a phase.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray

from fedkd.engine.payload import Payload
from fedkd.engine.pool import Done, Event, Lost, Pool, Progress, restore_states, serve_work
from fedkd.engine.worker import State, Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.interrupt import SIGNALS

LOOKS_EVERY = 0.25
"""Seconds between looks at how far the actors are."""
TRAVELS_ALONG = 2**15
"""Bytes up to which arrays are sent with every call, which is sooner there than an object."""
ANSWERS_WITHIN = 5.0
"""Seconds that a cluster has to answer."""


class _Actor:
    """A worker, as an actor."""

    def __init__(self, toml: str) -> None:
        self._toml, self._worker, self._done = toml, None, 0

    _worker: Worker | None

    @ray.method(concurrency_group="looks")
    def done(self) -> int:
        """Clients that have done their work of the phase."""
        return self._done

    def restore(self, frame: bytes, buffer: np.ndarray) -> None:
        """Keep these states."""
        restore_states(self._made(), frame, buffer)

    def perform(self, frame: bytes, buffer: np.ndarray) -> tuple[str, Any, Any]:
        """Do a phase's work: ``("done", frame, arrays)``, or ``("wrong", why, None)``."""
        self._done = 0
        try:
            found, payload = serve_work(self._made(), frame, buffer, self._answered)
        except FedkdError as error:
            return "wrong", str(error), None
        except Exception:
            return "failed", traceback.format_exc(), None
        return "done", found, _arrays(payload)

    def _answered(self, done: int) -> None:
        self._done = done

    def _made(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(Experiment.from_toml(self._toml))
        return self._worker


class Actors(Pool):
    """Ray actors. Ray is started unless it runs already, and what was started is shut down.

    Raises
    ------
    FedkdError
        There is no such cluster, or it has too little for the workers.
    """

    def __init__(
        self,
        experiment: Experiment,
        shares: Sequence[Sequence[int]],
        warned: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(experiment, shares, warned)
        self._toml = experiment.located().to_toml()
        self._actors: list[Any] = [None] * len(shares)
        self._looks: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        self._buffer: Any = None
        self._ours = not ray.is_initialized()
        try:
            if self._ours:
                with _ctrl_c_held_back():
                    self._connect()
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
        if table.address == "local":
            local["num_cpus"] = max(1, int(np.ceil(table.cpus_per_worker * len(self.shares))))
            local["include_dashboard"] = False
        try:
            _check_address(table.address)
            ray.init(table.address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (OSError, ValueError, RuntimeError) as error:
            raise FedkdError(
                f"engine.address = {table.address!r}: no Ray there ({_line(error)}); allowed: "
                "local, auto (a cluster that this machine is part of), HOST:PORT"
            ) from error

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
        if not ray.is_initialized():
            return
        for actor in self._actors:
            if actor is not None:
                ray.kill(actor)
        self._actors = [None] * len(self.shares)
        self._calls.clear()
        self._buffer = None
        if self._ours:
            with _ctrl_c_held_back():
                ray.shutdown()

    def _start(self, worker: int) -> None:
        table = self.experiment.engine
        remote: Any = ray.remote  # its types know no concurrency_groups
        kind = remote(
            num_cpus=table.cpus_per_worker,
            num_gpus=table.gpus_per_worker,
            concurrency_groups={"looks": 1},
            runtime_env={"env_vars": _settings()},
        )(_Actor)
        self._actors[worker] = kind.remote(self._toml)

    def _restore(self, worker: int, states: Mapping[int, State]) -> None:
        payload = Payload()
        frame = payload.frame(states)
        self._actors[worker].restore.remote(frame, _put(payload))

    def _place(self, payload: Payload) -> None:
        self._buffer = _put(payload)

    def _send(self, worker: int, frame: bytes) -> None:
        self._calls[self._actors[worker].perform.remote(frame, self._buffer)] = worker

    def _events(self, workers: set[int]) -> Iterable[tuple[int, Event]]:
        calls = list(self._calls)
        ready, _ = ray.wait(calls, num_returns=1, timeout=LOOKS_EVERY)
        if not ready:
            return [(worker, Progress(done)) for worker, done in self._looked(workers)]
        return [(self._calls[call], self._event(call)) for call in ready]

    def _looked(self, workers: set[int]) -> Iterable[tuple[int, int]]:
        """How far workers are that have said so since they were asked."""
        for worker in sorted(workers):
            look = self._looks.pop(worker, None)
            if look is None:
                self._looks[worker] = self._actors[worker].done.remote()
            elif ray.wait([look], timeout=0)[0]:
                try:
                    yield worker, ray.get(look)
                except ray.exceptions.RayActorError:
                    continue
            else:
                self._looks[worker] = look

    def _event(self, call: Any) -> Event:
        worker = self._calls.pop(call)
        self._looks.pop(worker, None)
        try:
            kind, told, arrays = ray.get(call)
        except ray.exceptions.RayActorError as error:
            return Lost(_line(error))
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"worker {worker} failed:\n{error}") from error
        if kind == "done":
            return Done(told, arrays)
        if kind == "wrong":
            raise FedkdError(told)
        raise RuntimeError(f"worker {worker} failed:\n{told}")


def _check_address(address: str) -> None:
    """Find out at once what Ray takes minutes for: that nobody answers at HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN).close()


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Let Ctrl-C, and what ends a run as it does, come after the block.

    A Ray that is half started would end in its own time. What this process does about such signals
    is afterwards what it was before: Ray would end it on SIGTERM, without a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    come: list[int] = []
    # Where nobody has said what becomes of a signal, Ray may.
    before = {
        number: handler
        for number in (signal.SIGINT, *SIGNALS)
        if callable(handler := signal.getsignal(number))
    }
    for number in before:
        signal.signal(number, lambda number, _: come.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if come:
        signal.raise_signal(come[0])


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


def _settings() -> dict[str, str]:
    """What of this process's environment a worker computes by."""
    found = {name: value for name, value in os.environ.items() if name.startswith("FEDKD_")}
    if cache := found.get("FEDKD_CACHE"):
        found["FEDKD_CACHE"] = os.path.abspath(os.path.expanduser(cache))
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
