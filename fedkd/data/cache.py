"""Decoded data sets and partitions, kept on disk so that a second run starts at once.

The folder is FEDKD_CACHE, else ``~/.cache/fedkd``; ``FEDKD_CACHE=""`` keeps nothing. A file's name
is a digest of everything its content depends on, so nothing in the folder can be out of date and
all of it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

KEPT = {"datasets": 16, "partitions": 512, "models": 64, "fits": 256, "exposures": 4096}
"""Files kept of each kind; the oldest go first."""
MAPPED = 2**20
"""Bytes from which on an array is not read but mapped."""


def home() -> Path:
    """The folder of downloads and of kept arrays when nobody names another."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fedkd"


def folder() -> Path | None:
    """Where things are kept; None where nothing is."""
    named = os.environ.get("FEDKD_CACHE")
    if named == "":
        return None
    return Path(named).expanduser() if named else home()


def holds(*names: str) -> Callable[[Arrays], bool]:
    """Whether arrays of these names are there."""
    return lambda arrays: arrays.keys() >= {*names}


def remembered(
    kind: str,
    key: object,
    make: Callable[[], Arrays],
    fits: Callable[[Arrays], bool] = bool,
) -> Arrays:
    """``make()``, or what it returned when it was last called with this ``key``.

    Parameters
    ----------
    kind : str
        A key of :data:`KEPT`.
    key : object
        Everything the arrays depend on; told apart by its ``repr``.
    make : Callable[[], Arrays]
        Computes the arrays. Its errors pass through and nothing is kept.
    fits : Callable[[Arrays], bool]
        Whether arrays that were kept have the layout of what ``make`` returns. If not, or if a file
        is damaged, they are made again.
    """
    place = folder()
    if place is None:
        return make()
    file = place / kind / f"{hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()}.npz"
    with contextlib.suppress(Exception):  # whatever a damaged file makes its parsers raise
        kept = _read(file)
        if fits(kept):
            return kept
    arrays = make()
    with contextlib.suppress(OSError):  # a full or read-only disk costs time only
        _keep(file, arrays, KEPT[kind])
    return arrays


def _read(file: Path) -> Arrays:
    """The arrays of a file; large ones are mapped, so that many processes share one copy.

    What is written to such an array stays in the process. All are compared with their checksums.

    Raises
    ------
    Exception
        The file is not there, or damaged.
    """
    arrays: Arrays = {}
    with np.load(file) as kept, zipfile.ZipFile(file) as members:
        for name in kept.files:
            member = members.getinfo(f"{name}.npy")
            place = _place(file, member)
            if place is None:
                arrays[name] = kept[name]
                continue
            start, offset, shape, kind = place
            whole = np.memmap(file, np.uint8, "r", start, (member.file_size,))
            if zlib.crc32(whole.data) != member.CRC:
                raise ValueError(f"{file} is damaged: {name}")
            arrays[name] = np.memmap(file, kind, "c", offset, shape)
    return arrays


def _place(
    file: Path, member: zipfile.ZipInfo
) -> tuple[int, int, tuple[int, ...], np.dtype[Any]] | None:
    """Where a large array in ``file`` is, with its header and without, its shape and type.

    None if it cannot be mapped.
    """
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED:
        return None
    with file.open("rb") as stream:
        # The local header: 30 bytes, at 26 the lengths of the name and of the extra field.
        stream.seek(member.header_offset + 26)
        lengths = stream.read(4)
        start = stream.seek(sum(struct.unpack("<HH", lengths)), os.SEEK_CUR)
        if np.lib.format.read_magic(stream) != (1, 0):
            return None
        shape, fortran, kind = np.lib.format.read_array_header_1_0(stream)
        offset = stream.tell()
    mappable = not fortran and not kind.hasobject and offset % kind.alignment == 0
    return (start, offset, shape, kind) if mappable else None


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
