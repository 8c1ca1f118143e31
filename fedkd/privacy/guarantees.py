"""What a run's ledger guarantees: a formal epsilon for each adversary that there is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedkd.experiment import Experiment
from fedkd.privacy.accounting import SEES_AVERAGES, SEES_FUSED, compose, worst_client
from fedkd.privacy.accounting import Formal as Formal
from fedkd.privacy.epsilons import PrivateSteps, gaussian_epsilon, gaussian_mu, training_epsilon
from fedkd.privacy.releases import SENT, WHAT, Release, broken, seen
from fedkd.privacy.votes import epsilon_of_rdp


def guarantees(
    lines: Iterable[Mapping[str, Any]], experiment: Experiment, delta: float | None = None
) -> list[Formal]:
    """What all releases in the ledger of a run guarantee together, by adversary.

    The first is against the server. Where it is the server that adds noise, to averages of
    parameters or to fused labels, there is one against those who see nothing but these.

    Statistics of clients' own samples, by which all inputs are then normalised, are a release that
    has no noise: there is no guarantee with them.

    Parameters
    ----------
    lines
        Of ``releases.jsonl``.
    experiment
        That of the run.
    delta
        Between 0 and 1; that of the experiment when not given.
    """
    ledger = list(lines)
    releases = [Release.from_dict(line) for line in ledger]
    found = [_against_server(ledger, releases, experiment, delta)]
    delta = delta or experiment.release.delta
    if any(line.step == "Average" for line in releases):
        found.append(_averages(releases, experiment, delta))
    if any(line.step == "Aggregate" and line.trust == "central" for line in releases):
        found.append(_aggregates(releases, delta))
    if experiment.data.statistics == "private":
        why = "none: data.statistics = 'private': clients' mean and standard deviation are known"
        return [Formal(None, f.delta, f.unit, f.adversary, why, nominal=f.nominal) for f in found]
    return found


def guarantee(lines: Iterable[Mapping[str, Any]], experiment: Experiment) -> Formal:
    """The first of :func:`guarantees`: against the server."""
    return guarantees(lines, experiment)[0]


DELTAS = tuple(float(f"{delta:.3g}") for delta in np.geomspace(1e-10, 1e-2, 33))
"""Where a profile is computed."""


@dataclass(frozen=True)
class Profile:
    """How the epsilon of a :class:`Formal` falls with delta: ``epsilons`` at ``deltas``.

    ``mu`` is that of Gaussian DP (Dong, Roth & Su 2022) where ``exact``; where there is noise that
    is not Gaussian, or sampling, it is that of the Gaussian whose epsilon is no less at any of
    ``deltas``, and says nothing beyond them.
    """

    formal: Formal
    deltas: tuple[float, ...]
    epsilons: tuple[float, ...]
    mu: float
    exact: bool

    def text(self, at: Sequence[float] = (1e-8, 1e-6, 1e-4, 1e-2)) -> str:
        """``"ε 11.5 at δ 1e-08, 9.68 at 1e-06, ...; GDP μ = 1.77"``."""
        found = dict(zip(self.deltas, self.epsilons, strict=True))
        told = ", ".join(
            f"{found[delta]:.3g} at {'δ ' * (not n)}{delta:g}" for n, delta in enumerate(at)
        )
        mu = f"GDP μ = {self.mu:.3g}"
        if not self.exact:
            ends = f"{self.deltas[0]:g} to {self.deltas[-1]:g}"
            mu = f"no more than that of {mu} at δ from {ends}, which is no μ of its own"
        return f"ε {told}; {mu}"


def profiles(
    lines: Iterable[Mapping[str, Any]],
    experiment: Experiment,
    deltas: Sequence[float] = DELTAS,
) -> list[Profile]:
    """Epsilon against delta, of each of :func:`guarantees` that there is.

    At each delta it is that of the client that is worst off there.
    """
    ledger = list(lines)
    stated = guarantees(ledger, experiment)
    if all(formal.epsilon is None for formal in stated):
        return []
    each = [guarantees(ledger, experiment, delta) for delta in deltas]
    found = []
    for n, formal in enumerate(stated):
        if formal.epsilon is None:
            continue
        epsilons = tuple(row[n].epsilon or 0.0 for row in each)
        exact = formal.rho is not None
        if formal.rho is not None:
            mu = math.sqrt(2 * formal.rho)
        else:
            mu = max(map(gaussian_mu, epsilons, deltas))
        found.append(Profile(formal, tuple(deltas), epsilons, mu, exact))
    return found


def _against_server(
    ledger: list[Mapping[str, Any]],
    releases: list[Release],
    experiment: Experiment,
    delta: float | None,
) -> Formal:
    dp = experiment.training.dp
    if not dp.noise_multiplier:
        return compose(releases, delta or experiment.release.delta)
    return compose(releases, delta or dp.delta, private_steps(ledger, experiment))


def private_steps(
    lines: Iterable[Mapping[str, Any]], experiment: Experiment
) -> dict[int, list[PrivateSteps]]:
    """All DP-SGD of each client that its releases may tell of, in the order of the ledger."""
    sigma = experiment.training.dp.noise_multiplier
    found: dict[int, list[PrivateSteps]] = defaultdict(list)
    for line in lines:
        if line["client"] is not None:
            found[line["client"]] += [
                PrivateSteps(sigma, rate, int(steps)) for rate, steps in line.get("dp_training", [])
            ]
    return found


def _aggregates(releases: list[Release], delta: float) -> Formal:
    """Against who sees noisy aggregates of clients' labels, which a trusted server makes."""
    aggregates = [line for line in releases if line.client is None]
    summed = {(line.round, line.key) for line in aggregates}
    for line in releases:
        why = broken(line) if line.client is None else seen(line)
        if line.client is not None and (line.round, line.key) not in summed:
            why = why or f"none: {WHAT[line.step]} reach the method without noise"
        if why:
            return Formal(None, delta, "client", SEES_FUSED, why, line.client)
    found = worst_client(aggregates, delta, SEES_FUSED)
    nominal = max((line.nominal for line in aggregates if line.nominal is not None), default=None)
    if not any(line.rdp for line in aggregates):
        return replace(found, nominal=nominal)
    costs: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for line in aggregates:
        for client in line.clients if line.fresh else ():
            costs[client].append(line.rdp)
    by_votes = max(epsilon_of_rdp(np.sum(each, axis=0), delta) for each in costs.values())
    return replace(found, nominal=nominal, data_dependent=by_votes)


