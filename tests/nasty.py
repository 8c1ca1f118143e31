"""Students that are not what their types say, for 8x8 images: factories by name."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedkd import registry


class Cosine(nn.Linear):
    """A linear layer by name, the cosine by forward."""

    def forward(self, inputs):
        return 10 * F.linear(F.normalize(inputs, dim=1), F.normalize(self.weight, dim=1))


class OwnDropout(nn.Module):
    def forward(self, inputs):
        return F.dropout(inputs, 0.3, self.training)


class AlwaysDropout(nn.Module):
    def forward(self, inputs):
        return F.dropout(inputs, 0.3, True)


class NumpyNoise(nn.Module):
    def forward(self, inputs):
        return inputs + torch.from_numpy(np.random.randn(*inputs.shape)).float()


class PythonNoise(nn.Module):
    def forward(self, inputs):
        return inputs * random.uniform(0.5, 1.5) if self.training else inputs


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, inputs):
        return inputs + torch.randn(inputs.shape, generator=self.generator)


class Scaled(nn.Module):
    """Has a parameter without a dimension."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, inputs):
        return inputs * self.scale


class Centred(nn.Module):
    """Looks across its batch."""

    def forward(self, inputs):
        return inputs - inputs.mean(0)


class ByCount(nn.Module):
    """Looks at how many samples there are."""

    def forward(self, inputs):
        return 8 * inputs / len(inputs)


class Branching(nn.Module):
    """Does one thing or another, by what its samples are like together."""

    def forward(self, inputs):
        return 2 * inputs if inputs.sum() > 0 else inputs


class Counter(nn.Module):
    """Counts its passes in a buffer and divides by the count."""

    def __init__(self, persistent=True):
        super().__init__()
        self.register_buffer("passes", torch.tensor(0), persistent=persistent)

    def forward(self, inputs):
        self.passes += int(self.training or "passes" in self._non_persistent_buffers_set)
        return inputs / (1 + 0.1 * self.passes)


class PythonCounter(nn.Module):
    """Counts its passes where no state_dict has it."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, inputs):
        self.passes += 1
        return inputs / (1 + 0.1 * self.passes)


class Remembering(nn.Module):
    """Puts its activations aside to be looked at: changes no number."""

    def forward(self, inputs):
        self.last = inputs.detach()
        return inputs


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(64, 64), nn.Linear(64, 64)
        self.other.weight = self.one.weight

    def forward(self, inputs):
        return self.other(self.one(inputs).relu())


class Replacing(nn.Module):
    """Has another parameter after each pass."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self, inputs):
        self.weight = nn.Parameter(self.weight.data)
        return inputs * self.weight


class Squared(torch.autograd.Function):
    """A square with a wrong gradient where torch batches it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs):
        return inputs.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, given):
        (inputs,) = ctx.saved_tensors
        wrong = torch._C._functorch.is_batchedtensor(inputs)
        return given * inputs * (1 if wrong else 2)


class OwnSquare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self, inputs):
        return Squared.apply(inputs * self.weight)


class Twice(nn.Sequential):
    """A sequence that does more than what stands in it."""

    def forward(self, inputs):
        return 2 * super().forward(inputs)


class Typed(torch.Tensor):
    """A tensor of a class of its own."""


def between(*layers):
    """A student with some layers between two fully connected ones."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), *layers, nn.Linear(64, 10))


def hooked():
    student = between(nn.ReLU())
    student[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return student


def shadowed():
    student = between(nn.ReLU())
    student[2].forward = torch.tanh
    return student


def typed():
    student = between(nn.ReLU())
    student[1].weight = nn.Parameter(student[1].weight.detach().as_subclass(Typed))
    return student


def same_layer_twice():
    """One activation stands in two places."""
    act = nn.Tanh()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), act, nn.Linear(64, 64), act,
                         nn.Linear(64, 10))  # fmt: skip


def same_layer_twice_in_a_block():
    act = nn.ReLU()
    block = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), act, nn.Linear(64, 64), act)
    return nn.Sequential(block, nn.Linear(64, 10))


def frozen_body():
    student = between(nn.ReLU())
    student[1].requires_grad_(False)
    return student


TOGETHER = {
    "plain": lambda: between(nn.ReLU()),
    "own linear": lambda: nn.Sequential(*between(nn.ReLU())[:-1], Cosine(64, 10, bias=False)),
    "own sequence": lambda: between(Twice(nn.Linear(64, 64), nn.ReLU())),
    "group norm": lambda: between(nn.GroupNorm(8, 64)),
    "lazy": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 10)),
    "other flatten": lambda: nn.Sequential(nn.Flatten(1, 2), nn.Flatten(), nn.Linear(64, 10)),
    "in place": lambda: nn.Sequential(nn.ReLU(inplace=True), *between(nn.ReLU(inplace=True))),
    "same layer twice": same_layer_twice,
    "same layer twice in a block": same_layer_twice_in_a_block,
    "frozen body": frozen_body,
}
"""Cohorts compute these."""
REASONS = {
    "parametrised": (
        lambda: between(nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))),
        "2 is parametrised",
    ),
    "old weight norm": (lambda: between(nn.utils.weight_norm(nn.Linear(64, 64))), "2 has hooks"),
    "spectral norm": (lambda: between(nn.utils.spectral_norm(nn.Linear(64, 64))), "2 has hooks"),
    "hooks": (hooked, "1 has hooks"),
    "shadowed": (shadowed, "2 has another forward than its class"),
    "typed": (typed, "1.weight is a tensor of another class than torch's"),
    "tied": (lambda: between(Tied()), "2.other.weight and 2.one.weight share memory"),
    "no dimension": (lambda: between(Scaled()), "2.scale is a single number"),
    "dropout": (lambda: between(nn.Dropout(0.5)), "it draws random numbers"),
    "own dropout": (lambda: between(OwnDropout()), "it draws random numbers"),
    "always dropout": (lambda: between(AlwaysDropout()), "it draws random numbers"),
    "numpy noise": (lambda: between(NumpyNoise()), "it draws random numbers"),
    "python noise": (lambda: between(PythonNoise()), "it draws random numbers"),
    "own generator": (lambda: between(OwnGenerator()), "it changes 2.generator"),
    "batch norm": (lambda: between(nn.BatchNorm1d(64)), "depends on the others of its batch"),
    "centred": (lambda: between(Centred()), "depends on the others of its batch"),
    "by count": (lambda: between(ByCount()), "depends on the others of its batch"),
    "branching": (lambda: between(Branching()), ""),
    "counter": (lambda: between(Counter()), "it writes to its buffers"),
    "lost counter": (lambda: between(Counter(persistent=False)), "it changes 2.passes"),
    "python counter": (lambda: between(PythonCounter()), "it changes 2.passes"),
    "remembering": (lambda: between(Remembering()), "it changes 2.last"),
    "wrong gradient": (lambda: between(OwnSquare()), "the gradient of"),
}
"""Cohorts do not compute these, and why."""
STUDENTS = TOGETHER | {name: factory for name, (factory, _) in REASONS.items()}


def add(factory, name="own"):
    """Register a factory without arguments as a student."""
    registry.register("students", name)(lambda shape, classes, norm, width: factory())


def dropout(shape, classes, norm, width):
    """Draws in training and when it answers, of torch, numpy and Python; has odd buffers."""
    layers = nn.Dropout(0.5), AlwaysDropout(), NumpyNoise(), PythonNoise(), Counter()
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *layers, nn.Linear(32, classes))
    student[1].register_buffer("roots", torch.tensor([1 + 2j]))
    student[1].register_buffer("mask", torch.tensor([[True, False]]))
    return student
