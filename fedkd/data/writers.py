"""Data sets whose samples name their writer: real clients for the ``natural`` partition."""

from __future__ import annotations

import gzip
import json
import string
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedkd.data import cache
from fedkd.data.datasets import DIGITS, Dataset, Part, broken, missing, mnist, statistics
from fedkd.errors import FedkdError

if TYPE_CHECKING:
    from torch import Tensor

QMNIST_LABELS = "qmnist-train-labels-idx2-int"
CHARACTERS = tuple(DIGITS) + tuple(string.ascii_uppercase) + tuple(string.ascii_lowercase)


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
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise broken("mnist-by-writer", file, error) from error
    # idx: two zero bytes, 0x0c for int32, the number of axes, the length of each; then the values.
    if content[:4] != b"\x00\x00\x0c\x02" or len(content) < 12:
        raise broken("mnist-by-writer", file, "it does not begin as an idx2-int file does")
    rows, columns = np.frombuffer(content, ">i4", count=2, offset=4)
    if columns != 8 or len(content) != 12 + 4 * rows * columns:
        raise broken("mnist-by-writer", file, f"not the {rows} rows of 8 columns it should hold")
    return np.frombuffer(content, ">i4", offset=12).reshape(rows, columns), file


def femnist(folder: Path | None, download: bool) -> Dataset:
    """Handwritten characters by writer, 62 classes, grey, 28x28 (LEAF, Caldas et al. 2018)."""
    import torch

    root = (folder or cache.home()) / "FEMNIST"
    packed = sorted(root.glob("*.npz"))
    if packed:
        arrays = _packed(packed[0])
    elif any(root.glob("*.json")) or any(root.glob("train/*.json")):
        arrays = cache.remembered("datasets", ("LEAF", cache.stamp(root)), lambda: _leaf(root))
    else:
        raise missing("femnist", root, downloadable=False)

    def part(name: str) -> Part | None:
        if f"x_{name}" not in arrays:
            return None
        x, y, writer = (arrays[f"{kind}_{name}"] for kind in ("x", "y", "writer"))
        images: Tensor = torch.from_numpy(np.ascontiguousarray(x)).unsqueeze(-1)
        return Part(images, _int64(y), _int64(writer))

    train = part("train")
    assert train is not None
    return Dataset("femnist", train, part("test"), CHARACTERS, *statistics(train.images))


def _int64(values: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(values.astype(np.int64))


def _packed(file: Path) -> cache.Arrays:
    """FEMNIST from one npz file: x, y and writer of both parts."""
    keys = [f"{kind}_{part}" for part in ("train", "test") for kind in ("x", "y", "writer")]
    try:
        with np.load(file) as stored:
            arrays = {key: stored[key] for key in keys if key in stored}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise broken("femnist", file, error) from error
    for part in ("train", "test"):
        present = [key for key in keys if key.endswith(part) and key in arrays]
        if part == "test" and not present:
            continue
        if len(present) < 3:
            raise broken("femnist", file, f"its keys must be {', '.join(keys)}")
        _check(arrays, part, file)
    return arrays


def _leaf(root: Path) -> cache.Arrays:
    """FEMNIST from LEAF's JSON files: ``root/*.json``, or ``root/{train,test}/*.json``."""
    split = (root / "train").is_dir()
    places = {"train": root / "train", "test": root / "test"} if split else {"train": root}
    numbers: dict[str, int] = {}
    arrays: cache.Arrays = {}
    for part, place in places.items():
        files = sorted(place.glob("*.json"))
        images, labels, writers = [], [], []
        for file in files:
            try:
                content = json.loads(file.read_text())
                for user in content["users"]:
                    data = content["user_data"][user]
                    pixels = np.asarray(data["x"], dtype=np.float32).reshape(-1, 28, 28)
                    images.append((pixels * 255).round().clip(0, 255).astype(np.uint8))
                    labels.append(np.asarray(data["y"], dtype=np.int64))
                    number = numbers.setdefault(user, len(numbers))
                    writers.append(np.full(len(pixels), number, dtype=np.int64))
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = "it must hold users and user_data with x (lists of 784 numbers) and y"
                raise broken("femnist", file, reason) from error
        if images:
            arrays[f"x_{part}"] = np.concatenate(images)
            arrays[f"y_{part}"] = np.concatenate(labels)
            arrays[f"writer_{part}"] = np.concatenate(writers)
            _check(arrays, part, place)
    if "x_train" not in arrays:
        raise broken("femnist", places["train"], "no samples in its JSON files")
    return arrays


def _check(arrays: cache.Arrays, part: str, where: Path) -> None:
    x, y, writer = (arrays[f"{kind}_{part}"] for kind in ("x", "y", "writer"))
    if x.ndim != 3 or x.dtype != np.uint8 or y.shape != (len(x),) or writer.shape != (len(x),):
        raise broken("femnist", where, f"x_{part} must be uint8 (n, H, W), y and writer (n,)")
    if not len(x) or y.min() < 0 or y.max() >= len(CHARACTERS):
        raise broken("femnist", where, f"y_{part} must be labels from 0 to {len(CHARACTERS) - 1}")
