"""The data sets: one small loader each, found by name through the registry.

A loader is a function ``(folder, download) -> Dataset``. ``folder`` is where data sets lie, or None
when nobody said; ``download`` is whether a missing one may be fetched.

The mean and standard deviation that a data set publishes are those of its training part, and
written down here: nothing is computed from what clients hold. ``test_datasets.py`` computes each
anew from the files where ``FEDKD_DATA`` has them: ``pytest tests/data -k published``.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd import registry
from fedkd.data import cache
from fedkd.data.reading import is_file, is_folder
from fedkd.errors import FedkdError, MissingData

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd.data.language import Corpus


@dataclass(frozen=True)
class Part:
    """Samples.

    ``images`` is ``(n, H, W, C)``, uint8 or float, or ``(n, d)`` float features; of text,
    ``(n, T + 1)`` int64 rows of tokens. ``labels`` is ``(n,)`` int64, -1 where there is none;
    ``writers`` is ``(n,)`` int64, who each sample is from, where that is known.
    """

    images: Tensor
    labels: Tensor
    writers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Parameters
    ----------
    name : str
        As in ``data.dataset``.
    train, test : Part
        Its parts; ``test`` may be None.
    class_names : tuple of str
        One a class.
    mean, std : tuple of float
        What it publishes to normalise its samples by, one number a channel or feature; empty where
        it publishes nothing. Those of uint8 images are of the pixels scaled to 0…1.
    unit : bool
        Whether 0 is black and 1 is white in float images: only then can they be compared with
        other pictures. Of uint8 images it is known that 255 is white.
    warnings : tuple of str
        What a reader of numbers made with it must know.
    """

    name: str
    train: Part
    test: Part | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    unit: bool = False
    warnings: tuple[str, ...] = ()


_BOTH_PARTS = cache.holds("x_train", "y_train", "x_test", "y_test", "names")
Loader = Callable[[Path | None, bool], "Dataset | Corpus"]

