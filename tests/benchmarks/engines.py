"""The engines against each other and against bare PyTorch, as ratios in one run.

    FEDKD_DATA=... python tests/benchmarks/engines.py [knfu] [empty] [start] [rule]

``knfu``: a round of KnFu with 20 clients, mnist (digits without FEDKD_DATA) and cnn2, on a bare
loop, inline, in two worker processes, with two Ray actors. ``empty``: a round of 20 clients that
do nothing, and what it costs to have workers lost without loss. ``start``: from the start of a
process to the end of round 1 of the quick start, against a bare script. ``rule``: the constants of
the rule by which ``engine.name = "auto"`` chooses.

All that is compared runs in turn; medians of pairs, with the least and the most.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from overhead import Bare

from fedkd import Experiment, Observer, run
from fedkd.codec import Codec
from fedkd.engine import plan
from fedkd.engine.host import HostGrid
from fedkd.engine.worker import Worker
from fedkd.simulations.shipped import experiment_text
from fedkd.work import Assignment, Load

HERE = Path(__file__).parent
REPEATS = 3
CLIENTS = 20


class Rounds(Observer):
    """Seconds of each round, and of this process's core: a busy machine changes these little."""

    def __init__(self):
        self.seconds, self.cores, self.at = [], [], time.process_time()

    def round_done(self, line):
        self.seconds.append(line["seconds"])
        self.cores.append(time.process_time() - self.at)
        self.at = time.process_time()


def said(what):
    print(what, file=sys.stderr, flush=True)


def table(title, rows):
    """Medians, least and most of every row, in its unit."""
    print(f"\n{title}\n\n| | median | min | max |\n|---|---:|---:|---:|")
    for name, values in rows.items():
        found = (statistics.median(values), min(values), max(values))
        print(f"| {name} | {' | '.join(f'{value:.3g}' for value in found)} |")
    sys.stdout.flush()


def rounds_of(experiment, engine, workers=2):
    update = {"name": engine, "workers": workers}
    chosen = experiment.engine.model_copy(update=update)
    watch = Rounds()
    with tempfile.TemporaryDirectory() as folder:
        run(experiment.model_copy(update={"engine": chosen}), Path(folder) / "run", observer=watch)
    return watch


# --- a round of KnFu ------------------------------------------------------------------------


def knfu(rounds=4):
    """Seconds a round, the first not counted: it pays for starts and for torch's own warm-up."""
    torch.set_num_threads(1)
    dataset = "mnist" if os.environ.get("FEDKD_DATA") else "digits"
    changes = [f"data.dataset={dataset}", f"data.clients={CLIENTS}", f"rounds={rounds}"]
    few = {"mnist": "data.samples_per_client=300", "digits": "data.samples_per_client=40"}
    changes += [few[dataset], "training.local_epochs=2", "student.width=1.0"]
    text = experiment_text("knfu-mnist" if dataset == "mnist" else "quickstart")
    experiment = Experiment.from_toml(text, changes)
    bare = Bare(experiment)
    bare.round()
    found = {"bare": [], "inline": [], "procs": [], "ray": []}
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for _ in range(rounds - 1):
            bare.round()
        found["bare"].append((time.perf_counter() - begin) / (rounds - 1))
        for engine in ("inline", "procs", "ray"):
            found[engine].append(statistics.median(rounds_of(experiment, engine).seconds[1:]))
        said(" ".join(f"{name} {values[-1]:.2f} s" for name, values in found.items()))
    ratios = {
        "inline / bare loop": ("inline", "bare"),
        "inline / procs, 2 workers": ("inline", "procs"),
        "bare loop / procs, 2 workers": ("bare", "procs"),
        "ray / procs, 2 workers each": ("ray", "procs"),
    }
    table(
        f"KnFu, {CLIENTS} clients, {dataset}, cnn2, seconds a round as ratios",
        {name: [x / y for x, y in zip(found[a], found[b])] for name, (a, b) in ratios.items()},
    )
    table("The same, seconds a round", found)


# --- an empty round -------------------------------------------------------------------------


def empty(rounds=100):
    """Milliseconds of rounds in which clients do nothing, or take in parameters."""
    text = experiment_text("quickstart")
    changes = [f"data.clients={CLIENTS}", "data.samples_per_client=40", "engine.workers=2"]
    changes += ["student.models=['mlp']", "student.width=2.0"]
    rows = {}
    for engine in ("inline", "procs", "ray"):
        experiment = Experiment.from_toml(text, [*changes, f"engine.name={engine}"])
        worker = Worker(experiment)
        parameters = dict(worker.state(0)["own"])
        size = sum(tensor.nbytes for tensor in parameters.values()) / 2**20
        steps = {
            "empty": ((), ()),
            f"common parameters ({size:.1f} MB) taken in and undone": ((), (Load(parameters),)),
            "the same, kept, and copied back": ((Load(parameters),), ()),
        }
        with plan.host(worker, said) as host:
            grid = HostGrid(host)
            for name, (kept, undone) in steps.items():
                phase(grid, kept, undone)
                times = [phase(grid, kept, undone) + phase(grid, kept, undone)]
                times += [
                    phase(grid, kept, undone) + phase(grid, kept, undone) for _ in range(rounds - 1)
                ]
                rows[f"{engine}: {name}"] = [1000 * seconds for seconds in times]
    table(f"A round of {CLIENTS} clients in two phases, 2 workers, milliseconds", rows)


