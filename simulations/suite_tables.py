"""``fedkd table``: a table of the finished runs of a suite, or of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.errors import FedkdError, nearest
from fedkd.frames import load_runs
from fedkd.headline import ACCURACY, OTHER
from fedkd.simulations import suite
from fedkd.simulations.accuracy_table import EVERY, accuracies
from fedkd.simulations.captions import Best, headlines
from fedkd.simulations.cells import SEED, wanted
from fedkd.simulations.manifest import MANIFEST
from fedkd.simulations.tables import Spread, Table, beside, table
from fedkd.statistics import Test

if TYPE_CHECKING:
    from pandas import DataFrame


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
    ranked: bool = False,
) -> Table:
    """The table of a suite's finished runs, or of all that lie below a folder.

    ``where`` is ``AXIS=LABEL[,LABEL]``. Without a ``value`` it is the headline's accuracy, or own
    accuracy after fusion where no run has measured a headline; ``accuracies`` are all of them side
    by side, without ``columns``. Without ``rows`` they are the
    methods, or else the first axis that is neither the seed nor in ``columns``.

    Raises
    ------
    FedkdError
        There is no such suite, axis or label; nothing has finished; an axis has several labels and
        is neither named nor fixed.
    """
    folder = Path(name)
    of_runs = folder.is_dir() and not (folder / MANIFEST).is_file()
    if of_runs:
        frame = load_runs(folder)
        frame = frame[frame.finished] if len(frame) else frame
        axes = {str(key): tuple(frame[key].unique()) for key in frame.columns}
    else:
        opened = suite.read(name, scale, out=out)
        frame, axes, folder = suite.frame(opened), opened.axes, opened.folder
    if not len(frame):
        run = "" if of_runs else f"; fedkd suite {name} --scale {scale} runs it"
        raise FedkdError(f"{folder} has no finished run{run}")
    for axis, some in wanted(axes, where, "--where").items():
        frame = frame[frame[axis].isin(some)]
    if not len(frame):
        raise FedkdError(f"--where {' '.join(where)}: no finished run has these labels")
    if not rows:
        usual = ("strategy.name",) if of_runs else ("method", *axes)
        free = [axis for axis in usual if axis in axes and axis not in (*columns, SEED)]
        rows = free[:1]
    for axis in (*rows, *columns):
        if axis not in axes:
            raise FedkdError(
                f"{axis!r} is not an axis{nearest(axis, list(axes))}; axes: {', '.join(axes)}"
            )
    if not of_runs:
        _one_label(frame, opened.axes, (*rows, *columns, SEED))
    if value == EVERY:
        if ranked:
            raise FedkdError(f"--ranked is of one value, not of --value {EVERY}")
        if columns:
            raise FedkdError(f"--value {EVERY} has columns of its own: leave --columns out")
        return accuracies(frame, rows, spread=spread, best=best, test=test, differences=differences)
    made = partial(
        table,
        frame,
        rows,
        columns,
        spread=spread,
        best=best,
        test=test,
        differences=differences,
        ranked=ranked,
    )
    value = value or (ACCURACY if _measured(frame, ACCURACY) else "own_accuracy_mean")
    if value == ACCURACY and not ranked and _measured(frame, OTHER):
        return beside(made(ACCURACY), made(OTHER), headlines(frame))
    return made(value)


def _measured(frame: DataFrame, value: str) -> bool:
    return value in frame.columns and bool(frame[value].notna().any())


def _one_label(frame: DataFrame, axes: Iterable[str], named: Sequence[str]) -> None:
    """Refuse axes with several labels that the table does not name."""
    for axis in axes:
        labels = list(dict.fromkeys(map(str, frame[axis])))
        if axis not in named and len(labels) > 1:
            raise FedkdError(
                f"{axis} has {len(labels)} labels: name it in --rows or --columns, or fix it by "
                f"--where {axis}=LABEL; labels: {', '.join(labels)}"
            )
