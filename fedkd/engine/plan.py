"""What runs where: cores, the workers' shares of the clients, and the choice that ``auto`` makes.

Nothing here is timed while a run goes on: the same experiment on the same machine has the same
plan, and no plan changes a number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd import registry, students
from fedkd.engine import rule
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment

if TYPE_CHECKING:
    from fedkd.engine.host import Host
    from fedkd.engine.worker import Worker

FLOPS = 6.0e10
"""Floating-point operations a second of one thread, as :func:`costs` counts them."""
LAYER = 2.0e-4
"""Seconds that a training step takes beyond its arithmetic, for each layer with parameters."""
START = 6.0
"""Seconds that worker processes must save: over twice what it takes to start them (2.2 s)."""
PROCESSES = 16
"""Worker processes that each core of this machine may have, at most: memory ends before that."""
THREADS = 1024
"""Torch threads that all of them may have together."""
ELSEWHERE = ("datasets", "partitions", "students", "objectives")
"""What workers in other processes look up by name."""


def cores(system: Path = Path("/")) -> int:
    """Cores that this process may use: by affinity, and by the quota of its control groups.

    A quota of 1.5 cores counts as 1. ``system`` is the root of ``/proc`` and ``/sys``.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min([count, *map(math.floor, _quotas(system))]))


def _quotas(system: Path) -> Iterator[float]:
    """Cores that each control group above this process allows, where it bounds them."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = {"": "sys/fs/cgroup", "cpu": "sys/fs/cgroup/cpu", "cpu,cpuacct": "sys/fs/cgroup/cpu"}
    for line in lines:
        _, kind, group = line.split(":", 2)
        if kind not in mounts:
            continue
        inner = Path(group.lstrip("/"))
        # In a container the group's own path is often not there, and the mount is the group itself.
        for place in [inner, *inner.parents]:
            folder = system / mounts[kind] / place
            try:
                if kind:
                    quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                    period = (folder / "cpu.cfs_period_us").read_text().strip()
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
            except (OSError, ValueError):
                continue
            if quota not in ("max", "-1"):
                yield float(quota) / float(period)


def workers(experiment: Experiment) -> int:
    """How many workers there are: as asked for, else one for each core's worth of threads.

    Never more than clients that can be at work at the same time.
    """
    table, data = experiment.engine, experiment.data
    most = math.ceil(experiment.participation * data.clients - 1e-9)
    wanted = table.workers or max(1, cores() // table.threads)
    return max(1, min(wanted, most))


def shares(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Clients of each worker: the costliest first, each to the worker with the least to do.

    Longest processing time first (Graham 1969): at most 4/3 of the best there is.

    Parameters
    ----------
    costs
        Of each client, in any unit.
    workers
        At most as many as clients.
    """
    given: list[list[int]] = [[] for _ in range(workers)]
    loads = [0.0] * workers
    for client in sorted(range(len(costs)), key=lambda client: (-costs[client], client)):
        least = min(range(workers), key=lambda worker: (loads[worker], len(given[worker])))
        given[least].append(client)
        loads[least] += costs[client]
    return [sorted(share) for share in given]


def costs(worker: Worker) -> list[float]:
    """Work of each client in a round it takes part in: seconds, roughly.

    Private samples and passes over them, and those of the sets that everybody has, times what the
    client's student computes for one sample; training counts three times, as the way back costs
    twice the way there. To this come steps of training, times the student's layers.
    """
    experiment, data = worker.experiment, worker.data
    training, tests = experiment.training, data.common().inputs
    batch = experiment.training_on("transfer").batch_size
    operations, layers = {}, {}
    for client in range(min(data.clients, len(experiment.student.models))):
        student = worker.module(client, "own")
        name = experiment.architecture(client)
        operations[name] = 2.0 * students.multiply_adds(student, data.task.shape, data.task.tokens)
        layers[name] = sum(any(True for _ in part.parameters(False)) for part in student.modules())
    shared = 4 * len(data.transfer().inputs) + 2 * len(tests)
    found = []
    for client, size in enumerate(data.sizes().tolist()):
        seen = training.local_epochs * size
        steps = max(training.min_steps, math.ceil(seen / training.batch_size))
        steps += math.ceil(len(data.transfer().inputs) / batch)
        name = experiment.architecture(client)
        arithmetic = (3 * seen + shared) * operations[name] / FLOPS
        found.append(LAYER * layers[name] * steps + arithmetic)
    return found


