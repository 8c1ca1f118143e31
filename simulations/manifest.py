"""``suite.json``: the cells that the folder of a suite holds the runs of, and why some failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fedkd import folder as disk
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment, Table, changed
from fedkd.nesting import child
from fedkd.records import complaint, without_unknown
from fedkd.results import SUMMARY
from fedkd.simulations.cells import Label, Suite, placed

MANIFEST = "suite.json"


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


def opened(folder: Path, data_dir: Path | None) -> Suite:
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
    cells = list(placed(labelled, experiments, places, stored.shadows))
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


def write_manifest(suite: Suite, failed: Mapping[Path, str]) -> None:
    """Write a suite's ``suite.json``, with why the runs in some folders failed."""
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
