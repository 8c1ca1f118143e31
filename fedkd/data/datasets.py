"""The data sets: one small loader each, found by name through the registry.

A loader is a function ``(folder, download) -> Dataset``. ``folder`` is where data sets lie, or None
when nobody said; ``download`` is whether a missing one may be fetched.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd import registry
from fedkd.data import cache
from fedkd.errors import FedkdError, MissingData

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd.data.language import Corpus


@dataclass(frozen=True)
class Part:
    """Labelled samples.

    ``images`` is ``(n, H, W, C)``, uint8 or float32, or ``(n, d)`` float32 features; of text,
    ``(n, T + 1)`` int64 rows of tokens. ``labels`` is ``(n,)`` int64; ``writers`` is ``(n,)``
    int64, who each sample is from, where that is known.
    """

    images: Tensor
    labels: Tensor
    writers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set.

    ``mean`` and ``std`` hold one number a channel (or a feature); for uint8 images they are those
    of the pixels scaled to 0…1.
    """

    name: str
    train: Part
    test: Part | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


Loader = Callable[[Path | None, bool], "Dataset | Corpus"]

DIGITS = tuple("0123456789")
CINIC10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def load_dataset(name: str, folder: Path | None, download: bool) -> Dataset | Corpus:
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

    Raises
    ------
    FedkdError
        If there is no such data set, it is not there, or its files are broken.
    """
    kind, colon, path = name.partition(":")
    if not colon:
        loader: Loader = registry.load("datasets", name)
        return loader(folder, download)
    from fedkd.data import files, language

    own: dict[str, Callable[[Path], Dataset | Corpus]]
    own = {"npz": files.npz, "folder": files.images, **language.OWN}
    if kind not in own or not path:
        raise FedkdError(
            f"data set {name!r} is not allowed: own data is npz:FILE, folder:FOLDER, text:PATH or "
            f"jsonl:FILE, everything else a name of: {', '.join(registry.names('datasets'))}"
        )
    return own[kind](files.find(path, folder))


def digits(folder: Path | None, download: bool) -> Dataset:
    """Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8; no download."""
    import torch

    pixels, labels = _digits()
    images = torch.from_numpy((pixels * 255 / 16).round().astype(np.uint8)).view(-1, 8, 8, 1)
    train = Part(images, torch.from_numpy(labels.astype(np.int64)))
    return Dataset("digits", train, None, DIGITS, *statistics(images))


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
        from fedkd.data.files import images

        for part in ("train", "test"):
            if {found.name for found in (place / part).glob("*/")} != set(CINIC10):
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

    arrays = cache.remembered("datasets", ("CINIC10", files), decode)
    mean, std = (0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835)
    return _dataset("cinic10", arrays, None, mean, std)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel or feature, the last axis of ``images``.

    Those of uint8 images are of the pixels scaled to 0…1. A constant channel gets 1 as its
    deviation, so that dividing by it is harmless.
    """
    import torch

    flat = images.reshape(-1, images.shape[-1])
    if flat.dtype == torch.uint8:
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.stack([column.bincount(minlength=256) for column in flat.T]).double()
        mean = counts @ levels / len(flat)
        std = (counts @ levels**2 / len(flat) - mean**2).clamp(min=0).sqrt()
    else:
        std, mean = torch.std_mean(flat.double(), dim=0, correction=0)
    std = torch.where(std > 1e-8, std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


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

    return cache.remembered("datasets", (kind, files, options), decode) if files else decode()


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
