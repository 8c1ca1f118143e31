"""Attacks on what clients release, and what they show about differential privacy.

Functions over numbers: scores of records that were or were not trained on, arrays that a client
sent, exposures of planted secrets. A score is the higher the more it speaks for a member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.privacy.sensitivity import Numbers, as_numbers

LEAST = 1e-45
"""What stands for a probability of 0: about the least above it in float32."""
FEWEST_FALSE = 10
"""False positives in expectation below which a true positive rate is not told."""
LARGEST_DRAW = 2 * 10**6
"""Scores that a bootstrap holds at a time: some 100 MB."""
FEW = 32
"""Shadow models of a record, in or out, below which variances are pooled over records."""

# --- rates ----------------------------------------------------------------------------------


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
    value, low = successes / trials, _at_least(successes, trials, error)
    return Rate(value, low, 1 - _at_least(trials - successes, trials, error))


def _at_least(successes: int, trials: int, error: float) -> float:
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
    inside, outside = _split(scores, members)
    values = np.unique(np.concatenate([inside, outside]))[::-1]

    def rate(of: Numbers) -> Numbers:
        below = np.searchsorted(np.sort(of), values, side="left")
        return np.concatenate([[0.0], 1 - below / len(of)])

    return Roc(rate(outside), rate(inside), np.concatenate([[np.inf], values]))


def auc(scores: Any, members: Any) -> float:
    """Area under the ROC curve: the chance that a member scores higher, ties counting half."""
    curve = roc(scores, members)
    return float((np.diff(curve.false) * (curve.true[1:] + curve.true[:-1])).sum() / 2)


def tpr_at(scores: Any, members: Any, fpr: float, confidence: float = 0.95) -> Rate:
    """True positive rate at a false positive rate of at most ``fpr``, with its exact interval.

    The interval is about members whose scores are independent, with the threshold, which comes from
    the others, taken as given; of records that are scored in several runs see :func:`detection`.
    """
    curve = roc(scores, members)
    inside, _ = _split(scores, members)
    true = curve.true[np.flatnonzero(curve.false <= fpr)[-1]]
    return clopper_pearson(round(true * len(inside)), len(inside), confidence)


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
    _, others = _split(flat, inside)
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


def _split(scores: Any, members: Any) -> tuple[Numbers, Numbers]:
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


# --- membership -----------------------------------------------------------------------------


def logit_confidence(probabilities: Tensor, labels: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of the true class, which is nearly Gaussian over models.

    After Carlini et al. 2022 (*Membership Inference Attacks From First Principles*), section V-A;
    ``1 - p`` is summed from the other classes, so that confident models keep their digits.

    Parameters
    ----------
    probabilities : Tensor of shape (..., C)
        Soft labels.
    labels : Tensor of shape (...)
        True classes; one set of them serves many models.

    Returns
    -------
    Tensor of shape (...)
        In float64, finite.
    """
    law = probabilities.double()
    classes = labels.expand(law.shape[:-1])[..., None]
    own = law.gather(-1, classes)[..., 0].clamp_min(LEAST)
    others = law.scatter(-1, classes, 0).sum(-1).clamp_min(LEAST)
    return own.log() - others.log()


def lira(scores: Any, members: Any, few: int = FEW) -> Numbers:
    """Log-likelihood ratios of the likelihood-ratio attack, each run in turn being the target.

    Carlini et al. 2022, algorithm 1 (online): a record's score under the target is compared with
    Gaussians fitted to its scores under all other runs, those trained with it and those without.

    Parameters
    ----------
    scores : array or Tensor of shape (runs, records)
        Such as :func:`logit_confidence` by the student of each run.
    members : array or Tensor of bool, shape (runs, records)
        Whether the run was trained with the record.
    few : int
        With fewer other runs than this, in or out, all records share one variance within records.

    Returns
    -------
    ndarray of shape (runs, records)
        Positive for members; 0, no evidence, for a record that all other runs had, or none.

    Raises
    ------
    FedkdError
        If shapes differ, a score is not finite, or there are fewer than 3 runs.
    """
    given, inside = _checked_runs(scores, members)
    centred = given - given.mean(0)
    with_it = _likelihood(centred, inside, few)
    without = _likelihood(centred, ~inside, few)
    return np.where(np.isfinite(with_it) & np.isfinite(without), with_it - without, 0.0)


