"""Files of others, read with care: what they hold is checked before memory is taken for it.

Functions here raise ValueError with the reason; a reader puts the data set and the file before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedkd.folder import opened

SKIPPED = {"__macosx", "__pycache__", "thumbs.db", "desktop.ini"}
"""Names of files and folders that programs leave behind, in lower case."""
LARGE = 2**29
"""Bytes from which on what a file unpacks to is compared with its size."""
EXPANSION = 200
"""The most that data unpacks to, as a multiple of its file: beyond it, the file holds nothing."""


def free_memory(system: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take: the machine's, and its control groups'.

    ``system`` is the root of ``/proc`` and ``/sys``. Without bound where neither says anything.
    """
    bounds = [2**62]
    with contextlib.suppress(OSError, ValueError, KeyError):
        bounds.append(1024 * _numbers(system / "proc/meminfo")["MemAvailable:"])
    with contextlib.suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            number, kind, group = line.split(":", 2)
            version1 = "memory" in kind.split(",")
            if not version1 and number != "0":
                continue
            mount = system / "sys/fs/cgroup" / ("memory" if version1 else "")
            inner = Path(group.lstrip("/"))
            # In a container the group's own path is often not there: the mount is the group itself.
            bounds += [_left(mount / place, version1) for place in [inner, *inner.parents]]
    return min(bounds)


def _left(group: Path, version1: bool) -> int:
    """Bytes that a control group may still take; the page cache gives way and does not count."""
    most, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if version1
        else ("memory.max", "memory.current")
    )
    try:
        kinds = _numbers(group / "memory.stat")
        whole = "total_" if version1 else ""
        cached = kinds[f"{whole}inactive_file"] + kinds[f"{whole}active_file"]
        return max(0, int((group / most).read_text()) - int((group / used).read_text()) + cached)
    except (OSError, ValueError, KeyError):
        return 2**62


def _numbers(file: Path) -> dict[str, int]:
    """The lines ``name number …`` of a file."""
    lines = [line.split() for line in file.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}


def check_room(unpacked: int, stored: int) -> None:
    """Refuse to read what takes more than half of the memory there is, or unpacks to nothing.

    Parameters
    ----------
    unpacked : int
        Bytes that it takes in memory.
    stored : int
        Bytes of its files.

    Raises
    ------
    ValueError
        The reason.
    """
    free = free_memory()
    if 2 * unpacked > free:
        raise ValueError(
            f"it takes {gigabytes(unpacked)} in memory, and {gigabytes(free)} are free; allowed: "
            "half of that"
        )
    if unpacked > max(LARGE, EXPANSION * stored):
        raise ValueError(
            f"it is {gigabytes(stored)} and unpacks to {gigabytes(unpacked)}; allowed: "
            f"{EXPANSION} times its size"
        )


def gigabytes(count: int) -> str:
    """``"3.9 MB"`` or ``"4.2 GB"``."""
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"


# --- files and folders --------------------------------------------------------------------------


def is_file(path: Path) -> bool:
    """Whether ``path`` is a regular file; False for what cannot be, such as too long a name."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; False for what cannot be, such as too long a name."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def hidden(name: str) -> bool:
    """Whether a file or folder is none of a person's data, such as ``.git`` or ``__MACOSX``."""
    return name.startswith(".") or name.lower() in SKIPPED


def files_under(root: Path) -> list[Path]:
    """What is in ``root`` and its folders at any depth, sorted; hidden files and folders left out.

    Links are followed. What is no folder may be no regular file either: see :func:`opened`.

    Raises
    ------
    ValueError
        A link leads to a folder that it is in, or a folder cannot be read.
    """
    listed: list[Path] = []
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        try:
            here = folder.stat()
            inside = [entry for entry in os.scandir(folder) if not hidden(entry.name)]
        except OSError as error:
            raise ValueError(f"{folder} cannot be read: {error.strerror}") from error
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            raise ValueError(f"{folder} is a link to a folder that it is in")
        for entry in inside:
            path = folder / entry.name
            if is_folder(path):
                waiting.append((path, above | {identity}))
            else:
                listed.append(path)
    return sorted(listed)


