"""FedKD: Wu, Wu, Lyu, Huang & Xie, 2022 (Nature Communications 13, 2032).

A client's *mentor*, of any architecture, and a small shared *mentee* teach each other; only mentees
are averaged. How much they teach goes by how well they do on the batch at hand::

    client n   mentee = the averaged one
               for each batch, both at once, with S = CE(mentor) + CE(mentee):
                 mentor learns by  CE(mentor) + KL(mentee || mentor) / S
                 mentee learns by  CE(mentee) + KL(mentor || mentee) / S
               of each matrix of what has changed in mentee: U Sigma V, its first K singular values
               alone, as few as hold a share T of the sum of their squares; sent
    server     mentee = mentee + sum_n samples_n / samples * change_n

T rises from ``energy_start`` in the first round to ``energy_end`` in the last. Sigma goes into one
of the two others, and a matrix as it is where that is smaller.

Departures: what is factorised is the change of a round, not the gradient of a step. The server
sends the mentee as it is, where the paper factorises the mean of the gradients again. No gradient
goes through S, nor through the soft labels that are learned from. Of what the paper distils, hidden
states and attention are left out: they would need a projection that learns with the students.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from fedkd.compression import LowRank
from fedkd.experiment import Experiment
from fedkd.strategies.fedavg import refuse_noise
from fedkd.strategies.fml import FML, SharedStudentOptions
from fedkd.work import CrossEntropy, Share, Step, Term


class FedKD(FML):
    """Mentors and a shared, averaged mentee teach each other what they know (Wu et al. 2022)."""

    class Options(SharedStudentOptions):
        """Keys of ``[strategy]``."""

        energy_start: float = Field(0.95, gt=0, le=1)
        """Share of the sum of squared singular values that is sent in the first round."""
        energy_end: float = Field(0.98, gt=0, le=1)
        """Share that is sent in the last round; 1 sends all."""

    shared: ClassVar[str] = "mentee"

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse DP-SGD, which needs a loss of each sample by itself."""
        super().check(experiment)
        refuse_noise(experiment, "how much a sample teaches goes by its whole batch")

    def terms(self) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
        """Both by the labels, and by each other as far as both know the batch."""
        return (
            (CrossEntropy(), self.soft(self.shared, adaptive=True)),
            (CrossEntropy(), self.soft("own", adaptive=True)),
        )

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Learn from the labels and from each other; send what has changed, at low rank."""
        energy = LowRank(self.energy(round))
        return [
            replace(step, encoding=energy) if isinstance(step, Share) else step
            for step in super().learn(round, client)
        ]

    def energy(self, round: int) -> float:
        """The share T of squared singular values that is sent in a round."""
        start, end = self.options.energy_start, self.options.energy_end
        return start + (end - start) * (round - 1) / max(1, self.experiment.rounds - 1)
