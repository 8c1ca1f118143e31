"""FedDyn: Acar, Zhao, Matas Navarro, Mattina, Whatmough & Saligrama, ICLR 2021 (arXiv 2111.04263).

Algorithm 1. Each client's loss is changed so that, where clients agree, the optimum of all is that
of each. g_n is the gradient of client n's loss where it last stopped, and s the server's::

    client n   w_n = argmin F_n(v) - <g_n, v> + alpha / 2 |v - w|^2, from the global w;    sent
    server     g_n <- g_n - alpha (w_n - w)           for the S clients that took part
               s   <- s - 1 / N sum_n (w_n - w)       over them, of N clients;  h = alpha s
               w   <- 1 / S sum_n w_n - s

The argmin is some epochs of ``[training]``; whatever the optimiser, g_n is right where they reach
it. As alpha goes to 0 clients train as FedAvg's do, but the server's s stays what it is: a step
twice as long in the first round, and a memory of all steps. ``alpha = 0`` itself, where h / alpha
is 0 / 0, is FedAvg.

Departure: g_n, which the paper has the client keep, is kept by the server and sent along from the
second time that a client takes part. It then gets twice as many bytes as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from fedkd.strategies.base import Replies, StrategyOptions
from fedkd.strategies.fedavg import FedAvg, average
from fedkd.training import learning_state
from fedkd.work import CrossEntropy, Fit, Linear, Load, Parameters, Proximal, Share, Step, Term


class FedDyn(FedAvg):
    """FedAvg with losses that are regularised as the rounds go on (Acar et al. 2021)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        alpha: float = Field(0.01, ge=0)
        """Weight of the distance to the global student; 0 is FedAvg. The paper takes 0.001 to
        0.1."""

    def setup(self) -> None:
        """The global student; no gradients and no steps yet, which are 0."""
        super().setup()
        self.learning = learning_state(self.initial_student(), self.experiment.training.part)
        self.gradients: dict[int, Parameters] = {}
        self.steps = {name: torch.zeros_like(self.parameters[name]) for name in self.learning}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Minimise the client's regularised loss from the global student."""
        alpha = self.options.alpha
        terms: tuple[Term, ...] = (CrossEntropy(),)
        if alpha:
            terms += (Proximal(alpha),)
        if client in self.gradients:
            terms += (Linear(self.gradients[client], weight=-1.0),)
        return [Load(self.parameters), Fit(terms=terms), Share()]

    def fuse(self, round: int, replies: Replies) -> None:
        """The gradients of who took part, the server's state, and the global student."""
        if not self.options.alpha:
            super().fuse(round, replies)
            return
        sent, before, clients = replies.parameters(), self.parameters, self.experiment.data.clients
        steps = dict(self.steps)
        for client, after in zip(replies.clients, sent, strict=True):
            moved = {name: after[name] - before[name] for name in self.learning}
            former = self.gradients.get(client, {})
            self.gradients[client] = {
                name: former.get(name, torch.zeros_like(move)) - self.options.alpha * move
                for name, move in moved.items()
            }
            steps = {name: steps[name] - move / clients for name, move in moved.items()}
        mean = average(sent, torch.ones(len(sent)))
        self.steps = steps
        self.parameters = mean | {name: mean[name] - steps[name] for name in self.learning}
