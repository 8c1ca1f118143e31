"""What a few seeds can say: intervals of means, paired tests, and what many tests together cost.

Values are one number a seed. What is compared is paired: the same seed means the same data, split
and first parameters, so differences vary far less than the values themselves.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

RESAMPLES = 9999
ROUNDING = 1e-9
"""Of the largest value: numbers that differ by less are the same."""
LEVEL = 0.05
"""A difference counts as told where its p value, adjusted, is below this."""

Test = Literal["t", "wilcoxon"]
Alternative = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` values and its confidence interval; bounds are NaN where none is known."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """What two paired samples differ by.

    ``difference`` is the mean of ``a - b`` with its 95 % interval by Student's t, ``p`` the p value
    of the test that was asked for, ``n`` the number of pairs.
    """

    difference: Interval
    p: float
    n: int


def interval(values: Any, confidence: float = 0.95) -> Interval:
    """Mean of independent values and its interval by Student's t with ``n - 1`` degrees of freedom.

    Values that are all the same say nothing of how far others would lie from them: they have no
    interval, unless they are all 0, as differences are of what is the same by its making.

    Parameters
    ----------
    values : array_like
        ``(n,)``. One value has no interval, and no value no mean: these are NaN.
    confidence : float
        Chance that the interval holds the mean, of values that are normal.
    """
    array = _vector(values)
    n = len(array)
    if n < 2:
        return Interval(float(array[0]) if n else math.nan, math.nan, math.nan, n)
    from scipy import special

    mean = float(array.mean())
    if array.any() and _same(array):
        return Interval(mean, math.nan, math.nan, n)
    quantile = float(special.stdtrit(n - 1, (1 + confidence) / 2))
    half = quantile * float(array.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def at_once(samples: Sequence[Any]) -> list[Interval]:
    """Intervals of several means that all hold at once at 95 %: each at 1 - 5 %/k (Bonferroni).

    Parameters
    ----------
    samples : sequence of array_like
        ``(n,)`` each, of its own length.
    """
    return [interval(values, 1 - LEVEL / len(samples)) for values in samples]


def bootstrap(values: Any, confidence: float = 0.95) -> Interval:
    """Mean of independent values and its bias-corrected and accelerated bootstrap interval.

    By Efron (1987), with 9,999 resamples drawn with a fixed seed: the same values have the same
    interval. Where the correction is not defined it is the percentile interval, and where all
    values are the same it is their mean. Of few values it is too narrow: Student's is the honest
    one below some ten.

    Parameters
    ----------
    values : array_like
        ``(n,)``. One value has no interval, and no value no mean: these are NaN.
    confidence : float
        Chance that the interval holds the mean, for large ``n``.
    """
    array = _vector(values)
    n = len(array)
    if n < 2:
        return Interval(float(array[0]) if n else math.nan, math.nan, math.nan, n)
    # Sorted, so that the order of seeds does not choose the resamples.
    array = np.sort(array)
    mean = float(array.mean())
    if not np.ptp(array):
        return Interval(mean, mean, mean, n)
    for method in ("BCa", "percentile"):
        low, high = _resampled(array, confidence, method)
        if math.isfinite(low) and math.isfinite(high):
            break
    return Interval(mean, low, high, n)


def _resampled(array: np.ndarray, confidence: float, method: Any) -> tuple[float, float]:
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a degenerate distribution: the bounds are NaN then
        found = stats.bootstrap(
            (array,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            method=method,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(found.low), float(found.high)


def paired(a: Any, b: Any, test: Test = "t", alternative: Alternative = "two-sided") -> Paired:
    """Compare two samples whose values belong together in their order.

    Parameters
    ----------
    a, b : array_like
        ``(n,)`` each.
    test : {"t", "wilcoxon"}
        Student's t of the differences, or Wilcoxon's signed ranks (exact for few values; with five
        pairs its two-sided p cannot be below 1/16).
    alternative : {"two-sided", "greater", "less"}
        What ``a`` would be than ``b`` if not the same.

    Returns
    -------
    Paired
        ``p`` is 1 for fewer than two pairs, and where all differences are the same.

    Raises
    ------
    ValueError
        ``a`` and ``b`` are not of one length.
    """
    left, right = _vector(a), _vector(b)
    if len(left) != len(right):
        raise ValueError(f"pairs need equal lengths, not {len(left)} and {len(right)}")
    differences = left - right
    found = interval(differences)
    if len(differences) < 2 or _same(differences):
        return Paired(found, 1.0, len(differences))
    return Paired(found, _p_value(differences, test, alternative), len(differences))


def _same(values: np.ndarray) -> bool:
    """Whether values are all the same, up to rounding."""
    return float(np.ptp(values)) <= ROUNDING * float(np.abs(values).max())


def _p_value(differences: np.ndarray, test: Test, alternative: Alternative) -> float:
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of differences that are all the same, or ties
        if test == "wilcoxon":
            return float(stats.wilcoxon(differences, alternative=alternative).pvalue)
        return float(stats.ttest_1samp(differences, 0.0, alternative=alternative).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for being so many, in the order given.

    By Holm (1979): the chance that any true hypothesis is rejected at level alpha is at most alpha,
    however the tests depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def smallest_told(a: Any, b: Any) -> float:
    """The smallest mean difference that the paired t test could tell of samples that vary so.

    With fewer pairs or more tests at once it is larger: below it, none has a p value under 0.05.

    Parameters
    ----------
    a, b : array_like
        ``(n,)`` each, paired in their order.

    Returns
    -------
    float
        In the values' unit; NaN for fewer than two pairs.
    """
    differences = _vector(a) - _vector(b)
    found = interval(differences, 1 - LEVEL)
    return found.high - found.mean


def fewest_to_tell(tests: int = 1, test: Test = "t") -> int:
    """Pairs without which the smallest of ``tests`` p values cannot be under 0.05, by Holm.

    Student's t needs two. The smallest two-sided p of Wilcoxon's signed ranks is 2 / 2^n.
    """
    if test == "t":
        return 2
    return math.floor(1 + math.log2(tests / LEVEL)) + 1


def _vector(values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values must be one number a seed, not of shape {array.shape}")
    return array
