"""MNIST by writer, with QMNIST's table."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedkd.data import cache
from fedkd.data.dataset import Dataset
from fedkd.data.sources.faults import broken, missing
from fedkd.data.sources.mnist import mnist
from fedkd.errors import FedkdError
from fedkd.folder import opened

QMNIST_LABELS = "qmnist-train-labels-idx2-int"
QMNIST_LARGEST = 2**23
"""Bytes; the table of 60,000 rows has under two million."""


def mnist_by_writer(folder: Path | None, download: bool) -> Dataset:
    """MNIST with the writer of every training image: 539 people (QMNIST, Yadav & Bottou 2019)."""
    import torch

    data = mnist(folder, download)
    table, file = _qmnist_labels(folder or cache.home(), download)
    if not np.array_equal(table[:, 0], data.train.labels.numpy()):
        raise FedkdError(
            f"data set 'mnist-by-writer': the classes in {file} are not those of MNIST's training "
            "part in their order, so its writers cannot be either"
        )
    writers = torch.from_numpy(table[:, 2].astype(np.int64))
    return replace(data, name="mnist-by-writer", train=replace(data.train, writers=writers))


def _qmnist_labels(root: Path, download: bool) -> tuple[np.ndarray, Path]:
    """QMNIST's table of training labels ``(60000, 8)``, and the file it is from."""
    places = [root / "QMNIST", root / "QMNIST" / "raw"]
    names = [QMNIST_LABELS, f"{QMNIST_LABELS}.gz"]
    found = [place / name for place in places for name in names if (place / name).is_file()]
    if not found and download:
        from torchvision.datasets import QMNIST

        try:
            QMNIST(root, what="train", compat=False, download=True)
        except Exception as error:  # torchvision lets through whatever its parsers raise
            raise FedkdError(
                f"data set 'mnist-by-writer' could not be downloaded to {root}: {error}"
            ) from error
        found = [places[1] / QMNIST_LABELS]
    if not found:
        raise missing("mnist-by-writer", places[0] / names[1])
    file = found[0]
    try:
        with opened(file) as stream:
            unpacked = gzip.GzipFile(fileobj=stream) if file.suffix == ".gz" else stream
            content = unpacked.read(QMNIST_LARGEST + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise broken("mnist-by-writer", file, error) from error
    # idx: two zero bytes, 0x0c for int32, the number of axes, the length of each; then the values.
    if content[:4] != b"\x00\x00\x0c\x02" or len(content) < 12:
        raise broken("mnist-by-writer", file, "it does not begin as an idx2-int file does")
    rows, columns = np.frombuffer(content, ">i4", count=2, offset=4).tolist()
    if columns != 8 or len(content) != 12 + 4 * rows * columns:
        raise broken("mnist-by-writer", file, f"not the {rows} rows of 8 columns it should hold")
    return np.frombuffer(content, ">i4", offset=12).reshape(rows, columns), file
