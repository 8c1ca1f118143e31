"""GNMax: the class that most clients vote for, under Gaussian noise on the counts.

Papernot, Song, Mironov, Raghunathan, Talwar & Erlingsson, 2018 (arXiv 1802.08908). A client that is
another takes its vote from one count and adds it to another, which is sqrt 2 far: Renyi DP of
``alpha / sigma^2`` a query (proposition 8), whatever the votes. Where nearly all agree, the outcome
says less than that (theorem 6). How much less depends on the votes, so such an epsilon is itself
private: it is not to be published without smooth sensitivity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

ORDERS: Numbers = np.concatenate([1 + np.geomspace(0.1, 10, 24), np.geomspace(12, 512, 24)])
"""Renyi orders that the privacy of votes is kept at."""


def votes_rdp(alpha: Numbers | float, scale: float, queries: int = 1) -> Numbers:
    """Renyi DP at order ``alpha`` of votes whose counts have noise of deviation ``scale``."""
    return np.asarray(queries * alpha / scale**2, dtype=np.float64)


def log_other(counts: Numbers, scale: float) -> Numbers:
    """Log of a bound on the chance that another class wins than the first: proposition 7, ``(M,)``.

    ``counts`` are votes ``(M, C)`` without noise, -inf where a column is no class.
    """
    from scipy.special import log_ndtr, logsumexp

    ordered = -np.sort(-counts, axis=1)
    behind = ordered[:, :1] - ordered[:, 1:]
    classes = np.isfinite(counts).sum(1)
    bound = logsumexp(log_ndtr(-behind / (np.sqrt(2) * scale)), axis=1)
    return np.asarray(np.minimum(bound, np.log1p(-1 / classes)))


def data_dependent_rdp(counts: Numbers, scale: float, orders: Numbers = ORDERS) -> Numbers:
    """Renyi DP of the winners of M votes together, at each order: theorem 6 and proposition 10.

    Never more than :func:`votes_rdp`, which is taken where the theorem says nothing.

    Parameters
    ----------
    counts : array of shape (M, C)
        Votes without noise, -inf where a column is no class.
    scale : float
        Standard deviation sigma of the noise on each count.
    orders : array of shape (A,)
        Above 1.
    """
    log_q = log_other(counts, scale)[:, None]
    free = np.broadcast_to(votes_rdp(orders, scale), (len(counts), len(orders)))
    with np.errstate(all="ignore"):
        high2 = scale * np.sqrt(-log_q)  # the orders of proposition 10
        high1 = high2 + 1
        cost1, cost2 = high1 / scale**2, high2 / scale**2
        applies = (high1 > orders) & (high2 > 1) & (-log_q > cost2)
        limit = (high2 - 1) * cost2 - high2 * (
            np.log1p(1 / (high1 - 1)) + np.log1p(1 / (high2 - 1))
        )
        applies &= log_q <= limit
        log_1_q = np.log1p(-np.exp(log_q))
        # A and B of theorem 6, to the power of the order less 1.
        a = log_1_q - np.log(-np.expm1((log_q + cost2) * (1 - 1 / high2)))
        b = cost1 - log_q / (high1 - 1)
        total = np.logaddexp(log_1_q + (orders - 1) * a, log_q + (orders - 1) * b)
        bound = total / (orders - 1)
    applies &= np.isfinite(bound)
    return np.asarray(np.where(applies, np.minimum(bound, free), free).sum(0))


def epsilon_of_rdp(costs: Sequence[float] | Numbers, delta: float) -> float:
    """Epsilon at ``delta`` of Renyi DP at :data:`ORDERS`, by dp-accounting's conversion."""
    from dp_accounting.rdp import compute_epsilon

    return float(compute_epsilon(ORDERS, np.asarray(costs, dtype=np.float64), delta)[0])
