"""What fedkd adds to the work itself: the inline engine against a bare PyTorch loop.

    FEDKD_DATA=... python tests/benchmarks/overhead.py [EXPERIMENT] [key=value ...]

Both do the same rounds of KnFu (train, soft labels, fusion, fine-tuning, two evaluations) with the
same students, batches' sizes and data, in turn and in one process, so the ratios hold on a noisy
machine. Without data sets: EXPERIMENT ``quickstart``. The bare loop knows nothing of records,
strategies, keyed generators or checks.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from fedkd import Experiment, run
from fedkd.data.federated import load
from fedkd.simulations.shipped import experiment_text
from fedkd.students import build

REPEATS = 5


class Bare:
    """KnFu as one would write it for a single experiment."""

    def __init__(self, experiment):
        self.experiment, data = experiment, load(experiment)
        clients = range(data.clients)
        self.private = [data.private(n) for n in clients]
        self.own = [data.own(n) for n in clients]
        self.common, self.transfer = data.common(), data.transfer().inputs
        self.students = [
            build(experiment.architecture(n), data.task.shape, data.task.classes,
                  experiment.student, n)
            for n in clients
        ]  # fmt: skip
        self.beta = experiment.strategy.options.get("beta", 10.0)

    def round(self):
        labels = []
        for student, private, own in zip(self.students, self.private, self.own):
            self.fit(student, private.inputs, private.labels, F.cross_entropy,
                     self.experiment.training.local_epochs)  # fmt: skip
            self.test(student, own)
            labels.append(self.logits(student, self.transfer).softmax(1))
        stacked = torch.stack(labels)
        beliefs = stacked.double().mean(1).clamp_min(1e-8)
        apart = (beliefs[:, None] * (beliefs[:, None] / beliefs[None]).log()).sum(2)
        weights = (-self.beta * apart).softmax(1).float()
        targets = torch.einsum("nm,mxc->nxc", weights, stacked)
        for student, own, target in zip(self.students, self.own, targets):
            self.fit(student, self.transfer, target, kl, 1)
            self.test(student, own)

    def fit(self, student, inputs, targets, loss, epochs):
        training = self.experiment.training
        optimiser = torch.optim.Adam(student.parameters(), lr=training.lr, fused=True)
        student.train()
        for _ in range(int(epochs)):
            for index in torch.randperm(len(inputs)).split(training.batch_size):
                optimiser.zero_grad()
                loss(student(inputs[index]), targets[index]).backward()
                optimiser.step()

    def test(self, student, own):
        for samples in (own, self.common):
            hits = self.logits(student, samples.inputs).argmax(1) == samples.labels
            float(hits.double().mean())

    @torch.inference_mode()
    def logits(self, student, inputs):
        student.eval()
        return torch.cat([student(piece) for piece in inputs.split(512)])


def kl(logits, targets):
    return F.kl_div(logits.log_softmax(1), targets, reduction="batchmean")


def main(name="knfu-mnist", *overrides):
    torch.set_num_threads(1)
    text = experiment_text(name)
    experiment = Experiment.from_toml(text, ["rounds=2", "strategy.name=knfu", *overrides])
    bare = Bare(experiment)
    bare.round()  # the first round of all pays for torch's own warm-up
    ratios, shares, walls = [], [], []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            done = run(experiment, Path(folder) / "run")
            lines, summary = done.rounds, done.summary
        mine = statistics.mean(line["seconds"] for line in lines)
        begin = time.perf_counter()
        for _ in lines:
            bare.round()
        theirs = (time.perf_counter() - begin) / len(lines)
        ratios.append(mine / theirs)
        shares.append(sum(one["seconds_clients"] for one in lines) / len(lines) / mine)
        walls.append(summary["seconds_clients"] / summary["seconds"])
        print(f"fedkd {mine:.2f} s a round, bare {theirs:.2f} s", file=sys.stderr)
    rows = {
        "seconds a round, fedkd / bare PyTorch": ratios,
        "clients' work / wall time of the rounds": shares,
        "clients' work / wall time of run(), 2 rounds, data remembered": walls,
    }
    print(f"{name} {' '.join(overrides)}, {REPEATS} pairs of 2 rounds, 1 thread\n")
    print("| ratio | median | min | max |\n|---|---:|---:|---:|")
    for title, values in rows.items():
        found = (statistics.median(values), min(values), max(values))
        print(f"| {title} | {' | '.join(f'{value:.3f}' for value in found)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
