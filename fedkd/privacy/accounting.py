"""What releases cost: the ledger, and the differential privacy that it adds up to.

Whatever one record does to a student may change its answers in any way, so that without private
training the worst case over one record is that over a client's whole data: the unit is the client,
and neighbours differ in all data of one client (*replace-one*). With private training the unit is a
record: steps, rate and divisor follow the number K of a client's records, so K is public, and
neighbours have the same K, a record of one of them counting as 0 in the other (*zero-out*); beside
it stands what holds if a record is replaced by another. Every new answer is charged; the same
answer given again is not. Rounds add up, and the server's choice of public items amplifies nothing.
What is done to an answer after its noise (projection, sharpening, training on it) is free.

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

Losses and accuracies measure the simulation; where a method acts on one, or on a number of samples
(as averages of parameters do), that is in the ledger too, without noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fedkd.errors import FedkdError
from fedkd.experiment import ReleaseTable
from fedkd.privacy.sensitivity import Numbers, as_numbers, l1_sensitivity, l2_sensitivity

if TYPE_CHECKING:
    from dp_accounting.pld import PLDAccountant

MECHANISMS = ("none", "gaussian", "laplace", "sample", "argmax", "votes")
SEES_ALL = "a server that sees every answer of every client"
SEES_SUMS = "a server that sees sums alone, and other clients, who keep to themselves"
SEES_FUSED = "other clients, and whoever sees the fused labels; the server is trusted"
SEES_AVERAGES = "other clients, and whoever has the final model; the server is trusted"
NEIGHBOURS = {
    "client": "replace-one client (all its data, and how much of it), who takes part public",
    "record": "zero-out record (it counts as 0 in one of two), K records of its client public",
}
"""What an epsilon hides, by unit."""
ZERO_OUT_CLIENT = "zero-out client (its change counts as 0 in one of two), who takes part public"
"""What an epsilon of averaged parameters hides."""
PLD_INTERVAL = 1e-3
"""Grid of privacy losses of private training; epsilon is at most about half of it too large."""
PLD_LARGEST = 20_000.0
"""Where epsilon without sampling is beyond this, sampling is left out: the grid would be huge."""

# --- the ledger -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Release:
    """A line of the ledger: what left a client in one step, or the server in one round.

    ``client`` is None where the server releases something: what it has made of what ``clients``
    sent under ``key``. ``step`` is then ``Average``, of parameters, with ``clip`` their clipping
    norm and ``rho`` for zero-out neighbours, or ``Aggregate``, of labels. Of a client it is
    ``Predict``, ``Represent``, ``Select`` or ``Share``; where an epsilon is claimed also
    ``Samples``, ``Metrics``, ``Record`` or ``Failure``, what the server learnt or acted on beside
    what was sent (see :meth:`fedkd.privacy.watch.Watch.used`), or ``Resumed``, what an interrupted
    run released that no line tells of. ``items`` is the number of released rows.
    ``mechanism``, ``scale``, ``draws`` and ``clip`` are those of ``[release]``; ``candidates`` is
    how many public classes, at most, stand for themselves (None: all of them), ``mix`` the share of
    a law that no private data decides. ``scores`` names the privacy scores that temperatures
    followed, ``scores_private`` says whether private data are in them. ``fresh``: not an answer
    that was given before; ``redrawn``: its noise is drawn anew whenever it is given again. ``rho``
    and ``epsilon`` are zCDP and pure DP of the whole line, None where there is no bound;
    ``nominal`` is the epsilon of one item or draw, which guarantees nothing. ``on`` says whose
    samples the answers are about (``samples``: sent along by the server); empty: as its step has it
    by default. ``answer`` is what ``fresh`` goes by; empty: always a new one. ``trust`` says who
    adds the noise, if it is not each client; ``rdp`` is what votes cost that are as they are, by
    order (:data:`fedkd.privacy.votes.ORDERS`), and is private.
    """

    round: int
    client: int | None
    step: str
    key: str
    items: int
    mechanism: str = "none"
    scale: float = 0.0
    draws: int = 1
    temperature_min: float | None = None
    temperature_max: float | None = None
    clip: float | None = None
    candidates: int | None = None
    mix: float = 0.0
    scores: str = ""
    scores_private: bool = False
    fresh: bool = True
    redrawn: bool = False
    rho: float | None = None
    epsilon: float | None = None
    nominal: float | None = None
    on: str = ""
    answer: str = ""
    clients: tuple[int, ...] = ()
    trust: str = ""
    rdp: tuple[float, ...] = ()

    def to_dict(self, brief: bool = False) -> dict[str, Any]:
        """The line as JSON takes it; ``brief``: without what is as it is by default."""
        line = dict(vars(self))
        for name in ("clients", "rdp"):
            if values := line.pop(name):
                line[name] = list(values)
        if brief:
            defaults = {field.name: field.default for field in fields(self)}
            line = {name: value for name, value in line.items() if value != defaults[name]}
        return line

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Release:
        """The line back; keys that are not of the ledger are passed over.

        Raises
        ------
        FedkdError
            If a key that every line has is missing.
        """
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in line.items() if key in known}
        lists = {name: tuple(values.get(name, ())) for name in ("clients", "rdp")}
        try:
            return cls(**values | lists)
        except TypeError as error:
            raise FedkdError(f"{dict(line)!r} is not a line of releases: {error}") from error


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
        Fields of :class:`Release`.
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


# --- epsilon --------------------------------------------------------------------------------


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


# --- composition ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Formal:
    """What a run guarantees, of the client that is worst off.

    ``epsilon`` at ``delta`` for neighbours that differ in one ``unit``, against ``adversary``; None
    where there is no guarantee, and ``why`` names the rule that is broken. Where the unit is a
    record, or parameters are averaged, ``epsilon`` is for zero-out neighbours and ``replaced`` for
    replace-one. ``rho`` is that of Gaussian noise alone, None where there is anything else.
    ``nominal``, the largest epsilon of one item, stands beside it and guarantees nothing.
    ``data_dependent`` is what votes that are as they are cost, which is private and not to be
    published. ``sampled`` is what epsilon would be if participants were secret and each client took
    part with probability ``rate``, by itself (Poisson); None where all take part.
    """

    epsilon: float | None
    delta: float
    unit: Literal["client", "record"]
    adversary: str = SEES_ALL
    why: str = ""
    client: int | None = None
    rho: float | None = None
    nominal: float | None = None
    replaced: float | None = None
    sampled: float | None = None
    rate: float | None = None
    data_dependent: float | None = None

    @property
    def neighbours(self) -> str:
        """In what two data sets differ that cannot be told apart, and what is public of them."""
        return ZERO_OUT_CLIENT if self.adversary == SEES_AVERAGES else NEIGHBOURS[self.unit]

    def text(self) -> str:
        """``"7.51 (delta 1e-05, client)"``, or the broken rule.

        Where it is of zero-out neighbours, also what holds if the unit is replaced: ``"12.4 (delta
        1e-05, record; replace-one: 20.5)"``.
        """
        if self.epsilon is None:
            return self.why
        other = "" if self.replaced is None else f"; replace-one: {self.replaced:.3g}"
        return f"{self.epsilon:.3g} (delta {self.delta:g}, {self.unit}{other})"


def compose(
    releases: Iterable[Release],
    delta: float,
    dp_training: Mapping[int, Sequence[PrivateSteps]] | None = None,
) -> Formal:
    """What all that left the clients of a run guarantees together, against the server.

    Each client is composed by itself, as its data are only its own; adaptively, so that it does not
    matter that later answers depend on earlier ones.

    Parameters
    ----------
    releases : iterable of Release
        The ledger.
    delta : float
        Between 0 and 1.
    dp_training : mapping from client to PrivateSteps, optional
        All of a client's training on private samples, where that is DP-SGD: whatever its student
        then says of public samples is post-processing, and noise on it counts for nothing. The unit
        is one record, and how many each client has is public. Without it, the unit is the client.

    Returns
    -------
    Formal
        Of the worst client.
    """
    lines = sorted(releases, key=lambda line: line.step not in SENT)
    nominal = max((line.nominal for line in lines if line.nominal is not None), default=None)
    if dp_training is not None:
        own = [line for line in lines if line.client is not None]
        found = _by_training(own, delta, dp_training)
    else:
        found = _by_releases(lines, delta)
    return replace(found, nominal=nominal)


def _by_releases(lines: list[Release], delta: float) -> Formal:
    masked = any(line.trust == "secure-aggregation" for line in lines)
    adversary = SEES_SUMS if masked else SEES_ALL
    lines = [line for line in lines if _reaches_server(line)]
    for line in lines:
        if why := broken(line):
            return Formal(None, delta, "client", adversary, why, line.client)
    return worst_client(lines, delta, adversary)


def worst_client(lines: Iterable[Release], delta: float, adversary: str) -> Formal:
    """What noisy lines that an adversary sees guarantee the client that is worst off."""
    by_client: dict[int, list[Release]] = {}
    for line in lines:
        for client in line.clients if line.client is None else (line.client,):
            by_client.setdefault(client, []).append(line)
    accounts = {
        client: _account([line for line in each if line.fresh])
        for client, each in sorted(by_client.items())
    }
    found = {spent: _epsilon(spent, delta) for spent in set(accounts.values())}
    if not found:
        return Formal(0.0, delta, "client", adversary, rho=0.0)
    client = max(accounts, key=lambda n: found[accounts[n]])
    gaussian, other, _ = accounts[client]
    rho = None if other else gaussian
    return Formal(found[accounts[client]], delta, "client", adversary, client=client, rho=rho)


def _reaches_server(line: Release) -> bool:
    """Whether a server that is not trusted sees what a line is about.

    Behind masks it sees the sum; what a trusted one releases, it has made of what it sees.
    """
    return (line.client is None) == (line.trust == "secure-aggregation")


def _account(lines: list[Release]) -> tuple[float, float, float]:
    """Rho of Gaussian noise; rho of all else, and its pure epsilon."""
    others = [line for line in lines if line.mechanism not in ("gaussian", "votes")]
    return (
        math.fsum(line.rho or 0.0 for line in lines if line.mechanism in ("gaussian", "votes")),
        math.fsum(line.rho or 0.0 for line in others),
        math.fsum(math.inf if line.epsilon is None else line.epsilon for line in others),
    )


def _epsilon(account: tuple[float, float, float], delta: float) -> float:
    """The least of what is known of Gaussian noise and other mechanisms together.

    The others enter by their rho, or by their pure epsilon. One Laplace event of the noise
    multiplier ``1 / epsilon`` would not be a bound: randomised response is worse.
    """
    gaussian, other, pure = account
    exact = gaussian_epsilon(math.sqrt(2 * gaussian), delta)
    return min(exact + pure, zcdp_epsilon(gaussian + other, delta)) if other else exact


SENT = ("Predict", "Represent", "Select", "Share")
WHAT = {
    "Predict": "labels",
    "Aggregate": "labels",
    "Represent": "representations",
    "Select": "choices by private samples",
    "Share": "parameters",
    "Samples": "numbers of samples",
    "Metrics": "losses or accuracies",
}
"""What a step releases; the last two are numbers that the server acts on beside what is sent."""


def seen(line: Release) -> str:
    """What a line says that private data decide and no noise is on, whatever the unit."""
    if line.step == "Failure":
        return (
            f"none: in round {line.round} client {line.client} failed ({line.key}), which its data "
            "may decide"
        )
    if line.step == "Resumed":
        return (
            "none: the run was resumed with other noise (release.secure), and what the round that "
            "was interrupted released is not in the ledger"
        )
    if line.step == "Record":
        return "none: what the method does depends on measurements of private data"
    return ""


def broken(line: Release) -> str:
    """The rule that a line breaks without private training, or nothing."""
    if why := seen(line):
        return why
    what = WHAT[line.step]
    if line.trust == "central" and line.client is not None:
        return f"none: {what} leave the client without noise, for a server that is trusted"
    noisy = line.mechanism in ("gaussian", "laplace", "votes")
    if line.mechanism == "none" or (noisy and not line.scale):
        leave = "are released" if line.step in ("Predict", "Aggregate") else "leave the client"
        return f"none: {what} {leave} without noise"
    if line.mechanism == "argmax":
        return "none: the likeliest class is released without noise"
    if line.scores_private:
        return "none: scores come from private data"
    if line.redrawn:
        return "none: noise is redrawn for the same answer"
    if line.rho is None:
        return "none: labels are drawn from logits that are not clipped"
    return ""


ABOUT = {"Represent": "private"}
"""What a step is about by default, where that is private."""


def _by_training(
    lines: list[Release], delta: float, training: Mapping[int, Sequence[PrivateSteps]]
) -> Formal:
    for line in lines:
        why = seen(line)
        if why:
            pass
        elif line.client not in training:
            why = f"none: client {line.client} trains without noise"
        elif (line.on or ABOUT.get(line.step)) in ("private", "own", "validation"):
            why = "none: answers about private samples leave the client"
        elif line.step in ("Metrics", "Select"):
            why = f"none: {WHAT[line.step]} leave the client without noise"
        elif line.scores_private:
            why = "none: scores come from private data"
        if why:
            return Formal(None, delta, "record", why=why, client=line.client)
    clients = sorted({line.client for line in lines if line.client is not None})
    settings = {client: tuple(training[client]) for client in clients}
    if not settings:
        return Formal(0.0, delta, "record", replaced=0.0)
    found = {setting: training_epsilon(setting, delta) for setting in set(settings.values())}
    client = max(settings, key=lambda n: found[settings[n]])
    epsilon = found[settings[client]]
    if math.isinf(epsilon):
        return Formal(None, delta, "record", why="none: DP-SGD has no noise", client=client)
    # Who is worst off may be another client.
    replaced = max(training_epsilon(one, delta, replaced=True) for one in found)
    return Formal(epsilon, delta, "record", client=client, replaced=replaced)
