"""How far a released soft label can move when everything behind it changes.

An item's logits may become anything within the clip range: ``max(z - max z, -c)``. With
``R = exp(c / tau)`` the soft labels ``p = softmax(z / tau)`` of V classes then fill the polytope
``{p : p_i <= R p_j}``, whose vertices have k classes at the top and the others at the bottom, their
probabilities R to 1. A norm is convex, so its largest difference ``p - q`` is one between vertices,
whose top classes are disjoint: where p is furthest, ``d = p - q`` is at least ``<d, p>`` on p's top
classes and at most ``<d, q>``, which is less, on q's.

For pairs with k and l top classes, ``a = R - 1``, ``s = k a / (V + k a)`` and t the same of l::

    V ||p - q||_2^2 = a s (1 - s) + a t (1 - t) - (s - t)^2

which is concave and largest at ``s = t = 1/2``, where ``k = l = V / (R - 1)``: of whole numbers
with ``k + l <= V`` the best are next to that, or to V / 2 if it is less. The L1 distance is twice
the largest difference of one set of classes, which is greatest for half of them::

    ||p - q||_1 = 2 f (1 - f) a (a + 2) / (1 + a + a^2 f (1 - f)),    f = floor(V / 2) / V

and for even V this is ``2 tanh(c / (2 tau))``. Neither takes a search, so that a temperature an
item costs nothing however many items and classes there are.

Over k candidates the V - k other classes are released as one sum. What can be released is then what
``k + 1`` classes can be of which the last stands for V - k alike: its vertices have some of the
candidates at the top, and all of the other classes or none of them. Those are few enough to go
through. The fewer candidates there are, the larger the sum may be, and so may the distance.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import FedkdError

Numbers: TypeAlias = NDArray[np.float64]
MOST_SEARCHED = 32
"""Candidates up to which the L2 sensitivity over them is exact."""


def l1_sensitivity(
    temperatures: Any,
    clip: float | None,
    classes: int,
    candidates: Any = None,
    mix: float = 0.0,
) -> Numbers:
    """Largest L1 distance between two soft labels of one item, for each temperature.

    Parameters
    ----------
    temperatures : float, array or Tensor of any shape
        What the logits of each item are divided by.
    clip : float or None
        Range c that logits are clipped to; None for logits of any size.
    classes : int
        Number of classes V.
    candidates : int, array of int, or None
        Released are the probabilities of so many public classes, and of all others together; an
        array, where items have sets of unlike sizes, goes with ``temperatures`` as NumPy broadcasts
        them. None for all classes.
    mix : float
        Share of a public law in what is released, whatever the private data: not one that is
        itself computed from the logits.

    Returns
    -------
    ndarray
        In the shape of ``temperatures`` (and ``candidates``), exact: at most 2.

    Raises
    ------
    FedkdError
        If a temperature, the clip range, a count or the share makes no sense.
    """
    tau, sets = _checked(temperatures, clip, classes, candidates, mix)
    if classes == 1:
        return np.zeros(tau.shape)
    together = np.minimum(sets, classes // 2)
    if clip is None:
        return np.where(sets > 0, 2 * (1 - mix), 0.0)
    split = together * (classes - together) / classes**2
    low, gap = np.exp(-clip / tau), -np.expm1(-clip / tau)
    return (1 - mix) * 2 * split * gap * (1 + low) / (low + split * gap**2)


def l2_sensitivity(
    temperatures: Any,
    clip: float | None,
    classes: int,
    candidates: Any = None,
    mix: float = 0.0,
) -> Numbers:
    """Largest L2 distance between two soft labels of one item, for each temperature.

    Parameters, shapes and errors are those of :func:`l1_sensitivity`. Exact over all classes, at
    most sqrt 2, and over up to :data:`MOST_SEARCHED` candidates. Over more it is an upper bound,
    the lesser of two: the L1 distance over sqrt 2, as a difference of probabilities has parts of
    opposite sign and equal size; and the distance over all classes times the root of the number of
    those put together (Cauchy-Schwarz).
    """
    tau, sets = _checked(temperatures, clip, classes, candidates, mix)
    by_l1 = l1_sensitivity(tau, clip, classes, candidates, mix) / math.sqrt(2)
    if clip is None or classes == 1:
        return by_l1
    over_all = (1 - mix) * _over_all_classes(tau, clip, classes)
    if candidates is None:
        return over_all
    bound = np.array(np.minimum(by_l1, np.sqrt(np.maximum(1, classes - sets)) * over_all))
    for count in range(1, MOST_SEARCHED + 1):
        if (here := sets == count).any():
            bound[here] = (1 - mix) * _over_candidates(tau[here], clip, classes, count)
    return bound


def _over_all_classes(tau: Numbers, clip: float, classes: int) -> Numbers:
    low, gap = np.exp(-clip / tau), -np.expm1(-clip / tau)
    with np.errstate(divide="ignore"):
        best = np.clip(classes * low / gap, 1, classes / 2)

    def share(top: Numbers) -> Numbers:
        return top * gap / (classes * low + top * gap)

    def spread(top: Numbers) -> Numbers:
        """``a s (1 - s) / V``, written so that no R overflows."""
        return top * (gap / (classes * low + top * gap)) ** 2

    fewer, more = np.floor(best), np.ceil(best)
    squares = []
    for one, other in ((fewer, fewer), (fewer, more), (more, more)):
        square = spread(one) + spread(other) - (share(one) - share(other)) ** 2 / classes
        squares.append(np.where(one + other <= classes, square, 0.0))
    return np.asarray(np.sqrt(np.max(squares, axis=0)))


def _over_candidates(tau: Numbers, clip: float, classes: int, count: int) -> Numbers:
    """Over ``count`` candidates and the sum of all others, by every pair of vertices."""
    temperatures, back = np.unique(tau, return_inverse=True)
    low, others = np.exp(-clip / temperatures), classes - count
    furthest = np.zeros(low.shape)
    for tops in range(count + 1):
        for bucket in (0, 1) if tops else (1,):
            high = 1 / (tops + bucket * others + (count - tops + (1 - bucket) * others) * low)
            for tops2 in range(tops, count + 1):
                for bucket2 in (0, 1) if tops2 else (1,):
                    rest = count - tops2 + (1 - bucket2) * others
                    high2 = 1 / (tops2 + bucket2 * others + rest * low)
                    # Both at the top of as few candidates as can be: what is there in both of them
                    # takes from the distance.
                    both = max(0, tops + tops2 - count)
                    square = both * (high - high2) ** 2
                    square += (tops - both) * (high - low * high2) ** 2
                    square += (tops2 - both) * (low * high - high2) ** 2
                    square += (count - tops - tops2 + both) * (low * (high - high2)) ** 2
                    mass, mass2 = (
                        others * (top if full else low * top)
                        for top, full in ((high, bucket), (high2, bucket2))
                    )
                    np.maximum(furthest, square + (mass - mass2) ** 2, out=furthest)
    return np.asarray(np.sqrt(furthest)[back.reshape(tau.shape)])


def as_numbers(values: Any) -> Numbers:
    """A float, an array or a Tensor as a float64 array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, np.float64)


def _checked(
    temperatures: Any, clip: float | None, classes: int, candidates: Any, mix: float
) -> tuple[Numbers, Numbers]:
    """Temperatures and how many classes stand for themselves, in one shape."""
    tau = as_numbers(temperatures)
    if not (np.isfinite(tau) & (tau > 0)).all():
        wrong = tau[~(np.isfinite(tau) & (tau > 0))].flat[0]
        raise FedkdError(f"temperature = {wrong:g} is not allowed: temperatures are above 0")
    if clip is not None and not 0 < clip < math.inf:
        raise FedkdError(f"clip = {clip:g} is not allowed: a range of logits is above 0")
    if classes < 1:
        raise FedkdError(f"classes = {classes} is not allowed: there is at least one")
    sets = as_numbers(classes if candidates is None else candidates)
    if not ((sets >= 0) & (sets <= classes)).all():
        wrong = sets[~((sets >= 0) & (sets <= classes))].flat[0]
        raise FedkdError(f"candidates = {wrong:g} is not allowed: 0 to {classes}, the classes")
    if not 0 <= mix <= 1:
        raise FedkdError(f"mix = {mix:g} is not allowed: a share is between 0 and 1")
    tau, sets = np.broadcast_arrays(tau, sets)
    return tau, sets
