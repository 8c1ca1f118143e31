"""The canaries of an experiment, drawn by its seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedkd.data.canaries.images import BLACK_AND_WHITE, ImageTemplate, random_blocks
from fedkd.data.canaries.secrets import SLOT, Canaries, Kind, check_space
from fedkd.data.dataset import Task
from fedkd.data.language import LINE, SPECIAL, Tokeniser
from fedkd.errors import FedkdError
from fedkd.experiment import CanaryTable, Experiment
from fedkd.random import key

MOST_IMAGES = 2**20
"""Most images that students are shown to rank one: MNIST's size takes a CPU core minutes."""


def draw(experiment: Experiment, task: Task) -> Canaries:
    """The canaries of an experiment: the same ones for the same seed.

    Every holder has ``canary.secrets`` secrets at each level of repeats, and no two are the same.

    Raises
    ------
    FedkdError
        If ``[canary]`` cannot be met; the line names the key.
    """
    table, clients = experiment.canary, experiment.data.clients
    _check(table, clients)
    kind = _kind(experiment, task)
    template, context, length = "", torch.zeros(0, dtype=torch.int64), table.length
    image_template = None
    if kind == "text":
        template, context, symbols = _slots(experiment, task.class_names)
        length, names = template.count(SLOT), table.symbols
    elif kind == "labels":
        symbols, names = torch.arange(task.classes), task.class_names
    else:
        image_template = ImageTemplate.draw(experiment.seed, task.shape, length)
        symbols, names = torch.tensor(BLACK_AND_WHITE), tuple(map(str, BLACK_AND_WHITE))
        if table.estimator == "exact":
            check_space(len(symbols), length, "canary.length", MOST_IMAGES)

    owners = table.clients or tuple(range(clients))
    wanted = len(owners) * len(table.repeats) * table.secrets
    _check_room("canary.secrets", wanted, len(symbols), length, kind)
    taken: set[tuple[int, ...]] = set()
    secrets, repeats, holders = [], [], []
    for owner in owners:
        rng = np.random.default_rng(key(experiment.seed, "canary", "secrets", owner))
        for level in table.repeats:
            secrets += _others(rng, len(symbols), length, table.secrets, taken)
            repeats += [level] * table.secrets
        count = len(table.repeats) * table.secrets
        holders += [tuple((owner + more) % clients for more in range(table.spread))] * count
    canaries = Canaries(
        kind=kind,
        secrets=torch.tensor(secrets),
        repeats=torch.tensor(repeats),
        holders=tuple(holders),
        symbols=symbols,
        names=names,
        public=table.public,
        template=template,
        context=context,
        image_template=image_template,
        class_names=task.class_names if kind == "pixels" else (),
    )
    if kind == "text":
        return canaries
    images, labels = _images_and_labels(experiment.seed, owners, canaries, task)
    return replace(canaries, images=images, labels=labels)


def _check(table: CanaryTable, clients: int) -> None:
    if not table.repeats or min(table.repeats) < 1:
        raise FedkdError(
            f"canary.repeats = {list(table.repeats)} is not allowed: at least one level, "
            "and none below 1"
        )
    if len({*table.clients}) < len(table.clients):
        raise FedkdError(f"canary.clients = {list(table.clients)} names a client twice")
    for client in table.clients:
        if not 0 <= client < clients:
            raise FedkdError(
                f"canary.clients = {list(table.clients)} is not allowed: there is no client "
                f"{client}; data.clients = {clients} are numbered from 0"
            )
    if table.spread > clients:
        raise FedkdError(
            f"canary.spread = {table.spread} is too many: there are data.clients = {clients}"
        )


def _kind(experiment: Experiment, task: Task) -> Kind:
    """What is secret, and that it goes with the data and with what is public."""
    table = experiment.canary
    if task.tokens:
        if table.kind != "labels":
            raise FedkdError(
                f"canary.kind = {table.kind!r} is not allowed with data.dataset = "
                f"{experiment.data.dataset!r}, which is text: its secrets are lines"
            )
        return "text"
    if table.public == "prefix" and table.kind == "labels":
        raise FedkdError(
            "canary.public = 'prefix' is not allowed with images whose labels are secret, which "
            "have no prefix; allowed: 'none', 'exact', or canary.kind = 'pixels'"
        )
    return table.kind


