"""Image files as arrays: what a file holds comes out as it is, or the file is refused by name."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedkd.errors import FedkdError
from fedkd.folder import opened

if TYPE_CHECKING:
    from PIL import ImageFile

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tif", ".tiff", ".webp", ".gif"),
}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Those that Pillow may take a file for; for some others it starts programs."""
GREY = ("1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N")
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""How the pixels ``(H, W, ...)`` of an EXIF orientation are turned upright."""


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded.

    ``grey``: it has no colours; ``deep``: its grey levels have more than 8 bits; ``narrowed``: its
    colours have more, of which Pillow reads the upper 8.
    """

    grey: bool
    deep: bool
    narrowed: bool
    width: int
    height: int


def read_header(file: Path) -> Header:
    """The header of an image file.

    Raises
    ------
    FedkdError
        It is not a readable image, or one of a kind that would not come out as it is.
    """
    with _image(file) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise ValueError(f"it has {frames} frames; allowed: one")
        deep = image.mode not in ("1", "L", "LA") and _is_grey(image)
        narrowed = not deep and _bits(image) > 8
        if image.mode in ("I", "F") and not deep:
            raise ValueError(
                "it has 32 bits a pixel, and which numbers are black and white is not known; "
                "allowed: 8 or 16 bits, or an npz file with x_range"
            )
        if image.format == "TIFF" and 2 in getattr(image, "tag_v2", {}).get(339, ()):
            raise ValueError("its levels are signed; allowed: images whose levels begin at 0")
        if deep and image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0:
            raise ValueError("its white is 0; allowed: images whose black is 0")
        return Header(_is_grey(image), deep, narrowed, *image.size)


def pixels(file: Path, grey: bool, deep: bool) -> np.ndarray:
    """The pixels of an image file, upright, as ``(H, W, 1)``, or ``(H, W, 3)`` unless ``grey``.

    They are uint8; or with ``deep``, for which 16-bit grey is a reason, float32 from 0 to 1.

    Raises
    ------
    FedkdError
        It is not a readable image, or has transparent pixels.
    """
    with _image(file) as image:
        bits = 12 if _bits(image) == 12 else 16
        image.load()  # which turns some formats upright by itself
        if image.has_transparency_data:
            opaque = image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
            if not opaque:
                raise ValueError("it has transparent pixels; allowed: images on a background")
        turn = TURNED.get(image.getexif().get(0x0112, 1))
        if image.mode.startswith("I"):
            levels = np.asarray(image).astype(np.float32) / (2**bits - 1)
        else:
            levels = np.asarray(image.convert("L" if grey else "RGB"))
            if deep:
                levels = levels.astype(np.float32) / 255
        if turn is not None:
            levels = turn(levels)
        if levels.ndim == 2:
            levels = np.repeat(levels[..., None], 1 if grey else 3, axis=2)
        return levels


def _is_grey(image: ImageFile.ImageFile) -> bool:
    # Grey maps of 16 bits may come as 32, scaled to 16.
    return image.mode in GREY or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits of a level in the file, where Pillow's decoders say that they are 12 or 16; else 8."""
    for codec, _, _, arguments in image.tile:
        if codec == "ppm" and isinstance(arguments, tuple) and arguments[-1] > 255:
            return 16  # the largest level
        for bits in (12, 16):
            if f";{bits}" in str(arguments):
                return bits
    return 8


@contextlib.contextmanager
def _image(file: Path) -> Iterator[ImageFile.ImageFile]:
    from PIL import Image, UnidentifiedImageError

    try:
        with opened(file) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream, formats=FORMATS) as image:
                yield image
    except FedkdError:
        raise
    except Exception as error:  # Pillow lets through whatever its decoders raise
        reason = str(error).split("\n")[0] or type(error).__name__
        if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
            reason = f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        elif isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(FORMATS)}"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise FedkdError(f"{file} is not a readable image: {reason}") from error
