"""FedGH: Yi, Wang, Liu, Shi & Yu, ACM MM 2023 (arXiv 2303.13137): a generalised global header.

Clients send class means of their representations; the server trains one head on all of them, which
takes the place of everybody's. Bodies stay where they are and may be of any architecture, as long
as their representations have one size, which ``student.representation`` gives all::

    client n   w_n = (own body B_n, global head H), trained together on private data
               R_n[c] = mean of B_n(x) over its samples of class c, for the classes it holds;  sent
    server     minimise CE(H(R_n[c]), c) over all n and c, from the former H
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fedkd import students
from fedkd.options import Epochs
from fedkd.strategies.base import KnowledgeStrategy, Line, Replies, ServerTable, StrategyOptions
from fedkd.strategies.fedproto import cut_of
from fedkd.strategies.lg_fedavg import alike
from fedkd.work import CrossEntropy, Fit, Load, Represent, Samples, Step


class FedGH(KnowledgeStrategy):
    """Trains one head on the server from class means of representations (Yi et al. 2023).

    Departures: unless ``[server]`` says otherwise, the server uses the optimiser of ``[training]``,
    begun afresh each round, where the paper takes a step of gradient descent for each mean
    (``server.optimiser = "sgd"`` does); means of a round come in a shuffled order and not client by
    client.
    """

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        cut: str = ""
        """Block whose output is the representation; empty: the last one below the head."""
        server_epochs: Epochs = 1.0
        """Passes of the server over the class means of a round; 0 keeps the first head."""

    server_training = ServerTable(batch_size=1)

    def setup(self) -> None:
        """The server has not trained yet."""
        self.server_line: Line = {}

    def setup_server(self) -> None:
        """One head, at first that of a fresh student of the first architecture."""
        models = list(dict.fromkeys(self.experiment.student.models))
        found = {model: cut_of(self, model, self.options.cut, last=1) for model in models}
        self.cuts = {model: cut for model, (cut, _) in found.items()}
        self.shape = tuple(found[models[0]][1])
        heads = {model: self.head_of(model) for model in models}
        alike({model: dict(head.state_dict()) for model, head in heads.items()}, self.experiment)
        self.server.add("head", lambda: heads[models[0]])
        self.head = self.server.parameters("head")

    def head_of(self, model: str) -> nn.Sequential:
        """What a fresh ``model`` has above the cut."""
        student = self.initial_student(model)
        return student[students.cut_index(student, self.cuts[model]) :]

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the own body with the global head, then send class means of the representation."""
        cut = self.cuts[self.experiment.architecture(client)]
        return [
            Load(self.head),
            Fit(),
            Represent(cut, per="class", key="representations"),
        ]

    def fuse(self, round: int, replies: Replies) -> None:
        """Train the head: a mean of a class that a client holds is a sample."""
        sent = replies.parameters("representations")
        held = [one["count"] > 0 for one in sent]
        means = torch.cat([one["mean"][there] for one, there in zip(sent, held, strict=True)])
        labels = torch.cat([there.nonzero()[:, 0] for there in held])
        options, samples = self.options, Samples(means.unflatten(1, self.shape), labels)
        loss = self.server.fit(
            "head",
            round,
            samples,
            [CrossEntropy()],
            options.server_epochs,
        )
        self.head = self.server.parameters("head")
        self.server_line = {"server_loss": loss}

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """The own body below the global head."""
        return [Load(self.head)]

    def record(self, round: int, replies: Replies, label_counts: torch.Tensor) -> Line:
        """The server's loss on the class means."""
        return self.server_line
