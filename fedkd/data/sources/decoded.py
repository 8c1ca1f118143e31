"""Data sets of images that are decoded once and remembered.

The mean and standard deviation that a data set publishes are those of its training part, and
written down with its loader: nothing is computed from what clients hold. ``test_datasets.py``
computes each anew from the files where ``FEDKD_DATA`` has them: ``pytest tests/data -k published``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedkd.data import cache
from fedkd.data.dataset import Dataset, Part
from fedkd.data.sources.faults import broken, first_line, missing
from fedkd.errors import FedkdError

BOTH_PARTS = cache.holds("x_train", "y_train", "x_test", "y_test", "names")

DECODING = 2
"""Another number where own decoding has changed: what was decoded before is decoded again."""


def by_torchvision(
    name: str, kind: str, place: str, folder: Path | None, download: bool, **options: Any
) -> cache.Arrays:
    """Both parts of a torchvision data set, and the names of its classes.

    Parameters
    ----------
    kind : str
        Name of the class in ``torchvision.datasets``.
    place : str
        The folder it reads, inside the folder of data sets.

    Returns
    -------
    dict
        ``x_train`` and ``x_test``, uint8 ``(n, H, W, C)``; ``y_train`` and ``y_test``; ``names``.
    """
    root = folder or cache.home()
    files = cache.stamp(root / place)
    if not files and not download:
        raise missing(name, root / place)

    def decode() -> cache.Arrays:
        import torchvision

        arrays: cache.Arrays = {}
        try:
            for part in ("train", "test"):
                data = getattr(torchvision.datasets, kind)(
                    root, train=part == "train", download=download, **options
                )
                images = np.ascontiguousarray(data.data)  # CIFAR comes as a transposed view
                arrays[f"x_{part}"] = images if images.ndim == 4 else images[..., None]
                arrays[f"y_{part}"] = np.asarray(data.targets, dtype=np.int64)
                arrays["names"] = np.asarray(data.classes)
        except Exception as error:  # torchvision lets through whatever its parsers raise
            if download and not files:
                raise FedkdError(
                    f"data set {name!r} could not be downloaded to {root}: {first_line(error)}"
                ) from error
            raise broken(name, root / place, error) from error
        return arrays

    if not files:
        return decode()
    return cache.remembered("datasets", (kind, files, options), decode, BOTH_PARTS)


def dataset_of(
    name: str,
    arrays: cache.Arrays,
    class_names: tuple[str, ...] | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    """A data set from the arrays that ``by_torchvision`` gives."""
    import torch

    train, test = (
        Part(torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"]))
        for part in ("train", "test")
    )
    return Dataset(name, train, test, class_names or tuple(map(str, arrays["names"])), mean, std)


def part_of(images: np.ndarray, labels: np.ndarray, writers: np.ndarray | None = None) -> Part:
    """Samples, labels and writers as a :class:`Part`."""
    import torch

    return Part(
        torch.from_numpy(images),
        torch.from_numpy(labels),
        None if writers is None else torch.from_numpy(writers),
    )
