"""Measuring clients: when, by which steps, and what a round's line says of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.fields import check_fields
from fedkd.rounds.outcome import TESTED_ON, Bins, Line
from fedkd.steps import TESTS
from fedkd.summaries import spread
from fedkd.work import Evaluate, Step


def due(experiment: Experiment, round: int) -> bool:
    """Whether clients are measured in ``round``."""
    return experiment.measured(round)


def tests(experiment: Experiment) -> tuple[Step, ...]:
    """The steps that measure a client: on each set of tests that there is."""
    test = experiment.data.test
    wanted = {
        "own": test.fraction > 0,
        "common": test.common > 0,
        "validation": experiment.data.validation_fraction > 0,
    }
    return tuple(
        Evaluate(name, name, bins=name in TESTED_ON) for name, there in wanted.items() if there
    )


METRICS = ("accuracy", "loss", "ece", "perplexity")
"""What a test measures."""


def named(steps: Sequence[Step], experiment: Experiment) -> tuple[Step, ...]:
    """Steps of ``score``: each ``Evaluate`` on all sets of tests, as ``own_NAME``, ``common_NAME``.

    Raises
    ------
    FedkdError
        A key is no name that columns can have, or ``on`` is given.
    """
    found: list[Step] = []
    for number, step in enumerate(steps, 1):
        if not isinstance(step, Evaluate):
            found.append(step)
            continue
        check_fields(step)
        if not step.key.isidentifier() or step.key in (*METRICS, *(t[:-1] for t in TESTS)):
            raise FedkdError(
                f"step {number}: Evaluate: key = {step.key!r} is not allowed; allowed: a name of "
                "what is tested, as 'server', of letters, digits and underscores"
            )
        if step.on != Evaluate().on:
            raise FedkdError(
                f"step {number}: Evaluate: on is not for score, which tests on all sets of tests"
            )
        found += [
            replace(step, on=test.on, key=f"{test.on}_{step.key}")
            for test in tests(experiment)
            if isinstance(test, Evaluate)
        ]
    return tuple(found)


def tested(metrics: dict[str, float]) -> dict[str, float]:
    """Those of a client's metrics that are the simulator's own tests."""
    return {name: value for name, value in metrics.items() if name.startswith(TESTS)}


def averages(clients: Iterable[dict[str, float]]) -> Line:
    """Spread of the accuracies over clients, means of the other measurements."""
    found: dict[str, list[float]] = {}
    for metrics in clients:
        for name, value in tested(metrics).items():
            if math.isfinite(value):  # a client that diverged has an accuracy, but no loss
                found.setdefault(name, []).append(value)
    line: Line = {}
    for name, values in found.items():
        over_clients = spread(values, name)
        keep = over_clients if name.endswith("accuracy") else [f"{name}_mean"]
        line |= {entry: over_clients[entry] for entry in keep}
    return line


def diverged(latest: Mapping[int, dict[str, float]]) -> list[int]:
    """Clients whose students' answers are no numbers, which accuracies hide."""
    return [
        client
        for client, metrics in sorted(latest.items())
        if any(math.isnan(metrics.get(f"{tests}loss", 0.0)) for tests in TESTS)
    ]


def reliability(stages: Mapping[str, Mapping[int, Bins]]) -> Line:
    """What ``reliability.json`` holds of bins by stage and client: of all clients together.

    By the set of tests and the stage: for each bin the number of samples, ``count``, the mean of
    their ``confidence`` and their ``accuracy``, None where there is no sample.
    """
    found: dict[str, dict[str, Line]] = {}
    for stage, clients in stages.items():
        for tests in TESTED_ON:
            each = [bins[tests] for bins in clients.values() if tests in bins]
            if not each:
                continue
            total = sum(each[1:], each[0]).tolist()
            means = [[part / row[0] if row[0] else None for part in row[1:]] for row in total]
            found.setdefault(tests, {})[stage] = {
                "count": [int(row[0]) for row in total],
                "confidence": [confidence for confidence, _ in means],
                "accuracy": [accuracy for _, accuracy in means],
            }
    return {**found}