def seconds(experiment: Experiment, costs: Sequence[float]) -> float:
    """What a run's work would take in one process, roughly: a model, not a measurement."""
    return experiment.rounds * experiment.participation * sum(costs)


def chosen(experiment: Experiment, costs: Sequence[float]) -> str:
    """The engine that ``auto`` stands for: ``inline`` or ``procs``.

    ``procs`` where it saves more than it takes to start, where ``seconds (1 - 1 / workers)`` is
    above :data:`START`; and with ``engine.timeout``, as a client can only be ended with the process
    that it works in. Always ``inline`` on a GPU; with ``engine.remember``, as what is remembered
    is not computed; where something was registered in this process, which others do not know; and
    on systems that are not POSIX.
    """
    table = experiment.engine
    count = workers(experiment)
    saved = seconds(experiment, costs) * (1 - 1 / count)
    alone = table.device != "cpu" or table.remember or _registered() or os.name != "posix"
    if alone:
        return "inline"
    return "procs" if saved > START or table.timeout is not None else "inline"


def host(worker: Worker, warned: Callable[[str], None]) -> Host:
    """The host that an experiment asks for; ``worker`` is this process's own.

    Raises
    ------
    FedkdError
        It cannot be had here.
    """
    from fedkd.engine.inline import Inline

    experiment = worker.experiment
    table = experiment.engine
    expected = [] if table.name == "inline" else costs(worker)
    name = chosen(experiment, expected) if table.name == "auto" else table.name
    worker.states.clear()
    alone = rule.note(worker)
    if name == "inline":
        if table.name == "auto" and table.timeout is not None:
            warned(f"engine.timeout = {table.timeout} has no effect: engine.name is 'inline' here")
        inline = Inline(worker)
        inline.plan += f"; {alone}" if alone else ""
        return inline
    check_processes(experiment, name)
    given = shares(expected, workers(experiment))
    if name == "procs":
        from fedkd.engine.procs import Procs

        pool: Host = Procs(experiment, given, warned)
    else:
        from fedkd.engine.ray import Actors

        pool = Actors(experiment, given, warned)
    threads, each = table.threads, "+".join(str(len(share)) for share in given)
    if len(given) > 8:
        most, least = max(map(len, given)), min(map(len, given))
        each = f"{least}-{most} each" if most > least else f"{most} each"
    pool.plan = (
        f"{name}: {len(given)} worker{'s' if len(given) > 1 else ''}, clients {each}, "
        f"{worker.device}, {threads} torch thread{'s' if threads > 1 else ''} each"
        + (f"; {alone}" if alone else "")
    )
    return pool


def check_processes(experiment: Experiment, name: str, groups: Sequence[str] = ELSEWHERE) -> None:
    """Refuse what cannot be done in other processes, or what this machine is too small for.

    Parameters
    ----------
    name
        The engine.
    groups
        What its processes look up by name, in :data:`fedkd.registry.GROUPS`.

    Raises
    ------
    FedkdError
        Something is registered in this process alone; or there would be too many processes or
        threads.
    """
    table = experiment.engine
    if found := _registered(groups):
        raise FedkdError(
            f"engine.name = {name!r} is not possible: {', '.join(found)} was registered in this "
            "process, and others do not know it; make it an entry point, or use engine.name = "
            "'inline'"
        )
    if name == "ray" and table.address != "local":
        return  # a cluster says itself how much there is of it
    count, most = workers(experiment), PROCESSES * cores()
    if count > most:
        raise FedkdError(
            f"engine.workers = {table.workers} is not allowed: {count} processes are too many for "
            f"the {cores()} cores here; at most {most}"
        )
    if count * table.threads > THREADS:
        raise FedkdError(
            f"engine.threads = {table.threads} is not allowed with {count} workers: together they "
            f"may have {THREADS} threads"
        )


def _registered(groups: Sequence[str] = ELSEWHERE) -> list[str]:
    return [name for group in groups for name in registry.registered(group)]
