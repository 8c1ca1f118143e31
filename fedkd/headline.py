"""Where a method's paper scores it: the stage of a round, and which student.

The number is a column of rounds and summaries, such as ``own_accuracy_mean_local``: on clients' own
tests, or, where there are none, on the common ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedkd import registry
from fedkd.errors import FedkdError

if TYPE_CHECKING:
    from fedkd.results import Run

HEADLINE, ACCURACY, OTHER = "headline", "headline_accuracy", "other_stage_accuracy"
"""Columns: which one it is, its value, and that of the other stage."""
LOCAL = "_local"
"""How columns end that were measured after local training."""
STUDENT = "accuracy_mean"


@dataclass(frozen=True)
class Headline:
    """The stage and the student that a method's paper scores.

    ``stage`` is ``"local"``, after the local training of a round, or ``"fused"``, after the fused
    knowledge was taken in. ``evaluation`` is a name of the method's ``score``, which is measured
    after fusion; empty: the client's own student.
    """

    stage: Literal["local", "fused"] = "fused"
    evaluation: str = ""

    def column(self, tests: str = "own") -> str:
        """The column of rounds and summaries, of the mean over clients on ``tests``."""
        name = f"{self.evaluation}_{STUDENT}" if self.evaluation else STUDENT
        return f"{tests}_{name}{LOCAL if self.stage == 'local' else ''}"


def check_headline(value: Any) -> None:
    """Refuse what is no headline, or one that is never measured.

    Raises
    ------
    FedkdError
        One line naming the value and what is allowed.
    """
    sound = isinstance(value, Headline) and value.stage in ("local", "fused")
    if not sound or (value.evaluation and value.stage == "local"):
        raise FedkdError(
            f"headline = {value!r} is not allowed; allowed: Headline('local'), Headline('fused') "
            "or Headline(evaluation=NAME), with a name of score, which is measured after fusion"
        )


def column_of(run: Run) -> str | None:
    """The column that the paper of the run's method scores; None where that is not known.

    As the run has written it when it ended, else as its method, if that is to be found, says.
    """
    summary = run.summary or {}
    if isinstance(summary.get(HEADLINE), str):
        return str(summary[HEADLINE])
    experiment = run.experiment
    try:
        method = registry.load("strategies", experiment.strategy.name)
    except FedkdError:
        return None
    tests = experiment.data.test
    return column(method, tests.fraction > 0, tests.common > 0)


def column(method: Any, own: bool, common: bool) -> str | None:
    """The column of a method's headline, by which tests there are; None where there are none."""
    if not (own or common):
        return None
    found: str = method.headline.column("own" if own else "common")
    return found


def other_stage(column: str) -> str:
    """The same at the other stage; of a named student: of the client's own, after fusion."""
    tests = column.partition("_")[0]
    if column.removesuffix(LOCAL) != f"{tests}_{STUDENT}":
        return f"{tests}_{STUDENT}"
    return column.removesuffix(LOCAL) if column.endswith(LOCAL) else f"{column}{LOCAL}"


def named(line: Mapping[str, Any]) -> list[str]:
    """What the method's ``score`` calls the students that were tested, in a line or a summary."""
    pattern = re.compile(rf"(?:own|common)_(\w+)_{STUDENT}")
    found = [match[1] for name in line if (match := pattern.fullmatch(name))]
    return list(dict.fromkeys(found))


def at(line: Mapping[str, Any], column: str) -> float | None:
    """The value of a column in a line of ``rounds.jsonl``; None where it was not measured."""
    if column.endswith(LOCAL):
        line, column = line.get("local", {}), column.removesuffix(LOCAL)
    value = line.get(column)
    return None if value is None else float(value)


def numbers(values: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    """The three columns, out of all others, as a summary has them; without those not measured."""
    if column is None:
        return {}
    found = {ACCURACY: values.get(column), OTHER: values.get(other_stage(column))}
    return {HEADLINE: column} | {name: value for name, value in found.items() if value is not None}
