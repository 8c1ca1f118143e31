"""Secrets: what they are, who holds them, and what everybody knows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fedkd.data.canaries.images import ImageTemplate
from fedkd.errors import FedkdError

SLOT = "_"

Kind: TypeAlias = Literal["text", "labels", "pixels"]


LARGEST_SPACE = 10**7.5
"""Most sequences that are scored one by one: their scores take 250 MB."""


@dataclass(frozen=True)
class Canaries:
    """Secrets, who holds them, and what everybody knows of them.

    Parameters
    ----------
    kind : str
        ``"text"``; or of images ``"labels"`` or ``"pixels"``: what of them is secret.
    secrets : Tensor
        ``(S, L)`` int64, indices of symbols; by holder, then by level of repeats.
    repeats : Tensor
        ``(S,)`` int64, copies of each in the training samples of its holders together.
    holders : tuple of tuple of int
        The clients that the copies of each are dealt out to, one after another: the first is the
        one it was drawn for.
    symbols : Tensor
        ``(A,)`` int64: token ids, classes, or grey levels.
    names : tuple of str
        ``A`` names of the symbols.
    public : str
        What the transfer set has of them: ``none``, ``prefix`` or ``exact``.
    template : str
        Text: the line, with a slot ``_`` for each symbol.
    context : Tensor
        Text: ``(P,)`` int64, the tokens before the first symbol, from the one that begins a line.
    images : Tensor or None
        Labels and pixels: ``(S, m, H, W, C)`` uint8, the images of one copy of every secret: one
        for each label, or the one that is secret.
    labels : Tensor or None
        ``(S, m)`` int64: the classes that their holders say these images are.
    image_template : ImageTemplate or None
        Pixels: what all secrets have alike.
    class_names : tuple of str
        Pixels: names of the classes.
    shown : int
        How many images the transfer set ends in that are of canaries.
    """

    kind: Kind
    secrets: Tensor
    repeats: Tensor
    holders: tuple[tuple[int, ...], ...]
    symbols: Tensor
    names: tuple[str, ...]
    public: str
    template: str
    context: Tensor
    images: Tensor | None = None
    labels: Tensor | None = None
    image_template: ImageTemplate | None = None
    class_names: tuple[str, ...] = ()
    shown: int = 0

    @property
    def count(self) -> int:
        """Number of secrets S."""
        return len(self.secrets)

    @property
    def length(self) -> int:
        """Symbols of a secret L."""
        return self.secrets.shape[1]

    @property
    def space(self) -> int:
        """Number of sequences that a secret is drawn from."""
        return len(self.symbols) ** self.length

    @property
    def log2_space(self) -> float:
        """The same in bits."""
        return self.length * math.log2(len(self.symbols))

    def held_by(self, client: int) -> list[int]:
        """Numbers of the secrets that ``client`` has in its training samples."""
        return [
            secret
            for secret, (repeats, holders) in enumerate(zip(self.repeats.tolist(), self.holders))
            if client in holders[:repeats]
        ]

    def copies(self, client: int) -> list[int]:
        """How many copies of each secret ``client`` has: ``S`` numbers."""
        return [
            len(range(holders.index(client), repeats, len(holders))) if client in holders else 0
            for repeats, holders in zip(self.repeats.tolist(), self.holders)
        ]

    def line(self, sequence: Sequence[int] | Tensor) -> list[int]:
        """Text: token ids of the line that a sequence of symbol indices makes."""
        index = torch.as_tensor(sequence)
        return [*self.context[1:].tolist(), *self.symbols[index].tolist()]

    def text(self, sequence: Sequence[int] | Tensor) -> str:
        """A sequence of symbol indices as one reads it."""
        names = [self.names[int(index)] for index in sequence]
        if self.kind != "text":
            return " ".join(names)
        return "".join(before + name for before, name in zip(self.template.split(SLOT), names))

    def to_json(self) -> dict[str, Any]:
        """Everything but images, in types that JSON has."""
        return {
            "kind": self.kind,
            "template": self.template,
            "symbols": list(self.names),
            "length": self.length,
            "space": self.space,
            "log2_space": self.log2_space,
            "public": self.public,
            "secrets": [
                {
                    "text": self.text(secret),
                    "symbols": secret.tolist(),
                    "repeats": repeats,
                    "holders": list(holders),
                }
                | self._label(number)
                for number, (secret, repeats, holders) in enumerate(
                    zip(self.secrets, self.repeats.tolist(), self.holders)
                )
            ],
        }

    def _label(self, secret: int) -> dict[str, str]:
        """Pixels: the class that is known of a secret."""
        if self.kind != "pixels" or self.labels is None:
            return {}
        return {"label": self.class_names[int(self.labels[secret, 0])]}


def check_space(symbols: int, length: int, key: str, most: float = LARGEST_SPACE) -> None:
    """Refuse to go through a space of over ``most`` sequences.

    Raises
    ------
    FedkdError
        Names ``key``, which decides on the size of the space.
    """
    if symbols**length > most:
        raise FedkdError(
            f"{key}: {length} symbols out of {symbols} are {float(symbols) ** length:.1e} "
            f"sequences, and at most {most:.1e} are ranked one by one: make the secret "
            "shorter, or set canary.estimator to 'interpolation' or 'extrapolation'"
        )
