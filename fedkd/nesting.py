"""Folders of runs lie where they should: not in one another, and inside those of their suite."""

from __future__ import annotations

from pathlib import Path

from fedkd.errors import FedkdError
from fedkd.records import (
    ENVIRONMENT,
    EXPERIMENT,
)


def check_not_inside_a_run(folder: Path) -> None:
    """Refuse a folder below that of a run, which would count as part of it.

    Raises
    ------
    FedkdError
        The line names the run.
    """
    for above in folder.resolve().parents:
        if (above / EXPERIMENT).is_file() and (above / ENVIRONMENT).is_file():
            raise FedkdError(
                f"--out {folder} lies in the folder of a run, {above}; choose another folder"
            )


def child(folder: Path, name: str, source: str) -> Path:
    """The folder called ``name`` in ``folder``, as the file ``source`` in it says.

    Raises
    ------
    FedkdError
        It is not the name of a folder there: it has a slash, or leads elsewhere.
    """
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise FedkdError(f"{folder / source}: folder = {name!r} is not allowed: a name is needed")
    return folder / name


def check_inside(place: Path, folder: Path) -> None:
    """Refuse a run's folder that would lie outside that of its suite or study.

    Raises
    ------
    FedkdError
        It does, by its name or by a link.
    """
    if folder.resolve() not in place.resolve().parents:
        raise FedkdError(f"{place} is not inside {folder}: nothing is written there")
