"""Assistant: a student on the server learns from the clients' mean and teaches them.

::

    client n   train on private data;  F_n[x] = softmax(f_n(x))         (M, C), sent
    server     G[x] = sum_n samples_n / samples * F_n[x]                (M, C)
               minimise mean_x d(G[x], softmax(g(x)))                   over g
    client n   minimise mean_x d(softmax(g(x)), softmax(f_n(x)))        over f_n

Departures: none, as it is no paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedkd.options import Epochs
from fedkd.strategies.base import DistillOptions, Headline, KnowledgeStrategy, Line, Replies
from fedkd.work import Evaluate, Fit, Hold, Load, Predict, Samples, Soft, Step


class Assistant(KnowledgeStrategy):
    """A student on the server learns from the clients' mean and teaches them."""

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        objective: str = "forward_kl"
        """d, a name of ``fedkd list objectives`` that takes probabilities."""
        server_epochs: Epochs = 2.0
        """Passes of the server's student over the transfer set, a round."""

    needs_transfer_set = True
    headline = Headline(evaluation="assistant")

    def setup_server(self) -> None:
        """The student g; its parameters go into checkpoints."""
        self.server.add("assistant", self.initial_student)

    def setup(self) -> None:
        """What is kept between rounds."""
        self.loss = 0.0

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data, then send soft labels on the transfer set."""
        return [Fit(), Predict("transfer")]

    def fuse(self, round: int, replies: Replies) -> None:
        """G, which g learns."""
        labels = replies.stack("soft_labels")  # (N, M, C)
        shares = (replies.samples / replies.samples.sum()).to(labels)  # (N,)
        mean = torch.einsum("n,nmc->mc", shares, labels)
        self.loss = self.server.fit(
            "assistant",
            round,
            Samples(self.transfer),
            [self.towards(mean)],
            self.options.server_epochs,
        )
        self.taught = self.server.predict("assistant", self.transfer).softmax(1)  # (M, C)

    def towards(self, targets: torch.Tensor) -> Soft:
        """The term d, the same on both sides."""
        return Soft(targets, objective=self.options.objective)

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Learn what g says."""
        return [self.distil(self.towards(self.taught))]

    def score(self, round: int, client: int) -> Sequence[Step]:
        """Test g too: ``own_assistant_accuracy_mean`` and so on."""
        return [
            Hold("assistant", model=self.experiment.student.models[0]),
            Load(self.server.parameters("assistant"), student="assistant"),
            Evaluate(key="assistant", student="assistant"),
        ]

    def record(self, round: int, replies: Replies, label_counts: torch.Tensor) -> Line:
        """The loss of g, ``record.assistant_loss`` in tables."""
        return {"assistant_loss": self.loss}
