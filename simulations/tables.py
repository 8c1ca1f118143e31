"""Tables of a paper: mean and spread over seeds, the best of each column, and what is told worse.

What runs warn of stands under the table, with a mark at each entry that it concerns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedkd.caveats import gathered, marked
from fedkd.errors import FedkdError, nearest
from fedkd.escaping import plain
from fedkd.simulations.captions import Best, shown, subject
from fedkd.simulations.significance import THE_BEST, Comparison, best_key, compared_with, of_tests
from fedkd.simulations.table_runs import Key, Labels, Runs, gathered_runs, headings, titled
from fedkd.statistics import Test, bootstrap

if TYPE_CHECKING:
    from pandas import DataFrame

Spread = Literal["std", "bootstrap"]


@dataclass(frozen=True)
class Entry:
    """What stands in a cell: ``mean`` and ``low`` to ``high`` in the table's unit, and its text.

    ``low`` and ``high`` are a standard deviation away from the mean or the ends of its interval;
    NaN for one seed. ``worse``: told to be worse than the best of its column, or than the row that
    differences are to, with the adjusted p value ``p``, NaN where nothing was tested. ``marks`` are
    those of the table's notes, ``warnings`` what runs of this entry alone warn of.
    """

    text: str
    mean: float
    low: float
    high: float
    seeds: int
    best: bool = False
    worse: bool = False
    p: float = math.nan
    marks: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Headings and cells: ``corner`` is over the row's headings; None where nothing was run.

    ``notes`` are lines on what runs warn of, each with its mark if it has one. ``reference`` is
    what entries are differences to, nothing where they are means.
    """

    corner: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[Entry | None, ...], ...]
    value: str
    unit: str
    caption: str
    notes: tuple[str, ...] = ()
    reference: str = ""


def table(
    frame: DataFrame,
    rows: str | Sequence[str],
    columns: str | Sequence[str],
    value: str,
    *,
    spread: Spread = "std",
    best: Best | None = "max",
    test: Test = "t",
    paired_by: str = "seed",
    differences: bool | str = False,
    ranked: bool = False,
) -> Table:
    """Gather runs into a table: an entry for all runs of one row and column, over their seeds.

    Parameters
    ----------
    frame : pandas.DataFrame
        A row a run, as ``fedkd.simulations.suite.frame`` or ``fedkd.load_runs`` have it; what its
        column ``warnings`` holds is noted under the table.
    rows, columns : str or sequence of str
        Columns of ``frame``; of several, headings are combinations. ``columns`` may be empty.
    value : str
        The column of ``frame`` that is shown. Accuracies in percent, bytes in MB.
    spread : {"std", "bootstrap"}
        After the mean: ± the standard deviation over seeds (n - 1), or the 95 % interval of the
        mean (BCa bootstrap).
    best : {"max", "min"} or None
        Which mean of a column is the best one; None: none is marked. An entry with a run that says
        that its method comes to no more than another one is never the best.
    test : {"t", "wilcoxon"}
        Paired test of each entry against the best of its column over the seeds that both have, p
        values of a column adjusted by Holm's method. An entry is marked as worse where it is worse
        on average over these seeds and its adjusted p is below 0.05. The others are not told apart.
    paired_by : str
        The column that pairs runs.
    differences : bool or str
        Instead of means, differences to the best of the column, or to the row with this heading,
        with their paired 95 % intervals by Student's t.
    ranked : bool
        Of differences: those of a column have intervals that hold for all of them at once
        (Bonferroni), and rows come in the order of their mean over columns, the best first.

    Raises
    ------
    FedkdError
        A name is not a column; several runs have one row, column and seed, or those of one row and
        column differ in more than their seed; the value is no number,
        or no run has a finite one; there is no such row, or nothing is the best.
    """
    down, across = _names(rows), _names(columns)
    runs = gathered_runs(frame, down, across, value, paired_by)
    left = list(dict.fromkeys(key[0] for key in runs))
    top = list(dict.fromkeys(key[1] for key in runs))
    heads = headings(left)
    named = _row(differences, left, heads) if isinstance(differences, str) else None
    if differences is True and best is None:
        raise FedkdError(f"differences in {value} are to the best, or to a row: say which")
    if ranked and not differences:
        raise FedkdError("a ranking is of differences: say to which row they are")
    bests, references = set[Key](), set[Key]()
    compared: dict[Key, Comparison] = {}
    for column in top:
        there = {key: its for key, its in runs.items() if key[1] == column}
        if (first := best_key(there, best)) is not None:
            bests.add(first)
        reference = first if named is None else (named, column)
        if reference in there:
            references.add(reference)
            compared |= compared_with(there, reference, best, test, together=ranked)
    _, unit, digits = shown(value)
    notes, marked = _noted(runs, (*down, *across))
    entries = {}
    for key, its in runs.items():
        entry, one = _entry(its, spread, digits), compared.get(key)
        if differences:
            entry = _difference(one, entry, key in references, digits)
        if one is not None:
            entry = replace(entry, p=one.p, worse=one.worse)
        marks, warnings = marked[key]
        entries[key] = replace(entry, best=key in bests, marks=marks, warnings=warnings)
    seeds = sorted({entry.seeds for entry in entries.values()} - {0})
    if len(seeds) > 1:
        entries = {key: _with_seeds(entry) for key, entry in entries.items()}
    if ranked:
        left = sorted(left, key=lambda row: _standing(entries, row, best))
    reference_name = differences if isinstance(differences, str) else THE_BEST * differences
    unit = "points" if differences and unit == "%" else unit
    caption = [
        subject(frame, value, unit, across, seeds),
        _of_entries(spread, max(seeds), reference_name, ranked),
        f"Best of a column: the {'largest' if best == 'max' else 'smallest'} mean." * bool(bests),
        of_tests(list(compared.values()), reference_name, test, unit, digits) if best else "",
    ]
    return Table(
        corner=", ".join(down),
        columns=tuple(head or value for head in headings(top)),
        rows=tuple(headings(left)),
        cells=tuple(tuple(entries.get((row, column)) for column in top) for row in left),
        value=value,
        unit=unit,
        caption=" ".join(filter(None, caption)),
        notes=notes,
        reference=reference_name,
    )


