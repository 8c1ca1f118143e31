"""Runs told apart by the keys of their experiments: labels, and groups that differ in seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.results import Run

WITHOUT_NUMBERS = {"name", "seed", "checkpoint_every", "engine", "data.data_dir", "data.download"}
"""Keys, and a table of keys, in which runs of one experiment may differ."""
UNLABELLED = WITHOUT_NUMBERS | {"rounds", "evaluate_every"}
LONGEST_LABEL = 48


def by_seed(runs: Sequence[Run], but: Collection[str] = ()) -> list[list[Run]]:
    """Gather runs that differ only in their seed, in the order given; a folder counts once.

    ``but`` are further keys, as ``data.alpha``, in which runs of a group may differ.

    Raises
    ------
    FedkdError
        Two folders hold the same experiment with the same seed: they would count as two seeds.
    """
    groups: dict[str, list[Run]] = {}
    seen: dict[str, Run] = {}
    for run in {run.folder.resolve(): run for run in runs}.values():
        same = seen.setdefault(run.experiment.digest(), run)
        if same is not run:
            raise FedkdError(
                f"{same.folder} and {run.folder} are one experiment with one seed, "
                f"{run.experiment.seed}: name one of them"
            )
        groups.setdefault(_without(run.experiment, ("seed", *but)).digest(), []).append(run)
    return list(groups.values())


def _without(experiment: Experiment, keys: Collection[str]) -> Experiment:
    """``experiment`` with ``keys`` as they are where nothing is said."""
    tables = experiment.model_dump(mode="json", exclude_none=True)
    for key in keys:
        *parents, last = key.split(".")
        inner = tables
        for parent in parents:
            inner = inner.get(parent, {})
        inner.pop(last, None)
    return Experiment.from_dict(tables)


def labels(runs: Sequence[Run], but: Collection[str] = ()) -> list[str]:
    """Name runs by their methods and what tells them apart; where that is too much, by folder.

    ``but`` are keys that a name leaves out, as they are told elsewhere.
    """
    tables = [settings(run) for run in runs]
    methods = [run.experiment.strategy.name for run in runs]
    found = []
    for table, method in zip(tables, methods):
        label = method
        for key, value in table.items():
            own = key.startswith("strategy.")
            others = [t for t, m in zip(tables, methods) if m == method or not own]
            apart = key != "strategy.name" and key not in but
            if apart and any(other.get(key) != value for other in others):
                label += f", {key.split('.')[-1]} = {_short(value)}"
        found.append(label)
    folders = _tails([run.folder.resolve() for run in runs])
    return [
        label if len(label) <= LONGEST_LABEL and found.count(label) == 1 else f"{method}, {folder}"
        for label, method, folder in zip(found, methods, folders)
    ]


def _tails(folders: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells it from the others."""
    deepest = max((len(folder.parts) for folder in folders), default=0)
    names = ["/".join(folder.parts[-1:]) for folder in folders]
    for depth in range(2, deepest + 1):
        names = [
            "/".join(folder.parts[-depth:]) if names.count(name) > 1 else name
            for name, folder in zip(names, folders)
        ]
    return names


def settings(run: Run) -> dict[str, Any]:
    """Every key of the run's experiment that may stand in a label, as ``table.key``."""
    keys = flat(run.experiment.model_dump(mode="json"))
    return {key: value for key, value in keys.items() if not UNLABELLED & {key, key.split(".")[0]}}


def is_setting(name: str) -> bool:
    """Whether a column of runs is a key of their experiments by which numbers may differ."""
    table, dot, _ = name.partition(".")
    known = table in Experiment.model_fields and (dot or name in flat(Experiment().model_dump()))
    return bool(known) and not WITHOUT_NUMBERS & {name, table}


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every key of tables in tables, as ``table.key``."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
