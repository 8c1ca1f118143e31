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
from typing import ClassVar

from pydantic import Field

from fedkd import registry
from fedkd.distillation.objectives import ObjectiveOption
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.strategies.base import Knowledge, KnowledgeStrategy, Replies, StrategyOptions
from fedkd.strategies.fedavg import average
from fedkd.work import CrossEntropy, Evaluate, Fit, Hold, Load, Peer, Share, Step, Term


class SharedStudentOptions(StrategyOptions):
    """Options of methods with a private student and a shared one on each client."""

    shared_model: str = ""
    """The shared student's architecture, a name of ``fedkd list students``; empty: the clients'
    own."""
    objective: ObjectiveOption = "forward_kl"
    """How both learn from each other, of ``fedkd list objectives``."""


class FML(KnowledgeStrategy):
    """Private students learn mutually with a shared, averaged one (Shen et al. 2020)."""

    class Options(SharedStudentOptions):
        """Keys of ``[strategy]``."""

        alpha: float = Field(0.5, ge=0, le=1)
        """Weight of hard labels for the private student; 1 is local training."""
        beta: float = Field(0.5, ge=0, le=1)
        """Weight of hard labels for the meme; 1 is FedAvg of memes."""

    shared: ClassVar[str] = "meme"
    """What the shared student is called."""
    knowledge = Knowledge("logits", labelled=True)

    def setup(self) -> None:
        """The shared student, freshly initialised; the same weights that clients hold at first."""
        self.average = self.initial_parameters(self.options.shared_model)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse shared students that could not be averaged."""
        super().check(experiment)
        check_shared_model(experiment, cls.read_options(experiment).shared_model)

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Learn from the labels and from each other, batch by batch; send the shared student."""
        own, shared = self.terms()
        peer = Peer(self.shared, shared, key=f"{self.shared}_loss")
        return [*self.given(), Fit(terms=own, together=(peer,)), Share(student=self.shared)]

    def given(self) -> list[Step]:
        """The averaged student, beside the private one."""
        return [
            Hold(self.shared, model=self.options.shared_model),
            Load(self.average, student=self.shared),
        ]

    def terms(self) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
        """What the private student learns by, and what the shared one does."""
        alpha, beta = self.options.alpha, self.options.beta
        return (
            (CrossEntropy(alpha), self.soft(self.shared, weight=1 - alpha)),
            (CrossEntropy(beta), self.soft("own", weight=1 - beta)),
        )

    def fuse(self, round: int, replies: Replies) -> None:
        """Average the shared students."""
        self.average = average(replies.parameters(), replies.samples)

    def score(self, round: int, client: int) -> Sequence[Step]:
        """The averaged student, beside the private one."""
        return [*self.given(), Evaluate(key=self.shared, student=self.shared)]


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
