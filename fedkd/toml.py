"""TOML that a person wrote: its text, its tables, or a line on what is wrong."""

from __future__ import annotations

import codecs
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError, shown
from fedkd.folder import opened, reason

LARGEST_FILE = 2**20
"""Bytes of a file; those that people write have a few thousand."""
DEEPEST = 32
"""Tables and lists inside one another."""
LARGEST_INTEGER = 2**63 - 1
"""TOML's integers have 64 bits."""
LONGEST_TEXT = 1_000
"""Characters of a text: errors repeat it."""
MOST_DOTS = 1_000
"""Dots in a line, those of numbers aside."""
FRACTION = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.])")
DECIMAL = re.compile(r"[+-]?(\.\d+|\d+\.)([eE][+-]?\d+)?")
"""Numbers as shells and Python write them and TOML does not: ``.5`` and ``5.``."""
BARE = re.compile("[A-Za-z0-9_-]{1,100}")
"""A part of a key that needs no quotes, of a length that a line can repeat."""
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(file: Path, name: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    ``name`` is what the file is called in an error, e.g. ``"experiment 'mine.toml'"``.

    Raises
    ------
    FedkdError
        The file cannot be read, is not text, or is far too large to have been written by hand.
    """
    try:
        with opened(file) as stream:
            content = stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise FedkdError(f"{name} cannot be read: {reason(error)}") from error
    if len(content) > LARGEST_FILE:
        raise FedkdError(f"{name} cannot be read: it has more than {LARGEST_FILE:,} bytes")
    if content.startswith(WIDE):
        raise FedkdError(f"{name} cannot be read: it is UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FedkdError(
            f"{name} cannot be read: it is not UTF-8 text (byte {error.start + 1})"
        ) from error


def parse(text: str, name: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises
    ------
    FedkdError
        One line that says where the text is not TOML, or holds what no key takes.
    """
    try:
        tables = _loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        if r"'\r'" in reason:
            reason += "; a carriage return alone does not end a line"
        raise FedkdError(f"{name} is not valid TOML: {reason}") from error
    except FedkdError as error:
        raise FedkdError(f"{name} is not allowed: {error}") from error
    try:
        check_values(tables)
    except FedkdError as error:
        raise FedkdError(f"{name}: {error}") from error
    return tables


def _loads(text: str) -> dict[str, Any]:
    """``tomllib.loads``, and a line where it would take forever or meets a limit of Python's."""
    for number, line in enumerate(text.split("\n"), 1):
        # Its time grows with the square of the parts of a key.
        if line.count(".") > MOST_DOTS and len(FRACTION.sub("", line).split(".")) > MOST_DOTS:
            raise FedkdError(f"{_too_deep()} (line {number})")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise FedkdError(_too_deep()) from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # Python's limit on the digits of an integer
        raise FedkdError(_too_large()) from error


def check_values(tables: dict[str, Any], prefix: str = "") -> None:
    """Refuse values that no key takes, whatever the key; ``prefix`` is put before every key.

    Raises
    ------
    FedkdError
        Tables or lists are nested too deep; an integer has more than 64 bits; a text is too long,
        holds a null character or is not Unicode; or a value is a date or a time.
    """
    level: list[tuple[tuple[str, ...], Any]] = [((), tables)]
    for _ in range(DEEPEST):
        level = [inner for path, value in level for inner in _inside(path, value)]
        for path, value in level:
            if reason := _wrong(value) or _wrong(path[-1]):
                key = prefix + dotted(path)
                raise FedkdError(f"{key} = {shown(value)} is not allowed: {reason}")
    if level:
        raise FedkdError(f"{prefix}{dotted(level[0][0][:2])} is not allowed: {_too_deep()}")


def _inside(path: tuple[str, ...], value: Any) -> Iterable[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        return [((*path, str(name)), each) for name, each in value.items()]
    if isinstance(value, list | tuple):
        return [(path, each) for each in value]
    return []


def dotted(path: Iterable[str]) -> str:
    """A key as it is written in TOML: its parts joined by dots, in quotes where they need them."""
    return ".".join(part if BARE.fullmatch(part) else shown(part) for part in path)


def _wrong(value: Any) -> str:
    """Why no key takes ``value``, or nothing."""
    if isinstance(value, int) and not -LARGEST_INTEGER - 1 <= value <= LARGEST_INTEGER:
        return _too_large()
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"a text has at most {LONGEST_TEXT:,} characters"
    if isinstance(value, str) and "\0" in value:
        return "a text cannot hold the null character"
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        return "it is not Unicode text"
    if not isinstance(value, str | int | float | dict | list | tuple | None) and not _number(value):
        return "texts, numbers, true, false, lists and tables are allowed"
    return ""


def _number(value: Any) -> bool:
    """Whether a value is a number of NumPy."""
    return hasattr(value, "item") and getattr(value, "shape", None) == ()


def _too_deep() -> str:
    return f"tables and lists are more than {DEEPEST} deep inside one another"


def _too_large() -> str:
    return "a whole number has at most 64 bits"


# --- key=value ---------------------------------------------------------------------------------


def settings(overrides: Iterable[str]) -> dict[str, Any]:
    """Dotted keys and their values of ``key=value`` texts; the last one of a key counts.

    A value is TOML, or else a plain string. One that is a table sets its keys and leaves others;
    but a table with another ``name`` takes away what was set beside the former one.

    Raises
    ------
    FedkdError
        A text has no key, no equals sign, or a value that no key takes.
    """
    changes: dict[str, Any] = {}
    for text in overrides:
        name = f"--set {shown(text)}"
        path, equals, written = text.partition("=")
        try:
            key, value = _key(path) if equals else "", _value(written)
        except FedkdError as error:
            raise FedkdError(f"{name} is not allowed: {error}") from error
        if not key:
            raise FedkdError(f"{name} is not of the form key=value, e.g. strategy.beta=3")
        if value == {}:
            raise FedkdError(f"{name} sets nothing: the table is empty")
        flat = _flat(key, value)
        for path in flat:
            renamed = changes.get(path, flat[path]) != flat[path]
            if path != key and path.endswith(".name") and renamed:
                beside = path.removesuffix("name")
                changes = {key: one for key, one in changes.items() if not key.startswith(beside)}
        changes |= flat
    return changes


def _key(written: str) -> str:
    """A dotted key without quotes and spaces around its parts; empty where it is none."""
    try:
        tables: Any = _loads(f"{written.strip()} = 0") if "\n" not in written else {}
    except tomllib.TOMLDecodeError:
        return ""
    parts = []
    while isinstance(tables, dict) and len(tables) == 1:
        ((part, tables),) = tables.items()
        parts.append(part)
    return ".".join(parts)


def _value(written: str) -> Any:
    written = written.strip()
    if DECIMAL.fullmatch(written):
        return float(written)
    try:
        tables = _loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return written
    return tables["value"] if len(tables) == 1 else written


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {
        path: one for name in value for path, one in _flat(f"{key}.{name}", value[name]).items()
    }
