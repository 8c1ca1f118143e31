"""Suites: a grid of experiments, run where it is not run yet, and read as one data frame.

A suite is a TOML file: a base experiment, keys set in every cell, and axes. Every combination of
the axes' labels is a cell. Its folder holds ``suite.json`` and a run's folder a cell, called by the
cell's labels and the experiment's digest, so that a changed suite repeats only what has changed.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from fedkd import folder as disk
from fedkd import lock
from fedkd.errors import FedkdError, MissingData, nearest, shown
from fedkd.escaping import plain
from fedkd.experiment import Experiment, Table, changed, settings, validated
from fedkd.interrupt import interruptible
from fedkd.records import complaint, without_unknown
from fedkd.results import (
    SUMMARY,
    Run,
    check_inside,
    check_not_inside_a_run,
    child,
    flat,
    left_out,
)
from fedkd.toml import parse, read_text
from simulations.audit import attacked, check_shadows
from simulations.jobs import Job, most, outcomes
from simulations.shipped import experiment_text, find

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDER = Path(__file__).parent / "suites"
MANIFEST = "suite.json"
ARM = "arm"
"""A key of cells that is none of the experiment: a way of release that ``fedkd canary`` has."""
SEED = "seed"
LONGEST_SLUG = 100
MOST_CELLS = 100_000

Label = str | int | float | bool
Scale = Literal["quick", "full"]


@dataclass(frozen=True)
class Cell:
    """One combination of labels, by axis in the axes' order, and its run.

    ``missing`` says why the data is not there; it is empty where it is, or the run has finished.
    ``damaged`` says why a run that has finished cannot be read. Cells that are the same experiment
    share a folder. ``shadows`` is how many runs its audit compares; 0 is for no audit.
    """

    labels: dict[str, Label]
    experiment: Experiment
    folder: Path
    missing: str
    damaged: str = ""
    shadows: int = 0

    @property
    def finished(self) -> bool:
        """Whether the run has ended and can be read."""
        return not self.damaged and (self.folder / SUMMARY).is_file()

    @property
    def done(self) -> bool:
        """Whether the run has finished and, with ``shadows``, has been audited."""
        return self.finished and (not self.shadows or attacked(Run(self.folder)))

    @property
    def title(self) -> str:
        """The labels in a line."""
        return plain(
            ", ".join(
                f"{axis} {label}" if _number(label) else str(label)
                for axis, label in self.labels.items()
            )
        )


@dataclass(frozen=True)
class Suite:
    """A grid of cells.

    ``axes`` are the cells' labels by axis, ``about`` is the file's first comment, ``overrides`` are
    what was set in every cell besides, as ``key=value``; with ``shadows`` runs are audited.
    """

    name: str
    about: str
    scale: str
    axes: dict[str, tuple[Label, ...]]
    cells: tuple[Cell, ...]
    folder: Path
    overrides: tuple[str, ...] = ()
    shadows: int = 0


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


# --- the file -----------------------------------------------------------------------------------


class _Audit(Table):
    shadows: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _enough(self) -> _Audit:
        check_shadows(self.shadows, "audit.shadows =")
        return self


class _Only(Table):
    """Keys of the cells that have these labels."""

    at: dict[str, Any]
    keys: dict[str, Any] = Field(alias="set")


class _Scale(Table):
    keys: dict[str, Any] = Field(default_factory=dict, alias="set")
    axes: dict[str, Any] = Field(default_factory=dict)
    skip: tuple[dict[str, Any], ...] = ()
    cells: tuple[_Only, ...] = ()


class _File(_Scale):
    experiment: str
    audit: _Audit = _Audit()
    quick: _Scale = _Scale()
    full: _Scale = _Scale()


class _StoredCell(Table):
    labels: dict[str, Label]
    folder: str
    digest: str
    experiment: dict[str, Any]


class _Stored(Table):
    name: str
    scale: str
    about: str
    axes: dict[str, tuple[Label, ...]]
    overrides: tuple[str, ...] = Field(default=(), alias="set")
    shadows: int = Field(default=0, ge=0)
    cells: tuple[_StoredCell, ...]
    failed: dict[str, str] = Field(default_factory=dict)


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
        return _opened(Path(name_or_file), data_dir)
    if scale not in get_args(Scale):
        raise FedkdError(f"--scale {scale!r} is not allowed: {' or '.join(get_args(Scale))}")
    file = _file(str(name_or_file))
    text = read_text(file, f"suite {file}")
    tables = parse(text, f"suite {file}")
    about = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")
    folder = out or Path("runs") / f"{file.stem}-{scale}"
    given = settings(overrides)
    if data_dir is not None:
        given["data.data_dir"] = str(data_dir)
    try:
        table = validated(_File, tables)
        of_scale = getattr(table, scale)
        held = of_scale.axes | table.axes | of_scale.axes
        # What only a scale has comes first, seeds last: cells of one seed are far apart in time.
        axes = {name: _axis(name, held[name]) for name in sorted(held, key=lambda n: n == SEED)}
        if not axes:
            raise FedkdError("it has no axes; e.g. [axes] seed = [0, 1, 2]")
        for key in given:
            if key in axes:
                raise FedkdError(f"--set {key} is not allowed, as it is an axis; use --only {key}=")
        base = _base(table.experiment, file)
        everywhere = flat(table.keys) | flat(of_scale.keys)
        if (count := math.prod(map(len, axes.values()))) > MOST_CELLS:
            raise FedkdError(f"its axes make {count:,} cells; at most {MOST_CELLS:,} are allowed")
        labelled = [
            labels
            for labels in _combinations(axes)
            if not any(_matches(labels, one, axes, "skip") for one in (*table.skip, *of_scale.skip))
        ]
        experiments = []
        for labels in labelled:
            changes = {key: v for axis, one in labels.items() for key, v in axes[axis][one].items()}
            for one in (*table.cells, *of_scale.cells):
                if _matches(labels, one.at, axes, "cells.at"):
                    changes |= flat(one.keys)
            named = file.stem, labels
            experiments.append(_experiment(base, (everywhere, changes, given), named))
    except FedkdError as error:
        raise FedkdError(f"suite {file}: {error}") from error
    found = {name: tuple(labels) for name, labels in axes.items()}
    shadows = table.audit.shadows
    cells = _cells(labelled, experiments, folder, shadows)
    return Suite(file.stem, about, scale, found, cells, folder, tuple(overrides), shadows)


def _file(name: str) -> Path:
    return find("suite", name, suites(), other=", nor a suite's folder,")


def _base(experiment: str, suite: Path) -> dict[str, Any]:
    """The tables of the suite's experiment: a file beside the suite's, or what a run takes."""
    beside = suite.parent / experiment
    text = experiment_text(str(beside) if beside.is_file() else experiment)
    return parse(text, f"experiment {shown(experiment)}")


def _axis(name: str, held: Any) -> dict[Label, dict[str, Any]]:
    """The labels of an axis and the keys that each sets."""
    if isinstance(held, list) and held:
        found = {_label(value): {name: value} for value in held}
        if len(found) < len(held):
            raise FedkdError(f"axes.{name} = {held!r} is not allowed: a value is there twice")
        return found
    if isinstance(held, dict) and held:
        for label, keys in held.items():
            if not isinstance(keys, dict):
                raise FedkdError(
                    f"axes.{name}.{label} = {keys!r} is not allowed: a table of keys is, as in "
                    f'{{"strategy.name" = "knfu"}}; an axis named by a key is quoted, as in '
                    f'"{name}.{label}" = [1, 2]'
                )
        return {label: flat(keys) for label, keys in held.items()}
    raise FedkdError(
        f"axes.{name} = {held!r} is not allowed: a list of values is, or a table of labels"
    )


def _label(value: Any) -> Label:
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    if not isinstance(value, Label):
        raise FedkdError(f"{value!r} cannot be a label of an axis: texts, numbers and lists can")
    return value


def _combinations(axes: Mapping[str, Mapping[Label, Any]]) -> Iterator[dict[str, Label]]:
    for labels in itertools.product(*axes.values()):
        yield dict(zip(axes, labels, strict=True))


def _matches(
    labels: Mapping[str, Label], wanted: Mapping[str, Any], axes: Mapping[str, Any], where: str
) -> bool:
    """Whether a cell has the labels that are ``wanted``, of each axis one of several."""
    for axis, some in wanted.items():
        if axis not in axes:
            raise FedkdError(f"{where}: {_unknown(axis, axes)}")
        if labels[axis] not in (some if isinstance(some, list) else [some]):
            return False
    return True


def _unknown(axis: str, axes: Mapping[str, Any]) -> str:
    return f"{axis!r} is not an axis{nearest(axis, list(axes))}; axes: {', '.join(axes)}"


def _experiment(
    base: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
    named: tuple[str, Mapping[str, Label]],
) -> Experiment:
    """The experiment of a cell: ``layers`` of keys over the base, the last ones win."""
    suite, labels = named
    tables = deepcopy(dict(base))
    for keys in layers:
        changed(tables, keys)
    arm = tables.pop(ARM, None)
    named_by = _names({axis: labels[axis] for axis in labels if axis != SEED})
    slug = _slug(named_by) or _slug([suite]) or "suite"
    experiment = Experiment.from_dict(tables | {"name": slug})
    if arm is None:
        return experiment
    return _released(experiment.model_copy(update={"seed": 0}).to_toml(), arm, experiment.seed)


@cache
def _arms(experiment: str) -> Any:
    from simulations.canary import arms

    return arms(Experiment.from_toml(experiment))


def _released(experiment: str, arm: str, seed: int) -> Experiment:
    from simulations.canary import varied

    known, unfit = _arms(experiment)
    if arm in unfit:
        raise FedkdError(f"arm = {arm!r} does not fit: {unfit[arm]}")
    if arm not in known:
        raise FedkdError(
            f"arm = {arm!r} is not known{nearest(arm, list(known))}; known: {', '.join(known)}"
        )
    return varied(Experiment.from_toml(experiment), known[arm], seed)


def _slug(labels: Any) -> str:
    words = (re.sub(r"[^A-Za-z0-9._]+", "-", str(label)).strip("-._") for label in labels)
    return "-".join(word for word in words if word)[:LONGEST_SLUG]


def _number(label: Label) -> bool:
    return isinstance(label, int | float)


# --- cells --------------------------------------------------------------------------------------


def _cells(
    labelled: Sequence[dict[str, Label]],
    experiments: Sequence[Experiment],
    folder: Path,
    shadows: int,
) -> tuple[Cell, ...]:
    """Cells in ``folder``; what is there under another name is not done again."""
    taken = {}
    if folder.is_dir():
        taken = {path.name.rpartition("-")[2]: path for path in sorted(folder.iterdir())}
    places = []
    for labels, experiment in zip(labelled, experiments, strict=True):
        digest = experiment.digest()
        places.append(taken.setdefault(digest, folder / f"{_slug(_names(labels))}-{digest}"))
    return _placed(labelled, experiments, places, shadows)


def _placed(
    labelled: Sequence[dict[str, Label]],
    experiments: Sequence[Experiment],
    places: Sequence[Path],
    shadows: int,
) -> tuple[Cell, ...]:
    """Cells, and of each what keeps it from being run, or read."""
    found = []
    damages = _damages(experiments, places)
    for labels, experiment, place, damaged in zip(
        labelled, experiments, places, damages, strict=True
    ):
        cell = Cell(labels, experiment, place, "", damaged, shadows)
        there = damaged or cell.done
        found.append(cell if there else replace(cell, missing=_missing(experiment)))
    return tuple(found)


def _damages(experiments: Sequence[Experiment], places: Sequence[Path]) -> list[str]:
    """Why each run that has finished cannot be read, or is another; it is said once a folder."""
    damages: dict[Path, str] = {}
    for experiment, place in zip(experiments, places, strict=True):
        if place not in damages:
            damages[place] = _damage(experiment, place) if (place / SUMMARY).is_file() else ""
    return [damages[place] for place in places]


def _damage(experiment: Experiment, place: Path) -> str:
    run = Run(place)
    try:
        run.check()
        if run.experiment.digest() != experiment.digest():
            raise FedkdError(f"{place} holds another experiment than its suite says")
    except FedkdError as error:
        left_out(error)
        return str(error)
    return ""


def _names(labels: Mapping[str, Label]) -> Iterator[str]:
    """Labels as they stand in a folder's name: a bare number says of what."""
    for axis, label in labels.items():
        yield f"{axis.split('.')[-1]}{label}" if _number(label) else str(label)


