"""FedKD: Wu, Wu, Lyu, Huang & Xie, 2022 (Nature Communications 13, 2032).

A client's *mentor*, of any architecture, and a small shared *mentee* teach each other; only mentees
are averaged. How much they teach goes by how well they do on the batch at hand::

    client n   mentee = the averaged one
               for each batch, both at once, with S = CE(mentor) + CE(mentee):
                 mentor learns by  CE(mentor) + KL(mentee || mentor) / S
                 mentee learns by  CE(mentee) + KL(mentor || mentee) / S;  mentee, sent
    server     mentee = sum_n samples_n / samples * mentee_n

This is the mutual distillation of FedKD alone.

Departures: no gradient goes through S, nor through the soft labels that are learned from. Of what
the paper distils, hidden states and attention are left out: they would need a projection between
students that learns with them. Mentees travel as they are, not factorised by a singular value
decomposition.
"""

from __future__ import annotations

from typing import ClassVar

from fedkd.experiment import Experiment
from fedkd.strategies.fedavg import refuse_noise
from fedkd.strategies.fml import FML, SharedStudentOptions
from fedkd.work import CrossEntropy, Soft, Term


class FedKD(FML):
    """Mentors and a shared, averaged mentee teach each other what they know (Wu et al. 2022)."""

    class Options(SharedStudentOptions):
        """Keys of ``[strategy]``."""

    shared: ClassVar[str] = "mentee"

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse DP-SGD, which needs a loss of each sample by itself."""
        super().check(experiment)
        refuse_noise(experiment, "how much a sample teaches goes by its whole batch")

    def terms(self) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
        """Both by the labels, and by each other as far as both know the batch."""
        return (
            (CrossEntropy(), Soft(self.shared, adaptive=True)),
            (CrossEntropy(), Soft("own", adaptive=True)),
        )
