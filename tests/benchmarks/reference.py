"""The reference workload on fedkd, on bare PyTorch and on other simulators: ratios in one run.

    python tests/benchmarks/reference.py [mlp] [cnn] [--peers FOLDER] [--repeats N]

The workload is in ``workload.py``. Everybody is a process of its own, all in turn, ``--repeats``
times; seconds are medians over rounds, ratios are taken within a turn. ``--peers`` names a folder
with a virtual environment for each other simulator (``peers/*.py``); those that are not there are
left out. Two cores are assumed: two torch threads, or two processes of one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import workload
from peers import shared

HERE = Path(__file__).parent
BARE = {
    "mlp": ("loop", "vmap", "batched", "processes"),
    "cnn": ("loop", "vmap", "processes"),
}
FEDKD = {"mlp": ("inline", "procs"), "cnn": ("inline", "procs")}

# --- bare PyTorch -------------------------------------------------------------------------------


def bare(model, way, rounds):
    """A process that does the workload in PyTorch alone, in one of several ways."""
    begin = started()
    import torch

    torch.set_num_threads(1 if way in ("loop", "processes") else 2)
    torch.manual_seed(0)
    (inputs, labels), tests = workload.data()
    inputs, labels = torch.from_numpy(inputs), torch.from_numpy(labels)
    student = network(model)
    parameters = [p.detach().clone() for p in student.parameters()]
    crew = Crew(model) if way == "processes" else None
    make = {"loop": loop, "vmap": vmap, "batched": batched, "processes": crew}[way]
    seconds, empty, start = [], [], None
    for count, into in ((rounds, seconds), (rounds if model == "mlp" else 0, empty)):
        epochs = workload.EPOCHS if into is seconds else 0
        for _ in range(count):
            at = time.perf_counter()
            who = torch.randperm(workload.CLIENTS)[: workload.A_ROUND]
            found = make(student, parameters, inputs, labels, who, epochs)
            parameters = found if into is seconds else parameters
            into.append(time.perf_counter() - at)
            start = start or time.time() - begin
    if crew:
        crew.close()
    hits = functional(student, parameters, torch.from_numpy(tests[0])).argmax(1)
    accuracy = float((hits == torch.from_numpy(tests[1])).double().mean())
    workload.report(f"bare PyTorch: {way}", model, seconds, empty, accuracy, start)


def network(model):
    import torch

    fastest = torch.channels_last if model == "cnn" else torch.contiguous_format
    return shared.network(model).to(memory_format=fastest)


def functional(student, parameters, inputs):
    import torch

    names = [name for name, _ in student.named_parameters()]
    with torch.inference_mode():
        return torch.func.functional_call(student, dict(zip(names, parameters)), (inputs,))


def orders(who, epochs):
    """Rows of every client's batches: ``(n, steps, batch)``."""
    import torch

    each = [
        torch.cat([torch.randperm(workload.SAMPLES) for _ in range(epochs)])
        if epochs
        else torch.empty(0, dtype=torch.long)
        for _ in who
    ]
    return torch.stack(each).view(len(who), -1, workload.BATCH)


def train(student, parameters, inputs, labels, who, epochs):
    """Sum of the clients' parameters: one model, reused in place."""
    import torch
    from torch.nn.functional import cross_entropy

    held = list(student.parameters())
    total = [torch.zeros_like(p) for p in held]
    for client in who.tolist():
        with torch.no_grad():
            torch._foreach_copy_(held, parameters)
        x, y = inputs[client], labels[client]
        for _ in range(epochs):
            for index in torch.randperm(workload.SAMPLES).split(workload.BATCH):
                gradients = torch.autograd.grad(cross_entropy(student(x[index]), y[index]), held)
                with torch.no_grad():
                    torch._foreach_add_(held, gradients, alpha=-workload.LR)
        with torch.no_grad():
            torch._foreach_add_(total, held)
    return total


def loop(*given):
    total, who = train(*given), given[4]
    return [tensor / len(who) for tensor in total]


def vmap(student, parameters, inputs, labels, who, epochs):
    """All clients of a round at once, by ``torch.func``."""
    import torch
    from torch.nn.functional import cross_entropy

    names = [name for name, _ in student.named_parameters()]

    def loss(tensors, x, y):
        given = torch.func.functional_call(student, dict(zip(names, tensors)), (x,))
        return cross_entropy(given, y)

    step = torch.vmap(torch.func.grad(loss))
    held = [p.expand(len(who), *p.shape).clone() for p in parameters]
    rows = orders(who, epochs)
    for index in rows.unbind(1):
        x, y = inputs[who[:, None], index], labels[who[:, None], index]
        torch._foreach_add_(held, list(step(tuple(held), x, y)), alpha=-workload.LR)
    return [p.mean(0) for p in held]


