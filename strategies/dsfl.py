"""DS-FL: Itahara, Nishio, Koda, Morikura & Yamamoto, 2020 (arXiv 2008.06180).

Entropy-reduction aggregation (ERA): the mean soft label is sharpened before clients, and a student
on the server, learn from it::

    client n   train on private data;  F_n[x] = softmax(f_n(x))                     (M, C), sent
    server     G[x] = softmax(mean_n F_n[x] / era_temperature)                      (M, C), sent
               minimise mean_x CE(G[x], softmax(f(x)))                              over f
    client n   minimise mean_x CE(G[x], softmax(f_n(x)))                            over f_n

With ``pseudo_classes`` S above 1, the features of the server's student split each G[x] into S parts
a class (LELP, 2024), (M, C S), sent in the place of G; a client's student learns their sums, which
are G, and its auxiliary head the parts.

The paper scores the server's student (``server``), of the first architecture of
``student.models``; it does not act on the clients.

Departures: all of the transfer set is exchanged in each round, where the paper draws a part of it;
students on both sides learn with the optimiser of ``[training]``, unless ``[server]`` has another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from fedkd import students
from fedkd.distillation.objectives import ObjectiveOption
from fedkd.distillation.pseudo_classes import pseudo_classes
from fedkd.distillation.targets import sharpen
from fedkd.errors import FedkdError
from fedkd.options import MOST_UNITS, Epochs
from fedkd.privacy.candidates import possible
from fedkd.strategies.base import DistillOptions, Headline, KnowledgeStrategy, Replies
from fedkd.strategies.uniform import Uniform
from fedkd.work import Evaluate, Hold, Load, Soft, Step


class DSFL(Uniform):
    """Averages probabilities and sharpens the mean (entropy reduction; Itahara et al. 2020)."""

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        era_temperature: float = Field(0.1, gt=0)
        """Temperature of the sharpening softmax; the paper's default."""
        objective: ObjectiveOption = "cross_entropy"
        """How clients and the server's student learn from the sharpened soft labels, of ``fedkd
        list objectives``; with options it is ``{name = "...", ...}``."""
        server_epochs: Epochs | None = None
        """Passes over the transfer set in which the server's student learns, a round; not given: as
        the clients'; 0: it never learns."""
        pseudo_classes: int = Field(1, ge=1, le=MOST_UNITS)
        """Parts S into which the server's student splits each class by its features; an auxiliary
        head beside each client's student learns them. 1: none, as in the paper."""

    headline = Headline(evaluation="server")

    def setup_server(self) -> None:
        """The server's student, the same that clients with one start begin with."""
        self.server.add("server", self.initial_student)

    def fuse(self, round: int, replies: Replies) -> None:
        """``G = softmax(mean_n F_n / T)``, (M, C)."""
        super().fuse(round, replies)
        among = self.asked_candidates
        if among is not None:
            # What is no class must not get a share in sharpening.
            self.fused = self.fused.masked_fill(~possible(among, self.task.classes), -torch.inf)
        self.fused = sharpen(self.fused, self.options.era_temperature)
        given = self.options.server_epochs
        epochs = self.options.distill_epochs if given is None else given
        self.server.fit("server", round, self.asked_samples(), [self.sharpened()], epochs)
        if self.options.pseudo_classes > 1:
            self.parts = self.split()

    def sharpened(self) -> Soft:
        """The term of the sharpened soft labels, on both sides."""
        return self.soft(self.fused, among=self.asked_candidates)

    def split(self) -> torch.Tensor:
        """The sharpened soft labels in pseudo-classes, by the server's student: (M, C S)."""
        student = self.initial_student()
        below = students.blocks(student)[-2:-1]
        linear = [name for name, each in student.named_modules() if isinstance(each, nn.Linear)]
        weights = self.server.parameters("server")[f"{linear[-1]}.weight"] if linear else None
        features = (
            self.server.represent("server", self.asked_samples().inputs, *below) if below else None
        )
        if weights is None or features is None or features.shape[1] != weights.shape[1]:
            raise FedkdError(
                f"strategy.pseudo_classes = {self.options.pseudo_classes} is not allowed: the "
                "server's student does not end in a linear layer on what the block below gives"
            )
        if self.options.pseudo_classes > features.shape[1]:
            raise FedkdError(
                f"strategy.pseudo_classes = {self.options.pseudo_classes} is not allowed: the "
                f"server's student has {features.shape[1]} features; at most as many parts"
            )
        seed = self.experiment.seed
        return pseudo_classes(features, self.fused, weights, self.options.pseudo_classes, seed=seed)

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Learn from the sharpened soft labels."""
        parts = self.options.pseudo_classes
        if parts > 1:
            return [self.distil(Soft(self.parts, {"name": "pseudo_classes", "parts": parts}))]
        return [self.distil(self.sharpened())]

    def score(self, round: int, client: int) -> Sequence[Step]:
        """The server's student, as the paper predicts."""
        return server_tested(self)


def server_tested(strategy: KnowledgeStrategy) -> list[Step]:
    """Tests of the student ``server``, of the clients' first architecture, under its name."""
    parameters = strategy.server.parameters("server")
    return [
        Hold("server", model=strategy.experiment.student.models[0]),
        Load(parameters, student="server"),
        Evaluate(key="server", student="server"),
    ]