def _missing(experiment: Experiment) -> str:
    table = experiment.data
    if table.download:
        return ""
    others = [table.transfer.source] if table.transfer.source != "train" else []
    said = (_not_there(name, experiment.data_dir()) for name in (table.dataset, *others))
    return next(filter(None, said), "")


def _not_there(dataset: str, folder: Path | None) -> str:
    """Why a data set is not there; what else is wrong with it is a run's to say."""
    from fedkd.data.loading import load_dataset

    if (dataset, folder) not in _looked:
        why = ""
        try:
            load_dataset(dataset, folder, False)
        except MissingData as error:
            why = str(error)
        except FedkdError:
            pass
        _looked[dataset, folder] = why
    return _looked[dataset, folder]


_looked: dict[tuple[str, Path | None], str] = {}


def _opened(folder: Path, data_dir: Path | None) -> Suite:
    """The suite that a folder holds the runs of, from its ``suite.json``."""
    stored = _stored(folder)
    given = {"data.data_dir": str(data_dir)} if data_dir else {}
    experiments, others = [], []
    try:
        for one in stored.cells:
            tables = deepcopy(one.experiment)
            others.append(without_unknown(Experiment, tables))
            experiments.append(Experiment.from_dict(changed(tables, given)))
            if one.labels.keys() != stored.axes.keys():
                raise FedkdError(f"{one.folder} has not a label of each axis")
            for axis, label in one.labels.items():
                if label not in stored.axes[axis]:
                    raise FedkdError(f"{axis} = {label!r} of {one.folder} is not on the axis")
    except FedkdError as error:
        raise FedkdError(f"{folder / MANIFEST} cannot be read: {error}") from error
    places = [child(folder, one.folder, MANIFEST) for one in stored.cells]
    labelled = [one.labels for one in stored.cells]
    cells = list(_placed(labelled, experiments, places, stored.shadows))
    for number, unknown in enumerate(others):
        if unknown and not cells[number].finished:  # it would be another experiment
            why = f"{unknown[0]} is not a key of this version of fedkd"
            cells[number] = replace(cells[number], missing=why)
    head = stored.name, stored.about, stored.scale
    return Suite(*head, stored.axes, tuple(cells), folder, stored.overrides, stored.shadows)


