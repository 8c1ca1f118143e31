"""FedMD: Li & Wang, 2019 (arXiv 1910.03581), algorithm 1: communicate, aggregate, digest, revisit.

With the logits f_n of client n, and x over the M transfer samples::

    client n   revisit: train on private data;  f_n[x]         (M, C), sent
    server     f[x] = 1/N sum_n f_n[x]                         (M, C), sent
    client n   digest: minimise mean_x |f[x] - f_n(x)|^2

Departures: the paper's initial training on a *labelled* public set is left out, as the transfer set
has no labels; all of the transfer set is exchanged in each round, where the paper draws a part of
it; digest is by squared error, where the authors' code has the absolute one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from fedkd.distillation.targets import soften
from fedkd.options import OnlyWith
from fedkd.strategies.base import DistillOptions, Headline, Replies
from fedkd.strategies.uniform import Uniform
from fedkd.work import Fit, Predict, Soft, Step


class FedMD(Uniform):
    """Averages logits, the class scores of the paper, on the transfer set (Li & Wang 2019)."""

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        objective: Literal["mse_logits", "forward_kl"] = "mse_logits"
        """Digest by matching the mean logits, or their softened probabilities."""
        tau: Annotated[float, OnlyWith("objective", "forward_kl")] = Field(1.0, gt=0)
        """Temperature of ``forward_kl``."""

    headline = Headline("local")

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Revisit: train on private data; communicate: send logits on the transfer set."""
        return [Fit(), Predict(output="logits", key="logits")]

    def fuse(self, round: int, replies: Replies) -> None:
        """``f = mean_n f_n``, (M, C) logits."""
        self.fused = replies.stack("logits").mean(0)

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Digest: approach the consensus."""
        if self.options.objective == "mse_logits":
            return [self.distil(Soft(self.fused, objective="mse_logits"))]
        targets = soften(self.fused, self.options.tau)
        return [self.distil(Soft(targets, temperature=self.options.tau))]
