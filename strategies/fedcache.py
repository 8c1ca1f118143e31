"""FedCache: Wu, Sun, Wang, Liu, Xu, Xu, Gao & Tan, IEEE TMC 2024 (arXiv 2308.07816).

The server keeps a cache of what clients say of each of their private samples, and hands out to a
client what was said of samples that are like its own: same label, and a hash that is near. With
z_i the cached logits of sample i, and N_i its R nearest samples of the same label, by the cosine of
their hashes, whoever has them::

    once       client n sends hash e(x) and label y of its samples, e an encoder that all have
    client n   minimise CE + weight * KL(softmax(mean of z_j, j in N_i) || softmax(f_n(x_i)))
               z_i = f_n(x_i) for its samples;  sent
    server     puts the z_i into the cache
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedkd import registry
from fedkd.distillation.objectives import ObjectiveOption
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.options import MOST
from fedkd.strategies.base import Knowledge, KnowledgeStrategy, Replies, StrategyOptions
from fedkd.strategies.fedproto import cut_of
from fedkd.work import CrossEntropy, Fit, Hold, Predict, Represent, Step, Term


class FedCache(KnowledgeStrategy):
    """Caches logits of private samples; those of the nearest samples teach (Wu et al. 2024).

    Departures: the encoder is a student that nobody trained, unless ``encoder`` names one whose
    factory gives pretrained weights (the paper's is a MobileNet from ImageNet); the soft labels
    that it would give are sent beside the hashes, once, and not used. Neighbours are found exactly,
    where the paper searches a graph, and never include the sample itself. The cache is read before
    and written after a client's training of a round, and not batch by batch. A sample without any
    neighbour is learned from by its label alone.
    """

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        neighbours: int = Field(16, ge=1, le=MOST)
        """Samples that teach one sample at most; R in the paper."""
        weight: float = Field(1.5, ge=0)
        """Of what is fetched from the cache, beside cross-entropy; beta in the paper."""
        objective: ObjectiveOption = "forward_kl"
        """How clients learn from it, of ``fedkd list objectives``."""
        encoder: str = ""
        """Architecture that makes the hashes, a name of ``fedkd list students``; empty: the first
        of the clients' own."""

    knowledge = Knowledge("logits", labelled=True)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse an encoder that is not known."""
        super().check(experiment)
        encoder, known = cls.read_options(experiment).encoder, registry.names("students")
        if encoder and encoder not in known:
            raise FedkdError(
                f"strategy.encoder = {encoder!r} is not known; known: {', '.join(known)}"
            )

    def setup(self) -> None:
        """An empty cache: by client, hashes (K, d), labels (K,) and logits (K, C)."""
        self.encoder = self.options.encoder or self.experiment.student.models[0]
        self.cut, _ = cut_of(self, self.encoder, "", last=1)
        self.hashes: dict[int, Tensor] = {}
        self.labels: dict[int, Tensor] = {}
        self.logits: dict[int, Tensor] = {}
        self.targets: dict[int, Tensor] = {}
        self.related = torch.zeros(0, 0, dtype=torch.long)

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train with what the cache has on like samples, then send logits, and once the hashes."""
        terms: tuple[Term, ...] = (CrossEntropy(),)
        if self.options.weight and client in self.targets:
            terms += (self.soft(self.targets[client], weight=self.options.weight),)
        steps: list[Step] = [Fit(terms=terms), Predict("private", output="logits", key="logits")]
        if client in self.hashes:
            return steps
        hashes = Represent(self.cut, key="hashes", student="encoder")
        return [Hold("encoder", model=self.encoder), hashes, *steps]

    def fuse(self, round: int, replies: Replies) -> None:
        """Write to the cache, and read from it for everybody who is in it."""
        for reply in replies.replies:
            if isinstance(sent := reply.values.get("hashes"), dict):
                self.hashes[reply.client] = sent["inputs"].flatten(1)
                self.labels[reply.client] = sent["labels"]
        self.logits |= dict(zip(replies.clients, self.sent(replies), strict=True))
        clients = sorted(self.logits)
        rows = [len(self.logits[client]) for client in clients]
        if len(self.related) != sum(rows):
            hashes, labels = (
                torch.cat([known[client] for client in clients])
                for known in (self.hashes, self.labels)
            )
            self.related = nearest(hashes, labels, self.options.neighbours)
        fetched = mean_of(torch.cat([self.logits[client] for client in clients]), self.related)
        parts = fetched.split(rows)
        self.targets = {n: part.clone() for n, part in zip(clients, parts, strict=True)}

    @staticmethod
    def sent(replies: Replies) -> list[Tensor]:
        """The logits (K, C) of each client, which have unlike numbers of samples."""
        return [Replies([reply]).stack("logits")[0] for reply in replies.replies]


def nearest(hashes: Tensor, labels: Tensor, count: int) -> Tensor:
    """The ``count`` nearest other rows with the same label, (K, count); -1 where there are fewer.

    ``hashes`` is (K, d) and ``labels`` (K,); near is what has a large cosine.
    """
    found = torch.full((len(hashes), count), -1)
    unit = functional.normalize(hashes.double(), dim=1)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        cosine = (unit[rows] @ unit[rows].T).fill_diagonal_(-torch.inf)
        order = cosine.topk(min(count, len(rows) - 1), 1).indices
        found[rows, : order.shape[1]] = rows[order]
    return found


def mean_of(logits: Tensor, related: Tensor) -> Tensor:
    """The mean (K, C) of the rows of ``logits`` (K, C) that ``related`` (K, R) names.

    -1 names none; a row of NaN where there is none at all.
    """
    there = (related >= 0).to(logits)
    total = torch.zeros_like(logits)
    for column, share in zip(related.T, there.T, strict=True):
        total += share[:, None] * logits[column.clamp_min(0)]
    return total / there.sum(1, keepdim=True)