def _stored(folder: Path) -> _Stored:
    """What is in the ``suite.json`` of a folder.

    Raises
    ------
    FedkdError
        It cannot be read, or names a folder that is not in its own.
    """
    file = folder / MANIFEST
    try:
        stored = _Stored.model_validate(disk.read_json(file, _table))
    except ValidationError as failure:
        raise FedkdError(f"{file} cannot be read: {complaint(failure)}") from failure
    except FedkdError as error:
        raise FedkdError(f"{file} cannot be read: {error}") from error
    for name in (*(cell.folder for cell in stored.cells), *stored.failed):
        child(folder, name, MANIFEST)
    return stored


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FedkdError("a table of keys is needed")
    return value


def failures(suite: Suite) -> dict[Path, str]:
    """Why runs failed when the suite was last run, by folder; those that have ended since are not.

    Raises
    ------
    FedkdError
        ``suite.json`` cannot be read.
    """
    there = (suite.folder / MANIFEST).is_file()
    told = _stored(suite.folder).failed if there else {}
    found = {suite.folder / place: why for place, why in told.items()}
    return {place: why for place, why in found.items() if not (place / SUMMARY).is_file()}


def _write(suite: Suite, failed: Mapping[Path, str]) -> None:
    cells = [
        {
            "labels": cell.labels,
            "folder": cell.folder.name,
            "digest": cell.experiment.digest(),
            "experiment": cell.experiment.model_dump(mode="json", exclude_defaults=True),
        }
        for cell in suite.cells
    ]
    told = {place.name: why for place, why in failed.items()}
    head: dict[str, Any] = {"name": suite.name, "scale": suite.scale, "about": suite.about}
    head |= {"axes": suite.axes, "set": list(suite.overrides), "shadows": suite.shadows}
    text = json.dumps(head | {"cells": cells, "failed": told}, indent=1)
    disk.write(suite.folder / MANIFEST, text)


