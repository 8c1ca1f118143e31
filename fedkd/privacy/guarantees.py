"""What a run's ledger guarantees: a formal epsilon for each adversary that there is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fedkd.experiment import Experiment
from fedkd.privacy.accounting import (
    SEES_AVERAGES,
    SENT,
    WHAT,
    Formal,
    PrivateSteps,
    Release,
    compose,
    gaussian_epsilon,
    seen,
    training_epsilon,
)


def guarantees(
    lines: Iterable[Mapping[str, Any]], experiment: Experiment, delta: float | None = None
) -> list[Formal]:
    """What all releases in the ledger of a run guarantee together, by adversary.

    The first is against the server. Where the server releases something of its own, noisy averages
    of parameters, there is one against those who see nothing but that.

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
    if any(line.client is None for line in releases):
        found.append(_averages(releases, experiment, delta or experiment.release.delta))
    if experiment.data.statistics == "private":
        why = "none: data.statistics = 'private': clients' mean and standard deviation are known"
        return [Formal(None, f.delta, f.unit, f.adversary, why, nominal=f.nominal) for f in found]
    return found


def guarantee(lines: Iterable[Mapping[str, Any]], experiment: Experiment) -> Formal:
    """The first of :func:`guarantees`: against the server."""
    return guarantees(lines, experiment)[0]


def _against_server(
    ledger: list[Mapping[str, Any]],
    releases: list[Release],
    experiment: Experiment,
    delta: float | None,
) -> Formal:
    dp = experiment.training.dp
    if not dp.noise_multiplier:
        return compose(releases, delta or experiment.release.delta)
    training: dict[int, list[PrivateSteps]] = defaultdict(list)
    for line, release in zip(ledger, releases, strict=True):
        if release.client is not None:
            training[release.client] += [
                PrivateSteps(dp.noise_multiplier, rate, int(steps))
                for rate, steps in line.get("dp_training", [])
            ]
    return compose(releases, delta or dp.delta, training)


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
