"""From an experiment to a finished run's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd import checkpoint, lock
from fedkd.checkpoint import Checkpoint
from fedkd.checks import check
from fedkd.effects import machinery_without_effect
from fedkd.environment import other_sources, other_versions
from fedkd.errors import CheckpointError, FedkdError, MissingData
from fedkd.experiment import Experiment
from fedkd.interrupt import interruptible
from fedkd.observers import Observer
from fedkd.results import Run
from fedkd.serving import serve

if TYPE_CHECKING:
    from fedkd.data.federated import FederatedData
    from fedkd.engine.worker import Worker


def run(
    experiment: Experiment,
    folder: Path | str | None = None,
    *,
    resume: bool = False,
    fresh: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Run ``experiment`` on its engine.

    A run that has finished is given back as it is, unless the data or the source of its method or
    students are not what they were. One that was begun and has not finished goes on, or begins
    anew, only where that is said.

    Parameters
    ----------
    folder
        The run's folder; ``runs/<name>-<digest>`` when not given.
    resume
        Go on from the folder's newest checkpoint, or begin where there is none. The run ends with
        the numbers it would have had.
    fresh
        Begin anew, whatever the folder holds of this experiment.
    observer
        Told of progress and warnings.

    Returns
    -------
    Run
        The finished run's folder.

    Raises
    ------
    FedkdError
        Wrong input, in one line; also a folder that another process is writing to, and one that
        cannot be written to.
    CheckpointError
        A run that is to go on has no checkpoint that can be read.
    """
    # Flower and Ray report usage unless told not to; what the user has set stays.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    begin = time.perf_counter()
    observer = observer or Observer()
    with opened(experiment, folder, resume=resume, fresh=fresh, observer=observer) as (taken, on):
        if not fresh and taken.summary is not None:
            return taken
        for message in machinery_without_effect(experiment):
            observer.warned(message)
        if experiment.engine.name == "flower":
            from fedkd.engine.flower import run_on_flower

            run_on_flower(experiment, taken, observer)
            return taken

        from fedkd.engine import plan
        from fedkd.engine.host import HostGrid
        from fedkd.engine.worker import Worker
        from fedkd.students import float32_by_default

        worker = Worker(experiment)
        saved = read_checkpoint(taken, worker, observer) if on else None
        with float32_by_default(), plan.host(worker, observer.warned) as host:
            if saved is None:
                taken.begin(experiment)
            serve(
                experiment,
                taken,
                lambda answered: HostGrid(host, answered),
                worker.data,
                observer,
                host.plan,
                host=host,
                public=worker.public,
                saved=saved,
                begin=begin,
            )
    return taken


@contextmanager
def opened(
    experiment: Experiment,
    folder: Path | str | None = None,
    *,
    resume: bool = False,
    fresh: bool = False,
    observer: Observer | None = None,
) -> Iterator[tuple[Run, bool]]:
    """The folder for a run of ``experiment``, which nobody else writes to meanwhile.

    A signal that would end the process is, meanwhile, an exception as Ctrl-C is.

    Yields
    ------
    tuple
        The folder, and whether there is a checkpoint to go on from. A run that has finished is
        given as it is and is not to be written to, unless ``fresh``.

    Raises
    ------
    FedkdError
        As :func:`run`.
    """
    if resume and fresh:
        raise FedkdError("--resume and --fresh are not allowed together: go on, or begin anew")
    observer = observer or Observer()
    taken = Run.at(experiment, folder)
    check(experiment)
    if not fresh and taken.summary is not None:
        _check_finished(taken, experiment, resume, observer)
        yield taken, False
        return
    with interruptible(), lock.held(taken.folder):
        # Another process may have written here until now.
        taken = Run.at(experiment, taken.folder)
        if not fresh and taken.summary is not None:
            yield taken, False
            return
        done, there = taken.rounds_done, bool(checkpoint.files(taken.folder))
        if not (resume or fresh) and (done or there):
            raise FedkdError(
                f"{taken.folder} holds {done} of {experiment.rounds} rounds of this experiment; "
                "go on with --resume, or begin anew with --fresh"
            )
        if resume and not there:
            observer.warned(
                f"{taken.folder} holds no checkpoint to go on from: the run begins at round 1"
            )
        if resume and there and experiment.engine.name == "flower":
            raise FedkdError(
                "--resume is not possible with engine.name = 'flower': Flower's runtime keeps the "
                "clients' students; use engine.name = 'inline' or 'procs'"
            )
        yield taken, resume and there


def _check_finished(taken: Run, experiment: Experiment, resume: bool, observer: Observer) -> None:
    """Refuse to give back numbers that the same command would not give today."""
    from fedkd.data.federated import load

    before = taken.environment
    if "data_fingerprint" in before:
        try:
            check_data(taken, load(experiment))
        except MissingData:
            observer.warned(f"{taken.folder} has finished on data that are not there any more")
    other = other_sources(before, experiment)
    if other and not resume:
        raise FedkdError(
            f"{taken.folder} has finished, and the source of {', '.join(other)} is not what it was "
            "or cannot be compared; begin anew with --fresh, or take it as it is with --resume"
        )
    if versions := other_versions(before):
        observer.warned(f"{taken.folder} was made by another version; now: {', '.join(versions)}")
    taken.check()
    observer.finished_before(taken)


def check_data(taken: Run, data: FederatedData) -> None:
    """Refuse to go on with a run on other data than it was begun on.

    Raises
    ------
    FedkdError
        One line.
    """
    before = taken.environment.get("data_fingerprint")
    if before is not None and before != data.fingerprint():
        raise FedkdError(
            f"the data of {taken.folder} are not what they were when its run began; begin anew "
            "with --fresh, or choose another folder with --out"
        )


def read_checkpoint(taken: Run, worker: Worker, observer: Observer) -> Checkpoint:
    """The checkpoint that a run goes on from, when nothing else stands against going on.

    One that cannot be read is set aside where there is an earlier one that can.

    Raises
    ------
    CheckpointError
        None can be read.
    FedkdError
        The data, or a file in the folder, are not what they were.
    """
    check_data(taken, worker.data)
    saved, damaged = checkpoint.newest(taken.folder, worker, taken.experiment_digest)
    if saved is None:
        file, why = next(iter(damaged.items()))
        raise CheckpointError(
            f"--resume: the checkpoint {file} cannot be read: {why}; begin anew with --fresh, "
            "which sets it aside"
        )
    taken.cut(saved.files)
    for file, why in damaged.items():
        aside = checkpoint.set_aside(file)
        observer.warned(
            f"the checkpoint {file.name} cannot be read: {why}; it is kept as {aside.name}, and "
            f"the run goes on after round {saved.round}"
        )
    return saved
