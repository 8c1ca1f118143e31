"""FedHKD: Chen, Wang & Vikalo, ICLR 2023 (arXiv 2301.08968), hyper-knowledge distillation.

FedAvg, in which clients also send what their students make of a class: the mean representation and
the mean soft label. With the mean of all, the head is held to what it should say of a class, and
the body to where the class lies, so that neither forgets classes that a client lacks::

    client n   minimise CE + lambda d(Q[c], softmax(h(H[c]) / tau))     mean over classes c
                           + gamma (z(x) - H[y])^2                      from the global w;   w_n
               H_n[c], Q_n[c] = means of z(x) and of softmax(f_n(x) / tau) over its samples of c
               w_n, H_n, Q_n and the counts, sent
    server     w    = sum_n samples_n / samples * w_n
               H[c] = sum_n n_n[c] H_n[c] / sum_n n_n[c],  Q[c] alike

z(x) is the representation at a cut and h the blocks above it, which H[c] enters: this term has no
gradient below. A class that nobody of a round holds keeps its last H and Q; one that nobody ever
held has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedkd import students
from fedkd.distillation.objectives import ObjectiveOption, made, traits
from fedkd.errors import FedkdError
from fedkd.strategies.base import Knowledge, KnowledgeStrategy, Replies, StrategyOptions
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.fedproto import cut_of, mean_by_class
from fedkd.training import learning_names
from fedkd.work import (
    CrossEntropy,
    Feature,
    Fit,
    Load,
    Predict,
    Represent,
    Samples,
    Share,
    Step,
    Term,
)


class FedHKD(FedAvg):
    """FedAvg, and class means of representations and soft labels teach (Chen et al. 2023).

    Departures: clients add no noise to class means, where the authors' code adds Gaussian noise of
    one standard deviation to those of representations, so that no epsilon could be claimed of
    them; they are weighted by counts, where in that code the last client of a round that holds a
    class has the say; gradients are not clipped and the learning rate is that of ``[training]``.
    The terms were read in the authors' code, not in the paper.
    """

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        weight: float = Field(0.05, ge=0)
        """Of the head's term, lambda; with 0 here and in ``gamma`` it is FedAvg."""
        gamma: float = Field(0.05, ge=0)
        """Weight of the squared distance to the mean representation of the class."""
        tau: float = Field(0.5, gt=0)
        """Temperature of the soft labels, on both sides."""
        objective: ObjectiveOption = "forward_kl"
        """d, of ``fedkd list objectives`` one that takes probabilities; one that needs labels with
        ``labels = "argmax"``."""
        cut: str = ""
        """Block whose output is the representation; empty: the last one below the head."""

    knowledge = Knowledge(labelled=True)

    def setup(self) -> None:
        """The global student and the cut; no class is known: rows of NaN, (C, d) and (C, C)."""
        super().setup()
        self.cut, shape = cut_of(self, self.experiment.student.models[0], self.options.cut, last=1)
        self.shape = tuple(shape)
        if self.options.weight:
            refuse_text(self)
            refuse_part_below(self, self.experiment.student.models[0], self.cut)
        classes = self.task.classes
        self.features = torch.full((classes, shape.numel()), torch.nan)
        self.labels = torch.full((classes, classes), torch.nan)

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the global student with what is known of the classes, and send the same."""
        terms: tuple[Term, ...] = (CrossEntropy(), *self.known())
        tau = self.options.tau
        return [
            Load(self.parameters),
            Fit(terms=terms),
            Represent(self.cut, per="class", key="features"),
            Predict("private", tau, per="class", key="class_labels"),
            Share(),
        ]

    def known(self) -> list[Term]:
        """The terms of classes that somebody has held."""
        options, found = self.options, list[Term]()
        there = ~self.features[:, 0].isnan()
        if not there.any():
            return []
        if options.weight:
            # One array where all are known: the other term has it too, and it travels once.
            features = self.features if there.all() else self.features[there]
            flat = features.shape[1:] == self.shape
            entering = features if flat else features.unflatten(1, self.shape)
            asked = "labels" in traits(made(options.objective)).needs
            classes = there.nonzero()[:, 0] if asked else None
            head = self.soft(
                self.labels[there],
                options.tau,
                weight=options.weight,
                tau_squared=False,
                on=Samples(entering, classes, cut=self.cut),
            )
            found.append(head)
        if options.gamma:
            found.append(Feature(self.features, self.cut, weight=options.gamma))
        return found

    def fuse(self, round: int, replies: Replies) -> None:
        """The mean parameters, ``H`` and ``Q``."""
        super().fuse(round, replies)
        self.features = fresh(self.features, replies, "features")
        self.labels = fresh(self.labels, replies, "class_labels")


def fresh(before: Tensor, replies: Replies, key: str) -> Tensor:
    """Means a class over the clients' samples; those ``before`` of a class that nobody holds."""
    sent = replies.parameters(key)
    means, counts = (torch.stack([one[part] for one in sent]) for part in ("mean", "count"))
    now = mean_by_class(means, counts)
    return torch.where(now.isnan(), before, now)


def refuse_text(strategy: KnowledgeStrategy) -> None:
    """Refuse text, where representations are to enter a student above a cut.

    Raises
    ------
    FedkdError
        The data are texts.
    """
    experiment = strategy.experiment
    if strategy.task.tokens:
        raise FedkdError(
            f"strategy.name = {experiment.strategy.name!r} is not allowed with data.dataset = "
            f"{experiment.data.dataset!r}: representations of classes enter the student above a "
            "cut, and the blocks there take those of a whole text"
        )


def refuse_part_below(strategy: KnowledgeStrategy, model: str, cut: str) -> None:
    """Refuse a ``training.part`` of which nothing is above a cut where representations enter.

    Raises
    ------
    FedkdError
        Nothing that learns of ``model`` is above ``cut``.
    """
    part, student = strategy.experiment.training.part, strategy.initial_student(model)
    above = students.blocks(student)[students.cut_index(student, cut) :]
    if not {*learning_names(student, part)} & {*students.part_names(student, above)}:
        raise FedkdError(
            f"training.part = {list(part)} is not allowed with strategy.name = "
            f"{strategy.experiment.strategy.name!r}: representations of classes enter {model!r} "
            f"above {cut!r}, and nothing there would learn; allowed: a part with one of "
            f"{', '.join(above)}"
        )
