"""What a data set is: samples or texts, and what students learn of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Samples.

    ``images`` is ``(n, H, W, C)``, uint8 or float, or ``(n, d)`` float features; of text,
    ``(n, T + 1)`` int64 rows of tokens. ``labels`` is ``(n,)`` int64, -1 where there is none;
    ``writers`` is ``(n,)`` int64, who each sample is from, where that is known.
    """

    images: Tensor
    labels: Tensor
    writers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Parameters
    ----------
    name : str
        As in ``data.dataset``.
    train, test : Part
        Its parts; ``test`` may be None.
    class_names : tuple of str
        One a class.
    mean, std : tuple of float
        What it publishes to normalise its samples by, one number a channel or feature; empty where
        it publishes nothing. Those of uint8 images are of the pixels scaled to 0…1.
    unit : bool
        Whether 0 is black and 1 is white in float images: only then can they be compared with
        other pictures. Of uint8 images it is known that 255 is white.
    warnings : tuple of str
        What a reader of numbers made with it must know.
    """

    name: str
    train: Part
    test: Part | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    unit: bool = False
    warnings: tuple[str, ...] = ()


PIECE = 2**22
"""Values that are widened to float64 at a time."""


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel or feature, the last axis of ``images``.

    Those of uint8 images are of the pixels scaled to 0…1. All is computed in float64, a piece at a
    time. A channel whose deviation is below the resolution of its largest number is constant, and
    gets 1 as its deviation, so that dividing by it is harmless.

    Parameters
    ----------
    images : Tensor
        ``(..., C)``, uint8 or float, finite; not empty.
    """
    import torch

    flat = images.reshape(-1, images.shape[-1])
    pieces = flat.split(max(1, PIECE // flat.shape[1]))
    if flat.dtype == torch.uint8:
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(flat.shape[1], 256, dtype=torch.int64)
        for piece in pieces:
            counts += torch.stack([column.bincount(minlength=256) for column in piece.T])
        mean = counts.double() @ levels / len(flat)
        std = (counts.double() @ levels**2 / len(flat) - mean**2).clamp(min=0).sqrt()
        varies = (counts > 0).sum(1) > 1  # rounding alone could leave a constant a deviation
        std = torch.where(varies & (std > 1e-8), std, 1.0)
        return tuple(mean.tolist()), tuple(std.tolist())
    # Deviations from the first sample, in units of the largest: neither numbers far from 0, nor
    # tiny, nor huge ones lose digits.
    first = flat[0].double()
    far, largest = torch.zeros_like(first), torch.zeros_like(first)
    for piece in pieces:
        far = far.maximum((piece.double() - first).abs().amax(0))
        largest = largest.maximum(piece.double().abs().amax(0))
    unit = torch.where(far > 0, far, 1.0)
    offset, squares = torch.zeros_like(first), torch.zeros_like(first)
    for piece in pieces:
        offset += ((piece.double() - first) / unit).sum(0)
    offset /= len(flat)
    for piece in pieces:
        squares += ((piece.double() - first) / unit - offset).square().sum(0)
    std = (squares / len(flat)).sqrt() * unit
    std = torch.where(std > torch.finfo(flat.dtype).eps * largest, std, 1.0)
    return tuple((first + offset * unit).tolist()), tuple(std.tolist())


@dataclass(frozen=True)
class Corpus:
    """Texts by who they are from, each with one line a line.

    The only key of a corpus that does not say who its texts are from is the empty string.
    """

    name: str
    texts: dict[str, str]


@dataclass(frozen=True)
class Task:
    """What a student learns: inputs of ``shape``, ``(C, H, W)`` or ``(d,)``, to ``classes``.

    Of text, with ``tokens``, inputs are ``(T,)`` token ids, and the classes are the vocabulary, in
    the order of ids: at every position a student tells the next token.
    """

    shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...]
    tokens: bool = False
