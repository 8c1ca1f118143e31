"""How well an attack tells members from others: ROC curves, rates, and their intervals.

A score is the higher the more it speaks for a member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import FedkdError
from fedkd.privacy.sensitivity import Numbers, as_numbers

FEWEST_FALSE = 10
"""False positives in expectation below which a true positive rate is not told."""
LARGEST_DRAW = 2 * 10**6
"""Scores that a bootstrap holds at a time: some 100 MB."""


class Rate(NamedTuple):
    """A share, and its confidence interval."""

    value: float
    low: float
    high: float


class Roc(NamedTuple):
    """False and true positive rates of "score >= threshold", from no record to all of them."""

    false: Numbers
    true: Numbers
    thresholds: Numbers


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Rate:
    """A binomial rate with its exact two-sided interval (Clopper & Pearson 1934)."""
    if trials < 1:
        raise FedkdError(f"trials = {trials} is not allowed: a rate is of at least one")
    error = (1 - confidence) / 2
    value, low = successes / trials, rate_at_least(successes, trials, error)
    return Rate(value, low, 1 - rate_at_least(trials - successes, trials, error))


def rate_at_least(successes: int, trials: int, error: float) -> float:
    """The rate that is exceeded but for a chance of ``error``."""
    from scipy.stats import beta

    return float(beta.ppf(error, successes, trials - successes + 1)) if successes else 0.0


def roc(scores: Any, members: Any) -> Roc:
    """The ROC curve of a membership attack, equal scores taken together.

    Parameters
    ----------
    scores : array or Tensor of any shape
        Scores of records; NaN is not allowed.
    members : array or Tensor of bool, in the same shape
        Which of them are members.

    Raises
    ------
    FedkdError
        If shapes differ, a score is NaN, or there are no members or none but members.
    """
    inside, outside = members_and_others(scores, members)
    values = np.unique(np.concatenate([inside, outside]))[::-1]

    def rate(of: Numbers) -> Numbers:
        below = np.searchsorted(np.sort(of), values, side="left")
        return np.concatenate([[0.0], 1 - below / len(of)])

    return Roc(rate(outside), rate(inside), np.concatenate([[np.inf], values]))


def auc(scores: Any, members: Any) -> float:
    """Area under the ROC curve: the chance that a member scores higher, ties counting half."""
    curve = roc(scores, members)
    return float((np.diff(curve.false) * (curve.true[1:] + curve.true[:-1])).sum() / 2)


class Detection(NamedTuple):
    """How well members are told from others, each rate with its interval.

    ``tpr`` is by false positive rate; ``refused`` has those of which too few false positives are
    expected for a rate to mean anything, and how many these are.
    """

    auc: Rate
    tpr: dict[float, Rate]
    refused: dict[float, float]


def detection(
    scores: Sequence[Any],
    members: Sequence[Any],
    fprs: Sequence[float],
    confidence: float = 0.95,
    draws: int = 500,
    seed: int = 0,
) -> Detection:
    """Rates of a membership attack on the records of several clients over several runs.

    A record's scores depend on one another, and so do those of a client's records: intervals are
    percentiles of a bootstrap that draws clients and then records of each, with all runs of a
    record, and takes the threshold anew each time.

    Parameters
    ----------
    scores : sequence of array or Tensor of shape (runs, records)
        A client's each.
    members : sequence of array or Tensor of bool, in the same shapes
        Which records the run was trained with.
    fprs : sequence of float
        False positive rates; those with fewer than :data:`FEWEST_FALSE` false positives in
        expectation are refused.
    confidence : float
        Of the intervals.
    draws, seed : int
        Of the bootstrap.

    Raises
    ------
    FedkdError
        If shapes differ, a score is NaN, or there are no members or none but members.
    """
    each = [as_numbers(client) for client in scores]
    flat = np.concatenate([client.ravel() for client in each])
    inside = np.concatenate([as_numbers(client).astype(bool).ravel() for client in members])
    _, others = members_and_others(flat, inside)
    wanted = [fpr for fpr in fprs if fpr * len(others) >= FEWEST_FALSE]
    sizes = [client.shape[1] for client in each]
    starts = np.cumsum([0, *sizes])
    owners = np.concatenate(
        [
            np.broadcast_to(start + np.arange(client.shape[1]), client.shape).ravel()
            for start, client in zip(starts, each)
        ]
    )
    curve = _Curve(flat, inside, owners)
    found = curve.rates(np.ones((1, starts[-1])), wanted)[:, 0]
    draw = np.random.default_rng(seed)
    draws_of = draw.spawn(len(sizes))  # the same draws, however many are made at once
    again = []
    at_once = max(1, LARGEST_DRAW // len(flat))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        chosen = draw.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), count)
        # A client that is drawn twice has its records drawn twice as often.
        own = [
            of_client.multinomial(times * size, np.full(size, 1 / size))
            for of_client, times, size in zip(draws_of, chosen.T, sizes)
        ]
        weights = np.concatenate(own, 1).astype(np.float64)
        again.append(curve.rates(weights, wanted))
    error = (1 - confidence) / 2
    low, high = np.nanquantile(np.concatenate(again, 1), [error, 1 - error], axis=1)
    auc_rate, *true = (Rate(*map(float, rate)) for rate in zip(found, low, high))
    expected = {fpr: fpr * len(others) for fpr in fprs if fpr not in wanted}
    return Detection(auc_rate, dict(zip(wanted, true)), expected)


class _Curve:
    """ROC curves of the same scores under many weights of their records."""

    def __init__(self, scores: Numbers, members: NDArray[np.bool_], owners: Any) -> None:
        order = np.argsort(-scores, kind="stable")
        self.members, self.owners = members[order], owners[order]
        self.ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))

    def rates(self, weights: Numbers, fprs: Sequence[float]) -> Numbers:
        """AUC and the true positive rate at each of ``fprs``: ``(1 + F, B)`` of weights (B, R)."""
        each = weights[:, self.owners]
        true, false = (
            np.concatenate([np.zeros((len(each), 1)), np.cumsum(part, 1)[:, self.ends]], 1)
            for part in (np.where(self.members, each, 0), np.where(self.members, 0, each))
        )
        with np.errstate(invalid="ignore"):  # a draw without members has no rates
            true, false = true / true[:, -1:], false / false[:, -1:]
        area = (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1])).sum(1) / 2
        rows = np.arange(len(each))
        last = [np.maximum((false <= fpr + 1e-12).sum(1) - 1, 0) for fpr in fprs]
        return np.stack([area, *(true[rows, place] for place in last)])


def members_and_others(scores: Any, members: Any) -> tuple[Numbers, Numbers]:
    """Scores of members and of all others.

    Raises
    ------
    FedkdError
        If shapes differ, a score is NaN, or there are no members or none but members.
    """
    values, of = as_numbers(scores), as_numbers(members).astype(bool)
    if values.shape != of.shape:
        raise FedkdError(f"scores {values.shape} and members {of.shape} are not of the same shape")
    if np.isnan(values).any():
        raise FedkdError("scores have NaN: every record needs a score")
    inside, outside = values[of], values[~of]
    if not len(inside) or not len(outside):
        raise FedkdError(
            f"{len(inside)} members and {len(outside)} others: an attack needs some of both"
        )
    return inside, outside
