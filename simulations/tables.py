"""Tables of a paper: mean and spread over seeds, the best of each column, and what ties with it."""

from __future__ import annotations

import csv as comma
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedkd.errors import FedkdError, nearest
from fedkd.statistics import Test, bootstrap, holm, paired

if TYPE_CHECKING:
    from pandas import DataFrame

Spread = Literal["std", "bootstrap"]
Best = Literal["max", "min"]
LEVEL = 0.05
"""An adjusted p at least this large does not tell an entry from the best one."""
SMALLER = (
    *("exposure", "loss", "perplexity", "ece", "bytes", "seconds", "left_out", "rounds_to"),
    "_std",
)
"""Parts of the names of values of which less is better."""


@dataclass(frozen=True)
class Entry:
    """What stands in a cell: ``mean`` and ``low`` to ``high`` in the table's unit, and its text.

    ``low`` and ``high`` are a standard deviation away from the mean or the ends of its interval;
    NaN for one seed.
    """

    text: str
    mean: float
    low: float
    high: float
    seeds: int
    best: bool = False
    tie: bool = False


@dataclass(frozen=True)
class Table:
    """Headings and cells: ``corner`` is over the row's headings; None where nothing was run."""

    corner: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[Entry | None, ...], ...]
    value: str
    unit: str
    caption: str


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
) -> Table:
    """Gather runs into a table: an entry for all runs of one row and column, over their seeds.

    Parameters
    ----------
    frame : pandas.DataFrame
        A row a run, as ``simulations.suite.frame`` or ``fedkd.load_runs`` have it.
    rows, columns : str or sequence of str
        Columns of ``frame``; of several, headings are combinations. ``columns`` may be empty.
    value : str
        The column of ``frame`` that is shown. Accuracies in percent, bytes in MB.
    spread : {"std", "bootstrap"}
        After the mean: ± the standard deviation over seeds (n - 1), or the 95 % interval of the
        mean (BCa bootstrap).
    best : {"max", "min"} or None
        Which mean of a column is the best one; None: none is marked.
    test : {"t", "wilcoxon"}
        Paired test of each entry against the best of its column over the seeds that both have, p
        values of a column adjusted by Holm's method. An entry that it does not tell from the best
        (adjusted p >= 0.05) is a tie; with one common seed there is no test and no tie.
    paired_by : str
        The column that pairs runs.

    Raises
    ------
    FedkdError
        A name is not a column; several runs have one row, column and seed.
    """
    down, across = _names(rows), _names(columns)
    for name in (*down, *across, value, paired_by):
        if name not in frame.columns:
            known = sorted(map(str, frame.columns))
            raise FedkdError(f"{name!r} is not a column{nearest(name, known)}")
    factor, unit, digits = shown(value)
    found: dict[tuple[Any, ...], dict[Any, float]] = {}
    for line in frame[list(dict.fromkeys([*down, *across, paired_by, value]))].to_dict("records"):
        key = (tuple(line[name] for name in down), tuple(line[name] for name in across))
        values = found.setdefault(key, {})
        if line[paired_by] in values:
            raise FedkdError(
                f"several runs are of {', '.join(map(str, (*key[0], *key[1])))} and {paired_by} "
                f"{line[paired_by]}: name what else tells them apart, or fix it"
            )
        number = line[value]
        if isinstance(number, str):
            raise FedkdError(f"{value} = {number!r} is not a number: a table needs one")
        values[line[paired_by]] = factor * (math.nan if number is None else float(number))
    left = list(dict.fromkeys(key[0] for key in found))
    top = list(dict.fromkeys(key[1] for key in found))
    entries = {key: _entry(values, spread, digits) for key, values in found.items()}
    for column in top if best else ():
        keys = [(row, column) for row in left if (row, column) in found]
        best_one, ties = _best({key: found[key] for key in keys}, best == "max", test)
        for key in keys:
            entries[key] = replace(entries[key], best=key == best_one, tie=key in ties)
    seeds = {entry.seeds for entry in entries.values()}
    if len(seeds) > 1:
        entries = {key: _with_seeds(entry) for key, entry in entries.items()}
    return Table(
        corner=", ".join(down),
        columns=tuple(_heading(column) or value for column in top),
        rows=tuple(map(_heading, left)),
        cells=tuple(tuple(entries.get((row, column)) for column in top) for row in left),
        value=value,
        unit=unit,
        caption=_caption(value, unit, spread, best, test, seeds, across),
    )


