"""FedNTD: Lee, Jeong, Shin, Bae & Yun, NeurIPS 2022 (arXiv 2106.03097), not-true distillation.

What a client forgets by training on its own classes are the others. It is held to what the global
student says of these, and only of these, so that it is free to learn its labels::

    client n   minimise CE + beta KL(p without y || q without y)  from the global w;   w_n, sent
               p = softmax(f_w(x) / tau), q = softmax(f(x) / tau), y the true class
    server     w = sum_n samples_n / samples * w_n

There is no factor tau^2 here, as there is with other objectives.

Departures: the global student is asked once, when training begins, about the samples as they are:
with ``data.augment`` the client learns what it says of the plain image.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedkd.distillation.objectives import ObjectiveOption, takes_probabilities
from fedkd.options import OnlyWith
from fedkd.strategies.base import Knowledge
from fedkd.strategies.fedavg import AverageOptions, FedAvg
from fedkd.work import CrossEntropy, Fit


class FedNTD(FedAvg):
    """FedAvg, held to what the global student says of the classes not true (Lee et al. 2022)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        beta: float = Field(1.0, ge=0)
        """Weight of the distillation term; 0 is FedAvg."""
        tau: Annotated[float, OnlyWith("objective", takes_probabilities)] = Field(3.0, gt=0)
        """Temperature of both sides."""
        objective: ObjectiveOption = "not_true"
        """Of ``fedkd list objectives``; another one distils the global student in another way, as
        ``{name = "dkd", beta = 2.0}`` does."""

    knowledge = Knowledge("logits", labelled=True)

    def local_fit(self) -> Fit:
        """``CE + beta * NTD``; the student has just been loaded, so it is its own teacher."""
        options = self.options
        if not options.beta:
            return Fit()
        teacher = self.soft("own", options.tau, weight=options.beta)
        return Fit(terms=(CrossEntropy(), teacher))
