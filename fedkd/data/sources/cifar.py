"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from pathlib import Path

from fedkd.data.dataset import Dataset
from fedkd.data.sources.decoded import by_torchvision, dataset_of


def cifar10(folder: Path | None, download: bool) -> Dataset:
    """Photographs in 10 classes: 50,000 + 10,000 colour images of 32x32 (Krizhevsky 2009)."""
    arrays = by_torchvision("cifar10", "CIFAR10", "cifar-10-batches-py", folder, download)
    return dataset_of("cifar10", arrays, None, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def cifar100(folder: Path | None, download: bool) -> Dataset:
    """Photographs in 100 classes: 50,000 + 10,000 colour images of 32x32 (Krizhevsky 2009)."""
    arrays = by_torchvision("cifar100", "CIFAR100", "cifar-100-python", folder, download)
    return dataset_of("cifar100", arrays, None, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
