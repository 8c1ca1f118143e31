"""Partitions: which client holds which samples, by Flower Datasets' partitioners.

Every partition is a function of the labels (or writers), the ``[data]`` table and the seed. Samples
are shuffled before a partitioner sees them, as several of them cut the data in the order it has.
They are entry points of the group ``fedkd.partitions``; what somebody's own gives is checked, and
cut to ``data.samples_per_client``.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedkd import registry
from fedkd.errors import FedkdError, blamed, brief
from fedkd.experiment import DataTable
from fedkd.random import key

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Partition = Callable[[np.ndarray, np.ndarray | None, "DataTable", int], list[np.ndarray]]
"""``(labels, writers, table, seed)`` to one array of row numbers a client."""

COHORT = 250
"""Most clients that ``InnerDirichletPartitioner`` fills at once: its time for a sample grows with
their number (35 µs at 250 clients, 80 µs at 1,000)."""
ATTEMPTS = 5
"""Draws of a partition that can turn out impossible before giving up."""


def partition(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """Share samples out to clients.

    Parameters
    ----------
    labels : numpy.ndarray
        ``(n,)`` integers.
    writers : numpy.ndarray or None
        ``(n,)`` integers, who each sample is from.
    table : DataTable
        The ``[data]`` table: how many clients, which partition, and its parameters.
    seed : int
        The same seed gives the same partition.

    Returns
    -------
    list of numpy.ndarray
        For each client the row numbers of its samples, in random order: those it trains on and
        its own test samples together. No row is in two of them.

    Raises
    ------
    FedkdError
        If the request cannot be met; the line names the keys and values.
    """
    divide: Partition = registry.load("partitions", table.partition)
    _check_enough(len(labels), table)
    order = np.random.default_rng(key(seed, "data", "order")).permutation(len(labels))
    _, numbered = np.unique(labels[order], return_inverse=True)
    shuffled_writers = None if writers is None else writers[order]
    with blamed(f"data.partition = {table.partition!r}"):
        parts = divide(numbered, shuffled_writers, table, seed)
    if not registry.ships(divide):
        parts = _at_most(_checked(parts, len(labels), table), numbered, table, seed)
    smallest = min(map(len, parts))
    if smallest < least(table):
        raise FedkdError(
            f"data.partition = {table.partition!r} leaves a client {smallest} samples and it needs "
            f"{_least_in_words(table)}: lower data.clients ({table.clients}) or data.min_samples"
        )
    return [order[rows] for rows in parts]


def least(table: DataTable) -> int:
    """Fewest samples a client can do with: to train on, to validate and to test on."""
    return fewest_training(table) + _tests_itself(table)


def fewest_training(table: DataTable) -> int:
    """Fewest samples a client can do with to train and validate on."""
    return table.min_samples + (table.validation_fraction > 0)


def own_count(samples: int, table: DataTable) -> int:
    """How many of a client's ``samples`` are its own test samples."""
    if not _tests_itself(table):
        return 0
    most = samples - fewest_training(table)
    return min(max(1, round(samples * table.test.fraction)), most)


def stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` positions in ``labels`` that have its distribution, to within one a class.

    Evenly spaced picks from the shuffled samples sorted by label; ascending. ``count`` may exceed
    the number of samples, and then some come more than once.
    """
    if count == 0:
        return np.empty(0, dtype=np.int64)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    picks = (np.arange(count) * len(labels) + rng.integers(len(labels))) // count
    return np.sort(order[picks])


def entropies(counts: np.ndarray) -> np.ndarray:
    """Entropy ``(N,)``, in nats, of each row of counts ``(N, C)``; 0 where a row is empty."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return -(shares * np.log(shares, where=shares > 0, out=np.zeros(shares.shape))).sum(1)


def _tests_itself(table: DataTable) -> bool:
    return table.test.own == "split" and table.test.fraction > 0


def _total(table: DataTable) -> int | None:
    """Samples a client is given so that ``samples_per_client`` of them are training samples."""
    wanted = table.samples_per_client
    if wanted is None or not _tests_itself(table):
        return wanted
    fraction = table.test.fraction
    return wanted + max(1, round(wanted * fraction / (1 - fraction)))


def _least_in_words(table: DataTable) -> str:
    extra = [
        *(["1 to validate"] if table.validation_fraction > 0 else []),
        *(["1 to test on"] if _tests_itself(table) else []),
    ]
    parts = ", ".join([f"data.min_samples = {table.min_samples} to train", *extra])
    return f"{least(table)} ({parts})"


def _check_enough(samples: int, table: DataTable) -> None:
    if table.clients * least(table) > samples:
        raise FedkdError(
            f"data.clients = {table.clients} is too many for the {samples} samples there are to "
            f"share out: each client needs {_least_in_words(table)}"
        )
    wanted, total = table.samples_per_client, _total(table)
    if wanted is None or total is None:
        return
    if wanted < fewest_training(table):
        raise FedkdError(
            f"data.samples_per_client = {wanted} is too few: each client needs "
            f"{_least_in_words(table)}"
        )
    if _exact(table) and total * table.clients > samples:
        own = f" ({total} each with its own test samples)" if total > wanted else ""
        raise FedkdError(
            f"data.samples_per_client = {wanted} for data.clients = {table.clients} takes "
            f"{total * table.clients} samples{own}; there are {samples}"
        )


def _exact(table: DataTable) -> bool:
    """Whether ``samples_per_client`` is what every client gets, and not only the most."""
    return table.partition in ("iid", "shards", "pathological") or (
        table.partition == "dirichlet" and table.sizes == "equal"
    )


def iid(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """Every client a random share of all samples (IidPartitioner)."""
    from flwr_datasets.partitioner import IidPartitioner

    total = _total(table)
    shared = labels if total is None else labels[: total * table.clients]
    return _load(IidPartitioner(table.clients), table.clients, label=shared)


def dirichlet(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """Label skew Dirichlet(alpha), equal or natural sizes ((Inner)DirichletPartitioner)."""
    return _dirichlet[table.sizes](labels, table, seed)


def _dirichlet_equal(labels: np.ndarray, table: DataTable, seed: int) -> list[np.ndarray]:
    """Each client's label distribution ~ Dirichlet(alpha), followed until a class runs out."""
    total = _total(table) or len(labels) // table.clients
    cohorts = np.array_split(np.arange(table.clients), math.ceil(table.clients / COHORT))
    ends = [len(labels) * (cohort[-1] + 1) // table.clients for cohort in cohorts]
    parts: list[np.ndarray] = []
    start = 0
    for number, (cohort, end) in enumerate(zip(cohorts, ends, strict=True)):
        rows = _inner_dirichlet(labels[start:end], [total] * len(cohort), table.alpha, seed, number)
        if rows is None:
            raise FedkdError(
                f"data.alpha = {table.alpha} is too small for equal sizes: once a class has run "
                f"out, clients of that class alone cannot reach {total} samples ({ATTEMPTS} draws "
                "tried); raise data.alpha, lower data.samples_per_client, or set data.sizes = "
                "'natural'"
            )
        parts += [start + client for client in rows]
        start = end
    return parts


def _inner_dirichlet(
    labels: np.ndarray, sizes: list[int], alpha: float, seed: int, cohort: int
) -> list[np.ndarray] | None:
    from flwr_datasets.partitioner import InnerDirichletPartitioner

    # It takes the labels to be 0…C-1 with none left out.
    _, numbered = np.unique(labels, return_inverse=True)
    for attempt in range(ATTEMPTS):
        draw = key(seed, "data", "dirichlet", cohort, attempt)
        partitioner = InnerDirichletPartitioner(sizes, "label", float(alpha), seed=draw)
        try:
            return _load(partitioner, len(sizes), label=numbered)
        except ValueError:  # at a tiny alpha a client's other classes have probability 0
            continue
    return None


def _dirichlet_natural(labels: np.ndarray, table: DataTable, seed: int) -> list[np.ndarray]:
    """Each class shared out over the clients ~ Dirichlet(alpha)."""
    return _by_class(labels, table, seed)


def dirichlet_by_class(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """Each class over the clients ~ Dirichlet(alpha), none to who has its share of all samples.

    The class-wise split of most code (Yurochkin et al. 2019, Li et al. 2022): of unequal sizes, and
    with fewer classes a client than alpha says, as later classes go to those who have least.
    """
    return _by_class(labels, table, seed, balanced=True)


def _by_class(
    labels: np.ndarray, table: DataTable, seed: int, balanced: bool = False
) -> list[np.ndarray]:
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        table.clients,
        "label",
        float(table.alpha),
        min_partition_size=least(table),
        self_balancing=balanced,
        seed=key(seed, "data", "dirichlet"),
    )
    try:
        parts = _load(partitioner, table.clients, strict=balanced, label=labels)
    # It has drawn 11 times, or alpha is so small that it drew NaN, or nothing but zeros.
    except (ValueError, FloatingPointError) as error:
        other = "data.partition = 'dirichlet'" if balanced else "data.sizes = 'equal'"
        raise FedkdError(
            f"data.alpha = {table.alpha} with data.clients = {table.clients}: no draw gave every "
            f"client {_least_in_words(table)}; raise data.alpha, lower data.clients or "
            f"data.min_samples, or set {other}"
        ) from error
    return _at_most(parts, labels, table, seed)


_dirichlet = {"equal": _dirichlet_equal, "natural": _dirichlet_natural}


def pathological(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """Every client has classes_per_client classes and no other (PathologicalPartitioner)."""
    from flwr_datasets.partitioner import PathologicalPartitioner

    held, classes = table.classes_per_client, len(np.unique(labels))
    if held > classes:
        raise FedkdError(
            f"data.classes_per_client = {held} is not allowed: the data set has {classes} classes"
        )
    most = 0
    for attempt in range(ATTEMPTS):
        partitioner = PathologicalPartitioner(
            table.clients,
            "label",
            held,
            class_assignment_mode="first-deterministic",
            seed=key(seed, "data", "pathological", attempt),
        )
        try:
            parts = _load(partitioner, table.clients, label=labels)
        except ValueError:  # a class was given to more clients than it has samples
            continue
        most = max(most, min(map(len, parts)))
        total = _total(table)
        if min(map(len, parts)) >= max(total or 0, least(table)):
            parts = _at_most(parts, labels, table, seed)
            if all(len(np.unique(labels[rows])) == held for rows in parts):
                return parts
    wanted = table.samples_per_client
    raise FedkdError(
        f"data.partition = 'pathological' with data.clients = {table.clients} and "
        f"data.classes_per_client = {held} cannot give every client "
        + (f"data.samples_per_client = {wanted}" if wanted else _least_in_words(table))
        + f": the smallest would have {most} samples in all ({ATTEMPTS} draws tried)"
    )


def shards(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """Every client shards_per_client shards of the samples sorted by label (ShardPartitioner)."""
    from flwr_datasets.partitioner import ShardPartitioner

    count, total = table.shards_per_client, _total(table)
    size = math.ceil(total / count) if total else len(labels) // (table.clients * count)
    if size < 1 or size * count * table.clients > len(labels):
        raise FedkdError(
            f"data.shards_per_client = {count} for data.clients = {table.clients} takes "
            f"{max(size, 1) * count * table.clients} samples in {table.clients * count} shards of "
            f"{max(size, 1)}; there are {len(labels)}"
        )
    partitioner = ShardPartitioner(
        table.clients, "label", count, size, seed=key(seed, "data", "shards")
    )
    return _at_most(_load(partitioner, table.clients, label=labels), labels, table, seed)


def quantity_skew(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """Client sizes ~ Dirichlet(alpha), labels alike everywhere (SizePartitioner)."""
    from flwr_datasets.partitioner import SizePartitioner

    rng = np.random.default_rng(key(seed, "data", "sizes"))
    spare = len(labels) - table.clients * least(table)
    shares = rng.dirichlet(np.full(table.clients, float(table.alpha)))
    # At a tiny alpha every gamma draw can underflow to 0: one client then takes all that is spare.
    if not np.isfinite(shares).all():
        shares = np.eye(table.clients)[rng.integers(table.clients)]
    sizes = least(table) + np.floor(shares * spare).astype(np.int64)
    parts = _load(SizePartitioner(sizes.tolist()), table.clients, label=labels)
    return _at_most(parts, labels, table, seed)


def natural(
    labels: np.ndarray, writers: np.ndarray | None, table: DataTable, seed: int
) -> list[np.ndarray]:
    """Every client is one writer, chosen at random (NaturalIdPartitioner)."""
    from flwr_datasets.partitioner import NaturalIdPartitioner

    if writers is None:
        raise FedkdError(
            "data.partition = 'natural' needs a data set that names its writers: "
            "mnist-by-writer, femnist, an npz file with the key writer, pydoc, shakespeare, or own "
            "text with clients"
        )
    people, counts = np.unique(writers, return_counts=True)
    able = people[counts >= least(table)]
    if len(able) < table.clients:
        raise FedkdError(
            f"data.clients = {table.clients} is more than there are writers: {len(able)} of "
            f"{len(people)} have the samples a client needs, {_least_in_words(table)}"
        )
    rng = np.random.default_rng(key(seed, "data", "writers"))
    chosen = rng.permutation(able)[: table.clients]
    client_of = dict(zip(chosen.tolist(), range(table.clients), strict=True))
    rows = np.flatnonzero(np.isin(writers, chosen))
    clients = np.array([client_of[writer] for writer in writers[rows].tolist()])
    parts = _load(NaturalIdPartitioner("client"), table.clients, client=clients)
    return _at_most([rows[part] for part in parts], labels, table, seed)


def _checked(parts: object, samples: int, table: DataTable) -> list[np.ndarray]:
    """What a partition of somebody's own returned: rows of ``samples``, each of one client."""
    where = f"data.partition = {table.partition!r}"
    if not isinstance(parts, list | tuple) or len(parts) != table.clients:
        many = f"{len(parts)} of them" if isinstance(parts, list | tuple) else brief(parts)
        raise FedkdError(
            f"{where} returned {many}; allowed: a list of {table.clients} arrays of row numbers, "
            "one a client"
        )
    found = [np.asarray(rows) for rows in parts]
    for client, rows in enumerate(found):
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise FedkdError(
                f"{where} returned {brief(parts[client])} for client {client}; allowed: an array "
                "(n,) of row numbers"
            )
    whole = np.concatenate([rows.astype(np.int64) for rows in found])
    if len(whole) and not 0 <= whole.min() <= whole.max() < samples:
        outside = whole[(whole < 0) | (whole >= samples)][0]
        raise FedkdError(f"{where} returned row {outside}; there are {samples}")
    if len(np.unique(whole)) < len(whole):
        raise FedkdError(f"{where} gives two clients the same row, or one client a row twice")
    return [rows.astype(np.int64) for rows in found]


def _at_most(
    parts: list[np.ndarray], labels: np.ndarray, table: DataTable, seed: int
) -> list[np.ndarray]:
    """``parts`` cut to ``samples_per_client`` training samples, label distributions kept."""
    total = _total(table)
    if total is None:
        return parts
    cut = []
    for client, rows in enumerate(parts):
        if len(rows) > total:
            rng = np.random.default_rng(key(seed, "data", "cut", client))
            rows = rows[stratified(labels[rows], total, rng)]
        cut.append(rows)
    return cut


def _load(
    partitioner: Partitioner, clients: int, strict: bool = False, **column: np.ndarray
) -> list[np.ndarray]:
    """Row numbers of every client, by a partitioner that reads the one ``column``.

    Raises
    ------
    FloatingPointError
        It is ``strict``, and has divided nothing by nothing.
    """
    import datasets

    ((name, values),) = column.items()
    rows = np.arange(len(values))
    with _quietly("raise" if strict else "ignore"):
        partitioner.dataset = datasets.Dataset.from_dict({name: values, "row": rows})
        return [
            np.asarray(partitioner.load_partition(client)["row"][:], dtype=np.int64)
            for client in range(clients)
        ]


@contextlib.contextmanager
def _quietly(invalid: Literal["raise", "ignore"]) -> Iterator[None]:
    """Keep partitioners from drawing progress bars and from warning of what is checked here."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        np.errstate(all="ignore", invalid=invalid),
    ):
        warnings.simplefilter("ignore")
        yield
