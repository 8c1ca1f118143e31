"""FedTGP: Zhang, Liu, Hua & Cao, AAAI 2024 (arXiv 2401.03230): trainable global prototypes.

As FedProto, but the server does not average the clients' class means: it trains a prototype for
each class that is near to all clients' means of the class, and further from those of others by a
margin. A round::

    client n   minimise CE + weight * mean (h_n(x) - P[y])^2 on private data, with P of last round
               R_n[c] = mean of h_n(x) over its samples of class c, for the classes it holds;  sent
    server     m      = min(margin, max_c min_c' ||R[c] - R[c']||),   R[c] = mean_n R_n[c]
               P[c]   = f(e_c),  e_c a vector of class c, f of two layers
               minimise CE(softmax_c'(-||R_n[c] - P[c']|| - m [c' = c]), c)   over e and f,
               over all n and c

Scored as the paper does, by the prototype nearest to a sample's representation (``nearest``),
beside the client's own head.

The server's optimiser is plain gradient descent, as in the authors' code, whatever the clients use.

Departures: prototypes are of a class that somebody has held so far; the others' are a row of NaN,
where the authors' code has what f makes of an e that no sample has pulled at. Distances at 0 have
no gradient, where in that code they have none that is finite.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.options import Epochs
from fedkd.strategies.base import Line, Replies, ServerTable
from fedkd.strategies.fedproto import FedProto, cuts_of_one_size, mean_by_class


class FedTGP(FedProto):
    """Trains prototypes on the server, with an adaptive margin (Zhang et al. 2024)."""

    class Options(FedProto.Options):
        """Keys of ``[strategy]``."""

        weight: float = Field(10.0, ge=0)
        """Of the distance to the prototypes; lambda in the paper."""
        margin: float = Field(100.0, ge=0)
        """The largest margin, which prototypes of more distant classes keep; tau in the paper."""
        server_epochs: Epochs = 100.0
        """Passes of the server over the class means of a round; 0 leaves prototypes untrained."""

    server_training = ServerTable(optimiser="sgd", lr=0.01, batch_size=10)

    def setup(self) -> None:
        """No prototypes yet; no class is known."""
        super().setup()
        self.known = torch.zeros(self.task.classes, dtype=torch.bool)
        self.server_line: Line = {}

    def setup_server(self) -> None:
        """The prototypes, at first those of random vectors."""
        _, size = cuts_of_one_size(self, self.options.cut)
        self.server.add("prototypes", lambda: Prototypes(self.task.classes, size))

    def fuse(self, round: int, replies: Replies) -> None:
        """``P``, (C, d), trained on the class means of the round."""
        sent = replies.parameters("prototypes")
        means, counts = (torch.stack([one[key] for one in sent]) for key in ("mean", "count"))
        held = counts > 0  # (N, C)
        self.known |= held.any(0)
        rows, labels = means[held], held.nonzero()[:, 1]
        margin = min(self.options.margin, largest_gap(mean_by_class(means, held)))
        loss = self.train(round, rows, labels, margin)
        classes = torch.arange(self.task.classes)
        prototypes = self.server.predict("prototypes", classes)
        self.prototypes = prototypes.masked_fill(~self.known[:, None], torch.nan)
        self.server_line = {"server_loss": loss, "margin": margin}

    def train(self, round: int, rows: Tensor, labels: Tensor, margin: float) -> float:
        """Train the prototypes on class means ``rows`` (K, d) of classes ``labels`` (K,)."""
        rows, labels = rows.to(self.server.device), labels.to(self.server.device)
        classes = torch.arange(self.task.classes, device=self.server.device)

        def loss(prototypes: nn.Module, index: Tensor, draw: torch.Generator) -> Tensor:
            return margin_loss(rows[index], labels[index], prototypes(classes), margin)

        epochs = self.options.server_epochs
        return self.server.minimise("prototypes", round, loss, size=len(rows), epochs=epochs)

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> Line:
        """The server's loss on the class means, and the margin of the round."""
        return self.server_line


class Prototypes(nn.Module):
    """A vector for each class, and two layers that make its prototype of it."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(classes, size)
        self.layers = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))

    def forward(self, classes: Tensor) -> Tensor:
        """Prototypes ``(K, d)`` of classes ``(K,)``."""
        prototypes: Tensor = self.layers(self.vectors(classes))
        return prototypes


def margin_loss(rows: Tensor, labels: Tensor, prototypes: Tensor, margin: float) -> Tensor:
    """Cross-entropy of minus the distances, that to the own class's prototype with ``margin`` more.

    ``rows`` is (K, d), ``labels`` (K,), ``prototypes`` (C, d), the result a scalar.
    """
    distances = torch.cdist(rows, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    return F.cross_entropy(-distances - margin * F.one_hot(labels, len(prototypes)), labels)


def largest_gap(means: Tensor) -> float:
    """The largest, over classes, of the distance to the nearest other one; 0 of one class alone.

    ``means`` is (C, d); rows of NaN are of no class.
    """
    rows = means[~means[:, 0].isnan()]
    gaps = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    gaps.fill_diagonal_(torch.inf)
    return float(gaps.min(1).values.max()) if len(rows) > 1 else 0.0
