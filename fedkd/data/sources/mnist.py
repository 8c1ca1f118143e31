"""MNIST and what has its format: Fashion-MNIST and EMNIST."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.sources.decoded import by_torchvision, dataset_of
from fedkd.data.sources.digits import DIGITS


def mnist(folder: Path | None, download: bool) -> Dataset:
    """Handwritten digits: 60,000 + 10,000 grey images of 28x28 (LeCun et al. 1998)."""
    arrays = by_torchvision("mnist", "MNIST", "MNIST/raw", folder, download)
    return dataset_of("mnist", arrays, DIGITS, (0.1307,), (0.3081,))


def fashion_mnist(folder: Path | None, download: bool) -> Dataset:
    """Clothes in 10 classes: 60,000 + 10,000 grey images of 28x28 (Xiao et al. 2017)."""
    arrays = by_torchvision("fashion-mnist", "FashionMNIST", "FashionMNIST/raw", folder, download)
    return dataset_of("fashion-mnist", arrays, None, (0.2860,), (0.3530,))


def emnist(folder: Path | None, download: bool) -> Dataset:
    """Handwritten digits and letters, 47 balanced classes, grey, 28x28 (Cohen et al. 2017)."""
    arrays = by_torchvision("emnist", "EMNIST", "EMNIST/raw", folder, download, split="balanced")
    for key in ("x_train", "x_test"):  # the files hold every image on its side
        arrays[key] = np.ascontiguousarray(arrays[key].transpose(0, 2, 1, 3))
    return dataset_of("emnist", arrays, None, (0.1751,), (0.3332,))
