"""The data of a whole federation: what each client holds, and what everybody shares.

One store holds every sample as it was decoded; a client's part is row numbers into it, and samples
are normalised when they are asked for.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedkd import registry
from fedkd.data import cache, language, normalisation, partitions, shortfalls
from fedkd.data.dataset import Corpus, Dataset, Part, Task
from fedkd.data.language import Tokeniser
from fedkd.data.loading import find, load_dataset
from fedkd.data.normalisation import Statistics, standardised
from fedkd.data.partitions import entropies, least, own_count, partition, stratified
from fedkd.errors import FedkdError, nearest
from fedkd.experiment import DataTable, Experiment
from fedkd.random import key
from fedkd.work import Samples

if TYPE_CHECKING:
    from fedkd.privacy.canary import Canaries

SAME_TRAINING_IMAGES = {"mnist", "mnist-by-writer"}
SHARED_IMAGES = {"cifar10", "cinic10"}
NOT_OF_PARTITIONS = {"dataset", "data_dir", "download", "augment", "statistics"}
"""Keys of ``[data]`` that no partition depends on."""


@dataclass(frozen=True)
class Rows:
    """Some samples of a store: row numbers ``(K,)`` int64."""

    store: Part
    rows: Tensor

    @property
    def labels(self) -> Tensor:
        """``(K,)`` int64."""
        return self.store.labels[self.rows]


class FederatedData:
    """What every client of an experiment holds, and what all of them share.

    Inputs are float32, normalised, ``(K, C, H, W)`` with channels-last strides, or ``(K, d)``. Of
    text, they are ``(K, T)`` int64 token ids, and labels are the next tokens ``(K, T)``, -1 where
    that is padding.

    Parameters
    ----------
    task : Task
        The shapes.
    statistics : Statistics
        What inputs are normalised by, and where that is from.
    private, validation, own : sequence of Rows
        One for each client, no sample in two of them.
    common : Rows
        The common test set.
    transfer : Tensor
        ``(M, H, W, C)``, ``(M, d)`` or ``(M, T + 1)``; labels of images are kept nowhere. Here and
        in the stores, uint8 images are normalised when they are asked for, all else has been.
    public : Tensor, optional
        The transfer set as it was before canaries came into it.
    tokeniser : Tokeniser, optional
        The vocabulary, of text.
    canaries : Canaries, optional
        The secrets that were planted.
    warnings : tuple of str
        What was asked of the data and could not be given, a line each.
    decoded : str
        A digest of float samples as they were before they were normalised.
    """

    def __init__(
        self,
        task: Task,
        statistics: Statistics,
        private: Sequence[Rows],
        validation: Sequence[Rows],
        own: Sequence[Rows],
        common: Rows,
        transfer: Tensor,
        public: Tensor | None = None,
        tokeniser: Tokeniser | None = None,
        canaries: Canaries | None = None,
        warnings: tuple[str, ...] = (),
        decoded: str = "",
    ) -> None:
        self.task, self.tokeniser, self.canaries = task, tokeniser, canaries
        self.statistics, self.warnings = statistics, warnings
        self._mean = torch.tensor(statistics.mean, dtype=torch.float32)
        self._std = torch.tensor(statistics.std, dtype=torch.float32)
        self._decoded, self._fingerprint = decoded, ""
        self._private, self._validation, self._own = private, validation, own
        # Every client asks for these two every round; the others are normalised when asked for.
        self._common_rows, self._common = common, None
        self._transfer_images, self._transfer = transfer, None
        self._public_images = transfer if public is None else public

    _common: Samples | None
    _transfer: Samples | None

    @property
    def clients(self) -> int:
        """Number of clients N."""
        return len(self._private)

    def private(self, client: int) -> Samples:
        """What ``client`` trains on."""
        return self._samples(self._private[client])

    def validation(self, client: int) -> Samples:
        """What ``client`` holds out of its training samples; empty unless asked for."""
        return self._samples(self._validation[client])

    def own(self, client: int) -> Samples:
        """The own test samples of ``client``, with the label distribution of its training ones."""
        return self._samples(self._own[client])

    def common(self) -> Samples:
        """The common test set: as many samples of every class; of text, of every key's share."""
        if self._common is None:
            self._common = self._samples(self._common_rows)
        return self._common

    def transfer(self) -> Samples:
        """The public transfer set: M samples without labels, or with the next tokens of a text."""
        if self._transfer is None:
            self._transfer = self._unlabelled(self._transfer_images)
        return self._transfer

    def public(self) -> Samples:
        """The transfer set as it was before canaries came into it."""
        return self._unlabelled(self._public_images)

    def on(self, device: torch.device) -> FederatedData:
        """The same data on ``device``, as it was decoded: samples are picked and normalised there.

        It takes as much memory there as here: of images, a byte a value.
        """
        if device.type == "cpu":
            return self
        moved: dict[int, Part] = {}

        def there(rows: Rows) -> Rows:
            if id(rows.store) not in moved:
                store = rows.store
                moved[id(store)] = Part(store.images.to(device), store.labels.to(device))
            return Rows(moved[id(rows.store)], rows.rows.to(device))

        other = copy(self)
        other._mean, other._std = self._mean.to(device), self._std.to(device)
        other._private, other._validation, other._own = (
            [there(rows) for rows in held] for held in (self._private, self._validation, self._own)
        )
        other._common_rows, other._common = there(self._common_rows), None
        other._transfer_images, other._transfer = self._transfer_images.to(device), None
        other._public_images = self._public_images.to(device)
        return other

    def count(self, what: str, client: int) -> int:
        """Samples of ``client`` that are ``own`` or ``validation``, or all of ``common`` or so."""
        if what in ("own", "validation"):
            return len({"own": self._own, "validation": self._validation}[what][client].rows)
        return len({"common": self._common_rows.rows}.get(what, self._transfer_images))

    def label_counts(self) -> Tensor:
        """Private training samples (of text: next tokens) of each client and class: ``(N, C)``."""
        shape = (self.clients, self.task.classes)
        if self.task.tokens:
            held = [self.private(client).labels for client in range(self.clients)]
            there = [labels[labels >= 0] for labels in held if labels is not None]
            return torch.stack([tokens.bincount(minlength=shape[1]) for tokens in there])
        clients = torch.arange(self.clients).repeat_interleave(self.sizes())
        labels = torch.cat([rows.labels for rows in self._private])
        return (clients * shape[1] + labels).bincount(minlength=shape[0] * shape[1]).view(shape)

    def sizes(self) -> Tensor:
        """Private training samples of each client: ``(N,)`` int64."""
        return torch.tensor([len(rows.rows) for rows in self._private])

    def together(self, what: str, clients: Sequence[int]) -> list[Samples]:
        """What each of some clients has that is ``private``, ``own`` or ``validation``.

        They lie behind one another in memory.
        """
        held = {"private": self._private, "own": self._own, "validation": self._validation}[what]
        mine = [held[client] for client in clients]
        rows = [each.rows for each in mine]
        whole = self._samples(Rows(mine[0].store, torch.cat(rows)))
        sizes = [len(each) for each in rows]
        assert whole.labels is not None
        pairs = zip(whole.inputs.split(sizes), whole.labels.split(sizes), strict=True)
        return [Samples(inputs, labels) for inputs, labels in pairs]

    def with_part(self, kept: Sequence[Tensor]) -> FederatedData:
        """The same data, where each client trains on some of its samples alone.

        ``kept`` holds, for every client, numbers of its private samples ``(k,)``.
        """
        other = copy(self)
        pairs = zip(self._private, kept, strict=True)
        other._private = [Rows(rows.store, rows.rows[part]) for rows, part in pairs]
        return other

    def _samples(self, rows: Rows) -> Samples:
        images = rows.store.images[rows.rows]
        if self.task.tokens:
            return language.samples(images)
        return Samples(self.normalised(images), rows.labels)

    def _unlabelled(self, images: Tensor) -> Samples:
        return language.samples(images) if self.task.tokens else Samples(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """Images ``(K, H, W, C)`` or features ``(K, d)`` of a store as students take them."""
        inputs = images
        if images.dtype == torch.uint8:
            inputs = images.float() * (1 / (255 * self._std))
            inputs -= self._mean / self._std
        return inputs.permute(0, 3, 1, 2) if inputs.dim() == 4 else inputs

    def pixels(self, inputs: Tensor) -> Tensor:
        """Images ``(K, C, H, W)`` that students take as they were decoded: eight bits as [0, 1]."""
        shape = (-1, *(1,) * (inputs.dim() - 2))
        return inputs * self._std.view(shape) + self._mean.view(shape)

    def fingerprint(self) -> str:
        """A digest of all that clients hold and share, 32 hexadecimal digits.

        It depends on samples as they were decoded, labels, who holds which, and what they are
        normalised by to six digits: the same data has the same fingerprint on every machine.
        """
        if not self._fingerprint:
            statistics = self.statistics
            digest = hashlib.blake2b(digest_size=16)
            numbers = [f"{number:.6g}" for number in (*statistics.mean, *statistics.std)]
            digest.update(repr((self.task, statistics.source, numbers, self._decoded)).encode())
            checksums: dict[int, str] = {}
            places = [*self._private, *self._validation, *self._own, self._common_rows]
            for place in places:
                store = place.store
                if id(store) not in checksums:
                    checksums[id(store)] = f"{_kept(store.images)} {_checksum(store.labels)}"
                digest.update(f"{checksums[id(store)]} {_checksum(place.rows)}\n".encode())
            for images in (self._transfer_images, self._public_images):
                digest.update(_kept(images).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def described(self) -> dict[str, Any]:
        """What a run's folder says of the data beside who holds what.

        ``effective_classes`` is e to the mean entropy of clients' label distributions: the number
        of classes a client would have if it had as many samples of each.
        """
        described: dict[str, Any] = {"statistics": self.statistics.to_json()}
        if not self.task.tokens:
            mean = entropies(self.label_counts().numpy()).mean()
            described["effective_classes"] = float(np.exp(mean))
        return described


def load(experiment: Experiment) -> FederatedData:
    """Load the data set of ``experiment`` and share it out.

    The transfer set is taken first, then, from a data set without a test part, the common test set;
    what is left goes to the clients. The same experiment gives the same data in every process.

    Raises
    ------
    FedkdError
        If the data is not there, or there is too little of it; the line names keys and values.
    """
    table, seed = experiment.data, experiment.seed
    found = load_dataset(table.dataset, experiment.data_dir(), table.download)
    tokeniser = None
    if isinstance(found, Corpus):
        dataset, tokeniser = _tokenised(found, experiment)
        task = Task((table.text.context,), len(tokeniser.vocabulary), tokeniser.vocabulary, True)
    else:
        dataset, task = found, _task(found)
    labels = dataset.train.labels.numpy()
    warnings = list(dataset.warnings)

    if table.transfer.size and not _is_train(table, experiment.data_dir()):
        transfer, more = _foreign_transfer(experiment, dataset, task, tokeniser)
        warnings += more
        rest = np.arange(len(labels))
        withheld = rest[:0]
    else:
        withheld, rest = _own_transfer(labels, dataset.name, table, seed)
        transfer = dataset.train.images[torch.from_numpy(withheld)]
    statistics = normalisation.OF_TEXT
    if not task.tokens:
        statistics, more = normalisation.choose(table, dataset, transfer)
        warnings += more
    # A strategy or client that reaches for a transfer label finds none.
    train = Part(dataset.train.images, _without(dataset.train.labels, withheld))

    common_store = train if dataset.test is None else dataset.test
    if task.tokens:
        common, rest = _common_rows(labels, rest, table, seed)
    else:
        common, rest = _common(common_store, rest, dataset.test is None, table, seed)

    writers = None if dataset.train.writers is None else dataset.train.writers.numpy()[rest]
    parts = [rest[rows] for rows in _partition(labels[rest], writers, table, seed)]

    own_rows: list[np.ndarray] = []
    private, validation = [], []
    for client, rows in enumerate(parts):
        count = own_count(len(rows), table)
        rows, tested = _hold_out(rows, labels, count, _rng(seed, "own", client))
        count = min(
            max(table.validation_fraction > 0, round(len(rows) * table.validation_fraction)),
            len(rows) - table.min_samples,
        )
        rows, validated = _hold_out(rows, labels, count, _rng(seed, "validation", client))
        private.append(rows)
        validation.append(validated)
        own_rows.append(tested)
    own_store = train
    if table.test.own == "matched" and table.test.fraction > 0:
        own_store = _test_part(dataset)
        own_rows = _matched(own_store, common, [labels[rows] for rows in private], table, seed)

    _check_disjoint(len(labels), withheld, common if dataset.test is None else common[:0], parts)
    warnings += shortfalls.unmet(
        table,
        [labels[rows] for rows in private],
        [len(rows) for rows in validation],
        [len(rows) for rows in own_rows],
        common_store.labels.numpy()[common],
        task.tokens,
    )
    store, public, canaries = train, transfer, None
    if experiment.canary.secrets:
        from fedkd.privacy import canary

        store, private, transfer, canaries = canary.plant(
            experiment, task, store, private, public, dataset.unit
        )
    ready = _Normalised(statistics)
    return FederatedData(
        task,
        statistics,
        [Rows(ready.part(store), torch.from_numpy(rows)) for rows in private],
        [Rows(ready.part(train), torch.from_numpy(rows)) for rows in validation],
        [Rows(ready.part(own_store), torch.from_numpy(rows)) for rows in own_rows],
        Rows(ready.part(common_store), torch.from_numpy(common)),
        ready.images(transfer),
        ready.images(public),
        tokeniser,
        canaries,
        tuple(dict.fromkeys(warnings)),
        " ".join(ready.decoded),
    )


class _Normalised:
    """Float samples, normalised once; all others as they are."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self.decoded: list[str] = []
        self._parts: dict[int, tuple[Part, Part]] = {}
        self._images: dict[int, tuple[Tensor, Tensor]] = {}

    def part(self, part: Part) -> Part:
        if id(part) not in self._parts:
            self._parts[id(part)] = part, replace(part, images=self.images(part.images))
        return self._parts[id(part)][1]

    def images(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            return images
        if id(images) not in self._images:
            self.decoded.append(_checksum(images))
            self._images[id(images)] = images, standardised(images, self.statistics)
        return self._images[id(images)][1]


def _kept(images: Tensor) -> str:
    """The checksum of samples as they were decoded; the shape alone of what has been normalised.

    The last digits of normalised numbers could be others on another machine.
    """
    return f"{tuple(images.shape)}" if images.is_floating_point() else _checksum(images)


def _checksum(values: Tensor) -> str:
    """Shape, type and CRC-32 of a tensor's values: what is no attack changes it."""
    content = values.cpu().contiguous().numpy().reshape(-1).view(np.uint8)
    return f"{tuple(values.shape)} {values.dtype} {zlib.crc32(content.data):08x}"


def _rng(seed: int, *purpose: str | int) -> np.random.Generator:
    return np.random.default_rng(key(seed, "data", *purpose))


def _task(dataset: Dataset) -> Task:
    sample = dataset.train.images.shape[1:]
    shape = (sample[2], sample[0], sample[1]) if len(sample) == 3 else tuple(sample)
    return Task(shape, len(dataset.class_names), dataset.class_names)


def _tokenised(corpus: Corpus, experiment: Experiment) -> tuple[Dataset, Tokeniser]:
    table, canary = experiment.data, experiment.canary
    if table.augment:
        raise FedkdError(
            f"data.augment = true is not allowed with data.dataset = {table.dataset!r}: text "
            "cannot be cropped or mirrored"
        )
    if table.statistics != "auto":
        raise FedkdError(
            f"data.statistics = {table.statistics!r} is not allowed with data.dataset = "
            f"{table.dataset!r}: text is not normalised; allowed: 'auto'"
        )
    # A canary that the vocabulary did not know would be a line of <unk>.
    always = (canary.template.partition("_")[0], *canary.symbols) if canary.secrets else ()
    return language.tokenised(corpus, table.text, always)


def _without(labels: Tensor, withheld: np.ndarray) -> Tensor:
    labels = labels.clone()
    labels[torch.from_numpy(withheld)] = -1
    return labels


def _is_train(table: DataTable, folder: Path | None) -> bool:
    """Whether the transfer set is of the clients' own kind, by whatever name."""
    if table.transfer.source == "train":
        return True
    names = {_identity(name, folder) for name in (table.transfer.source, table.dataset)}
    return len(names) == 1 or names == SAME_TRAINING_IMAGES


def _identity(name: str, folder: Path | None) -> str:
    """A data set's name, which own data has one of however its path is written."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{os.path.realpath(find(path, folder))}" if colon else name


def _own_transfer(
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
    order = _rng(seed, "transfer").permutation(len(labels))
    return order[:size], np.sort(order[size:])


def _foreign_transfer(
    experiment: Experiment, dataset: Dataset, task: Task, tokeniser: Tokeniser | None
) -> tuple[Tensor, list[str]]:
    """Images ``(M, H, W, C)``, features or rows of another data set that fit the task; warnings."""
    table, source = experiment.data, experiment.data.transfer.source
    known = registry.names("datasets")
    if source not in known and ":" not in source:
        raise FedkdError(
            f"data.transfer.source = {source!r} is not known{nearest(source, ['train', *known])}; "
            f"known: train, {', '.join(known)}, npz:FILE, folder:FOLDER, text:PATH, jsonl:FILE"
        )
    foreign = load_dataset(source, experiment.data_dir(), table.download, labelled=False)
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
    images = foreign.train.images
    if table.transfer.size > len(images):
        raise FedkdError(
            f"data.transfer.size = {table.transfer.size} is too many: the training part of "
            f"{source!r} has {len(images)} samples"
        )
    rows = _rng(experiment.seed, "transfer").permutation(len(images))[: table.transfer.size]
    chosen = images[torch.from_numpy(rows)]
    warnings = list(foreign.warnings)
    if {source, table.dataset} == SHARED_IMAGES:
        warnings.append(
            f"data.transfer.source = {source!r} holds images of data.dataset = {table.dataset!r}: "
            "some samples of clients are public, test samples among them"
        )
    if len(task.shape) == 3:
        chosen = _fitted(chosen, task.shape, pair)
    return chosen, warnings


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


def _common(
    store: Part, rest: np.ndarray, from_train: bool, table: DataTable, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the common test set in its store, and the rows of the training part that are left.

    A data set without a test part gives at most a quarter of what it has left, and of no class more
    than half.
    """
    most = table.test.common
    if not most:
        return rest[:0], rest
    rows = rest if from_train else np.arange(len(store))
    labels = store.labels.numpy()[rows]
    present, counts = np.unique(labels, return_counts=True)
    each = min(most // len(present), counts.min())
    if from_train:
        each = min(each, len(rows) // 4 // len(present), counts.min() // 2)
    if not each:
        raise FedkdError(
            f"data.test.common = {most} cannot hold one sample of each of {len(present)} classes "
            f"out of {len(rows)} samples (the rarest class has {counts.min()}): change it, or set "
            "it to 0 for no common test set"
        )
    rng = _rng(seed, "common")
    common = np.concatenate(
        [rows[rng.choice(np.flatnonzero(labels == y), each, replace=False)] for y in present]
    )
    return common, np.setdiff1d(rest, common) if from_train else rest


def _common_rows(
    labels: np.ndarray, rest: np.ndarray, table: DataTable, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of text in the common test set, and the rows that are left.

    There are too many keys for as many rows of each: every key has its share of rows, to within
    one, in at most a quarter of what there is.
    """
    count = min(table.test.common, len(rest) // 4)
    if table.test.common and not count:
        raise FedkdError(
            f"data.test.common = {table.test.common} cannot hold a quarter of {len(rest)} rows of "
            "text: there are too few; set it to 0 for no common test set"
        )
    return _hold_out(rest, labels, count, _rng(seed, "common"))[::-1]


def _partition(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """``partition``, kept on disk: Flower Datasets alone takes 2 s to import."""

    def digest(content: bytes) -> str:
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def make() -> cache.Arrays:
        parts = partition(labels, writers, table, seed)
        return {"rows": np.concatenate(parts), "sizes": np.array([len(rows) for rows in parts])}

    depends_on = (
        digest(labels.tobytes()),
        None if writers is None else digest(writers.tobytes()),
        sorted(table.model_dump(exclude=NOT_OF_PARTITIONS).items()),
        seed,
        digest(Path(partitions.__file__).read_bytes()),
        [version(package) for package in ("flwr-datasets", "numpy")],
    )

    def fits(kept: cache.Arrays) -> bool:
        rows, sizes = kept["rows"], kept["sizes"]
        once = np.bincount(rows, minlength=len(labels))
        return len(once) == len(labels) and once.max() <= 1 and sizes.sum() == len(rows)

    kept = cache.remembered("partitions", depends_on, make, fits)
    return np.split(kept["rows"], kept["sizes"].cumsum()[:-1])


def _hold_out(
    rows: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """``rows`` without ``count`` of them, and these, both with the label distribution of all."""
    held = np.zeros(len(rows), dtype=bool)
    held[stratified(labels[rows], count, rng)] = True
    return rows[~held], rows[held]


def _test_part(dataset: Dataset) -> Part:
    if dataset.test is None:
        raise FedkdError(
            f"data.test.own = 'matched' needs a data set with a test part, and {dataset.name!r} "
            "has none: set it to 'split'"
        )
    return dataset.test


def _matched(
    test: Part, common: np.ndarray, trained: list[np.ndarray], table: DataTable, seed: int
) -> list[np.ndarray]:
    """Own test rows of each client in the test part, none of them in the common test set.

    A client whose classes are too rare there gets fewer, so that the distribution stays its own.
    """
    labels = test.labels.numpy()
    free = np.setdiff1d(np.arange(len(test)), common)
    classes = max(int(y.max()) for y in [labels, *trained]) + 1
    pools = [free[labels[free] == y] for y in range(classes)]
    there = np.array([len(pool) for pool in pools])
    matched = []
    for client, own in enumerate(trained):
        rng = _rng(seed, "own", client)
        count = max(1, round(len(own) * table.test.fraction / (1 - table.test.fraction)))
        shares = np.bincount(own, minlength=classes) / len(own)
        fits = np.floor(there[shares > 0] / shares[shares > 0]).min()
        if fits < 1:
            short = int(np.flatnonzero((shares > 0) & (there < shares))[0])
            raise FedkdError(
                f"data.test.own = 'matched' cannot be met: outside the common test set the test "
                f"part has no sample of class {short}, which client {client} trains on; lower "
                f"data.test.common ({table.test.common}) or set data.test.own = 'split'"
            )
        like = own[stratified(own, int(min(count, fits)), rng)]
        wanted = np.minimum(np.bincount(like, minlength=classes), there)
        matched.append(
            np.concatenate(
                [rng.choice(pool, n, replace=False) for pool, n in zip(pools, wanted, strict=True)]
            )
        )
    return matched


def _check_disjoint(
    samples: int, transfer: np.ndarray, common: np.ndarray, parts: list[np.ndarray]
) -> None:
    taken = np.bincount(np.concatenate([transfer, common, *parts]), minlength=samples)
    assert taken.max() <= 1, "a sample is in two of transfer set, common test set and clients"