def batched(student, parameters, inputs, labels, who, epochs):
    """All clients of a round at once, by hand: gradients go straight into the parameters."""
    import torch

    w1, b1, w2, b2, w3, b3 = (p.expand(len(who), *p.shape).clone() for p in parameters)
    rows, lr = orders(who, epochs), workload.LR
    for index in rows.unbind(1):
        x, y = inputs[who[:, None], index], labels[who[:, None], index]
        h1 = torch.baddbmm(b1[:, None], x, w1.mT).relu_()
        h2 = torch.baddbmm(b2[:, None], h1, w2.mT).relu_()
        d3 = torch.baddbmm(b3[:, None], h2, w3.mT).softmax(2)
        d3.scatter_add_(2, y[..., None], d3.new_full((*y.shape, 1), -1.0)).mul_(1 / y.shape[1])
        d2 = torch.bmm(d3, w3).mul_(h2 > 0)
        d1 = torch.bmm(d2, w2).mul_(h1 > 0)
        for weight, bias, d, h in ((w3, b3, d3, h2), (w2, b2, d2, h1), (w1, b1, d1, x)):
            weight.baddbmm_(d.mT, h, alpha=-lr)
            bias.sub_(d.sum(1), alpha=lr)
    return [p.mean(0) for p in (w1, b1, w2, b2, w3, b3)]


class Crew:
    """Two long-lived processes with one thread each; parameters in shared memory."""

    def __init__(self, model):
        import torch.multiprocessing as mp

        student = network(model)
        self.shared = [p.detach().clone().share_memory_() for p in student.parameters()]
        self.totals = [[torch_zeros(p).share_memory_() for p in self.shared] for _ in range(2)]
        context = mp.get_context("spawn")
        self.pipes, self.members = [], []
        for total in self.totals:
            mine, theirs = context.Pipe()
            member = context.Process(target=serve, args=(model, theirs, self.shared, total))
            member.start()
            self.pipes.append(mine)
            self.members.append(member)
        for pipe in self.pipes:
            pipe.recv()

    def __call__(self, student, parameters, inputs, labels, who, epochs):
        for mine, given in zip(self.shared, parameters):
            mine.copy_(given)
        for pipe, part in zip(self.pipes, who.chunk(2)):
            pipe.send((part.tolist(), epochs))
        for pipe in self.pipes:
            pipe.recv()
        return [(a + b) / len(who) for a, b in zip(*self.totals)]

    def close(self):
        for pipe, member in zip(self.pipes, self.members):
            pipe.send(None)
            member.join()


def torch_zeros(like):
    import torch

    return torch.zeros_like(like)


def serve(model, pipe, shared, total):
    """What a process of the crew does."""
    import torch

    torch.set_num_threads(1)
    (inputs, labels), _ = workload.data()
    inputs, labels, student = torch.from_numpy(inputs), torch.from_numpy(labels), network(model)
    pipe.send("here")
    while (task := pipe.recv()) is not None:
        who, epochs = task
        for mine, found in zip(
            total, train(student, shared, inputs, labels, torch.tensor(who), epochs)
        ):
            mine.copy_(found)
        pipe.send("done")


# --- fedkd --------------------------------------------------------------------------------------

ENTRY = """[fedkd.students]
reference-mlp = reference_student:mlp
reference-cnn = reference_student:cnn
"""
STUDENT = '''
from collections import OrderedDict
from torch import nn

def mlp(shape, classes, norm, width):
    """784-200-200-10."""
    return nn.Sequential(OrderedDict(
        fc1=nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU()),
        fc2=nn.Sequential(nn.Linear(200, 200), nn.ReLU()),
        head=nn.Linear(200, 10)))

def cnn(shape, classes, norm, width):
    """Two 5x5 convolutions of 16 and 32 channels, FC 128."""
    return nn.Sequential(OrderedDict(
        conv1=nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()),
        conv2=nn.Sequential(nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()),
        fc1=nn.Sequential(nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU()),
        head=nn.Linear(128, 10)))
'''
EXPERIMENT = """
name = "reference"
evaluate_every = 1000000
checkpoint_every = 0
participation = 0.2
[data]
clients = 100
partition = "natural"
samples_per_client = 60
[data.test]
fraction = 0.0
common = 2000
[data.transfer]
size = 0
[training]
optimiser = "sgd"
lr = 0.1
batch_size = 20
[strategy]
name = "fedavg"
"""


