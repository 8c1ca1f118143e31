"""APFL: Deng, Kamani & Mahdavi, 2020 (arXiv 2003.13461), adaptive personalised federated learning.

Beside the global student w every client has one of its own, v_n, and predicts with a mixture of the
parameters of both, alpha of them its own::

    client n   w_n = w;  for each batch, both at once:
                 w_n learns by  F_n(w_n)
                 v_n learns by  F_n(alpha v_n + (1 - alpha) w_n), by its gradient over v_n
               w_n, sent;  v_n, kept
    server     w = sum_n samples_n / samples * w_n

Clients are tested with the mixture: after local training with their own w_n, after fusion with w;
one that has not taken part yet with w alone.

Departures: after fusion the averaged w is mixed in, where the paper's mixture has the client's own
w_n and is a mean over local steps. All v_n start from the w that the client first receives. Alpha
is the same for all clients and stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fedkd.experiment import Experiment
from fedkd.strategies.base import Replies
from fedkd.strategies.fedavg import AverageOptions, FedAvg, refuse_noise
from fedkd.work import Blend, CrossEntropy, Fit, Hold, Load, Peer, Share, Step


class APFL(FedAvg):
    """FedAvg, and predictions by a mixture of global and own parameters (Deng et al. 2020)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        alpha: float = Field(0.5, ge=0, le=1)
        """Share of the client's own student; 0 is FedAvg, 1 local training."""

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse DP-SGD."""
        super().check(experiment)
        refuse_noise(experiment, "a sample acts on the own student through the global one too")

    def setup(self) -> None:
        """The global student, and who has one of its own."""
        super().setup()
        self.personal: list[int] = []

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train both and send the global one; be the mixture."""
        first = [] if client in self.personal else [Load("own", student="personal")]
        alpha = self.options.alpha
        own = Peer(
            "personal",
            (CrossEntropy(),),
            key="personal_loss",
            at=Blend("own", alpha, 1 - alpha),
        )
        return [
            Load(self.parameters),
            Hold("personal"),
            *first,
            Fit(together=(own,)),
            Share(),
            self.mixed(),
        ]

    def mixed(self) -> Load:
        """The client's own parameters come to the global ones."""
        alpha = self.options.alpha
        return Load("personal", keep=1 - alpha, weight=alpha)

    def fuse(self, round: int, replies: Replies) -> None:
        """Average the global students. Who was left out begins again from the global one."""
        super().fuse(round, replies)
        self.personal = sorted({*self.personal, *replies.clients})

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """The mixture with the global student."""
        steps = super().deploy(round, client)
        return [*steps, self.mixed()] if client in self.personal else steps
