"""Pairs: a client's own student and a small shared one, grown together below nested heads.

Both bodies look at a sample x, and one linear projection makes one representation of both, of which
the shared head reads the first numbers alone (FedMRL: Yi et al. 2024, section 3)::

    m = W [shared body(x), own body(x)] + b        (d,), as wide as the own representation
    shared logits = shared head(m[:k])             own logits = own head(m)

A pair is a student like any other, a sequence of five blocks. What a block does not need itself
it hands on in front of, or behind, what it gives, so that every parameter is in a block by itself
that ``part`` can name: ``shared`` gives ``[x, its representation]``, ``own`` the two
representations, ``projection`` m, ``shared_head`` ``[m, shared logits]``, ``head`` the own logits.
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod

import torch
from torch import Tensor, nn

from fedkd import registry
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.sections import StudentTable

SHARED = ("shared", "shared_head")
"""The blocks of the shared student."""
EXIT = "shared_head"
"""The block whose last C numbers are the shared student's logits."""


class PairTable(StudentTable):
    """``[student]``, where each of ``models`` is paired with a shared student."""

    shared: str
    """Architecture of the shared student."""
    nested: int
    """Numbers k of the representation that the shared head reads."""


def table_of(experiment: Experiment) -> StudentTable:
    """How students of an experiment are built: as its method says, by default as ``[student]``.

    A method that only another process knows has the default.
    """
    name = experiment.strategy.name
    if name not in registry.names("strategies"):
        return experiment.student
    table: StudentTable = registry.load("strategies", name).student_table(experiment)
    return table


class Below(nn.Module):
    """The shared body: of inputs ``(B, ...)`` these, flattened, then its representation."""

    def __init__(self, body: nn.Module, tokens: bool) -> None:
        super().__init__()
        self.body, self.tokens = body, tokens

    def forward(self, inputs: Tensor) -> Tensor:
        """``(B, d + k)``, of tokens ``(B, T, 1 + k)``."""
        if self.tokens:
            return torch.cat([inputs[..., None].float(), self.body(inputs)], -1)
        return torch.cat([inputs.flatten(1), self.body(inputs.clone()).flatten(1)], 1)


class Beside(nn.Module):
    """The own body: of what :class:`Below` gives, both representations."""

    def __init__(self, body: nn.Module, shape: tuple[int, ...], tokens: bool) -> None:
        super().__init__()
        self.body, self.shape, self.tokens = body, shape, tokens

    def forward(self, given: Tensor) -> Tensor:
        """``(B, k + d)``, of tokens ``(B, T, k + d)``."""
        if self.tokens:
            return torch.cat([given[..., 1:], self.body(given[..., 0].long())], -1)
        inputs, shared = given.split([prod(self.shape), given.shape[1] - prod(self.shape)], 1)
        return torch.cat([shared, self.body(inputs.unflatten(1, self.shape)).flatten(1)], 1)


class Nested(nn.Module):
    """The shared head on the first ``width`` numbers of ``(..., d)``, which stand before it."""

    def __init__(self, head: nn.Module, width: int) -> None:
        super().__init__()
        self.head, self.width = head, width

    def forward(self, given: Tensor) -> Tensor:
        """``(..., d + C)``."""
        return torch.cat([given, self.head(given[..., : self.width])], -1)


class Whole(nn.Module):
    """The own head on all ``width`` numbers of the representation, and on nothing else."""

    def __init__(self, head: nn.Module, width: int) -> None:
        super().__init__()
        self.head, self.width = head, width

    def forward(self, given: Tensor) -> Tensor:
        """Logits ``(..., C)``."""
        logits: Tensor = self.head(given[..., : self.width])
        return logits


def paired(
    name: str, own: nn.Sequential, shared: nn.Sequential, shape: tuple[int, ...], tokens: bool
) -> nn.Sequential:
    """A pair of two students, whose blocks are taken over.

    Parameters
    ----------
    name
        The own architecture, for the line that refuses it.
    shared
        It ends in one linear layer on its representation.
    shape
        Of one input.

    Raises
    ------
    FedkdError
        The own representation is narrower than the shared one.
    """
    *bodies, head = own
    body = nn.Sequential(*bodies)
    inputs = torch.zeros(2, *shape, dtype=torch.long if tokens else None)
    training = body.training
    with torch.no_grad():
        given = body.eval()(inputs)
    body.train(training)
    width = given.shape[-1] if tokens else given.flatten(1).shape[1]
    last = shared[-1]
    assert isinstance(last, nn.Linear)
    nested = last.in_features
    if nested > width:
        raise FedkdError(
            f"student.models = {name!r} is not allowed here: its representation has {width} "
            f"numbers, and the shared student's, which is a part of it, {nested}; allowed: at most "
            f"{width} of these"
        )
    blocks: dict[str, nn.Module] = {
        "shared": Below(shared[:-1], tokens),
        "own": Beside(body, shape, tokens),
        "projection": nn.Linear(nested + width, width),
        EXIT: Nested(last, nested),
        "head": Whole(head, width),
    }
    return nn.Sequential(OrderedDict(blocks))
