"""FedAvg: McMahan, Moore, Ramage, Hampson & Aguera y Arcas, 2017 (arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedkd.work import Fit, Load, Parameters, Share, Step
from strategies.base import KnowledgeStrategy, Replies


class FedAvg(KnowledgeStrategy):
    """Averages the clients' parameters, weighted by their samples (McMahan et al. 2017)."""

    one_architecture = True

    def setup(self) -> None:
        """The global student, freshly initialised."""
        self.parameters = self.initial_parameters()

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the global student on private data and send it back."""
        return [Load(self.parameters), self.local_fit(), Share()]

    def local_fit(self) -> Fit:
        """The client's update."""
        return Fit()

    def fuse(self, round: int, replies: Replies) -> None:
        """``sum_n samples_n / samples * parameters_n``."""
        self.parameters = average(replies.parameters(), replies.samples)

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """Every client is tested with the global student."""
        return [Load(self.parameters)]


def average(parameters: Sequence[Parameters], weights: torch.Tensor) -> Parameters:
    """Weighted mean of N sets of named arrays, summed in the order given.

    ``weights`` is (N,) and need not sum to 1. Counters (whole numbers) are taken from the first.
    """
    shares = (weights / weights.sum()).tolist()
    mean = {}
    for name, first in parameters[0].items():
        if not first.is_floating_point():
            mean[name] = first.clone()
            continue
        total = torch.zeros_like(first)
        for share, client in zip(shares, parameters, strict=True):
            total.add_(client[name], alpha=share)
        mean[name] = total
    return mean
