"""A person's own samples in one npz file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedkd.data.dataset import PIECE, Dataset
from fedkd.data.normalisation import apart, span
from fedkd.data.reading import (
    is_file,
    npz_arrays,
    npz_names,
)
from fedkd.data.sources.decoded import part_of
from fedkd.errors import FedkdError, MissingData, nearest

KEYS = [
    *("x", "y", "x_test", "y_test", "writer"),
    *("x_range", "x_channels", "x_mean", "x_std"),
]
LARGEST = 1e300
"""Beyond it, the sum of a few numbers could be infinite."""
ROUNDING = 1e-6
"""How far beyond black and white, as a share of their distance, rounding may lead."""
DARK = 16
"""Uint8 images that go no further are hardly of 0…255."""


def npz(file: Path, labelled: bool = True) -> Dataset:
    """Own data: ``x``, ``y`` and, where there are any, ``x_test``, ``y_test``, ``writer``.

    ``x`` is images ``(n, H, W)``, ``(n, H, W, C)`` or ``(n, C, H, W)``, uint8 or float; or float
    features ``(n, d)``. ``y`` is ``(n,)`` integers 0…C-1; ``writer`` is ``(n,)`` integers or
    strings, who each training sample is from. What cannot be seen in the arrays, the file may say:

    - ``x_range``, two numbers: black and white of float (or wider integer) images, which can then
      be compared with other pictures;
    - ``x_channels``, ``"first"``, ``"last"`` or ``"none"``: where the channels of images are. In
      ``(n, C, T)`` or ``(n, T, C)`` they are those of windows of a series;
    - ``x_mean`` and ``x_std``, one number or one a channel or feature: what samples are normalised
      by, published with the data set. Those of images with a known range are of 0…1.

    Parameters
    ----------
    file : Path
        The file.
    labelled : bool
        Whether there must be ``y``; without, ``x`` and what is said of it are all that is read.
    """
    arrays = _read(file, labelled)
    declared = _range(file, arrays)
    layout = _layout(file, arrays)
    images = _images(file, "x", arrays["x"], declared, layout)
    bounded = declared is not None or images.dtype == np.uint8
    mean, std = _published(file, arrays, images.shape[-1], bounded)
    unit = declared is not None and images.dtype != np.uint8
    warnings: tuple[str, ...] = ()
    if images.dtype == np.uint8 and declared is None and images.max() <= DARK:
        warnings = (
            f"data set 'npz:{file}': x is uint8 and goes from 0 to {images.max()}, where white is "
            "taken to be 255; x_range says it otherwise",
        )
    if not labelled:
        train = part_of(images, np.full(len(images), -1))
        return Dataset(f"npz:{file}", train, None, (), mean, std, unit, warnings)
    labels = _labels(file, "y", arrays["y"], len(images))
    counts = np.bincount(labels)
    if len(counts) < 2 or not counts.all():
        fault = "holds one class only" if len(counts) < 2 else f"has no class {counts.argmin()}"
        raise _wrong(file, "y", f"{fault}; allowed: labels 0…C-1, every class with samples")
    train = part_of(images, labels, _writers(file, arrays, len(images)))
    test = None
    if "x_test" in arrays or "y_test" in arrays:
        if not ("x_test" in arrays and "y_test" in arrays):
            raise _wrong(file, "x_test, y_test", "one is missing; allowed: both or neither")
        held_out = _images(file, "x_test", arrays["x_test"], declared, layout)
        same_kind = (held_out.dtype == np.uint8) == (images.dtype == np.uint8)
        if held_out.shape[1:] != images.shape[1:] or not same_kind:
            raise _wrong(
                file,
                "x_test",
                f"samples are {held_out.dtype} {held_out.shape[1:]}; "
                f"allowed: like those of x, {images.dtype} {images.shape[1:]}",
            )
        known = _labels(file, "y_test", arrays["y_test"], len(held_out), len(counts))
        test = part_of(held_out, known)
        if images.dtype != np.uint8 and not unit and apart(train.images, test.images):
            raise _wrong(
                file,
                "x_test",
                f"goes from {span(test.images)}, and x from {span(train.images)}; allowed: one "
                "scale (of images that have one, x_range=(black, white) says which)",
            )
    names = tuple(map(str, range(len(counts))))
    return Dataset(f"npz:{file}", train, test, names, mean, std, unit, warnings)


def _read(file: Path, labelled: bool) -> dict[str, np.ndarray]:
    if not is_file(file):
        raise MissingData(f"data set 'npz:{file}': there is no such file")
    try:
        names = npz_names(file)
        for key in names:
            if key not in KEYS:
                raise _wrong(file, key, f"is not a known key{nearest(key, KEYS)}; known: {KEYS}")
        for key in ("x", "y") if labelled else ("x",):
            if key not in names:
                needed = "x and y" if labelled else "x"
                raise _wrong(file, key, f"is missing; needed: {needed}")
        needless = () if labelled else ("y", "x_test", "y_test", "writer")
        return npz_arrays(file, [key for key in KEYS if key not in needless])
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise FedkdError(f"data set 'npz:{file}' is not a readable npz file: {reason}") from error


def _range(file: Path, arrays: dict[str, np.ndarray]) -> tuple[float, float] | None:
    """Black and white, where the file says them."""
    if "x_range" not in arrays:
        return None
    given = arrays["x_range"]
    if given.shape == (2,) and given.dtype.kind in "iuf":
        low, high = map(float, given)
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return low, high
    raise _wrong(file, "x_range", f"is {_value(given)}; allowed: two numbers, black below white")


def _layout(file: Path, arrays: dict[str, np.ndarray]) -> str:
    """Where the file says that the channels are; an empty string where it does not."""
    if "x_channels" not in arrays:
        return ""
    given = arrays["x_channels"]
    if given.shape == () and str(given) in ("first", "last", "none"):
        return str(given)
    raise _wrong(file, "x_channels", f"is {_value(given)}; allowed: 'first', 'last', 'none'")


def _published(
    file: Path, arrays: dict[str, np.ndarray], channels: int, bounded: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the file gives, both or neither; ``bounded``: of images."""
    published = []
    for key, other in (("x_mean", "x_std"), ("x_std", "x_mean")):
        if key not in arrays:
            if other in arrays:
                raise _wrong(file, key, f"is missing, and {other} is there; allowed: both, neither")
            return (), ()
        given = arrays[key]
        if given.dtype.kind not in "iuf" or given.shape not in ((), (1,), (channels,)):
            raise _wrong(file, key, f"is {_shape(given)}; allowed: one number or ({channels},)")
        numbers = np.broadcast_to(given.astype(np.float64), (channels,))
        if not np.isfinite(numbers).all() or (key == "x_std" and not (numbers > 0).all()):
            raise _wrong(file, key, "allowed: finite numbers, and x_std above 0")
        published.append(tuple(numbers.tolist()))
    mean, std = published
    if bounded and not (min(mean) >= 0 and max(mean) <= 1 and max(std) <= 1):
        raise _wrong(
            file,
            "x_mean, x_std",
            f"are {_value(arrays['x_mean'])} and {_value(arrays['x_std'])}; allowed: from 0 to 1, "
            "where black is 0 and white is 1",
        )
    return mean, std


