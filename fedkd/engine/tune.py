"""Where cohorts are the faster way on this machine: what ``fedkd tune`` measures and writes.

Sixteen clients on made-up images of 28x28 do the same work one by one and as a cohort, in turn, for
growing batches. The limit of a kind of student and of work is the largest batch up to which the
cohort was faster in every step.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from fedkd.data.cache import folder
from fedkd.data.dataset import Part, Task
from fedkd.data.federated import FederatedData, Rows
from fedkd.data.normalisation import Statistics
from fedkd.engine import rule
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.work import Assignment, Fit, Predict, Samples, Step

CLIENTS = 16
BATCHES = (4, 8, 16, 32, 64, 128, 256, 512)
STEPS = 4
REPEATS = 5
STUDENTS = {"dense": "mlp", "other": "cnn2"}
SHAPE, CLASSES = (1, 28, 28), 10
SLOWEST = 1.5
"""Times slower than one by one at which larger batches are not looked at."""

Limits = dict[str, dict[str, dict[str, int]]]
Told = Callable[[str, str, int, float, float], None]
"""Told of a kind, what is done, a batch, and seconds one by one and as a cohort."""


def measure(device: str = "cpu", threads: int = 1, told: Told = lambda *_: None) -> Limits:
    """The limits of ``device``, as :data:`fedkd.engine.rule.LIMITS` has them."""
    found: dict[str, dict[str, int]] = {}
    kind = torch.device(device).type
    for name, model in STUDENTS.items():
        hosts = {way: host(model, device, threads, way) for way in ("off", "on")}
        found[name] = {}
        for what in ("fit", "forward"):
            limit = 0
            for batch in BATCHES:
                times: dict[str, list[float]] = {"off": [], "on": []}
                for _ in range(REPEATS + 1):
                    for way, worker in hosts.items():
                        times[way].append(seconds(worker, what, batch))
                alone, together = (statistics.median(times[way][1:]) for way in ("off", "on"))
                told(name, what, batch, alone, together)
                if together < alone and limit == _before(batch):
                    limit = batch
                if together > SLOWEST * alone:
                    break
            found[name][what] = limit
    return {kind: found}


def write(limits: Limits) -> Path:
    """Have runs on this machine go by ``limits``; those of other devices stay.

    Raises
    ------
    FedkdError
        There is no place to keep them.
    """
    place = folder()
    if place is None:
        raise FedkdError("FEDKD_CACHE = '' keeps nothing: fedkd tune needs a folder to write to")
    file = place / rule.TUNED
    before: Limits = {}
    with suppress(FedkdError):  # what cannot be read is written anew
        rule.limits()
        before = json.loads(file.read_text()) if file.is_file() else {}
    try:
        place.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps(before | limits, indent=1))
        beside.replace(file)
    except OSError as error:
        raise FedkdError(f"FEDKD_CACHE = {str(place)!r}: nothing can be written there") from error
    rule.limits.cache_clear()
    return file


def _before(batch: int) -> int:
    """The batch measured before this one; 0 before the first."""
    smaller = [other for other in BATCHES if other < batch]
    return smaller[-1] if smaller else 0


def host(model: str, device: str, threads: int, cohort: str, clients: int = CLIENTS) -> Worker:
    """A worker of clients that all hold the same made-up images, as many as the largest batch."""
    tables = {
        "data": {"clients": clients, "transfer": {"size": 0}},
        "student": {"models": [model], "width": 1.0 if model == "mlp" else 0.5},
        "training": {"batch_size": BATCHES[-1]},
        "strategy": {"name": "local"},
        "engine": {"name": "inline", "device": device, "threads": threads, "cohort": cohort},
    }
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (BATCHES[-1], *SHAPE[1:], 1), generator=draw, dtype=torch.uint8)
    store = Part(images, torch.randint(CLASSES, (BATCHES[-1],), generator=draw))
    all_, none = Rows(store, torch.arange(BATCHES[-1])), Rows(store, torch.arange(0))
    task = Task(SHAPE, CLASSES, tuple(map(str, range(CLASSES))))
    mine, empty = [all_] * clients, [none] * clients
    half = Statistics("constants", "made-up images", (0.5,), (0.5,))
    data = FederatedData(task, half, mine, empty, empty, none, images[:0])
    return Worker(Experiment.from_dict(tables), data)


def seconds(worker: Worker, what: str, batch: int) -> float:
    """What it takes all clients to do some steps, or forward passes, with a batch."""
    samples = worker.data.private(0)
    assert samples.labels is not None
    rows = Samples(samples.inputs[:batch], samples.labels[:batch])
    step: Step = Predict(rows) if what == "forward" else Fit(rows, epochs=STEPS)
    steps = (step,) * (STEPS if what == "forward" else 1)
    clients = worker.data.clients
    work = [Assignment(client, 1, "learn", steps) for client in range(clients)]
    _settled(worker.device)
    begin = time.perf_counter()
    worker.perform_all(work, lambda done: None)
    _settled(worker.device)
    return time.perf_counter() - begin


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