DECODING = 2
"""Another number where own decoding has changed: what was decoded before is decoded again."""
PIECE = 2**22
"""Values that are widened to float64 at a time."""
DIGITS = tuple("0123456789")
CINIC10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


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
    from fedkd.data import files, language

    own: dict[str, Callable[[Path], Dataset | Corpus]] = {
        "npz": partial(files.npz, labelled=labelled),
        "folder": partial(files.images, labelled=labelled),
        **language.OWN,
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
    from fedkd.data import language
    from fedkd.data.language import Corpus

    try:
        data = loader(folder, download)
    except FedkdError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        file = loader.__code__.co_filename if hasattr(loader, "__code__") else ""
        frame = [*frames[-1:], *(frame for frame in frames if frame.filename == file)][-1]
        raise FedkdError(
            f"data set {name!r} cannot be loaded: {type(error).__name__}: {_line(error)} "
            f"({frame.filename}, line {frame.lineno})"
        ) from error
    if isinstance(data, Corpus):
        return language.checked(data)
    if not isinstance(data, Dataset):
        raise FedkdError(
            f"data set {name!r}: its loader returned a {type(data).__name__}; allowed: "
            "fedkd.data.datasets.Dataset, fedkd.data.language.Corpus"
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


def digits(folder: Path | None, download: bool) -> Dataset:
    """Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8; no download."""
    import torch

    pixels, labels = _digits()
    images = torch.from_numpy((pixels * 255 / 16).round().astype(np.uint8)).view(-1, 8, 8, 1)
    train = Part(images, torch.from_numpy(labels.astype(np.int64)))
    return Dataset("digits", train, None, DIGITS, (0.30530871850687963,), (0.3758859119653463,))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(1797, 64)`` from 0 to 16 and labels ``(1797,)``."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise FedkdError("data set 'digits' comes with scikit-learn: pip install scikit-learn")
    # Importing scikit-learn takes longer than everything else here together.
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(gzip.decompress(file.read_bytes()).decode().splitlines(), delimiter=",")
        return table[:, :64], table[:, 64]
    except (OSError, ValueError):
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.data, bunch.target


def mnist(folder: Path | None, download: bool) -> Dataset:
    """Handwritten digits: 60,000 + 10,000 grey images of 28x28 (LeCun et al. 1998)."""
    arrays = _torchvision("mnist", "MNIST", "MNIST/raw", folder, download)
    return _dataset("mnist", arrays, DIGITS, (0.1307,), (0.3081,))


def fashion_mnist(folder: Path | None, download: bool) -> Dataset:
    """Clothes in 10 classes: 60,000 + 10,000 grey images of 28x28 (Xiao et al. 2017)."""
    arrays = _torchvision("fashion-mnist", "FashionMNIST", "FashionMNIST/raw", folder, download)
    return _dataset("fashion-mnist", arrays, None, (0.2860,), (0.3530,))


def emnist(folder: Path | None, download: bool) -> Dataset:
    """Handwritten digits and letters, 47 balanced classes, grey, 28x28 (Cohen et al. 2017)."""
    arrays = _torchvision("emnist", "EMNIST", "EMNIST/raw", folder, download, split="balanced")
    for key in ("x_train", "x_test"):  # the files hold every image on its side
        arrays[key] = np.ascontiguousarray(arrays[key].transpose(0, 2, 1, 3))
    return _dataset("emnist", arrays, None, (0.1751,), (0.3332,))


def cifar10(folder: Path | None, download: bool) -> Dataset:
    """Photographs in 10 classes: 50,000 + 10,000 colour images of 32x32 (Krizhevsky 2009)."""
    arrays = _torchvision("cifar10", "CIFAR10", "cifar-10-batches-py", folder, download)
    return _dataset("cifar10", arrays, None, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def cifar100(folder: Path | None, download: bool) -> Dataset:
    """Photographs in 100 classes: 50,000 + 10,000 colour images of 32x32 (Krizhevsky 2009)."""
    arrays = _torchvision("cifar100", "CIFAR100", "cifar-100-python", folder, download)
    return _dataset("cifar100", arrays, None, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def cinic10(folder: Path | None, download: bool) -> Dataset:
    """Photographs in 10 classes: 90,000 + 90,000 colour images of 32x32 (Darlow et al. 2018).

    CIFAR-10 with images of ImageNet in its classes. Its authors' training and test parts are used
    as such; their validation part, another 90,000, is not.
    """
    root = folder or cache.home()
    places = [root / name for name in ("CINIC-10", "cinic-10", "cinic10")]
    place = next((place for place in places if place.is_dir()), places[0])
    files = [cache.stamp(place / part) for part in ("train", "test")]
    if not any(files):
        raise MissingData(
            f"{missing('cinic10', place, downloadable=False)}; to get it, unpack CINIC-10.tar.gz "
            f"of https://datashare.ed.ac.uk/handle/10283/3192 into {place}"
        )

    def decode() -> cache.Arrays:
        from fedkd.data.files import class_folders, images

        for part in ("train", "test"):
            if {folder.name for folder in class_folders(place / part)} != set(CINIC10):
                raise broken(
                    "cinic10", place, f"{part}/ must hold the folders {', '.join(CINIC10)}"
                )
        try:
            data = images(place)
        except FedkdError as error:
            reason = str(error).removeprefix(f"data set 'folder:{place}': ")
            raise broken("cinic10", place, reason) from error
        assert data.test is not None
        if data.train.images.shape[1:] != (32, 32, 3):
            size = "x".join(map(str, data.train.images.shape[1:]))
            raise broken("cinic10", place, f"the images are {size}; allowed: 32x32x3")
        arrays: cache.Arrays = {"names": np.asarray(data.class_names)}
        for name, held in (("train", data.train), ("test", data.test)):
            arrays |= {f"x_{name}": held.images.numpy(), f"y_{name}": held.labels.numpy()}
        return arrays

    arrays = cache.remembered("datasets", ("CINIC10", DECODING, files), decode, _BOTH_PARTS)
    mean, std = (0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835)
    return _dataset("cinic10", arrays, None, mean, std)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel or feature, the last axis of ``images``.

    Those of uint8 images are of the pixels scaled to 0…1. All is computed in float64, a piece at a
    time. A channel whose deviation is below the resolution of its largest number is constant, and
    gets 1 as its deviation, so that dividing by it is harmless.

    Parameters
    ----------
    images : Tensor
        ``(..., C)``, uint8 or float, finite; not empty.
    """
    import torch

    flat = images.reshape(-1, images.shape[-1])
    pieces = flat.split(max(1, PIECE // flat.shape[1]))
    if flat.dtype == torch.uint8:
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(flat.shape[1], 256, dtype=torch.int64)
        for piece in pieces:
            counts += torch.stack([column.bincount(minlength=256) for column in piece.T])
        mean = counts.double() @ levels / len(flat)
        std = (counts.double() @ levels**2 / len(flat) - mean**2).clamp(min=0).sqrt()
        varies = (counts > 0).sum(1) > 1  # rounding alone could leave a constant a deviation
        std = torch.where(varies & (std > 1e-8), std, 1.0)
        return tuple(mean.tolist()), tuple(std.tolist())
    # Deviations from the first sample, in units of the largest: neither numbers far from 0, nor
    # tiny, nor huge ones lose digits.
    first = flat[0].double()
    far, largest = torch.zeros_like(first), torch.zeros_like(first)
    for piece in pieces:
        far = far.maximum((piece.double() - first).abs().amax(0))
        largest = largest.maximum(piece.double().abs().amax(0))
    unit = torch.where(far > 0, far, 1.0)
    offset, squares = torch.zeros_like(first), torch.zeros_like(first)
    for piece in pieces:
        offset += ((piece.double() - first) / unit).sum(0)
    offset /= len(flat)
    for piece in pieces:
        squares += ((piece.double() - first) / unit - offset).square().sum(0)
    std = (squares / len(flat)).sqrt() * unit
    std = torch.where(std > torch.finfo(flat.dtype).eps * largest, std, 1.0)
    return tuple((first + offset * unit).tolist()), tuple(std.tolist())


def missing(name: str, where: Path, downloadable: bool = True) -> MissingData:
    """The line for a data set that is not there."""
    ways = ["point --data-dir (data.data_dir, FEDKD_DATA) at its folder"]
    if downloadable:
        ways.append("set data.download = true")
    return MissingData(
        f"data set {name!r} is not at {where}: {', '.join(ways)}, or use data.dataset = 'digits'"
    )


def broken(name: str, where: Path, reason: object) -> FedkdError:
    """The line for a data set whose files cannot be read."""
    return FedkdError(f"data set {name!r} at {where} is broken or incomplete: {_line(reason)}")


def _line(reason: object) -> str:
    lines = str(reason).strip().splitlines()
    return lines[0] if lines else type(reason).__name__


def _torchvision(
    name: str, kind: str, place: str, folder: Path | None, download: bool, **options: Any
) -> cache.Arrays:
    """Both parts of a torchvision data set, and the names of its classes.

    Parameters
    ----------
    kind : str
        Name of the class in ``torchvision.datasets``.
    place : str
        The folder it reads, inside the folder of data sets.

    Returns
    -------
    dict
        ``x_train`` and ``x_test``, uint8 ``(n, H, W, C)``; ``y_train`` and ``y_test``; ``names``.
    """
    root = folder or cache.home()
    files = cache.stamp(root / place)
    if not files and not download:
        raise missing(name, root / place)

    def decode() -> cache.Arrays:
        import torchvision

        arrays: cache.Arrays = {}
        try:
            for part in ("train", "test"):
                data = getattr(torchvision.datasets, kind)(
                    root, train=part == "train", download=download, **options
                )
                images = np.ascontiguousarray(data.data)  # CIFAR comes as a transposed view
                arrays[f"x_{part}"] = images if images.ndim == 4 else images[..., None]
                arrays[f"y_{part}"] = np.asarray(data.targets, dtype=np.int64)
                arrays["names"] = np.asarray(data.classes)
        except Exception as error:  # torchvision lets through whatever its parsers raise
            if download and not files:
                raise FedkdError(
                    f"data set {name!r} could not be downloaded to {root}: {_line(error)}"
                ) from error
            raise broken(name, root / place, error) from error
        return arrays

    if not files:
        return decode()
    return cache.remembered("datasets", (kind, files, options), decode, _BOTH_PARTS)


def _dataset(
    name: str,
    arrays: cache.Arrays,
    class_names: tuple[str, ...] | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    """A data set from the arrays that ``_torchvision`` gives."""
    import torch

    train, test = (
        Part(torch.from_numpy(arrays[f"x_{part}"]), torch.from_numpy(arrays[f"y_{part}"]))
        for part in ("train", "test")
    )
    return Dataset(name, train, test, class_names or tuple(map(str, arrays["names"])), mean, std)
