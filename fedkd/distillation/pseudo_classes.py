"""Pseudo-classes: what a teacher of few classes says of a sample beyond its class."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedkd.distillation.objectives import Objective, Temperature, cross_entropy, declare
from fedkd.options import MOST_UNITS
from fedkd.random import generator

LEAST = 1e-12
"""Least variance, and least weight of a class, that is divided by."""


@declare(needs=("auxiliary",))
class PseudoClasses(Objective):
    """Pseudo-classes by an auxiliary head, and what they sum to by the student (LELP, 2024).

    After the public description; no code was found. There the student itself has C * S outputs,
    which are summed to predict; here a student is as wide as all others, so that it can be averaged
    with them, tested and sent, and its auxiliary head has the C * S.
    """

    cut: str = ""
    """The block that the head is on; empty: the last below the classifier."""
    parts: int = Field(4, ge=1, le=MOST_UNITS)
    """S, into which each class is split: targets are ``(B, C * S)``."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the head's part; 0 is ``cross_entropy`` with the sums."""

    def columns(self, classes: int) -> int:
        """``C * S``."""
        return classes * self.parts

    def __call__(
        self, logits: Tensor, targets: Tensor, temperature: Temperature, *, auxiliary: Tensor
    ) -> Tensor:
        """``CE(sum_j P(c, j), student) + alpha CE(P, head)``."""
        classes = targets.unflatten(-1, (-1, self.parts)).sum(-1)
        beside = cross_entropy(auxiliary, targets, temperature)
        return cross_entropy(logits, classes, temperature) + self.alpha * beside


def pseudo_classes(
    features: Tensor,
    probabilities: Tensor,
    weights: Tensor,
    parts: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Each class split into S = ``parts`` pseudo-classes, by a teacher's features (LELP, 2024).

    With W the output weights and f a sample's features less their part in the span of W's rows,
    which the probabilities tell of already::

        u_1 ... u_S    principal directions of f among the samples of class c, rotated at random
        z_j            <u_j, f - mean_c f>, over the root of the mean variance of the S
        P(c, j)        p_c softmax_j(z_j / temperature)

    A sample is of class c by the share p_c. The rotation evens the variances of the S directions,
    of which the first would otherwise say most. After the public description; no code was found:
    shares, scale and signs (of a direction, the largest number is positive) are our own.

    Parameters
    ----------
    features : Tensor of shape (M, d)
        The teacher's, below its last layer.
    probabilities : Tensor of shape (M, C)
        The teacher's.
    weights : Tensor of shape (C, d)
        Of the teacher's last layer.
    parts : int
        S, from 1; at most d. With 1 the probabilities come back as they are.
    temperature : float
        Beta: low, and each sample is of one pseudo-class of its class.
    seed : int
        Key of the rotations: the same for all who are to mean the same pseudo-classes.

    Returns
    -------
    Tensor of shape (M, C * S)
        Probabilities, in columns ``c * S + j``; over j they sum to those given.

    Raises
    ------
    ValueError
        There are fewer features than parts, or none is asked for.
    """
    width = features.shape[1]
    if not 1 <= parts <= width:
        raise ValueError(f"parts = {parts} is not allowed: 1 to {width}, the number of features")
    if parts == 1:
        return probabilities
    given, shares = features.double(), probabilities.double()
    span = torch.linalg.pinv(weights.double())
    left = given - given @ weights.double().mT @ span.mT
    drawn = torch.randn(
        probabilities.shape[1],
        parts,
        parts,
        generator=generator(seed, "pseudo-classes"),
        dtype=torch.float64,
    )
    rotations = torch.linalg.qr(drawn.to(given.device)).Q
    pieces = [
        share[:, None] * (_along(left, share, rotation) / temperature).softmax(1)
        for share, rotation in zip(shares.mT, rotations, strict=True)
    ]
    return torch.cat(pieces, 1).to(probabilities.dtype)


def _along(features: Tensor, shares: Tensor, rotation: Tensor) -> Tensor:
    """Where samples ``(M, d)`` of a class, by ``shares`` ``(M,)``, are along S directions."""
    total = shares.sum().clamp_min(LEAST)
    centred = features - (shares[:, None] * features).sum(0) / total
    variances, directions = torch.linalg.eigh((shares[:, None] * centred).mT @ centred / total)
    top = directions[:, -len(rotation) :].flip(1)
    largest = top.gather(0, top.abs().argmax(0, keepdim=True))
    top = top * torch.where(largest < 0, -1.0, 1.0)
    spread = variances[-len(rotation) :].clamp_min(0).mean()
    if spread <= LEAST:
        return features.new_zeros(len(features), len(rotation))
    return centred @ top @ rotation / spread.sqrt()
