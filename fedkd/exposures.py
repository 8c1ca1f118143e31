"""What exposures of many planted secrets say together: means, intervals, and bounds on them.

Exposure is in bits: how far a secret stands out among all that could have stood in its place
(:mod:`fedkd.lab.exposure`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

NULL_MEAN = 1 / math.log(2)
"""Mean, and standard deviation, of the exposure of a secret nobody has seen: 1.443 bits."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` secrets and its confidence interval; NaN where it is not known."""

    mean: float
    low: float
    high: float
    n: int


def interval(
    exposures: Any, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Estimate:
    """The mean of exposures that are alike within a cluster.

    Secrets of one model share its chance: the standard error is that of sums over clusters (Liang &
    Zeger 1986, with the factor ``G / (G - 1)``) and the interval Student's t with ``G - 1`` degrees
    of freedom. Within a single cluster, or without clusters, secrets are taken for independent: the
    interval is then about that one model. One secret has no interval; bounds are NaN.

    Parameters
    ----------
    exposures : array_like
        ``(n,)``, bits.
    clusters : sequence or None
        ``n`` names of the model that each secret was measured in.
    confidence : float
        Chance that the interval holds the mean.
    """
    values = np.asarray(exposures, dtype=np.float64)
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    groups = _groups(clusters, len(values))
    sums = np.bincount(groups, (values - mean) / len(values))
    half = _half_width(_variance(sums, sums), len(sums), confidence)
    return Estimate(mean, mean - half, mean + half, len(values))


def excess(estimate: Estimate) -> Estimate:
    """Exposure over that of a secret nobody has seen: minus :data:`NULL_MEAN`."""
    return replace(
        estimate,
        mean=estimate.mean - NULL_MEAN,
        low=estimate.low - NULL_MEAN,
        high=estimate.high - NULL_MEAN,
    )


def excess_over(
    found: Mapping[str, Mapping[Any, tuple[float, Hashable]]],
    control: Mapping[str, Mapping[Any, tuple[float, Hashable]]],
    confidence: float = 0.95,
) -> tuple[Estimate, str] | None:
    """How much more exposed secrets are than where nobody has them, by the stronger score.

    For places whose null is not known: the same secrets, in runs that differ in nothing but that
    they are planted. The interval is that of :func:`interval` on differences, of each of the scores
    at a confidence at which all hold together, so that the stronger one may be picked.

    Parameters
    ----------
    found, control : mapping from score to mapping from secret to (exposure, cluster)
        With the secrets planted, and without.

    Returns
    -------
    tuple or None
        The estimate, in bits, and the score; None where no secret is in both.
    """
    excesses = []
    for score in found.keys() & control.keys():
        both = [secret for secret in found[score] if secret in control[score]]
        values = [found[score][secret][0] - control[score][secret][0] for secret in both]
        clusters = [found[score][secret][1] for secret in both]
        excesses.append((values, clusters, score))
    share = 1 - (1 - confidence) / max(1, len(excesses))
    estimates = [(interval(v, c, share), score) for v, c, score in sorted(excesses) if v]
    return max(estimates, key=lambda one: one[0].mean, default=None)


def reduction(
    plain: Any,
    protected: Any,
    plain_clusters: Sequence[Hashable] | None = None,
    protected_clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Share of the excess exposure that protection takes away: 1 for all of it.

    ``1 - excess(protected) / excess(plain)``, with Fieller's (1954) interval for a ratio of means,
    their variances and covariance from sums over clusters as in :func:`interval`. A cluster that
    both arms have (the same seed and client) is one cluster. With a single cluster in all, or
    without clusters, secrets are taken for independent, of one another and between the arms.

    Where the excess of the plain arm cannot be told from 0 there is nothing to take a share of: the
    bounds are then minus and plus infinity, and the mean NaN if that excess is not above 0.

    Parameters
    ----------
    plain, protected : array_like
        ``(n,)`` and ``(n',)`` exposures in bits.
    plain_clusters, protected_clusters : sequence or None
        Names of the model that each was measured in; both or neither.
    confidence : float
        Chance that the interval holds the share.

    Returns
    -------
    Estimate
        ``n`` counts the secrets of both arms.
    """
    arms = [np.asarray(values, dtype=np.float64) for values in (plain, protected)]
    n, split = sum(map(len, arms)), len(arms[0])
    if not all(map(len, arms)):
        return Estimate(math.nan, math.nan, math.nan, n)
    if (plain_clusters is None) != (protected_clusters is None):
        raise ValueError("reduction needs the clusters of both arms, or of neither")
    names = None
    if plain_clusters is not None and protected_clusters is not None:
        names = [*plain_clusters, *protected_clusters]
    groups = _groups(names, n)
    x, y = (float(values.mean()) - NULL_MEAN for values in arms)
    residuals = [(values - values.mean()) / len(values) for values in arms]
    count = int(groups.max()) + 1
    a = np.bincount(groups[:split], residuals[0], minlength=count)
    b = np.bincount(groups[split:], residuals[1], minlength=count)
    mean = 1 - y / x if x > 0 else math.nan
    # Ratios r that y - r x = 0 is not rejected for.
    t2 = _half_width(1.0, count, confidence) ** 2
    square = x * x - t2 * _variance(a, a)
    if not square > 0:
        return Estimate(mean, -math.inf, math.inf, n)
    middle = x * y - t2 * _variance(a, b)
    root = math.sqrt(max(0.0, middle**2 - square * (y * y - t2 * _variance(b, b))))
    return Estimate(mean, 1 - (middle + root) / square, 1 - (middle - root) / square, n)


def bound(epsilon: float, delta: float, log2_space: float) -> float:
    """Most bits of mean exposure that an (epsilon, delta)-private release allows.

    Private at the level at which the canary enters, all its copies at once. The chance of x bits or
    more is at most ``e^epsilon 2^-x + delta``, whose integral is ``(epsilon + 1) / ln 2 + delta
    log2 |R|``; and no exposure is above ``log2 |R|``.
    """
    return min((epsilon + 1) / math.log(2) + delta * log2_space, log2_space)


def _groups(clusters: Sequence[Hashable] | None, count: int) -> np.ndarray:
    """A number from 0 for each cluster; every value by itself if there is but one cluster."""
    if clusters is not None and len(clusters) != count:
        raise ValueError(f"{len(clusters)} clusters for {count} exposures")
    numbers: dict[Hashable, int] = {}
    for name in clusters or ():
        numbers.setdefault(name, len(numbers))
    if clusters is None or len(numbers) == 1:
        return np.arange(count)
    return np.array([numbers[name] for name in clusters])


def _variance(a: np.ndarray, b: np.ndarray) -> float:
    """Covariance of two means, given by the sums of their residuals over each cluster."""
    return float(a @ b) * len(a) / (len(a) - 1) if len(a) > 1 else math.nan


def _half_width(variance: float, clusters: int, confidence: float) -> float:
    from scipy import stats

    if clusters < 2:
        return math.nan
    return float(stats.t.ppf((1 + confidence) / 2, clusters - 1)) * math.sqrt(variance)
