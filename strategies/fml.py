"""FML, federated mutual learning: Shen et al., 2020 (arXiv 2006.16765).

A client's private student, of any architecture, and a small shared one, the *meme*, teach each
other; only memes are averaged::

    client n   meme = the averaged one
               for each batch, both at once (deep mutual learning):
                 own learns by  alpha CE(own)  + (1 - alpha) KL(meme || own)
                 meme learns by beta  CE(meme) + (1 - beta)  KL(own || meme);  meme, sent
    server     meme = sum_n samples_n / samples * meme_n

The soft labels that each learns from are the other's of the same batch, before either has learned
from it; no gradient goes through them.

Departures: none known.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fedkd import registry
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.strategies.base import KnowledgeStrategy, Replies, StrategyOptions
from fedkd.strategies.fedavg import average
from fedkd.work import CrossEntropy, Evaluate, Fit, Hold, Load, Peer, Share, Soft, Step


class FML(KnowledgeStrategy):
    """Private students learn mutually with a shared, averaged one (Shen et al. 2020)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        alpha: float = Field(0.5, ge=0, le=1)
        """Weight of hard labels for the private student; 1 is local training."""
        beta: float = Field(0.5, ge=0, le=1)
        """Weight of hard labels for the meme; 1 is FedAvg of memes."""
        shared_model: str = ""
        """The meme's architecture, a name of ``fedkd list students``; empty: the clients' own."""

    def setup(self) -> None:
        """The meme, freshly initialised; the same weights that clients hold at first."""
        self.meme = self.initial_parameters(self.options.shared_model)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse memes that could not be averaged."""
        super().check(experiment)
        check_shared_model(experiment, cls.read_options(experiment).shared_model)

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Learn from the labels and from each other, batch by batch; send the meme."""
        alpha, beta = self.options.alpha, self.options.beta
        meme = Peer("meme", (CrossEntropy(beta), Soft("own", weight=1 - beta)), key="meme_loss")
        return [
            Hold("meme", model=self.options.shared_model),
            Load(self.meme, student="meme"),
            Fit(terms=(CrossEntropy(alpha), Soft("meme", weight=1 - alpha)), together=(meme,)),
            Share(student="meme"),
        ]

    def fuse(self, round: int, replies: Replies) -> None:
        """Average the memes."""
        self.meme = average(replies.parameters(), replies.samples)

    def score(self, round: int, client: int) -> Sequence[Step]:
        """The averaged meme, beside the private student."""
        return [
            Hold("meme", model=self.options.shared_model),
            Load(self.meme, student="meme"),
            Evaluate(key="meme", student="meme"),
        ]


def check_shared_model(experiment: Experiment, model: str) -> None:
    """Refuse a ``strategy.shared_model`` that would not be the same for all clients.

    Raises
    ------
    FedkdError
        It is empty and clients have different architectures, or no student has its name.
    """
    models, known = {*experiment.student.models}, registry.names("students")
    if not model and len(models) > 1:
        raise FedkdError(
            f"strategy.shared_model = '' is not allowed with student.models = {sorted(models)}:"
            f" all clients need the same one; allowed: {', '.join(known)}"
        )
    if model and model not in known:
        raise FedkdError(
            f"strategy.shared_model = {model!r} is not known; known: {', '.join(known)}"
        )
