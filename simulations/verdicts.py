"""Claims, and what a suite's runs say of them: rules that are fixed before the runs.

A claim is a file of ``simulations/claims``: a statement and its source, the suite that tests it,
what is compared, and one or more tests, each with a rule and a margin. A test is judged in every
cell of the axes in ``within``; effects are always turned so that positive speaks for the claim.
With an interval of the paired differences over seeds (Student's t):

========== ============================== ==============================
rule       supported                      not supported
========== ============================== ==============================
better     low > margin                   high < margin
not worse  low > -margin                  high < -margin
level      -margin < low, high < margin   low > margin, or high < -margin
trend      as better, of the slope        as better
interior   an inner label of the axis     an end of it is better than
           is better than both ends       every inner label
reduction  low >= margin, of the share    high < margin
           of excess exposure gone
========== ============================== ==============================

and undecided else, always so where there are fewer seeds than asked for. An interval is at 95 %;
where a test compares with k others, each at 1 - 5 %/k (Bonferroni), so that all k hold at once. All
comparisons must hold for a cell to support a claim, one that is refuted refutes it; cells make an
overall verdict in the same way. So "supported" is wrong at most as often as one interval is, while
an overall "not supported" has as many chances to be wrong as there are cells: read the cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from fedkd.caveats import Caveat
from fedkd.errors import FedkdError, nearest
from fedkd.experiment import Table, validated
from fedkd.results import Run, exposures, most_repeated, reached, utility, utility_name
from fedkd.statistics import Interval, interval
from fedkd.toml import parse, read_text

if TYPE_CHECKING:
    from pandas import DataFrame

    from simulations.suite import Suite

FOLDER = Path(__file__).parent / "claims"
ERROR = 0.05
"""Chance that an interval, or one of several that are judged at once, misses what it is about."""

Label = str | int | float | bool
Judgement = Literal["supported", "not supported", "undecided", "vacuous", "not run"]
Rule = Literal["better", "not worse", "level", "trend", "interior", "reduction"]
Row = Mapping[str, Any]

MEASURES = {
    "own_accuracy_mean": "own accuracy, fused",
    "own_accuracy_mean_local": "own accuracy, local",
    "own_accuracy_worst10": "own accuracy, worst 10 %",
    "own_accuracy_std": "own accuracy, std over clients",
    "common_accuracy_mean": "common accuracy, fused",
    "common_accuracy_mean_local": "common accuracy, local",
    "rounds_to_target": "rounds to target",
    "membership_auc": "AUC of membership inference by a server that sees all that is sent",
    "membership_auc_others": "AUC of membership inference by others, from what a server makes",
    "audited_epsilon": "audited \N{GREEK SMALL LETTER EPSILON} of a record, of the server",
    "formal_epsilon": "formal \N{GREEK SMALL LETTER EPSILON} against the server",
    "formal_epsilon_others": "formal \N{GREEK SMALL LETTER EPSILON} against others",
}
"""What a test measures, in words, where its column's name is not plain."""


class Compare(Table):
    """``[compare]``: which labels of an axis are held against which."""

    axis: str
    """The axis that they are labels of."""
    of: Label | None = None
    """What the claim speaks of; not for ``trend`` and ``interior``, which are about the axis."""
    with_: tuple[Label, ...] = Field((), alias="with")
    """What it is compared with: each of these."""


class Criterion(Table):
    """``[[tests]]``: one thing that must be so."""

    value: str
    """A column of the suite's frame; or ``utility`` (accuracy, or minus perplexity),
    ``rounds_to_target``, ``record.NAME`` (the mean over rounds of a number that the strategy
    records)."""
    rule: Rule
    margin: float = Field(0.0, ge=0)
    """In the value's own unit: accuracies are fractions."""
    lower: bool = False
    """Whether less is better."""
    relative: bool = False
    """Whether differences count as a share of what is compared with."""
    target: Label | None = None
    """Of ``rounds_to_target``: whose final own accuracy is to be reached, with the same seed. A run
    that never does counts as one round more than it has."""


