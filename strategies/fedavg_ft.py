"""FedAvg with fine-tuning: the global student, trained further on each client's own data.

The plainest of the personalised baselines: Wang, Mathews, Kiddon, Eichner, Beaufays & Ramage, 2019
(arXiv 1910.10252) measure it client by client; Cheng, Chadha & Duchi, 2021 (arXiv 2108.07313)
analyse it as fine-tuned federated averaging. A round is FedAvg's; then, for testing alone::

    client n   w_n = E epochs of training on private data, from the global w;  tested with w_n

The fine-tuned student is not kept, and no round depends on it.

Departures: none known. It is trained with the optimiser and learning rate of ``[training]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.options import Epochs
from fedkd.strategies.fedavg import AverageOptions, FedAvg
from fedkd.work import Fit, Step


class FedAvgFT(FedAvg):
    """FedAvg, its global student fine-tuned by each client before it is tested."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        finetune_epochs: Epochs = 1.0
        """Passes over the private data before a test; 0 is FedAvg."""

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """The global student, fine-tuned."""
        epochs = self.options.finetune_epochs
        return [
            *super().deploy(round, client),
            Fit(epochs=epochs, min_steps=0, key="finetune_loss"),
        ]
