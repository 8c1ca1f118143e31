"""SCARLET: Azuma, Nishio, Kitagawa, Nakano & Tanimura, 2025 (arXiv 2504.19602; IEEE TMC 2026).

Soft-label caching and enhanced entropy reduction. In round t, with x over the transfer set::

    server     P = a part of the transfer set, drawn anew;  A = { x in P : no label of x is cached }
    client n   F_n[x] = softmax(f_n(x))           for x in A                        (R, C), sent
    server     G[x]   = p^beta / sum_c p_c^beta   for x in A, p = mean_n F_n[x];  cached at t
               sends of G on P what the client has not got
    client n   minimise mean_x KL(G[x] || softmax(f_n(x)))   over x in P

A label that was made in round s is cached as long as t - s <= D. A client holds what it was sent
before, and one that missed rounds is sent what it lacks.

Departures: the authors' code asks for a label at an age at which it then does not take it (asking
and expiry differ by a round), and here one test is for both; the paper's server model, which learns
from the same targets and does not act on the clients, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedkd.compression import Delta
from fedkd.distillation.targets import power
from fedkd.strategies.base import DistillOptions, Headline, Replies
from fedkd.strategies.uniform import Uniform
from fedkd.work import (
    Fit,
    Predict,
    Step,
)

NEVER = -(10**9)
"""The round in which a label was made that was not."""


class SCARLET(Uniform):
    """Averages and sharpens probabilities, asks for those alone that are not cached (2026)."""

    asks_rows = False

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        share: float = Field(0.1, gt=0, le=1)
        """Share of the transfer set that is drawn anew each round; the paper's is 1,000 samples of
        10,000. Of all of it, with a cache, labels are those of the first round until they expire.
        """
        duration: int = Field(50, ge=0)
        """Rounds D that a label is used for after the one in which it was made; 0: no cache."""
        beta: float = Field(2.0, gt=0)
        """Sharpness of the mean: 1 leaves it as it is."""

    headline = Headline("local")

    def setup(self) -> None:
        """No label is cached: ``cache`` (M, C), and the round in which each sample's was made."""
        self.cache = torch.zeros(0)
        self.made = torch.full((len(self.transfer),), NEVER)
        self.drawn = self.missing = torch.arange(len(self.transfer))

    def cached(self, round: int, index: Tensor) -> Tensor:
        """Whether the labels of samples ``index`` (K,) are used in ``round``: (K,) bool."""
        return round - self.made[index] <= self.options.duration

    def begin_round(self, round: int) -> None:
        """Draw P, and see which of its samples are to be asked for."""
        self.drawn = self.draw_rows(round, max(1, int(self.options.share * len(self.transfer))))
        cached = self.cached(round, self.drawn)
        self.missing = self.drawn[~cached] if cached.any() else self.drawn

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data, then send soft labels of the samples that are asked for."""
        return [Fit(), Predict(self.rows(self.missing))] if len(self.missing) else [Fit()]

    def fuse(self, round: int, replies: Replies) -> None:
        """Cache the sharpened means; ``fused`` (R, C) are the labels of P."""
        if len(self.missing):
            super().fuse(round, replies)
            if not len(self.cache):
                size, columns = len(self.label_rows()), self.fused.shape[1]
                self.cache = torch.full((size, columns), 1 / columns)
            rows = self.label_rows(self.missing)
            self.cache = self.cache.index_copy(0, rows, power(self.fused, self.options.beta))
            self.made = self.made.index_fill(0, self.missing, round)
        self.fused = self.cache[self.label_rows(self.drawn)]

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Learn from the labels of P, of which those travel that the client does not hold."""
        encoding = Delta() if self.options.duration else None
        return [self.distil(self.soft(self.fused, encoding=encoding), on=self.rows(self.drawn))]

    def fused_labels(self, client: int, steps: Sequence[Step]) -> Tensor:
        """All labels that were made; the uniform law stands for the others."""
        return self.cache

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> dict[str, float]:
        """The share of the drawn samples that were asked for."""
        return {"asked": len(self.missing) / len(self.drawn)}
