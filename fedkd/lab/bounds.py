"""Lower bounds on epsilon: what attacks and exposures prove to be exceeded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedkd.lab.rates import members_and_others, rate_at_least
from fedkd.privacy.sensitivity import Numbers, as_numbers


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
        rate = rate_at_least(reached, len(bits), (1 - confidence) / len(thresholds))
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

    members_and_others(scores, members)
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
