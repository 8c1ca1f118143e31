"""From an experiment to a finished run's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd import registry
from fedkd.effects import machinery_without_effect, without_effect
from fedkd.errors import FedkdError, blamed
from fedkd.experiment import Experiment
from fedkd.results import CHECKPOINT, Run, reached

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from fedkd.data.federated import FederatedData
    from fedkd.engine.host import Host
    from fedkd.privacy.public import Public

STATE = "state.pt"
MOST_THREADS = 2
"""Torch threads to a core: more of them wait for one another for ever."""


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


def run(
    experiment: Experiment,
    folder: Path | str | None = None,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Run ``experiment`` on its engine.

    Parameters
    ----------
    folder
        The run's folder; ``runs/<name>-<digest>`` when not given.
    resume
        Go on from the folder's checkpoint. The run ends with the numbers it would have had.
    observer
        Told of progress and warnings.

    Returns
    -------
    Run
        The finished run's folder.

    Raises
    ------
    FedkdError
        Wrong input, in one line.
    """
    # Flower and Ray report usage unless told not to; what the user has set stays.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    begin = time.perf_counter()
    observer = observer or Observer()
    taken = Run.at(experiment, folder, resume)
    check(experiment)
    for message in machinery_without_effect(experiment):
        observer.warned(message)
    if experiment.engine.name == "flower":
        from fedkd.engine.flower import run_on_flower

        if resume:
            raise FedkdError(
                "--resume is not possible with engine.name = 'flower': Flower's runtime keeps the "
                "clients' students; use engine.name = 'inline' or 'procs'"
            )
        run_on_flower(experiment, taken, observer)
        return taken

    from fedkd.engine import plan
    from fedkd.engine.host import HostGrid
    from fedkd.engine.worker import Worker

    if resume and taken.summary is not None:
        return taken
    worker = Worker(experiment)
    with plan.host(worker, observer.warned) as host:
        if not resume:
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
            resume=resume,
            begin=begin,
        )
    return taken


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
    resume: bool = False,
    begin: float | None = None,
) -> None:
    """The server's part of a run, on any grid: rounds, their lines, checkpoints, the summary.

    ``grid_of`` makes the grid, given what to call whenever a client has replied. ``host`` is where
    clients' students are that belong into checkpoints; without it none are written.
    """
    from fedkd.privacy.public import Public

    begin = time.perf_counter() if begin is None else begin
    counts = data.label_counts()
    method = registry.load("strategies", experiment.strategy.name)
    public = public or Public.of(experiment, data)
    strategy = method(
        experiment, data.task, counts, data.transfer().inputs, public=public, canaries=data.canaries
    )
    first, spent = 1, 0.0
    if resume and host is not None:
        saved = _read_checkpoint(taken)
        first, spent = saved["round"] + 1, saved["seconds"]
        strategy.restore(saved["strategy"])
        host.restore(saved["states"])
        taken.cut_after(saved["round"])
    else:
        clients = range(data.clients)
        taken.write_partition(
            data.task.class_names,
            counts.numpy(),
            [len(data.own(client).inputs) for client in clients],
            [experiment.architecture(client) for client in clients],
        )
    if data.canaries is not None:
        taken.write_canaries(data.canaries.to_json())
    observer.started(taken, first, experiment.rounds, plan)

    def warn(message: str, round: int = 0) -> None:
        if taken.warn(message, round):
            observer.warned(message)

    for message in (*data.warnings, *without_effect(experiment, data.task)):
        warn(message)

    def on_round(line: dict[str, Any], details: dict[str, list[dict[str, Any]]]) -> None:
        taken.append_round(line, **details)
        every, round = experiment.checkpoint_every, line["round"]
        if host is not None and every and round % every == 0 and round < experiment.rounds:
            _write_checkpoint(
                taken,
                {
                    "round": round,
                    "seconds": spent + time.perf_counter() - begin,
                    "strategy": strategy.state(),
                    "states": dict(host.states),
                },
            )
        for message in line.get("warnings", []):
            warn(message, line["round"])
        observer.round_done(line)

    progress = _Progress(strategy, observer)
    strategy.start(grid_of(progress.answered), first_round=first, on_round=on_round)
    taken.write_summary(summarise(taken, spent + time.perf_counter() - begin))
    taken.drop_checkpoint()


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
    prefixes = ("own_", "common_")
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


def _write_checkpoint(taken: Run, saved: dict[str, Any]) -> None:
    import torch

    folder = taken.folder / CHECKPOINT
    folder.mkdir(exist_ok=True)
    torch.save(saved, folder / f"{STATE}.new")
    (folder / f"{STATE}.new").replace(folder / STATE)


def _read_checkpoint(taken: Run) -> dict[str, Any]:
    import pickle

    import torch

    file = taken.folder / CHECKPOINT / STATE
    try:
        # weights_only: a checkpoint may come from somebody else and must not run code.
        saved = torch.load(file, weights_only=True)
        if not {"round", "seconds", "strategy", "states"} <= saved.keys():
            raise FedkdError("entries are missing")
    except (
        OSError,
        EOFError,
        LookupError,
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
        FedkdError,
    ) as error:
        reason = str(error).split("\n")[0]
        raise FedkdError(
            f"--resume: the checkpoint {file} cannot be read ({reason}); "
            "run without --resume to begin again"
        ) from error
    return saved