def phase(grid, steps, trial):
    begin, codec = time.perf_counter(), Codec()
    grid.send_and_receive(
        [
            grid.create_message(
                codec.encode(Assignment(n, 1, "learn", steps, trial)), "train", n, ""
            )
            for n in range(CLIENTS)
        ]
    )
    return time.perf_counter() - begin


# --- start-up -------------------------------------------------------------------------------


def start(pairs=5):
    """Seconds of whole processes: the quick start's first round, and the same as a bare script."""
    paths = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    code = "from fedkd.simulations.cli import main; main()"
    words = ["run", "quickstart", "--set", "rounds=1", "--quiet", "--fresh"]
    fedkd = [sys.executable, "-c", code, *words]
    shown = [sys.executable, "-c", code, "--help"]
    bare = [sys.executable, str(HERE / "bare_start.py")]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def seconds(command, cache="cache"):
            settings = {"PYTHONPATH": paths, "FEDKD_CACHE": str(place / cache)}
            begin = time.perf_counter()
            subprocess.run(
                command, cwd=folder, env={**os.environ, **settings}, check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            return time.perf_counter() - begin

        seconds(fedkd), seconds(bare)
        found = [
            (seconds(bare), seconds(fedkd), seconds(fedkd, f"cold{n}"), seconds(shown))
            for n in range(pairs)
        ]
    theirs, mine, cold, told = zip(*found)
    rows = {
        "bare script": theirs,
        "fedkd run quickstart, 1 round": mine,
        "the same, nothing remembered on disk": cold,
        "difference": [b - a for a, b in zip(theirs, mine)],
        "difference, nothing remembered on disk": [b - a for a, b in zip(theirs, cold)],
        "fedkd --help": told,
    }
    table("Process start to the end of round 1, seconds", rows)


# --- the rule of auto -----------------------------------------------------------------------


def rule():
    """Fit the model of ``fedkd.engine.plan`` to rounds inline, and what worker processes cost.

    In seconds of a core, so that neighbours count little: that is what one thread has to itself.
    """
    cases = [
        ("quickstart", "student.models=['mlp']"),
        ("quickstart", "student.models=['cnn2']"),
        ("quickstart", "student.models=['cnn2']", "student.width=2.0"),
        ("quickstart", "student.models=['resnet8']", "student.norm=group", "data.clients=4"),
    ]
    rows, measured = [], []
    for name, *changes in cases:
        experiment = Experiment.from_toml(experiment_text(name), ["rounds=4", *changes])
        worker = Worker(experiment)
        rows.append(parts(worker))
        measured.append(statistics.median(rounds_of(experiment, "inline").cores[1:]))
    # Relative errors count: a small case says as much as a large one.
    system = np.array(rows) / np.array(measured)[:, None]
    (layer, each), *_ = np.linalg.lstsq(system, np.ones(len(rows)), rcond=None)
    begun = []
    for _ in range(REPEATS):
        tiny = Experiment.from_toml(experiment_text("quickstart"), ["rounds=1"])
        before = spent_by_children()
        rounds_of(tiny, "procs")
        begun.append((spent_by_children() - before) / 2 - rounds_of(tiny, "inline").cores[0] / 2)
    print("\nThe rule of `auto`: fitted, and as it stands in fedkd/engine/plan.py\n")
    print("| constant | measured | in use |\n|---|---:|---:|")
    print(f"| FLOPS | {1 / each:.3g} | {plan.FLOPS:.3g} |")
    print(f"| LAYER | {layer:.3g} | {plan.LAYER:.3g} |")
    print(f"| START | {statistics.median(begun):.3g} | {plan.START:.3g} |")
    print("\n| case | measured, s of a core a round | by the fit |\n|---|---:|---:|")
    for case, row, seconds in zip(cases, rows, measured):
        print(f"| {' '.join(case)} | {seconds:.3g} | {row[0] * layer + row[1] * each:.3g} |")


def spent_by_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parts(worker):
    """Layers times steps, and floating-point operations, of a round, as the rule counts them."""
    whole = sum(plan.costs(worker))
    slow = plan.FLOPS
    try:
        plan.FLOPS = float("inf")
        steps = sum(plan.costs(worker)) / plan.LAYER
    finally:
        plan.FLOPS = slow
    return steps, (whole - steps * plan.LAYER) * plan.FLOPS


def main(*asked):
    torch.set_num_threads(1)
    known = {"start": start, "rule": rule, "empty": empty, "knfu": knfu}
    for name in asked or known:
        known[name]()


if __name__ == "__main__":
    main(*sys.argv[1:])
