"""What releases cost: the ledger, and the differential privacy that it adds up to.

Whatever one record does to a student may change its answers in any way, so that without private
training the worst case over one record is that over a client's whole data: the unit is the client,
and neighbours differ in all data of one client (*replace-one*). With private training the unit is a
record: steps, rate and divisor follow the number K of a client's records, so K is public, and
neighbours have the same K, a record of one of them counting as 0 in the other (*zero-out*); beside
it stands what holds if a record is replaced by another. Every new answer is charged; the same
answer given again is not. Rounds add up, and the server's choice of public items amplifies nothing.
What is done to an answer after its noise (projection, sharpening, training on it) is free. What one
answer costs is in :mod:`fedkd.privacy.costs`.

Losses and accuracies measure the simulation; where a method acts on one, or on a number of samples
(as averages of parameters do), that is in the ledger too, without noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedkd.privacy.epsilons import PrivateSteps, gaussian_epsilon, training_epsilon, zcdp_epsilon
from fedkd.privacy.releases import ABOUT, SENT, WHAT, Release, broken, seen

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