def _images(
    file: Path, key: str, x: np.ndarray, declared: tuple[float, float] | None, layout: str
) -> np.ndarray:
    """``x`` as ``(n, H, W, C)`` or ``(n, d)``, uint8 or float.

    Where black and white are ``declared``, images go from 0 to 1, unless they are uint8 of 0…255.
    """
    kinds = "iuf" if declared is not None else "f"
    numbers = x.dtype == np.uint8 or x.dtype.kind in kinds
    features = x.ndim == 2 and x.dtype.kind == "f" and declared is None and not layout
    axis = _channel_axis(file, key, x, layout) if numbers else None
    if not x.size or not (features or axis is not None):
        raise _wrong(
            file,
            key,
            f"is {_shape(x)}; allowed: uint8 or float images (n, H, W), (n, H, W, C) or "
            "(n, C, H, W) with C = 1 or 3, or float features (n, d); where channels are in "
            "others, and in windows of a series, x_channels says: 'first', 'last' or 'none'; "
            "other integers need x_range, (black, white)",
        )
    if x.dtype.kind == "f":
        _check_numbers(file, key, x)
    if x.ndim == 3 and not layout and declared is None and not _is_picture(x):
        raise _wrong(
            file,
            key,
            f"is {_shape(x)}: windows of a series, or grey images? Say which in the file: "
            "numpy.savez(..., x_channels='first') for (n, C, T), 'last' for (n, T, C), 'none' "
            "for grey images (n, H, W)",
        )
    if axis is not None:
        x = x[:, None] if x.ndim == 3 and layout in ("first", "last") else x
        x = x[..., None] if x.ndim == 3 else np.moveaxis(x, axis, -1)
    if declared is not None and not (x.dtype == np.uint8 and declared == (0, 255)):
        return _scaled(file, key, x, *declared)
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        x = x.astype(np.float64)
    return np.ascontiguousarray(x)