def lira_offline(scores: Any, members: Any, few: int = FEW) -> Numbers:
    """Standardised scores of the offline attack, each run in turn being the target.

    Carlini et al. 2022, section VI-C: a record's score under the target is compared with its scores
    under other runs that were trained without it, as ``(score - mean) / deviation``; a record needs
    no run that was trained with it, and half as many numbers are estimated as by :func:`lira`.

    Parameters, return value and errors are those of :func:`lira`.
    """
    given, inside = _checked_runs(scores, members)
    mean, variance = _of_others(given - given.mean(0), ~inside, few)
    with np.errstate(invalid="ignore"):
        found = (given - given.mean(0) - mean) / np.sqrt(variance)
    return np.where(np.isfinite(found), found, 0.0)


def _checked_runs(scores: Any, members: Any) -> tuple[Numbers, NDArray[np.bool_]]:
    given, inside = as_numbers(scores), as_numbers(members).astype(bool)
    if given.shape != inside.shape or given.ndim != 2:
        raise FedkdError(
            f"scores {given.shape} and members {inside.shape}: both must be (runs, records)"
        )
    if not np.isfinite(given).all():
        raise FedkdError("scores are not all finite: bound them, as logit_confidence does")
    if len(given) < 3:
        raise FedkdError(f"{len(given)} runs: an attack needs a target and two others, in and out")
    return given, inside


def _likelihood(scores: Numbers, group: np.ndarray, few: int) -> Numbers:
    """Log-density of each score under the Gaussian of the others in its column's ``group``."""
    mean, variance = _of_others(scores, group, few)
    with np.errstate(invalid="ignore"):
        return -((scores - mean) ** 2) / (2 * variance) - np.log(variance) / 2


def _of_others(scores: Numbers, group: np.ndarray, few: int) -> tuple[Numbers, Numbers]:
    """Mean and variance of the other scores in each score's column that are in ``group``."""

    def others(values: Numbers) -> Numbers:
        values = np.where(group, values, 0.0)
        return values.sum(0) - values

    count = others(np.ones(scores.shape))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = others(scores) / count
        spread = np.maximum(others(scores**2) - count * mean**2, 0.0)
        pooled = np.nansum(spread, 1, keepdims=True)
        pooled = pooled / np.maximum(count - 1, 0).sum(1, keepdims=True)
        variance = np.where(count < few, pooled, spread / (count - 1))
        return mean, np.maximum(variance, 1e-12)


# --- label distribution ---------------------------------------------------------------------


class Inferred(NamedTuple):
    """A client's label distribution ``(C,)`` as somebody guesses it, and what from."""

    distribution: Numbers
    how: str


def infer_label_distribution(
    values: Mapping[str, Tensor | dict[str, Tensor]],
    predict: Callable[[dict[str, Tensor]], Tensor | None] | None = None,
    classes: int | None = None,
) -> Inferred | None:
    """What a server takes a client's label distribution to be, from what the client sent.

    The first of: labels sent along (their histogram), counts of classes, soft labels (their mean),
    logits (the mean of their softmax), parameters (the mean soft label of that model).

    Parameters
    ----------
    values : mapping
        Arrays of a reply, by key: soft labels or logits ``(M, C)``, or named arrays.
    predict : callable, optional
        From named parameters to what a model with them says of public samples: soft labels
        ``(M, C)`` or their mean ``(C,)``, None where they are not a whole model.
    classes : int, optional
        Number of classes C: arrays of another width are passed over. If not given, that of the
        arrays themselves, and of labels without soft labels one more than the largest.

    Returns
    -------
    Inferred or None
        ``how`` is "labels", "counts", "soft labels", "logits" or "parameters"; None if there is
        nothing of them.
    """
    named = [value for value in values.values() if not isinstance(value, Tensor)]
    arrays = [value for value in values.values() if isinstance(value, Tensor)]
    arrays += [found["soft_labels"] for found in named if "soft_labels" in found]
    for found in named:
        if "labels" in found:
            width = found["soft_labels"].shape[-1] if "soft_labels" in found else 0
            labels = found["labels"].flatten().cpu()
            counts = torch.bincount(labels[labels >= 0], minlength=classes or width)
            if len(counts) == (classes or len(counts)) and counts.sum():
                return Inferred(_normalised(counts), "labels")
    for found in named:
        counts = found.get("count", torch.zeros(0))
        if counts.sum() > 0 and len(counts) == (classes or len(counts)):
            return Inferred(_normalised(counts), "counts")
    whole = [
        array.double().cpu()
        for array in arrays
        if array.dim() == 2 and len(array) and array.shape[1] == (classes or array.shape[1])
    ]
    for array in whole:
        if _are_probabilities(array):
            return Inferred(_normalised(array.mean(0)), "soft labels")
    for array in whole:
        if array.isfinite().all():
            return Inferred(_normalised(array.softmax(1).mean(0)), "logits")
    for found in named:
        if predict is not None and not {"labels", "count", "soft_labels"} & found.keys():
            said = predict(found)
            if said is not None:
                law = said.double().reshape(-1, said.shape[-1]).mean(0)
                return Inferred(_normalised(law), "parameters")
    return None


