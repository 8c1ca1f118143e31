"""The data of a whole federation: what each client holds, and what everybody shares.

One store holds every sample as it was decoded; a client's part is row numbers into it, and samples
are normalised when they are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd.data import language, normalisation, shortfalls
from fedkd.data.canaries.planting import plant
from fedkd.data.canaries.secrets import Canaries
from fedkd.data.dataset import Corpus, Dataset, Part, Task
from fedkd.data.language import Tokeniser
from fedkd.data.loading import load_dataset
from fedkd.data.normalisation import Normalised, Statistics
from fedkd.data.partitions import entropies, own_count
from fedkd.data.splits import (
    check_disjoint,
    common_test,
    common_test_rows,
    hold_out,
    matched_tests,
    partition_rows,
    server_validation,
    split_generator,
    test_part_of,
)
from fedkd.data.transfer import foreign_transfer, is_train, mixed, own_transfer
from fedkd.digests import checksum
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.work import Samples


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
        ``(M, H, W, C)``, ``(M, d)`` or ``(M, T + 1)``. Here and in the stores, uint8 images are
        normalised when they are asked for, all else has been.
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
    server : Rows, optional
        What the server may validate on.
    transfer_labels : Tensor, optional
        Labels ``(M,)`` of the transfer set, where they are public; otherwise they are kept nowhere.
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
        server: Rows | None = None,
        transfer_labels: Tensor | None = None,
    ) -> None:
        self.task, self.tokeniser, self.canaries = task, tokeniser, canaries
        self.statistics, self.warnings = statistics, warnings
        self._mean = torch.tensor(statistics.mean, dtype=torch.float32)
        self._std = torch.tensor(statistics.std, dtype=torch.float32)
        self._decoded, self._fingerprint = decoded, ""
        self._private, self._validation, self._own = private, validation, own
        # Every client asks for these two every round; the others are normalised when asked for.
        self._common_rows, self._common = common, None
        self._server = server
        self._transfer_images, self._transfer = transfer, None
        self._transfer_labels = transfer_labels
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
        """The public transfer set: M samples without labels, or with the next tokens of a text.

        With labels where ``data.transfer.labels`` says that these are public.
        """
        if self._transfer is None:
            found = self._unlabelled(self._transfer_images)
            labels = self._transfer_labels
            self._transfer = found if labels is None else Samples(found.inputs, labels)
        return self._transfer

    def server_validation(self) -> Samples | None:
        """Labelled samples that the server may validate on; None unless asked for."""
        return None if self._server is None else self._samples(self._server)

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
        other._server = None if self._server is None else there(self._server)
        other._transfer_images, other._transfer = self._transfer_images.to(device), None
        if self._transfer_labels is not None:
            other._transfer_labels = self._transfer_labels.to(device)
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
            places += [] if self._server is None else [self._server]
            for place in places:
                store = place.store
                if id(store) not in checksums:
                    checksums[id(store)] = f"{_kept(store.images)} {checksum(store.labels)}"
                digest.update(f"{checksums[id(store)]} {checksum(place.rows)}\n".encode())
            for images in (self._transfer_images, self._public_images):
                digest.update(_kept(images).encode())
            if self._transfer_labels is not None:
                digest.update(checksum(self._transfer_labels).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def described(self) -> dict[str, Any]:
        """What a run's folder says of the data beside who holds what.

        ``effective_classes`` is e to the mean entropy of clients' label distributions: the number
        of classes a client would have if it had as many samples of each.
        ``effective_classes_of_clients`` has e to the entropy of each.
        """
        described: dict[str, Any] = {"statistics": self.statistics.to_json()}
        if not self.task.tokens:
            each = entropies(self.label_counts().numpy())
            described["effective_classes"] = float(np.exp(each.mean()))
            described["effective_classes_of_clients"] = np.exp(each).tolist()
        return described


def load(experiment: Experiment) -> FederatedData:
    """Load the data set of ``experiment`` and share it out.

    The transfer set is taken first, then, from a data set without a test part, the common test set,
    and what the server validates on; what is left goes to the clients. The same experiment gives
    the same data in every process.

    Raises
    ------
    FedkdError
        If the data is not there, or there is too little of it; the line names keys and values.
    """
    table, seed = experiment.data, experiment.seed
    if table.transfer.labels and experiment.canary.secrets:
        raise FedkdError(
            "data.transfer.labels = true is not allowed with canary.secrets = "
            f"{experiment.canary.secrets}: labels of canaries are attacked through a transfer set "
            "that has none"
        )
    found = load_dataset(table.dataset, experiment.data_dir(), table.download)
    tokeniser = None
    if isinstance(found, Corpus):
        dataset, tokeniser = _tokenised(found, experiment)
        task = Task((table.text.context,), len(tokeniser.vocabulary), tokeniser.vocabulary, True)
    else:
        dataset, task = found, _task(found)
    labels = dataset.train.labels.numpy()
    warnings = list(dataset.warnings)

    if table.transfer.size and not is_train(table, experiment.data_dir()):
        transfer, named, more = foreign_transfer(experiment, dataset, task, tokeniser)
        warnings += more
        rest = np.arange(len(labels))
        withheld = rest[:0]
    else:
        withheld, rest = own_transfer(labels, dataset.name, table, seed)
        transfer, named = (
            each[torch.from_numpy(withheld)]
            for each in (dataset.train.images, dataset.train.labels)
        )
    statistics = normalisation.OF_TEXT
    if not task.tokens:
        statistics, more = normalisation.choose(table, dataset, transfer)
        warnings += more
    transfer = mixed(experiment, task, transfer)
    # A strategy or client that reaches for a transfer label finds none.
    train = Part(dataset.train.images, _without(dataset.train.labels, withheld))

    common_store = train if dataset.test is None else dataset.test
    if task.tokens:
        common, rest = common_test_rows(labels, rest, table, seed)
    else:
        common, rest = common_test(common_store, rest, dataset.test is None, table, seed)

    watched, rest = server_validation(labels, rest, table, seed)
    writers = None if dataset.train.writers is None else dataset.train.writers.numpy()[rest]
    parts = [rest[rows] for rows in partition_rows(labels[rest], writers, table, seed)]

    own_rows: list[np.ndarray] = []
    private, validation = [], []
    for client, rows in enumerate(parts):
        count = own_count(len(rows), table)
        rows, tested = hold_out(rows, labels, count, split_generator(seed, "own", client))
        count = min(
            max(table.validation_fraction > 0, round(len(rows) * table.validation_fraction)),
            len(rows) - table.min_samples,
        )
        rows, validated = hold_out(rows, labels, count, split_generator(seed, "validation", client))
        private.append(rows)
        validation.append(validated)
        own_rows.append(tested)
    own_store = train
    if table.test.own == "matched" and table.test.fraction > 0:
        own_store = test_part_of(dataset)
        own_rows = matched_tests(own_store, common, [labels[rows] for rows in private], table, seed)

    taken = np.concatenate([withheld, watched])
    check_disjoint(len(labels), taken, common if dataset.test is None else common[:0], parts)
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
        store, private, transfer, canaries = plant(
            experiment, task, store, private, public, dataset.unit
        )
    ready = Normalised(statistics)
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
        Rows(ready.part(train), torch.from_numpy(watched)) if len(watched) else None,
        named if table.transfer.labels and not task.tokens else None,
    )


def _kept(images: Tensor) -> str:
    """The checksum of samples as they were decoded; the shape alone of what has been normalised.

    The last digits of normalised numbers could be others on another machine.
    """
    return f"{tuple(images.shape)}" if images.is_floating_point() else checksum(images)


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
