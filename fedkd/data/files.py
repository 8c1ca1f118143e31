"""A person's own data: one npz file, or a folder of images."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from fedkd.data.datasets import Dataset, Part, statistics
from fedkd.errors import FedkdError, MissingData, nearest

KEYS = ["x", "y", "x_test", "y_test", "writer"]
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


def find(path: str, folder: Path | None) -> Path:
    """``path`` as it stands, or else inside the folder of data sets."""
    place = Path(path).expanduser()
    if not place.exists() and folder is not None and (folder / place).exists():
        return folder / place
    return place


def npz(file: Path) -> Dataset:
    """Own data: ``x``, ``y`` and, where there are any, ``x_test``, ``y_test``, ``writer``.

    ``x`` is uint8 images ``(n, H, W)``, ``(n, H, W, C)`` or ``(n, C, H, W)``, float images of the
    same shapes, or float features ``(n, d)``; ``y`` is ``(n,)`` integers 0…C-1; ``writer`` is
    ``(n,)`` integers or strings, who each training sample is from.
    """
    import torch

    arrays = _read(file)
    images = _images(file, "x", arrays["x"])
    labels = _labels(file, "y", arrays["y"], len(images))
    counts = np.bincount(labels)
    if len(counts) < 2 or not counts.all():
        what = "holds one class only" if len(counts) < 2 else f"has no class {counts.argmin()}"
        raise _wrong(file, "y", f"{what}; allowed: labels 0…C-1, every class with samples")
    test = None
    if "x_test" in arrays or "y_test" in arrays:
        if not ("x_test" in arrays and "y_test" in arrays):
            raise _wrong(file, "x_test, y_test", "one is missing; allowed: both or neither")
        held_out = _images(file, "x_test", arrays["x_test"])
        if held_out.shape[1:] != images.shape[1:] or held_out.dtype != images.dtype:
            raise _wrong(
                file,
                "x_test",
                f"samples are {held_out.dtype} {held_out.shape[1:]}; "
                f"allowed: like those of x, {images.dtype} {images.shape[1:]}",
            )
        known = _labels(file, "y_test", arrays["y_test"], len(held_out), len(counts))
        test = Part(torch.from_numpy(held_out), torch.from_numpy(known))
    writers = None
    if "writer" in arrays:
        if arrays["writer"].shape != (len(images),) or arrays["writer"].dtype.kind not in "iuUS":
            raise _wrong(
                file,
                "writer",
                f"is {_shape(arrays['writer'])}; allowed: ({len(images)},) integers or strings",
            )
        writers = torch.from_numpy(np.unique(arrays["writer"], return_inverse=True)[1])
    train = Part(torch.from_numpy(images), torch.from_numpy(labels), writers)
    names = tuple(map(str, range(len(counts))))
    return Dataset(f"npz:{file}", train, test, names, *statistics(train.images))


def _read(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise MissingData(f"data set 'npz:{file}': there is no such file")
    try:
        stored = np.load(file)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it holds one bare array; use numpy.savez(file, x=..., y=...)")
        with stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FedkdError(f"data set 'npz:{file}' is not a readable npz file: {reason}") from error
    for key in arrays:
        if key not in KEYS:
            raise _wrong(file, key, f"is not a known key{nearest(key, KEYS)}; known: {KEYS}")
    for key in ("x", "y"):
        if key not in arrays:
            raise _wrong(file, key, "is missing; needed: x and y")
    return arrays


def _images(file: Path, key: str, x: np.ndarray) -> np.ndarray:
    """``x`` as ``(n, H, W, C)`` or ``(n, d)``, uint8 or float32."""
    channels_last = x.ndim == 4 and x.shape[3] in (1, 3)
    channels_first = x.ndim == 4 and x.shape[1] in (1, 3) and not channels_last
    images = x.ndim == 3 or channels_last or channels_first
    features = x.ndim == 2 and x.dtype.kind == "f"
    if (x.dtype != np.uint8 and x.dtype.kind != "f") or not (images or features) or not x.size:
        raise _wrong(
            file,
            key,
            f"is {_shape(x)}; allowed: uint8 or float images (n, H, W), (n, H, W, C) or "
            "(n, C, H, W) with C = 1 or 3, or float features (n, d)",
        )
    if x.dtype.kind == "f":
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            bad = int(np.argwhere(~np.isfinite(x.reshape(len(x), -1)).all(1))[0, 0])
            raise _wrong(
                file, key, f"holds NaN or infinity, first in sample {bad}; allowed: numbers"
            )
    if x.ndim == 3:
        x = x[..., None]
    if channels_first:
        x = x.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x)


def _labels(
    file: Path, key: str, y: np.ndarray, samples: int, classes: int | None = None
) -> np.ndarray:
    """``y`` as int64, checked to be labels from 0 to ``classes - 1``."""
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise _wrong(file, key, f"is {_shape(y)}; allowed: (n,) integers 0…C-1")
    if len(y) != samples:
        raise _wrong(file, key, f"has {len(y)} labels for {samples} samples; allowed: one each")
    low, high = int(y.min()), int(y.max())
    # A label beyond the number of samples leaves a gap for certain, and would make huge counts.
    if low < 0 or high >= (classes or samples):
        allowed = f"0…{classes - 1}" if classes else "0…C-1, every class with samples"
        raise _wrong(file, key, f"holds the label {low if low < 0 else high}; allowed: {allowed}")
    return y.astype(np.int64)


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _wrong(file: Path, key: str, what: str) -> FedkdError:
    return FedkdError(f"data set 'npz:{file}': {key} {what}")


def images(folder: Path) -> Dataset:
    """Own images, one folder a class: ``FOLDER/class/*.png``, or that in FOLDER/train and /test."""
    if not folder.is_dir():
        raise MissingData(f"data set 'folder:{folder}': there is no such folder")
    split = (folder / "train").is_dir() and (folder / "test").is_dir()
    train = _list(folder, folder / "train" if split else folder)
    test = _list(folder, folder / "test") if split else {}
    names = sorted(train)
    extra = sorted(set(test) - set(names))
    if extra:
        raise FedkdError(
            f"data set 'folder:{folder}': class {extra[0]!r} is in test but not in train"
        )
    if len(names) < 2:
        raise FedkdError(
            f"data set 'folder:{folder}': it has {len(names)} folder(s) of images; "
            "allowed: one a class, at least 2"
        )
    mode = _mode([file for part in (train, test) for files in part.values() for file in files])
    parts = [_decode(folder, part, names, mode) for part in (train, test) if part]
    if len({part.images.shape[1:] for part in parts}) > 1:
        sizes = ", ".join(f"{part.images.shape[2]}x{part.images.shape[1]}" for part in parts)
        raise FedkdError(
            f"data set 'folder:{folder}': train and test images are {sizes}; allowed: one size"
        )
    held_out = parts[1] if test else None
    return Dataset(
        f"folder:{folder}", parts[0], held_out, tuple(names), *statistics(parts[0].images)
    )


def _list(folder: Path, root: Path) -> dict[str, list[Path]]:
    """Image files by class."""
    listed: dict[str, list[Path]] = {}
    for place in sorted(path for path in root.iterdir() if path.is_dir()):
        listed[place.name] = sorted(
            file for file in place.rglob("*") if file.suffix.lower() in IMAGES
        )
        if not listed[place.name]:
            raise FedkdError(
                f"data set 'folder:{folder}': {place} holds no images ({', '.join(sorted(IMAGES))})"
            )
    return listed


def _mode(files: list[Path]) -> str:
    """Pillow's ``L`` when every image is grey, else ``RGB``."""
    from PIL import Image

    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode not in ("1", "L"):
                    return "RGB"
        except (OSError, SyntaxError) as error:
            raise FedkdError(f"{file} is not a readable image") from error
    return "L"


def _decode(folder: Path, listed: dict[str, list[Path]], names: list[str], mode: str) -> Part:
    """All images of one part, which must share their size."""
    import torch
    from PIL import Image

    pixels: list[np.ndarray] = []
    labels: list[int] = []
    first: Path | None = None
    for name, files in listed.items():
        for file in files:
            try:
                with Image.open(file) as image:
                    array = np.asarray(image.convert(mode))
            except (OSError, SyntaxError) as error:
                raise FedkdError(f"{file} is not a readable image") from error
            first = first or file
            if pixels and array.shape != pixels[0].shape:
                raise FedkdError(
                    f"data set 'folder:{folder}': images must share one size; {first} is "
                    f"{pixels[0].shape[1]}x{pixels[0].shape[0]}, {file} is "
                    f"{array.shape[1]}x{array.shape[0]}"
                )
            pixels.append(array)
            labels.append(names.index(name))
    stacked = np.stack(pixels)
    stacked = stacked if stacked.ndim == 4 else stacked[..., None]
    return Part(torch.from_numpy(stacked), torch.tensor(labels, dtype=torch.int64))
