"""FedLC: Zhang, Li, Li, Xu, Wu, Ding & Wu, ICML 2022 (arXiv 2209.00189), logits calibration.

Where clients hold few samples of some classes, their students forget these. FedLC keeps a margin
that is the larger, the rarer a class is. With n_c the client's samples of class c::

    client n   minimise CE(f(x) - tau * n^(-1/4), y) from the global w;   w_n, sent
    server     w = sum_n samples_n / samples * w_n

Label counts stay on the client. A class that it has no sample of takes no part in its loss.

Departures: the sum below the fraction of the softmax has all classes, as in cross-entropy, where
the paper's leaves out the true one and its loss has no lower bound; so do the public codes. The
authors' code was not read.
"""

from __future__ import annotations

from pydantic import Field

from fedkd.experiment import Experiment
from fedkd.strategies.fedavg import AverageOptions, FedAvg, refuse_noise
from fedkd.work import CrossEntropy, Fit, Prior


class FedLC(FedAvg):
    """FedAvg, with larger margins for the classes a client has few of (Zhang et al. 2022)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        tau: float = Field(1.0, ge=0)
        """Size of the margins; 0 is FedAvg."""

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse DP-SGD, whose noise does not hide label counts."""
        super().check(experiment)
        if cls.read_options(experiment).tau:
            refuse_noise(experiment, "each private label moves the gradients of all samples")

    def local_fit(self) -> Fit:
        """Cross-entropy of calibrated logits."""
        tau = self.options.tau
        return Fit(terms=(CrossEntropy(prior=Prior("margin", tau) if tau else None),))
