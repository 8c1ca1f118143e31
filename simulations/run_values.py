"""The numbers of runs that claims are judged by: a value by label and seed, and its unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError, nearest
from fedkd.headline import ACCURACY, LOCAL, OTHER
from fedkd.results import Run
from fedkd.simulations.cells import Label
from fedkd.simulations.claim import Claim, Criterion
from fedkd.statistics import Interval
from fedkd.summaries import reached, utility, utility_name

Row = Mapping[str, Any]
Samples = Mapping[Label, Mapping[int, float]]
"""A value by label of the compared axis, then by seed."""
ROUNDS = "rounds_to_target"
STAGED = re.compile(rf"((?:own|common|validation)_.+|{ROUNDS})({LOCAL})?")
"""Values that are measured at both stages of a round: after local training and after fusion."""


def at_other_stage(value: str) -> str | None:
    """The same value at the other stage of a round; None of a value that has no stage.

    A value's column need not be there: a named student is measured after fusion alone.
    """
    if value in (ACCURACY, OTHER):
        return OTHER if value == ACCURACY else ACCURACY
    if STAGED.fullmatch(value) is None:
        return None
    return value.removesuffix(LOCAL) if value.endswith(LOCAL) else f"{value}{LOCAL}"


def measured(row: Row, value: str) -> bool:
    """Whether a run has the column of the value, or the one that rounds are counted by."""
    return (_reaching(value) if value.removesuffix(LOCAL) == ROUNDS else value) in row


def samples_of(
    claim: Claim, test: Criterion, cells: Sequence[Row], rows: Sequence[Row]
) -> tuple[dict[Label, dict[int, float]], list[str]]:
    """The test's value by label, in the axis's order, and seed; and what was left out of it."""
    axis, compare = claim.compare.axis, claim.compare
    named = (compare.of, *compare.with_) if compare.of is not None else None
    samples: dict[Label, dict[int, float]] = {
        label: {} for label in named or (cell[axis] for cell in cells)
    }
    seen: set[tuple[Label, int]] = set()
    notes = []
    for row in rows:
        label, seed = row[axis], int(row["seed"])
        if label not in samples:
            continue
        if (label, seed) in seen:
            raise FedkdError(
                f"claim {claim.name}: several runs of {axis} = {label}, seed {seed} in one cell; "
                "name the axis that tells them apart in within or only"
            )
        seen.add((label, seed))
        value = value_of(row, test.value, _target(claim, test, rows, seed))
        if math.isfinite(value):
            samples[label][seed] = value
        else:
            notes.append(f"{label}, seed {seed} has no finite {test.value}")
    return samples, notes


def _target(claim: Claim, test: Criterion, rows: Sequence[Row], seed: int) -> float:
    """The accuracy to reach with a seed; NaN if it is not known."""
    if test.target is None:
        return math.nan
    wanted = {claim.compare.axis: test.target, "seed": seed}
    column = _reaching(test.value)
    return next((value_of(row, column) for row in rows if fits(row, wanted)), math.nan)


def _reaching(value: str) -> str:
    """The accuracy whose rounds to the target are counted: at the stage of the value."""
    return f"own_accuracy_mean{LOCAL if value.endswith(LOCAL) else ''}"


def value_of(row: Row, name: str, target: float = math.nan) -> float:
    """A number of a run: a column, or read off its folder; NaN if it has none."""
    if name in row and not name.startswith("record."):
        return math.nan if row[name] is None else float(row[name])
    run = Run(Path(row["folder"]))
    if name == "utility":
        return utility(run) * (-1 if utility_name(run) == "perplexity" else 1)
    if name.removesuffix(LOCAL) == ROUNDS:
        if math.isnan(target):
            return math.nan
        rounds = reached(run, target, _reaching(name))[ROUNDS]
        return run.rounds[-1]["round"] + 1.0 if rounds is None else float(rounds)
    if name.startswith("record."):
        key = name.removeprefix("record.")
        found = [line.get("strategy", {}).get(key) for line in run.rounds]
        numbers = [float(number) for number in found if number is not None]
        return sum(numbers) / len(numbers) if numbers else math.nan
    raise FedkdError(f"value {name!r} is not a column{nearest(name, list(row))}")


def fits(row: Row, labels: Mapping[str, Label]) -> bool:
    """Whether a run has all of ``labels``, by axis."""
    return all(row[axis] == label for axis, label in labels.items())


def unit_of(test: Criterion) -> tuple[float, str]:
    """What effects are multiplied with to be shown, and the unit they have then."""
    if test.relative or test.rule == "reduction":
        return 100.0, "%"
    if "accuracy" in test.value and "jain" not in test.value:
        return 100.0, "points"
    return 1.0, {"exposure_student": "bits", ROUNDS: "rounds"}.get(
        test.value.removesuffix(LOCAL), ""
    )


def scaled(effect: Interval | None, factor: float) -> Interval | None:
    """An effect in another unit; None of none."""
    if effect is None:
        return None
    return Interval(factor * effect.mean, factor * effect.low, factor * effect.high, effect.n)
