"""What a suite's runs say of claims: verdicts by rules that are fixed before the runs.

A test of a claim is judged in every cell of the axes in ``within``, by its rule
(``fedkd.simulations.rules``); it is undecided where there are fewer seeds than asked for. All
comparisons must hold for a cell to support a claim, one that is refuted refutes it; cells make an
overall verdict in the same way. So "supported" is wrong at most as often as one interval is, while
an overall "not supported" has as many chances to be wrong as there are cells: read the cells.

What a claim's test measures is at one stage of a round, and the verdict is about that stage. Beside
it stands the verdict of the same rule at the other stage, which decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedkd.caveats import Caveat
from fedkd.errors import FedkdError, nearest
from fedkd.simulations.cells import Label, Suite
from fedkd.simulations.claim import MEASURES, Claim, Criterion
from fedkd.simulations.rules import Judgement, compared, interior, reduced, trend
from fedkd.simulations.run_values import (
    Row,
    at_other_stage,
    fits,
    measured,
    samples_of,
    scaled,
    unit_of,
    value_of,
)
from fedkd.simulations.suite import frame as frame_of
from fedkd.statistics import Interval

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim in one cell, or, where ``where`` is empty, over all of them.

    ``where`` has labels by axis and what was ``measured``; ``effect``, positive for the claim, is
    that of the comparison that decides, in ``unit``; ``seeds`` is how many pairs it rests on;
    ``detail`` says what else there is to know. ``other`` is the verdict at the other stage of a
    round, with its own effect; None of what has no stage or was not measured there.
    """

    claim: str
    where: dict[str, Label]
    verdict: Judgement
    effect: Interval | None
    seeds: int
    detail: str
    unit: str = ""
    other: Verdict | None = None

    @property
    def differs(self) -> bool:
        """Whether the two stages of a round have different verdicts."""
        return self.other is not None and self.other.verdict != self.verdict

    @property
    def other_text(self) -> str:
        """``undecided: +0.10 [-0.20, +0.40] points``, at the other stage; or nothing."""
        if self.other is None:
            return ""
        return ": ".join(filter(None, [self.other.verdict, self.other.effect_text]))

    @property
    def effect_text(self) -> str:
        """``+0.52 [+0.10, +0.94] points``, or nothing."""
        found = self.effect
        if found is None or not math.isfinite(found.mean):
            return ""
        mean, low, high = (f"{x:+.2f}" for x in (found.mean, found.low, found.high))
        unit = f" {self.unit}" if self.unit else ""
        return f"{mean} [{low}, {high}]{unit}" if math.isfinite(found.low) else f"{mean}{unit}"

    @property
    def where_text(self) -> str:
        """``data = digits, data.alpha = 0.1``; ``overall`` for the verdict over all cells."""
        if not self.where:
            return "overall"
        return ", ".join(
            str(label) if axis == "measured" else f"{axis} = {label}"
            for axis, label in self.where.items()
        )


def judge(claim: Claim, frame: DataFrame) -> list[Verdict]:
    """What finished runs say of a claim: a verdict a cell and test, then one over all of them.

    Parameters
    ----------
    claim : Claim
        What is claimed.
    frame : pandas.DataFrame
        ``fedkd.simulations.suite.frame``: a row a finished run, with a column for each axis,
        ``folder``, and the columns that the claim's tests are about.

    Raises
    ------
    FedkdError
        The frame has not the axes or columns of the claim, or several runs of one label and seed
        in a cell.
    """
    rows = _rows(frame)
    return _judged(claim, rows, rows, {})


def judge_suite(claim: Claim, suite: Suite, runs: DataFrame | None = None) -> list[Verdict]:
    """As :func:`judge`, of all cells of a suite: those that have no run are "not run", and why.

    ``runs`` is the suite's frame, where it was made already.
    """
    cells = _asked(claim, [cell.labels for cell in suite.cells])
    missing = {tuple(cell.labels.values()): cell.missing for cell in suite.cells if cell.missing}
    return _judged(claim, cells, _rows(frame_of(suite) if runs is None else runs), missing)


def warnings(claim: Claim, suite: Suite, runs: DataFrame) -> list[tuple[Label, tuple[Caveat, ...]]]:
    """Of each run that judges a claim, its label on the compared axis and its caveats."""
    axis, named = claim.compare.axis, (claim.compare.of, *claim.compare.with_)
    rows = [row for row in _only(claim, _rows(runs)) if named == (None,) or row[axis] in named]
    asked = _asked(claim, [cell.labels for cell in suite.cells])
    cells = [dict(where) for where in _cells(claim, asked)]
    return [
        (row[axis], row["warnings"]) for row in rows if any(fits(row, labels) for labels in cells)
    ]


def _rows(frame: DataFrame) -> list[Row]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _judged(
    claim: Claim,
    expected: Sequence[Row],
    found: Sequence[Row],
    missing: Mapping[tuple[Label, ...], str],
) -> list[Verdict]:
    verdicts = []
    for where, cells in _cells(claim, expected).items():
        labels = dict(where)
        rows = [row for row in _only(claim, found) if fits(row, labels)]
        # The rest of the line is how to get it.
        why = {missing.get(tuple(cell.values()), "").partition(": ")[0]: None for cell in cells}
        for test in claim.tests:
            one = _verdict(claim, test, cells, rows)
            if not rows:
                one = replace(one, detail="; ".join(filter(None, why)) or "no finished run")
            one = replace(one, where={**labels, "measured": _words(test.value)})
            verdicts.append(replace(one, other=_at_other_stage(claim, test, cells, rows, labels)))
    total = overall(claim, verdicts)
    if any(one.other for one in verdicts):
        # A test without another stage counts as it is: all tests of a claim must hold.
        total = replace(total, other=overall(claim, [one.other or one for one in verdicts]))
    return [*verdicts, total]


