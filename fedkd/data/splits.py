"""What is held out for tests, and what each client holds."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedkd import registry
from fedkd.data import cache, partitions
from fedkd.data.dataset import Dataset, Part
from fedkd.data.partitions import partition, stratified
from fedkd.errors import FedkdError
from fedkd.experiment import DataTable
from fedkd.random import key

NOT_OF_PARTITIONS = {"dataset", "data_dir", "download", "augment", "statistics"}
NOT_OF_PARTITIONS |= {"server_validation"}
"""Keys of ``[data]`` that no partition depends on."""


def split_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Draws for one purpose in sharing out the data."""
    return np.random.default_rng(key(seed, "data", *purpose))


def common_test(
    store: Part, rest: np.ndarray, from_train: bool, table: DataTable, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the common test set in its store, and the rows of the training part that are left.

    A data set without a test part gives at most a quarter of what it has left, and of no class more
    than half.
    """
    most = table.test.common
    if not most:
        return rest[:0], rest
    rows = rest if from_train else np.arange(len(store))
    labels = store.labels.numpy()[rows]
    present, counts = np.unique(labels, return_counts=True)
    each = min(most // len(present), counts.min())
    if from_train:
        each = min(each, len(rows) // 4 // len(present), counts.min() // 2)
    if not each:
        raise FedkdError(
            f"data.test.common = {most} cannot hold one sample of each of {len(present)} classes "
            f"out of {len(rows)} samples (the rarest class has {counts.min()}): change it, or set "
            "it to 0 for no common test set"
        )
    rng = split_generator(seed, "common")
    common = np.concatenate(
        [rows[rng.choice(np.flatnonzero(labels == y), each, replace=False)] for y in present]
    )
    return common, np.setdiff1d(rest, common) if from_train else rest


def common_test_rows(
    labels: np.ndarray, rest: np.ndarray, table: DataTable, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of text in the common test set, and the rows that are left.

    There are too many keys for as many rows of each: every key has its share of rows, to within
    one, in at most a quarter of what there is.
    """
    count = min(table.test.common, len(rest) // 4)
    if table.test.common and not count:
        raise FedkdError(
            f"data.test.common = {table.test.common} cannot hold a quarter of {len(rest)} rows of "
            "text: there are too few; set it to 0 for no common test set"
        )
    return hold_out(rest, labels, count, split_generator(seed, "common"))[::-1]


def server_validation(
    labels: np.ndarray, rest: np.ndarray, table: DataTable, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that the server validates on, each class with its share, and the rows that are left.

    Raises
    ------
    FedkdError
        They are more than a quarter of what there is.
    """
    count = table.server_validation
    if not count:
        return rest[:0], rest
    if count > len(rest) // 4:
        raise FedkdError(
            f"data.server_validation = {count} is more than a quarter of the {len(rest)} samples "
            "that are left for clients"
        )
    return hold_out(rest, labels, count, split_generator(seed, "server validation"))[::-1]


def partition_rows(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """``partition``, kept on disk: Flower Datasets alone takes 2 s to import.

    One of somebody's own, whose source nobody knows in full, is made anew each time.
    """
    if not registry.ships(registry.load("partitions", table.partition)):
        return partition(labels, writers, table, seed)

    def digest(content: bytes) -> str:
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def make() -> cache.Arrays:
        parts = partition(labels, writers, table, seed)
        return {"rows": np.concatenate(parts), "sizes": np.array([len(rows) for rows in parts])}

    depends_on = (
        digest(labels.tobytes()),
        None if writers is None else digest(writers.tobytes()),
        sorted(table.model_dump(exclude=NOT_OF_PARTITIONS).items()),
        seed,
        digest(Path(partitions.__file__).read_bytes()),
        [version(package) for package in ("flwr-datasets", "numpy")],
    )

    def fits(kept: cache.Arrays) -> bool:
        rows, sizes = kept["rows"], kept["sizes"]
        once = np.bincount(rows, minlength=len(labels))
        return len(once) == len(labels) and once.max() <= 1 and sizes.sum() == len(rows)

    kept = cache.remembered("partitions", depends_on, make, fits)
    return np.split(kept["rows"], kept["sizes"].cumsum()[:-1])


def hold_out(
    rows: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """``rows`` without ``count`` of them, and these, both with the label distribution of all."""
    held = np.zeros(len(rows), dtype=bool)
    held[stratified(labels[rows], count, rng)] = True
    return rows[~held], rows[held]


def test_part_of(dataset: Dataset) -> Part:
    """The test part of ``dataset``.

    Raises
    ------
    FedkdError
        It has none.
    """
    if dataset.test is None:
        raise FedkdError(
            f"data.test.own = 'matched' needs a data set with a test part, and {dataset.name!r} "
            "has none: set it to 'split'"
        )
    return dataset.test


def matched_tests(
    test: Part, common: np.ndarray, trained: list[np.ndarray], table: DataTable, seed: int
) -> list[np.ndarray]:
    """Own test rows of each client in the test part, none of them in the common test set.

    A client whose classes are too rare there gets fewer, so that the distribution stays its own.
    """
    labels = test.labels.numpy()
    free = np.setdiff1d(np.arange(len(test)), common)
    classes = max(int(y.max()) for y in [labels, *trained]) + 1
    pools = [free[labels[free] == y] for y in range(classes)]
    there = np.array([len(pool) for pool in pools])
    matched = []
    for client, own in enumerate(trained):
        rng = split_generator(seed, "own", client)
        count = max(1, round(len(own) * table.test.fraction / (1 - table.test.fraction)))
        shares = np.bincount(own, minlength=classes) / len(own)
        fits = np.floor(there[shares > 0] / shares[shares > 0]).min()
        if fits < 1:
            short = int(np.flatnonzero((shares > 0) & (there < shares))[0])
            raise FedkdError(
                f"data.test.own = 'matched' cannot be met: outside the common test set the test "
                f"part has no sample of class {short}, which client {client} trains on; lower "
                f"data.test.common ({table.test.common}) or set data.test.own = 'split'"
            )
        like = own[stratified(own, int(min(count, fits)), rng)]
        wanted = np.minimum(np.bincount(like, minlength=classes), there)
        matched.append(
            np.concatenate(
                [rng.choice(pool, n, replace=False) for pool, n in zip(pools, wanted, strict=True)]
            )
        )
    return matched


def check_disjoint(
    samples: int, transfer: np.ndarray, common: np.ndarray, parts: list[np.ndarray]
) -> None:
    """See to it that no sample is in two of transfer set, common test set and clients."""
    taken = np.bincount(np.concatenate([transfer, common, *parts]), minlength=samples)
    assert taken.max() <= 1, "a sample is in two of transfer set, common test set and clients"
