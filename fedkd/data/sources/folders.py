"""A person's own images in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedkd.data.dataset import Dataset, Part
from fedkd.data.pictures import SUFFIXES, Header, pixels, read_header
from fedkd.data.reading import (
    check_room,
    files_under,
    hidden,
    is_folder,
)
from fedkd.data.sources.decoded import part_of
from fedkd.errors import FedkdError, MissingData

PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
"""Names that folders of parts have, and folders of classes have not."""


def images(folder: Path, labelled: bool = True) -> Dataset:
    """Own images, one folder a class: ``FOLDER/class/*.png``, or that in FOLDER/train and /test.

    Without ``labelled`` the images may lie anywhere in FOLDER, or in FOLDER/train where there is
    FOLDER/test.

    What is hidden, or left behind by other programs (``.git``, ``__MACOSX``), is passed over.
    """
    import torch

    if not is_folder(folder):
        raise MissingData(f"data set 'folder:{folder}': there is no such folder")
    split = is_folder(folder / "train") and is_folder(folder / "test")
    if not labelled:
        listed, left_out = _images_under(folder, folder / "train" if split else folder)
        if not listed:
            raise _bad(folder, f"it holds no images ({', '.join(sorted(SUFFIXES))})")
        (part,), more = _decoded(folder, [{"": listed}], ("",))
        unlabelled = Part(part.images, torch.full_like(part.labels, -1))
        warnings = (*_of_left_out(folder, left_out), *more)
        return _dataset(folder, [unlabelled], (), warnings)
    train, left_out = _by_class(folder, folder / "train" if split else folder)
    test, more_left_out = _by_class(folder, folder / "test") if split else ({}, [])
    names = sorted(train)
    extra = sorted(set(test) - set(names))
    if extra:
        raise _bad(folder, f"class {extra[0]!r} is in test but not in train")
    if len(names) < 2:
        raise _bad(
            folder, f"it has {len(names)} folder(s) of images; allowed: one a class, at least 2"
        )
    if {name.lower() for name in names} <= PARTS:
        raise _bad(
            folder,
            f"{' and '.join(names)} are names of parts and not of classes; allowed: train and test",
        )
    parts, more = _decoded(folder, [train, test] if test else [train], tuple(names))
    folded: dict[str, str] = {}
    alike = [(folded.setdefault(name.lower(), name), name) for name in names]
    others = [place.name for place in class_folders(folder) if place.name not in ("train", "test")]
    warnings = (
        *(
            f"data set 'folder:{folder}': beside train and test, the folder {name!r} was left out"
            for name in others
            if split
        ),
        *(
            f"data set 'folder:{folder}': {one!r} and {other!r} are two classes, which differ by "
            "the case of letters alone"
            for one, other in alike
            if one != other
        ),
        *_of_left_out(folder, [*left_out, *more_left_out]),
        *more,
    )
    return _dataset(folder, parts, tuple(names), warnings)


def _dataset(
    folder: Path, parts: list[Part], names: tuple[str, ...], warnings: tuple[str, ...]
) -> Dataset:
    train, test = parts[0], parts[1] if len(parts) > 1 else None
    unit = train.images.is_floating_point()
    return Dataset(f"folder:{folder}", train, test, names, unit=unit, warnings=warnings)


def class_folders(root: Path) -> list[Path]:
    """The folders in ``root`` that may be of classes, sorted."""
    return sorted(path for path in root.glob("*") if not hidden(path.name) and is_folder(path))


def _by_class(folder: Path, root: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Image files by class, and other files beside them."""
    listed: dict[str, list[Path]] = {}
    left_out: list[Path] = []
    for place in class_folders(root):
        try:
            place.name.encode()
        except UnicodeEncodeError:
            raise _bad(folder, f"the name of {place.name!r} is not UTF-8") from None
        if root.resolve().is_relative_to(place.resolve()):
            raise _bad(folder, f"{place} is a link to a folder that it is in")
        listed[place.name], others = _images_under(folder, place)
        left_out += others
        if not listed[place.name]:
            raise _bad(folder, f"{place} holds no images ({', '.join(sorted(SUFFIXES))})")
    beside = [path for path in root.glob("*") if path.suffix.lower() in SUFFIXES]
    return listed, left_out + [path for path in beside if not hidden(path.name)]


def _images_under(folder: Path, root: Path) -> tuple[list[Path], list[Path]]:
    """Files with a suffix of images, at any depth, and those without."""
    try:
        files = files_under(root)
    except ValueError as error:
        raise _bad(folder, error) from error
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    return images, [file for file in files if file.suffix.lower() not in SUFFIXES]


def _of_left_out(folder: Path, files: list[Path]) -> tuple[str, ...]:
    if not files:
        return ()
    return (
        f"data set 'folder:{folder}': {len(files)} file(s) that are no images of a class were left "
        f"out, first {min(files)}",
    )


def _decoded(
    folder: Path, parts: list[dict[str, list[Path]]], names: tuple[str, ...]
) -> tuple[list[Part], tuple[str, ...]]:
    """All images of each part, which must share their size, and warnings."""
    headers = {
        file: read_header(file) for part in parts for files in part.values() for file in files
    }
    grey = all(header.grey for header in headers.values())
    deep = any(header.deep for header in headers.values())
    narrowed = [file for file, header in headers.items() if header.narrowed]
    try:
        _check_memory(headers, (1 if grey else 3) * (4 if deep else 1))
    except ValueError as error:
        raise _bad(folder, error) from error
    first: tuple[Path, tuple[int, ...]] | None = None
    decoded = []
    for part in parts:
        count = sum(map(len, part.values()))
        stacked, labels = np.empty(0), np.empty(count, np.int64)
        row = 0
        for name, files in part.items():
            for file in files:
                image = pixels(file, grey, deep)
                first = first or (file, image.shape)
                if image.shape != first[1]:
                    raise _bad(
                        folder,
                        f"images must share one size; {first[0]} is {first[1][1]}x{first[1][0]}, "
                        f"{file} is {image.shape[1]}x{image.shape[0]}",
                    )
                if not row:
                    stacked = np.empty((count, *image.shape), image.dtype)
                stacked[row], labels[row] = image, names.index(name)
                row += 1
        decoded.append(part_of(stacked, labels))
    if not narrowed:
        return decoded, ()
    return decoded, (
        f"data set 'folder:{folder}': {len(narrowed)} image(s) with colours of 16 bits are read "
        f"with 8, first {narrowed[0]}",
    )


def _check_memory(headers: dict[Path, Header], bytes_a_pixel: int) -> None:
    unpacked = sum(header.width * header.height for header in headers.values()) * bytes_a_pixel
    check_room(unpacked, sum(file.stat().st_size for file in headers))


def _bad(folder: Path, fault: object) -> FedkdError:
    return FedkdError(f"data set 'folder:{folder}': {fault}")
