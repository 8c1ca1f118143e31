"""Canaries: secrets planted in clients' training samples, to measure what leaks of them.

In text a canary is a line, ``my id is 2 8 1 6 5 0``: a template known to all and a few symbols
drawn uniformly (Carlini et al. 2019). Among images it is a sequence of labels: a few images unlike
any other, known to all, and what their holder says they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedkd.data.datasets import Part
from fedkd.data.language import LINE, SPECIAL, Tokeniser, insert, lines_of
from fedkd.errors import FedkdError
from fedkd.experiment import CanaryTable, Experiment
from fedkd.privacy.exposure import Conditionals, independent_conditionals
from fedkd.random import generator, key

if TYPE_CHECKING:
    from fedkd.data.federated import Task

BLOCKS = 4
"""Canary images are this many blocks high and wide, each of one random colour."""
SLOT = "_"


@dataclass(frozen=True)
class Canaries:
    """Secrets, who holds them, and what everybody knows of them.

    Parameters
    ----------
    kind : str
        ``"text"``, or ``"labels"`` (of images).
    secrets : Tensor
        ``(S, L)`` int64, indices of symbols; by holder, then by level of repeats.
    repeats : Tensor
        ``(S,)`` int64, copies of each in the training samples of its holders together.
    holders : tuple of tuple of int
        The clients that the copies of each are dealt out to, one after another: the first is the
        one it was drawn for.
    symbols : Tensor
        ``(A,)`` int64: token ids, or classes.
    names : tuple of str
        ``A`` names of the symbols.
    public : str
        What the transfer set has of them: ``none``, ``prefix`` or ``exact``.
    template : str
        Text: the line, with a slot ``_`` for each symbol.
    context : Tensor
        Text: ``(P,)`` int64, the tokens before the first symbol, from the one that begins a line.
    images : Tensor or None
        Labels: ``(S, L, H, W, C)`` uint8, every secret's own.
    """

    kind: Literal["text", "labels"]
    secrets: Tensor
    repeats: Tensor
    holders: tuple[tuple[int, ...], ...]
    symbols: Tensor
    names: tuple[str, ...]
    public: str
    template: str
    context: Tensor
    images: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of secrets S."""
        return len(self.secrets)

    @property
    def length(self) -> int:
        """Symbols of a secret L."""
        return self.secrets.shape[1]

    @property
    def space(self) -> int:
        """Number of sequences that a secret is drawn from."""
        return len(self.symbols) ** self.length

    @property
    def log2_space(self) -> float:
        """The same in bits."""
        return self.length * math.log2(len(self.symbols))

    def held_by(self, client: int) -> list[int]:
        """Numbers of the secrets that ``client`` has in its training samples."""
        return [
            secret
            for secret, (repeats, holders) in enumerate(zip(self.repeats.tolist(), self.holders))
            if client in holders[:repeats]
        ]

    def copies(self, client: int) -> list[int]:
        """How many copies of each secret ``client`` has: ``S`` numbers."""
        return [
            len(range(holders.index(client), repeats, len(holders))) if client in holders else 0
            for repeats, holders in zip(self.repeats.tolist(), self.holders)
        ]

    def line(self, sequence: Sequence[int] | Tensor) -> list[int]:
        """Text: token ids of the line that a sequence of symbol indices makes."""
        index = torch.as_tensor(sequence)
        return [*self.context[1:].tolist(), *self.symbols[index].tolist()]

    def text(self, sequence: Sequence[int] | Tensor) -> str:
        """A sequence of symbol indices as one reads it."""
        names = [self.names[int(index)] for index in sequence]
        if self.kind == "labels":
            return " ".join(names)
        return "".join(before + name for before, name in zip(self.template.split(SLOT), names))

    def to_json(self) -> dict[str, Any]:
        """Everything but images, in types that JSON has."""
        return {
            "kind": self.kind,
            "template": self.template,
            "symbols": list(self.names),
            "length": self.length,
            "space": self.space,
            "log2_space": self.log2_space,
            "public": self.public,
            "secrets": [
                {
                    "text": self.text(secret),
                    "symbols": secret.tolist(),
                    "repeats": repeats,
                    "holders": list(holders),
                }
                for secret, repeats, holders in zip(
                    self.secrets, self.repeats.tolist(), self.holders
                )
            ],
        }


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
    if task.tokens:
        template, context, symbols = _slots(experiment, task.class_names)
        length, names = template.count(SLOT), table.symbols
    else:
        if table.public == "prefix":
            raise FedkdError(
                "canary.public = 'prefix' is not allowed with images, which have no prefix; "
                "allowed: 'none', 'exact'"
            )
        template, length, context = "", table.length, torch.zeros(0, dtype=torch.int64)
        symbols, names = torch.arange(task.classes), task.class_names

    owners = table.clients or tuple(range(clients))
    wanted = len(owners) * len(table.repeats) * table.secrets
    _check_room("canary.secrets", wanted, len(symbols), length, task.tokens)
    taken: set[tuple[int, ...]] = set()
    secrets, repeats, holders, images = [], [], [], []
    for owner in owners:
        rng = np.random.default_rng(key(experiment.seed, "canary", "secrets", owner))
        for level in table.repeats:
            secrets += _others(rng, len(symbols), length, table.secrets, taken)
            repeats += [level] * table.secrets
        count = len(table.repeats) * table.secrets
        holders += [tuple((owner + more) % clients for more in range(table.spread))] * count
        if not task.tokens:
            images.append(_images(experiment.seed, owner, count * length, task.shape))
    return Canaries(
        kind="text" if task.tokens else "labels",
        secrets=torch.tensor(secrets),
        repeats=torch.tensor(repeats),
        holders=tuple(holders),
        symbols=symbols,
        names=names,
        public=table.public,
        template=template,
        context=context,
        images=None if task.tokens else torch.cat(images).unflatten(0, (wanted, length)),
    )


