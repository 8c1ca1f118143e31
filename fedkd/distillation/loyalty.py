"""How loyal a student is to what it distils from: whether it answers alike, right or wrong.

Xu, Zhou, Ge, Xu, McAuley & Wei, "Beyond Preserved Accuracy", EMNLP 2021 (arXiv 2109.03228),
section 3. Both measures are in [0, 1], 1 where the answers are the same.
"""

from __future__ import annotations

from math import log

from torch import Tensor, xlogy

NATS = log(2)
"""Nats in a bit."""


def label_loyalty(student: Tensor, targets: Tensor) -> Tensor:
    """Share of rows whose likeliest class is the same on both sides, a float64 scalar.

    Of classes that are equally likely the first counts. A row in which there is a NaN agrees with
    nothing. NaN without rows.

    Parameters
    ----------
    student : Tensor of shape (B, C)
        Probabilities, or anything that rises with them.
    targets : Tensor of shape (B, C)
        The same of what it distils from.
    """
    sound = ~(student.isnan() | targets.isnan()).any(-1)
    return ((student.argmax(-1) == targets.argmax(-1)) & sound).double().mean()


def probability_loyalty(student: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of 1 less the Jensen-Shannon distance of both sides, a float64 scalar.

    The distance is the square root of the divergence in bits, so that it is in [0, 1] (in nats, as
    ``scipy.spatial.distance.jensenshannon`` has it by default, it ends at 0.83). A row in which
    there is a NaN counts as 0. NaN without rows.

    Parameters
    ----------
    student, targets : Tensor of shape (B, C)
        Probabilities.
    """
    student, targets = student.double(), targets.double()
    middle = (student + targets) / 2
    # Where one side is 0 it adds nothing, and where both are there is no logarithm to take.
    some = middle.masked_fill(middle == 0, 1)
    bits = (xlogy(student, student / some) + xlogy(targets, targets / some)).sum(-1) / (2 * NATS)
    return (1 - bits.clamp(0, 1).sqrt()).nan_to_num(0.0).mean()
