"""KT-pFL: Zhang, Guo, Ma, Wang, Xu & Wu, 2021 (arXiv 2111.02862): parameterised knowledge transfer.

Every client has a target of its own, a mixture of all clients' soft labels whose coefficients c are
learned along with the students. A round, with N clients and M transfer samples::

    client n   train on private data;  F_n[x] = softmax(f_n(x) / tau)            (M, C), sent
    server     G_n[x] = sum_m c_nm F_m[x]                                        (M, C), sent to n
    client n   minimise tau^2 mean_x KL(G_n[x] || softmax(f_n(x) / tau))
    server     c moves down sum_n samples_n / samples * mean_x KL(G_n[x] || F_n[x])
                              +  rho |c - 1/N|^2,  on the probability simplex

c starts uniform and is kept from round to round. Left to itself a row would run to the client's own
soft labels, which fit best: rho is what keeps it open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.distillation.objectives import SMALLEST
from fedkd.distillation.targets import mix, onto_simplex
from fedkd.options import MOST, OnlyWith
from fedkd.strategies.base import DistillOptions, Headline, Knowledge, KnowledgeStrategy, Replies
from fedkd.work import Fit, Predict, Step


class KTpFL(KnowledgeStrategy):
    """Learns, for each client, with which weights it learns from whom (Zhang et al. 2021).

    Departures: the coefficients move by the soft labels from before the distillation, so that they
    need not be sent a second time. Choices of its own: ``coefficient_steps`` of proximal gradient
    descent, clients counting the same under ``[release]``, the penalty taken implicitly so that no
    rho is too large, then Euclidean projection onto the simplex. ``coefficients = "official"`` is
    the rule of the authors' code instead: before the distillation, one step down the mean squared
    difference of G_n and F_n, as long as makes the mean of its slopes about 0.01, and then
    ``softmax(5 c)``; that code also distils before it trains on private data, which is not
    followed. Where only some clients take part, their rows and columns are scaled to sum to 1,
    updated, and put back in with the mass that they had: what others have in c does not move.
    """

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        coefficients: Literal["paper", "official"] = "paper"
        """How they are learned: as the paper describes it, or as the authors' code does."""
        rho: float = Field(0.7, ge=0)
        """Pull of the coefficients towards uniform; in the paper's rule a large value is uniform
        fusion."""
        coefficient_lr: Annotated[float, OnlyWith("coefficients", "paper")] = Field(0.05, gt=0)
        """Step size of the coefficients' descent."""
        coefficient_steps: Annotated[int, OnlyWith("coefficients", "paper")] = Field(
            10, ge=0, le=MOST
        )
        """Steps of that descent, a round; 0 is uniform fusion."""
        tau: float = Field(1.0, gt=0)
        """Temperature of the soft labels and of the distillation."""

    needs_transfer_set = True
    sends_soft_labels = True
    asks_rows = True
    headline = Headline("local")
    knowledge = Knowledge()

    def setup(self) -> None:
        """Uniform coefficients (N, N) between all clients, and no targets yet."""
        clients = self.experiment.data.clients
        self.coefficients = torch.full((clients, clients), 1 / clients, dtype=torch.float64)
        self.weights = torch.zeros(0, 0)
        self.fused: dict[int, Tensor] = {}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data, then send soft labels on the transfer set."""
        return [Fit(), Predict(self.asked, temperature=self.options.tau)]

    def fuse(self, round: int, replies: Replies) -> None:
        """Mix a target for each who took part; before or after it, update the coefficients."""
        options, labels = self.options, replies.stack()
        present = torch.tensor(replies.clients)
        rows = self.coefficients[present[:, None], present]
        mass = rows.sum(1, keepdim=True)
        known = torch.where(mass > 0, rows / mass, 1 / len(present))
        if options.coefficients == "official":
            self.weights = moved = official(known, labels, options.rho)
        else:
            # Of released labels no more may count than what is released.
            samples = (
                torch.ones(len(replies)) if self.experiment.release.active else replies.samples
            )
            shares = samples.double() / samples.sum()
            lr, steps = options.coefficient_lr, options.coefficient_steps
            self.weights, moved = known, descend(known, labels, shares, options.rho, lr, steps)
        self.coefficients[present[:, None], present] = mass * moved
        self.fused = dict(zip(replies.clients, mix(self.weights, labels), strict=True))

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Distil the client's own target."""
        return [self.distil(self.soft(self.fused[client], self.options.tau))]

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> dict[str, Any]:
        """Coefficients (N, N) over those who took part, and what they amount to."""
        return {
            "contributors": float((1 / self.weights.square().sum(1)).mean()),
            "self_weight": float(self.weights.diagonal().mean()),
            "weights": self.weights.tolist(),
        }


def objective(coefficients: Tensor, labels: Tensor, shares: Tensor, rho: float) -> float:
    """What the paper's rule lowers: ``sum_n s_n mean_x KL(G_n || F_n) + rho |c - 1/N|^2``.

    Coefficients are (N, N), labels (N, M, C), shares (N,) of the data.
    """
    given = labels.double().flatten(1).clamp_min(SMALLEST)
    mixed = coefficients @ given
    apart = (mixed * (mixed.clamp_min(SMALLEST) / given).log()).sum(1) / labels.shape[1]
    return float(shares @ apart + rho * (coefficients - 1 / len(labels)).square().sum())


def descend(
    coefficients: Tensor, labels: Tensor, shares: Tensor, rho: float, lr: float, steps: int
) -> Tensor:
    """``steps`` of descent on :func:`objective`, from and to coefficients (N, N)."""
    given, uniform = labels.double().flatten(1).clamp_min(SMALLEST), 1 / len(labels)
    for _ in range(steps):
        mixed = (coefficients @ given).clamp_min(SMALLEST)
        slope = shares[:, None] * ((mixed / given).log() + 1) @ given.T / labels.shape[1]
        # The minimiser of rho |c - 1/N|^2 + |c - moved|^2 / (2 lr).
        moved = coefficients - lr * slope
        coefficients = onto_simplex(uniform + (moved - uniform) / (1 + 2 * lr * rho))
    return coefficients


def official(coefficients: Tensor, labels: Tensor, rho: float) -> Tensor:
    """The next coefficients (N, N) by the rule of the authors' code, from labels (N, M, C).

    Down the slope of ``mean (G_n - F_n)^2 + rho mean (c_n - 1/N)^2``, each row as far as makes the
    mean size of its slopes about 0.01 (in factors of 5, five times at most), then softmax(5 c).
    """
    given, clients = labels.double().flatten(1), len(labels)
    slope = 2 * (coefficients @ given - given) @ given.T / given.shape[1]
    slope += 2 * rho * (coefficients - 1 / clients) / clients
    size = slope.abs().mean(1, keepdim=True)
    rate = torch.ones_like(size)
    for _ in range(5):
        down = torch.where(size > 0.01, 1 / 5, 1.0)
        up = torch.where(size * down < 0.01, 5.0, 1.0)
        size, rate = size * down * up, rate * down * up
    return (5 * (coefficients - rate * slope)).softmax(1)
