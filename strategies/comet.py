"""COMET: Cho, Wang, Chirvolu & Joshi, 2023 (arXiv 2109.08119), clustered knowledge transfer.

Clients whose soft labels on the transfer set are alike teach each other, and nobody else. A round,
with F_n the soft labels (M, C) of client n and G_k the k-th of K centroids::

    client n   minimise CE on private data + weight * KL(G || softmax(f_n(x))) on the transfer set,
               G the centroid of last round that is nearest to the F_n that it sent last
               F_n[x] = softmax(f_n(x));  sent
    server     G_1 ... G_K = k-means of the F_n:  each the mean of the F_n that it is nearest to
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedkd.distillation.objectives import ObjectiveOption
from fedkd.distillation.targets import mix
from fedkd.strategies.base import Knowledge, KnowledgeStrategy, Replies, StrategyOptions
from fedkd.work import CrossEntropy, Fit, Predict, Step, Term

MOST_ITERATIONS = 100
"""Of k-means, which ends long before that."""


class Comet(KnowledgeStrategy):
    """Clusters clients by their soft labels; the nearest centroid teaches (Cho et al. 2023).

    Departures: clients approach the centroid by KL divergence (the paper: squared distance of
    probabilities); k-means begins with the clients that are farthest from each other, and not at
    random, so that it has no luck; the server finds the nearest centroid for a client, and sends
    that one, where the paper sends all. A client that was away finds the centroid that is nearest
    to what it sent last; one that has sent nothing yet trains without.
    """

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        clusters: int = Field(2, ge=1, le=100_000)
        """Centroids, K; as many as clients take part at most. 1 is the mean of all."""
        weight: float = Field(1.0, ge=0)
        """Of the distance to the centroid, beside cross-entropy; lambda in the paper."""
        objective: ObjectiveOption = "forward_kl"
        """How clients approach the centroid, of ``fedkd list objectives``."""

    needs_transfer_set = True
    sends_soft_labels = True
    knowledge = Knowledge()

    def setup(self) -> None:
        """Nobody has sent anything yet."""
        self.sent: dict[int, Tensor] = {}
        self.nearest: dict[int, int] = {}
        self.centroids = torch.zeros(0, 0, 0)

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train near the centroid, then send soft labels on the transfer set."""
        terms: tuple[Term, ...] = (CrossEntropy(),)
        if self.options.weight and client in self.nearest:
            target, among = self.target(client), self.public.among
            terms += (self.soft(target, weight=self.options.weight, on="transfer", among=among),)
        return [Fit(terms=terms), Predict()]

    def target(self, client: int) -> Tensor:
        """The centroid (M, C) that teaches a client which has sent soft labels before."""
        return self.centroids[self.nearest[client]]

    def fuse(self, round: int, replies: Replies) -> None:
        """The centroids, (K, M, C), and which of them is nearest to whom."""
        labels = replies.stack()
        owners = k_means(labels.flatten(1).double(), self.options.clusters)
        members = functional.one_hot(owners).T.double()
        self.centroids = mix(members / members.sum(1, keepdim=True), labels)
        self.sent |= dict(zip(replies.clients, labels, strict=True))
        self.nearest |= dict(zip(replies.clients, owners.tolist(), strict=True))
        if away := [client for client in self.sent if client not in replies.clients]:
            kept = torch.stack([self.sent[client] for client in away])
            found = distances(kept.flatten(1), self.centroids.flatten(1)).argmin(1)
            self.nearest |= dict(zip(away, found.tolist(), strict=True))

    def fused_labels(self, client: int, steps: Sequence[Step]) -> Tensor | None:
        """The centroid that the client gets with the next round that it takes part in."""
        return self.target(client) if self.options.weight else None

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> dict[str, Any]:
        """Clusters of the round, and how many of those who took part are in each."""
        owners = [self.nearest[client] for client in replies.clients]
        sizes = [owners.count(cluster) for cluster in range(len(self.centroids))]
        return {"clusters": len(sizes), "sizes": sizes}


def k_means(points: Tensor, clusters: int) -> Tensor:
    """Which cluster each of ``points`` (N, d) is of: (N,), from 0 on, none of them empty.

    Lloyd's iteration. It begins at the point that is nearest to the mean of all, and then, one
    after the other, at that which is farthest from those before: there are fewer clusters than
    asked for where there are fewer distinct points.
    """
    first = int(distances(points, points.mean(0, keepdim=True)).argmin())
    centroids, owners = points[first : first + 1], torch.zeros(len(points), dtype=torch.long)
    while len(centroids) < clusters:
        apart = distances(points, centroids).amin(1)
        if not apart.max() > 0:
            break
        farthest = int(apart.argmax())
        centroids = torch.cat([centroids, points[farthest : farthest + 1]])
    for _ in range(MOST_ITERATIONS):
        before, owners = owners, distances(points, centroids).argmin(1)
        owners = owners.unique(return_inverse=True)[1]  # a centroid that lost all of its own goes
        members = functional.one_hot(owners).to(points).T
        centroids = members @ points / members.sum(1, keepdim=True)
        if torch.equal(owners, before):
            break
    return owners


def distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances (N, K) of points (N, d) to centroids (K, d), without cancellation."""
    each = [(points.double() - one.double()).square().sum(1) for one in centroids]
    return torch.stack(each, 1)
