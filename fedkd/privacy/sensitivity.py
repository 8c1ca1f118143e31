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
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedkd.errors import FedkdError

Numbers: TypeAlias = NDArray[np.float64]


def l1_sensitivity(
    temperatures: Any,
    clip: float | None,
    classes: int,
    candidates: int | None = None,
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
    candidates : int or None
        Released are the probabilities of so many public classes, and of all others together: of
        sets of unlike sizes, the most that any item has. None for all classes.
    mix : float
        Share of a public law in what is released, whatever the private data: not one that is
        itself computed from the logits.

    Returns
    -------
    ndarray
        In the shape of ``temperatures``, exact: at most 2.

    Raises
    ------
    FedkdError
        If a temperature, the clip range, a count or the share makes no sense.
    """
    tau = _checked(temperatures, clip, classes, candidates, mix)
    if classes == 1 or candidates == 0:
        return np.zeros(tau.shape)
    if clip is None:
        return np.full(tau.shape, 2 * (1 - mix))
    together = classes // 2 if candidates is None else min(candidates, classes // 2)
    split = together * (classes - together) / classes**2
    low, gap = np.exp(-clip / tau), -np.expm1(-clip / tau)
    return (1 - mix) * 2 * split * gap * (1 + low) / (low + split * gap**2)


def l2_sensitivity(
    temperatures: Any,
    clip: float | None,
    classes: int,
    candidates: int | None = None,
    mix: float = 0.0,
) -> Numbers:
    """Largest L2 distance between two soft labels of one item, for each temperature.

    Parameters, shapes and errors are those of :func:`l1_sensitivity`. Exact over all classes: at
    most sqrt 2. Over candidates it is an upper bound, the lesser of two: the L1 distance over
    sqrt 2, as a difference of probabilities has parts of opposite sign and equal size; and the
    distance over all classes times the root of the number of those put together (Cauchy-Schwarz).
    """
    tau = _checked(temperatures, clip, classes, candidates, mix)
    by_l1 = l1_sensitivity(tau, clip, classes, candidates, mix) / math.sqrt(2)
    if clip is None or classes == 1 or candidates == 0:
        return by_l1
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
    over_all = (1 - mix) * np.sqrt(np.max(squares, axis=0))
    if candidates is None:
        return over_all
    return np.minimum(by_l1, math.sqrt(max(1, classes - candidates)) * over_all)


def as_numbers(values: Any) -> Numbers:
    """A float, an array or a Tensor as a float64 array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, np.float64)


def _checked(
    temperatures: Any, clip: float | None, classes: int, candidates: int | None, mix: float
) -> Numbers:
    tau = as_numbers(temperatures)
    if not (np.isfinite(tau) & (tau > 0)).all():
        wrong = tau[~(np.isfinite(tau) & (tau > 0))].flat[0]
        raise FedkdError(f"temperature = {wrong:g} is not allowed: temperatures are above 0")
    if clip is not None and not 0 < clip < math.inf:
        raise FedkdError(f"clip = {clip:g} is not allowed: a range of logits is above 0")
    if classes < 1:
        raise FedkdError(f"classes = {classes} is not allowed: there is at least one")
    if candidates is not None and not 0 <= candidates <= classes:
        raise FedkdError(f"candidates = {candidates} is not allowed: 0 to {classes}, the classes")
    if not 0 <= mix <= 1:
        raise FedkdError(f"mix = {mix:g} is not allowed: a share is between 0 and 1")
    return tau
