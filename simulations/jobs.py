"""Several runs at a time, each in a process of its own that outlives none of them.

A run that fails, or whose process is killed, takes nothing with it: its process is replaced, and
the others go on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd import checkpoint, registry
from fedkd.errors import CheckpointError, FedkdError
from fedkd.experiment import Experiment
from fedkd.run import run
from fedkd.simulations import audit

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

KILLED = "the process was killed; with fewer --jobs each has more memory"


@dataclass(frozen=True)
class Job:
    """An experiment and the folder of its run, which goes on from a checkpoint if there is one.

    With ``shadows`` the run is audited when it has ended.
    """

    experiment: Experiment
    folder: Path
    shadows: int = 0


def most(experiments: Sequence[Experiment]) -> int:
    """How many runs this machine has cores for at a time, whichever of ``experiments`` they are.

    A run takes its torch threads for each of its workers: one worker unless ``engine.name`` asks
    for processes. Runs on a GPU go one at a time.
    """
    from fedkd.engine import plan

    def takes(experiment: Experiment) -> int:
        table = experiment.engine
        if table.device != "cpu":
            return plan.cores()
        inside = table.name in ("auto", "inline")
        return table.threads * (1 if inside else plan.workers(experiment))

    return max(1, plan.cores() // max(map(takes, experiments), default=1))


def outcomes(
    tasks: Sequence[Job], jobs: int, started: Callable[[int], None] = lambda index: None
) -> Iterator[tuple[int, float, str]]:
    """Run ``tasks``, at most ``jobs`` at a time, in their order.

    With more than one at a time each run is in a process of its own and its engine, unless the
    experiment names one, is ``inline``. What is registered in this process alone is not known to
    others: the runs then go one at a time in here.

    Parameters
    ----------
    started
        Told the index of each task that begins.

    Yields
    ------
    tuple
        Index, seconds and in one line what went wrong, as runs end.
    """
    known = [name for group in registry.GROUPS for name in registry.registered(group)]
    if min(jobs, len(tasks)) < 2 or known:
        for index, task in enumerate(tasks):
            started(index)
            yield index, *_one(task)
        return
    yield from _side_by_side([_inside(task) for task in tasks], min(jobs, len(tasks)), started)


def _inside(task: Job) -> Job:
    table = task.experiment.engine
    if table.name != "auto":
        return task
    # A client that does not answer in time can only be ended with the process that it works in.
    update = {"name": "inline"} if table.timeout is None else {"name": "procs", "workers": 1}
    engine = table.model_copy(update=update)
    return replace(task, experiment=task.experiment.model_copy(update={"engine": engine}))


def _side_by_side(
    tasks: Sequence[Job], jobs: int, started: Callable[[int], None]
) -> Iterator[tuple[int, float, str]]:
    waiting = list(enumerate(tasks))[::-1]
    children: dict[Connection, tuple[SpawnProcess, int]] = {}

    def give(pipe: Connection, child: SpawnProcess) -> None:
        index, task = waiting.pop()
        children[pipe] = (child, index)
        try:
            pipe.send(task)
        except OSError:  # it is gone already, which its pipe says
            return
        started(index)

    try:
        for _ in range(jobs):
            give(*_child())
        while children:
            for pipe in wait(list(children)):
                assert isinstance(pipe, Connection)
                child, index = children.pop(pipe)
                try:
                    outcome = pipe.recv()
                except (EOFError, OSError):
                    pipe.close()
                    child.join()
                    outcome = (0.0, KILLED)
                    if waiting:
                        give(*_child())
                else:
                    if waiting:
                        give(pipe, child)
                    else:
                        pipe.close()
                yield index, *outcome
    except BaseException:
        for child, _ in children.values():
            child.terminate()
        raise
    finally:
        for pipe, (child, _) in children.items():
            pipe.close()
            child.join()


def _child() -> tuple[Connection, SpawnProcess]:
    context = get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_serve, args=(there,))
    # Ctrl-C is for this process alone, also while the other one starts.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        child.start()
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    there.close()
    return here, child


def _serve(pipe: Connection) -> None:
    """Do what comes through the pipe until it closes; Ctrl-C is for the process at its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task: Job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = _one(task)
        except KeyboardInterrupt:  # SIGTERM, of a batch system or of the process at the other end
            return
        pipe.send(outcome)


def _end_with_parent() -> None:
    """End this process when its parent does: nobody else would stop it, or know of it."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _one(task: Job) -> tuple[float, str]:
    """Seconds that a run and its audit took, and what went wrong in one line."""
    begin = time.perf_counter()
    try:
        try:
            done = run(task.experiment, task.folder, resume=True)
        except CheckpointError:
            for file in checkpoint.files(task.folder):
                checkpoint.set_aside(file)
            done = run(task.experiment, task.folder, resume=True)
        if not task.shadows:
            return float((done.summary or {}).get("seconds", 0.0)), ""
        if not audit.attacked(done):
            audit.audited(done, task.shadows)
        return time.perf_counter() - begin, ""
    except FedkdError as error:
        return 0.0, " ".join(str(error).split())
    except Exception as error:
        place = traceback.extract_tb(sys.exc_info()[2])[-1]
        said = " ".join(str(error).split())[:300]
        return 0.0, f"{type(error).__name__}: {said} ({Path(place.filename).name}, {place.lineno})"


def grouped(failed: dict[str, str]) -> str:
    """Why runs failed, each reason once."""
    reasons: dict[str, list[str]] = {}
    for who, why in failed.items():
        reasons.setdefault(why, []).append(who)
    return "; ".join(
        f"{whom[0]}{f' and {len(whom) - 1} more' if len(whom) > 1 else ''}: {why}"
        for why, whom in reasons.items()
    )