def _heading(labels: Sequence[Any]) -> str:
    return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in labels)


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def shown(value: str) -> tuple[float, str, int]:
    """How a value is shown: factor, unit, digits after the point."""
    if "accuracy" in value and "jain" not in value:
        return 100.0, "%", 1
    if value.startswith("bytes"):
        return 1e-6, "MB", 2
    if value.startswith("seconds"):
        return 1.0, "s", 1
    if value.startswith("exposure"):
        return 1.0, "bits", 2
    return 1.0, "", 1 if "perplexity" in value else 3


def direction(value: str) -> Best:
    """Whether more or less of a value is better, by its name."""
    return "min" if any(part in value for part in SMALLER) else "max"


def _entry(values: dict[Any, float], spread: Spread, digits: int) -> Entry:
    numbers = [number for number in values.values() if math.isfinite(number)]
    if not numbers:
        return Entry("-", math.nan, math.nan, math.nan, 0)
    mean, low, high = float(np.mean(numbers)), math.nan, math.nan
    if len(numbers) > 1 and spread == "std":
        half = float(np.std(numbers, ddof=1))
        low, high = mean - half, mean + half
    elif len(numbers) > 1:
        interval = bootstrap(numbers)
        low, high = interval.low, interval.high
    text = mean_and_spread(numbers, digits)
    if spread == "bootstrap":
        text = f"{mean:.{digits}f}"
        text += f" [{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) else ""
    return Entry(text, mean, low, high, len(numbers))


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """``60.0 ± 10.0``: mean and standard deviation (n - 1); ``-`` of nothing."""
    if not values:
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _best(
    values: Mapping[Any, Mapping[Any, float]], largest: bool, test: Test
) -> tuple[Any, set[Any]]:
    """The key of the best mean, and those that the test does not tell from it."""
    numbers = {
        key: {seed: number for seed, number in some.items() if math.isfinite(number)}
        for key, some in values.items()
    }
    means = {key: float(np.mean(list(some.values()))) for key, some in numbers.items() if some}
    if len(means) < 2:
        return None, set()
    first = (max if largest else min)(means, key=lambda key: means[key])
    p_values = {}
    for key in means:
        both = [seed for seed in numbers[first] if seed in numbers[key]]
        if key != first and len(both) > 1:
            a, b = ([numbers[one][seed] for seed in both] for one in (first, key))
            p_values[key] = paired(a, b, test=test).p
    adjusted = zip(p_values, holm(list(p_values.values())), strict=True)
    return first, {key for key, p in adjusted if p >= LEVEL}


def _with_seeds(entry: Entry) -> Entry:
    return replace(entry, text=f"{entry.text} (n = {entry.seeds})") if entry.seeds else entry


def _caption(
    value: str,
    unit: str,
    spread: Spread,
    best: Best | None,
    test: Test,
    seeds: set[int],
    across: Sequence[str],
) -> str:
    many = max(seeds, default=0)
    over = f"{many} seed{'s' * (many != 1)}" if len(seeds) == 1 else "the seeds (n)"
    by = f" by {', '.join(across)}" if across else ""
    said = f"{value}{f' in {unit}' if unit else ''}{by}: "
    if many < 2:
        return f"{said}{over}."
    mean = "mean ± standard deviation" if spread == "std" else "mean [95 % bootstrap interval]"
    said += f"{mean} over {over}."
    if best:
        name = "paired t test" if test == "t" else "Wilcoxon signed-rank test"
        way = "largest" if best == "max" else "smallest"
        said += (
            f" Best of a column: the {way} mean; ties: not told from it by a {name} over seeds "
            f"(Holm, p ≥ {LEVEL:g})."
        )
    return said


# --- formats ------------------------------------------------------------------------------------