def _slots(experiment: Experiment, vocabulary: tuple[str, ...]) -> tuple[str, Tensor, Tensor]:
    """The template as its tokens have it, those before its slots, and those of the symbols."""
    table, text = experiment.canary, experiment.data.text
    prefix, slot, rest = table.template.partition(SLOT)
    if not slot or rest.replace(SLOT, "").strip():
        raise FedkdError(
            f"canary.template = {table.template!r} is not allowed: it must end in slots "
            f"{SLOT!r}, one for each symbol of the secret, e.g. 'my id is _ _ _ _ _ _'"
        )
    length = 1 + rest.count(SLOT)
    tokeniser = Tokeniser(vocabulary, text.tokens)
    symbols = []
    for symbol in table.symbols:
        ids = tokeniser.encode(symbol)
        if len(ids) != 1 or ids[0] < len(SPECIAL):
            raise FedkdError(
                f"canary.symbols: {symbol!r} is not one token of the vocabulary (data.text.tokens "
                f"= {text.tokens!r}, data.text.vocabulary = {text.vocabulary})"
            )
        if ids[0] in symbols:
            raise FedkdError(f"canary.symbols: the token of {symbol!r} is there twice")
        symbols.append(ids[0])
    if not symbols:
        raise FedkdError("canary.symbols = [] is not allowed: at least one is needed")
    between = " " if text.tokens == "word" else ""
    if text.tokens == "word":
        prefix = f"{prefix.rstrip()} ".lstrip()
    # With a symbol after it, a space at the end of the prefix is a token, for characters.
    words = tokeniser.encode(prefix + table.symbols[0])[:-1]
    if len(words) + length > text.context - 1:
        raise FedkdError(
            f"canary.template = {table.template!r} has {len(words) + length} tokens, and a row of "
            f"data.text.context = {text.context} holds lines of at most {text.context - 1}"
        )
    return prefix + between.join(SLOT * length), torch.tensor([LINE, *words]), torch.tensor(symbols)


def _check_room(asking: str, wanted: int, symbols: int, length: int, kind: Kind) -> None:
    if wanted > symbols**length:
        shape = "canary.template" if kind == "text" else "canary.length"
        raise FedkdError(
            f"{asking}: {wanted} different secrets are needed in all, and {shape} has room for "
            f"{symbols**length} ({length} symbols out of {symbols})"
        )


def _others(
    rng: np.random.Generator, symbols: int, length: int, count: int, taken: set[tuple[int, ...]]
) -> list[list[int]]:
    """Sequences drawn uniformly from those that are not ``taken``, which they then are."""
    drawn: list[list[int]] = []
    while len(drawn) < count:
        sequence = rng.integers(symbols, size=length).tolist()
        if tuple(sequence) not in taken:
            taken.add(tuple(sequence))
            drawn.append(sequence)
    return drawn


def public_others(experiment: Experiment, canaries: Canaries, size: int) -> list[list[int]]:
    """Sequences that are no secrets: ``canary.public_share`` of ``size`` others and themselves."""
    share = experiment.canary.public_share
    wanted = max(1, round(size * share / (1 - share)))
    symbols, length = len(canaries.symbols), canaries.length
    _check_room("canary.public_share", canaries.count + wanted, symbols, length, canaries.kind)
    rng = np.random.default_rng(key(experiment.seed, "canary", "secrets", "public"))
    taken = {tuple(secret) for secret in canaries.secrets.tolist()}
    return _others(rng, symbols, length, wanted, taken)


def _images_and_labels(
    seed: int, owners: Sequence[int], canaries: Canaries, task: Task
) -> tuple[Tensor, Tensor]:
    """What one copy of each secret is: images ``(S, m, H, W, C)`` and labels ``(S, m)``."""
    each = canaries.count // len(owners)
    if canaries.image_template is None:
        count = each * canaries.length
        images = torch.cat([random_blocks(seed, owner, count, task.shape) for owner in owners])
        return images.unflatten(0, (canaries.count, -1)), canaries.symbols[canaries.secrets]
    keys = [key(seed, "canary", "labels", owner) for owner in owners]
    labels = [np.random.default_rng(one).integers(task.classes, size=each) for one in keys]
    images = canaries.image_template.filled(canaries.symbols[canaries.secrets])
    return images[:, None], torch.from_numpy(np.concatenate(labels))[:, None]
