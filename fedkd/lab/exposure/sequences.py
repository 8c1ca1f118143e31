"""Sequences of symbols, their numbers, and what scores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedkd.data.canaries.secrets import check_space

Conditionals: TypeAlias = "list[Tensor]"
Scorer: TypeAlias = Callable[[Tensor], Tensor]
"""From sequences ``(S, L)`` of symbol indices to their log-probabilities ``(S,)`` in nats."""


def totals(conditionals: Conditionals) -> Tensor:
    """Log-probability of every sequence, in lexicographic order: ``(A**L,)`` float64.

    Terms are rounded to float32 and then summed in float64, from the first on: such sums are as
    good as exact, so that what is equal is equal in bits, in whatever order its terms come.

    Raises
    ------
    FedkdError
        If there are more than :data:`LARGEST_SPACE` sequences.
    """
    check_space(conditionals[0].shape[1], len(conditionals), "canary.template or canary.length")
    total = torch.zeros(1, dtype=torch.float64)
    for law in conditionals:
        total = (total[:, None] + law.float().double()).flatten()
    return total


def sequence_scores(source: Conditionals | Scorer, sequences: Tensor) -> Tensor:
    """Log-probability of some sequences ``(S, L)`` of symbol indices: ``(S,)`` float64, nats.

    From conditionals the bits are those of :func:`totals`.
    """
    if not isinstance(source, list):
        return source(sequences).double()
    prefixes = torch.zeros(len(sequences), dtype=torch.int64)
    terms = []
    for law, symbol in zip(source, sequences.unbind(1), strict=True):
        terms.append(law[prefixes, symbol])
        prefixes = prefixes * law.shape[1] + symbol
    return summed(terms)


def digits(numbers: Tensor, base: int, length: int) -> Tensor:
    """Numbers ``(B,)`` written with ``length`` digits: ``(B, length)``.

    These are the sequences of ``length`` symbols out of ``base``, by their lexicographic number.
    """
    powers = base ** torch.arange(length - 1, -1, -1, device=numbers.device)
    return numbers[:, None] // powers % base


def sequence_numbers(sequences: Tensor, base: int) -> Tensor:
    """The lexicographic numbers ``(B,)`` of sequences ``(B, L)`` of symbols out of ``base``."""
    numbers = torch.zeros(len(sequences), dtype=torch.int64)
    for symbol in sequences.unbind(1):
        numbers = numbers * base + symbol
    return numbers


def references(symbols: int, length: int, count: int, seed: int) -> Tensor:
    """Sequences drawn uniformly from the space, to compare secrets with: ``(count, L)`` int64."""
    drawn = np.random.default_rng(seed).integers(symbols, size=(count, length))
    return torch.from_numpy(drawn)


def summed(terms: Sequence[Tensor]) -> Tensor:
    """Terms added as in :func:`totals`."""
    total = torch.zeros(terms[0].shape, dtype=torch.float64)
    for term in terms:
        total = total + term.float().double()
    return total
