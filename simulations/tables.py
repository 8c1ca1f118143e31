"""Tables of a paper: mean and spread over seeds, the best of each column, and what is told worse.

An entry that a test does not tell from the best one is not marked: with few seeds that is no tie.
What runs warn of stands under the table, with a mark at each entry that it concerns.
"""

from __future__ import annotations

import csv as comma
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedkd.caveats import ANOTHER_METHOD, Caveat, gathered, marked
from fedkd.errors import FedkdError, nearest
from fedkd.escaping import csv_cell, plain
from fedkd.escaping import latex as in_latex
from fedkd.escaping import markdown as in_markdown
from fedkd.labels import is_setting
from fedkd.statistics import (
    LEVEL,
    Paired,
    Test,
    bootstrap,
    fewest_to_tell,
    holm,
    paired,
    smallest_told,
)
from simulations.captions import Best, shown, subject
from simulations.captions import direction as direction
from simulations.layout import aligned, ruled

if TYPE_CHECKING:
    from pandas import DataFrame

Spread = Literal["std", "bootstrap"]
WORSE = "↓"
THE_BEST = "the best of the column"
NAMES = {"t": "a paired t test", "wilcoxon": "Wilcoxon's signed-rank test"}


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


Labels = tuple[Any, ...]
Key = tuple[Labels, Labels]
"""The labels of an entry's row, and those of its column."""


@dataclass
class _Runs:
    """The runs of an entry: a finite number a seed, and the caveats of each run."""

    numbers: dict[Any, float] = field(default_factory=dict)
    caveats: list[tuple[Caveat, ...]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.numbers.values()))) if self.numbers else math.nan

    @property
    def another(self) -> bool:
        """Whether a run says that its method comes to no more than another."""
        return any(one.kind in ANOTHER_METHOD for its in self.caveats for one in its)


@dataclass(frozen=True)
class _Comparison:
    """An entry against its reference: adjusted p, and what could be told at all.

    ``needed`` is how many pairs could tell anything, ``smallest`` the smallest mean difference that
    could be told of pairs that vary so.
    """

    pair: Paired
    p: float
    worse: bool
    needed: int
    smallest: float


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
) -> Table:
    """Gather runs into a table: an entry for all runs of one row and column, over their seeds.

    Parameters
    ----------
    frame : pandas.DataFrame
        A row a run, as ``simulations.suite.frame`` or ``fedkd.load_runs`` have it; what its column
        ``warnings`` holds is noted under the table.
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

    Raises
    ------
    FedkdError
        A name is not a column; several runs have one row, column and seed, or those of one row and
        column differ in more than their seed; the value is no number,
        or no run has a finite one; there is no such row, or nothing is the best.
    """
    down, across = _names(rows), _names(columns)
    runs = _gathered(frame, down, across, value, paired_by)
    left = list(dict.fromkeys(key[0] for key in runs))
    top = list(dict.fromkeys(key[1] for key in runs))
    heads = _headings(left)
    named = _row(differences, left, heads) if isinstance(differences, str) else None
    if differences is True and best is None:
        raise FedkdError(f"differences in {value} are to the best, or to a row: say which")
    bests, references = set[Key](), set[Key]()
    compared: dict[Key, _Comparison] = {}
    for column in top:
        there = {key: its for key, its in runs.items() if key[1] == column}
        if (first := _best(there, best)) is not None:
            bests.add(first)
        reference = first if named is None else (named, column)
        if reference in there:
            references.add(reference)
            compared |= _compared(there, reference, best, test)
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
    reference_name = differences if isinstance(differences, str) else THE_BEST * differences
    unit = "points" if differences and unit == "%" else unit
    caption = [
        subject(frame, value, unit, across, seeds),
        _of_entries(spread, max(seeds), reference_name),
        f"Best of a column: the {'largest' if best == 'max' else 'smallest'} mean." * bool(bests),
        _of_tests(list(compared.values()), reference_name, test, unit, digits) if best else "",
    ]
    return Table(
        corner=", ".join(down),
        columns=tuple(head or value for head in _headings(top)),
        rows=tuple(heads),
        cells=tuple(tuple(entries.get((row, column)) for column in top) for row in left),
        value=value,
        unit=unit,
        caption=" ".join(filter(None, caption)),
        notes=notes,
        reference=reference_name,
    )


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _gathered(
    frame: DataFrame, down: Sequence[str], across: Sequence[str], value: str, paired_by: str
) -> dict[Key, _Runs]:
    """The runs of every entry, in the order of the frame; numbers in the unit they are shown in."""
    for name in (*down, *across, value, paired_by):
        if name not in frame.columns:
            known = sorted(map(str, frame.columns))
            raise FedkdError(f"{name!r} is not a column{nearest(name, known)}")
    factor = shown(value)[0]
    found: dict[Key, _Runs] = {}
    seen = set()
    wanted = [*down, *across, paired_by, value, *(["warnings"] if "warnings" in frame else [])]
    keys = [name for name in frame.columns if is_setting(name) and name not in wanted]
    settings: dict[Key, dict[str, Any]] = {}
    for line in frame[list(dict.fromkeys([*wanted, *keys]))].to_dict("records"):
        key = (
            tuple(_label(line[name]) for name in down),
            tuple(_label(line[name]) for name in across),
        )
        seed = _label(line[paired_by])
        if (key, seed) in seen:
            raise FedkdError(
                f"several runs are of {', '.join(map(str, (*key[0], *key[1])))} and {paired_by} "
                f"{seed}: name what else tells them apart, or fix it"
            )
        seen.add((key, seed))
        now = {name: _label(line[name]) for name in keys}
        first = settings.setdefault(key, now)
        if apart := [name for name in keys if first[name] != now[name]]:
            more = f" and {len(apart) - 1} more keys" if len(apart) > 1 else ""
            raise FedkdError(
                f"runs of {', '.join(map(str, (*key[0], *key[1])))} differ in {apart[0]} "
                f"({first[apart[0]]} and {now[apart[0]]}){more}, and are no seeds of one "
                "experiment: name what tells them apart, or fix it"
            )
        its = found.setdefault(key, _Runs())
        if math.isfinite(number := factor * _number(value, line[value])):
            its.numbers[seed] = number
        warnings = line.get("warnings")
        its.caveats.append(warnings if isinstance(warnings, tuple) else ())
    if not any(its.numbers for its in found.values()):
        raise FedkdError(f"{value} has no finite number in these runs: a table needs one")
    return found


