"""Self-distillation: Furlanello, Lipton, Tschannen, Itti & Anandkumar, 2018 (arXiv 1805.04770).

Born-again networks: a student learns from the one before it, which had the same data. Here a
generation is a round, and nobody hears of anybody else. With g_n the client's student of the round
before, and x its private samples::

    client n   minimise CE(f_n(x), y) + weight tau^2 KL(g || softmax(f_n(x) / tau))
               g = softmax(g_n(x) / tau);  nothing is sent

It is what a method that distils comes to where no knowledge is anybody else's: the control for what
a teacher adds by being soft, and not by knowing more.

Departures: a student goes on from its teacher's parameters, where the paper's begins anew in each
generation, unless ``restart``; the paper's ensembles of generations are left out. After the
description in the paper; the authors' code was not read.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fedkd.caveats import LOCAL_TRAINING
from fedkd.distillation.objectives import ObjectiveOption
from fedkd.strategies.base import Headline, Knowledge, KnowledgeStrategy, Replies, StrategyOptions
from fedkd.work import CrossEntropy, Fit, Hold, Load, Step


class SelfDistill(KnowledgeStrategy):
    """Local training, taught by one's own student of the round before (Furlanello et al. 2018)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        weight: float = Field(1.0, ge=0)
        """Of distillation, beside cross-entropy; 0 is local training."""
        tau: float = Field(1.0, gt=0)
        """Temperature of both sides; the paper has none."""
        objective: ObjectiveOption = "forward_kl"
        """How a student learns from the one before it, of ``fedkd list objectives``."""
        restart: bool = False
        """Whether the student of a generation begins anew, at parameters that all clients share."""

    headline = Headline("local")
    knowledge = Knowledge("logits", labelled=True)

    def setup(self) -> None:
        """Nobody has a student that has learned anything."""
        self.taught: list[int] = []

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data and, from the second time on, towards what one has said before."""
        options = self.options
        if not options.weight:
            self.warn_once(LOCAL_TRAINING, "strategy.weight = 0, so it equals local training")
        if not options.weight or client not in self.taught:
            return [Fit()]
        # Who goes on from its teacher is still the teacher when training begins.
        teacher = "before" if options.restart else "own"
        soft = self.soft(teacher, options.tau, weight=options.weight)
        learn = Fit(terms=(CrossEntropy(), soft))
        if not options.restart:
            return [learn]
        kept: list[Step] = [Hold("before"), Load("own", student="before")]
        return [*kept, Hold("first"), Load("first"), learn]

    def fuse(self, round: int, replies: Replies) -> None:
        """Note who has a student that can teach."""
        self.taught = sorted({*self.taught, *replies.clients})
