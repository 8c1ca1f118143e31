"""FedAvg: McMahan, Moore, Ramage, Hampson & Aguera y Arcas, 2017 (arXiv 1602.05629).

With ``clipping_norm`` it is DP-FedAvg (McMahan, Ramage, Talwar & Zhang, 2018, arXiv 1710.06963):
what one client can change is bounded, and noise hides whether it did. With S = ``clipping_norm``,
z = ``noise_multiplier`` and the N clients that the round asked::

    client n   w_n, trained on private data from the global w;  sent
    server     w = w + 1/N sum_n min(1, S / |w_n - w|) (w_n - w) + N(0, (z S / N)^2 I)

Each client counts the same, whatever its samples; one that does not answer counts as w_n = w. It is
the server that clips and adds noise: this hides a client from the other clients and from whoever
has the final w, and nothing from the server. ``fedkd audit`` says how well.

Departures: none known. Clients train with the optimiser of ``[training]``; the papers' is SGD.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy.average import Averaging
from fedkd.strategies.base import KnowledgeStrategy, Replies, StrategyOptions
from fedkd.work import Fit, Load, Parameters, Share, Step


class AverageOptions(StrategyOptions):
    """Options of methods whose server averages parameters, and makes nothing else of them."""

    clipping_norm: float | None = Field(None, gt=0)
    """L2 norm that each client's change of the shared parameters is clipped to; clients then count
    the same, whatever their samples. None for no clipping."""
    noise_multiplier: float = Field(0.0, ge=0)
    """Standard deviation of the noise on the sum of the clipped changes, in units of
    ``clipping_norm``; 0 for none."""


class FedAvg(KnowledgeStrategy):
    """Averages the clients' parameters, weighted by their samples (McMahan et al. 2017)."""

    Options = AverageOptions
    one_architecture = True

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse noise without clipping, and clipping of what is no parameter."""
        super().check(experiment)
        options = cls.read_options(experiment)
        if not isinstance(options, AverageOptions):
            return
        norm, noise = options.clipping_norm, options.noise_multiplier
        if noise and norm is None:
            raise FedkdError(
                f"strategy.noise_multiplier = {noise:g} is not allowed without "
                "strategy.clipping_norm, which the noise is in units of"
            )
        if norm is not None and experiment.student.norm == "batch":
            raise FedkdError(
                f"student.norm = 'batch' is not allowed with strategy.clipping_norm = {norm:g}: "
                "its statistics are no parameters; allowed: 'none', 'group'"
            )
        if norm is not None and experiment.training.part:
            raise FedkdError(
                f"training.part = {list(experiment.training.part)} is not allowed with "
                f"strategy.clipping_norm = {norm:g}: noise would change blocks that do not learn; "
                "freeze them in the student (requires_grad = False)"
            )

    def setup(self) -> None:
        """The global student, freshly initialised."""
        self.parameters = self.initial_parameters()

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the global student on private data and send it back."""
        return [Load(self.parameters), self.local_fit(), Share()]

    def local_fit(self) -> Fit:
        """The client's update."""
        return Fit()

    def averaging(self, round: int) -> Averaging | None:
        """Clipping and noise, as the options have them."""
        options = self.options
        if not isinstance(options, AverageOptions) or options.clipping_norm is None:
            return None
        learning = {
            name
            for name, parameter in self.initial_student().named_parameters()
            if parameter.requires_grad
        }
        frozen = self.parameters.keys() - learning
        return Averaging(self.parameters, options.clipping_norm, options.noise_multiplier, frozen)

    def fuse(self, round: int, replies: Replies) -> None:
        """``sum_n samples_n / samples * parameters_n``, or what :meth:`averaging` made of it."""
        given, options = replies.parameters(), self.options
        if isinstance(options, AverageOptions) and options.clipping_norm is not None:
            self.parameters = given[0]
            return
        self.parameters = average_of(self, replies)

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """Every client is tested with the global student."""
        return [Load(self.parameters)]


def average_of(strategy: KnowledgeStrategy, replies: Replies) -> Parameters:
    """The average of what was sent, weighted by samples; the run is warned of what has none."""
    given = replies.parameters()
    for name, first in given[0].items():
        whole = not (first.is_floating_point() or first.is_complex())
        counts = whole and not name.endswith("num_batches_tracked")
        if counts and any(not torch.equal(first, client[name]) for client in given[1:]):
            strategy.warn_once(
                name,
                f"{name} holds whole numbers, which are not averaged: all clients get "
                f"those of the first, client {replies.clients[0]}",
            )
    return average(given, replies.samples)


def average(parameters: Sequence[Parameters], weights: torch.Tensor) -> Parameters:
    """Weighted mean of N sets of named arrays, summed in the order given.

    ``weights`` is (N,) and need not sum to 1. What is the same in all, as what is frozen, stays as
    it is to the last bit. Counters (whole numbers) are taken from the first.
    """
    shares = (weights / weights.sum()).tolist()
    mean = {}
    for name, first in parameters[0].items():
        counter = not (first.is_floating_point() or first.is_complex())
        if counter or all(torch.equal(first, client[name]) for client in parameters[1:]):
            mean[name] = first.clone()
            continue
        total = torch.zeros_like(first)
        for share, client in zip(shares, parameters, strict=True):
            total.add_(client[name], alpha=share)
        mean[name] = total
    return mean


def refuse_noise(experiment: Experiment, why: str) -> None:
    """Refuse DP-SGD on clients, where the method has private samples act beside their gradients.

    Raises
    ------
    FedkdError
        There is noise.
    """
    if noise := experiment.training.dp.noise_multiplier:
        raise FedkdError(
            f"training.dp.noise_multiplier = {noise:g} is not allowed with strategy.name = "
            f"{experiment.strategy.name!r}: {why}"
        )


def refuse_part(experiment: Experiment, why: str) -> None:
    """Refuse ``training.part`` where the method itself says which blocks learn.

    Raises
    ------
    FedkdError
        It is set.
    """
    if part := experiment.training.part:
        raise FedkdError(
            f"training.part = {list(part)} is not allowed with strategy.name = "
            f"{experiment.strategy.name!r}: {why}"
        )
