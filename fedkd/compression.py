"""How arrays travel, as steps and terms say it; what is done to them is in `fedkd.encodings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantised:
    """Rows ``(K, C)`` by a few levels: ``bits``, 1 to 8, an entry, packed behind one another.

    With ``grid="simplex"``, for probabilities, entries become multiples of ``1 / (2^bits - 1)``
    that sum to 1: the nearest such row in L1 (CFD: Sattler et al. 2021), of one bit the likeliest
    class. With ``"range"``, for any numbers, levels lie evenly between the least and the largest of
    a row, which travel with it in 8 bytes.
    """

    bits: int
    grid: Literal["simplex", "range"] = "simplex"


@dataclass(frozen=True)
class Delta:
    """Only the rows that differ from what the receiver holds of them travel, and which these are.

    What it holds is what it was last sent, in this direction, under ``name``; of a client that
    missed rounds that is older, and more travels. ``rows`` says how the rows themselves travel;
    None: as they are. ``since`` and ``version`` are set by the rounds, not by methods: which state
    of what the receiver holds this is to (0: to nothing), and which it becomes.
    """

    rows: Quantised | None = None
    name: str = "soft_labels"
    since: int = 0
    version: int = 0


Encoding = Quantised | Delta
"""How soft labels on the transfer set travel; what is done to them is in
:mod:`fedkd.encodings`."""


@dataclass(frozen=True)
class LowRank:
    """Matrices of parameters as products of two thin ones, by a singular value decomposition.

    What is factorised is what has changed since the same assignment loaded them; all of them where
    it did not. The rank is the least that holds ``energy``, a share of the sum of the squares of
    the singular values (FedKD: Wu et al. 2022). A convolution's kernel is a matrix of its outputs
    and all else. What has one dimension, and what would not get smaller, travels as it is, and at
    an energy of 1 everything does.
    """

    energy: float
