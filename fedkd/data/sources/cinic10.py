"""CINIC-10."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedkd.data import cache
from fedkd.data.dataset import Dataset
from fedkd.data.sources.decoded import BOTH_PARTS, DECODING, dataset_of
from fedkd.data.sources.faults import broken, missing
from fedkd.data.sources.folders import class_folders, images
from fedkd.errors import FedkdError, MissingData

CINIC10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


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

    arrays = cache.remembered("datasets", ("CINIC10", DECODING, files), decode, BOTH_PARTS)
    mean, std = (0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835)
    return dataset_of("cinic10", arrays, None, mean, std)