class Errors(NamedTuple):
    """How far a guess is from a distribution: L1 distance, Jensen-Shannon divergence in bits."""

    l1: float
    jensen_shannon: float
    top_hit: bool


def distribution_errors(estimate: Any, truth: Any) -> Errors:
    """How far an inferred label distribution ``(C,)`` is from the true one.

    Returns
    -------
    Errors
        ``l1`` is at most 2, ``jensen_shannon`` at most 1; ``top_hit`` says whether the likeliest
        class is the right one (of several that are equally likely, the first).
    """
    guess, true = _normalised(estimate), _normalised(truth)
    middle = (guess + true) / 2
    return Errors(
        float(np.abs(guess - true).sum()),
        (_bits(guess, middle) + _bits(true, middle)) / 2,
        bool(guess.argmax() == true.argmax()),
    )


def baseline_distributions(truths: Any) -> dict[str, Numbers]:
    """Guesses ``(N, C)`` that take nothing from the client, from all true distributions ``(N, C)``.

    ``uniform``, and ``others``: the mean of the other clients (uniform where there are none).
    """
    law = np.stack([_normalised(row) for row in as_numbers(truths)])
    uniform = np.full(law.shape, 1 / law.shape[1])
    others = (law.sum(0) - law) / (len(law) - 1) if len(law) > 1 else uniform
    return {"uniform": uniform, "others": others}


def _are_probabilities(rows: Tensor) -> bool:
    return bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-3).all())


def _normalised(weights: Any) -> Numbers:
    found = as_numbers(weights)
    return found / found.sum()


def _bits(law: Numbers, other: Numbers) -> float:
    there = law > 0
    return float((law[there] * np.log2(law[there] / other[there])).sum())


# --- lower bounds on epsilon ----------------------------------------------------------------


def audited_epsilon_from_exposure(
    exposures: Any, log2_space: float, delta: float, confidence: float = 0.95
) -> float:
    """The epsilon that planted secrets prove to be exceeded, from their exposures.

    Under (epsilon, delta)-DP at the level at which a secret enters, its exposure is x bits or more
    with a chance of at most ``e^epsilon 2^-x + delta``, as one nobody saw is with ``2^-x``. The
    share of secrets that reach x is bounded from below (Clopper & Pearson) at each whole number of
    bits and at the most there can be, with a Bonferroni correction for how many these are.

    Secrets of one model count as well as those of many: given all the others and what came out,
    each is among the ``2^-x`` first with no more than that chance (Steinke, Nasr & Jagielski 2023);
    for delta above 0 this takes secrets as independent.

    Parameters
    ----------
    exposures : array or Tensor
        Bits, of secrets drawn uniformly, ties against them.
    log2_space : float
        Of the number of possible secrets.
    delta : float
        At which epsilon is stated.
    confidence : float
        Chance that the true epsilon is not below what is returned.

    Returns
    -------
    float
        0 where nothing is proved.
    """
    bits = as_numbers(exposures).ravel()
    if not len(bits):
        return 0.0
    steps = np.arange(1, math.floor(log2_space + 1e-9) + 1, dtype=np.float64)
    thresholds = np.unique(np.append(steps[steps < log2_space - 1e-9], log2_space))
    best = 0.0
    for threshold in thresholds:
        reached = int((bits >= threshold - 1e-9).sum())
        rate = _at_least(reached, len(bits), (1 - confidence) / len(thresholds))
        ranks = math.floor(2 ** (log2_space - threshold) + 1e-6)
        if rate > delta:
            best = max(best, math.log(rate - delta) - math.log(ranks) + log2_space * math.log(2))
    return best


