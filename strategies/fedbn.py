"""FedBN: Li, Jiang, Zhang, Kamp & Dou, ICLR 2021 (arXiv 2102.07623).

FedAvg in which normalisation layers stay personal, their statistics included, as clients' features
are distributed unlike each other. With u_n the parameters of these layers and w_n all others::

    client n   (w_n, u_n), trained on private data from (w, own u_n);  w_n, sent
    server     w = sum_n samples_n / samples * w_n
"""

from __future__ import annotations

from torch import nn

from fedkd.strategies.base import Replies, StrategyOptions
from fedkd.strategies.fedavg import FedAvg

NORMALISATION: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # batch and instance normalisation
    *(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
)
"""Layers that stay personal: torch's own, and classes derived from them."""


class FedBN(FedAvg):
    """FedAvg, but for normalisation layers, which stay personal (Li et al. 2021).

    Departures: steps share whole blocks, so that clients send their normalisation layers too, which
    the server sets aside: ``bytes_up`` and the ledger count them. Group and layer normalisation
    stay personal as batch normalisation does, of which the paper speaks.
    """

    class Options(StrategyOptions):
        """There are no keys of ``[strategy]``."""

    def setup(self) -> None:
        """The global student, without its normalisation layers."""
        super().setup()
        layers = self.initial_student().named_modules(remove_duplicate=False)
        personal = tuple(f"{name}." for name, layer in layers if isinstance(layer, NORMALISATION))
        self.common = [name for name in self.parameters if not name.startswith(personal)]
        self.parameters = {name: self.parameters[name] for name in self.common}
        self.is_fedavg = not personal

    def fuse(self, round: int, replies: Replies) -> None:
        """Average what is of no normalisation layer."""
        super().fuse(round, replies)
        self.parameters = {name: self.parameters[name] for name in self.common}
        if self.is_fedavg:
            self.warn_once(
                "no normalisation",
                "FedBN: this student has no normalisation layer, so it equals FedAvg; set "
                "student.norm",
            )
