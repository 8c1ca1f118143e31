"""What each file of a run's folder is called, and that it holds what it may.

Keys and types are in :mod:`fedkd.record_types`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from fedkd.errors import FedkdError
from fedkd.folder import Entry, at
from fedkd.record_types import (
    Audit,
    Canaries,
    ClientLine,
    Environment,
    ExposureLine,
    Partition,
    ReleaseLine,
    Reliability,
    RoundLine,
    Summary,
    WarningLine,
)

EXPERIMENT, ENVIRONMENT, PARTITION = "experiment.toml", "environment.json", "partition.json"
ROUNDS, SUMMARY, CHECKPOINT = "rounds.jsonl", "summary.json", "checkpoint"
HELD = ":"
"""Begins the names of what a client keeps that is no student: soft labels, optimisers, heads."""
OPTIMISER = f"{HELD}optimiser "
"""Begins the names of what optimisers keep."""
AUXILIARY = f"{HELD}auxiliary "
"""Begins the names of auxiliary heads: ``:auxiliary STUDENT:HEAD``."""
CLIENTS, RELEASES, EXPOSURES = "clients.jsonl", "releases.jsonl", "exposures.jsonl"
CANARIES, AUDIT = "canaries.json", "audit.json"
RELIABILITY = "reliability.json"
WARNINGS = "warnings.jsonl"
LINES = (ROUNDS, CLIENTS, RELEASES, EXPOSURES, WARNINGS)
"""Files to which lines are added as a run goes on."""
KEPT = (EXPERIMENT, PARTITION, CANARIES, RELIABILITY)
"""Files that a run writes once, and that its numbers depend on."""
LOYALTY = "loyalty_"
"""Begins the names of the loyalties of students."""
MEMBERSHIP = "membership"
"""What an attack on membership is after, in ``audit.json``."""
AGGREGATE = "Aggregate"
"""How the place of an attack on what the server releases begins, in ``audit.json``."""
PLACES = ("teacher", "released", "fused", "student")
"""Where exposure is measured, on a secret's way out of its client."""

TABLES: dict[str, Any] = {
    ROUNDS: RoundLine,
    CLIENTS: ClientLine,
    RELEASES: ReleaseLine,
    EXPOSURES: ExposureLine,
    WARNINGS: WarningLine,
    SUMMARY: Summary,
    PARTITION: Partition,
    ENVIRONMENT: Environment,
    CANARIES: Canaries,
    AUDIT: Audit,
    RELIABILITY: Reliability,
}
"""By the name of the file."""
TOLD_APART_BY = {
    CLIENTS: ("round", "client", "stage"),
    EXPOSURES: ("round", "place", "observer", "secret"),
}
"""Keys that no two lines of a file have in common."""
MEASUREMENTS = (
    *("own_", "common_", "validation_", "headline_", "other_stage_"),
    *("train_loss", LOYALTY, "bytes_", "seconds"),
)
"""How the names of numbers begin that tables and figures take from lines and summaries."""


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(TABLES[name])


def check(name: str, value: Any, where: str) -> Entry:
    """``value``, read at ``where``, as what the file ``name`` holds, or a line of it.

    Raises
    ------
    FedkdError
        A key is missing, or a value is not allowed.
    """
    if not isinstance(value, dict):
        raise FedkdError(f"{where} is {_short(value)}, and a table of keys is needed")
    try:
        _adapter(name).validate_python(value)
    except ValidationError as failure:
        raise FedkdError(f"{where}: {complaint(failure)}") from failure
    _check_numbers(value, where)
    if name == SUMMARY and not {"files", "rounds"} & value.keys():
        raise FedkdError(f"{where}: rounds is missing")
    if name == PARTITION:
        _check_partition(value, where)
    if name == AUDIT:
        _check_images(value, where)
    if name == RELIABILITY:
        _check_bins(value, where)
    return value