def audited_epsilon(
    in_scores: Any, out_scores: Any, delta: float, confidence: float = 0.95
) -> float:
    """The epsilon that an attack proves to be exceeded, from scores with and without a record.

    Any test of the one against the other has a rate of true positives of at most ``e^epsilon``
    times that of false positives plus delta, and the same of negatives (Kairouz, Oh & Viswanath
    2015). Thresholds are the k-th highest score without the record, k = 1, 2, 4 ...: the chance to
    exceed that has an exact beta law, and given the threshold, how many scores with the record do
    is binomial; k-th lowest scores with the record serve for negatives. All bounds hold together
    (Bonferroni).

    Parameters
    ----------
    in_scores, out_scores : array or Tensor
        Scores of independent runs with the record, and without it.
    delta : float
        At which epsilon is stated.
    confidence : float
        Chance that the true epsilon is not below what is returned.

    Returns
    -------
    float
        0 where nothing is proved.
    """
    inside, outside = as_numbers(in_scores).ravel(), as_numbers(out_scores).ravel()
    if not len(inside) or not len(outside):
        return 0.0
    sides = ((inside, outside), (-outside, -inside))
    tests = sum(len(_ranks(len(base))) for _, base in sides)
    error = (1 - confidence) / (2 * tests)
    return max(0.0, *(_proved(found, base, delta, error) for found, base in sides))


def _ranks(count: int) -> np.ndarray:
    """1, 2, 4 ... up to ``count``."""
    return 2 ** np.arange(count.bit_length())


def _proved(found: Numbers, base: Numbers, delta: float, error: float) -> float:
    """The most that ``found`` exceeding high scores of ``base`` proves, each bound at ``error``."""
    from scipy.stats import beta

    ranks = _ranks(len(base))
    thresholds = np.sort(base)[::-1][ranks - 1]
    exceeded = len(found) - np.searchsorted(np.sort(found), thresholds, side="right")
    some = exceeded > 0
    true = np.where(some, beta.ppf(error, np.maximum(exceeded, 1), len(found) - exceeded + 1), 0.0)
    false = beta.ppf(1 - error, ranks, len(base) - ranks + 1)
    proof = np.full(len(ranks), -np.inf)
    np.log(np.maximum(true - delta, 0) / false, out=proof, where=true > delta)
    return float(proof.max())


def audited_epsilon_in_one_run(
    scores: Any, members: Any, delta: float, confidence: float = 0.95
) -> float:
    """The epsilon that guessing who was left out proves to be exceeded (one run is enough).

    Steinke, Nasr & Jagielski 2023 (*Privacy Auditing with One (1) Training Run*), theorem 5.2: each
    record is in or out by a fair coin of its own, and the k highest scores are guessed to be in,
    the k lowest out. Under epsilon-DP at the level of a record no more of the 2k guesses are right
    than of so many coins of ``e^epsilon / (1 + e^epsilon)``; for delta above 0 slightly more are.
    k is 1, 2, 4 ... up to half of the records, with a Bonferroni correction.

    Parameters
    ----------
    scores : array or Tensor
        Of all records, made from what was released and not from who is a member.
    members : array or Tensor of bool, in the same shape
        How the coins fell.
    delta : float
        At which epsilon is stated.
    confidence : float
        Chance that the true epsilon is not below what is returned.

    Returns
    -------
    float
        0 where nothing is proved.

    Raises
    ------
    FedkdError
        If shapes differ, a score is NaN, or there are no members or none but members.
    """
    from scipy.optimize import brentq

    _split(scores, members)
    order = np.argsort(as_numbers(scores).ravel(), kind="stable")
    inside = as_numbers(members).ravel().astype(bool)[order]
    sizes = _ranks(len(order) // 2)
    error, best = (1 - confidence) / len(sizes), 0.0
    for size in sizes:
        right = int(inside[-size:].sum() + (~inside[:size]).sum())

        def surplus(epsilon: float, right: int = right, guesses: int = 2 * size) -> float:
            return _chance(right, guesses, epsilon, delta, len(order)) - error

        if surplus(best) < 0:
            # Beyond this even one wrong guess in as many would be likely.
            end = best + 1
            while surplus(end) < 0 and end < 100:
                end *= 2
            best = float(brentq(surplus, best, end)) if surplus(end) >= 0 else end
    return best


def _chance(right: int, guesses: int, epsilon: float, delta: float, records: int) -> float:
    """Most chance of so many right guesses or more under (epsilon, delta)-DP."""
    from scipy.special import expit
    from scipy.stats import binom

    honest = float(expit(epsilon))
    chance = float(binom.sf(right - 1, guesses, honest))
    if delta and right:
        fewer = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, honest))
        chance += 2 * records * delta * float((fewer / np.arange(1, right + 1)).max())
    return min(chance, 1.0)
