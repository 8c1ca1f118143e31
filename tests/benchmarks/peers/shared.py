"""What the scripts for other simulators have in common: their command line, clock and students."""

import os
import sys
import time
from pathlib import Path

import workload


def arguments():
    """The model's name and the number of rounds, from ``NAME.py mlp|cnn [rounds]``."""
    model, *rest = sys.argv[1:] or ("",)
    if model not in workload.MODELS or len(rest) > 1:
        sys.exit(f"usage: {Path(sys.argv[0]).name} {'|'.join(workload.MODELS)} [rounds]")
    return model, int(rest[0]) if rest else workload.ROUNDS


class Laps:
    """Seconds of every round; ``start`` is from the start of the process to the first lap's end."""

    def __init__(self):
        self.seconds, self.start, self.at = [], None, None

    def begin(self):
        self.at = time.perf_counter()

    def end(self):
        now = time.perf_counter()
        self.seconds.append(now - self.at)
        self.start, self.at = self.start or age(), now


def age():
    """Seconds since this process was created."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return up - ticks / os.sysconf("SC_CLK_TCK")


def network(model):
    """The student in PyTorch; the input is ``(N, 784)`` for both."""
    from torch import nn

    if model == "mlp":
        return nn.Sequential(
            nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
        )
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def accuracy(student, tests):
    """Share of the test samples that a PyTorch student gets right."""
    import torch

    inputs, labels = map(torch.from_numpy, tests)
    with torch.inference_mode():
        return float((student(inputs).argmax(1) == labels).double().mean())
