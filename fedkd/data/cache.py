"""Decoded data sets and partitions, kept on disk so that a second run starts at once.

The folder is FEDKD_CACHE, else ``~/.cache/fedkd``; ``FEDKD_CACHE=""`` keeps nothing. A file's name
is a digest of everything its content depends on, so nothing in the folder can be out of date and
all of it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]

KEPT = {"datasets": 16, "partitions": 512, "models": 64, "fits": 256, "exposures": 4096}
"""Files kept of each kind; the oldest go first."""


def home() -> Path:
    """The folder of downloads and of kept arrays when nobody names another."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fedkd"


def remembered(kind: str, key: object, make: Callable[[], Arrays]) -> Arrays:
    """``make()``, or what it returned when it was last called with this ``key``.

    Parameters
    ----------
    kind : str
        A key of :data:`KEPT`.
    key : object
        Everything the arrays depend on; told apart by its ``repr``.
    make : Callable[[], Arrays]
        Computes the arrays. Its errors pass through and nothing is kept.
    """
    named = os.environ.get("FEDKD_CACHE")
    if named == "":
        return make()
    folder = (Path(named).expanduser() if named else home()) / kind
    file = folder / f"{hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()}.npz"
    try:
        with np.load(file) as kept:
            return dict(kept)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        arrays = make()
    with contextlib.suppress(OSError):  # a full or read-only disk costs time only
        _keep(file, arrays, KEPT[kind])
    return arrays


def _keep(file: Path, arrays: Arrays, most: int) -> None:
    """Write ``arrays`` to ``file`` in one step, then drop the oldest files beyond ``most``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.stem}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    newest_first = sorted(file.parent.glob("*.npz"), key=_age)
    for old in newest_first[most:]:
        old.unlink(missing_ok=True)


def _age(file: Path) -> float:
    try:
        return -file.stat().st_mtime
    except FileNotFoundError:  # another process dropped it
        return 0.0


def stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file under ``folder``."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [
        (str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
    ]
