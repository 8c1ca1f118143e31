"""FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar & Smith, 2020 (arXiv 1812.06127), equation 2.

FedAvg whose clients stay near the global w that they were sent::

    client n   w_n minimises CE + mu / 2 * |w_n - w|^2 on private data, from w;  sent
    server     w   = sum_n samples_n / samples * w_n

Departures: all clients do the same number of passes, where some of the paper's do less; the mean is
over who takes part, weighted by samples, where the paper draws clients by their samples and has
them count the same.
"""

from __future__ import annotations

from pydantic import Field

from fedkd.strategies.fedavg import AverageOptions, FedAvg
from fedkd.work import CrossEntropy, Fit, Proximal


class FedProx(FedAvg):
    """FedAvg with a penalty on distance from the global student (Li et al. 2020)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        mu: float = Field(0.01, ge=0)
        """Weight of the proximal term; 0 is FedAvg."""

    def local_fit(self) -> Fit:
        """``CE + mu / 2 * |w - w_global|^2``; the student has just been loaded, so it anchors."""
        return Fit(terms=(CrossEntropy(), Proximal(self.options.mu)))