class Vacuous(Table):
    """``[vacuous]``: where the claim says nothing."""

    value: str
    """As in a test."""
    of: Label
    """Of which label of the compared axis."""
    at_most: float
    """Vacuous where the mean over seeds is no more than this."""
    because: str
    """What it means."""


class Claim(Table):
    """A claim, its source, and what is to be seen for it and against it."""

    name: str
    statement: str
    source: str
    """Paper, and where it says so: its abstract, or a review of it."""
    about: str = ""
    """What a verdict does not speak of, said with it."""
    suite: str
    """Which suite's runs judge it."""
    compare: Compare
    tests: tuple[Criterion, ...] = Field(min_length=1)
    within: tuple[str, ...] = ()
    """A verdict for each combination of these axes' labels."""
    only: dict[str, Label | tuple[Label, ...]] = Field(default_factory=dict)
    """Labels of axes that it is about; ``first`` or ``last`` of those there are in a cell."""
    vacuous: Vacuous | None = None
    seeds: int = Field(5, ge=2)
    """Fewer decide nothing."""
    figure: str = ""
    """The command for its figure; ``{folder}`` is the suite's."""

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        for test in self.tests:
            where = f"claim {self.name}: tests.rule = {test.rule!r}"
            if test.rule in ("trend", "interior"):
                if self.compare.of is not None or self.compare.with_:
                    raise ValueError(f"{where} is about a whole axis: leave of and with out")
            elif self.compare.of is None or not self.compare.with_:
                raise ValueError(f"{where} needs compare.of and compare.with")
            told = len(self.compare.with_), test.value
            if test.rule == "reduction" and told != (1, "exposure_student"):
                raise ValueError(
                    f"{where} needs one label in compare.with, and value = 'exposure_student'"
                )
            if (test.value == "rounds_to_target") != (test.target is not None):
                raise ValueError(f"claim {self.name}: tests.target goes with rounds_to_target")
        return self


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim in one cell, or, where ``where`` is empty, over all of them.

    ``where`` has labels by axis and what was ``measured``; ``effect``, positive for the claim, is
    that of the comparison that decides, in ``unit``; ``seeds`` is how many pairs it rests on;
    ``detail`` says what else there is to know.
    """

    claim: str
    where: dict[str, Label]
    verdict: Judgement
    effect: Interval | None
    seeds: int
    detail: str
    unit: str = ""

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


# --- the files --------------------------------------------------------------------------------


def claims() -> dict[str, Claim]:
    """The claims that come with fedkd, by name."""
    return {file.stem: read(file) for file in sorted(FOLDER.glob("*.toml"))}


def read(file: Path) -> Claim:
    """The claim in a file; its name is the file's.

    Raises
    ------
    FedkdError
        The file is not a claim; the line says what is wrong.
    """
    tables = parse(read_text(file, f"claim {file}"), f"claim {file}")
    return validated(Claim, {"name": file.stem, **tables}, f"claim {file.stem}: ")


def chosen(names: Sequence[str]) -> dict[str, Claim]:
    """The claims called ``names``: of one, of a method (``knfu``), or in a file; all without any.

    Raises
    ------
    FedkdError
        A name is not known.
    """
    known = claims()
    if not names:
        return known
    found: dict[str, Claim] = {}
    for name in names:
        if name.endswith(".toml"):
            one = read(Path(name))
            found[one.name] = one
            continue
        fit = [other for other in known if other == name or other.startswith(f"{name}-")]
        if not fit:
            raise FedkdError(
                f"claim {name!r} is not known{nearest(name, list(known))}; known: "
                f"{', '.join(known)}"
            )
        found |= {other: known[other] for other in fit}
    return found


# --- judging ----------------------------------------------------------------------------------


def judge(claim: Claim, frame: DataFrame) -> list[Verdict]:
    """What finished runs say of a claim: a verdict a cell and test, then one over all of them.

    Parameters
    ----------
    claim : Claim
        What is claimed.
    frame : pandas.DataFrame
        ``simulations.suite.frame``: a row a finished run, with a column for each axis, ``folder``,
        and the columns that the claim's tests are about.

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
    from simulations.suite import frame

    cells = [cell.labels for cell in suite.cells]
    missing = {tuple(cell.labels.values()): cell.missing for cell in suite.cells if cell.missing}
    return _judged(claim, cells, _rows(frame(suite) if runs is None else runs), missing)


