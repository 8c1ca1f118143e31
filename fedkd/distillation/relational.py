"""Objectives that compare a batch's rows, or its classes over the rows, with one another.

Rows meet only within a group, a student's batch (:mod:`fedkd.distillation.groups`).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedkd.distillation.groups import group_pearson, pearson, per_group
from fedkd.distillation.objectives import Objective, Temperature, declare


@declare(needs=("groups",))
class DIST(Objective):
    """One minus correlations with the teacher, over classes and over samples (Huang et al. 2022).

    Equations 9 to 11, on probabilities: ``beta (1 - mean over rows of r(q_i, p_i)) + gamma (1 -
    mean over classes of r(q_c, p_c))``, r Pearson's correlation, of a row over the classes and of a
    class over the rows of the batch. A row's value has its own first part and the batch's second
    one. A correlation with what is constant is 0. Of gamma = 0, rows do not meet: that is for text,
    where nearly all classes are constant over a batch, for candidate classes, which are others in
    every row, and for DP-SGD.
    """

    beta: float = Field(1.0, ge=0)
    """Weight of the correlation over classes, of each row."""
    gamma: float = Field(1.0, ge=0)
    """Weight of the correlation over the batch's rows, of each class."""

    def spared(self) -> set[str]:
        """Where only rows are compared, which batch they are of."""
        return set() if self.gamma else {"groups"}

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        temperature: Temperature,
        *,
        groups: Tensor | None = None,
    ) -> Tensor:
        """``beta (1 - r of the row) + gamma (1 - mean r of the classes)``.

        Without ``groups``, all rows are one batch.
        """
        student = (logits / temperature).softmax(-1)
        found = self.beta * (1 - pearson(student, targets))
        if not self.gamma:
            return found
        if groups is None:
            groups = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        classes = group_pearson(student, targets, groups).mean(-1)
        return found + self.gamma * (1 - classes[groups])


@declare(tau_squared=False, needs=("groups",), among=False)
class SinKD(Objective):
    """What it costs to carry a batch of student rows to the teacher's (Cui et al. 2024, SinKD).

    ``sum P * W / B`` with costs ``W_ij = |q_i - p_j|_1`` and P the kernel ``exp(-W / epsilon)``,
    rows and columns of which are normalised in turn. It lies within [0, 2], and gradients pass
    through P. As it does not see which row is whose, use it beside another objective (the paper's
    weight times batch size is 0.002 times B, at temperature 2). Equal batches cost nothing only in
    the limit of small epsilon.
    """

    epsilon: float = Field(0.1, gt=0)
    """How much the plan is smoothed."""
    iterations: int = Field(20, ge=1, le=1000)
    """Times that rows and columns are normalised."""
    rows: int = Field(256, ge=1)
    """Most rows that are carried together; a larger batch, as of tokens, goes in parts."""

    def __call__(
        self, logits: Tensor, targets: Tensor, temperature: Temperature, *, groups: Tensor
    ) -> Tensor:
        """``sum P * W / B`` of its batch on every row."""
        return per_group(self._cost, groups, (logits / temperature).softmax(-1), targets)

    def _cost(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean over the rows of one batch ``(b, C)``: ``()``."""
        parts = zip(student.split(self.rows), teacher.split(self.rows))
        return torch.stack([self._part(*part) for part in parts]).sum() / len(student)

    def _part(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The cost of rows that are carried together: ``()``."""
        costs = torch.cdist(student, teacher, p=1)
        logs = -costs / self.epsilon
        for _ in range(self.iterations):
            logs = logs.log_softmax(1).log_softmax(0)
        return (logs.exp() * costs).sum()
