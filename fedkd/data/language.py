"""Text: corpora, tokens, and rows of tokens that take the place of images.

A sample of text is a row of ``context + 1`` token ids, lines packed one after another::

    <line> w w w <line> w w <line> <pad> <pad>

It begins at the boundary of a line, lines keep their order, and no line that fits is split. A
student reads ``row[:-1]`` and learns to tell ``row[1:]``.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedkd.data import cache
from fedkd.data.datasets import Dataset, Part
from fedkd.data.reading import content, decoded, files_under, is_file, is_folder, parsed, shortened
from fedkd.errors import FedkdError, MissingData
from fedkd.sections import TextTable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedkd.work import Samples

PAD, LINE, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "<line>", "<unk>")
FIXED = (*SPECIAL, *"0123456789")
"""The first entries of every vocabulary."""

IN_MEMORY = 8
"""Times its size that a text takes in memory, with its tokens."""
TOKEN = re.compile(r"\d|[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\S")
"""A digit; a word, with the apostrophes inside it; any other mark."""


@dataclass(frozen=True)
class Corpus:
    """Texts by who they are from, each with one line a line.

    The only key of a corpus that does not say who its texts are from is the empty string.
    """

    name: str
    texts: dict[str, str]


@dataclass(frozen=True)
class Tokeniser:
    """A vocabulary, and the way between lines and token ids.

    ``vocabulary`` begins with ``<pad>``, ``<line>``, ``<unk>`` and the digits; the rest comes by
    falling frequency. ``tokens`` says whether they are words (single digits, punctuation marks and
    lower-cased words) or characters.
    """

    vocabulary: tuple[str, ...]
    tokens: Literal["word", "char"] = "word"

    @classmethod
    def learn(cls, texts: Iterable[str], table: TextTable, always: Iterable[str] = ()) -> Tokeniser:
        """The ``table.vocabulary`` most frequent tokens of ``texts``, ties in alphabetical order.

        Parameters
        ----------
        always
            Texts whose tokens are in, however rare.

        Raises
        ------
        FedkdError
            There is not even room for the tokens of ``always``.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_split(text, table.tokens))
        needed = {token for text in always for token in _split(text, table.tokens)} - {*FIXED}
        room = table.vocabulary - len(FIXED) - len(needed)
        if room < 0:
            raise FedkdError(
                f"data.text.vocabulary = {table.vocabulary} is too small: <pad>, <line>, <unk>, "
                f"ten digits and the {len(needed)} tokens of canaries need "
                f"{len(FIXED) + len(needed)}"
            )

        def order(token: str) -> tuple[int, str]:
            return -counts[token], token

        frequent = sorted(counts.keys() - {*FIXED} - needed, key=order)[:room]
        return cls((*FIXED, *sorted({*frequent, *needed}, key=order)), table.tokens)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of every token."""
        return {token: index for index, token in enumerate(self.vocabulary)}

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of one line; white space counts as one space, or nothing."""
        ids = self.ids
        return [ids.get(token, UNKNOWN) for token in _split(text, self.tokens)]

    def lines(self, text: str) -> list[list[int]]:
        """Ids of each line of ``text`` that is not blank."""
        return [found for line in text.splitlines() if (found := self.encode(line))]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, its lines one below the other."""
        between = " " if self.tokens == "word" else ""
        lines = _unpacked([int(index) for index in ids])
        return "\n".join(between.join(self.vocabulary[i] for i in line) for line in lines)


def _split(text: str, tokens: str) -> list[str]:
    if tokens == "char":
        return list(" ".join(text.split()))
    return TOKEN.findall(text.lower())


# --- rows ---------------------------------------------------------------------------------------


def pack(lines: Iterable[Sequence[int]], context: int) -> Tensor:
    """Rows ``(K, context + 1)`` int64 that hold ``lines`` in their order.

    A line of more than ``context - 1`` tokens fits no row; it is split into pieces of about one
    length that do, each a line of its own. A line without tokens is left out.
    """
    import torch

    rows: list[list[int]] = []
    for line in lines:
        for piece in _fitting(line, context - 1):
            if not rows or len(rows[-1]) + len(piece) > context:
                rows.append([LINE])
            rows[-1] += [*piece, LINE]
    packed = np.full((len(rows), context + 1), PAD, dtype=np.int64)
    for place, row in zip(packed, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(packed)


def _fitting(line: Sequence[int], most: int) -> list[Sequence[int]]:
    if len(line) <= most:
        return [line] if len(line) else []
    size = -(-len(line) // -(-len(line) // most))
    return [line[start : start + size] for start in range(0, len(line), size)]


def lines_of(rows: Tensor) -> list[list[int]]:
    """The lines that rows ``(K, context + 1)`` hold, in order: what :func:`pack` was given."""
    return [line for row in rows.tolist() for line in _unpacked(row)]


def _unpacked(row: Sequence[int]) -> Iterator[list[int]]:
    line: list[int] = []
    for token in [*row, LINE]:
        if token not in (PAD, LINE):
            line.append(token)
        elif line:
            yield line
            line = []


def insert(
    rows: Tensor, lines: Sequence[Sequence[int]], generator: torch.Generator, context: int
) -> Tensor:
    """Rows ``(K', context + 1)`` with ``lines`` put between those of ``rows``, packed anew.

    Each line goes to a place drawn uniformly from ``generator``.
    """
    import torch

    held = lines_of(rows)
    places = torch.randint(len(held) + 1, (len(lines),), generator=generator).tolist()
    new = sorted(zip(places, range(len(lines)), strict=True))
    whole: list[Sequence[int]] = []
    start = 0
    for place, index in new:
        whole += [*held[start:place], lines[index]]
        start = place
    return pack([*whole, *held[start:]], context)


def samples(rows: Tensor) -> Samples:
    """What a student reads and is asked of rows ``(K, T + 1)``: inputs and labels ``(K, T)``.

    The label of a position is the next token, and -1 where that is padding.
    """
    from fedkd.work import Samples

    following = rows[:, 1:]
    return Samples(rows[:, :-1], following.masked_fill(following == PAD, -1))


# --- from a corpus to rows ----------------------------------------------------------------------


def tokenised(
    corpus: Corpus, table: TextTable, always: Iterable[str] = ()
) -> tuple[Dataset, Tokeniser]:
    """The rows of a corpus as a data set, and the tokeniser learnt on all of it.

    Labels and writers of the samples are who the text is from. Every key's lines are packed on
    their own.
    """
    always = tuple(always)

    def learn() -> cache.Arrays:
        tokeniser = Tokeniser.learn(corpus.texts.values(), table, always)
        named = json.dumps(tokeniser.vocabulary).encode()
        return {"vocabulary": np.frombuffer(named, np.uint8), **_rows(corpus, tokeniser, table)}

    key = ("tokens", *_identity(corpus, table), always)
    kept = cache.remembered("datasets", key, learn, cache.holds("vocabulary", "rows", "labels"))
    tokeniser = Tokeniser(tuple(json.loads(kept["vocabulary"].tobytes())), table.tokens)
    return _dataset(corpus, kept), tokeniser


def encoded(corpus: Corpus, tokeniser: Tokeniser, table: TextTable) -> Dataset:
    """The rows of a corpus as a data set, with a vocabulary that was learnt on another."""
    key = ("rows", *_identity(corpus, table), _digest("\n".join(tokeniser.vocabulary)))
    return _dataset(
        corpus,
        cache.remembered(
            "datasets",
            key,
            lambda: _rows(corpus, tokeniser, table),
            cache.holds("rows", "labels"),
        ),
    )


def _identity(corpus: Corpus, table: TextTable) -> tuple[object, ...]:
    texts = _digest(json.dumps(corpus.texts))
    return texts, repr(table), _digest(Path(__file__).read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _rows(corpus: Corpus, tokeniser: Tokeniser, table: TextTable) -> cache.Arrays:
    packed = [pack(tokeniser.lines(text), table.context).numpy() for text in corpus.texts.values()]
    counts = [len(rows) for rows in packed]
    return {
        "rows": np.concatenate(packed).astype(np.int32),
        "labels": np.repeat(np.arange(len(packed)), counts),
    }


def _dataset(corpus: Corpus, arrays: cache.Arrays) -> Dataset:
    import torch

    labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    rows = torch.from_numpy(arrays["rows"].astype(np.int64))
    names = tuple(corpus.texts)
    part = Part(rows, labels, None if names == ("",) else labels)
    return Dataset(corpus.name, part, None, names)


# --- corpora ------------------------------------------------------------------------------------


def pydoc(folder: Path | None, download: bool) -> Corpus:
    """Python's language reference, that comes with CPython: some 80 topics; no download.

    What stands in several topics is left in the shortest of them, and lines without a letter or
    digit (underlines, rulers of tables) are left out. The text is that of the Python that runs.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FedkdError(
            "data set 'pydoc' is the language reference that comes with CPython (pydoc_data), and "
            f"this {platform.python_implementation()} {platform.python_version()} has none: use "
            "data.dataset = 'text:PATH' or 'jsonl:FILE'"
        ) from error
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for topic in sorted(topics, key=lambda topic: (len(topics[topic]), topic)):
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            text = "\n".join(line for line in paragraph.splitlines() if any(map(str.isalnum, line)))
            if text not in seen:
                seen.add(text)
                paragraphs.append(text)
        kept[topic] = "\n".join(paragraphs)
    return _corpus("pydoc", {topic: kept[topic] for topic in sorted(kept) if kept[topic].strip()})


def shakespeare(folder: Path | None, download: bool) -> Corpus:
    """Shakespeare's plays by speaking role: 37 plays, 1,347 roles (McMahan et al. 2017)."""
    file = (folder or cache.home()) / "shakespeare" / "shakespeare_by_role.json"
    if not file.is_file():
        raise MissingData(
            f"data set 'shakespeare' is not at {file}: point --data-dir (data.data_dir, "
            "FEDKD_DATA) at the folder that holds shakespeare/, with the JSON file {play: {role: "
            "[speech, ...]}}; or use data.dataset = 'pydoc'"
        )
    try:
        plays = parsed(_text("shakespeare", file))
    except ValueError as error:
        raise _broken("shakespeare", file, str(error)) from None
    texts: dict[str, str] = {}
    for play, roles in plays.items() if isinstance(plays, dict) else [("", None)]:
        for role, speeches in roles.items() if isinstance(roles, dict) else [("", None)]:
            if not isinstance(speeches, list) or not all(isinstance(s, str) for s in speeches):
                raise _broken("shakespeare", file, "it must hold {play: {role: [speech, ...]}}")
            texts[f"{play}/{role}"] = "\n".join(speeches)
    return _corpus("shakespeare", {key: text for key, text in texts.items() if text.strip()})


def text(place: Path) -> Corpus:
    """Own text: a folder of ``.txt`` files, one a client; or one such file, of nobody's."""
    name = f"text:{place}"
    if is_file(place):
        return _corpus(name, {"": _text(name, place)})
    if not is_folder(place):
        raise MissingData(f"data set {name!r}: there is no such file or folder")
    try:
        files = [file for file in files_under(place) if file.suffix == ".txt"]
    except ValueError as error:
        raise FedkdError(f"data set {name!r}: {error}") from error
    if not files:
        raise FedkdError(f"data set {name!r}: the folder holds no .txt files")
    keys = [file.relative_to(place).with_suffix("").as_posix() for file in files]
    return _corpus(name, {key: _text(name, file) for key, file in zip(keys, files, strict=True)})


def jsonl(file: Path) -> Corpus:
    """Own text: a JSON object a line, with ``text`` and, on all lines or none, ``client``."""
    name = f"jsonl:{file}"
    if not is_file(file):
        raise MissingData(f"data set {name!r}: there is no such file")
    texts: dict[str, list[str]] = {}
    types: dict[str, type] = {}
    keyed: bool | None = None
    for number, line in enumerate(_text(name, file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parsed(line, number)
        except ValueError as error:
            raise _broken(name, file, str(error)) from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise _broken(name, file, f"line {number} has no string under the key 'text'")
        client = record.get("client")
        if isinstance(client, bool) or not isinstance(client, str | int | None):
            raise _broken(
                name, file, f"line {number}: client = {shortened(client)} is no string or number"
            )
        if keyed not in (None, client is not None):
            raise _broken(
                name, file, f"line {number}: the key 'client' must be on all lines, or on none"
            )
        keyed = client is not None
        if types.setdefault(str(client), type(client)) is not type(client):
            raise _broken(
                name, file, f"line {number}: client {client!r} is a string and a number elsewhere"
            )
        if not _encodable(record["text"]) or not _encodable(str(client)):
            raise _broken(name, file, f"line {number} holds half of a surrogate pair")
        texts.setdefault("" if client is None else str(client), []).append(record["text"])
    if not texts:
        raise _broken(name, file, "it holds no text")
    return _corpus(name, {client: "\n".join(parts) for client, parts in sorted(texts.items())})


OWN: dict[str, Callable[[Path], Corpus]] = {"text": text, "jsonl": jsonl}
"""Kinds of own data, as in ``text:PATH``."""


def _corpus(name: str, texts: dict[str, str]) -> Corpus:
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
    return _corpus(corpus.name, texts)


def _text(name: str, file: Path) -> str:
    try:
        return decoded(content(file, factor=IN_MEMORY))
    except ValueError as error:
        raise _broken(name, file, str(error)) from error
    except OSError as error:
        raise _broken(name, file, str(error.strerror)) from error


def _encodable(text: str) -> bool:
    """Whether text can be written: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _broken(name: str, file: Path, reason: str) -> FedkdError:
    where = "" if name.endswith(f":{file}") else f" {file}"
    return FedkdError(f"data set {name!r}:{where} {reason}")
