"""A person's own texts, and what all corpora are made by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedkd.data.dataset import Corpus
from fedkd.data.reading import content, decoded, files_under, is_file, is_folder, parsed, shortened
from fedkd.errors import FedkdError, MissingData

IN_MEMORY = 8
"""Times its size that a text takes in memory, with its tokens."""


def text(place: Path) -> Corpus:
    """Own text: a folder of ``.txt`` files, one a client; or one such file, of nobody's."""
    name = f"text:{place}"
    if is_file(place):
        return corpus_of(name, {"": text_of(name, place)})
    if not is_folder(place):
        raise MissingData(f"data set {name!r}: there is no such file or folder")
    try:
        files = [file for file in files_under(place) if file.suffix == ".txt"]
    except ValueError as error:
        raise FedkdError(f"data set {name!r}: {error}") from error
    if not files:
        raise FedkdError(f"data set {name!r}: the folder holds no .txt files")
    keys = [file.relative_to(place).with_suffix("").as_posix() for file in files]
    return corpus_of(
        name, {key: text_of(name, file) for key, file in zip(keys, files, strict=True)}
    )


def jsonl(file: Path) -> Corpus:
    """Own text: a JSON object a line, with ``text`` and, on all lines or none, ``client``."""
    name = f"jsonl:{file}"
    if not is_file(file):
        raise MissingData(f"data set {name!r}: there is no such file")
    texts: dict[str, list[str]] = {}
    types: dict[str, type] = {}
    keyed: bool | None = None
    for number, line in enumerate(text_of(name, file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parsed(line, number)
        except ValueError as error:
            raise unreadable(name, file, str(error)) from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise unreadable(name, file, f"line {number} has no string under the key 'text'")
        client = record.get("client")
        if isinstance(client, bool) or not isinstance(client, str | int | None):
            raise unreadable(
                name, file, f"line {number}: client = {shortened(client)} is no string or number"
            )
        if keyed not in (None, client is not None):
            raise unreadable(
                name, file, f"line {number}: the key 'client' must be on all lines, or on none"
            )
        keyed = client is not None
        if types.setdefault(str(client), type(client)) is not type(client):
            raise unreadable(
                name, file, f"line {number}: client {client!r} is a string and a number elsewhere"
            )
        if not _encodable(record["text"]) or not _encodable(str(client)):
            raise unreadable(name, file, f"line {number} holds half of a surrogate pair")
        texts.setdefault("" if client is None else str(client), []).append(record["text"])
    if not texts:
        raise unreadable(name, file, "it holds no text")
    return corpus_of(name, {client: "\n".join(parts) for client, parts in sorted(texts.items())})


OWN: dict[str, Callable[[Path], Corpus]] = {"text": text, "jsonl": jsonl}
"""Kinds of own data, as in ``text:PATH``."""


def corpus_of(name: str, texts: dict[str, str]) -> Corpus:
    """A corpus of ``texts`` by who they are from, none of them blank.

    Raises
    ------
    FedkdError
        One is blank, or there is none.
    """
    for key, whole in texts.items():
        if not whole.strip():
            raise FedkdError(
                f"data set {name!r} is empty" + (f": {key!r} has no text" if key else "")
            )
    if not texts:
        raise FedkdError(f"data set {name!r} is empty")
    return Corpus(name, texts)


def checked(corpus: Corpus) -> Corpus:
    """A corpus that anybody may have made, as it is.

    Raises
    ------
    FedkdError
        It has no text, or anything but text.
    """
    texts = corpus.texts
    if not isinstance(texts, dict) or not all(
        isinstance(key, str) and isinstance(whole, str) for key, whole in texts.items()
    ):
        raise FedkdError(f"data set {corpus.name!r}: texts must be {{client: text}}, all strings")
    return corpus_of(corpus.name, texts)


def text_of(name: str, file: Path) -> str:
    """The text of a file of the data set called ``name``.

    Raises
    ------
    FedkdError
        It cannot be read.
    """
    try:
        return decoded(content(file, factor=IN_MEMORY))
    except ValueError as error:
        raise unreadable(name, file, str(error)) from error
    except OSError as error:
        raise unreadable(name, file, str(error.strerror)) from error


def _encodable(text: str) -> bool:
    """Whether text can be written: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unreadable(name: str, file: Path, reason: str) -> FedkdError:
    """The line for a text that cannot be read."""
    where = "" if name.endswith(f":{file}") else f" {file}"
    return FedkdError(f"data set {name!r}:{where} {reason}")
