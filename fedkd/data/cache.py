"""Decoded data sets and partitions, kept on disk so that a second run starts at once.

The folder is FEDKD_CACHE, else ``~/.cache/fedkd``; ``FEDKD_CACHE=""`` keeps nothing. A file's name
is a digest of everything its content depends on, so nothing in the folder can be out of date and
all of it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Arrays = dict[str, np.ndarray]

KEPT = {"datasets": 16, "partitions": 512, "models": 64, "fits": 256, "exposures": 4096}
"""Files kept of each kind; the oldest go first."""
MAPPED = 2**20
"""Bytes from which on an array is not read but mapped."""
PARTIAL = ".partial"
"""Ends the name of a file that is being written."""
FORGOTTEN = 24 * 3600.0
"""Seconds after which such a file is one that a kill left behind."""


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

    What is written to such an array stays in the process. All of them are what was written: the
    archive has a checksum of each.
    """
    arrays: Arrays = {}
    # One open file: another process may put a new one, or none, in its place meanwhile.
    with file.open("rb") as stream, np.load(stream) as kept, zipfile.ZipFile(stream) as members:
        for name in kept.files:
            member = members.getinfo(f"{name}.npy")
            place = _place(stream, member)
            if place is None:
                arrays[name] = kept[name]
            else:
                offset, shape, kind = place
                arrays[name] = np.memmap(stream, kind, "c", offset, shape)
                _check(stream, member)
    return arrays


def _seek(stream: BinaryIO, member: zipfile.ZipInfo) -> None:
    """Go to where the content of an archive's member begins."""
    # The local header: 30 bytes, at 26 the lengths of the name and of the extra field.
    stream.seek(member.header_offset + 26)
    stream.seek(sum(struct.unpack("<HH", stream.read(4))), os.SEEK_CUR)


def _place(
    stream: BinaryIO, member: zipfile.ZipInfo
) -> tuple[int, tuple[int, ...], np.dtype[Any]] | None:
    """Offset, shape and type of a large array in a file; None if it cannot be mapped."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED:
        return None
    _seek(stream, member)
    if np.lib.format.read_magic(stream) != (1, 0):
        return None
    shape, fortran, kind = np.lib.format.read_array_header_1_0(stream)
    offset = stream.tell()
    mappable = not fortran and not kind.hasobject and offset % kind.alignment == 0
    return (offset, shape, kind) if mappable else None


def _check(stream: BinaryIO, member: zipfile.ZipInfo) -> None:
    """Refuse a member whose content is not what was written."""
    _seek(stream, member)
    checksum, left = 0, member.file_size
    while left > 0:
        piece = stream.read(min(left, MAPPED))
        if not piece:
            raise EOFError(f"{member.filename} ends early")
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
    if checksum != member.CRC:
        raise ValueError(f"{member.filename} is damaged")


def _keep(file: Path, arrays: Arrays, most: int) -> None:
    """Write ``arrays`` to ``file`` in one step, then drop the oldest files beyond ``most``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of its own for every writer, whatever the process, the thread and the machine.
    partial = file.with_name(f"{file.stem}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with partial.open("xb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    for left in file.parent.glob(f"*{PARTIAL}"):
        if time.time() + _age(left) > FORGOTTEN:
            left.unlink(missing_ok=True)
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
