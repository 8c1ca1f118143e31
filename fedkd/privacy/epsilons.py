"""Epsilon of Gaussian noise, of zero-concentrated privacy, and of private training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedkd.errors import FedkdError

if TYPE_CHECKING:
    from dp_accounting.pld import PLDAccountant

PLD_INTERVAL = 1e-3
"""Grid of privacy losses of private training; epsilon is at most about half of it too large."""
PLD_LARGEST = 20_000.0
"""Where epsilon without sampling is beyond this, sampling is left out: the grid would be huge."""


def gaussian_epsilon(ratio: float, delta: float) -> float:
    """The least epsilon of one Gaussian release, exactly (Balle & Wang 2018, theorem 8).

    Parameters
    ----------
    ratio : float
        L2 sensitivity over standard deviation, the inverse of the noise multiplier.
    delta : float
        Between 0 and 1.
    """
    from scipy.optimize import brentq
    from scipy.special import erfcx, ndtr

    if not 0 < delta < 1:
        raise FedkdError(f"delta = {delta:g} is not allowed: it is above 0 and below 1")
    mu = float(ratio)
    if not mu >= 0:
        raise FedkdError(f"sensitivity / sigma = {mu:g} is not allowed: it is 0 or more")
    if mu == 0 or math.isinf(mu):
        return mu

    def surplus(epsilon: float) -> float:
        """Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu), over delta, less 1."""
        low, high = mu / 2 - epsilon / mu, mu / 2 + epsilon / mu
        scaled = erfcx(high / math.sqrt(2)) * math.exp(-(low**2) / 2) / 2
        return float(ndtr(low) - scaled) / delta - 1

    # Beyond the bracket's end the first term alone is below delta.
    end = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return 0.0 if surplus(0.0) <= 0 else float(brentq(surplus, 0.0, end, xtol=1e-12, maxiter=500))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The ratio, and mu of Gaussian DP, of the Gaussian release with this epsilon at ``delta``.

    The inverse of :func:`gaussian_epsilon` (Dong, Roth & Su 2022, corollary 2.13); the largest of
    those whose epsilon is 0.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    none = 2 * float(ndtri((1 + delta) / 2))  # total variation is delta: epsilon is 0
    if epsilon <= 0:
        return none
    high = max(none, 1.0)
    while gaussian_epsilon(high, delta) < epsilon:
        high *= 2
    return float(brentq(lambda mu: gaussian_epsilon(mu, delta) - epsilon, none, high, xtol=1e-12))


def zcdp_epsilon(rho: float, delta: float) -> float:
    """Epsilon of rho-zCDP, by dp-accounting's conversion at orders around the best one.

    It is that of any mechanism with this rho; for Gaussians alone :func:`gaussian_epsilon` of
    ``sqrt(2 rho)`` is exact, and some 5 to 10 % less.
    """
    from dp_accounting import ZCDpEvent
    from dp_accounting.rdp import RdpAccountant

    if rho == 0:
        return 0.0
    best = math.sqrt(math.log(1 / delta) / rho)
    orders = 1 + np.maximum(best * np.geomspace(0.1, 10, 400), 0.011)
    return float(RdpAccountant(orders).compose(ZCDpEvent(rho)).get_epsilon(delta))


@dataclass(frozen=True)
class PrivateSteps:
    """Steps of DP-SGD: each sample is in a batch with ``sample_rate``, by itself (Poisson)."""

    noise_multiplier: float
    sample_rate: float
    steps: int


def training_epsilon(
    training: Iterable[PrivateSteps], delta: float, group: int = 1, replaced: bool = False
) -> float:
    """Epsilon of a client's private training, for ``group`` records that are there or count as 0.

    Composed by dp-accounting's privacy loss distributions; infinite without noise. How many of a
    group are in a batch is binomial (a mixture of Gaussians): what holds for a secret that stands
    in so many records. ``replaced``: for records that are others in a neighbour, which can move the
    sum twice as far; of several at once without what sampling gives, which no accountant has.
    """
    steps: dict[tuple[float, float], int] = {}
    for one in training:
        setting = (one.noise_multiplier, one.sample_rate)
        steps[setting] = steps.get(setting, 0) + one.steps
    steps = {setting: count for setting, count in sorted(steps.items()) if count and setting[1]}
    if any(multiplier == 0 for multiplier, _ in steps):
        return math.inf
    squares = math.fsum(count / multiplier**2 for (multiplier, _), count in steps.items())
    unsampled = gaussian_epsilon(group * (1 + replaced) * math.sqrt(squares), delta)
    everybody = all(rate == 1 for _, rate in steps)  # one Gaussian, of which unsampled is exact
    if everybody or unsampled > PLD_LARGEST or (replaced and group > 1):
        return unsampled
    return float(min(unsampled, _losses(tuple(steps.items()), group, replaced).get_epsilon(delta)))


@lru_cache(maxsize=512)
def _losses(
    steps: tuple[tuple[tuple[float, float], int], ...], group: int, replaced: bool
) -> PLDAccountant:
    """Privacy losses of ``(noise multiplier, sample rate), count`` steps: epsilon at any delta."""
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant
    from scipy.stats import binom

    events = []
    for (multiplier, rate), count in steps:
        if group == 1:
            event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(multiplier))
        else:
            taken = np.arange(group + 1)
            event = dp.dp_event.MixtureOfGaussiansDpEvent(
                multiplier, taken, binom.pmf(taken, group, rate)
            )
        events.append(dp.SelfComposedDpEvent(event, count))
    relation = dp.NeighboringRelation
    accountant = PLDAccountant(
        relation.REPLACE_ONE if replaced else relation.ADD_OR_REMOVE_ONE, PLD_INTERVAL
    )
    return accountant.compose(dp.ComposedDpEvent(events))
