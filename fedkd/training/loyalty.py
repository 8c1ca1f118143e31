"""Loyalty of a student to the targets that a fit has it distil from, before and after.

It is a measurement: it draws nothing, nothing of the student changes, and no method sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.distillation.loyalty import label_loyalty, probability_loyalty
from fedkd.distillation.objectives import columns_of, made, traits
from fedkd.distillation.targets import among_logs
from fedkd.records import LOYALTY
from fedkd.training.inference import predict
from fedkd.training.items import item_counts, item_numbers, some
from fedkd.work import Samples, Soft, Term

LOYALTIES = tuple(
    f"{LOYALTY}{what}_{when}" for what in ("label", "probability") for when in ("before", "after")
)
"""Names of the metrics; a fit may have several terms, and a client several fits: their means."""

Loyalty = tuple[float, float]
"""Label loyalty and probability loyalty."""


@dataclass(frozen=True)
class Comparison:
    """What a student's answers are compared with: ``targets`` ``(R, C)``, probabilities.

    They are of the ``rows`` ``(R,)`` of what the student says of those of ``samples`` that have the
    numbers ``index`` ``(K,)``. Its logits are divided by ``temperature``, a number or ``(R, 1)``,
    and put together ``among`` candidates ``(R, k)``, as those that made the targets were.
    """

    samples: Samples
    index: Tensor
    rows: Tensor
    targets: Tensor
    temperature: float | Tensor
    among: Tensor | None

    @property
    def compared(self) -> Samples:
        """The samples that are compared."""
        return some(self.samples, self.index)

    def loyalty(self, logits: Tensor) -> Loyalty:
        """Label and probability loyalty of a student that has ``logits`` on :attr:`compared`."""
        logits = logits[self.rows].double() / self.temperature
        logs = F.log_softmax(logits, 1)
        if self.among is not None:
            logs = among_logs(logs, self.among)
        student = logs.exp()
        return (
            float(label_loyalty(student, self.targets)),
            float(probability_loyalty(student, self.targets)),
        )


def comparison(term: Term, samples: Samples, most: int) -> Comparison | None:
    """What to compare a student with that distils by ``term``; None where there is nothing.

    That is where the term weighs nothing, where targets are not a row a sample and at hand, as
    those of a student that learns in the same step, where another one's head answers, or where
    targets have columns that are no classes.

    Parameters
    ----------
    samples
        Those that the term draws from.
    most
        Rows that are compared, at most: evenly spaced among those that have targets. Of text whole
        samples are, with all of their tokens, at least one; 0 for none.
    """
    if not isinstance(term, Soft) or not isinstance(term.targets, Tensor):
        return None
    if term.per != "sample" or term.through is not None or not (most and term.weight):
        return None
    if columns_of(term.objective, 1) != 1:
        return None
    targets, weights = term.targets, term.row_weights
    there = ~targets[:, 0].isnan()
    if weights is not None:
        there &= (weights != 0).to(there.device)
    counts, device = item_counts(samples.inputs), samples.inputs.device
    if counts is None:
        known = there.nonzero()[:, 0].to(device)
    else:
        known = torch.arange(len(samples.inputs), device=device)
        most = max(1, most // samples.inputs.shape[1])
    index = known[spaced(len(known), most).to(device)]
    if not len(index):
        return None
    numbers = item_numbers(index, counts).to(targets.device)
    kept = there[numbers].nonzero()[:, 0]
    if not len(kept):
        return None
    numbers = numbers[kept]
    chosen = targets[numbers].to(device, torch.float64)
    tau: float | Tensor = term.temperature
    if isinstance(tau, Tensor):
        tau = tau[numbers.to(tau.device)].to(device, torch.float64)[:, None]
    if traits(made(term.objective)).targets == "logits":
        chosen, tau = chosen.softmax(1), 1.0
    among = None if term.among is None else term.among[numbers.to(term.among.device)].to(device)
    return Comparison(samples, index, kept.to(device), chosen, tau, among)


def loyalties(
    student: nn.Sequential, found: Iterable[Comparison | None], seed: int
) -> list[Loyalty]:
    """The loyalties of a student as it is now; what it draws to answer comes from ``seed``."""
    parts = [(one, one.compared) for one in found if one is not None]
    return [one.loyalty(predict(student, part.inputs, seed, part.cut)) for one, part in parts]


def spaced(count: int, most: int) -> Tensor:
    """Numbers from 0 to ``count - 1``, at most so many, evenly spaced: int64."""
    kept = min(count, most)
    return torch.arange(kept) * count // max(1, kept)


def metrics(before: Sequence[Loyalty], after: Sequence[Loyalty]) -> dict[str, float]:
    """Metrics of fits whose terms had these loyalties; none where there is no term."""
    if not before:
        return {}
    labels, probabilities = zip(*before, strict=True)
    labels_after, probabilities_after = zip(*after, strict=True)
    columns = (labels, labels_after, probabilities, probabilities_after)
    return {name: fmean(values) for name, values in zip(LOYALTIES, columns, strict=True)}


def means(found: Iterable[Mapping[str, float]], prefix: str = LOYALTY) -> dict[str, float]:
    """Means of several metrics of loyalty, whose names then begin with ``prefix``."""
    every = list(found)
    if not every:
        return {}
    return {
        f"{prefix}{name.removeprefix(LOYALTY)}": fmean(one[name] for one in every)
        for name in LOYALTIES
    }