def plant(
    experiment: Experiment,
    task: Task,
    store: Part,
    private: list[np.ndarray],
    transfer: Tensor,
    unit: bool = False,
) -> tuple[Part, list[np.ndarray], Tensor, Canaries | None]:
    """Put canaries into clients' training samples, and into the transfer set what is public.

    Text: a holder's rows are unpacked, canary lines put at places drawn at random, and the lines
    packed again; the new rows come after all others of the store. A row packed anew has the label
    of the row that was about where it is. Images: the store gets each image once, and a holder's
    row numbers name it as often as it has copies; in the transfer set they come last, by secret.
    With ``canary.control`` the store and ``private`` are left as they are.

    Parameters
    ----------
    experiment : Experiment
        ``[canary]``; without secrets everything is given back as it is.
    task : Task
        Shapes, classes and their names: the vocabulary of a text.
    store : Part
        The samples that clients' row numbers are of.
    private : list of ndarray
        Row numbers of each client's training samples.
    transfer : Tensor
        ``(M, H, W, C)`` uint8, or float from 0 to 1; or ``(M, T+1)`` int64 token rows.
    unit : bool
        Whether 0 is black and 1 is white in the store's images, if they are float.

    Returns
    -------
    tuple
        Store, private and transfer with canaries in them, and the canaries. Rows that the store had
        keep their numbers.

    Raises
    ------
    FedkdError
        If ``[canary]`` cannot be met; the line names the key.
    """
    if not experiment.canary.secrets:
        return store, private, transfer, None
    known = store.images.dtype == torch.uint8 or unit
    if not task.tokens and (store.images.dim() != 4 or not known):
        raise FedkdError(
            f"canary.secrets = {experiment.canary.secrets} is not allowed with data.dataset = "
            f"{experiment.data.dataset!r}: canaries are lines of text or uint8 images, or float "
            "ones with x_range in their npz file, and its samples are neither"
        )
    canaries = draw(experiment, task)
    if canaries.public != "none" and not len(transfer):
        raise FedkdError(
            f"canary.public = {canaries.public!r} needs a transfer set, and data.transfer.size = 0"
        )
    if not experiment.canary.control:
        hide = _hide_lines if task.tokens else _hide_images
        store, private = hide(experiment, canaries, store, private)
    if canaries.public == "none":
        return store, private, transfer, canaries
    if canaries.images is None:
        transfer = _show_lines(experiment, canaries, transfer)
    else:
        transfer = torch.cat([transfer, _like(transfer, canaries.images.flatten(0, 1))])
    return store, private, transfer, canaries


