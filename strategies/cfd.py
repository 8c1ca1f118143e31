"""CFD: Sattler, Marban, Rischke & Samek, 2021 (arXiv 2012.00632): compressed distillation.

Soft labels travel by few bits, and only where they have changed since they were last sent (delta
coding). The server distils a student of its own from the clients' mean, and what clients get is
what this student says (dual distillation). With Q_b the nearest probabilities that are multiples of
1 / (2^b - 1), of one bit the likeliest class, and x over the transfer set, which stays the same::

    client n   F_n[x] = Q_up(softmax(f_n(x)))                       (M, C), what has changed is sent
    server     minimise mean_x KL(mean_n F_n[x] || softmax(f(x)))   over its student f
               G[x] = Q_down(softmax(f(x)))                         (M, C), what has changed is sent
    client n   minimise mean_x KL(G[x] || softmax(f_n(x)))

Departures: a client's student goes on from round to round. Bits are counted as they are packed, b
an entry and one a row that says whether it has changed, without the entropy coding of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from fedkd.compression import Delta, Encoding, Quantised
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.options import Epochs
from fedkd.privacy.candidates import over_candidates
from fedkd.strategies.base import DistillOptions, Headline, Replies
from fedkd.strategies.dsfl import server_tested
from fedkd.strategies.uniform import Uniform
from fedkd.work import (
    Fit,
    Predict,
    Samples,
    Step,
)


class CFD(Uniform):
    """Soft labels by few bits; a student on the server learns and teaches (Sattler et al. 2021)."""

    asks_rows = False

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        bits_up: int = Field(1, ge=0, le=8)
        """Bits of a probability that a client sends; 0: as it is, in 32."""
        bits_down: int = Field(1, ge=0, le=8)
        """Bits of a probability that the server sends; 0: as it is, in 32."""
        delta: bool = True
        """Send only the rows that have changed since they were last sent."""
        server_epochs: Epochs = 5.0
        """Passes of the server's student over the transfer set, a round."""

    headline = Headline(evaluation="server")

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse deltas behind secure aggregation."""
        super().check(experiment)
        release = experiment.release
        masked = release.active and release.trust == "secure-aggregation"
        if masked and cls.read_options(experiment).delta:
            raise FedkdError(
                "strategy.delta = true is not allowed with release.trust = 'secure-aggregation': "
                "which rows of a client have changed would be seen; allowed: false"
            )

    def setup(self) -> None:
        """Nothing is taught yet."""
        self.taught = torch.zeros(0)

    def setup_server(self) -> None:
        """The student, of the clients' first architecture."""
        self.server.add("server", self.initial_student)

    def encoding(self, bits: int) -> Encoding | None:
        """How soft labels of so many bits travel."""
        quantised = Quantised(bits) if bits else None
        return Delta(quantised) if self.options.delta else quantised

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data, then send quantised soft labels."""
        return [Fit(), Predict(encoding=self.encoding(self.options.bits_up))]

    def fuse(self, round: int, replies: Replies) -> None:
        """The student learns from the mean; ``taught`` (M, C) is what it says then."""
        super().fuse(round, replies)
        options, among = self.options, self.public.among
        target, samples = self.soft(self.fused, among=among), Samples(self.transfer)
        self.server.fit("server", round, samples, [target], options.server_epochs)
        taught = self.server.predict("server", self.transfer).softmax(1)
        self.taught = taught if among is None else over_candidates(taught, among)

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Learn from what the server's student says, quantised."""
        encoding = self.encoding(self.options.bits_down)
        return [self.distil(self.soft(self.taught, encoding=encoding))]

    def score(self, round: int, client: int) -> Sequence[Step]:
        """The server's student, as the paper predicts."""
        return server_tested(self)
