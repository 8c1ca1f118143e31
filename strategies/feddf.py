"""FedDF: Lin, Kong, Stich & Jaggi, 2020 (arXiv 2006.07242), algorithm 1.

The average of the clients' students is only where the server starts: it then distils their
ensemble on the unlabelled transfer set, with x over its samples::

    client n   w_n = training on private data, from the global w                    sent
    server     w   = sum_n samples_n / samples * w_n
               minimise KL(softmax(mean_n f(w_n; x)) || softmax(f(w; x)))           over w

The server's optimiser is Adam, as in the paper, whatever the clients use, unless ``[server]`` has
another. All clients are tested with the server's student, which is what the paper scores.

Departures: a fixed number of epochs and a constant learning rate in the place of early stopping on
validation data and cosine annealing, so where the ensemble is worse than the average it harms.
Prototypes of several architectures (the paper's algorithm 3) are left out.
"""

from __future__ import annotations

import torch

from fedkd.options import Epochs
from fedkd.strategies.base import Replies, ServerTable, StrategyOptions
from fedkd.strategies.fedavg import FedAvg
from fedkd.work import Samples, Soft


class FedDF(FedAvg):
    """FedAvg, then the server distils the clients' ensemble into the average (Lin et al. 2020)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        server_epochs: Epochs = 5.0
        """Passes over the transfer set in which the server distils, a round; 0 is FedAvg."""

    needs_transfer_set = True
    server_training = ServerTable(optimiser="adam", lr=1e-3, batch_size=128)

    def setup_server(self) -> None:
        """One student: through it go the uploaded parameters, and then the average."""
        self.server.add("global", self.initial_student)

    def fuse(self, round: int, replies: Replies) -> None:
        """Average, then distil the ensemble of what was uploaded."""
        super().fuse(round, replies)
        options, ensemble = self.options, Soft(self.ensemble(replies))
        self.server.load("global", self.parameters)
        self.server.fit(
            "global",
            round,
            Samples(self.transfer),
            [ensemble],
            options.server_epochs,
        )
        self.parameters = self.server.parameters("global")

    def ensemble(self, replies: Replies) -> torch.Tensor:
        """``softmax(mean_n f_n)`` on the transfer set, (M, C)."""
        total = torch.zeros(1, self.task.classes)
        for parameters in replies.parameters():
            self.server.load("global", parameters)
            total = total + self.server.predict("global", self.transfer)
        return (total / len(replies)).softmax(1)
