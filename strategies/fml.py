"""FML, federated mutual learning: Shen et al., 2020 (arXiv 2006.16765).

A client's private student, of any architecture, and a small shared one, the *meme*, teach each
other; only memes are averaged::

    client n   meme = the averaged one
               minimise alpha CE(own)  + (1 - alpha) KL(meme || own)     over own
               minimise beta  CE(meme) + (1 - beta)  KL(own || meme)     over meme;  meme, sent
    server     meme = sum_n samples_n / samples * meme_n

Departure: the paper updates both students on every batch, each against the other's current soft
labels. Here they take turns: the private student learns from the meme as it is when its turn
begins, then the meme from the private student. ``turns`` splits the epochs of a round into that
many pieces, which comes closer; each turn begins with a fresh optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from fedkd import registry
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.strategies.base import KnowledgeStrategy, Replies, StrategyOptions
from fedkd.strategies.fedavg import average
from fedkd.work import CrossEntropy, Evaluate, Fit, Hold, Load, Share, Soft, Step


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
        turns: int = Field(1, ge=1, le=1_000)
        """Turns that each student takes in a round."""

    def setup(self) -> None:
        """The meme, freshly initialised; the same weights that clients hold at first."""
        self.meme = self.initial_parameters(self.options.shared_model)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse memes that could not be averaged."""
        super().check(experiment)
        model, models = cls.read_options(experiment).shared_model, {*experiment.student.models}
        known = registry.names("students")
        if not model and len(models) > 1:
            raise FedkdError(
                f"strategy.shared_model = '' is not allowed with student.models = {sorted(models)}:"
                f" all clients need the same one; allowed: {', '.join(known)}"
            )
        if model and model not in known:
            raise FedkdError(
                f"strategy.shared_model = {model!r} is not known; known: {', '.join(known)}"
            )

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Take turns in learning from the labels and from each other; send the meme."""
        alpha, beta, turns = self.options.alpha, self.options.beta, self.options.turns
        training = self.experiment.training
        pace = {
            "epochs": training.local_epochs / turns,
            "min_steps": math.ceil(training.min_steps / turns),
        }
        own = Fit(terms=(CrossEntropy(alpha), Soft("meme", weight=1 - alpha)), **pace)
        terms = (CrossEntropy(beta), Soft("own", weight=1 - beta))
        meme = Fit(terms=terms, key="meme_loss", student="meme", **pace)
        # The losses of the last turn have the usual names.
        names = [f"_turn{turn}" for turn in range(1, turns)] + [""]
        return [
            Hold("meme", model=self.options.shared_model),
            Load(self.meme, student="meme"),
            *(replace(fit, key=f"{fit.key}{name}") for name in names for fit in (own, meme)),
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