def _at_other_stage(
    claim: Claim,
    test: Criterion,
    cells: Sequence[Row],
    rows: Sequence[Row],
    labels: Mapping[str, Label],
) -> Verdict | None:
    """What the same rule says at the other stage, if there is one that was measured."""
    value = at_other_stage(test.value)
    if value is None or not rows or not all(measured(row, value) for row in rows):
        return None
    found = _verdict(claim, test.model_copy(update={"value": value}), cells, rows)
    return replace(found, where={**labels, "measured": _words(value)})


def _words(value: str) -> str:
    return MEASURES.get(value, value.replace("_", " "))


def overall(claim: Claim, verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict over cells: supported if all are, not supported if any is, vacuous ones apart."""
    by = {
        kind: [one for one in verdicts if one.verdict == kind]
        for kind in ("supported", "not supported", "undecided", "vacuous", "not run")
    }
    said: Judgement = "undecided"
    if len(by["not run"]) == len(verdicts):
        said = "not run"
    elif by["not supported"]:
        said = "not supported"
    elif len(by["vacuous"]) == len(verdicts):
        said = "vacuous"
    elif by["supported"] and not by["undecided"] and not by["not run"]:
        said = "supported"
    counts = ", ".join(f"{len(ones)} {kind}" for kind, ones in by.items() if ones)
    named = [
        f"{kind} at {'; '.join(dict.fromkeys(map(_cell, by[kind])))}"
        for kind in ("vacuous", "not run")
        if by[kind] and len(by[kind]) < len(verdicts)
    ]
    seeds = min((one.seeds for one in verdicts if one.verdict != "not run"), default=0)
    about = filter(None, [claim.about.removesuffix(".")])
    return Verdict(claim.name, {}, said, None, seeds, ". ".join([counts, *named, *about]))


def _cell(one: Verdict) -> str:
    """A verdict's cell, whatever was measured there."""
    labels = [f"{axis} = {label}" for axis, label in one.where.items() if axis != "measured"]
    return ", ".join(labels) or one.where_text


def _asked(claim: Claim, cells: Sequence[Row]) -> Sequence[Row]:
    """A suite's cells where it has what is compared: it may leave a label out of some."""
    compare = claim.compare

    def place(cell: Row) -> tuple[Label | None, ...]:
        return tuple(cell.get(axis) for axis in claim.within)

    there = {place(cell) for cell in cells if cell.get(compare.axis) == compare.of}
    return [cell for cell in cells if place(cell) in there] if there else cells


def _cells(claim: Claim, rows: Sequence[Row]) -> dict[tuple[tuple[str, Label], ...], list[Row]]:
    """The rows that a claim is about, by the labels that name a cell."""
    axes = [*claim.within, *claim.only, claim.compare.axis, "seed"]
    if rows and (unknown := [axis for axis in axes if axis not in rows[0]]):
        raise FedkdError(
            f"claim {claim.name}: suite {claim.suite} has no axis {unknown[0]!r}"
            f"{nearest(unknown[0], list(rows[0]))}"
        )
    groups: dict[tuple[Label, ...], list[Row]] = {}
    for row in _only(claim, rows):
        groups.setdefault(tuple(row[axis] for axis in claim.within), []).append(row)
    cells = {}
    for labels, group in groups.items():
        where = dict(zip(claim.within, labels, strict=True))
        for axis, which in claim.only.items():
            if which in ("first", "last"):
                there = list(dict.fromkeys(row[axis] for row in group))
                where[axis] = there[0 if which == "first" else -1]
        cells[tuple(where.items())] = [row for row in group if fits(row, where)]
    return cells


def _only(claim: Claim, rows: Iterable[Row]) -> list[Row]:
    wanted = {
        axis: labels if isinstance(labels, tuple) else (labels,)
        for axis, labels in claim.only.items()
        if labels not in ("first", "last")
    }
    return [row for row in rows if all(row[axis] in labels for axis, labels in wanted.items())]


def _verdict(claim: Claim, test: Criterion, cells: Sequence[Row], rows: Sequence[Row]) -> Verdict:
    """What the finished runs among a cell's say of one test."""
    samples, notes = samples_of(claim, test, cells, rows)
    if test.rule == "interior":
        found = interior(test, samples)
    elif test.rule == "trend":
        found = trend(test, samples)
    elif test.rule == "reduction":
        found = reduced(claim, test, rows, samples)
    else:
        found = compared(claim, test, samples)
    said = found.verdict
    if not found.seeds:
        said = "not run"
        notes = [found.detail]
    elif found.seeds < claim.seeds:
        said = "undecided"
        notes.insert(0, f"{found.seeds} of {claim.seeds} seeds")
    elif why := _vacuous(claim, rows):
        said = "vacuous"
        notes.insert(0, why)
    details = [found.detail, *notes] if found.seeds else notes
    effect = None if said == "not run" else found.effect
    factor, unit = unit_of(test)
    return Verdict(
        claim.name, {}, said, scaled(effect, factor), found.seeds, "; ".join(details), unit
    )


def _vacuous(claim: Claim, rows: Sequence[Row]) -> str:
    """Why the claim says nothing here, or nothing."""
    rule = claim.vacuous
    if rule is None:
        return ""
    values = [value_of(row, rule.value) for row in rows if row[claim.compare.axis] == rule.of]
    known = [value for value in values if math.isfinite(value)]
    if not known or (mean := sum(known) / len(known)) > rule.at_most:
        return ""
    what = rule.value.removeprefix("record.").replace("_", " ")
    return f"{rule.because} ({what} of {rule.of}: {mean:.2f}, at most {rule.at_most:g})"
