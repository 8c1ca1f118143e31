"""Tables of text whose columns line up."""

from __future__ import annotations

from collections.abc import Sequence


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
    """A Markdown table whose columns also line up as plain text; the first row is the heads.

    Cells are Markdown already.
    """
    heads, *lines = ([*map(str, row)] for row in rows)
    widths = [max(3, *map(len, column)) for column in zip(heads, *lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {line} |" for line in aligned([heads, rule, *lines], " | ", 3))
