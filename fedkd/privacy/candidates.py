"""Soft labels over some public candidate classes, all others together."""

from __future__ import annotations

import torch
from torch import Tensor


def candidates(law: Tensor, count: int, gold: Tensor | None = None) -> Tensor:
    """The ``count`` likeliest classes under a public law ``(M, C)``, and the true one: ``(M, k)``.

    ``gold`` ``(M,)`` is added where it is not among them, and is -1 where there is none; so is
    then the last candidate.
    """
    likeliest = law.topk(min(count, law.shape[1]), 1).indices
    if gold is None:
        return likeliest
    there = (likeliest == gold[:, None]).any(1)
    return torch.cat([likeliest, torch.where(there, -1, gold)[:, None]], 1)


def possible(among: Tensor, classes: int) -> Tensor:
    """Which columns ``(M, k+1)`` over candidates ``(M, k)`` stand for any class."""
    there = among >= 0
    return torch.cat([there, there.sum(1, keepdim=True) < classes], 1)


def over_candidates(labels: Tensor, among: Tensor) -> Tensor:
    """Probabilities ``(M, k+1)`` of candidates ``(M, k)`` and of all other classes together."""
    given = labels.gather(1, among.clamp_min(0)) * (among >= 0)
    rest = (1 - given.sum(1, keepdim=True)).clamp_min(0)
    return torch.cat([given, rest], 1)


def over_classes(labels: Tensor, among: Tensor, classes: int) -> Tensor:
    """Probabilities ``(M, C)``: those of candidates, the others' shared out evenly among them."""
    others = classes - (among >= 0).sum(1, keepdim=True)
    full = (labels[:, -1:] / others.clamp_min(1)).repeat(1, classes + 1)
    return full.scatter(1, among.where(among >= 0, classes), labels[:, :-1])[:, :classes]
