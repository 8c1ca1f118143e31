"""FedPer: Arivazhagan, Aggarwal, Singh & Choudhary, 2019 (arXiv 1912.00818).

Base layers are averaged, personalisation layers stay where they are, and a client trains both
together::

    client n   w_n = (base, own personal layers), trained on private data;  its base, sent
    server     base = sum_n samples_n / samples * base_n

Clients that have not taken part yet are tested with the averaged base too, below personal layers
that nobody trained.

Departures: none known.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fedkd.errors import FedkdError
from fedkd.strategies.fedavg import AverageOptions, FedAvg
from fedkd.work import Fit, Load, Share, Step


class FedPer(FedAvg):
    """Averages the lower blocks; each client keeps its upper ones (Arivazhagan et al. 2019)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        personal_blocks: int = Field(1, ge=1)
        """Number of last blocks that stay personal; 1 is the head alone."""

    def setup(self) -> None:
        """The base that all clients start from, and the names of its blocks."""
        student = self.initial_parameters()
        blocks = list(dict.fromkeys(_block(name) for name in student))
        personal = self.options.personal_blocks
        if personal >= len(blocks):
            raise FedkdError(
                f"strategy.personal_blocks = {personal} is not allowed: this student has "
                f"{len(blocks)} blocks ({', '.join(blocks)}) and one at least is shared"
            )
        self.base, self.personal = tuple(blocks[:-personal]), tuple(blocks[-personal:])
        self.parameters = {name: w for name, w in student.items() if _block(name) in self.base}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the common base under the own head, and send back the base."""
        return [Load(self.parameters), *self.local_fits(), Share(self.base)]

    def local_fits(self) -> Sequence[Fit]:
        """The client's update: base and personal blocks together."""
        return [Fit()]


def _block(name: str) -> str:
    """The block that a parameter belongs to."""
    return name.partition(".")[0]
