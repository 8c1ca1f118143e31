"""The public transfer set: some of the clients' data set, or another one that fits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedkd import registry
from fedkd.data import language, normalisation
from fedkd.data.dataset import Corpus, Dataset, Task
from fedkd.data.language import Tokeniser
from fedkd.data.loading import find, load_dataset
from fedkd.data.partitions import least
from fedkd.data.splits import split_generator
from fedkd.distillation import augmentation
from fedkd.errors import FedkdError, nearest
from fedkd.experiment import DataTable, Experiment
from fedkd.random import generator

SAME_TRAINING_IMAGES = {"mnist", "mnist-by-writer"}
SHARED_IMAGES = {"cifar10", "cinic10"}


def is_train(table: DataTable, folder: Path | None) -> bool:
    """Whether the transfer set is of the clients' own kind, by whatever name."""
    if table.transfer.source == "train":
        return True
    names = {_identity(name, folder) for name in (table.transfer.source, table.dataset)}
    return len(names) == 1 or names == SAME_TRAINING_IMAGES


def _identity(name: str, folder: Path | None) -> str:
    """A data set's name, which own data has one of however its path is written."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{os.path.realpath(find(path, folder))}" if colon else name


def own_transfer(
    labels: np.ndarray, name: str, table: DataTable, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the transfer set, taken out of the training part, and the rows that are left."""
    size, left = table.transfer.size, len(labels) - table.transfer.size
    if size and left < table.clients * least(table):
        raise FedkdError(
            f"data.transfer.size = {size} is too many: the training part of {name!r} has "
            f"{len(labels)} samples, and data.clients = {table.clients} need at least "
            f"{table.clients * least(table)} of them"
        )
    order = split_generator(seed, "transfer").permutation(len(labels))
    return order[:size], np.sort(order[size:])


def foreign_transfer(
    experiment: Experiment, dataset: Dataset, task: Task, tokeniser: Tokeniser | None
) -> tuple[Tensor, Tensor, list[str]]:
    """Images ``(M, H, W, C)``, features or rows of another data set that fit the task.

    With their labels ``(M,)``, all -1 unless asked for, and warnings.
    """
    table, source = experiment.data, experiment.data.transfer.source
    known = registry.names("datasets")
    if source not in known and ":" not in source:
        raise FedkdError(
            f"data.transfer.source = {source!r} is not known{nearest(source, ['train', *known])}; "
            f"known: train, {', '.join(known)}, npz:FILE, folder:FOLDER, text:PATH, jsonl:FILE"
        )
    foreign = load_dataset(
        source, experiment.data_dir(), table.download, labelled=table.transfer.labels
    )
    pair = f"data.transfer.source = {source!r} with data.dataset = {table.dataset!r} is not allowed"
    if isinstance(foreign, Corpus) != task.tokens:
        raise FedkdError(
            f"{pair}: one of them is text and the other is not; take the transfer set from 'train'"
        )
    if isinstance(foreign, Corpus):
        assert tokeniser is not None
        foreign = language.encoded(foreign, tokeniser, table.text)
    elif not normalisation.comparable(dataset, foreign):
        raise FedkdError(
            f"{pair}: the same sample would not have the same numbers, as one of them is "
            f"{normalisation.kind(foreign)}, the other {normalisation.kind(dataset)}; allowed: "
            "features of one width on one scale, or images (float ones with others that are not "
            "need x_range, black and white, in their npz file)"
        )
    if table.transfer.labels and not task.tokens and foreign.class_names != dataset.class_names:
        raise FedkdError(
            f"data.transfer.labels = true is not allowed with data.transfer.source = {source!r}: "
            f"its {len(foreign.class_names)} classes are not the {len(dataset.class_names)} of "
            f"data.dataset = {table.dataset!r}"
        )
    images = foreign.train.images
    if table.transfer.size > len(images):
        raise FedkdError(
            f"data.transfer.size = {table.transfer.size} is too many: the training part of "
            f"{source!r} has {len(images)} samples"
        )
    rows = split_generator(experiment.seed, "transfer").permutation(len(images))[
        : table.transfer.size
    ]
    chosen, labels = (each[torch.from_numpy(rows)] for each in (images, foreign.train.labels))
    warnings = list(foreign.warnings)
    if {source, table.dataset} == SHARED_IMAGES:
        warnings.append(
            f"data.transfer.source = {source!r} holds images of data.dataset = {table.dataset!r}: "
            "some samples of clients are public, test samples among them"
        )
    if len(task.shape) == 3:
        chosen = _fitted(chosen, task.shape, pair)
    return chosen, labels, warnings


def _fitted(images: Tensor, shape: tuple[int, ...], pair: str) -> Tensor:
    """Images ``(M, h, w, c)`` as ``(M, H, W, C)``."""
    channels = images.shape[-1]
    if (channels, *images.shape[1:3]) == shape:
        return images
    if not {channels, shape[0]} <= set(normalisation.GREY_OR_COLOUR):
        raise FedkdError(
            f"{pair}: its samples are (C, H, W) = {(channels, *images.shape[1:3])}, and clients' "
            f"are {shape}; allowed: the same, or grey and colour images"
        )
    return reshaped(images, shape)


def reshaped(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images ``(M, h, w, c)`` as ``(M, H, W, C)``: grey to colour or back, then resized."""
    channels, *size = shape
    inputs = images.permute(0, 3, 1, 2).float()
    if inputs.shape[1] == 3 and channels == 1:
        luma = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow and torchvision do
        inputs = torch.einsum("mchw,c->mhw", inputs, luma).unsqueeze(1)
    inputs = inputs.expand(-1, channels, -1, -1)
    if list(inputs.shape[2:]) != size:
        inputs = torch.nn.functional.interpolate(inputs, size, mode="bilinear", antialias=True)
    if images.dtype == torch.uint8:
        inputs = inputs.round().clamp(0, 255).to(torch.uint8)
    return inputs.permute(0, 2, 3, 1).contiguous()


def mixed(experiment: Experiment, task: Task, images: Tensor) -> Tensor:
    """The transfer set ``(M, H, W, C)`` with what ``distill.augmentation`` makes of it.

    Each of ``distill.copies`` has a mixture, or the sample itself, for every sample, in order.

    Raises
    ------
    FedkdError
        The samples are no images, or secrets are looked for among them; one line.
    """
    table = experiment.distill
    if table.augmentation == "none" or not len(images):
        return images
    said = f"distill.augmentation = {table.augmentation!r} is not allowed with"
    if task.tokens or len(task.shape) != 3:
        raise FedkdError(
            f"{said} data.dataset = {experiment.data.dataset!r}: it mixes images; allowed: 'none'"
        )
    if experiment.canary.secrets:
        raise FedkdError(
            f"{said} canary.secrets = {experiment.canary.secrets}: what of secrets is public would "
            "be mixed with other samples; allowed: 'none'"
        )
    pixels, copies = images.permute(0, 3, 1, 2).float(), []
    for copy in range(table.copies):
        draw = generator(experiment.seed, "mixed transfer set", copy)
        other = augmentation.partners(len(pixels), draw, table.mixed)
        kept = augmentation.shares(len(pixels), table.beta, draw)
        if table.augmentation == "mixup":
            copies.append(augmentation.mixup(pixels, other, kept))
        else:
            copies.append(augmentation.cutmix(pixels, other, kept, draw)[0])
    made = torch.cat(copies)
    if images.dtype == torch.uint8:
        made = made.round().clamp(0, 255).to(torch.uint8)
    return made.to(images.dtype).permute(0, 2, 3, 1).contiguous()
