"""Data sets by name: a loader each, found through the registry, or a path to own data.

A loader is a function ``(folder, download) -> Dataset or Corpus``. ``folder`` is where data sets
lie, or None when nobody said; ``download`` is whether a missing one may be fetched.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fedkd import registry
from fedkd.data.dataset import Corpus, Dataset
from fedkd.data.reading import is_file, is_folder
from fedkd.data.sources import folders, npz, texts
from fedkd.data.sources.faults import first_line
from fedkd.errors import FedkdError, MissingData

Loader = Callable[[Path | None, bool], Dataset | Corpus]


def load_dataset(
    name: str, folder: Path | None, download: bool, labelled: bool = True
) -> Dataset | Corpus:
    """The data set called ``name``: samples, or texts.

    Parameters
    ----------
    name : str
        A name of ``fedkd list datasets``, or ``npz:FILE``, ``folder:FOLDER``, ``text:PATH`` or
        ``jsonl:FILE``.
    folder : Path or None
        Where data sets lie.
    download : bool
        Whether a data set that is not there may be fetched.
    labelled : bool
        Whether labels are needed. Without, own data may have none, and what there is of them is
        not read: all labels are -1.

    Raises
    ------
    FedkdError
        If there is no such data set, it is not there, or its files are broken.
    """
    kind, colon, path = name.partition(":")
    if not colon:
        loader: Loader = registry.load("datasets", name)
        return _checked(name, loader, folder, download, labelled)
    own: dict[str, Callable[[Path], Dataset | Corpus]] = {
        "npz": partial(npz.npz, labelled=labelled),
        "folder": partial(folders.images, labelled=labelled),
        **texts.OWN,
    }
    if kind not in own or not path:
        raise FedkdError(
            f"data set {name!r} is not allowed: own data is npz:FILE, folder:FOLDER, text:PATH or "
            f"jsonl:FILE, everything else a name of: {', '.join(registry.names('datasets'))}"
        )
    return own[kind](find(path, folder))


def find(path: str, folder: Path | None) -> Path:
    """``path`` as it stands, or else inside the folder of data sets."""
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        raise MissingData(f"data set {path!r}: there is no such home folder") from None
    if not (is_file(place) or is_folder(place)) and folder is not None:
        inside = folder / place
        return inside if is_file(inside) or is_folder(inside) else place
    return place


def _checked(
    name: str, loader: Loader, folder: Path | None, download: bool, labelled: bool
) -> Dataset | Corpus:
    """What ``loader`` gives, which anybody may have written."""
    try:
        data = loader(folder, download)
    except FedkdError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        file = loader.__code__.co_filename if hasattr(loader, "__code__") else ""
        frame = [*frames[-1:], *(frame for frame in frames if frame.filename == file)][-1]
        raise FedkdError(
            f"data set {name!r} cannot be loaded: {type(error).__name__}: {first_line(error)} "
            f"({frame.filename}, line {frame.lineno})"
        ) from error
    if isinstance(data, Corpus):
        return texts.checked(data)
    if not isinstance(data, Dataset):
        raise FedkdError(
            f"data set {name!r}: its loader returned a {type(data).__name__}; allowed: "
            "fedkd.data.dataset.Dataset, fedkd.data.dataset.Corpus"
        )
    if fault := _fault(data, labelled):
        raise FedkdError(f"data set {name!r}: {fault}")
    return data


def _fault(data: Dataset, labelled: bool) -> str:
    """What is wrong with a data set, or nothing."""
    import torch

    first = data.train.images
    for name, part in (("train", data.train), ("test", data.test)):
        if part is None:
            continue
        images, labels, count = part.images, part.labels, len(part.images)
        known = images.dtype == torch.uint8 and images.dim() == 4
        if not known and not (images.is_floating_point() and images.dim() in (2, 4)):
            return (
                f"{name}.images is {images.dtype} {tuple(images.shape)}; allowed: uint8 or float "
                "(n, H, W, C), float (n, d)"
            )
        if not images.numel():
            return f"{name}.images is empty"
        if images.shape[1:] != first.shape[1:] or known != (first.dtype == torch.uint8):
            return f"test.images is {images.dtype} {tuple(images.shape[1:])}, unlike train.images"
        if images.is_floating_point():
            low, high = map(float, images.aminmax())
            if not math.isfinite(low) or not math.isfinite(high):
                return f"{name}.images holds NaN or infinity"
            if data.unit and (low < 0 or high > 1):
                return f"{name}.images goes from {low:g} to {high:g}; with unit = True: 0 to 1"
        if labels.dtype != torch.int64 or labels.shape != (count,):
            return (
                f"{name}.labels is {labels.dtype} {tuple(labels.shape)}; allowed: int64 ({count},)"
            )
        low, high = map(int, labels.aminmax())
        if (low < 0 or high >= len(data.class_names)) and (labelled or high >= 0):
            return (
                f"{name}.labels goes from {low} to {high}; allowed: 0 to "
                f"{len(data.class_names) - 1}, as there are {len(data.class_names)} class_names"
            )
        if part.writers is not None and part.writers.shape != (count,):
            return f"{name}.writers is {tuple(part.writers.shape)}; allowed: ({count},)"
    if len(data.mean) != len(data.std) or len(data.mean) not in (0, first.shape[-1]):
        return (
            f"mean and std have {len(data.mean)} and {len(data.std)} numbers; allowed: "
            f"{first.shape[-1]} each, or none"
        )
    if not all(map(math.isfinite, data.mean)) or not all(0 < std < math.inf for std in data.std):
        return "mean must be finite, and std finite and above 0"
    return ""