def _averages(releases: list[Release], experiment: Experiment, delta: float) -> Formal:
    """Against who sees the averages of clients' parameters, and nothing else of other clients.

    Each client is composed over the rounds that it was asked in, which is public. What a method is
    shown of a round beside the average breaks the guarantee; a client that fails does not, as it
    counts as one that has changed nothing.
    """
    none = Formal(None, delta, "client", SEES_AVERAGES)
    averages = [line for line in releases if line.client is None]
    averaged = {(line.round, line.key) for line in averages}
    rounds = {line.round for line in averages}
    for line in releases:
        why = ""
        if line.client is None:
            why = "" if line.rho else "none: averages are released without noise"
        elif line.step in SENT:
            if (line.round, line.key) not in averaged:
                why = f"none: {WHAT[line.step]} reach the method without noise"
        elif line.step != "Failure" or line.round not in rounds:
            why = seen(line) or f"none: {WHAT[line.step]} reach the method without noise"
        if why:
            return replace(none, why=why, client=line.client)
    spent: dict[int, list[float]] = defaultdict(list)
    for line in averages:
        for client in line.clients:
            spent[client].append(line.rho or 0.0)
    sums = {client: math.fsum(costs) for client, costs in sorted(spent.items())}
    client = max(sums, key=lambda n: sums[n])
    rho = sums[client]
    rates = {len(line.clients) / experiment.data.clients for line in averages}
    sampled = None
    if min(rates) < 1:
        sampled = training_epsilon(
            [
                PrivateSteps(
                    1 / math.sqrt(2 * (line.rho or 0.0)),
                    len(line.clients) / experiment.data.clients,
                    1,
                )
                for line in averages
            ],
            delta,
        )
    return replace(
        none,
        epsilon=gaussian_epsilon(math.sqrt(2 * rho), delta),
        replaced=gaussian_epsilon(2 * math.sqrt(2 * rho), delta),
        client=client,
        rho=rho,
        sampled=sampled,
        rate=max(rates) if sampled is not None else None,
    )
