"""KT-pFL: Zhang, Guo, Ma, Wang, Xu & Wu, 2021 (arXiv 2111.02862): parameterised knowledge transfer.

Every client has a target of its own, a mixture of all clients' soft labels whose coefficients c are
learned along with the students. A round, with N clients and M transfer samples::

    client n   train on private data;  F_n[x] = softmax(f_n(x) / tau)            (M, C), sent
    server     c = argmin sum_n mean_x KL(F_n || sum_m c_nm F_m)  +  rho |c - 1/N|^2
               G_n[x] = sum_m c_nm F_m[x]                                        (M, C), sent to n
    client n   minimise tau^2 mean_x KL(G_n[x] || softmax(f_n(x) / tau))

c starts uniform and is kept from round to round; its rows stay on the probability simplex. Left to
itself a row would run to the client's own soft labels, which fit best: rho is what keeps it open.

After the paper's description, without its appendix. Choices of its own: ``coefficient_steps`` of
proximal gradient descent, the penalty taken implicitly so that no rho is too large, then Euclidean
projection onto the simplex. Where only some take part, their rows and columns are scaled to sum to
1, updated, and put back in with the mass that they had: what others have in c does not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from fedkd.distillation.objectives import SMALLEST
from fedkd.distillation.targets import mix, onto_simplex
from fedkd.options import MOST
from fedkd.strategies.base import DistillOptions, Headline, KnowledgeStrategy, Replies
from fedkd.work import Fit, Predict, Soft, Step


class KTpFL(KnowledgeStrategy):
    """Learns, for each client, with which weights it learns from whom (Zhang et al. 2021)."""

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        rho: float = Field(0.7, ge=0)
        """Pull of the coefficients towards uniform; a large value is uniform fusion."""
        coefficient_lr: float = Field(0.05, gt=0)
        """Step size of the coefficients' descent."""
        coefficient_steps: int = Field(10, ge=0, le=MOST)
        """Steps of that descent, a round; 0 is uniform fusion."""
        tau: float = Field(1.0, gt=0)
        """Temperature of the soft labels and of the distillation."""

    needs_transfer_set = True
    sends_soft_labels = True
    headline = Headline("local")

    def setup(self) -> None:
        """Uniform coefficients (N, N) between all clients, and no targets yet."""
        clients = self.experiment.data.clients
        self.coefficients = torch.full((clients, clients), 1 / clients, dtype=torch.float64)
        self.weights = torch.zeros(0, 0)
        self.fused: dict[int, Tensor] = {}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data, then send soft labels on the transfer set."""
        return [Fit(), Predict(temperature=self.options.tau)]

    def fuse(self, round: int, replies: Replies) -> None:
        """Update the coefficients of those who took part, and mix a target for each."""
        options, labels = self.options, replies.stack()
        present = torch.tensor(replies.clients)
        rows = self.coefficients[present[:, None], present]
        mass = rows.sum(1, keepdim=True)
        known = torch.where(mass > 0, rows / mass, 1 / len(present))
        self.weights = descend(
            known, labels, options.rho, options.coefficient_lr, options.coefficient_steps
        )
        self.coefficients[present[:, None], present] = mass * self.weights
        self.fused = dict(zip(replies.clients, mix(self.weights, labels), strict=True))

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Distil the client's own target."""
        return [self.distil(Soft(self.fused[client], temperature=self.options.tau))]

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> dict[str, Any]:
        """Coefficients (N, N) over those who took part, and what they amount to."""
        return {
            "contributors": float((1 / self.weights.square().sum(1)).mean()),
            "self_weight": float(self.weights.diagonal().mean()),
            "weights": self.weights.tolist(),
        }


def objective(coefficients: Tensor, labels: Tensor, rho: float) -> float:
    """``sum_n mean_x KL(F_n || sum_m c_nm F_m) + rho |c - 1/N|^2``, from (N, N) and (N, M, C)."""
    given = labels.double().flatten(1)
    mixed = (coefficients @ given).clamp_min(SMALLEST)
    apart = (given * (given.clamp_min(SMALLEST) / mixed).log()).sum() / labels.shape[1]
    return float(apart + rho * (coefficients - 1 / len(labels)).square().sum())


def descend(coefficients: Tensor, labels: Tensor, rho: float, lr: float, steps: int) -> Tensor:
    """``steps`` of descent on :func:`objective` from coefficients (N, N), labels (N, M, C)."""
    given, uniform = labels.double().flatten(1), 1 / len(labels)
    for _ in range(steps):
        mixed = (coefficients @ given).clamp_min(SMALLEST)
        slope = -(given / mixed) @ given.T / labels.shape[1]
        # The minimiser of rho |c - 1/N|^2 + |c - moved|^2 / (2 lr).
        moved = coefficients - lr * slope
        coefficients = onto_simplex(uniform + (moved - uniform) / (1 + 2 * lr * rho))
    return coefficients
