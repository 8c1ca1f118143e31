"""Every accuracy of each method in one table: its paper's, both stages, named students."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fedkd.errors import FedkdError
from fedkd.headline import ACCURACY, HEADLINE, LOCAL, STUDENT, named
from fedkd.simulations.captions import Best, headlines
from fedkd.simulations.tables import Entry, Spread, Table, table
from fedkd.statistics import Test

if TYPE_CHECKING:
    from pandas import DataFrame

EVERY = "accuracies"
"""The value that stands for all of them."""
TESTS = ("own", "common")
COLUMNS = {ACCURACY: "as the paper scores it"} | {
    f"{tests}_{STUDENT}{stage}": f"{tests}, {'local' if stage else 'fused'}"
    for tests in TESTS
    for stage in ("", LOCAL)
}


def accuracies(
    frame: DataFrame,
    rows: str | Sequence[str],
    *,
    spread: Spread = "std",
    best: Best | None = "max",
    test: Test = "t",
    differences: bool | str = False,
) -> Table:
    """Accuracies side by side, of those that were measured, each column as :func:`tables.table`.

    The first is what each method's paper scores, then the clients' own students on their own tests
    and on the common ones, after fusion and after local training. Students that methods test under
    names of their own stand in one column for each set of tests, as ``server 91.3 ± 0.4``; nothing
    is marked there, as they are different things.

    Raises
    ------
    FedkdError
        As :func:`tables.table`; or nothing of it was measured.
    """
    made = partial(
        table, frame, rows, (), spread=spread, best=best, test=test, differences=differences
    )
    found = {name: made(value) for value, name in COLUMNS.items() if _measured(frame, value)}
    if not found:
        raise FedkdError("no finished run has measured an accuracy")
    first = next(iter(found.values()))
    cells = [[entry for (entry,) in one.cells] for one in found.values()]
    heads = list(found)
    plainly = partial(table, frame, rows, (), spread=spread, best=None)
    for tests in TESTS:
        values = {name: f"{tests}_{name}_{STUDENT}" for name in named(frame.columns)}
        there = {name: plainly(v) for name, v in values.items() if _measured(frame, v)}
        if there:
            heads.append(f"{tests}, named")
            cells.append([_joined(there, row) for row in range(len(first.rows))])
    # The other stage has no column here: both are shown of each method.
    scored = headlines(frame).partition(" The other stage")[0] if HEADLINE in frame else ""
    _, _, rest = first.caption.partition(";")
    compared = any(entry.best for entry in cells[0] if entry is not None)
    told = " What difference would be told is said of the first column." * compared
    return replace(
        first,
        columns=tuple(heads),
        cells=tuple(zip(*cells, strict=True)),
        value=EVERY,
        caption=f"Test accuracy, mean over clients, in {first.unit}, on clients' own and on the "
        f"common test set, after fusion and after local training;{rest}{told} {scored} Named are "
        "students that a method tests beside the clients' own, after fusion.",
    )


def _measured(frame: DataFrame, value: str) -> bool:
    return value in frame.columns and bool(frame[value].notna().any())


def _joined(found: dict[str, Table], row: int) -> Entry | None:
    """``server 91.3 ± 0.4; global 90.2 ± 0.3``: the entries of a row by their students' names."""
    entries = {name: one.cells[row][0] for name, one in found.items()}
    there = {name: entry for name, entry in entries.items() if entry and entry.seeds}
    if not there:
        return None
    text = "; ".join(f"{name} {entry.text}" for name, entry in there.items())
    return replace(next(iter(there.values())), text=text, marks="", best=False, worse=False)
