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

from collections.abc import Sequence

from fedkd.experiment import Experiment
from fedkd.strategies.base import KnowledgeStrategy, Replies, StrategyOptions
from fedkd.strategies.fedavg import average
from fedkd.strategies.fml import check_shared_model
from fedkd.work import CrossEntropy, Fit, Hold, Load, Peer, Share, Soft, Step


class FedKD(KnowledgeStrategy):
    """Mentors and a shared, averaged mentee teach each other what they know (Wu et al. 2022)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        shared_model: str = ""
        """The mentee's architecture, a name of ``fedkd list students``; empty: the clients' own."""

    def setup(self) -> None:
        """The mentee, freshly initialised; the same weights that clients hold at first."""
        self.mentee = self.initial_parameters(self.options.shared_model)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse mentees that could not be averaged."""
        super().check(experiment)
        check_shared_model(experiment, cls.read_options(experiment).shared_model)

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Learn from the labels and from each other, batch by batch; send the mentee."""
        terms = (CrossEntropy(), Soft("own", adaptive=True))
        mentee = Peer("mentee", terms, key="mentee_loss")
        return [
            Hold("mentee", model=self.options.shared_model),
            Load(self.mentee, student="mentee"),
            Fit(terms=(CrossEntropy(), Soft("mentee", adaptive=True)), together=(mentee,)),
            Share(student="mentee"),
        ]

    def fuse(self, round: int, replies: Replies) -> None:
        """Average the mentees."""
        self.mentee = average(replies.parameters(), replies.samples)
