"""Ditto: Li, Hu, Beirami & Smith, 2021 (arXiv 2012.04221), algorithm 1.

Beside the global student w every client has a personal one, v_n, held near w::

    client n   v_n = argmin F_n(v) + lam / 2 * |v - w|^2, from the former v_n     kept
               w_n = argmin F_n(w), from w                                        sent
    server     w   = sum_n samples_n / samples * w_n

The two are independent of each other within a round, so their order is free. Clients are tested
with v_n; one that has not taken part yet has none, and is tested with w.

Departures: all v_n start from the w that the client first receives, where the paper starts them
from any one point.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fedkd.options import Epochs
from fedkd.strategies.base import Replies
from fedkd.strategies.fedavg import AverageOptions, FedAvg
from fedkd.work import CrossEntropy, Fit, Hold, Load, Proximal, Share, Step


class Ditto(FedAvg):
    """FedAvg, and beside it personal students held near the global one (Li et al. 2021)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        lam: float = Field(1.0, ge=0)
        """Pull towards the global student; 0 is local training. The paper has clients choose from
        0.1, 1 and 2 on validation data and takes 1 where these are few and there is no strong
        attack."""
        personal_epochs: Epochs | None = None
        """Passes over the private data for the personal student; not given: as for the global."""

    def setup(self) -> None:
        """The global student, and who has a personal one."""
        super().setup()
        self.personal: list[int] = []

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the personal student near the global one, then the global one; send the latter."""
        w, near = self.parameters, Proximal(self.options.lam, anchor=self.parameters)
        epochs = self.options.personal_epochs
        return [
            *([] if client in self.personal else [Load(w)]),
            Fit(terms=(CrossEntropy(), near), epochs=epochs),
            Hold("global"),
            Load(w, student="global"),
            Fit(key="global_loss", student="global"),
            Share(student="global"),
        ]

    def fuse(self, round: int, replies: Replies) -> None:
        """Average the global students. Who was left out begins again from the global one."""
        super().fuse(round, replies)
        self.personal = sorted({*self.personal, *replies.clients})

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """The personal student, where there is one."""
        return [] if client in self.personal else super().deploy(round, client)
