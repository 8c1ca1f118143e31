"""Suites: a grid of experiments, run where it is not run yet, and read as one data frame.

A suite is a TOML file: a base experiment, keys set in every cell, and axes. Every combination of
the axes' labels is a cell. Its folder holds ``suite.json`` and a run's folder a cell, called by the
cell's labels and the experiment's digest, so that a changed suite repeats only what has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fedkd import frames, lock, registry
from fedkd.errors import FedkdError
from fedkd.interrupt import interruptible
from fedkd.nesting import check_inside
from fedkd.results import Run, check_not_inside_a_run
from fedkd.simulations.arms import refused
from fedkd.simulations.cells import Cell, Scale, Suite, chosen
from fedkd.simulations.jobs import Job, most, outcomes
from fedkd.simulations.manifest import MANIFEST, failures, opened, write_manifest
from fedkd.simulations.shipped import find
from fedkd.simulations.suite_file import from_file

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Outcome:
    """What running a suite came to: cells that ran, were there already, were skipped and why."""

    ran: tuple[Cell, ...]
    there: tuple[Cell, ...]
    skipped: tuple[Cell, ...]
    failed: tuple[tuple[Cell, str], ...]


class Watch:
    """Told what happens while a suite runs; every method does nothing unless overridden."""

    def begins(self, there: Sequence[Cell], left: Sequence[Cell], jobs: int) -> None:
        """Runs are about to begin: what is there already, what is left, how many at a time."""

    def started(self, cell: Cell) -> None:
        """The run of a cell begins."""

    def ended(self, cell: Cell, seconds: float, why: str) -> None:
        """The run of a cell has ended, or failed for the reason in ``why``."""


def suites() -> dict[str, Path]:
    """The suites that come with fedkd, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}


def read(
    name_or_file: str | Path,
    scale: str = "quick",
    *,
    overrides: Sequence[str] = (),
    data_dir: Path | None = None,
    out: Path | None = None,
) -> Suite:
    """The suite called so: a shipped one, a file, or the folder of one that was run.

    Parameters
    ----------
    scale : {"quick", "full"}
        Which of the file's two sizes.
    overrides : sequence of str
        ``key=value``, set in every cell after its labels.
    data_dir : Path, optional
        Where data sets lie.
    out : Path, optional
        The suite's folder; ``runs/<name>-<scale>`` when not given.

    Raises
    ------
    FedkdError
        There is no such suite, or one line that names file, key, value and what is allowed.
    """
    if (Path(name_or_file) / MANIFEST).is_file():
        if overrides:
            raise FedkdError(
                f"--set {overrides[0]} is not allowed for the folder of a suite, {name_or_file}: "
                "its cells are set; give the suite's name or file, and another --out"
            )
        return opened(Path(name_or_file), data_dir)
    if scale not in get_args(Scale):
        raise FedkdError(f"--scale {scale!r} is not allowed: {' or '.join(get_args(Scale))}")
    file = find("suite", str(name_or_file), suites(), other=", nor a suite's folder,")
    return from_file(file, scale, overrides, data_dir, out)


# --- running --------------------------------------------------------------------------------------


def run_suite(
    suite: Suite,
    jobs: int | None = None,
    only: Sequence[str] = (),
    observer: Watch | None = None,
) -> Outcome:
    """Run what has not finished yet: a run that was begun goes on from its checkpoint.

    Parameters
    ----------
    jobs : int, optional
        Runs at a time; as many as there are cores for when not given.
    only : sequence of str
        ``AXIS=LABEL[,LABEL]``: which cells.
    observer : Watch, optional
        Told of progress.

    Returns
    -------
    Outcome
        A run that fails does not stop the others.

    Raises
    ------
    FedkdError
        Before anything has run: an experiment cannot be run as it is, and why; another process is
        running the suite in its folder.
    """
    observer = observer or Watch()
    cells = chosen(suite, only)
    check(suite, cells)
    for cell in cells:
        check_inside(cell.folder, suite.folder)
        check_not_inside_a_run(cell.folder)
    with interruptible(), lock.held(suite.folder):
        return _run_cells(suite, cells, jobs, observer)


def _run_cells(suite: Suite, cells: Sequence[Cell], jobs: int | None, observer: Watch) -> Outcome:
    there = [cell for cell in cells if cell.done]
    skipped = [cell for cell in cells if cell.missing and not cell.done]
    failed = list({cell.folder: (cell, cell.damaged) for cell in cells if cell.damaged}.values())
    waiting = [cell for cell in cells if not (cell.done or cell.missing or cell.damaged)]
    left = list({cell.folder: cell for cell in reversed(waiting)}.values())[::-1]
    jobs = jobs or most([cell.experiment for cell in left])
    told = failures(suite)
    for cell in left:
        told.pop(cell.folder, None)
    write_manifest(suite, told)
    observer.begins(there, left, min(jobs, max(len(left), 1)))
    tasks = [Job(cell.experiment, cell.folder, suite.shadows) for cell in left]
    ran = []
    for index, seconds, why in outcomes(tasks, jobs, lambda index: observer.started(left[index])):
        cell = left[index]
        if why:
            failed.append((cell, why))
            told[cell.folder] = why
            write_manifest(suite, told)
        else:
            ran.append(cell)
        observer.ended(cell, seconds, why)
    return Outcome(tuple(ran), tuple(there), tuple(skipped), tuple(failed))


def check(suite: Suite, cells: Sequence[Cell]) -> None:
    """Refuse a suite with a cell that cannot be run, as far as that is known without its data.

    Raises
    ------
    FedkdError
        One line: suite, labels, key, value and what is allowed.
    """
    seen = set()
    for cell in cells:
        digest = cell.experiment.model_copy(update={"seed": 0}).digest()
        if digest in seen:
            continue
        seen.add(digest)
        name = cell.experiment.data.dataset
        if ":" not in name:
            registry.load("datasets", name)
        if why := refused(cell.experiment):
            raise FedkdError(f"suite {suite.name}: {why} (in the cell {cell.title})")


# --- reading --------------------------------------------------------------------------------------


def frame(suite: Suite) -> DataFrame:
    """A row a finished cell: a column for each axis, then those of :func:`fedkd.load_runs`.

    An axis' column holds labels; a column of ``load_runs`` of the same name is left out.
    """
    rows = []
    for cell in suite.cells:
        if cell.finished:
            known: dict[str, Any] = dict(cell.labels)
            more = frames.row(Run(cell.folder))
            rows.append(known | {key: more[key] for key in more if key not in known})
    if not rows:
        from pandas import DataFrame

        return DataFrame(columns=list(suite.axes))
    return frames.frame(rows)
