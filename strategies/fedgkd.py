"""FedGKD: Yao, Pan, Dai, Wan, Ding, Yu, Jin, Xu & Sun, 2021 (arXiv 2107.00051).

FedAvg whose former global students teach the clients, so that these do not drift apart. With w_t
the global student of round t, p(w; x) = softmax(f(w; x)), and x the client's private samples::

    server     v   = mean of the last M global students w_t, w_t-1, ...;  sent with w_t
    client n   w_n minimises CE + gamma / 2 * KL(p(v; x) || p(w; x)) over w, from w_t;  sent
    server     w_t+1 = sum_n samples_n / samples * w_n

With ``module`` the student's block of that name stands between v's own blocks, and that network is
what is held against v: m2mKD (Lo et al. 2024), whose frozen meta model is here the teacher itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from fedkd import students
from fedkd.distillation.objectives import ObjectiveOption
from fedkd.errors import FedkdError
from fedkd.strategies.base import Knowledge, Replies
from fedkd.strategies.fedavg import AverageOptions, FedAvg, average
from fedkd.work import CrossEntropy, Fit, Head, Hold, Load, Parameters, Share, Soft, Step


class FedGKD(FedAvg):
    """FedAvg, taught by the mean of the last global students (Yao et al. 2021).

    Departures: the teacher answers once, before a client trains, on its samples as they are, where
    the paper's sees each batch as it is augmented. Where there is one former student alone, it is
    the one that clients start from, and is sent once. FedGKD-VOTE, in which each of the M students
    teaches by itself, is left out. ``module`` is not of the paper.
    """

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        gamma: float = Field(0.2, ge=0)
        """Weight of the teacher, halved as in the paper; 0 is FedAvg."""
        buffer: int = Field(5, ge=1, le=1_000)
        """Global students that the teacher is the mean of: M in the paper; 1 is the last alone."""
        module: str = ""
        """The one block that learns from the teacher, in the place of the teacher's own block of
        this name; empty: all of the student, as in the paper."""
        objective: ObjectiveOption = "forward_kl"
        """How clients learn from the teacher, of ``fedkd list objectives``."""

    knowledge = Knowledge("logits", labelled=True)

    def setup(self) -> None:
        """The global student, which is its own first teacher."""
        super().setup()
        self.last: list[Parameters] = [self.parameters]
        self.teacher = self.parameters
        self.blocks = students.blocks(self.initial_student())
        if (module := self.options.module) and module not in self.blocks:
            raise FedkdError(
                f"strategy.module = {module!r} is not allowed: no block of the student is called "
                f"so; its blocks: {', '.join(self.blocks)}"
            )

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the global student below its former ones, and send it back."""
        if not self.options.gamma:
            return super().learn(round, client)
        teacher = self.teacher if len(self.last) > 1 else self.parameters
        return [
            Load(self.parameters),
            Hold("teacher"),
            Load(teacher, student="teacher"),
            Fit(terms=(CrossEntropy(), self.towards())),
            Share(),
        ]

    def towards(self) -> Soft:
        """What the student learns from the teacher, or one of its blocks within the teacher."""
        weight, module, blocks = self.options.gamma / 2, self.options.module, self.blocks
        if not module:
            return self.soft("teacher", weight=weight)
        below = ("", *blocks)[blocks.index(module)]
        cut = "" if module == blocks[-1] else module
        return self.soft("teacher", weight=weight, through=Head(cut, "teacher", below))

    def fuse(self, round: int, replies: Replies) -> None:
        """Average, and have the average be one of the M that teach."""
        super().fuse(round, replies)
        self.last = [*self.last, self.parameters][-self.options.buffer :]
        self.teacher = average(self.last, torch.ones(len(self.last)))