def content(file: Path, factor: int = 1) -> bytes:
    """All bytes of a regular file, which take ``factor`` times as much memory once parsed.

    Raises
    ------
    ValueError
        It is not a regular file, or too large for the memory there is.
    OSError
        It cannot be read.
    """
    with opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        check_room(factor * size, factor * size)
        return stream.read()


# --- JSON and text ------------------------------------------------------------------------------


def decoded(raw: bytes) -> str:
    """UTF-8 text, with or without a byte order mark.

    Raises
    ------
    ValueError
        It is not UTF-8, or holds NUL bytes; the reason names the line.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: byte {error.start} is not UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"line {line} holds a NUL byte, which no text does")
    return text


def parsed(written: str, line: int | None = None) -> Any:
    """What JSON text says.

    Parameters
    ----------
    written : str
        The text.
    line : int, optional
        The line of its file that the text is, where it is one.

    Raises
    ------
    ValueError
        It is not JSON, or an object in it has a key twice.
    """
    where = "it" if line is None else f"line {line}"
    try:
        return json.loads(written, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = error.lineno if line is None else line
        raise ValueError(f"line {place} is not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except ValueError as error:
        digits = "digits" in str(error)  # Python bounds the length of integers
        raise ValueError(
            f"{where} holds " + ("an integer of thousands of digits" if digits else str(error))
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shortened(twice)} twice in one object")
    return unique


def shortened(value: object, most: int = 60) -> str:
    """``repr(value)``, cut where it is long."""
    written = repr(value)
    return written if len(written) <= most else f"{written[:most]}…"


# --- npz ----------------------------------------------------------------------------------------


def npz_names(file: Path) -> list[str]:
    """Names of the arrays in an npz file.

    Raises
    ------
    ValueError
        It is no npz file, or holds a name twice.
    """
    with _archive(file) as archive:
        return list(_members(archive))


def npz_arrays(file: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of the arrays called ``names`` that an npz file holds, in native byte order.

    The sizes that all of them say they have are checked before any of them is read.

    Raises
    ------
    ValueError
        It is no npz file, an array of it is broken or holds Python objects, or it is too large.
    """
    with _archive(file) as archive:
        members = {name: m for name, m in _members(archive).items() if name in names}
        unpacked = 0
        for name, member in members.items():
            with archive.open(member) as stream:
                unpacked += _size(name, member, stream)
        check_room(unpacked, file.stat().st_size)
        arrays = {}
        for name, member in members.items():
            with archive.open(member) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
                while stream.read(2**20):  # to the end, where the checksum is compared
                    pass
            arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
        return arrays


@contextlib.contextmanager
def _archive(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with opened(file) as stream:
            if stream.read(6) == b"\x93NUMPY":
                raise ValueError("it holds one bare array; use numpy.savez(file, x=..., y=...)")
            with zipfile.ZipFile(stream) as archive:
                yield archive
    except ValueError:
        raise
    except Exception as error:  # zipfile lets through whatever its decompressors raise
        raise ValueError(str(error).split("\n")[0] or type(error).__name__) from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in members:
            raise ValueError(f"it holds {name} twice")
        members[name] = member
    return members


def _size(name: str, member: zipfile.ZipInfo, stream: IO[bytes]) -> int:
    """Bytes of the array in a member, from its header alone."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = read[version](stream)
    except (ValueError, LookupError, SyntaxError, TypeError) as error:
        raise ValueError(f"{name} is not an array as numpy saves it") from error
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not read")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if min(shape, default=0) < 0 or stream.tell() + size != member.file_size:
        raise ValueError(f"{name} has another size than its header says")
    return size