def chosen(suite: Suite, conditions: Sequence[str]) -> list[Cell]:
    """Cells with the labels in ``conditions``, as :func:`wanted` reads them."""
    labels = wanted(suite.axes, conditions, "--only")
    return [
        cell
        for cell in suite.cells
        if all(cell.labels[axis] in some for axis, some in labels.items())
    ]


def wanted(
    axes: Mapping[str, Sequence[Label]], conditions: Sequence[str], flag: str
) -> dict[str, list[Label]]:
    """Labels by axis that ``conditions`` leave: ``AXIS=LABEL[,LABEL]``, all of which must hold.

    Raises
    ------
    FedkdError
        An axis or label is not known; the line names ``flag``.
    """
    left: dict[str, list[Label]] = {}
    for condition in conditions:
        axis, equals, text = condition.partition("=")
        axis = axis.strip()
        if not equals:
            raise FedkdError(f"{flag} {condition!r} is not of the form AXIS=LABEL[,LABEL]")
        if axis not in axes:
            raise FedkdError(f"{flag} {condition}: {_unknown(axis, axes)}")
        some: list[Label] = []
        # A label may have a comma in it, and is then the only one.
        for part in [text] if _meant(text, axes[axis]) else text.split(","):
            found = _meant(part, axes[axis])
            if not found:
                known = [str(label) for label in axes[axis]]
                raise FedkdError(
                    f"{flag} {axis}={part.strip()} is not a label{nearest(part.strip(), known)}; "
                    f"labels of {axis}: {', '.join(known)}"
                )
            some += found
        left[axis] = [label for label in left.get(axis, axes[axis]) if label in some]
    return left


