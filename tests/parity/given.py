"""Partitions in HtFLlib's and PFLlib's layout: ``train/N.npz``, ``test/N.npz``, ``config.json``.

An npz file of theirs holds one array of objects, ``data``: a pickled dictionary of ``x``, samples
``(n, C, H, W)`` or ``(n, d)``, and ``y``, labels ``(n,)``. Pickles can run code, so what is read
here is made of numpy arrays and plain containers; whatever else a file asks for is refused.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.data.dataset import Part, Task
from fedkd.data.federated import FederatedData, Rows
from fedkd.data.normalisation import Statistics
from fedkd.data.reading import check_room
from fedkd.errors import FedkdError

ALLOWED = {
    (module, name)
    for core in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{core}.multiarray", "_reconstruct"),
        (f"{core}.multiarray", "scalar"),
        (f"{core}.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )
}
"""All that a pickled array of numbers is made of."""


class _OnlyArrays(pickle.Unpickler):
    """Gives a pickle nothing to call but what makes numpy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return super().find_class(module, name)


def samples(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Samples, float32 with channels last where they have any, and labels ``(n,)`` of one file.

    Raises
    ------
    FedkdError
        The file cannot be read, asks for anything but arrays, or holds no samples with labels.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            member = archive.getinfo("data.npy")
            check_room(member.file_size, file.stat().st_size)
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read(stream)
                if shape != () or not dtype.hasobject:
                    raise ValueError(f"data is {dtype} {shape}, and no dictionary")
                held = _OnlyArrays(stream).load()
        # numpy pickles an array of one object as that array, which holds the dictionary.
        held = held.item() if isinstance(held, np.ndarray) else held
        x, y = (np.asarray(held[key]) for key in "xy")
    except Exception as error:  # a broken pickle raises whatever it meets first
        raise FedkdError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(x) != len(y) or not len(y):
        raise FedkdError(
            f"{file}: x is {x.dtype} {x.shape}, y {y.dtype} {y.shape}; needed: samples"
            " and as many labels, integers"
        )
    if x.dtype.kind not in "iuf" or x.ndim not in (2, 4):
        raise FedkdError(f"{file}: x is {x.dtype} {x.shape}; allowed: images (n, C, H, W), (n, d)")
    x = np.moveaxis(x, 1, -1) if x.ndim == 4 else x
    return np.ascontiguousarray(x, dtype=np.float32), y.astype(np.int64)


def load(folder: Path) -> FederatedData:
    """The clients' data as it lies in ``folder``: given training and own test samples, no others.

    Samples stay as they are: those that made the files have normalised them.

    Raises
    ------
    FedkdError
        A file is missing or cannot be read, or clients' samples are not of one shape.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        clients, classes = int(config["num_clients"]), int(config["num_classes"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FedkdError(
            f"{folder}/config.json does not say num_clients and num_classes: {error}"
        ) from error
    stores, rows = [], []
    for part in ("train", "test"):
        files = [samples(folder / part / f"{client}.npz") for client in range(clients)]
        for client, (x, y) in enumerate(files):
            if x.shape[1:] != files[0][0].shape[1:] or y.min() < 0 or y.max() >= classes:
                raise FedkdError(
                    f"{folder}/{part}/{client}.npz: samples of {x.shape[1:]}, labels {y.min()} to "
                    f"{y.max()}; needed: {files[0][0].shape[1:]}, 0 to {classes - 1}"
                )
        images = torch.from_numpy(np.concatenate([x for x, _ in files]))
        stores.append(Part(images, torch.from_numpy(np.concatenate([y for _, y in files]))))
        rows.append(torch.arange(len(images)).split([len(y) for _, y in files]))
    train, test = stores
    sample = tuple(train.images.shape[1:])
    if sample != tuple(test.images.shape[1:]):
        raise FedkdError(f"{folder}: training samples are {sample}, test samples are others")
    shape = (sample[2], sample[0], sample[1]) if len(sample) == 3 else sample
    none, channels = torch.arange(0), sample[-1]
    mean, std = (0.0,) * channels, (1.0,) * channels
    untouched = Statistics("constants", "none: samples are as in the files", mean, std)
    return FederatedData(
        Task(shape, classes, tuple(map(str, range(classes)))),
        untouched,
        private=[Rows(train, each) for each in rows[0]],
        validation=[Rows(train, none)] * clients,
        own=[Rows(test, each) for each in rows[1]],
        common=Rows(test, none),
        transfer=train.images[:0],
    )
