"""FedRep: Collins, Hassani, Mokhtari & Shakkottai, 2021 (arXiv 2102.07078), algorithm 1.

As FedPer shares a representation below personal heads, but learns the two one after the other::

    client n   h_n   many updates of the head, the received representation held fixed
               phi_n updates of the representation, that head held fixed;  phi_n, sent
    server     phi = mean of the phi_n

Departures: the mean is weighted by samples, as in the other methods that average here; each of the
two parts begins with a fresh optimiser, unless ``training.keep_optimiser``; blocks that are held
fixed neither drop anything nor, with ``student.norm = "batch"``, have their statistics follow the
data (the authors' code lets them).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fedkd.experiment import Experiment
from fedkd.options import Epochs
from fedkd.strategies.fedavg import AverageOptions, refuse_part
from fedkd.strategies.fedper import FedPer
from fedkd.work import Fit


class FedRep(FedPer):
    """Shares a representation: first the personal head learns, then the body (Collins 2021)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        personal_blocks: int = Field(1, ge=1)
        """Number of last blocks that stay personal; 1 is the head alone."""
        head_epochs: Epochs = 10.0
        """Passes over the private data in which the personal blocks learn, a round."""
        body_epochs: Epochs = 1.0
        """Passes in which the shared blocks learn, after them."""

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse another say in which blocks learn."""
        super().check(experiment)
        refuse_part(experiment, "it trains the head, then the body")

    def local_fits(self) -> Sequence[Fit]:
        """The head on the received body, then the body below that head."""
        options = self.options
        return [
            Fit(epochs=options.head_epochs, part=self.personal, key="head_loss"),
            Fit(epochs=options.body_epochs, part=self.base),
        ]