def text(table: Table) -> str:
    """Plain text: ``*`` after the best of a column, ``~`` after its ties."""
    marked = any(entry and entry.best for row in table.cells for entry in row)
    room = "  " if marked else ""
    body = _body(table, lambda entry: f"{entry.text} {'*' if entry.best else '~'}", room)
    lines = aligned([[table.corner, *(head + room for head in table.columns)], *body], "  ")
    return "\n".join([*lines, "", table.caption + (" * best, ~ tie." if marked else "")])


def markdown(table: Table) -> str:
    """Markdown that also lines up as plain text: the best bold, ties after ``≈``."""
    body = _body(table, lambda entry: f"**{entry.text}**" if entry.best else f"≈ {entry.text}")
    marked = any(entry and entry.best for row in table.cells for entry in row)
    lines = ruled([[table.corner, *table.columns], *body])
    return f"{lines}\n\n{table.caption}{' Bold: best; ≈: tie.' if marked else ''}"


def csv(table: Table) -> str:
    """CSV, a line an entry: headings, mean, its lower and upper end, seeds, and the marks."""
    file = io.StringIO()
    write = comma.writer(file, lineterminator="\n").writerow
    write(["row", "column", "value", "unit", "mean", "low", "high", "seeds", "best", "tie"])
    for row, entries in zip(table.rows, table.cells, strict=True):
        for column, entry in zip(table.columns, entries, strict=True):
            if entry is not None:
                numbers = [
                    f"{number:.6g}" if math.isfinite(number) else ""
                    for number in (entry.mean, entry.low, entry.high)
                ]
                marks = [int(entry.best), int(entry.tie)]
                write([row, column, table.value, table.unit, *numbers, entry.seeds, *marks])
    return file.getvalue().rstrip("\n")


def latex(table: Table) -> str:
    """LaTeX for ``booktabs``: a ``table`` with the best bold and ties underlined."""
    body = [
        [escaped(row), *(_latex(entry) for entry in entries)]
        for row, entries in zip(table.rows, table.cells, strict=True)
    ]
    marked = any(entry and entry.best for row in table.cells for entry in row)
    heads = [escaped(head) for head in (table.corner, *table.columns)]
    caption = escaped(table.caption) + (r" Bold: best; underlined: tie." if marked else "")
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
            r"\end{table}",
        ]
    )


def _latex(entry: Entry | None) -> str:
    if entry is None:
        return "--"
    said = escaped(entry.text) if entry.seeds else "--"
    if entry.best:
        return rf"\textbf{{{said}}}"
    return rf"\underline{{{said}}}" if entry.tie else said


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "<": r"$<$",
    ">": r"$>$",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
}


def escaped(text: str) -> str:
    """``text`` as LaTeX prints it."""
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda sign: SPECIAL[sign[0]], text)


def _body(table: Table, marked: Any, plain: str = "") -> list[list[str]]:
    return [
        [
            row,
            *(
                ("-" if entry is None else entry.text) + plain
                if entry is None or not (entry.best or entry.tie)
                else marked(entry)
                for entry in entries
            ),
        ]
        for row, entries in zip(table.rows, table.cells, strict=True)
    ]


def aligned(rows: Sequence[Sequence[str]], between: str, least: int = 0) -> list[str]:
    """Lines with columns of one width: the first to the left, numbers to the right."""
    widths = [max(least, *map(len, column)) for column in zip(*rows, strict=True)]
    return [
        between.join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def ruled(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; the first row is the heads."""
    heads, *lines = ([*map(str, row)] for row in rows)
    heads = [head.replace("|", r"\|") for head in heads]
    lines = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    widths = [max(3, *map(len, column)) for column in zip(heads, *lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {line} |" for line in aligned([heads, rule, *lines], " | ", 3))


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
    return table(frame, rows, columns, value, spread=spread, best=best, test=test)


def _one_label(frame: DataFrame, axes: Iterable[str], named: Sequence[str]) -> None:
    """Refuse axes with several labels that the table does not name."""
    for axis in axes:
        labels = list(dict.fromkeys(map(str, frame[axis])))
        if axis not in named and len(labels) > 1:
            raise FedkdError(
                f"{axis} has {len(labels)} labels: name it in --rows or --columns, or fix it by "
                f"--where {axis}=LABEL; labels: {', '.join(labels)}"
            )
