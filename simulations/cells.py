"""The cells of a suite: combinations of labels, each with its experiment and its run's folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedkd.errors import FedkdError, MissingData, nearest
from fedkd.escaping import plain
from fedkd.experiment import Experiment
from fedkd.results import SUMMARY, Run, left_out
from fedkd.simulations.audit import attacked

ARM = "arm"
"""A key of cells that is none of the experiment: a way of release that ``fedkd canary`` has."""
SEED = "seed"
COMPARED = ("method", "arm")
"""Axes whose labels are held against each other, if there are any."""
LONGEST_SLUG = 100

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


# --- where their runs are -------------------------------------------------------------------------


def in_folder(
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
        places.append(taken.setdefault(digest, folder / f"{slug(label_words(labels))}-{digest}"))
    return placed(labelled, experiments, places, shadows)


def placed(
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


def slug(labels: Any) -> str:
    """``labels`` as a name that files can have; empty where no letter of theirs can be in one."""
    words = (re.sub(r"[^A-Za-z0-9._]+", "-", str(label)).strip("-._") for label in labels)
    return "-".join(word for word in words if word)[:LONGEST_SLUG]


def label_words(labels: Mapping[str, Label]) -> Iterator[str]:
    """Labels as they stand in a folder's name: a bare number says of what."""
    for axis, label in labels.items():
        yield f"{axis.split('.')[-1]}{label}" if _number(label) else str(label)


def _number(label: Label) -> bool:
    return isinstance(label, int | float)


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


# --- which of them --------------------------------------------------------------------------------


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
            raise FedkdError(f"{flag} {condition}: {unknown_axis(axis, axes)}")
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


def unknown_axis(axis: str, axes: Mapping[str, Any]) -> str:
    """Say that ``axis`` is none of ``axes``, and which is near."""
    return f"{axis!r} is not an axis{nearest(axis, list(axes))}; axes: {', '.join(axes)}"


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


def compared_axis(suite: Suite) -> str:
    """The axis whose labels are held against each other: methods, if that is an axis."""
    axes = [axis for axis in suite.axes if axis != SEED]
    named = [axis for axis in COMPARED if axis in axes]
    elsewhere = [axis for axis in axes if not axis.startswith("data")]
    return [*named, *elsewhere, *axes, SEED][0]


def where(labels: Mapping[str, Label]) -> str:
    """``data = digits, data.alpha = 0.1``: which panel it is."""
    return ", ".join(f"{axis} = {label}" for axis, label in labels.items())
