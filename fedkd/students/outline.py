"""What a student would be, told without making it: its layers and the shapes of its tensors."""

from __future__ import annotations

import math
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.registry import load
from fedkd.sections import StudentTable
from fedkd.students.representation import with_representation

if TYPE_CHECKING:
    from fedkd.data.dataset import Task

FLOAT = 4
"""Bytes of a number."""
AT_WORK = 4
"""Copies of the student that a client trains: gradients, two moments of Adam, what is sent."""
WIDE = 4.0
"""Widths up to this are not measured: students at their usual widths fit any machine."""
MANY = 4096
"""Units of a representation that are not measured either."""

Outline = list[tuple[str, tuple[int, ...]]]
"""Names of layers with their class, and of parameters and buffers with their shapes."""


def outline(name: str, table: StudentTable, task: Task) -> Outline:
    """The outline of a student, in no memory; empty where its architecture cannot tell it so."""
    architecture = load("students", name)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            student = architecture(task.shape, task.classes, table.norm, table.width)
            if table.representation is not None:
                student = with_representation(name, student, table.representation)
        layers = [(f"{part} {type(layer).__name__}", ()) for part, layer in student.named_modules()]
        return layers + [(part, tuple(held.shape)) for part, held in student.state_dict().items()]
    except Exception:  # an architecture of somebody else's, which may not know this device
        return []


def check_size(experiment: Experiment, task: Task) -> None:
    """Refuse students that this machine has no memory for, before any is made.

    Raises
    ------
    FedkdError
        One line that names the width or the representation, and how large the students would be.
    """
    table, clients = experiment.student, experiment.data.clients
    units = table.representation or 0
    if table.width <= WIDE and units <= MANY:
        return
    there = _memory()
    key = f"student.width = {table.width:g}"
    if units > MANY:
        key = f"student.representation = {units}, with {key},"
    held = Counter(experiment.architecture(client) for client in range(clients))
    for name, count in held.items():
        each = FLOAT * sum(math.prod(shape) for _, shape in outline(name, table, task) if shape)
        if each * (count + AT_WORK) > there:
            raise FedkdError(
                f"{key} is too large: a student {name!r} takes "
                f"{each / 1e9:.1f} GB, those of {count} clients {count * each / 1e9:.1f} GB, and "
                f"this machine has {there / 1e9:.1f} GB"
            )


def _memory() -> int:
    """Bytes of memory that this process may have at most."""
    bytes_there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no limit, or no such control group
        return min(bytes_there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return bytes_there
