"""Objectives and students of a person whose code goes wrong, for workers in any process.

An objective goes wrong at a client whose targets name the last class for certain; a student in
training, or in answering, as soon as it is shown anything but zeros.
"""

import os
import signal
import sys
import threading
from collections import OrderedDict

import torch
from torch import nn

from fedkd.distillation.objectives import forward_kl
from fedkd.students.zoo import mlp


class Unpicklable(Exception):
    """Neither travels nor says anything."""

    def __init__(self):
        super().__init__(threading.Lock())

    def __str__(self):
        raise RuntimeError("no message")


def raises():
    raise ValueError("no such\nthing\x1b[31m")


def raises_unpicklable():
    raise Unpicklable


def recurses():
    recurses()


def leaves():
    sys.exit(3)


def segfaults():
    os.kill(os.getpid(), signal.SIGSEGV)


def exits():
    os._exit(1)


def stops():
    os.kill(os.getpid(), signal.SIGSTOP)


def hangs():
    threading.Event().wait()


def begins_another_and_exits():
    """The other process holds all that this one has open."""
    if os.fork():
        os._exit(1)
    threading.Event().wait()


ACTS = (
    *(raises, raises_unpicklable, recurses, leaves),
    *(segfaults, exits, stops, hangs, begins_another_and_exits),
)


class _Objective:
    def __init__(self, act):
        self.act = act

    def __call__(self, logits, targets, temperature):
        if bool((targets[:, -1] == 1).any()):
            self.act()
        return forward_kl(logits, targets, temperature)


class Trip(nn.Module):
    """Goes wrong in training, or else in answering."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, inputs):
        if torch.is_grad_enabled() == self.student.in_training and bool(inputs.any()):
            self.student.act()
        return inputs


class _Student:
    def __init__(self, act, in_training=True):
        self.act, self.in_training = act, in_training

    def __call__(self, shape, classes, norm, width):
        inner = OrderedDict(mlp(shape, classes, norm, width).named_children())
        return nn.Sequential(OrderedDict(trip=Trip(self), **inner))


def only_elsewhere(shape, classes, norm, width):
    """A student that workers cannot make."""
    if "fedkd.engine.child" in sys.modules or "fedkd.engine.ray" in sys.modules:
        raises()
    return mlp(shape, classes, norm, width)


objectives = {act.__name__: _Objective(act) for act in ACTS}
students = {act.__name__: _Student(act) for act in ACTS}
students["raises_answering"] = _Student(raises, in_training=False)
students["only_elsewhere"] = only_elsewhere
for group, things in (("objective", objectives), ("student", students)):
    globals().update({f"{group}_{name}": thing for name, thing in things.items()})


def entry_points():
    """What the metadata of an installed package says of this module."""
    lines = ["[fedkd.objectives]"]
    lines += [f"{name} = mishaps:objective_{name}" for name in objectives]
    lines += ["[fedkd.students]"]
    return "\n".join(lines + [f"{name} = mishaps:student_{name}" for name in students])
