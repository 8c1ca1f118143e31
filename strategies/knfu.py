"""KnFu: Seyedmohammadi, Atapour, Abouei & Mohammadi, 2024 (arXiv 2403.11892).

Effective knowledge fusion: evaluate, for each client, how useful every other client's knowledge is,
and fuse accordingly. An implementation after the public description: the paper's tables and its
remaining equations are not known, and every choice it leaves open is an option. A round, with N
clients and M transfer samples::

    client n   train on private data;  F_n[x] = softmax(f_n(x) / tau)      (M, C), sent
    server     P_n    = mean_x F_n[x] at tau = 1                           (a) EPD
               d(n,m) = KL(P_n || P_m)                                     (b) divergence
               w(n,m) = exp(-beta d(n,m)) / sum_k exp(-beta d(n,k))        (c) effectiveness
               G_n[x] = sum_m w(n,m) F_m[x]                                (M, C), sent to n
    client n   minimise tau^2 mean_x KL(G_n[x] || softmax(f_n(x) / tau))   (d) fine-tuning

Departures: not known, as the paper is not in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.caveats import LOCAL_TRAINING, UNIFORM_FUSION
from fedkd.distillation.divergences import DIVERGENCES
from fedkd.distillation.targets import mix, retemper
from fedkd.options import OnlyWith
from fedkd.strategies.base import DistillOptions, Knowledge, KnowledgeStrategy, Replies
from fedkd.work import CrossEntropy, Fit, Predict, Step

WATCHED_ROUNDS = 3
"""Rounds that fusion must have been uniform, or the identity, from the first on to be warned of."""
WRITTEN = 200
"""Clients up to which a round's line holds all weights: of 1,000 they are 20 MB a round."""