def fedkd(model, engine, rounds):
    """A process that does the workload by ``fedkd.run``, on a student of the reference's own."""
    import numpy as np

    begin = started()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "reference_student.py").write_text(STUDENT)
        info = place / "reference_student-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: reference-student\nVersion: 1\n"
        )
        (info / "entry_points.txt").write_text(ENTRY)
        (inputs, labels), tests = workload.data()
        shape = (-1, 28, 28) if model == "cnn" else (-1, 784)
        np.savez(
            place / "reference.npz",
            x=inputs.reshape(shape),
            y=labels.reshape(-1),
            writer=np.arange(workload.CLIENTS).repeat(workload.SAMPLES),
            x_test=tests[0].reshape(shape),
            y_test=tests[1],
        )
        sys.path.insert(0, str(place))
        from fedkd import Experiment, Observer, run

        class Watch(Observer):
            def __init__(self):
                self.seconds, self.start = [], None

            def round_done(self, line):
                self.start = self.start or time.time() - begin
                self.seconds.append(line["seconds"])

        def measured(epochs, count):
            watch = Watch()
            changes = [
                f"data.dataset='npz:{place / 'reference.npz'}'",
                f"student.models=['reference-{model}']",
                f"engine.name={engine}",
                f"engine.threads={2 if engine == 'inline' and model == 'mlp' else 1}",
                f"training.local_epochs={epochs}",
                f"rounds={count}",
            ]
            experiment = Experiment.from_toml(EXPERIMENT, changes)
            done = run(experiment, place / f"{epochs}", observer=watch)
            # The last round is measured, too, which the workload does not have.
            return watch.seconds[:-1], watch.start, done.summary["common_accuracy_mean"]

        seconds, start, accuracy = measured(workload.EPOCHS, rounds + 1)
        empty = measured(0, rounds + 1)[0] if model == "mlp" else []
        workload.report(f"fedkd: {engine}", model, seconds, empty, accuracy, start)


# --- the table ----------------------------------------------------------------------------------


def started():
    """When this process began, by the clock."""
    return time.time() - shared.age()


def measured(command, name):
    settings = {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(HERE.parent.parent)}
    found = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    lines = [line for line in found.stdout.splitlines() if line.startswith('{"name"')]
    if not lines:
        print(f"{name}: no result\n{found.stderr[-800:]}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def entrants(model, peers, rounds):
    for way in BARE[model]:
        yield f"bare PyTorch: {way}", [sys.executable, __file__, "--one", "bare", model, way]
    for engine in FEDKD[model]:
        yield f"fedkd: {engine}", [sys.executable, __file__, "--one", "fedkd", model, engine]
    for script in sorted((HERE / "peers").glob("*.py")) if peers else ():
        python = Path(peers).expanduser().absolute() / script.stem / "bin" / "python"
        if python.exists():
            few = str(rounds if model == "mlp" else workload.WARMUP + 4)
            yield script.stem, [str(python), str(script), model, few]


def compare(model, peers, repeats, rounds):
    found = {}
    for turn in range(repeats):
        for name, command in entrants(model, peers, rounds):
            if result := measured(command, name):
                found.setdefault(name, []).append(result)
                took = 1000 * median(result["seconds"])
                print(f"{model} {turn + 1}/{repeats} {name}: {took:.1f} ms", file=sys.stderr)
    best = min(
        (name for name in found if name.startswith("bare")),
        key=lambda name: statistics.median(median(one["seconds"]) for one in found[name]),
    )
    print(f"\nReference workload, {model}; ratios to {best}, the best bare PyTorch\n")
    print("| who | ms a round | ratio | min | max | empty round, ms | to round 1, s | accuracy |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, turns in found.items():
        times = [median(one["seconds"]) for one in turns]
        ratios = [
            took / median(other["seconds"]) for took, other in zip(times, found[best], strict=False)
        ]
        empty = [1000 * median(one["empty"]) for one in turns if one["empty"]]
        start = [one["start"] for one in turns if one["start"]]
        cells = [
            f"{1000 * statistics.median(times):.1f}",
            *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))),
            f"{statistics.median(empty):.1f}" if empty else "-",
            f"{statistics.median(start):.1f}" if start else "-",
            f"{turns[-1]['accuracy']:.3f}" if turns[-1]["accuracy"] is not None else "-",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    sys.stdout.flush()


def median(seconds):
    return statistics.median(seconds[workload.WARMUP :] or seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--peers", default=os.environ.get("FEDKD_PEERS"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=workload.ROUNDS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, model, way = given.one
        (bare if kind == "bare" else fedkd)(model, way, given.rounds)
        return
    for model in given.models or workload.MODELS:
        compare(model, given.peers, given.repeats, given.rounds)


if __name__ == "__main__":
    main()
