"""What samples are normalised by, and which data sets can be normalised by the same numbers.

A picture has the same numbers whichever data set it comes from: pixels count from 0 (black) to 1
(white), and mean and standard deviation are those of one data set, taken from what is public.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fedkd.data.dataset import PIECE, Dataset, Part, statistics
from fedkd.digests import checksum
from fedkd.errors import FedkdError
from fedkd.experiment import DataTable

GREY_OR_COLOUR = (1, 3)
"""Channels of pictures, which can be made from one another."""


@dataclass(frozen=True)
class Statistics:
    """What samples are normalised by: they become ``(x - mean) / std``.

    Parameters
    ----------
    source : str
        ``constants``, ``public`` or ``private``, as in ``data.statistics``; ``none`` for text.
    origin : str
        In words, what they are of.
    mean, std : tuple of float
        One number a channel or feature; of pixels scaled to 0…1 where black and white are known.
    """

    source: Literal["constants", "public", "private", "none"]
    origin: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """For a run's folder."""
        return {
            "source": self.source,
            "origin": self.origin,
            "mean": list(self.mean),
            "std": list(self.std),
        }


OF_TEXT = Statistics("none", "text is not normalised", (), ())


def choose(table: DataTable, dataset: Dataset, transfer: Tensor) -> tuple[Statistics, list[str]]:
    """What the samples of ``dataset`` are normalised by, and warnings.

    Parameters
    ----------
    table : DataTable
        ``data.statistics`` is the choice.
    dataset : Dataset
        The clients' data set.
    transfer : Tensor
        The transfer set ``(M, H, W, C)`` or ``(M, d)``, before canaries come into it.

    Raises
    ------
    FedkdError
        There are no such statistics.
    """
    wanted = table.statistics
    known = pictures(dataset)
    if wanted == "auto":
        if dataset.mean or (known and not len(transfer)):
            wanted = "constants"
        elif len(transfer):
            wanted = "public"
        else:
            raise FedkdError(
                f"data.dataset = {table.dataset!r} ({kind(dataset)}) publishes no mean and "
                "deviation, and data.transfer.size = 0 leaves no public sample to take them from: "
                "set data.transfer.size, write x_mean and x_std into an npz file, or set "
                "data.statistics = 'private', a release that no epsilon covers"
            )
    if wanted == "constants":
        if dataset.mean:
            origin = f"published with the data set {dataset.name!r}"
            return Statistics("constants", origin, dataset.mean, dataset.std), []
        if known:
            half = (0.5,) * dataset.train.images.shape[-1]
            origin = "0.5 and 0.5, for pictures of which nothing is published"
            return Statistics("constants", origin, half, half), []
        raise FedkdError(
            f"data.statistics = 'constants' is not allowed with data.dataset = {table.dataset!r}: "
            f"it is {kind(dataset)} and publishes no mean and standard deviation; allowed: "
            "'public', 'private', or x_mean and x_std in an npz file"
        )
    if wanted == "public":
        if not len(transfer):
            raise FedkdError(
                "data.statistics = 'public' is not allowed with data.transfer.size = 0: they are "
                "those of the transfer set"
            )
        origin = f"the transfer set: {len(transfer)} samples of {table.transfer.source!r}"
        return _computed("public", origin, transfer)
    origin = f"the training part of {dataset.name!r}: {len(dataset.train)} samples, clients' own"
    private, warnings = _computed("private", origin, dataset.train.images)
    released = (
        "data.statistics = 'private': inputs are normalised by the mean and standard deviation of "
        "clients' own samples, which everybody then knows; no epsilon covers this release"
    )
    return private, [released, *warnings]


def _computed(
    source: Literal["public", "private"], origin: str, images: Tensor
) -> tuple[Statistics, list[str]]:
    mean, std = statistics(images)
    warnings = []
    if images.is_floating_point():
        low, high = images.reshape(-1, images.shape[-1]).aminmax(dim=0)
        still = int((low == high).sum())
        if still:
            warnings.append(
                f"{still} of {len(std)} features or channels do not vary in what they are "
                f"normalised by ({origin}): they are not scaled"
            )
    return Statistics(source, origin, mean, std), warnings


