"""The TOML file of a suite: a base experiment, keys set in every cell, and axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from fedkd import registry
from fedkd.errors import FedkdError, nearest, shown
from fedkd.experiment import Experiment, Table, changed, settings, validated
from fedkd.labels import flat
from fedkd.simulations.arms import arms, varied
from fedkd.simulations.audit import check_shadows
from fedkd.simulations.cells import (
    ARM,
    SEED,
    Label,
    Suite,
    in_folder,
    label_words,
    slug,
    unknown_axis,
)
from fedkd.simulations.shipped import experiment_text
from fedkd.toml import parse, read_text

MOST_CELLS = 100_000
ALL = "all"
"""An axis that is this text has a label for each method that comes with fedkd."""


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


def from_file(
    file: Path, scale: str, overrides: Sequence[str], data_dir: Path | None, out: Path | None
) -> Suite:
    """The suite in a TOML file, as :func:`fedkd.simulations.suite.read` gives it.

    Raises
    ------
    FedkdError
        One line that names file, key, value and what is allowed.
    """
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
    cells = in_folder(labelled, experiments, folder, shadows)
    return Suite(file.stem, about, scale, found, cells, folder, tuple(overrides), shadows)


def _base(experiment: str, suite: Path) -> dict[str, Any]:
    """The tables of the suite's experiment: a file beside the suite's, or what a run takes."""
    beside = suite.parent / experiment
    text = experiment_text(str(beside) if beside.is_file() else experiment)
    return parse(text, f"experiment {shown(experiment)}")


def _axis(name: str, held: Any) -> dict[Label, dict[str, Any]]:
    """The labels of an axis and the keys that each sets."""
    if held == ALL:
        return {method: {"strategy.name": method} for method in registry.shipped("strategies")}
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
        f"axes.{name} = {held!r} is not allowed: a list of values is, a table of labels, or "
        f"{ALL!r} for all methods"
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
            raise FedkdError(f"{where}: {unknown_axis(axis, axes)}")
        if labels[axis] not in (some if isinstance(some, list) else [some]):
            return False
    return True


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
    named_by = label_words({axis: labels[axis] for axis in labels if axis != SEED})
    name = slug(named_by) or slug([suite]) or "suite"
    experiment = Experiment.from_dict(tables | {"name": name})
    if arm is None:
        return experiment
    return _released(experiment.model_copy(update={"seed": 0}).to_toml(), arm, experiment.seed)


@cache
def _arms(experiment: str) -> Any:
    return arms(Experiment.from_toml(experiment))


def _released(experiment: str, arm: str, seed: int) -> Experiment:
    known, unfit = _arms(experiment)
    if arm in unfit:
        raise FedkdError(f"arm = {arm!r} does not fit: {unfit[arm]}")
    if arm not in known:
        raise FedkdError(
            f"arm = {arm!r} is not known{nearest(arm, list(known))}; known: {', '.join(known)}"
        )
    return varied(Experiment.from_toml(experiment), known[arm], seed)
