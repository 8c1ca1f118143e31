"""Text: corpora, tokens, and rows of tokens that take the place of images.

A sample of text is a row of ``context + 1`` token ids, lines packed one after another::

    <line> w w w <line> w w <line> <pad> <pad>

It begins at the boundary of a line, lines keep their order, and no line that fits is split. A
student reads ``row[:-1]`` and learns to tell ``row[1:]``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedkd.data import cache
from fedkd.data.dataset import Corpus, Dataset, Part
from fedkd.errors import FedkdError
from fedkd.sections import TextTable
from fedkd.work import Samples

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PAD, LINE, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "<line>", "<unk>")
FIXED = (*SPECIAL, *"0123456789")
"""The first entries of every vocabulary."""
TOKEN = re.compile(r"\d|[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\S")
"""A digit; a word, with the apostrophes inside it; any other mark."""


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
