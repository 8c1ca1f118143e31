"""SCAFFOLD: Karimireddy, Kale, Mohri, Reddi, Stich & Suresh, ICML 2020 (arXiv 1910.06378).

Algorithm 1 with option II. Control variates, c_n of each client and their mean c, say where clients
drift to, and every local step is corrected by them::

    client n   K steps  y <- y - eta (g_n(y) + c - c_n)  from the global x;            y_n, sent
    server     c_n <- c_n - c + (x - y_n) / (K eta)      for the S clients that took part
               x   <- x + global_lr / S sum_n (y_n - x)
               c   <- 1 / N sum_n c_n                    over all N clients, 0 where none is yet

eta is ``training.lr``, or what the schedule makes of it in the round, and the optimiser is plain
SGD, whose steps over eta are gradients (with ``training.weight_decay`` those of the penalised
loss). K is the number of steps that the training loop takes on as many samples as the client has,
by the loop's own rule (:func:`fedkd.training.local_steps`): exact, whatever the last batch.

Departures: what travels is x and c - c_n to the client, once there are any, and y_n back. In the
paper c goes to the client, which keeps c_n, and its change comes back beside y_n; but that change
follows from what the server knows, so that here the server does the sums, and no client sends it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.strategies.base import Replies, StrategyOptions
from fedkd.strategies.fedavg import FedAvg, average
from fedkd.training import learning_state, local_steps
from fedkd.work import CrossEntropy, Fit, Linear, Load, Parameters, Share, Step, Term


class Scaffold(FedAvg):
    """FedAvg, whose local steps are corrected by control variates (Karimireddy et al. 2020)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        global_lr: float = Field(1.0, gt=0)
        """Step of the server towards the mean of the clients' parameters, each of which counts the
        same; eta_g in the paper."""

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse optimisers whose steps are no gradients."""
        super().check(experiment)
        training = experiment.training
        for key, value in ("optimiser", training.optimiser), ("momentum", training.momentum):
            if value in ("sgd", 0):
                continue
            raise FedkdError(
                f"training.{key} = {value!r} is not allowed with strategy.name = "
                f"{experiment.strategy.name!r}: its control variates are means of gradients, which "
                "are what SGD without momentum goes by; allowed: training.optimiser = 'sgd', "
                "training.momentum = 0"
            )

    def setup(self) -> None:
        """The global student; no control variates yet, which are 0."""
        super().setup()
        self.learning = learning_state(self.initial_student(), self.experiment.training.part)
        self.variates: dict[int, Parameters] = {}
        self.mean: Parameters = {}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train from the global student, each step corrected by ``c - c_n``."""
        terms: tuple[Term, ...] = (CrossEntropy(),)
        correction = difference(self.mean, self.variates.get(client, {}))
        if any(bool(value.any()) for value in correction.values()):
            terms += (Linear(correction),)
        return [Load(self.parameters), Fit(terms=terms), Share()]

    def fuse(self, round: int, replies: Replies) -> None:
        """The control variates of who took part, the global student, and the mean variate."""
        sent, before = replies.parameters(), self.parameters
        training = self.experiment.training_on("private", round)
        for client, samples, after in zip(replies.clients, replies.samples, sent, strict=True):
            if training.lr and (steps := local_steps(int(samples), training)):
                drift = {n: (before[n] - after[n]) / (steps * training.lr) for n in self.learning}
                own = difference(self.variates.get(client, {}), self.mean)
                self.variates[client] = {n: own[n] + drift[n] for n in drift} if own else drift
        mean, rate = average(sent, torch.ones(len(sent))), self.options.global_lr
        moved = {name: torch.lerp(before[name], mean[name], rate) for name in self.learning}
        self.parameters = mean | moved
        self.mean = total(self.variates, self.experiment.data.clients)


def difference(one: Parameters, other: Parameters) -> Parameters:
    """``one - other``, either of which is 0 where it is empty."""
    if not other:
        return one
    return {name: one[name] - value if one else -value for name, value in other.items()}


def total(each: dict[int, Parameters], clients: int) -> Parameters:
    """The sum of named arrays over clients, in their order, divided by ``clients``."""
    found: Parameters = {}
    for _, mine in sorted(each.items()):
        found = {n: found[n] + value if found else value for n, value in mine.items()}
    return {name: value / clients for name, value in found.items()}
