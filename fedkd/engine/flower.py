"""The flower engine: the same server and clients on Flower's own simulation runtime.

``fedkd run --engine flower`` writes a small app folder that points here and has ``flwr run`` run
it; ``flwr run .`` in the source folder runs ``fedkd.simulations.app``, which resolves experiments
by name and is otherwise the same.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedkd import registry
from fedkd.checks import check
from fedkd.client import client_app
from fedkd.data.federated import load
from fedkd.engine import plan, rule
from fedkd.engine.superlink import run_app
from fedkd.engine.temporary import TemporaryFolder
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError, FedkdWarning
from fedkd.experiment import Experiment
from fedkd.observers import Observer
from fedkd.results import Run
from fedkd.serving import serve
from fedkd.students import float32_by_default

WRONG_INPUT = "fedkd: wrong input: "
"""Begins the line by which the server app, in a process of its own, says a FedkdError."""

APP = """[build-system]
requires = ["setuptools"]

[project]
name = "fedkd-run"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedkd"

[tool.flwr.app.components]
serverapp = "fedkd.engine.flower:server"
clientapp = "fedkd.engine.flower:client"

[tool.flwr.app.config]
experiment = ""
folder = ""
"""

Config = dict[str, Any]
"""Flower's run config: the same for the server app and the client apps."""


def server_app(
    experiment_of: Callable[[Config], Experiment],
    run_of: Callable[[Config, Experiment], AbstractContextManager[Run]],
) -> ServerApp:
    """The ServerApp of an experiment.

    ``experiment_of`` finds the experiment, ``run_of`` its folder, held as long as it is written to
    and ready for that, or with a run that has finished.
    """
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        config = dict(context.run_config)
        try:
            experiment = experiment_of(config)
            check(experiment)
            torch.set_num_threads(experiment.engine.threads)
            with run_of(config, experiment) as taken:
                if taken.summary is None:
                    data, plan = load(experiment), "Flower's simulation runtime"
                    with float32_by_default():
                        serve(experiment, taken, lambda _: grid, data, _Log(), plan)
                print(f"fedkd: {taken.folder.resolve()}", flush=True)
        except FedkdError as error:
            print(f"{WRONG_INPUT}{error}", flush=True)
            raise

    return server


def node_app(experiment_of: Callable[[Config], Experiment]) -> ClientApp:
    """The ClientApp of an experiment, for processes that forget their clients."""

    def worker_of(context: Context) -> Worker:
        return _worker(experiment_of(dict(context.run_config)).to_toml())

    return client_app(worker_of)


def run_on_flower(experiment: Experiment, taken: Run, observer: Observer) -> None:
    """Run ``experiment`` on Flower's simulation runtime and leave no process behind.

    Raises
    ------
    FedkdError
        Wrong input, found by the server or a client; or the runtime failed, for the reason that it
        gives.
    """
    plan.check_processes(experiment, "flower", tuple(registry.GROUPS))
    gpus, share = torch.cuda.device_count(), experiment.engine.gpus_per_worker
    if share > gpus:  # Flower would wait for it for ever
        raise FedkdError(
            f"engine.gpus_per_worker = {share:g} is too much: this machine has {gpus} GPUs"
        )
    # What is wrong with the input is found here, in a second, before a runtime is started.
    alone = rule.note(Worker(experiment))
    taken.begin(experiment)
    table, count = experiment.engine, plan.workers(experiment)
    observer.started(
        taken,
        1,
        experiment.rounds,
        f"flower: {experiment.data.clients} nodes, {count} at work at a time, "
        f"{table.device}, {table.threads} torch thread{'s' if table.threads > 1 else ''} each"
        + (f"; {alone}" if alone else ""),
    )
    complaints: list[str] = []
    told = warned = 0

    def stream(line: str) -> None:
        nonlocal told, warned
        if WRONG_INPUT in line:
            complaints.append(line.split(WRONG_INPUT, 1)[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FedkdWarning)  # the other process is writing a line
            lines, messages = taken.rounds[told:], taken.warnings[warned:]
        for entry in lines:
            told += 1
            observer.round_done(entry)
        for message in messages:
            warned += 1
            observer.warned(message)

    with TemporaryFolder("fedkd-app-") as app:
        (app.path / "pyproject.toml").write_text(APP)
        toml, folder = experiment.located().to_toml(), str(taken.folder.resolve())
        try:
            run_app(
                app.path,
                {"experiment": toml, "folder": folder},
                nodes=experiment.data.clients,
                workers=count,
                gpus_per_worker=table.gpus_per_worker,
                stream=stream,
            )
        except RuntimeError as error:
            if complaints:
                raise FedkdError(complaints[0]) from None
            raise FedkdError(f"engine.name = 'flower': {error}") from error
    stream("")
    if taken.summary is None:
        raise FedkdError("engine.name = 'flower': Flower's runtime ended the run early")


@functools.lru_cache(maxsize=1)
def _worker(toml: str) -> Worker:
    """The worker of this process: data sets are loaded once, whichever client comes next."""
    return Worker(Experiment.from_toml(toml))


class _Log(Observer):
    """An observer for the server app's log."""

    def started(self, run: Run, first_round: int, rounds: int, plan: str) -> None:
        print(f"fedkd: {rounds} rounds of {run.experiment.strategy.name}: {plan}", flush=True)

    def round_done(self, line: dict[str, Any]) -> None:
        found = {name: line[name] for name in _SHOWN if name in line}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"fedkd: round {line['round']}: {shown}", flush=True)

    def warned(self, message: str) -> None:
        print(f"fedkd: warning: {message}", flush=True)


_SHOWN = ("own_accuracy_mean", "common_accuracy_mean")


def _given(config: Config) -> Experiment:
    return Experiment.from_toml(str(config["experiment"]))


server = server_app(_given, lambda config, _: nullcontext(Run(Path(str(config["folder"])))))
client = node_app(_given)
