"""Arithmetic of rows that belong to groups: the batches of a stack's students.

Rows ``(B, ...)`` come with ``groups`` ``(B,)``, whole numbers from 0. Rows of different groups
never meet. What is found for a group stands on each of its rows, so that a mean over them restores
it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLAT = 1e-8
"""The least that a correlation is divided by, so that one with a constant is 0.

Authors' code adds it instead, and a row's correlation with itself is then a little below 1.
"""


def group_sums(rows: Tensor, groups: Tensor, count: int | None = None) -> Tensor:
    """The sums of each group's rows, ``(n, ...)``; ``count`` is n, else the last group says it."""
    if count is None:
        count = int(groups.max()) + 1 if len(groups) else 0
    return rows.new_zeros(count, *rows.shape[1:]).index_add(0, groups, rows)


def group_means(rows: Tensor, groups: Tensor) -> Tensor:
    """The mean of its group on every row, ``(B, ...)``."""
    sizes = group_sums(rows.new_ones(len(rows)), groups)[groups]
    return group_sums(rows, groups)[groups] / sizes.reshape(-1, *[1] * (rows.ndim - 1))


def per_group(function: Callable[..., Tensor], groups: Tensor, *rows: Tensor) -> Tensor:
    """What ``function`` makes of each group's rows, on each of them, ``(B,)``.

    ``function`` takes the rows ``(b, ...)`` of one group, of each of ``rows`` ``(B, ...)``, and
    returns one number ``()`` or one a row ``(b,)``.
    """
    found = rows[0].new_zeros(len(groups))
    for group in groups.unique():
        places = (groups == group).nonzero()[:, 0]
        value = function(*(each[places] for each in rows))
        found = found.index_put((places,), value.expand(len(places)))
    return found


def pearson(a: Tensor, b: Tensor, dim: int = -1, weights: Tensor | None = None) -> Tensor:
    """The correlation of ``a`` and ``b`` along ``dim``, which the result is without.

    ``weights``, as many as there are along ``dim``, or of the shape of ``a``, are those of the
    entries. A correlation with what is constant is 0.
    """
    a, b = a.movedim(dim, -1), b.movedim(dim, -1)
    if weights is None:
        weights = a.new_ones(())
    elif weights.ndim > 1:
        weights = weights.movedim(dim, -1)
    whole = weights.expand(a.shape).sum(-1, keepdim=True)
    a = a - (weights * a).sum(-1, keepdim=True) / whole
    b = b - (weights * b).sum(-1, keepdim=True) / whole
    lengths = (weights * a.square()).sum(-1), (weights * b.square()).sum(-1)
    return (weights * a * b).sum(-1) / (_root(lengths[0]) * _root(lengths[1])).clamp_min(FLAT)


def group_pearson(a: Tensor, b: Tensor, groups: Tensor) -> Tensor:
    """The correlations of each column of ``a`` and ``b`` ``(B, C)`` within groups, ``(n, C)``."""
    a, b = a - group_means(a, groups), b - group_means(b, groups)
    squares = group_sums(a.square(), groups), group_sums(b.square(), groups)
    return group_sums(a * b, groups) / (_root(squares[0]) * _root(squares[1])).clamp_min(FLAT)


def _root(squares: Tensor) -> Tensor:
    """The square root, whose slope at 0 is 0 and not infinite."""
    nothing = squares <= 0
    return torch.where(nothing, 1.0, squares).sqrt().where(~nothing, 0.0)
