"""FedProto: Tan, Long, Liu, Zhou, Lu, Jiang & Zhang, AAAI 2022 (arXiv 2105.00243).

Clients exchange nothing but class means of their representations, the prototypes. A round::

    client n   minimise CE + weight * mean (h_n(x) - P[y])^2 on private data, with P of last round
               P_n[c] = mean of h_n(x) over its samples of class c, count n_n[c];  both sent
    server     P[c]   = sum_n n_n[c] P_n[c] / sum_n n_n[c],  over the clients that hold c

Scored as the paper does, by the prototype nearest to a sample's representation (``nearest``),
beside the client's own head.

Departures: the mean is weighted by counts, without the further division by the number of holders in
the paper's equation; the distance is the mean over features of the squared difference.

A round's prototypes come from those who took part in it; a class that none of them holds keeps its
last one, and a class that nobody ever held has none (a row of NaN). Students may be of any
architecture whose representations have one size, which ``student.representation`` gives all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedkd import students
from fedkd.errors import FedkdError
from fedkd.strategies.base import Headline, KnowledgeStrategy, Replies, StrategyOptions
from fedkd.students.pair import table_of
from fedkd.training import represent
from fedkd.work import CrossEntropy, Evaluate, Feature, Fit, Represent, Step, Term


class FedProto(KnowledgeStrategy):
    """Averages class means of representations; no model travels (Tan et al. 2022)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        weight: float = Field(1.0, ge=0)
        """Of the distance to the prototypes; lambda in the paper."""
        cut: str = ""
        """Block whose output is the representation; empty: the last one below the head."""

    headline = Headline(evaluation="nearest")

    def setup(self) -> None:
        """The cut of each architecture; no prototypes yet: (C, d) of NaN."""
        self.cuts, size = cuts_of_one_size(self, self.options.cut)
        self.prototypes = torch.full((self.task.classes, size), torch.nan)

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train near the prototypes, then send class means of the representation."""
        cut = self.cuts[self.experiment.architecture(client)]
        terms: tuple[Term, ...] = (CrossEntropy(),)
        if self.options.weight and not bool(self.prototypes.isnan().all()):
            terms += (Feature(self.prototypes, cut, weight=self.options.weight),)
        return [Fit(terms=terms), Represent(cut, per="class", key="prototypes")]

    def fuse(self, round: int, replies: Replies) -> None:
        """``P``, (C, d)."""
        sent = replies.parameters("prototypes")
        means, counts = (torch.stack([one[key] for one in sent]) for key in ("mean", "count"))
        fresh = mean_by_class(means, counts)
        self.prototypes = torch.where(fresh.isnan(), self.prototypes, fresh)

    def score(self, round: int, client: int) -> Sequence[Step]:
        """The class whose prototype is nearest, as the paper predicts."""
        cut = self.cuts[self.experiment.architecture(client)]
        return [Evaluate(key="nearest", prototypes=self.prototypes, cut=cut)]


def cuts_of_one_size(strategy: KnowledgeStrategy, cut: str) -> tuple[dict[str, str], int]:
    """The cut of each architecture, and the size that a sample's representation has at all of them.

    Raises
    ------
    FedkdError
        Their sizes differ.
    """
    models = sorted(set(strategy.experiment.student.models))
    found = {model: cut_of(strategy, model, cut, last=1) for model in models}
    cuts = {model: cut for model, (cut, _) in found.items()}
    sizes = {model: shape.numel() for model, (_, shape) in found.items()}
    if len(set(sizes.values())) > 1:
        given = ", ".join(f"{sizes[model]} ({model} at {cuts[model]})" for model in models)
        raise FedkdError(
            f"student.models = {models} is not allowed with strategy.name = "
            f"{strategy.experiment.strategy.name!r}: it averages representations of one size, and "
            f"theirs have {given}; student.representation gives all one of the same size, at the "
            "last cut"
        )
    return cuts, sizes[models[0]]


def mean_by_class(means: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over clients of their rows a class; NaN where no client has a weight.

    ``means`` is (N, C, d), ``weights`` (N, C), the result (C, d).
    """
    weights = weights.double()[..., None]
    return ((weights * means).sum(0) / weights.sum(0)).to(means.dtype)


def cut_of(strategy: KnowledgeStrategy, model: str, cut: str, last: int) -> tuple[str, torch.Size]:
    """A cut of ``model`` and the shape of a sample's representation there.

    An empty ``cut`` is the ``last`` one counted from the head, or the deepest that there is.

    Raises
    ------
    FedkdError
        The student has no such cut; the line names those it has.
    """
    task = strategy.task
    student = students.build(
        model, task.shape, task.classes, table_of(strategy.experiment), 0, tokens=task.tokens
    )
    cuts = students.blocks(student)[:-1]
    cut = cut or cuts[-min(last, len(cuts))]
    sample = torch.ones(1, *task.shape, dtype=torch.long if task.tokens else None)
    return cut, represent(student, sample, cut)[0].shape[1:]