def beside(first: Table, other: Table, caption: str) -> Table:
    """The columns of two tables of the same runs side by side; ``caption`` says what they are."""
    heads = zip(first.columns, other.columns, strict=True)
    named = [(a, b if a == first.value else f"{b}, other stage") for a, b in heads]
    cells = [
        tuple(entry for pair in zip(*rows, strict=True) for entry in pair)
        for rows in zip(first.cells, other.cells, strict=True)
    ]
    return replace(
        first,
        columns=tuple(head for pair in named for head in pair),
        cells=tuple(cells),
        caption=f"{first.caption} {caption}",
    )


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _row(heading: str, left: Sequence[Labels], heads: Sequence[str]) -> Labels:
    """The labels of the row with this heading."""
    for labels, head in zip(left, heads, strict=True):
        if head == plain(heading):
            return labels
    raise FedkdError(
        f"--differences {heading!r} is not a row{nearest(heading, list(heads))}; rows: "
        f"{', '.join(heads)}"
    )


def _standing(entries: Mapping[Key, Entry], row: Labels, best: Best | None) -> float:
    """Where a row is in a ranking: the mean of its differences, the better the smaller."""
    there = [it.mean for key, it in entries.items() if key[0] == row and math.isfinite(it.mean)]
    sign = 1 if best == "min" else -1
    return sign * sum(there) / len(there) if there else math.inf


# --- entries --------------------------------------------------------------------------------------


def _entry(its: Runs, spread: Spread, digits: int) -> Entry:
    numbers = list(its.numbers.values())
    if not numbers:
        return Entry("-", math.nan, math.nan, math.nan, 0)
    mean, low, high = its.mean, math.nan, math.nan
    if len(numbers) > 1 and spread == "std":
        half = float(np.std(numbers, ddof=1))
        low, high = mean - half, mean + half
    elif len(numbers) > 1:
        interval = bootstrap(numbers)
        low, high = interval.low, interval.high
    text = mean_and_spread(numbers, digits)
    if spread == "bootstrap":
        text = _with_interval(f"{mean:.{digits}f}", low, high, f".{digits}f")
    return Entry(text, mean, low, high, len(numbers))


def _difference(one: Comparison | None, entry: Entry, reference: bool, digits: int) -> Entry:
    """An entry as what it differs by from its reference, in the pairs that there are."""
    if reference:
        return replace(entry, text=f"ref. {entry.text}", mean=0.0, low=math.nan, high=math.nan)
    if one is None or not one.pair.n:
        return Entry("-", math.nan, math.nan, math.nan, 0)
    found = one.pair.difference
    text = _with_interval(f"{found.mean:+.{digits}f}", found.low, found.high, f"+.{digits}f")
    return Entry(text, found.mean, found.low, found.high, one.pair.n)


def _with_interval(text: str, low: float, high: float, form: str) -> str:
    return f"{text} [{low:{form}}, {high:{form}}]" if math.isfinite(low) else text


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """``60.0 ± 10.0``: mean and standard deviation (n - 1); ``-`` of nothing."""
    if not values:
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _with_seeds(entry: Entry) -> Entry:
    return replace(entry, text=f"{entry.text} (n = {entry.seeds})") if entry.seeds else entry


# --- what stands under a table --------------------------------------------------------------------


def _noted(
    runs: Mapping[Key, Runs], axes: Sequence[str]
) -> tuple[tuple[str, ...], dict[Key, tuple[str, tuple[str, ...]]]]:
    """Notes with their marks; and of each entry its marks and what its runs warn of."""
    names = {key: titled(axes, (*key[0], *key[1])) for key in runs}
    notes = gathered((names[key], its) for key, entry in runs.items() for its in entry.caveats)
    lines, marks = marked(notes, never=" (does not count as best)")
    found = {}
    for key, entry in runs.items():
        own = gathered((names[key], its) for its in entry.caveats)
        texts = tuple(f"{note.concerned} of {note.runs} runs: {note.message}" for note in own)
        found[key] = (marks.get(names[key], ""), texts)
    return lines, found


def _of_entries(spread: Spread, seeds: int, reference: str, ranked: bool) -> str:
    """What an entry's numbers are."""
    if reference:
        held = "those of a column at once (Bonferroni)" if ranked else "each by itself"
        interval = f" with its 95 % interval by Student's t, {held}" if seeds > 1 else ""
        order = " Rows by their mean over columns, the best first." if ranked else ""
        return f"Difference to {plain(reference)}, paired over seeds{interval}.{order}"
    if seeds < 2:
        return ""
    spreads = {"std": "± standard deviation", "bootstrap": "[95 % bootstrap interval]"}
    return f"Mean {spreads[spread]} over seeds."
