"""Files of a folder that may be read while it is written: whole or appended, checked when read.

Every failure is a :class:`~fedkd.errors.FedkdError` of one line that names the file, and the line
in it where there are lines.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from fedkd.errors import FedkdError

Entry = dict[str, Any]
Check = Callable[[Any, str], Entry]
"""Gives back what was read, or raises a FedkdError that begins with the place it was read at."""
HALF = ".new"
"""Ends the name of a file that is being written."""
NEWLINE = b"\n"


# --- writing ------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against writing ``path`` into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "null" not in str(error):
            raise
        named = str(path).replace("\0", "\\0")
        raise FedkdError(f"{named} cannot be written: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why the system refused, in a few words."""
    words = error.strerror if isinstance(error, OSError) else None
    return words or " ".join(str(error).split()) or type(error).__name__


def make(folder: Path) -> list[Path]:
    """Make ``folder`` and what is above it; those that were made, the outermost first.

    Raises
    ------
    FedkdError
        It cannot be made.
    """
    with writing(folder):
        missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            remove_empty(missing)
            raise
    return missing


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of ``folders`` that are empty, the innermost first."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


def write(file: Path, content: str | bytes) -> None:
    """Write a whole file, on disk when this returns; a reader sees the old or the new one.

    Raises
    ------
    FedkdError
        It cannot be written; what was there before is still there.
    """
    with replaced(file) as beside, beside.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Give a path to write to; what is written takes the place of ``file``, or leaves nothing."""
    beside = file.with_name(f".{file.name}{HALF}")
    with writing(file):
        try:
            yield beside
            with beside.open("rb") as stream:
                os.fsync(stream.fileno())
            beside.replace(file)
            sync(file.parent)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise


def append(texts: Mapping[Path, str]) -> None:
    """Add a text to each file, on disk when this returns: to all of them, or to none.

    Raises
    ------
    FedkdError
        One cannot be written.
    """
    sizes: dict[Path, int] = {}
    try:
        for file, text in texts.items():
            with writing(file), file.open("ab") as stream:
                sizes[file] = stream.tell()
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        for folder in {file.parent for file, size in sizes.items() if not size}:
            sync(folder)
    except BaseException:
        for file, size in sizes.items():
            with suppress(OSError):
                os.truncate(file, size)
                if not size:
                    file.unlink()
        raise


def sync(folder: Path) -> None:
    """Have the names in ``folder`` on disk; not every system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_halves(folder: Path) -> None:
    """Remove what a kill left half written."""
    if folder.is_dir():
        with writing(folder):
            for file in folder.iterdir():
                if is_half(file):
                    file.unlink(missing_ok=True)


def is_half(file: Path) -> bool:
    """Whether a kill left this half written."""
    return file.name.startswith(".") and file.name.endswith(HALF)


# --- reading ------------------------------------------------------------------------------------


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """A regular file's bytes. A pipe or a device is refused, as it might never end.

    Raises
    ------
    ValueError
        It is not a regular file.
    OSError
        It cannot be opened.
    """
    # Not blocking: a pipe that nobody writes to would be waited for here.
    number = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(number, "rb") as stream:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise ValueError("it is not a regular file")
        yield stream


def read(file: Path) -> bytes | None:
    """What a file holds; None where there is none.

    Raises
    ------
    FedkdError
        It is there and cannot be read.
    """
    try:
        with opened(file) as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise FedkdError(f"{file} cannot be read: {reason(error)}") from error


def decoded(content: bytes, where: str) -> str:
    """``content`` as text; ``where`` names it.

    Raises
    ------
    FedkdError
        It is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FedkdError(f"{where} is not UTF-8 text (byte {error.start})") from error


def read_json(file: Path, check: Check) -> Entry | None:
    """The table in a JSON file; None where there is no file.

    Raises
    ------
    FedkdError
        It is not JSON, or not what ``check`` allows.
    """
    content = read(file)
    return None if content is None else check(parsed(content, str(file)), str(file))


def read_lines(file: Path, check: Check) -> tuple[list[Entry], Tally, bool]:
    """The tables in a file of JSON lines, what they are, and whether the last was cut off.

    A last line that was cut off is left out. No file is no lines.

    Raises
    ------
    FedkdError
        A line is not JSON, or not what ``check`` allows.
    """
    whole, last = split(read(file) or b"")
    places = [at(file, number) for number in range(1, len(whole) + 2)]
    tables = [parsed(line, place) for line, place in zip(whole, places)]
    torn = bool(last) and _cut_off(last)
    if last and not torn:
        tables.append(parsed(last, places[-1]))
        whole.append(last)
    entries = [check(table, place) for table, place in zip(tables, places)]
    return entries, Tally(NEWLINE.join([*whole, b""])), torn


def stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes whenever a file is written anew; None where there is no file."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def split(content: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines of a file, and what comes after the last of them."""
    *whole, last = content.split(NEWLINE)
    return whole, last.strip()


def whole_lines(content: bytes) -> int:
    """How many lines there are, without one that was cut off."""
    lines, last = split(content)
    return len(lines) + bool(last and not _cut_off(last))


def _cut_off(last: bytes) -> bool:
    try:
        parsed(last, "")
    except FedkdError:
        return True
    return False


def at(file: Path, line: int) -> str:
    """Names a line of a file."""
    return f"{file}, line {line}"


def parsed(content: bytes, where: str) -> Any:
    """What JSON says; numbers that JSON does not have are refused.

    Raises
    ------
    FedkdError
        It is not JSON.
    """
    try:
        return json.loads(decoded(content, where), parse_constant=_no_number)
    except RecursionError as error:
        raise FedkdError(f"{where} is not JSON: it is nested too deep") from error
    except ValueError as error:
        raise FedkdError(f"{where} is not JSON: {error}") from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


# --- what was written ---------------------------------------------------------------------------


class Tally:
    """How many lines a file has, and a digest of them that does not depend on line ends."""

    def __init__(self, content: bytes = b"") -> None:
        self.lines, self._digest = 0, hashlib.blake2b(digest_size=16)
        self.add(content)

    def add(self, content: bytes) -> None:
        """Count lines that come after those there are."""
        whole, last = split(content)
        for line in [*whole, *([last] if last else [])]:
            self.lines += 1
            self._digest.update(line.rstrip() + NEWLINE)

    @property
    def digest(self) -> str:
        """32 hex digits."""
        return self._digest.hexdigest()

    def to_json(self) -> Entry:
        """Both, as JSON takes them."""
        return {"lines": self.lines, "digest": self.digest}


def finite(value: Any) -> Any:
    """``value`` with numbers that JSON does not have (NaN, infinity) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
