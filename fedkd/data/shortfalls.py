"""What was asked of the data and could not be given, a line each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedkd.data.partitions import entropies
from fedkd.sections import DataTable

FLATTER = 1.2
"""Times as many effective classes as draws of alpha have, from which on it was not met."""
DRAWS = 500


def unmet(
    table: DataTable,
    labels: Sequence[np.ndarray],
    validation: Sequence[int],
    own: Sequence[int],
    common: np.ndarray,
    tokens: bool = False,
) -> list[str]:
    """A line for each request of ``[data]`` that was not met in full.

    Parameters
    ----------
    table : DataTable
        What was asked.
    labels : sequence of numpy.ndarray
        ``(n,)`` labels of each client's training samples.
    validation, own : sequence of int
        Numbers of each client's validation and own test samples.
    common : numpy.ndarray
        ``(K,)`` labels of the common test set.
    tokens : bool
        Whether samples are rows of text, whose common test set has no classes to balance.
    """
    sizes = np.array([len(held) for held in labels])
    validated, tested = np.array(validation), np.array(own)
    return [
        *_common(table, common, tokens),
        *([] if tokens else _absent(table, labels, common)),
        *_own(table, sizes, validated, tested),
        *_validation(table, sizes + validated, validated),
        *_sizes(table, sizes + validated),
        *_alpha(table, labels),
    ]


def _common(table: DataTable, labels: np.ndarray, tokens: bool) -> list[str]:
    classes = len(np.unique(labels))
    wanted = table.test.common
    if classes and not tokens:
        wanted -= wanted % classes  # as many of every class
    if len(labels) >= wanted:
        return []
    each = "" if tokens else f", {len(labels) // classes} of each of {classes} classes"
    return [
        f"data.test.common = {table.test.common}: the common test set has {len(labels)} samples"
        f"{each}; the data has no more for it"
    ]


def _absent(table: DataTable, labels: Sequence[np.ndarray], common: np.ndarray) -> list[str]:
    """Classes that clients train on and the common test set does not have."""
    if not len(common):
        return []
    trained = np.unique(np.concatenate(labels))
    absent = np.setdiff1d(trained, common)
    if not len(absent):
        return []
    return [
        f"data.test.common = {table.test.common}: {len(absent)} of the {len(trained)} classes that "
        f"clients train on, class {absent[0]} for one, are not in the common test set, and its "
        "accuracy says nothing of them; the data has no samples of them for it"
    ]


def _own(
    table: DataTable, trained: np.ndarray, validated: np.ndarray, tested: np.ndarray
) -> list[str]:
    fraction = table.test.fraction
    if not fraction:
        return []
    if table.test.own == "split":
        wanted = np.round((trained + validated + tested) * fraction)
    else:
        wanted = np.round(trained * fraction / (1 - fraction))
    asked = f"data.test.fraction = {fraction}"
    return _fewer(asked, "own test samples", tested, np.maximum(1, wanted))


def _validation(table: DataTable, trained: np.ndarray, validated: np.ndarray) -> list[str]:
    fraction = table.validation_fraction
    if not fraction:
        return []
    wanted = np.maximum(1, np.round(trained * fraction))
    return _fewer(f"data.validation_fraction = {fraction}", "validation samples", validated, wanted)


def _sizes(table: DataTable, trained: np.ndarray) -> list[str]:
    wanted = table.samples_per_client
    if wanted is None:
        return []
    asked = f"data.samples_per_client = {wanted}"
    return _fewer(asked, "samples to train and validate on", trained, np.full(len(trained), wanted))


def _fewer(asked: str, of: str, given: np.ndarray, wanted: np.ndarray) -> list[str]:
    """A line where some clients are given fewer than wanted; it names the one with the fewest."""
    short = given < wanted
    if not short.any():
        return []
    client = int(np.flatnonzero(short)[given[short].argmin()])
    return [
        f"{asked}: {short.sum()} of {len(given)} clients have fewer {of}, client {client} "
        f"{given[client]} of {int(wanted[client])}"
    ]


def _alpha(table: DataTable, labels: Sequence[np.ndarray]) -> list[str]:
    """Clients that are all filled up are flatter than their draw once classes have run out."""
    if table.partition != "dirichlet" or table.sizes != "equal":
        return []
    present = np.unique(np.concatenate(labels))
    counts = np.stack(
        [np.bincount(np.searchsorted(present, y), minlength=len(present)) for y in labels]
    )
    asked = _entropies_of(table.alpha, len(present), max(map(len, labels)))
    mean, chance = asked.mean(), 3 * asked.std() / math.sqrt(len(labels))
    realised = entropies(counts).mean()
    if realised <= mean + max(math.log(FLATTER), chance):
        return []
    return [
        f"data.alpha = {table.alpha} is not met: clients have {math.exp(realised):.1f} classes (e "
        f"to the mean entropy of their labels) and draws of it {math.exp(mean):.1f}, as classes "
        "run out where all samples are shared out; lower data.samples_per_client or set "
        "data.sizes = 'natural'"
    ]


def _entropies_of(alpha: float, classes: int, samples: int) -> np.ndarray:
    """Entropies of ``samples`` labels each, of some draws from a Dirichlet law."""
    rng = np.random.default_rng(0)
    laws = rng.dirichlet(np.full(classes, alpha), DRAWS)
    laws = laws[np.isfinite(laws).all(1)]
    if not len(laws):  # so small an alpha that all is 0
        return np.zeros(1)
    return entropies(rng.multinomial(samples, laws / laws.sum(1, keepdims=True)))
