"""Time and memory against the number of clients, 10 to 10,000.

    python tests/benchmarks/scale.py [participants] [clients] [limits]

``participants``: 10,000 clients, of whom 10 to 1,000 take part in a round: seconds a round should
grow with those alone. ``clients``: 20 of 20 to 10,000 clients take part: seconds a round should
stay, memory grow by what clients hold. ``limits``: 1,000 clients with students of 100,000
parameters (6 GiB), and 10,000 with ``mlp`` on 64 features (12 GiB), all of whom take part and keep
a student. Every line is a process of its own on made-up data; memory is its peak, as the kernel has
it; with worker processes the proportional set size of all together, looked at while they run.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SAMPLES, FEATURES, CLASSES = 20, 64, 10
EXPERIMENT = """
name = "scale"
evaluate_every = 1000000
checkpoint_every = 0
[data]
partition = "natural"
[data.test]
fraction = 0.2
common = 100
[data.transfer]
size = 100
[student]
models = ["mlp"]
[training]
local_epochs = 1
batch_size = 20
"""


class Peak:
    """The most memory that this process and its children have held, what they share counted once.

    Looked at a few times a second.
    """

    def __init__(self):
        self.gib = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while True:
            self.gib = max(self.gib, sum(map(held, [os.getpid(), *children()])))
            time.sleep(0.3)


def children():
    me = os.getpid()
    return map(int, Path(f"/proc/{me}/task/{me}/children").read_text().split())


def held(process):
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return (
        int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) / 2**20
    )


def one(*changes):
    """Run, and print seconds of the rounds and peak memory, as JSON."""
    from fedkd import Experiment, Observer, run

    class Watch(Observer):
        def __init__(self):
            self.seconds, self.plan = [], ""

        def started(self, run, first_round, rounds, plan):
            self.plan = plan

        def round_done(self, line):
            self.seconds.append(line["seconds"])

    clients = int(next(c for c in changes if c.startswith("data.clients")).partition("=")[2])
    draw = np.random.default_rng(0)
    count = clients * SAMPLES + 300
    labels = draw.integers(CLASSES, size=count)
    proto = draw.standard_normal((CLASSES, FEATURES))
    inputs = (proto[labels] + draw.standard_normal((count, FEATURES))).astype(np.float32)
    owners = np.minimum(np.arange(count) // SAMPLES, clients - 1)
    watch, peak = Watch(), Peak()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scale.npz"
        np.savez(file, x=inputs[: clients * SAMPLES + 300], y=labels, writer=owners)
        experiment = Experiment.from_toml(EXPERIMENT, [f"data.dataset='npz:{file}'", *changes])
        done = run(experiment, Path(folder) / "run", observer=watch)
        steps = [name for line in done.rounds for name in line.get("cohort", {})]
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    procs = watch.plan.startswith("procs")
    found = {"seconds": watch.seconds, "gib": peak.gib if procs else own, "plan": watch.plan}
    print(json.dumps(found | {"cohorts": sorted(set(steps))}))


def measured(*changes):
    command = [sys.executable, __file__, "--one", *changes]
    paths = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": paths, "FEDKD_CACHE": ""}
    found = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    if found.returncode:
        sys.exit(found.stderr[-2000:])
    return json.loads(found.stdout.splitlines()[-1])


def table(title, cases):
    print(f"\n{title}\n\n| case | engine | s a round | ms a participant | peak GiB |")
    print("|---|---|---:|---:|---:|")
    for name, participants, changes in cases:
        found = measured(*changes)
        # The first round makes the students, the last one measures everybody.
        took = statistics.median(found["seconds"][1:-1])
        cells = [
            found["plan"].partition(":")[0],
            f"{took:.3f}",
            f"{1000 * took / participants:.2f}",
        ]
        print(f"| {name} | {' | '.join(cells)} | {found['gib']:.2f} |", flush=True)


def fixed(clients, participants, *more):
    share = participants / clients
    return [f"data.clients={clients}", f"participation={share}", "rounds=6", *more]


METHODS = ("fedavg", "knfu")


def participants():
    for method in METHODS:
        cases = [
            (f"{n} of 10,000", n, fixed(10_000, n, f"strategy.name={method}", "engine.name=inline"))
            for n in (10, 100, 1000)
        ]
        table(f"Participants, {method}, inline", cases)


def clients():
    for method in METHODS:
        cases = [
            (f"20 of {n:,}", 20, fixed(n, 20, f"strategy.name={method}", "engine.name=inline"))
            for n in (20, 100, 1000, 10_000)
        ]
        table(f"Clients, {method}, inline", cases)


def limits():
    wide = "student.width=1.435"  # 64-287-287-10: 104,191 parameters
    for engine in ("inline", "procs"):
        each = ["participation=1.0", "rounds=4", f"engine.name={engine}", "strategy.name=fedavg-ft"]
        table(
            f"Everybody takes part and keeps a student, {engine}",
            [
                ("1,000 clients, 104,191 parameters", 1000, ["data.clients=1000", wide, *each]),
                ("10,000 clients, mlp (55,210 parameters)", 10_000, ["data.clients=10000", *each]),
            ],
        )


def main(*asked):
    known = {"participants": participants, "clients": clients, "limits": limits}
    for name in asked or known:
        known[name]()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