def standardised(images: Tensor, by: Statistics) -> Tensor:
    """Float images or features as float32 ``(x - mean) / std``, computed in float64.

    Raises
    ------
    FedkdError
        A sample is too far from the mean to be a float32.
    """
    mean = torch.tensor(by.mean, dtype=torch.float64)
    std = torch.tensor(by.std, dtype=torch.float64)
    inputs = torch.empty(images.shape, dtype=torch.float32)
    step = max(1, PIECE * len(images) // max(1, images.numel()))
    for target, piece in zip(inputs.split(step), images.split(step), strict=True):
        target.copy_((piece.double() - mean) / std)
        if not bool(target.isfinite().all()):
            raise FedkdError(
                f"data.statistics: a sample is over 1e38 standard deviations from the mean of "
                f"{by.origin}; take them from samples that are like it"
            )
    return inputs


class Normalised:
    """Float samples, normalised once; all others as they are."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self.decoded: list[str] = []
        self._parts: dict[int, tuple[Part, Part]] = {}
        self._images: dict[int, tuple[Tensor, Tensor]] = {}

    def part(self, part: Part) -> Part:
        """``part`` with its images normalised: the same object for the same one."""
        if id(part) not in self._parts:
            self._parts[id(part)] = part, replace(part, images=self.images(part.images))
        return self._parts[id(part)][1]

    def images(self, images: Tensor) -> Tensor:
        """``images``, normalised if they are float."""
        if not images.is_floating_point():
            return images
        if id(images) not in self._images:
            self.decoded.append(checksum(images))
            self._images[id(images)] = images, standardised(images, self.statistics)
        return self._images[id(images)][1]


# --- data sets side by side ---------------------------------------------------------------------


def pictures(dataset: Dataset) -> bool:
    """Whether it is known which numbers of ``dataset`` are black and white."""
    return dataset.train.images.dtype == torch.uint8 or dataset.unit


def kind(dataset: Dataset) -> str:
    """What the samples of ``dataset`` are, and where they go from and to."""
    images = dataset.train.images
    if images.dtype == torch.uint8:
        return "uint8 images, 0 to 255"
    if images.dim() == 2:
        return f"{images.shape[1]} float features, {span(images)}"
    if dataset.unit:
        return "float images with x_range"
    return f"float images without x_range, {span(images)}"


def span(images: Tensor) -> str:
    """``"-1 to 1"``: the least and the largest number."""
    low, high = map(float, images.aminmax())
    return f"{low:.3g} to {high:.3g}"


def comparable(dataset: Dataset, other: Dataset) -> bool:
    """Whether numbers that normalise samples of ``dataset`` do so for those of ``other``."""
    one, two = dataset.train.images, other.train.images
    if one.dim() != two.dim() or pictures(dataset) != pictures(other):
        return False
    if one.dim() == 2 and one.shape[1] != two.shape[1]:
        return False
    return pictures(dataset) or not apart(one, two)


def apart(one: Tensor, other: Tensor) -> bool:
    """Whether float samples whose scale nobody says are plainly on two scales.

    Pictures fill their range: their ends must agree. Of series and features there are outliers:
    nine tenths of the range, or fifty times the size, is too far.
    """
    if one.dim() == 2:
        sizes = [float(_sizes(images).median()) for images in (one, other)]
        return max(sizes) > 50 * min(sizes) > 0
    (low, high), (low2, high2) = (map(float, images.aminmax()) for images in (one, other))
    distance = max(abs(low - low2), abs(high - high2))
    share = 1 / 3 if one.shape[-1] in GREY_OR_COLOUR else 0.9
    return distance > share * max(high - low, high2 - low2)


def _sizes(features: Tensor) -> Tensor:
    """The mean size of each feature: ``(d,)`` float64."""
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for piece in features.split(max(1, PIECE // features.shape[1])):
        total += piece.double().abs().sum(0)
    return total / len(features)
