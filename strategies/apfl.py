"""APFL: Deng, Kamani & Mahdavi, 2020 (arXiv 2003.13461), adaptive personalised federated learning.

Beside the global student w every client has one of its own, v_n, and predicts with a mixture of the
parameters of both, alpha_n of them its own::

    client n   w_n = w;  for each batch, both at once:
                 w_n learns by  F_n(w_n)
                 v_n learns by  F_n(alpha_n v_n + (1 - alpha_n) w_n), by its gradient over v_n
               w_n, sent;  v_n, kept
               alpha_n = alpha_n - alpha_lr * <v_n - w_n, gradient of F_n at the mixture>, in [0, 1]
    server     w = sum_n samples_n / samples * w_n

Clients are tested with the mixture: after local training with their own w_n, after fusion with w;
one that has not taken part yet with w alone.

Departures: after fusion the averaged w is mixed in, where the paper's mixture has the client's own
w_n and is a mean over local steps. All v_n start from the w that the client first receives. The
gradient over alpha is a mean over a round's last pass, where the authors' code takes that of its
first batch, with 0.02 alpha added; their code also mixes outputs where the paper has parameters.
Alpha_n is kept by the server, which is told the gradient, a number a round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from fedkd.experiment import Experiment
from fedkd.strategies.base import Line, Replies
from fedkd.strategies.fedavg import AverageOptions, FedAvg, refuse_noise
from fedkd.work import Blend, CrossEntropy, Fit, Hold, Load, Peer, Share, Step


class APFL(FedAvg):
    """FedAvg, and predictions by a mixture of global and own parameters (Deng et al. 2020)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        alpha: float = Field(0.5, ge=0, le=1)
        """Share of the client's own student, at first; 0 is FedAvg, 1 local training."""
        alpha_lr: float = Field(0.0, ge=0)
        """Rate at which each client's share goes down its gradient, once a round; 0 keeps it."""

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse DP-SGD."""
        super().check(experiment)
        refuse_noise(experiment, "a sample acts on the own student through the global one too")

    def setup(self) -> None:
        """The global student, and the share of each client that has a student of its own."""
        super().setup()
        self.alphas: dict[int, float] = {}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train both and send the global one; be the mixture."""
        first = [] if client in self.alphas else [Load("own", student="personal")]
        alpha = self.alphas.get(client, self.options.alpha)
        mixture = Blend("own", alpha, 1 - alpha, slope=self.options.alpha_lr > 0)
        own = Peer("personal", (CrossEntropy(),), key="personal_loss", at=mixture)
        return [
            Load(self.parameters),
            Hold("personal"),
            *first,
            Fit(together=(own,)),
            Share(),
            mixed(alpha),
        ]

    def fuse(self, round: int, replies: Replies) -> None:
        """Average the global students, and move the shares.

        Who was left out begins again from the global one.
        """
        super().fuse(round, replies)
        rate, slopes = self.options.alpha_lr, torch.zeros(len(replies))
        if rate:
            slopes = replies.metric("personal_loss_slope")
        for client, slope in zip(replies.clients, slopes.tolist(), strict=True):
            alpha = self.alphas.get(client, self.options.alpha)
            self.alphas[client] = min(1.0, max(0.0, alpha - rate * slope))

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """The mixture with the global student."""
        steps = super().deploy(round, client)
        return [*steps, mixed(self.alphas[client])] if client in self.alphas else steps

    def record(self, round: int, replies: Replies, label_counts: torch.Tensor) -> Line:
        """The mean share of those that have a student of their own."""
        return {"alpha_mean": sum(self.alphas.values()) / max(1, len(self.alphas))}


def mixed(alpha: float) -> Load:
    """The client's own parameters come to the global ones."""
    return Load("personal", keep=1 - alpha, weight=alpha)
