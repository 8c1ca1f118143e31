"""The digits of scikit-learn."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from fedkd.data.dataset import Dataset, Part
from fedkd.errors import FedkdError

DIGITS = tuple("0123456789")


def digits(folder: Path | None, download: bool) -> Dataset:
    """Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8; no download."""
    import torch

    pixels, labels = _digits()
    images = torch.from_numpy((pixels * 255 / 16).round().astype(np.uint8)).view(-1, 8, 8, 1)
    train = Part(images, torch.from_numpy(labels.astype(np.int64)))
    return Dataset("digits", train, None, DIGITS, (0.30530871850687963,), (0.3758859119653463,))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(1797, 64)`` from 0 to 16 and labels ``(1797,)``."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise FedkdError("data set 'digits' comes with scikit-learn: pip install scikit-learn")
    # Importing scikit-learn takes longer than everything else here together.
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(gzip.decompress(file.read_bytes()).decode().splitlines(), delimiter=",")
        return table[:, :64], table[:, 64]
    except (OSError, ValueError):
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.data, bunch.target
