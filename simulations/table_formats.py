"""A table as plain text, Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv as comma
import io
import math
from collections.abc import Iterable

from fedkd.escaping import csv_cell, plain
from fedkd.escaping import latex as in_latex
from fedkd.escaping import markdown as in_markdown
from fedkd.simulations.layout import aligned, ruled
from fedkd.simulations.significance import WORSE
from fedkd.simulations.tables import Entry, Table


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
