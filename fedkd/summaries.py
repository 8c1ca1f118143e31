"""Numbers of whole runs: what they reached, what it cost, what was exposed at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fedkd.errors import FedkdError
from fedkd.headline import at
from fedkd.results import Run

if TYPE_CHECKING:
    from fedkd.exposures import Estimate


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """Mean, standard deviation, mean of the worst tenth, minimum and Jain's index over clients.

    The standard deviation is the population's (the clients are all there are); the worst tenth is
    ceil(N / 10) clients; Jain's index is (sum x)^2 / (N sum x^2), 1 where all are alike (Jain, Chiu
    & Hawe 1984).
    """
    import numpy as np

    array = np.sort(np.asarray(values, dtype=np.float64))
    if array.size == 0:
        return {}
    worst = array[: math.ceil(array.size / 10)]
    squares = array.size * np.square(array).sum()
    numbers = {
        "mean": array.mean(),
        "std": array.std(),
        "worst10": worst.mean(),
        "min": array[0],
        "jain": array.sum() ** 2 / squares if squares else 1.0,
    }
    return {f"{name}_{key}": float(value) for key, value in numbers.items()}


def reached(run: Run, target: float, column: str = "own_accuracy_mean") -> dict[str, float | None]:
    """Rounds and bytes until ``column`` was first at least ``target``; None if never.

    By default the mean own accuracy after fusion; what ends in ``_local`` is after local training.
    Bytes are those of all clients, up and down, to the end of that round.
    """
    spent = 0
    for line in run.rounds:
        spent += line["bytes_up"] + line["bytes_down"]
        value = at(line, column)
        if value is not None and value >= target:
            return {"rounds_to_target": line["round"], "bytes_to_target": spent}
    return {"rounds_to_target": None, "bytes_to_target": None}


def exposures(
    runs: Iterable[Run], place: str, repeats: int | None = None, score: str = "exposure"
) -> tuple[list[float], list[str]]:
    """Exposure in bits of each secret at ``place`` in the last measured round, and its cluster.

    Parameters
    ----------
    runs
        Runs that differ in their seed.
    place
        One of ``fedkd.records.PLACES``. Where several observers have a secret, the mean over them
        counts; a model that diverged has no exposure and does not.
    repeats
        Secrets repeated so often; all of them when not given.
    score
        What sequences are ranked by: ``exposure``, their probability; at released and fused also
        ``linear``, the sum of the probabilities of their symbols.

    Returns
    -------
    tuple
        Values, and beside each the name of the model that it depends on with others: a teacher and
        its labels are one client's, the student and fused labels are one of all secrets of a run.
    """
    found = exposures_by_secret(runs, place, repeats, score)
    return [value for _, value, _ in found], [cluster for *_, cluster in found]


def exposures_by_secret(
    runs: Iterable[Run], place: str, repeats: int | None = None, score: str = "exposure"
) -> list[tuple[tuple[int, int], float, str]]:
    """What :func:`exposures` gives: seed and number of each secret, its value and cluster."""
    import numpy as np

    values = []
    for run in runs:
        seed = run.experiment.seed
        lines = [line for line in run.exposures if line["place"] == place]
        last = max((line["round"] for line in lines), default=0)
        found: dict[int, list[float]] = {}
        holders = {}
        for line in lines:
            wanted = line["round"] == last and repeats in (None, line["repeats"])
            if wanted and line.get(score) is not None:
                found.setdefault(line["secret"], []).append(line[score])
                holders[line["secret"]] = line["holders"][0]
        for secret, seen in found.items():
            own = f" {holders[secret]}" if place in ("teacher", "released") else ""
            values.append(((seed, secret), float(np.mean(seen)), f"{seed}{own}"))
    return values


def exposure(runs: Iterable[Run], place: str, repeats: int | None = None) -> Estimate | None:
    """Mean exposure at ``place`` and its 95 % interval, in bits; None where it was not measured."""
    from fedkd.exposures import interval

    values, clusters = exposures(runs, place, repeats)
    return interval(values, clusters) if values else None


def most_repeated(run: Run) -> int:
    """The highest level of repeats of the secrets in an experiment."""
    return max(run.experiment.canary.repeats)


def utility_name(run: Run) -> str:
    """What runs are compared at: ``perplexity`` of text, ``accuracy`` of images."""
    text = any(f"{tests}_perplexity_mean" in (run.summary or {}) for tests in ("common", "own"))
    return "perplexity" if text else "accuracy"


def utility(run: Run) -> float:
    """Perplexity or accuracy at the end, on the common test set or else on clients' own.

    Raises
    ------
    FedkdError
        Neither was measured.
    """
    summary, name = run.summary or {}, utility_name(run)
    for tests in ("common", "own"):
        if (value := summary.get(f"{tests}_{name}_mean")) is not None:
            return float(value)
    raise FedkdError(f"{run.folder} has no {name}: it has not ended, or measures nothing")
