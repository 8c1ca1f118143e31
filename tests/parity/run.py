"""Methods on another library's partition at its settings, beside the numbers that it gave.

    python tests/parity/run.py FOLDER --reference FILE [--methods NAME …] [--seeds N …] [--rounds N]

FOLDER is in HtFLlib's or PFLlib's layout (``given.py``). The settings are those of HtFLlib's runs:
its FedAvgCNN, SGD at 0.05, batches of 10, one epoch a round, 15 rounds, lambda 1, FML's alpha and
beta 0.5. As there, an accuracy is over all clients' test samples together, of what each method's
paper scores. FILE has what the other library gave, in percent: CSV with the columns ``method``,
``last`` and ``best``, or TOML with a table ``[METHOD]`` of ``last`` and ``best``.

What is not the same: batches are drawn anew in each epoch, and the last one may be smaller; who
never shuffles and drops it gives other numbers in the first rounds. Of FedTGP, FedGen and FedKD the
options are fedkd's own, but for those below.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import tomllib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import given
from torch import nn

from fedkd import registry
from fedkd.data.federated import FederatedData
from fedkd.engine import plan
from fedkd.engine.host import HostGrid
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.headline import LOCAL, column_of
from fedkd.observers import Observer
from fedkd.results import Run
from fedkd.run import opened
from fedkd.serving import serve

SERVER: dict[str, dict[str, Any]] = {"fedgh": {"lr": 0.01}}
"""What the server trains by at HtFLlib's settings, where that is not the method's own."""
METHODS: dict[str, dict[str, Any]] = {
    "local": {},
    "feddistill": {"gamma": 1.0},
    "fedproto": {"weight": 1.0},
    "fml": {"alpha": 0.5, "beta": 0.5},
    "lg-fedavg": {},
    "fedgh": {},
    "fedtgp": {"weight": 1.0},
    "fedgen": {},
    "fedkd-svd": {},
    "fedmrl": {"nested": 128},
}
"""Methods, and their options at HtFLlib's settings."""
ROUNDS = 15
HEADS = ("method", "scored", "last", "best", "their last", "their best", "difference")


def fedavg_cnn(shape: tuple[int, ...], classes: int, norm: str, width: float) -> nn.Sequential:
    """HtFLlib's FedAvgCNN: two 5x5 convolutions without padding (32, 64), FC 512; no ``norm``."""
    channels, *sides = shape
    hidden = 512
    flat = 64
    for side in sides:
        flat *= ((side - 4) // 2 - 4) // 2

    def convolution(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, 5), nn.ReLU(), nn.MaxPool2d(2))

    return nn.Sequential(
        OrderedDict(
            conv1=convolution(channels, 32),
            conv2=convolution(32, 64),
            fc1=nn.Sequential(nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU()),
            head=nn.Linear(hidden, classes),
        )
    )


def experiment(method: str, seed: int, rounds: int, clients: int) -> Experiment:
    """A method at HtFLlib's settings; what it says of the data set is not read."""
    return Experiment.from_dict(
        {
            "name": f"parity-{method}",
            "seed": seed,
            "rounds": rounds,
            "checkpoint_every": 0,
            "data": {"clients": clients, "test": {"common": 0}, "transfer": {"size": 0}},
            "student": {"models": ["fedavg-cnn"]},
            "training": {"optimiser": "sgd", "lr": 0.05, "batch_size": 10, "local_epochs": 1},
            "strategy": {"name": method} | METHODS.get(method, {}),
            "server": SERVER.get(method, {}),
            "engine": {"name": "inline"},
        }
    )


def played(this: Experiment, data: FederatedData, folder: Path) -> Run:
    """The run of an experiment on data that no source of fedkd's gives."""
    with opened(this, folder) as (taken, _):
        worker = Worker(this, data)
        with plan.host(worker, print) as host:
            taken.begin(this)
            serve(
                this,
                taken,
                lambda answered: HostGrid(host, answered),
                data,
                Observer(),
                host.plan,
                host=host,
                public=worker.public,
            )
    return taken


def curve(run: Run, data: FederatedData, column: str) -> list[float]:
    """Percent of all clients' test samples that are told right, a round: theirs is this mean."""
    name = column.removesuffix(LOCAL).removesuffix("_mean")
    # A client that did nothing after fusion was tested once, after its local training.
    stages = ("local",) if column.endswith(LOCAL) else ("local", "fused")
    found = {
        (line["round"], line["client"]): line[name]
        for stage in stages
        for line in run.clients
        if line["stage"] == stage and name in line
    }
    sizes = {client: data.count("own", client) for client in range(data.clients)}
    whole = sum(sizes.values()) / 100
    return [
        sum(size * found[line["round"], client] for client, size in sizes.items()) / whole
        for line in run.rounds
    ]


def reference(file: Path) -> dict[str, tuple[float, float]]:
    """The last and the best accuracy of each method, in percent, that the other library gave.

    Raises
    ------
    FedkdError
        The file cannot be read, or lacks a number.
    """
    try:
        if file.suffix == ".toml":
            tables = tomllib.loads(file.read_text())
        elif file.suffix == ".csv":
            with file.open(newline="") as lines:
                tables = {line["method"]: line for line in csv.DictReader(lines)}
        else:
            raise ValueError("allowed: a file .csv or .toml")
        return {
            method: (float(line["last"]), float(line["best"])) for method, line in tables.items()
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FedkdError(f"--reference {file} cannot be read: {error}") from error


def row(method: str, curves: Sequence[Sequence[float]], scored: str, theirs: Any) -> list[str]:
    """A line of the table: means over seeds, and what they differ by from theirs."""
    ours = fmean(one[-1] for one in curves), fmean(max(one) for one in curves)
    known = theirs.get(method, (math.nan, math.nan))
    pairs = ["" if math.isnan(a - b) else f"{a - b:+.1f}" for a, b in zip(ours, known, strict=True)]
    shown = ["" if math.isnan(x) else f"{x:.1f}" for x in (*ours, *known)]
    return [method, scored, *shown, " / ".join(filter(None, pairs))]


def main(words: Sequence[str] | None = None) -> int:
    """Run the methods that there are, and print them; 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reference", type=Path, help="what the other library gave, CSV or TOML")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args(words)
    registry.register("students", "fedavg-cnn")(fedavg_cnn)
    try:
        data = given.load(asked.folder)
        theirs = reference(asked.reference) if asked.reference else {}
        table = [list(HEADS)]
        for method in asked.methods:
            if method not in registry.names("strategies"):
                print(f"{method}: not among fedkd's methods, left out", file=sys.stderr)
                continue
            curves, scored = [], ""
            for seed in asked.seeds:
                this = experiment(method, seed, asked.rounds, data.clients)
                with tempfile.TemporaryDirectory() as folder:
                    run = played(this, data, Path(folder) / "run")
                    scored = column_of(run) or "own_accuracy_mean"
                    curves.append(curve(run, data, scored))
            table.append(row(method, curves, scored, theirs))
    except FedkdError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(f"\nPercent of all test samples, means over seeds {asked.seeds}, {asked.rounds} rounds;")
    print("a difference is fedkd's minus theirs, of the last and of the best round.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
