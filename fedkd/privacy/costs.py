"""What one answer under ``[release]`` costs.

=========  ======================================================================================
gaussian   zero-concentrated DP of ``rho = sum_t Delta2_t^2 / (2 sigma^2)`` (Bun & Steinke 2016),
           and epsilon exactly that of one Gaussian of noise multiplier ``1 / sqrt(2 rho)``
           (Balle & Wang 2018; Dong, Roth & Su 2022, corollary 3.3)
laplace    pure ``epsilon = sum_t Delta1_t / b``; ``rho = sum_t 2 (x + e^-x - 1)``, x half an item's
           epsilon, as half of the distance is upwards and half downwards
votes      Gaussian noise on counts that a client moves by sqrt 2 (:mod:`fedkd.privacy.votes`)
sample     the exponential mechanism: a draw from ``softmax(z / tau)`` has bounded range
           ``2 c / tau``, hence ``rho = c^2 / (2 tau^2)`` (Cesar & Rogers 2021), and no more than
           that of randomised response, ``epsilon tanh(epsilon / 2)``
=========  ======================================================================================
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fedkd.errors import FedkdError
from fedkd.experiment import ReleaseTable
from fedkd.privacy.epsilons import gaussian_epsilon
from fedkd.privacy.sensitivity import Numbers, as_numbers, l1_sensitivity, l2_sensitivity

MECHANISMS = ("none", "gaussian", "laplace", "sample", "argmax", "votes")


class Cost(NamedTuple):
    """What an answer costs: ``rho`` and ``epsilon`` of all items, ``nominal`` of the worst one."""

    rho: float | None = None
    epsilon: float | None = None
    nominal: float | None = None


def cost(
    mechanism: str,
    scale: float,
    draws: int,
    temperatures: Any,
    clip: float | None,
    classes: int,
    candidates: Any = None,
    mix: float = 0.0,
    *,
    floor: Any = 0.0,
    delta: float = 1e-5,
) -> Cost:
    """What one answer of a client costs.

    Parameters
    ----------
    mechanism : str
        One of :data:`MECHANISMS`.
    scale : float
        Standard deviation of Gaussian noise, on labels or on counts of votes; scale b of Laplace
        noise.
    draws : int
        Labels drawn for each item (``sample``).
    temperatures : array or Tensor of shape (M,)
        Of the items; public.
    clip, classes, candidates, mix
        As for :func:`fedkd.privacy.sensitivity.l1_sensitivity`; what is mixed in comes before noise
        and draws. Numbers of candidates ``(S, M)``, or ``(S, 1)``, are S that each item may have:
        the one that costs most counts.
    floor : float or array
        Least probability that the law mixed in gives to anything that can be drawn (``sample``); an
        array goes with ``candidates``.
    delta : float
        Delta that the nominal epsilon of Gaussian noise is stated at.

    Returns
    -------
    Cost
        None where there is no bound: no noise, or draws from logits of any size.

    Raises
    ------
    FedkdError
        If the mechanism is not known or a number makes no sense.
    """
    if mechanism not in MECHANISMS:
        known = ", ".join(MECHANISMS)
        raise FedkdError(f"mechanism = {mechanism!r} is not known; known here: {known}")
    if scale < 0:
        raise FedkdError(f"scale = {scale:g} is not allowed: noise has a scale of 0 or more")
    if draws < 1:
        raise FedkdError(f"draws = {draws} is not allowed: at least one label is drawn")
    tau = np.atleast_1d(as_numbers(temperatures))
    if not tau.size:
        return Cost(0.0, None if mechanism == "gaussian" else 0.0, 0.0)
    law = (clip, classes, candidates, mix)
    if mechanism == "gaussian" and scale:
        far = _costliest(l2_sensitivity(tau, *law)) / scale
        return Cost(float((far**2).sum() / 2), None, gaussian_epsilon(far.max(), delta))
    if mechanism == "votes" and scale:
        return Cost(tau.size / scale**2, None, gaussian_epsilon(math.sqrt(2) / scale, delta))
    if mechanism == "laplace" and scale:
        pure = _costliest(l1_sensitivity(tau, *law)) / scale
        rho = 2 * (pure / 2 + np.expm1(-pure / 2))
        return Cost(float(rho.sum()), float(pure.sum()), float(pure.max()))
    if mechanism == "sample":
        pure, rho = map(_costliest, _drawn(tau, *law, floor))
        return Cost(*(_bounded(x) for x in (draws * rho.sum(), draws * pure.sum(), pure.max())))
    return Cost()


def _costliest(costs: Numbers) -> Numbers:
    """Of each item ``(M,)``, out of ``(S, M)`` of as many sets of candidates as it may have."""
    return costs if costs.ndim < 2 else np.asarray(costs.max(0))


def _drawn(
    tau: Numbers,
    clip: float | None,
    classes: int,
    candidates: Any,
    mix: float,
    floor: Any,
) -> tuple[Numbers, Numbers]:
    """Pure epsilon and rho of one draw at each temperature; infinite where there is no bound."""
    l1_sensitivity(tau, clip, classes, candidates, mix)  # checks them
    own = as_numbers(classes if candidates is None else candidates)
    tau, own, floor = np.broadcast_arrays(tau, own, as_numbers(floor))
    low = np.zeros(tau.shape) if clip is None else np.exp(-clip / tau)
    if mix == 1:
        return np.zeros(tau.shape), np.zeros(tau.shape)
    rest, one = classes - own, np.ones(tau.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        ranges = [
            (own, _part(one, (classes - 1) * low), _part(low, (classes - 1) * one)),
            (rest, _part(rest, own * low), _part(rest * low, own)),
        ]
        # Nothing is drawn that no class stands for.
        ratios = [
            np.where(
                count > 0,
                np.log((1 - mix) * most + mix * floor) - np.log((1 - mix) * least + mix * floor),
                0.0,
            )
            for count, most, least in ranges
        ]
    pure = np.max(ratios, axis=0)
    width = 2 * pure if clip is None else np.minimum(2 * pure, 2 * clip / tau)
    return pure, np.minimum(width**2 / 8, pure * np.tanh(pure / 2))


def _part(one: Numbers, other: Numbers) -> Numbers:
    """``one / (one + other)``, and 1 where there is no other."""
    return np.where(other == 0, 1.0, one / (one + other))


def _bounded(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def described(
    table: ReleaseTable,
    temperatures: Any,
    classes: int,
    over_candidates: Any,
    clients: int = 0,
) -> dict[str, Any]:
    """What a ledger line says of one answer under ``[release]``: its mechanism and its cost.

    Where noise is not each client's own, a client's answer has none, and that of K ``clients``
    together has it once: one of them moves their mean by 1/K of what it moves its own labels. With
    secure aggregation each client adds a K-th of the variance. Whoever knows a share of its own
    sees that much less noise, and so it is charged; that several put theirs together is not.

    Parameters
    ----------
    table : ReleaseTable
        ``[release]``.
    temperatures : array or Tensor of shape (M,)
        Of the released items.
    classes : int
        Number of classes C.
    over_candidates : bool, or array of int of shape (M,)
        How many classes each item is released over, beside one bucket for all others. True: as many
        as ``table.candidates`` likeliest ones, or one more, the true one. False: all classes.
    clients : int
        The K clients of whose labels it is the aggregate; 0 for the answer of one client.

    Returns
    -------
    dict
        Fields of :class:`fedkd.privacy.releases.Release`.
    """
    tau, sets = as_numbers(temperatures), None
    if over_candidates is True:
        sets = np.array([[min(table.candidates + more, classes)] for more in (0, 1)])
    elif over_candidates is not False:
        sets = as_numbers(over_candidates)
    mechanism, scale = table.mechanism, table.scale
    if table.trust != "local" and not clients:
        mechanism, scale = "none", 0.0
    effective = scale if mechanism == "votes" else scale * max(clients, 1)
    if table.trust == "secure-aggregation" and clients > 1:
        effective *= math.sqrt(1 - 1 / clients)
    mix, clip, applied = table.mix, table.clip, tau
    floor: Any = 0.0
    if table.mix_with == "uniform":
        floor = 1 / (classes if sets is None else np.minimum(sets + 1, classes))
    elif table.mix_with == "entropy":
        # The share follows from the logits, so it is no public law's. What comes out is still
        # between the uniform law and the soft labels at the base temperature.
        mix, floor = 0.0, 0.0
        if table.temperature is None:
            clip = None
        else:
            applied = np.full(tau.shape, table.temperature)
    price = cost(
        *(mechanism, effective, table.draws, applied, clip, classes, sets, mix),
        floor=floor,
        delta=table.delta,
    )
    return {
        "mechanism": mechanism,
        "scale": scale,
        "draws": table.draws,
        "temperature_min": float(tau.min()) if tau.size else None,
        "temperature_max": float(tau.max()) if tau.size else None,
        "clip": table.clip,
        "candidates": None if sets is None or not sets.size else int(sets.max()),
        "mix": mix,
        "scores": "" if table.tau_max is None else table.scores,
        "scores_private": table.tau_max is not None and table.scores == "oracle",
        "redrawn": not (table.cache or table.secure)
        and mechanism in ("gaussian", "laplace", "sample", "votes"),
        "trust": "" if table.trust == "local" else table.trust,
        **price._asdict(),
    }
