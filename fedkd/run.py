"""From an experiment to a finished run's folder."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedkd import checkpoint, lock, registry
from fedkd.checkpoint import Checkpoint
from fedkd.effects import machinery_without_effect, without_effect
from fedkd.environment import other_sources, other_versions
from fedkd.errors import CheckpointError, FedkdError, MissingData, blamed
from fedkd.experiment import Experiment
from fedkd.interrupt import interruptible, interrupts_held_back
from fedkd.results import Run
from fedkd.summaries import reached

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from fedkd.data.federated import FederatedData
    from fedkd.engine.host import Host
    from fedkd.engine.worker import Worker
    from fedkd.privacy.public import Public


MOST_THREADS = 32
"""Torch threads to a core: far more of them wait for one another for ever."""


class Observer:
    """Told what happens while a run goes on; every method does nothing unless overridden."""

    def started(self, run: Run, first_round: int, rounds: int, plan: str) -> None:
        """Rounds are about to begin; ``plan`` says in a line what runs where."""

    def clients_done(self, round: int, done: int, total: int, phase: str) -> None:
        """``done`` of the ``total`` clients at work in this phase have replied."""

    def round_done(self, line: dict[str, Any]) -> None:
        """A round has ended, with this line in ``rounds.jsonl``."""

    def warned(self, message: str) -> None:
        """Something a person should act on."""

    def finished_before(self, run: Run) -> None:
        """The folder holds this run, finished: it is given back, and nothing else happens."""


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


def check(experiment: Experiment) -> None:
    """Refuse an experiment whose strategy or students do not fit, before anything is loaded.

    Raises
    ------
    FedkdError
        One line naming the key, its value and what is allowed.
    """
    from fedkd.data import partitions
    from fedkd.engine import plan
    from fedkd.privacy.dpsgd import check_norm

    threads, cores = experiment.engine.threads, plan.cores()
    if threads > MOST_THREADS * cores:
        raise FedkdError(
            f"engine.threads = {threads} is too many for {cores} cores: at most {MOST_THREADS} to "
            "a core are allowed"
        )
    partitions.named(experiment.data.partition)
    for model in experiment.student.models:
        registry.load("students", model)
    check_norm(experiment.student, experiment.training.dp)
    name = experiment.strategy.name
    strategy = registry.load("strategies", name)
    with blamed(f"strategy {name!r}, check()"):
        strategy.check(experiment)


def serve(
    experiment: Experiment,
    taken: Run,
    grid_of: Callable[[Callable[[], None]], Grid],
    data: FederatedData,
    observer: Observer,
    plan: str,
    *,
    host: Host | None = None,
    public: Public | None = None,
    saved: Checkpoint | None = None,
    begin: float | None = None,
) -> None:
    """The server's part of a run, on any grid: rounds, their lines, checkpoints, the summary.

    ``grid_of`` makes the grid, given what to call whenever a client has replied. ``host`` is where
    clients' students are that belong into checkpoints; without it none are written. ``saved`` is
    what the run goes on from.

    However the rounds end, unless the process is killed, there is a checkpoint of the last whole
    one.
    """
    from fedkd.privacy.public import Public
    from fedkd.shapes import Sizes

    begin = time.perf_counter() if begin is None else begin
    counts = data.label_counts()
    method = registry.load("strategies", experiment.strategy.name)
    public = public or Public.of(experiment, data)
    strategy = method(
        experiment,
        data.task,
        counts,
        data.transfer().inputs,
        public=public,
        canaries=data.canaries,
        sizes=Sizes.of(data),
    )
    first, spent, changed = 1, 0.0, list[str]()
    if saved is not None and host is not None:
        first, spent = saved.round + 1, saved.seconds
        try:
            strategy.restore(saved.strategy)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"--resume: the checkpoint of round {saved.round} in {taken.folder} does not fit "
                f"strategy.name = {experiment.strategy.name!r} as it is now "
                f"({type(error).__name__}: {error}); begin anew with --fresh"
            ) from error
        host.restore(saved.states)
        before = taken.environment
        changed = [*other_versions(before), *other_sources(before, experiment)]
    else:
        clients = range(data.clients)
        taken.write_data_fingerprint(data.fingerprint())
        taken.write_partition(
            data.task.class_names,
            counts.numpy(),
            [len(data.own(client).inputs) for client in clients],
            [experiment.architecture(client) for client in clients],
            data.described(),
        )
        if data.canaries is not None:
            taken.write_canaries(data.canaries.to_json())
    observer.started(taken, first, experiment.rounds, plan)

    def warn(message: str, round: int = 0, about: str = "") -> None:
        if taken.warn(message, round, about):
            observer.warned(message)

    for message in (*data.warnings, *without_effect(experiment, data.task)):
        warn(message)
    if experiment.release.secure:
        warn(
            "release.secure = true: privacy noise comes from the operating system, so that this "
            "run cannot be repeated; --resume draws other noise, and then no epsilon holds"
        )
    if changed:
        warn(
            f"from round {first} on this run was made by another version, so that its numbers may "
            f"not be those of one run: {', '.join(changed)}",
            first - 1,
        )
    keeping = _Keeping(
        taken, strategy, host, experiment, lambda: spent + time.perf_counter() - begin
    )

    def on_round(line: dict[str, Any], details: dict[str, list[dict[str, Any]]]) -> None:
        with interrupts_held_back():  # a round that is written is one to go on from
            taken.append_round(line, **details)
            for message in line.get("warnings", []):
                warn(message, line["round"], strategy.warned.get(message, ""))
            keeping.round_done(line["round"])
        observer.round_done(line)

    progress = _Progress(strategy, observer)
    # Asked for when the round had ended, after its checkpoint was written.
    stopped = saved is not None and strategy.stop(saved.round)
    with keeping:
        if not stopped:
            strategy.start(grid_of(progress.answered), first_round=first, on_round=on_round)
        taken.write_summary(summarise(taken, spent + time.perf_counter() - begin))
    taken.drop_checkpoint()


class _Keeping:
    """Keeps what a run goes on from: in memory after every round, on disk after some.

    Left by an exception that a kill is not, it writes what it has of the last whole round.
    """

    def __init__(
        self,
        taken: Run,
        strategy: Any,
        host: Host | None,
        experiment: Experiment,
        seconds: Callable[[], float],
    ) -> None:
        self.taken, self.strategy, self.host, self.seconds = taken, strategy, host, seconds
        self.rounds, self.every = experiment.rounds, experiment.checkpoint_every
        self.toml = taken.experiment_digest
        self.newest: Checkpoint | None = None
        self.written = 0

    def round_done(self, round: int) -> None:
        """Keep the state after ``round``."""
        if self.host is None or not self.every:
            return
        # Tensors of clients are never written to, only replaced: they need no copy.
        states = {
            client: {name: dict(tensors) for name, tensors in state.items()}
            for client, state in self.host.states.items()
        }
        self.newest = Checkpoint(
            round=round,
            seconds=self.seconds(),
            strategy=_copied(self.strategy.state()),
            states=states,
            files=self.taken.written(),
            experiment=self.toml,
        )
        if round % self.every == 0 and round < self.rounds:
            self._write()

    def _write(self) -> None:
        if self.newest is not None and self.newest.round > self.written:
            # Whoever ends a group of processes often tells one of them twice.
            with interrupts_held_back():
                checkpoint.write(self.taken.folder, self.newest)
                self.written = self.newest.round

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception | KeyboardInterrupt | SystemExit):
            with suppress(FedkdError):  # the disk may be what it ended for
                self._write()


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a strategy's state; what is one tensor under two names stays one."""
    memo: dict[int, Any] = {}

    def detach(value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            for entry in value.values() if isinstance(value, dict) else value:
                detach(entry)
        elif getattr(value, "grad_fn", None) is not None:  # of these Python can make no copy
            memo[id(value)] = value.detach().clone()

    detach(state)
    return copy.deepcopy(state, memo)


class _Progress:
    """Counts replies and tells the observer."""

    def __init__(self, strategy: Any, observer: Observer) -> None:
        self.strategy, self.observer, self.done = strategy, observer, 0
        self.at: tuple[int, str] = (0, "")

    def answered(self) -> None:
        round, phase, total = self.strategy.underway
        if self.at != (round, phase):
            self.at, self.done = (round, phase), 0
        self.done += 1
        if total:
            self.observer.clients_done(round, self.done, total, phase)


def summarise(taken: Run, seconds: float) -> dict[str, Any]:
    """The summary of a run from its lines: the last measurements, totals, who was left out."""
    lines, experiment = taken.rounds, taken.experiment
    last = next((line for line in reversed(lines) if "local" in line), lines[-1])
    prefixes = ("own_", "common_", "validation_")
    summary = {name: value for name, value in last.items() if name.startswith(prefixes)}
    summary |= {
        f"{name}_local": value
        for name, value in last.get("local", {}).items()
        if name.startswith(prefixes)
    }
    target = experiment.target_accuracy
    if target is not None:
        summary |= {"target_accuracy": target, **reached(taken, target)}
    return {
        "strategy": experiment.strategy.name,
        "seed": experiment.seed,
        **summary,
        "rounds": lines[-1]["round"],
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "left_out": sum(len(line["left_out"]) for line in lines),
        "seconds": seconds,
        "seconds_clients": sum(line["seconds_clients"] for line in lines),
    }
