"""DS-FL: Itahara, Nishio, Koda, Morikura & Yamamoto, 2020 (arXiv 2008.06180).

Entropy-reduction aggregation (ERA): the mean soft label is sharpened before clients, and a student
on the server, learn from it::

    client n   train on private data;  F_n[x] = softmax(f_n(x))                     (M, C), sent
    server     G[x] = softmax(mean_n F_n[x] / era_temperature)                      (M, C), sent
               minimise mean_x CE(G[x], softmax(f(x)))                              over f
    client n   minimise mean_x CE(G[x], softmax(f_n(x)))                            over f_n

The paper scores the server's student (``server``), of the first architecture of
``student.models``; it does not act on the clients.

Departures: all of the transfer set is exchanged in each round, where the paper draws a part of it;
students on both sides learn with the optimiser of ``[training]``, unless ``[server]`` has another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from fedkd.distillation.objectives import ObjectiveOption
from fedkd.distillation.targets import sharpen
from fedkd.options import Epochs
from fedkd.privacy.candidates import possible
from fedkd.strategies.base import DistillOptions, Headline, KnowledgeStrategy, Replies
from fedkd.strategies.uniform import Uniform
from fedkd.work import Evaluate, Hold, Load, Samples, Soft, Step


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

    headline = Headline(evaluation="server")

    def setup_server(self) -> None:
        """The server's student, the same that clients with one start begin with."""
        self.server.add("server", self.initial_student)

    def fuse(self, round: int, replies: Replies) -> None:
        """``G = softmax(mean_n F_n / T)``, (M, C)."""
        super().fuse(round, replies)
        among = self.public.among
        if among is not None:
            # What is no class must not get a share in sharpening.
            self.fused = self.fused.masked_fill(~possible(among, self.task.classes), -torch.inf)
        self.fused = sharpen(self.fused, self.options.era_temperature)
        given = self.options.server_epochs
        epochs = self.options.distill_epochs if given is None else given
        self.server.fit("server", round, Samples(self.transfer), [self.sharpened()], epochs)

    def sharpened(self) -> Soft:
        """The term of the sharpened soft labels, on both sides."""
        return self.soft(self.fused, among=self.public.among)

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Learn from the sharpened soft labels."""
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
