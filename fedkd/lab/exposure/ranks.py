"""Exposure of secrets from their ranks, exact or estimated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedkd.lab.exposure.sequences import Conditionals, sequence_scores, totals


def exact_exposure(conditionals: Conditionals, secrets: Tensor) -> Tensor:
    """Exposure of secrets among all sequences, in bits.

    Parameters
    ----------
    conditionals : list of Tensor
        ``(A**i, A)``.
    secrets : Tensor
        ``(S, L)`` int64, indices of symbols.

    Returns
    -------
    Tensor
        ``(S,)`` float64, from 0 to ``log2 |R|``. Ties count against the secret; where a secret's
        score is not a number, neither is its exposure.

    Raises
    ------
    FedkdError
        If there are more than :data:`LARGEST_SPACE` sequences.
    """
    return ranked_exposure(sequence_scores(conditionals, secrets), totals(conditionals))


def ranked_exposure(scores: Tensor, everything: Tensor) -> Tensor:
    """Exposure of secrets from their ``scores`` ``(S,)``, which are among those of ``everything``.

    ``everything`` ``(A**L,)`` has the score of each sequence. See :func:`exact_exposure`.
    """
    ranks = [len(everything) - int((everything < score).sum()) for score in scores]
    exposure = math.log2(len(everything)) - torch.tensor(ranks, dtype=torch.float64).log2()
    return exposure.where(~scores.isnan(), torch.nan)


def interpolated_exposure(scores: Tensor, reference_scores: Tensor) -> Tensor:
    """Exposure by the rank of each secret among sequences drawn at random.

    ``log2 n - log2 rank``, where the rank is 1 plus the number of references that score at least as
    well, and at least 0. No secret is found to have more than ``log2 n`` bits (Carlini et al. 2019,
    section 4, approximation by sampling).

    Parameters
    ----------
    scores, reference_scores : Tensor
        ``(S,)`` and ``(n,)``, log-probabilities.

    Returns
    -------
    Tensor
        ``(S,)`` float64, bits.
    """
    ordered = reference_scores.double().sort().values
    better = len(ordered) - torch.searchsorted(ordered, scores.double())
    exposure = math.log2(len(ordered)) - (better + 1).double().log2()
    return exposure.clamp_min(0).where(~scores.isnan(), torch.nan)


@dataclass(frozen=True)
class Extrapolation:
    """Exposure by a fitted law, and how well it fits.

    ``exposure`` (S,) float64, in bits, has no upper end. ``distance`` is the largest difference of
    the fitted distribution function from the observed one (Kolmogorov and Smirnov's statistic) on
    references that were not fitted to, ``p_value`` the chance of one as large if the law is right.
    """

    exposure: Tensor
    distance: float
    p_value: float


def extrapolated_exposure(scores: Tensor, reference_scores: Tensor) -> Extrapolation:
    """Exposure as if log-perplexities of the space followed a skew-normal law.

    It is fitted by maximum likelihood to every other reference and tested on the rest; exposure is
    ``-log2`` of the mass at log-perplexities as low as the secret's (Carlini et al. 2019, section
    4, approximation by distribution modelling). It is not bound by the size of the space.

    To fewer than 20 references, or such as are not finite or all the same, no law can be fitted:
    exposure is then that of :func:`interpolated_exposure`, ``distance`` and ``p_value`` are NaN.

    Parameters
    ----------
    scores, reference_scores : Tensor
        ``(S,)`` and ``(n,)``, log-probabilities.
    """
    from scipy import stats

    perplexities = -reference_scores.double().numpy() / math.log(2)
    if len(perplexities) < 20 or not np.isfinite(perplexities).all() or not np.ptp(perplexities):
        exposure = interpolated_exposure(scores, reference_scores)
        return Extrapolation(exposure, math.nan, math.nan)
    shape, location, scale = stats.skewnorm.fit(perplexities[::2])
    test = stats.kstest(perplexities[1::2], stats.skewnorm(shape, location, scale).cdf)
    standard = (-scores.double().numpy() / math.log(2) - location) / scale
    exposure = torch.from_numpy(-_skew_normal_log_cdf(standard, shape) / math.log(2))
    return Extrapolation(exposure, float(test.statistic), float(test.pvalue))


def _skew_normal_log_cdf(z: np.ndarray, shape: float) -> np.ndarray:
    """``log P(Z <= z)`` of the standard skew-normal law, also where it is far below 1e-300.

    There the density falls off nearly exponentially to the left, and its integral by Gauss and
    Laguerre's rule in units of the local slope is exact to many digits.
    """
    from scipy import stats

    with np.errstate(divide="ignore"):
        value = np.array(stats.skewnorm.logcdf(z, shape), dtype=np.float64)
    far = value < -200
    if far.any():
        nodes, weights = np.polynomial.laguerre.laggauss(24)
        x = z[far]
        inverse_mills = np.exp(stats.norm.logpdf(shape * x) - stats.norm.logcdf(shape * x))
        slope = shape * inverse_mills - x
        top = stats.skewnorm.logpdf(x, shape)
        drop = stats.skewnorm.logpdf(x - nodes[:, None] / slope, shape) - top
        value[far] = top - np.log(slope) + np.log(weights @ np.exp(drop + nodes[:, None]))
    return value