def _label(label: Any) -> Any:
    """A label; None where there is none, as NaN is not equal to itself."""
    return None if isinstance(label, float) and math.isnan(label) else label


def _number(value: str, number: Any) -> float:
    if number is None:
        return math.nan
    try:
        if not isinstance(number, str):
            return float(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise FedkdError(f"{value} = {repr(number)[:60]} is not a number: a table needs one")


def _headings(labels: Sequence[Labels]) -> list[str]:
    """A heading for each combination of labels, with as many digits as tell them apart."""
    short = [", ".join(map(_short, some)) for some in labels]
    twice = {heading for heading, count in Counter(short).items() if count > 1}
    return [
        ", ".join(map(repr, some)) if heading in twice else heading
        for heading, some in zip(short, labels, strict=True)
    ]


def _short(label: Any) -> str:
    if label is None:
        return "-"
    return f"{label:g}" if isinstance(label, float) else plain(label)


def _row(heading: str, left: Sequence[Labels], heads: Sequence[str]) -> Labels:
    """The labels of the row with this heading."""
    for labels, head in zip(left, heads, strict=True):
        if head == plain(heading):
            return labels
    raise FedkdError(
        f"--differences {heading!r} is not a row{nearest(heading, list(heads))}; rows: "
        f"{', '.join(heads)}"
    )


# --- entries ------------------------------------------------------------------------------------


def _entry(its: _Runs, spread: Spread, digits: int) -> Entry:
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


def _difference(one: _Comparison | None, entry: Entry, reference: bool, digits: int) -> Entry:
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


# --- what is best, and what is worse ------------------------------------------------------------


def _best(there: Mapping[Key, _Runs], best: Best | None) -> Key | None:
    """The best of a column's entries, if there are several and one of them may be it."""
    means = {key: its.mean for key, its in there.items() if its.numbers}
    fit = [key for key in means if not there[key].another]
    if best is None or len(means) < 2 or not fit:
        return None
    return (max if best == "max" else min)(fit, key=lambda key: means[key])


def _compared(
    there: Mapping[Key, _Runs], reference: Key, best: Best | None, test: Test
) -> dict[Key, _Comparison]:
    """A column's entries against one, in the seeds that both have; not tested if none is best."""
    pairs: dict[Key, Paired] = {}
    smallest: dict[Key, float] = {}
    for key, its in there.items():
        seeds = [seed for seed in its.numbers if seed in there[reference].numbers]
        if key != reference and seeds:
            a, b = ([there[one].numbers[seed] for seed in seeds] for one in (key, reference))
            pairs[key], smallest[key] = paired(a, b, test=test), smallest_told(a, b)
    tested = [key for key, pair in pairs.items() if pair.n > 1 and best is not None]
    adjusted = dict(zip(tested, holm([pairs[key].p for key in tested]), strict=True))
    sign = 1 if best == "min" else -1
    found = {}
    for key, pair in pairs.items():
        p = adjusted.get(key, math.nan)
        worse = p < LEVEL and sign * pair.difference.mean > 0
        needed = fewest_to_tell(max(len(tested), 1), test)
        found[key] = _Comparison(pair, p, worse, needed, smallest[key])
    return found


# --- what stands under a table --------------------------------------------------------------------


def _noted(
    runs: Mapping[Key, _Runs], axes: Sequence[str]
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


def titled(axes: Sequence[str], labels: Labels) -> str:
    """``knfu, alpha 0.1``: labels in a line, with what a number is of."""
    return ", ".join(
        f"{axis.split('.')[-1]} {_short(label)}" if _is_number(label) else _short(label)
        for axis, label in zip(axes, labels, strict=True)
    )


def _is_number(label: Any) -> bool:
    try:
        float(label)
    except (TypeError, ValueError):
        return False
    return not isinstance(label, bool)


def _of_entries(spread: Spread, seeds: int, reference: str) -> str:
    """What an entry's numbers are."""
    if reference:
        interval = " with its 95 % interval by Student's t, each by itself" if seeds > 1 else ""
        return f"Difference to {plain(reference)}, paired over seeds{interval}."
    if seeds < 2:
        return ""
    spreads = {"std": "± standard deviation", "bootstrap": "[95 % bootstrap interval]"}
    return f"Mean {spreads[spread]} over seeds."


def _of_tests(
    compared: Sequence[_Comparison], reference: str, test: Test, unit: str, digits: int
) -> str:
    """What the mark of the worse means, and what these seeds could tell."""
    if not compared:
        return ""
    able = [one for one in compared if one.pair.n >= one.needed]
    if not able:
        needed = min(one.needed for one in compared)
        return f"Too few seeds to tell anything apart: {NAMES[test]} needs {needed} in common."
    other = plain(reference) if reference not in ("", THE_BEST) else "the best"
    parts = [
        f"{WORSE}: worse than {other} by {NAMES[test]} over seeds (Holm over the column, "
        f"p < {LEVEL:g})."
    ]
    largest = max(one.smallest for one in able)
    if test == "t" and not reference and largest > 0:
        ends = [f"{one:.{digits}f}" for one in (min(one.smallest for one in able), largest)]
        unit = {"%": " points"}.get(unit, f" {unit}" if unit else "")
        size = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
        by = " (by entry)" if ends[0] != ends[1] else ""
        parts.append(
            f"No {WORSE} is no tie: with these seeds a difference below {size}{unit}{by} would "
            "not be told."
        )
    else:
        parts.append(f"No {WORSE} is no tie: it is not told apart.")
    if few := len(compared) - len(able):
        parts.append(f"{few} of {len(compared)} entries have too few seeds to be told apart.")
    return " ".join(parts)


# --- formats ------------------------------------------------------------------------------------


def _marked(table: Table) -> bool:
    return any(entry and entry.best for row in table.cells for entry in row)


def text(table: Table) -> str:
    """Plain text: ``*`` after the best of a column, ``↓`` after what is worse, marks of notes."""
    signs = [[_signs(entry) for entry in row] for row in table.cells]
    room = max(len(sign) for row in signs for sign in row)
    room += bool(room)
    body = [
        [plain(head), *(_plain(entry) + f" {sign}".ljust(room)[:room] for entry, sign in cells)]
        for head, cells in zip(table.rows, map(zip, table.cells, signs), strict=True)
    ]
    heads = [plain(table.corner), *(plain(head) + " " * room for head in table.columns)]
    lines = aligned([heads, *body], "  ")
    caption = plain(table.caption) + " *: best." * _marked(table)
    return "\n".join([*lines, "", caption, *table.notes])


def _plain(entry: Entry | None) -> str:
    return "-" if entry is None else entry.text


def _signs(entry: Entry | None) -> str:
    return "" if entry is None else "*" * entry.best + WORSE * entry.worse + entry.marks


def markdown(table: Table) -> str:
    """Markdown that also lines up as plain text: the best bold, ``↓`` after what is worse."""
    body = [
        [in_markdown(row), *map(_markdown, entries)]
        for row, entries in zip(table.rows, table.cells, strict=True)
    ]
    lines = ruled([[*map(in_markdown, (table.corner, *table.columns))], *body])
    caption = in_markdown(table.caption) + " Bold: best." * _marked(table)
    return "\n\n".join([lines, caption, *notes_markdown(table.notes)])


def notes_markdown(notes: Iterable[str]) -> list[str]:
    """Notes as one list in Markdown; nothing if there are none."""
    lines = [f"- {in_markdown(note)}" for note in notes]
    return ["\n".join(lines)] if lines else []


def _markdown(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    written = f"**{entry.text}**" if entry.best else entry.text
    return " ".join(filter(None, [written, WORSE * entry.worse, entry.marks]))


def csv(table: Table) -> str:
    """CSV, a line an entry: headings, mean, its lower and upper end, seeds, marks and warnings."""
    file = io.StringIO()
    write = comma.writer(file, lineterminator="\n").writerow
    heads = ["row", "column", "value", "unit", "mean", "low", "high", "seeds"]
    write([*heads, "best", "worse", "p", "warnings"])
    value = f"{table.value}, difference to {table.reference}" if table.reference else table.value
    for row, entries in zip(table.rows, table.cells, strict=True):
        for column, entry in zip(table.columns, entries, strict=True):
            if entry is not None:
                labels = [csv_cell(label) for label in (row, column, value, table.unit)]
                *ends, p = [
                    f"{number:.6g}" if math.isfinite(number) else ""
                    for number in (entry.mean, entry.low, entry.high, entry.p)
                ]
                marks = [int(entry.best), int(entry.worse), p]
                write([*labels, *ends, entry.seeds, *marks, csv_cell("; ".join(entry.warnings))])
    return file.getvalue().rstrip("\n")


def latex(table: Table) -> str:
    """LaTeX for ``booktabs``: a ``table`` with the best bold, and notes in small print under it."""
    body = [
        [in_latex(row), *map(_latex, entries)]
        for row, entries in zip(table.rows, table.cells, strict=True)
    ]
    heads = [in_latex(head) for head in (table.corner, *table.columns)]
    caption = in_latex(table.caption) + " Bold: best." * _marked(table)
    notes = [rf"  {{\footnotesize\raggedright {in_latex(note)}\par}}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{caption}}}",
            rf"  \begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"    \toprule",
            rf"    {' & '.join(heads)} \\",
            r"    \midrule",
            *(rf"    {' & '.join(line)} \\" for line in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            *([r"  \par\smallskip", *notes] if notes else []),
            r"\end{table}",
        ]
    )


def _latex(entry: Entry | None) -> str:
    if entry is None or not entry.seeds:
        return "--"
    written = in_latex(entry.text)
    written = rf"\textbf{{{written}}}" if entry.best else written
    written += in_latex(f" {WORSE}" * entry.worse)
    return written + rf"\textsuperscript{{{in_latex(entry.marks)}}}" * bool(entry.marks)


# --- of a suite ---------------------------------------------------------------------------------


def of_suite(
    name: str,
    scale: str,
    out: Path | None,
    where: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    value: str,
    *,
    spread: Spread = "std",
    best: Best | None = "max",
    test: Test = "t",
    differences: bool | str = False,
) -> Table:
    """The table of a suite's finished runs, or of all that lie below a folder.

    ``where`` is ``AXIS=LABEL[,LABEL]``. Without ``rows`` they are the methods, or else the first
    axis that is neither the seed nor in ``columns``.

    Raises
    ------
    FedkdError
        There is no such suite, axis or label; nothing has finished; an axis has several labels and
        is neither named nor fixed.
    """
    from fedkd.frames import load_runs
    from simulations import suite as grid

    folder = Path(name)
    of_runs = folder.is_dir() and not (folder / grid.MANIFEST).is_file()
    if of_runs:
        frame = load_runs(folder)
        frame = frame[frame.finished] if len(frame) else frame
        axes = {str(key): tuple(frame[key].unique()) for key in frame.columns}
    else:
        opened = grid.read(name, scale, out=out)
        frame, axes, folder = grid.frame(opened), opened.axes, opened.folder
    if not len(frame):
        run = "" if of_runs else f"; fedkd suite {name} --scale {scale} runs it"
        raise FedkdError(f"{folder} has no finished run{run}")
    for axis, some in grid.wanted(axes, where, "--where").items():
        frame = frame[frame[axis].isin(some)]
    if not len(frame):
        raise FedkdError(f"--where {' '.join(where)}: no finished run has these labels")
    if not rows:
        usual = ("strategy.name",) if of_runs else ("method", *axes)
        free = [axis for axis in usual if axis in axes and axis not in (*columns, grid.SEED)]
        rows = free[:1]
    for axis in (*rows, *columns):
        if axis not in axes:
            raise FedkdError(
                f"{axis!r} is not an axis{nearest(axis, list(axes))}; axes: {', '.join(axes)}"
            )
    if not of_runs:
        _one_label(frame, opened.axes, (*rows, *columns, grid.SEED))
    return table(
        frame,
        rows,
        columns,
        value,
        spread=spread,
        best=best,
        test=test,
        differences=differences,
    )


def _one_label(frame: DataFrame, axes: Iterable[str], named: Sequence[str]) -> None:
    """Refuse axes with several labels that the table does not name."""
    for axis in axes:
        labels = list(dict.fromkeys(map(str, frame[axis])))
        if axis not in named and len(labels) > 1:
            raise FedkdError(
                f"{axis} has {len(labels)} labels: name it in --rows or --columns, or fix it by "
                f"--where {axis}=LABEL; labels: {', '.join(labels)}"
            )
