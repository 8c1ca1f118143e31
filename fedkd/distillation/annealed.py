"""Objectives whose target moves as training goes on."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import log_softmax

from fedkd.distillation.groups import group_sums
from fedkd.distillation.objectives import SMALLEST, Memory, Objective, Temperature, declare

LEAST = 1e-15
"""What is added to a loss that another one is divided by."""


@declare(tau_squared=False, needs=("progress", "groups", "memory"))
class TAID(Objective):
    """Cross-entropy with a target that goes from the student to the teacher (Shing et al. 2025).

    Equation 3: the target is ``r = softmax((1 - lambda) z + lambda t)``, z the student's logits
    without gradient and t the teacher's, here ``log p``; the gradient is ``softmax(z) - r``. Lambda
    starts at ``start`` and grows with the run's progress u; the adaptive one besides with every
    step by ``alpha sigmoid(m) (1 - lambda)``, m the running mean of relative falls of the loss
    (algorithm 1). It begins every fit where progress has it, ``start + (end - start) u``, not anew.
    The value is no divergence: teacher and student alike give the entropy of r, at no slope.

    The adaptive lambda depends on the batch's loss: rows meet, which DP-SGD cannot have; of
    ``adaptive = false`` they do not.
    """

    start: float = Field(0.4, ge=0, le=1)
    """Lambda as the run begins: the teacher's part in the target."""
    end: float = Field(1.0, ge=0, le=1)
    """Lambda as the run ends, and its bound."""
    adaptive: bool = True
    """Whether lambda grows faster while the loss falls, or with progress alone."""
    alpha: float = Field(5e-4, ge=0, le=1)
    """The most of what lacks to 1 that an adaptive lambda grows by in a step."""
    beta: float = Field(0.99, ge=0, lt=1)
    """What the running mean keeps a step."""

    @model_validator(mode="after")
    def _grows(self) -> TAID:
        if self.end < self.start:
            raise ValueError(f"end = {self.end:g} is below start = {self.start:g}")
        return self

    def spared(self) -> set[str]:
        """A lambda that goes with progress alone remembers nothing."""
        return set() if self.adaptive else {"groups", "memory"}

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        temperature: Temperature,
        *,
        progress: float | Tensor,
        groups: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """``-sum_c r_c log softmax(z)_c``; an adaptive lambda is moved on afterwards.

        It is in ``memory``, with the loss before and its running relative fall. Without a memory,
        lambda is as progress has it.
        """
        planned = logits.new_tensor(self.start) + (self.end - self.start) * progress
        planned = planned.expand(len(logits), 1).to(logits).detach()
        if groups is None or memory is None:
            return self._toward(logits, targets, temperature, planned)
        self._begin(memory, groups, planned)
        losses = self._toward(logits, targets, temperature, memory["lambda"][groups][:, None])
        with torch.no_grad():
            self._move(memory, groups, planned, losses)
        return losses

    def _toward(
        self, logits: Tensor, targets: Tensor, temperature: Temperature, share: Tensor
    ) -> Tensor:
        """Cross-entropy with the target of lambda ``share`` ``(B, 1)``: ``(B,)``."""
        student, teacher = log_softmax(logits / temperature, -1), targets.clamp_min(SMALLEST).log()
        between = ((1 - share) * student.detach() + share * teacher).softmax(-1)
        return -(between * student).sum(-1)

    def _begin(self, memory: Memory, groups: Tensor, planned: Tensor) -> None:
        """Have entries: lambda where progress has it, of students who had no loss yet."""
        if not memory:
            new = planned.new_zeros(memory.students)
            memory |= {"lambda": new, "loss": new + torch.nan, "change": new}
        unseen = memory["loss"].isnan()[groups]
        place = (groups[unseen],)
        memory["lambda"] = memory["lambda"].index_put(place, planned[unseen, 0])

    def _move(self, memory: Memory, groups: Tensor, planned: Tensor, losses: Tensor) -> None:
        """Lambda for the next step, of the students that had rows in this one."""
        share, before, change = memory["lambda"], memory["loss"], memory["change"]
        count = len(before)
        rows = group_sums(torch.ones_like(losses), groups, count)
        there, rows = rows > 0, rows.clamp_min(1)
        loss = group_sums(losses, groups, count) / rows
        target = group_sums(planned[:, 0], groups, count) / rows
        fall = (before - loss) / (before + LEAST)
        moved = self.beta * change + (1 - self.beta) * fall
        grown = share + self.alpha * moved.sigmoid() * (1 - share)
        grown = grown.maximum(target).clamp_max(self.end)
        again = there & ~before.isnan()  # the first step only says what the loss was
        memory["lambda"] = torch.where(again, grown, share)
        memory["change"] = torch.where(again, moved, change)
        memory["loss"] = torch.where(there, loss, before)