def _check_bins(value: Entry, where: str) -> None:
    """Refuse lists of unlike lengths."""
    for tests in ("own", "common"):
        for stage, found in value.get(tests, {}).items():
            if len({len(values) for values in found.values()}) != 1:
                raise FedkdError(f"{where}: {tests}.{stage}: the lists are not of one length")


def _check_images(value: Entry, where: str) -> None:
    """Refuse images that are no arrays of one shape, or of neither one nor three channels."""
    for number, found in enumerate(value.get("reconstructions", [])):
        images = [*found["originals"], *found["reconstructions"]]
        first = images[0]
        wide = {len(row) for image in images for channel in image for row in channel}
        high = {len(channel) for image in images for channel in image}
        if {len(image) for image in images} != {len(first)} or len(first) not in (1, 3):
            fault = "images have one or three channels, all of them as many"
        elif len(high) != 1 or len(wide) != 1 or not min(wide):
            fault = "images are of one size"
        else:
            continue
        raise FedkdError(f"{where}: reconstructions.{number} is not allowed: {fault}")


def check_order(name: str, entries: Sequence[Entry], file: Path) -> None:
    """Refuse lines that are not where a run writes them: rounds in their order, nothing twice.

    Raises
    ------
    FedkdError
        One line that names file and line.
    """
    seen: set[tuple[Any, ...]] = set()
    before = 0
    for number, entry in enumerate(entries, 1):
        round = entry["round"]
        if name == ROUNDS and round != number:
            raise FedkdError(f"{at(file, number)}: round {round} stands where {number} comes next")
        if round < before and name != WARNINGS:
            raise FedkdError(f"{at(file, number)}: round {round} comes after round {before}")
        before = round
        if name in TOLD_APART_BY:
            key = tuple(entry.get(part) for part in TOLD_APART_BY[name])
            if key in seen:
                names = ", ".join(f"{p} {v}" for p, v in zip(TOLD_APART_BY[name], key, strict=True))
                raise FedkdError(f"{at(file, number)}: {names} is there twice")
            seen.add(key)


def check_rounds(entries: Sequence[Entry], last: int, file: Path) -> None:
    """Refuse a line of a round after the ``last``.

    Raises
    ------
    FedkdError
        One line that names file and line.
    """
    for number, entry in enumerate(entries, 1):
        if entry["round"] > last:
            raise FedkdError(
                f"{at(file, number)}: round {entry['round']} is not in {file.parent / ROUNDS}"
            )


def without_unknown(model: type[BaseModel], tables: dict[str, Any], prefix: str = "") -> list[str]:
    """Take keys that ``model`` does not know out of ``tables``, in place, and name them."""
    if model.model_config.get("extra") != "forbid":
        return []
    unknown = []
    for key in list(tables):
        if key not in model.model_fields:
            del tables[key]
            unknown.append(prefix + key)
            continue
        inner, value = model.model_fields[key].annotation, tables[key]
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
            unknown += without_unknown(inner, value, f"{prefix}{key}.")
    return unknown


def complaint(failure: ValidationError) -> str:
    """What pydantic says first, in a line: key, value and what is allowed."""
    error = failure.errors(include_url=False)[0]
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{key} is missing"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{key} = {_short(error['input'])} is not allowed: {message}"


def _check_numbers(entry: Mapping[str, Any], where: str) -> None:
    for key, value in entry.items():
        number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        if key.startswith(MEASUREMENTS) and not number:
            raise FedkdError(f"{where}: {key} = {_short(value)} is not allowed: a number is needed")


def _check_partition(value: Mapping[str, Any], where: str) -> None:
    for number, client in enumerate(value["clients"]):
        if client["client"] != number:
            raise FedkdError(f"{where}: client {client['client']} stands where {number} comes next")
        if len(client["labels"]) != len(value["classes"]):
            raise FedkdError(
                f"{where}: client {number} has {len(client['labels'])} label counts, and there are "
                f"{len(value['classes'])} classes"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
