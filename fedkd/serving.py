"""The server's part of a run: rounds, their lines, checkpoints and the summary."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedkd import checkpoint, registry
from fedkd.checkpoint import Checkpoint
from fedkd.effects import without_effect
from fedkd.environment import other_sources, other_versions
from fedkd.errors import CheckpointError, FedkdError
from fedkd.experiment import Experiment
from fedkd.headline import column_of, numbers
from fedkd.interrupt import interrupts_held_back
from fedkd.observers import Observer
from fedkd.records import LOYALTY
from fedkd.results import Run
from fedkd.summaries import reached

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from fedkd.data.federated import FederatedData
    from fedkd.engine.host import Host
    from fedkd.privacy.public import Public


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
    from fedkd.students.choice import with_chosen_students

    begin = time.perf_counter() if begin is None else begin
    counts = data.label_counts()
    method = registry.load("strategies", experiment.strategy.name)
    public, transfer = public or Public.of(experiment, data), data.transfer().inputs
    chosen = with_chosen_students(experiment, transfer, data.task.shape, data.task.classes)
    strategy = method(
        chosen,
        data.task,
        counts,
        transfer,
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
            [chosen.architecture(client) for client in clients],
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
        if bins := strategy.reliability:
            taken.write_reliability(bins)
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
    for line in lines:  # of the last round that distilled
        summary |= {name: value for name, value in line.items() if name.startswith(LOYALTY)}
    headline = column_of(taken)
    summary |= numbers(summary, headline)
    target = experiment.target_accuracy
    if target is not None:
        summary |= {"target_accuracy": target, **reached(taken, target)}
        if headline is not None and headline.startswith("own_"):
            in_headline = reached(taken, target, headline)
            summary |= {f"headline_{name}": value for name, value in in_headline.items()}
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
