"""Auxiliary heads: linear layers on a student's representations, which are trained beside it.

An objective that needs ``auxiliary`` is given the logits of one. Its gradient goes into the head
and through it into the blocks below. The head is no part of the student: nobody predicts by it, and
it is never sent. Whoever keeps the student keeps the head beside it, in :class:`Auxiliary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedkd.distillation.objectives import columns_of, made, name_of, traits
from fedkd.errors import FedkdError
from fedkd.random import key
from fedkd.students import blocks
from fedkd.training.inference import represent
from fedkd.training.items import at_items
from fedkd.work import Parameters, Samples, Soft, Term

NEED = "auxiliary"
"""What an objective is declared to need that has such a head."""
NOT_AMONG = "candidates are not allowed: its auxiliary head speaks of all classes"


@dataclass
class Auxiliary:
    """The heads beside a student, by name: ``weight`` ``(C, d)`` and ``bias`` ``(C,)`` of each.

    First weights come from ``seed`` and the head's name, as ``nn.Linear`` has them. A fit puts new
    arrays into ``heads``, and never writes to those that are there. A head in which a number is not
    finite is dropped, and begins afresh.
    """

    seed: int
    heads: dict[str, Parameters] = field(default_factory=dict)

    def keep(self, layers: Mapping[str, nn.Linear]) -> None:
        """Take in what the heads have become."""
        for name, layer in layers.items():
            held = {part: p.detach().cpu().clone() for part, p in layer.named_parameters()}
            self.heads.pop(name, None)
            if all(bool(array.isfinite().all()) for array in held.values()):
                self.heads[name] = held


class Spot(NamedTuple):
    """The name of an auxiliary head, and the block whose representation it is on."""

    name: str
    cut: str


def has_head(term: Term) -> bool:
    """Whether a head is trained beside the student for a term."""
    return isinstance(term, Soft) and NEED in traits(made(term.objective)).needs


def spot(student: nn.Sequential, term: Term) -> Spot | None:
    """Where the head of a term's objective is; None if it needs none.

    Terms with the same objective at the same block share a head.

    Raises
    ------
    FedkdError
        The student has but one block, and no representation below it.
    """
    if not isinstance(term, Soft) or not has_head(term):
        return None
    *below, _ = blocks(student)
    if not below:
        raise FedkdError(
            "a student of one block is not allowed: the auxiliary head stands on what the block "
            "below the last one gives"
        )
    cut = getattr(made(term.objective), "cut", "") or below[-1]
    return Spot(f"{name_of(term.objective)} {cut}", cut)


def layers_for(
    student: nn.Sequential,
    terms: Sequence[tuple[Term, Samples]],
    auxiliary: Auxiliary,
) -> dict[str, nn.Linear]:
    """The heads that ``terms``, each with the samples it draws from, have beside ``student``."""
    found: dict[str, nn.Linear] = {}
    for term, samples in terms:
        at = spot(student, term)
        if at is None or at.name in found:
            continue
        device = samples.inputs.device
        held = auxiliary.heads.get(at.name)
        if held is None:
            shown = represent(student, samples.inputs[:1], at.cut, above=samples.cut)
            width, classes = pooled(shown[0]).shape[1], shown[1].shape[1]
            assert isinstance(term, Soft)
            classes = columns_of(term.objective, classes)
            layer = _fresh(width, classes, key(auxiliary.seed, NEED, at.name))
        else:
            classes, width = held["weight"].shape
            layer = nn.Linear(width, classes, device="meta")
            copies = {part: array.clone() for part, array in held.items()}
            layer.load_state_dict(copies, assign=True)
        found[at.name] = layer.to(device)
    return found


def _fresh(width: int, classes: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Linear(width, classes)


def parameters_of(layers: Mapping[str, nn.Linear]) -> dict[str, nn.Parameter]:
    """The heads' parameters, by names that no student's parameter has."""
    return {
        f"{name} {part}": parameter
        for name, layer in layers.items()
        for part, parameter in layer.named_parameters()
    }


def pooled(held: Tensor) -> Tensor:
    """Representations ``(B, ...)`` as ``(B, d)``: feature maps as their means over places."""
    return (held.mean((2, 3)) if held.dim() == 4 else held).flatten(1)


def said_by(layer: nn.Linear, held: Tensor, chosen: Tensor | None) -> Tensor:
    """Logits ``(B, C)`` of a head, of what a block ``held`` of a batch, at its items ``chosen``."""
    return layer(pooled(at_items(held, chosen))).float()
