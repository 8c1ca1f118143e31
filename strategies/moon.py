"""MOON: Li, He & Song, CVPR 2021 (arXiv 2103.16257), model-contrastive federated learning.

A client's representation z(x) is drawn towards that of the global student and away from that of its
own former one, v_n, which has drifted::

    client n   minimise CE + mu mean -log(e+ / (e+ + e-))  from the global w;          w_n, sent
               e+ = exp(cos(z(x), z_w(x)) / tau),  e- = exp(cos(z(x), z_v_n(x)) / tau)
               v_n = w_n                                                               kept
    server     w = sum_n samples_n / samples * w_n

A client that takes part for the first time has no former student, and minimises CE.

Departures: the representation is what a block of the student gives, by default the last one below
the head, where the paper puts a projection head of two layers between; and both students are asked
once, when training begins, about the samples as they are, whatever ``data.augment`` makes of these.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fedkd.strategies.base import Replies
from fedkd.strategies.fedavg import AverageOptions, FedAvg
from fedkd.strategies.fedproto import cut_of
from fedkd.work import Contrast, CrossEntropy, Fit, Hold, Load, Share, Step


class MOON(FedAvg):
    """FedAvg, its representations near the global student's, not one's former (Li et al. 2021)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        mu: float = Field(1.0, ge=0)
        """Weight of the contrastive term; 0 is FedAvg. The paper's best are 5 on CIFAR-10 and 1 on
        CIFAR-100 and Tiny-ImageNet."""
        tau: float = Field(0.5, gt=0)
        """Temperature of the cosines."""
        cut: str = ""
        """Block whose output is the representation; empty: the last one below the head."""

    def setup(self) -> None:
        """The global student, the cut, and who has a former student."""
        super().setup()
        self.cut, _ = cut_of(self, self.experiment.student.models[0], self.options.cut, last=1)
        self.former: list[int] = []

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Put the former student aside, then train from the global one, in contrast to it."""
        options = self.options
        if not options.mu or client not in self.former:
            return super().learn(round, client)
        # Of a client that is left out what it then has may be no number: it begins again.
        self.former.remove(client)
        # Just loaded, the own student is the global one when training begins.
        contrast = Contrast("own", "former", self.cut, options.tau, options.mu)
        return [
            Hold("former"),
            Load("own", student="former"),
            Load(self.parameters),
            Fit(terms=(CrossEntropy(), contrast)),
            Share(),
        ]

    def fuse(self, round: int, replies: Replies) -> None:
        """Average, and note who has been trained."""
        super().fuse(round, replies)
        self.former = sorted({*self.former, *replies.clients})