def label_conditionals(log_probs: Tensor) -> list[Conditionals]:
    """Conditionals of each secret that is a sequence of labels, from ``(S, m, C)`` log-probs.

    Every secret has images of its own, so that nothing is shared between them.
    """
    return [independent_conditionals(law) for law in log_probs]


# --- what is drawn --------------------------------------------------------------------------


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


def _check_room(asking: str, wanted: int, symbols: int, length: int, tokens: bool) -> None:
    if wanted > symbols**length:
        shape = "canary.template" if tokens else "canary.length"
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


def _images(seed: int, owner: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Images ``(count, H, W, C)`` uint8 of random blocks, no two the same."""
    channels, height, width = shape
    rng = np.random.default_rng(key(seed, "canary", "images", owner))
    blocks = rng.integers(256, size=(count, BLOCKS, BLOCKS, channels), dtype=np.uint8)
    rows, columns = (np.arange(size) * BLOCKS // size for size in (height, width))
    return torch.from_numpy(blocks[:, rows][:, :, columns])


# --- where it is put ------------------------------------------------------------------------


def _hide_lines(
    experiment: Experiment, canaries: Canaries, store: Part, private: list[np.ndarray]
) -> tuple[Part, list[np.ndarray]]:
    lines = [canaries.line(secret) for secret in canaries.secrets]
    rows, sources, planted = [], [], list(private)
    size = len(store)
    for client, old in enumerate(private):
        copies = canaries.copies(client)
        own = [line for line, times in zip(lines, copies) for _ in range(times)]
        if not own:
            continue
        drawn = generator(experiment.seed, "canary", "places", client)
        held = store.images[torch.from_numpy(old)]
        new = insert(held, own, drawn, experiment.data.text.context)
        rows.append(new)
        sources.append(torch.from_numpy(old[np.arange(len(new)) * len(old) // len(new)]))
        planted[client] = np.arange(size, size + len(new))
        size += len(new)
    source = torch.cat(sources)
    return _longer(store, torch.cat(rows), store.labels[source], source), planted


def _show_lines(experiment: Experiment, canaries: Canaries, transfer: Tensor) -> Tensor:
    shown = canaries.secrets.tolist()
    if canaries.public == "prefix":
        share = experiment.canary.public_share
        wanted = max(1, round(len(lines_of(transfer)) * share / (1 - share)))
        symbols, length = len(canaries.symbols), canaries.length
        _check_room("canary.public_share", canaries.count + wanted, symbols, length, True)
        rng = np.random.default_rng(key(experiment.seed, "canary", "secrets", "public"))
        shown = _others(rng, symbols, length, wanted, {tuple(secret) for secret in shown})
    drawn = generator(experiment.seed, "canary", "places", "public")
    lines = [canaries.line(sequence) for sequence in shown]
    return insert(transfer, lines, drawn, experiment.data.text.context)


def _hide_images(
    experiment: Experiment, canaries: Canaries, store: Part, private: list[np.ndarray]
) -> tuple[Part, list[np.ndarray]]:
    assert canaries.images is not None
    images = _like(store.images, canaries.images.flatten(0, 1))
    numbers = np.arange(len(store), len(store) + len(images)).reshape(canaries.count, -1)
    planted = [
        np.concatenate([old, np.repeat(numbers, canaries.copies(client), axis=0).flatten()])
        for client, old in enumerate(private)
    ]
    labels = canaries.symbols[canaries.secrets.flatten()]
    return _longer(store, images, labels, None), planted


def _like(others: Tensor, images: Tensor) -> Tensor:
    """Uint8 images as they are, or from 0 to 1 where the others are float."""
    return images if others.dtype == torch.uint8 else (images.double() / 255).to(others.dtype)


def _longer(store: Part, images: Tensor, labels: Tensor, source: Tensor | None) -> Part:
    """The store with new samples after its own; ``source`` has a sample of the same writer each."""
    writers = store.writers
    if writers is not None:
        new = torch.full_like(labels, -1) if source is None else writers[source]
        writers = torch.cat([writers, new])
    return Part(torch.cat([store.images, images]), torch.cat([store.labels, labels]), writers)