def warnings(claim: Claim, suite: Suite, runs: DataFrame) -> list[tuple[Label, tuple[Caveat, ...]]]:
    """Of each run that judges a claim, its label on the compared axis and its caveats."""
    axis, named = claim.compare.axis, (claim.compare.of, *claim.compare.with_)
    rows = [row for row in _only(claim, _rows(runs)) if named == (None,) or row[axis] in named]
    cells = [dict(where) for where in _cells(claim, [cell.labels for cell in suite.cells])]
    return [
        (row[axis], row["warnings"]) for row in rows if any(_fits(row, labels) for labels in cells)
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
        rows = [row for row in _only(claim, found) if _fits(row, labels)]
        # The rest of the line is how to get it.
        why = {missing.get(tuple(cell.values()), "").partition(": ")[0]: None for cell in cells}
        for test in claim.tests:
            one = _verdict(claim, test, cells, rows)
            if not rows:
                one = replace(one, detail="; ".join(filter(None, why)) or "no finished run")
            measured = MEASURES.get(test.value, test.value.replace("_", " "))
            verdicts.append(replace(one, where={**labels, "measured": measured}))
    return [*verdicts, overall(claim, verdicts)]


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
        cells[tuple(where.items())] = [row for row in group if _fits(row, where)]
    return cells


def _only(claim: Claim, rows: Iterable[Row]) -> list[Row]:
    wanted = {
        axis: labels if isinstance(labels, tuple) else (labels,)
        for axis, labels in claim.only.items()
        if labels not in ("first", "last")
    }
    return [row for row in rows if all(row[axis] in labels for axis, labels in wanted.items())]


def _fits(row: Row, labels: Mapping[str, Label]) -> bool:
    return all(row[axis] == label for axis, label in labels.items())


def _verdict(claim: Claim, test: Criterion, cells: Sequence[Row], rows: Sequence[Row]) -> Verdict:
    """What the finished runs among a cell's say of one test."""
    samples, notes = _samples(claim, test, cells, rows)
    if test.rule == "interior":
        found = _interior(test, samples)
    elif test.rule == "trend":
        found = _trend(test, samples)
    elif test.rule == "reduction":
        found = _reduced(claim, test, rows, samples)
    else:
        found = _compared(claim, test, samples)
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
    factor, unit = _unit(test)
    return Verdict(
        claim.name, {}, said, _scaled(effect, factor), found.seeds, "; ".join(details), unit
    )


@dataclass(frozen=True)
class _Found:
    """What a rule says before seeds are counted; the effect in the value's own unit."""

    verdict: Judgement
    effect: Interval | None
    seeds: int
    detail: str


Samples = Mapping[Label, Mapping[int, float]]
"""A value by label of the compared axis, then by seed."""


def _absent(samples: Samples, least: int = 1) -> _Found | None:
    """That nothing can be compared, if so: a label without a run, or fewer than ``least``."""
    if len(samples) < least:
        return _Found("not run", None, 0, f"the axis has {len(samples)} labels, not {least}")
    names = [str(label) for label, by in samples.items() if not by]
    return _Found("not run", None, 0, f"no run of {', '.join(names)}") if names else None


def _compared(claim: Claim, test: Criterion, samples: Samples) -> _Found:
    """``better``, ``not worse`` and ``level``: one label against each of others."""
    of, others = claim.compare.of, claim.compare.with_
    assert of is not None
    if absent := _absent(samples):
        return absent
    effects = {
        other: _difference(test, samples[of], samples[other], 1 - ERROR / len(others))
        for other in others
    }
    said = {other: _ruled(test, effect) for other, effect in effects.items()}
    refuted = [other for other in others if said[other] == "not supported"]
    weakest = min(refuted or others, key=lambda other: _strength(test, effects[other]))
    verdict: Judgement = "undecided"
    if refuted:
        verdict = "not supported"
    elif all(one == "supported" for one in said.values()):
        verdict = "supported"
    seeds = min(effect.n for effect in effects.values())
    lost = [
        f"seed {seed} of {label} is missing"
        for label in (of, *others)
        for seed in sorted({s for every in (of, *others) for s in samples[every]})
        if seed not in samples[label]
    ]
    open_ = [str(other) for other in others if said[other] == "undecided" and other != weakest]
    also = [f"undecided too against {', '.join(open_)}"] if open_ and not refuted else []
    return _Found(verdict, effects[weakest], seeds, "; ".join([f"against {weakest}", *also, *lost]))


def _difference(
    test: Criterion, of: Mapping[int, float], other: Mapping[int, float], confidence: float
) -> Interval:
    """Paired differences over the seeds that both have, positive where ``of`` is better."""
    sign = -1 if test.lower else 1
    differences = []
    for seed in sorted(of.keys() & other.keys()):
        scale = abs(other[seed]) if test.relative else 1.0
        differences.append(sign * (of[seed] - other[seed]) / scale)
    return interval(differences, confidence)


def _ruled(test: Criterion, effect: Interval) -> Judgement:
    """What an interval says under a rule; one that is not known, NaN, decides nothing."""
    low, high, margin = effect.low, effect.high, test.margin
    if test.rule == "level":
        if -margin < low and high < margin:
            return "supported"
        return "not supported" if low > margin or high < -margin else "undecided"
    least = -margin if test.rule == "not worse" else margin
    if low > least:
        return "supported"
    return "not supported" if high < least else "undecided"


def _strength(test: Criterion, effect: Interval) -> float:
    """How strongly an effect speaks for the claim; the weakest of several decides."""
    if math.isnan(effect.low):
        return -math.inf
    return -max(-effect.low, effect.high) if test.rule == "level" else effect.low


def _trend(test: Criterion, samples: Samples) -> _Found:
    """Whether the value rises along the axis: the slope against its labels, a slope a seed.

    Labels that are positive numbers count by their logarithm to base 2, others by their place.
    """
    labels = list(samples)
    if absent := _absent(samples, 2):
        return absent
    seeds = sorted(set.intersection(*(set(by) for by in samples.values())))
    numbers = all(isinstance(x, int | float) and x > 0 for x in labels)
    places = [math.log2(float(x)) if numbers else float(i) for i, x in enumerate(labels)]
    middle = sum(places) / len(places)
    spread = sum((place - middle) ** 2 for place in places)
    sign = -1 if test.lower else 1
    slopes = [
        sign
        * sum((place - middle) * samples[label][seed] for place, label in zip(places, labels))
        / spread
        for seed in seeds
    ]
    effect = interval(slopes, 1 - ERROR)
    detail = f"{'a doubling' if numbers else 'a step'} of {labels[0]} to {labels[-1]}"
    return _Found(_ruled(test, effect), effect, len(seeds), detail)


def _interior(test: Criterion, samples: Samples) -> _Found:
    """Whether an inner label of the axis beats both of its ends.

    The intervals of all comparisons of an inner label with an end hold at once, so the best inner
    label may be chosen by looking.
    """
    labels = list(samples)
    if absent := _absent(samples, 3):
        return absent
    first, *inner, last = labels
    seeds = set.intersection(*(set(by) for by in samples.values()))
    common = {label: {seed: samples[label][seed] for seed in seeds} for label in labels}
    confidence = 1 - ERROR / (2 * len(inner))
    effects = {
        (label, end): _difference(test, common[label], common[end], confidence)
        for label in inner
        for end in (first, last)
    }
    # Of each inner label the comparison that is worse for it; of these the best.
    worse = {
        label: min((first, last), key=lambda end, label=label: effects[label, end].low)  # type: ignore[misc]
        for label in inner
    }
    best = max(inner, key=lambda label: _or_least(effects[label, worse[label]].low))
    end = worse[best]
    verdict: Judgement = "undecided"
    if effects[best, end].low > test.margin:
        verdict = "supported"
    for one in (first, last):
        if all(effects[label, one].high < test.margin for label in inner):
            verdict = "not supported"
            end = one
            best = max(inner, key=lambda label, one=one: effects[label, one].mean)  # type: ignore[misc]
    return _Found(verdict, effects[best, end], len(seeds), f"{best} against {end}")


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _reduced(claim: Claim, test: Criterion, rows: Sequence[Row], samples: Samples) -> _Found:
    """The share of excess exposure that is gone, clustered by model, by Fieller's interval."""
    from fedkd.exposures import reduction

    of, (plain,) = claim.compare.of, claim.compare.with_
    assert of is not None
    if absent := _absent(samples):
        return absent
    seeds = sorted(samples[of].keys() & samples[plain].keys())
    found = {}
    for label in (of, plain):
        runs = [
            Run(Path(row["folder"]))
            for seed in seeds
            for row in rows
            if row[claim.compare.axis] == label and row["seed"] == seed
        ]
        found[label] = exposures(runs, "student", most_repeated(runs[0]) if runs else None)
    share = reduction(found[plain][0], found[of][0], found[plain][1], found[of][1], 1 - ERROR)
    effect = Interval(share.mean, share.low, share.high, len(seeds))
    if math.isinf(share.low):
        return _Found(
            "vacuous", effect, len(seeds), f"{plain} leaks nothing that can be told from chance"
        )
    verdict: Judgement = "undecided"
    if share.low >= test.margin:
        verdict = "supported"
    elif share.high < test.margin:
        verdict = "not supported"
    return _Found(verdict, effect, len(seeds), f"against {plain}; wanted {100 * test.margin:g} %")


def _vacuous(claim: Claim, rows: Sequence[Row]) -> str:
    """Why the claim says nothing here, or nothing."""
    rule = claim.vacuous
    if rule is None:
        return ""
    values = [_value(row, rule.value) for row in rows if row[claim.compare.axis] == rule.of]
    known = [value for value in values if math.isfinite(value)]
    if not known or (mean := sum(known) / len(known)) > rule.at_most:
        return ""
    what = rule.value.removeprefix("record.").replace("_", " ")
    return f"{rule.because} ({what} of {rule.of}: {mean:.2f}, at most {rule.at_most:g})"


# --- values -----------------------------------------------------------------------------------


def _samples(
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
        value = _value(row, test.value, _target(claim, test, rows, seed))
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
    return next((_value(row, "own_accuracy_mean") for row in rows if _fits(row, wanted)), math.nan)


def _value(row: Row, name: str, target: float = math.nan) -> float:
    """A number of a run: a column, or read off its folder; NaN if it has none."""
    if name in row and not name.startswith("record."):
        return math.nan if row[name] is None else float(row[name])
    run = Run(Path(row["folder"]))
    if name == "utility":
        return utility(run) * (-1 if utility_name(run) == "perplexity" else 1)
    if name == "rounds_to_target":
        if math.isnan(target):
            return math.nan
        rounds = reached(run, target)["rounds_to_target"]
        return run.rounds[-1]["round"] + 1.0 if rounds is None else float(rounds)
    if name.startswith("record."):
        key = name.removeprefix("record.")
        found = [line.get("strategy", {}).get(key) for line in run.rounds]
        numbers = [float(number) for number in found if number is not None]
        return sum(numbers) / len(numbers) if numbers else math.nan
    raise FedkdError(f"value {name!r} is not a column{nearest(name, list(row))}")


def _unit(test: Criterion) -> tuple[float, str]:
    """What effects are multiplied with to be shown, and the unit they have then."""
    if test.relative or test.rule == "reduction":
        return 100.0, "%"
    if "accuracy" in test.value and "jain" not in test.value:
        return 100.0, "points"
    return 1.0, {"exposure_student": "bits", "rounds_to_target": "rounds"}.get(test.value, "")


def _scaled(effect: Interval | None, factor: float) -> Interval | None:
    if effect is None:
        return None
    return Interval(factor * effect.mean, factor * effect.low, factor * effect.high, effect.n)
