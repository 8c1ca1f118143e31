"""FD: Jeong, Oh, Kim, Park, Bennis & Kim, 2018 (arXiv 1811.11479), federated distillation.

Clients exchange one mean output a class, measured on their private samples. A round, with C
classes::

    client n   minimise CE + gamma * loss(f_n(x), G_n[y]) on private data, with G of last round
               F_n[c] = mean of f_n(x) over its samples of class c        (C, C), sent with counts
    server     G_n[c] = mean of F_m[c] over the other clients m != n that hold class c

Departures: outputs are averaged as logits, by the trained student, instead of as softmax outputs
while it trains; they are approached by mean squared error, or by KL(softmax(G_n / tau) || student)
with ``objective = "forward_kl"``, or otherwise; gamma is not known from the paper.

The server keeps the last means of every client, so those who do not take part still teach. A class
that no other client holds has no target (a row of NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from fedkd.distillation.objectives import ObjectiveOption, takes_probabilities
from fedkd.mixtures import Mixture, Surest
from fedkd.options import OnlyWith
from fedkd.strategies.base import Knowledge, KnowledgeStrategy, Replies, StrategyOptions
from fedkd.strategies.fedproto import mean_by_class
from fedkd.work import CrossEntropy, Fit, Predict, Step, Term


class FedDistill(KnowledgeStrategy):
    """Exchanges mean logits a class; a client learns from the others' (Jeong et al. 2018)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        gamma: float = Field(1.0, ge=0)
        """Weight of distillation."""
        objective: ObjectiveOption = "mse_logits"
        """How the mean logits are approached, of ``fedkd list objectives``; one that takes
        probabilities gets them softened."""
        tau: Annotated[float, OnlyWith("objective", takes_probabilities)] = Field(1.0, gt=0)
        """Temperature of objectives that take probabilities."""

        targets: Literal["given", "surest"] = "given"
        """``surest``: of a class of which the client's own mean output is the surer one, that takes
        the place of the others' (Roth, Thede et al. 2024, for classes)."""

    knowledge = Knowledge("logits", labelled=True)

    def setup(self) -> None:
        """Last means (C, C) of each client, and the classes (C,) that it holds; none yet."""
        self.means: dict[int, Tensor] = {}
        self.holds: dict[int, Tensor] = {}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train towards the others' means, then send one's own."""
        terms: tuple[Term, ...] = (CrossEntropy(),)
        if self.options.gamma and self.means.keys() - {client}:
            target, options = self.target(client), self.options
            term = self.soft(target, options.tau, weight=options.gamma, per="class")
            if options.targets == "surest":
                surest = Mixture(("own", cast(Tensor, term.targets)), Surest("label", every=True))
                term = replace(term, targets=surest)
            terms += (term,)
        own = Predict("private", output="logits", per="class", key="class_logits")
        return [Fit(terms=terms), own]

    def fuse(self, round: int, replies: Replies) -> None:
        """Remember what was sent."""
        for client, sent in zip(replies.clients, replies.parameters("class_logits"), strict=True):
            self.means[client], self.holds[client] = sent["mean"], sent["count"] > 0

    def target(self, client: int) -> Tensor:
        """``G_n``, (C, C) logits; a row of NaN where no other client holds the class."""
        others = sorted(self.means.keys() - {client})
        return mean_by_class(
            torch.stack([self.means[other] for other in others]),
            torch.stack([self.holds[other] for other in others]),
        )
