"""``fedkd noise``: how much noise would give a run another epsilon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment, changed
from fedkd.privacy.accounting import Formal
from fedkd.privacy.guarantees import guarantees
from fedkd.results import Run

SMALLEST, LARGEST = 1e-6, 1e6
"""How much less or more noise than the run's is looked for."""
TOLERANCE = 1e-4
"""By what share epsilon may be above what is asked for: it never is."""
LABELS = ("gaussian", "votes")
"""Mechanisms whose costs fall with the square of ``release.scale``."""


def main(run: Run, epsilons: Sequence[float]) -> None:
    """Print the noise that gives each epsilon, as the key that sets it.

    Raises
    ------
    FedkdError
        As :func:`noise_for`.
    """
    for epsilon in epsilons:
        key, noise, formal = noise_for(run, epsilon)
        print(
            f"{key} = {noise:.6g}: ε {formal.epsilon:.4g} (delta {formal.delta:g}, {formal.unit}); "
            f"adversary: {formal.adversary}"
        )


def noise_for(run: Run, epsilon: float) -> tuple[str, float, Formal]:
    """The key of a run's noise, the least value that guarantees ``epsilon``, and the guarantee.

    All else is as the ledger of the run has it: rounds, items, clients, and who was asked.
    Where a server that is trusted adds the noise, it is the guarantee against others.

    Raises
    ------
    FedkdError
        The run has not ended, or has no guarantee that follows from one noise; or no noise gives
        ``epsilon``.
    """
    if run.summary is None:
        raise FedkdError(
            f"{run.folder} has not ended: how much noise it needs is told of a finished run"
        )
    experiment, lines = run.experiment, run.releases
    place = _place(lines, experiment)
    key, given = _noise(experiment, run)
    if given is None or place is None:
        why = guarantees(lines, experiment)[0].why
        raise FedkdError(
            f"{run.folder} has no noise that epsilon follows from ({why or key}); allowed: a "
            "finished run with training.dp.noise_multiplier, strategy.noise_multiplier, or "
            f"release.scale of {' or '.join(LABELS)} noise above 0, and an epsilon"
        )

    def guaranteed(factor: float) -> Formal:
        scaled = [_scaled(line, factor) for line in lines]
        formal = guarantees(scaled, _with(experiment, key, given * factor))[place]
        assert formal.epsilon is not None
        return formal

    low, high = SMALLEST, LARGEST
    least = guaranteed(high)
    if not 0 < epsilon < float("inf") or (least.epsilon or 0.0) > epsilon:
        raise FedkdError(
            f"--epsilon {epsilon:g} is not allowed: above {least.epsilon:.3g}, which {LARGEST:g} "
            f"times the noise of {run.folder} gives"
        )
    while high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        if (guaranteed(middle).epsilon or 0.0) > epsilon:
            low = middle
        else:
            high = middle
    return key, given * high, guaranteed(high)


def _place(lines: Sequence[dict[str, Any]], experiment: Experiment) -> int | None:
    """Which of the guarantees there is."""
    found = guarantees(lines, experiment)
    return next((n for n, formal in enumerate(found) if formal.epsilon is not None), None)


def _noise(experiment: Experiment, run: Run) -> tuple[str, float | None]:
    """The key that says how much noise there is, and its value."""
    release, strategy = experiment.release, experiment.strategy.options
    found = [
        ("training.dp.noise_multiplier", experiment.training.dp.noise_multiplier),
        ("strategy.noise_multiplier", float(strategy.get("noise_multiplier", 0.0))),
        ("release.scale", release.scale if release.mechanism in LABELS else 0.0),
    ]
    there = [(key, value) for key, value in found if value]
    if len(there) == 1:
        return there[0]
    names = " and ".join(key for key, _ in there)
    return (
        f"{names} are noise both" if there else f"release.mechanism = {release.mechanism!r}"
    ), None


def _with(experiment: Experiment, key: str, value: float) -> Experiment:
    tables = experiment.model_dump(mode="json", exclude_none=True)
    return Experiment.from_dict(changed(tables, {key: value}))


def _scaled(line: dict[str, Any], factor: float) -> dict[str, Any]:
    """A line of the ledger with ``factor`` times the noise."""
    costs = {name: line[name] / factor**2 for name in ("rho",) if line.get(name) is not None}
    return line | costs | {"scale": line.get("scale", 0.0) * factor}