def _channel_axis(file: Path, key: str, x: np.ndarray, layout: str) -> int | None:
    """Where the channels of images ``x`` are, once it has four axes; None if it is no images."""
    if x.ndim == 3:
        return 2 if layout == "first" else -1
    if x.ndim != 4 or layout == "none":
        return None
    if layout:
        return 1 if layout == "first" else -1
    last, first = x.shape[3] in (1, 3), x.shape[1] in (1, 3)
    if last and first and (x.shape[1], x.shape[3]) != (1, 1):
        raise _wrong(
            file,
            key,
            f"is {_shape(x)}: are channels first or last? Say which in the file: "
            "numpy.savez(..., x_channels='first') or 'last'",
        )
    return -1 if last else 1 if first else None


def _is_picture(x: np.ndarray) -> bool:
    """Whether ``(n, H, W)`` is plainly of grey images, and not of windows of a series."""
    _, height, width = x.shape
    if x.dtype == np.uint8 or height == width:
        return True
    low, high = float(x.min()), float(x.max())
    ranged = (low >= 0 and (high <= 1 or 16 < high <= 255)) or (low >= -1 and high <= 1)
    return ranged and max(height, width) <= 2 * min(height, width)


def _check_numbers(file: Path, key: str, x: np.ndarray) -> None:
    for start, piece in _pieces(x):
        fits = np.isfinite(piece)
        if piece.dtype.itemsize > 4:
            fits &= np.abs(piece) <= LARGEST
        if not fits.all():
            row = int(np.argwhere(~fits.reshape(len(piece), -1).all(1))[0, 0])
            fault = "NaN or infinity" if not np.isfinite(piece).all() else "larger numbers"
            raise _wrong(
                file,
                key,
                f"holds {fault}, first in sample {start + row}; allowed: numbers up to {LARGEST:g}",
            )


def _scaled(file: Path, key: str, x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Images from ``low`` (black) to ``high`` (white) as float ones from 0 to 1."""
    scaled = np.empty(x.shape, np.float64 if x.dtype == np.float64 else np.float32)
    for start, piece in _pieces(x):
        values = (piece.astype(np.float64) - low) / (high - low)
        outside = (values < -ROUNDING) | (values > 1 + ROUNDING)
        if outside.any():
            row = int(np.argwhere(outside.reshape(len(piece), -1).any(1))[0, 0])
            raise _wrong(
                file,
                key,
                f"holds {piece[outside][0]:g} in sample {start + row}; allowed by x_range: "
                f"{low:g} to {high:g}",
            )
        scaled[start : start + len(piece)] = values.clip(0, 1)
    return scaled


def _pieces(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """``x`` a few samples at a time, and the number of the first of them."""
    step = max(1, PIECE * len(x) // max(1, x.size))
    for start in range(0, len(x), step):
        yield start, x[start : start + step]


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


def _writers(file: Path, arrays: dict[str, np.ndarray], samples: int) -> np.ndarray | None:
    """``(n,)`` numbers of writers, where the file names them."""
    if "writer" not in arrays:
        return None
    given = arrays["writer"]
    if given.shape != (samples,) or given.dtype.kind not in "iuUS":
        raise _wrong(
            file,
            "writer",
            f"is {_shape(given)}; allowed: ({samples},) integers or strings",
        )
    return np.unique(given, return_inverse=True)[1].astype(np.int64)


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _value(array: np.ndarray) -> str:
    return repr(array.tolist()) if array.size <= 4 else _shape(array)


def _wrong(file: Path, key: str, fault: str) -> FedkdError:
    return FedkdError(f"data set 'npz:{file}': {key} {fault}")
