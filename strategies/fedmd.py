"""FedMD: Li & Wang, 2019 (arXiv 1910.03581), algorithm 1: communicate, aggregate, digest, revisit.

With the logits f_n of client n, and x over the M transfer samples::

    client n   at first: train on the labelled public set, ``pretrain_epochs`` passes
               revisit: train on private data;  f_n[x]         (M, C), sent
    server     f[x] = 1/N sum_n f_n[x]                         (M, C), sent
    client n   digest: minimise mean_x |f[x] - f_n(x)|^2

The first line is the paper's transfer learning. It is left out unless asked for, as a transfer set
has no labels unless ``data.transfer.labels`` says so; a client does it in the first round that it
takes part in, by ``[distill]`` where that says how.

Departures: private training in that round is as long as in any other, where the paper has it go on
until it converges; all of the transfer set is exchanged in each round, where the paper draws a part
of it, unless ``subset`` says so; digest is by squared error, where the authors' code has the
absolute one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from fedkd.distillation.objectives import ObjectiveOption, takes_probabilities
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.options import MOST, Epochs, OnlyWith
from fedkd.strategies.base import DistillOptions, Headline, Knowledge, Replies
from fedkd.strategies.uniform import Uniform
from fedkd.work import Fit, Predict, Step


class FedMD(Uniform):
    """Averages logits, the class scores of the paper, on the transfer set (Li & Wang 2019)."""

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        objective: ObjectiveOption = "mse_logits"
        """Digest by matching the mean logits, by squared or absolute error (``mae_logits``, as the
        authors' code does), or in another way of ``fedkd list objectives``; one that takes
        probabilities gets them softened."""
        tau: Annotated[float, OnlyWith("objective", takes_probabilities)] = Field(1.0, gt=0)
        """Temperature of objectives that take probabilities."""
        subset: int = Field(0, ge=0, le=MOST)
        """Samples of the transfer set that are drawn anew each round, 5,000 in the paper; 0: as
        ``distill.rows`` says."""
        pretrain_epochs: Epochs = 0.0
        """Passes over the labelled transfer set before a client first trains on private data; needs
        ``data.transfer.labels``."""

    headline = Headline("local")
    knowledge = Knowledge("logits")

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse two rules for one subset, and training on labels that nobody has."""
        super().check(experiment)
        options, rule = cls.read_options(experiment), experiment.distill.rows
        if options.subset and rule != "all":
            raise FedkdError(
                f"strategy.subset = {options.subset} is not allowed with distill.rows = {rule!r}: "
                "both say which samples are exchanged; allowed: 0"
            )
        if options.pretrain_epochs and not experiment.data.transfer.labels:
            raise FedkdError(
                f"strategy.pretrain_epochs = {options.pretrain_epochs:g} needs "
                "data.transfer.labels = true: clients learn from the labels of the transfer set"
            )

    def setup(self) -> None:
        """No subset is drawn yet, and nobody has trained."""
        self.pretrained: list[int] = []
        self.drawn = torch.arange(len(self.transfer))

    def begin_round(self, round: int) -> None:
        """Draw the subset of the round."""
        subset = self.options.subset
        self.drawn = self.draw_rows(round, subset) if subset else self.asked_index

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Revisit: train on private data; communicate: send logits on the subset."""
        first, epochs = [], self.options.pretrain_epochs
        if epochs and client not in self.pretrained:
            first = [Fit("transfer", epochs=epochs, min_steps=0, key="pretrain_loss")]
        return [*first, Fit(), Predict(self.rows(self.drawn), output="logits", key="logits")]

    def fuse(self, round: int, replies: Replies) -> None:
        """``f = mean_n f_n``, (M, C) logits."""
        self.fused = replies.stack("logits").mean(0)
        self.pretrained = sorted({*self.pretrained, *replies.clients})

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Digest: approach the consensus."""
        consensus = self.soft(self.fused, self.options.tau)
        return [self.distil(consensus, on=self.rows(self.drawn))]