class KnFu(KnowledgeStrategy):
    """Fuses, for each client, the soft labels of clients with similar class beliefs (2024)."""

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        beta: float = Field(10.0, ge=0)
        """Sharpness of (c): 0 fuses uniformly, a large value leaves each client to itself."""
        divergence: Literal["kl", "reverse_kl", "symmetric_kl", "jensen_shannon"] = "kl"
        """(b), between the estimated class distributions."""
        epd: Literal["mean", "histogram"] = "mean"
        """(a): mean soft label on the transfer set, or histogram of its argmax."""
        epd_when: Literal["every_round", "once"] = "every_round"
        """Estimate (a) anew every round, or keep each client's first."""
        neighbours: Literal["soft", "top_k", "threshold"] = "soft"
        """(c): all clients with soft weights; the ``top_k`` largest; those above ``threshold``."""
        top_k: Annotated[int, OnlyWith("neighbours", "top_k")] = Field(3, ge=1)
        """Neighbours under ``top_k``."""
        threshold: Annotated[float, OnlyWith("neighbours", "threshold")] = Field(0.05, ge=0, lt=1)
        """Least weight under ``threshold``; each client's largest always stays."""
        include_self: bool = True
        """Whether a client's own soft labels count in its target."""
        tau: float = Field(1.0, gt=0)
        """Temperature of the soft labels and of the fine-tuning."""
        private_weight: float = Field(0.0, ge=0)
        """(d): weight of cross-entropy on private mini-batches during fine-tuning."""

    needs_transfer_set = True
    sends_soft_labels = True
    asks_rows = True
    knowledge = Knowledge()

    def setup(self) -> None:
        """Targets, beliefs and weights, none yet."""
        self.fused: dict[int, Tensor] = {}
        self.epds: dict[int, Tensor] = {}
        self.weights = torch.zeros(0, 0)
        self.always = {"alone": True, "uniform": True, "identity": True}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data, then send soft labels on the transfer set."""
        return [Fit(), Predict(self.asked, temperature=self.options.tau)]

    def fuse(self, round: int, replies: Replies) -> None:
        """(a), (b), (c): a target of its own for every client."""
        options, labels = self.options, replies.stack()
        for client, rows in zip(replies.clients, labels, strict=True):
            if options.epd_when == "every_round" or client not in self.epds:
                self.epds[client] = estimated_distribution(
                    self.over_classes(rows, self.asked_candidates), options.epd, options.tau
                )
        self.weights = effectiveness(
            torch.stack([self.epds[client] for client in replies.clients]),
            options.beta,
            options.divergence,
            top_k=options.top_k if options.neighbours == "top_k" else None,
            threshold=options.threshold if options.neighbours == "threshold" else None,
            include_self=options.include_self,
        )
        fused = mix(self.weights, labels)
        self.fused = dict(zip(replies.clients, fused, strict=True))
        self._watch(round, len(replies))

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """(d): fine-tune on the client's own fused target."""
        options = self.options
        soft = self.soft(self.fused[client], options.tau)
        private = CrossEntropy(options.private_weight, on="private")
        terms = (soft, private) if options.private_weight else (soft,)
        return [self.distil(*terms)]

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> dict[str, Any]:
        """Weights (N, N) over those who took part, and what they amount to."""
        epds = torch.stack([self.epds[client] for client in replies.clients])
        contributors, own = self._amounts()
        distance = DIVERGENCES[self.options.divergence](epds)
        apart = ~torch.eye(len(replies), dtype=torch.bool)
        prior = label_counts[replies.clients].double()
        prior = prior / prior.sum(1, keepdim=True)
        both = torch.stack([epds.flatten(), prior.flatten()])
        few = len(replies) <= WRITTEN
        return {
            "contributors": contributors,
            "self_weight": own,
            "divergence": float(distance[apart].mean()) if len(replies) > 1 else 0.0,
            "epd_prior_correlation": float(torch.corrcoef(both)[0, 1]),
            **({"weights": self.weights.tolist()} if few else {}),
        }

    def _amounts(self) -> tuple[float, float]:
        """Effective contributors to a client's target, and its own weight in it, on the mean."""
        contributors = (1 / self.weights.square().sum(1)).mean()
        return float(contributors), float(self.weights.diagonal().mean())

    def _watch(self, round: int, clients: int) -> None:
        """Warn where fusion is, from the first round on, no more than one of its two limits."""
        contributors, own = self._amounts()
        self.always["alone"] &= clients == 1
        self.always["uniform"] &= contributors > 0.95 * clients
        self.always["identity"] &= own > 0.95
        if round < min(WATCHED_ROUNDS, self.experiment.rounds):
            return
        data, beta = self.experiment.data, self.options.beta
        alike = data.partition == "iid" or (data.partition == "dirichlet" and data.alpha >= 10)
        if self.always["alone"]:
            self.warn_once(
                LOCAL_TRAINING,
                "KnFu has one client a round, whose knowledge it fuses with nobody's, so it equals "
                "local training plus self-distillation; raise participation = "
                f"{self.experiment.participation:g} or data.clients = {data.clients}",
            )
        if clients == 1:
            return
        if self.always["uniform"] and not alike and beta > 0:
            self.warn_once(
                UNIFORM_FUSION,
                f"KnFu fuses uniformly: {contributors:.1f} effective contributors of {clients} "
                "since round 1. The clients' class beliefs are too alike for "
                f"strategy.beta = {beta:g}; train longer (training.local_epochs) or raise beta",
            )
        if self.always["identity"]:
            self.warn_once(
                LOCAL_TRAINING,
                f"KnFu leaves clients to themselves: mean self-weight {own:.2f} since round 1, so "
                f"it equals local training plus self-distillation; lower strategy.beta = {beta:g}",
            )


def estimated_distribution(
    labels: Tensor, how: Literal["mean", "histogram"] = "mean", tau: float = 1.0
) -> Tensor:
    """(a): a client's estimated class distribution (C,), float64, from its soft labels (M, C).

    Soft labels at ``tau`` other than 1 are first brought back to tau = 1.
    """
    if how == "histogram":
        return torch.bincount(labels.argmax(1), minlength=labels.shape[1]).double() / len(labels)
    labels = labels.double()
    return (labels if tau == 1 else retemper(labels, tau)).mean(0)


def effectiveness(
    epds: Tensor,
    beta: float,
    divergence: str = "kl",
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    include_self: bool = True,
) -> Tensor:
    """(b) and (c): weights ``w(n, m)`` of shape (N, N), rows summing to 1, from EPDs (N, C)."""
    scores = -beta * DIVERGENCES[divergence](epds)
    clients = len(scores)
    if not include_self and clients > 1:
        scores = scores.masked_fill(torch.eye(clients, dtype=torch.bool), -torch.inf)
    weights = scores.softmax(1)
    dropped = torch.zeros_like(weights, dtype=torch.bool)
    if top_k is not None and top_k < clients:
        order = weights.argsort(dim=1, descending=True, stable=True)
        dropped.scatter_(1, order[:, top_k:], True)
    if threshold is not None:
        dropped = (weights < threshold) & (weights < weights.amax(1, keepdim=True))
    return scores.masked_fill(dropped, -torch.inf).softmax(1)
