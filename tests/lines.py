"""What tests of whole runs share."""

import json
import os
import select
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from fedkd import Observer

SMALL = """
name = "small"
rounds = 2
[data]
clients = 4
samples_per_client = 60
[data.test]
common = 60
[data.transfer]
size = 80
[student]
models = ["mlp"]
[training]
local_epochs = 2
batch_size = 16
"""


SETTINGS = {
    "strategy.name=dense": [
        *("strategy.server_epochs=1", "strategy.generator_steps=2", "strategy.generated=16"),
        *("strategy.codes=8", "strategy.channels=4"),
    ],
    "strategy.name=scaffold": ["training.optimiser=sgd", "training.lr=0.1"],
}
"""What a method cannot do without, or would take long without, by the override that chooses it."""


def settled(overrides: Iterable[str]) -> list[str]:
    """``overrides``, and before them what the method that they choose cannot do without."""
    overrides = list(overrides)
    return [each for known in overrides for each in SETTINGS.get(known, [])] + overrides


SUITE = """# Does <fusion> help, and does it show?
experiment = "quickstart"
[set]
rounds = 2
"data.clients" = 5
"data.samples_per_client" = 60
"student.models" = ["mlp"]
"training.local_epochs" = 2
[axes]
"data.alpha" = [0.1, 1]
seed = [0, 1]
[axes.method]
knfu = {"strategy.name" = "knfu"}
local = {"strategy.name" = "local"}
[axes.data]
digits = {}
mnist = {"data.dataset" = "mnist"}
"""


def ended(process):
    """Whether a process ends within a minute."""
    try:
        file = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(file, select.POLLIN)
    try:
        return bool(poll.poll(60_000))
    finally:
        os.close(file)


class Killed(BaseException):
    """Stands for a kill: nothing in fedkd catches it."""


class KilledAfter(Observer):
    def __init__(self, round):
        self.round = round

    def round_done(self, line):
        if line["round"] == self.round:
            raise Killed


class Told(Observer):
    """Keeps what it is told."""

    def __init__(self):
        self.warnings, self.first, self.finished = [], None, False

    def started(self, run, first_round, rounds, plan):
        self.first = first_round

    def warned(self, message):
        self.warnings.append(message)

    def finished_before(self, run):
        self.finished = True


def measured(run):
    """The lines of a run without its timings."""

    def strip(line):
        return {key: value for key, value in line.items() if not key.startswith("seconds")}

    return [strip(line) for line in run.rounds], [strip(line) for line in run.clients]


def forget_files(folder):
    """Make a run's summary one from before it said what was written to each file."""
    file = Path(folder) / "summary.json"
    summary = json.loads(file.read_text())
    del summary["files"]
    rounds = file.with_name("rounds.jsonl")
    there = len(rounds.read_text().splitlines()) if rounds.is_file() else 0
    file.write_text(json.dumps(summary | {"rounds": there}))


def sampled(names: Iterable[str], *quick: str):
    """All ``names`` as parameters of a test; those that are not ``quick`` are slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def class_means(seed, counts, size=200):
    """Class means of a client that holds the first classes; zeros for all others."""
    mean, count = torch.zeros(10, size), torch.zeros(10, dtype=torch.long)
    draw = torch.Generator().manual_seed(seed)
    mean[: len(counts)] = torch.randn(len(counts), size, generator=draw)
    count[: len(counts)] = torch.tensor(counts)
    mean[count == 0] = 0
    return {"mean": mean, "count": count}
