"""What work is done on: samples of a source that has a name, and samples sent along.

Authors of methods take these from :mod:`fedkd.work`, where all that a step is made of is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """Samples sent along with a step.

    ``inputs`` is ``(K, ...)``, normalised images; ``labels`` is ``(K,)``. Of text, ``inputs`` is
    ``(K, T)`` token ids and ``labels`` ``(K, T)`` the next ones, -1 for none.

    With a ``cut`` they enter a student above the block of this name: ``inputs`` ``(K, ...)`` are
    representations, each of the shape of what that block gives. Blocks up to it do not see them,
    so they get no gradient of them, and their statistics stay as they are. Not of text.

    What steps speak of as a row a sample is, of text, a row a token: the positions of the inputs
    that are not padding, row after row.

    Two are equal, and terms that draw from them share their mini-batches, where they hold the same
    tensors and enter at the same place.
    """

    inputs: torch.Tensor
    labels: torch.Tensor | None = None
    cut: str = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Samples):
            return NotImplemented
        same = self.inputs is other.inputs and self.labels is other.labels
        return same and self.cut == other.cut

    def __hash__(self) -> int:
        return hash((id(self.inputs), id(self.labels), self.cut))

    def __repr__(self) -> str:
        above = f", cut={self.cut!r}" if self.cut else ""
        return f"Samples({len(self.inputs)} inputs{above})"


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Some samples of a named source, such as ``Rows("transfer", index)``.

    ``index`` ``(K,)`` int64 has their numbers in the source, distinct, in the order in which they
    are to be taken; it travels with the step, as an array like any other. Of text a number is that
    of a sample, a row of tokens; what has a row an item (soft labels, targets) then has one for
    each token of these samples.

    Two are equal, and terms that draw from them share their mini-batches, where they hold the same
    tensor.
    """

    source: str
    index: torch.Tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows):
            return NotImplemented
        return self.source == other.source and self.index is other.index

    def __hash__(self) -> int:
        return hash((self.source, id(self.index)))

    def __repr__(self) -> str:
        return f"Rows({self.source!r}, {len(self.index)} numbers)"


Source = str | Samples | Rows
"""``"private"`` (own training samples), ``"transfer"``, ``"own"`` (own test split), ``"common"``
(the common test set), ``"validation"``, samples sent along, or some rows of a source that has a
name."""

SOURCES = ("private", "own", "validation", "common", "transfer")
"""The sources that have a name."""


def origin(on: Source | None) -> str:
    """The name of the source that samples are of; ``"samples"`` where they are sent along."""
    if isinstance(on, Rows):
        return on.source
    return on if isinstance(on, str) else "samples"