def _meant(text: str, labels: Sequence[Label]) -> list[Label]:
    """The label that ``text`` stands for: as it is written, or the same number."""
    text = text.strip()
    found = [label for label in labels if str(label).lower() == text.lower()]
    if not found:
        try:
            number = float(text)
        except ValueError:
            return []
        found = [label for label in labels if _number(label) and float(label) == number]
    return found


# --- running ------------------------------------------------------------------------------------


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
    _write(suite, told)
    observer.begins(there, left, min(jobs, max(len(left), 1)))
    tasks = [Job(cell.experiment, cell.folder, suite.shadows) for cell in left]
    ran = []
    for index, seconds, why in outcomes(tasks, jobs, lambda index: observer.started(left[index])):
        cell = left[index]
        if why:
            failed.append((cell, why))
            told[cell.folder] = why
            _write(suite, told)
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
    from fedkd import registry
    from simulations.canary import refused

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


class Clock:
    """How long what is left will take, by what alike cells have taken."""

    def __init__(self, there: Sequence[Cell], jobs: int) -> None:
        self.jobs = jobs
        self.took: dict[tuple[str, ...], list[float]] = {}
        for cell in there:
            self.add(cell, (Run(cell.folder).summary or {}).get("seconds", 0.0))

    def add(self, cell: Cell, seconds: float) -> None:
        """A run of ``cell`` has taken so long."""
        for kind in _kinds(cell):
            self.took.setdefault(kind, []).append(seconds)

    def left(self, waiting: Sequence[Cell], running: Mapping[Path, float]) -> float | None:
        """Seconds until all is done; ``running`` is how long runs by folder have been at it.

        None while nothing has ended yet.
        """
        if not self.took:
            return None
        total = 0.0
        for cell in waiting:
            known = next(self.took[kind] for kind in _kinds(cell) if kind in self.took)
            total += max(0.0, sum(known) / len(known) - running.get(cell.folder, 0.0))
        return total / self.jobs


def _kinds(cell: Cell) -> list[tuple[str, ...]]:
    """What makes runs alike in cost, the closest first: data and method, data, nothing."""
    data, method = cell.experiment.data.dataset, cell.experiment.strategy.name
    return [(data, method), (data,), ()]


# --- reading ------------------------------------------------------------------------------------


def frame(suite: Suite) -> DataFrame:
    """A row a finished cell: a column for each axis, then those of :func:`fedkd.load_runs`.

    An axis' column holds labels; a column of ``load_runs`` of the same name is left out.
    """
    from fedkd import frames

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


def panels(suite: Suite, shown: Iterable[str]) -> Iterator[tuple[dict[str, Label], list[Cell]]]:
    """The finished cells, gathered by the labels of all axes but those that are ``shown``.

    Axes with one label are not worth a word.
    """
    shown = set(shown)
    groups: dict[tuple[Label, ...], list[Cell]] = {}
    apart = [axis for axis, labels in suite.axes.items() if axis not in shown and len(labels) > 1]
    for cell in suite.cells:
        if cell.finished:
            groups.setdefault(tuple(cell.labels[axis] for axis in apart), []).append(cell)
    for labels, cells in groups.items():
        yield dict(zip(apart, labels, strict=True)), cells


def where(labels: Mapping[str, Label]) -> str:
    """``data = digits, data.alpha = 0.1``: which panel it is."""
    return ", ".join(f"{axis} = {label}" for axis, label in labels.items())
