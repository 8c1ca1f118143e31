"""FEMNIST, as one npz file or as LEAF writes it, by writer."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedkd.data import cache
from fedkd.data.dataset import Dataset, Part
from fedkd.data.reading import content, decoded, hidden, npz_arrays, parsed, shortened
from fedkd.data.sources.decoded import DECODING
from fedkd.data.sources.digits import DIGITS
from fedkd.data.sources.faults import broken, missing
from fedkd.errors import FedkdError

if TYPE_CHECKING:
    from torch import Tensor

JSON_IN_MEMORY = 8
"""Times its size that JSON of numbers takes in memory."""
CHARACTERS = tuple(DIGITS) + tuple(string.ascii_uppercase) + tuple(string.ascii_lowercase)


def femnist(folder: Path | None, download: bool) -> Dataset:
    """Handwritten characters by writer, 62 classes, grey, 28x28 (LEAF, Caldas et al. 2018).

    LEAF makes its files anew for everybody, with other writers in them. What images are normalised
    by is the same whichever they are: the mean and standard deviation of the training part of 105
    writers, 14,708 images.
    """
    import torch

    root = (folder or cache.home()) / "FEMNIST"
    packed = sorted(root.glob("*.npz"))
    if packed:
        arrays = _packed(packed[0])
    elif any(root.glob("*.json")) or any(root.glob("train/*.json")):
        key = ("LEAF", DECODING, cache.stamp(root))
        whole = cache.holds("x_train", "y_train", "writer_train")
        arrays = cache.remembered("datasets", key, lambda: _leaf(root), whole)
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
    mean, std = (0.9611606061380222,), (0.16556138360990336,)
    return Dataset("femnist", train, part("test"), CHARACTERS, mean, std)


def _int64(values: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(values.astype(np.int64))


def _packed(file: Path) -> cache.Arrays:
    """FEMNIST from one npz file: x, y and writer of both parts."""
    keys = [f"{kind}_{part}" for part in ("train", "test") for kind in ("x", "y", "writer")]
    try:
        arrays = npz_arrays(file, keys)
    except (OSError, ValueError) as error:
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
        images, labels, writers = [], [], []
        users: set[str] = set()
        for file in sorted(file for file in place.glob("*.json") if not hidden(file.name)):
            for user, pixels, classes in _leaf_users(file):
                if user in users:
                    raise broken("femnist", file, f"user {user!r} is there twice")
                users.add(user)
                images.append(pixels)
                labels.append(classes)
                number = numbers.setdefault(user, len(numbers))
                writers.append(np.full(len(pixels), number, dtype=np.int64))
        if images:
            arrays[f"x_{part}"] = np.concatenate(images)
            arrays[f"y_{part}"] = np.concatenate(labels)
            arrays[f"writer_{part}"] = np.concatenate(writers)
            _check(arrays, part, place)
    if "x_train" not in arrays:
        raise broken("femnist", places["train"], "no samples in its JSON files")
    return arrays


def _leaf_users(file: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, images ``(n, 28, 28)`` uint8 and labels ``(n,)`` of each user in one of LEAF's files.

    Raises
    ------
    FedkdError
        The file is not as LEAF writes it; the line names the user.
    """

    def wrong(reason: object) -> FedkdError:
        return broken("femnist", file, reason)

    try:
        document = parsed(decoded(content(file, factor=JSON_IN_MEMORY)))
    except (OSError, ValueError) as error:
        raise wrong(error) from error
    table = document if isinstance(document, dict) else {}
    users, held, counts = (table.get(key) for key in ("users", "user_data", "num_samples"))
    if not isinstance(users, list) or not isinstance(held, dict):
        raise wrong("it must hold users and user_data with x (lists of 784 numbers) and y")
    if not all(isinstance(user, str) for user in users):
        raise wrong("users must be strings")
    if len(set(users)) < len(users):
        twice = next(user for user in users if users.count(user) > 1)
        raise wrong(f"user {twice!r} is there twice")
    if unlisted := held.keys() - set(users):
        raise wrong(f"user {min(unlisted)!r} is in user_data but not in users")
    if counts is not None and (not isinstance(counts, list) or len(counts) != len(users)):
        raise wrong(f"num_samples must hold a number for each of the {len(users)} users")
    for place, user in enumerate(users):
        data = held.get(user)
        if not isinstance(data, dict) or not {"x", "y"} <= data.keys():
            raise wrong(f"user {user!r} has no x and y in user_data")
        x, y = data["x"], data["y"]
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            sizes = " and ".join(str(len(one)) if isinstance(one, list) else "no" for one in (x, y))
            raise wrong(f"user {user!r} has {sizes} entries in x and y; allowed: as many of each")
        if counts is not None and counts[place] != len(y):
            count = shortened(counts[place])
            raise wrong(f"user {user!r} has {len(y)} samples, and num_samples says {count}")
        most = len(CHARACTERS) - 1
        for label in y:
            number = isinstance(label, int | float) and not isinstance(label, bool)
            if not number or label != label // 1 or not 0 <= label <= most:
                raise wrong(
                    f"user {user!r} has the label {shortened(label)}; allowed: integers 0 to {most}"
                )
        yield user, _leaf_pixels(x, user, wrong), np.array(y, dtype=np.int64)


def _leaf_pixels(x: list[object], user: str, wrong: Callable[[object], FedkdError]) -> np.ndarray:
    """Images ``(n, 28, 28)`` uint8 of lists of 784 numbers from 0 to 1."""
    try:
        pixels = np.asarray(x, dtype=np.float32).reshape(len(x), 28, 28)
    except (ValueError, TypeError, OverflowError):
        raise wrong(f"user {user!r}: x must be lists of 784 numbers") from None
    if not ((pixels >= 0) & (pixels <= 1)).all():
        bad = pixels[~((pixels >= 0) & (pixels <= 1))][0]
        raise wrong(f"user {user!r}: x holds {bad:g}; allowed: numbers from 0 to 1")
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)


def _check(arrays: cache.Arrays, part: str, where: Path) -> None:
    x, y, writer = (arrays[f"{kind}_{part}"] for kind in ("x", "y", "writer"))
    whole = y.dtype.kind in "iu" and writer.dtype.kind in "iu"
    alike = x.shape[:1] == y.shape == writer.shape
    if x.ndim != 3 or x.dtype != np.uint8 or not whole or not alike:
        raise broken(
            "femnist", where, f"x_{part} must be uint8 (n, H, W), y and writer integers (n,)"
        )
    if not len(x) or y.min() < 0 or y.max() >= len(CHARACTERS):
        raise broken("femnist", where, f"y_{part} must be labels from 0 to {len(CHARACTERS) - 1}")
