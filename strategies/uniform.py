"""Uniform fusion: every client learns from the plain mean of all clients' soft labels.

With M transfer samples and C classes::

    client n   train on private data;  F_n[x] = softmax(f_n(x))     (M, C), sent
    server     G[x] = 1/N sum_n F_n[x]                              (M, C), sent
    client n   minimise mean_x KL(G[x] || softmax(f_n(x)))

Departures: none, as it is no one paper's: FedMD does it with logits, DS-FL sharpens the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedkd.distillation.targets import mix
from fedkd.strategies.base import DistillOptions, Knowledge, KnowledgeStrategy, Replies
from fedkd.work import Fit, Predict, Step


class Uniform(KnowledgeStrategy):
    """Averages probabilities on the transfer set; the same target for everybody."""

    Options = DistillOptions
    needs_transfer_set = True
    sends_soft_labels = True
    asks_rows = True
    knowledge = Knowledge()

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data, then send soft labels on the transfer set."""
        return [Fit(), Predict(self.asked)]

    def fuse(self, round: int, replies: Replies) -> None:
        """``G = 1/N sum_n F_n``, (M, C)."""
        clients = len(replies)
        self.fused = mix(torch.full((1, clients), 1 / clients), replies.stack())[0]

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Fine-tune on the fused soft labels."""
        return [self.distil(self.soft(self.fused))]
