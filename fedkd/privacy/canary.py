"""Canaries: secrets planted in clients' training samples, to measure what leaks of them.

In text a canary is a line, ``my id is 2 8 1 6 5 0``: a template known to all and a few symbols
drawn uniformly (Carlini et al. 2019). Among images it is a sequence of labels (a few images unlike
any other, known to all, and what their holder says they are); or it is an image: a template known
to all, a few blocks of it black or white at random, and a label known to all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedkd.data.dataset import Part
from fedkd.data.language import LINE, SPECIAL, Tokeniser, insert, lines_of
from fedkd.errors import FedkdError
from fedkd.experiment import CanaryTable, Experiment
from fedkd.privacy.canary_images import BLACK_AND_WHITE, ImageTemplate, random_blocks
from fedkd.privacy.exposure import Conditionals, check_space, independent_conditionals
from fedkd.random import generator, key

if TYPE_CHECKING:
    from fedkd.data.dataset import Task

SLOT = "_"
MOST_IMAGES = 2**20
"""Most images that students are shown to rank one: MNIST's size takes a CPU core minutes."""

Kind: TypeAlias = Literal["text", "labels", "pixels"]


@dataclass(frozen=True)
class Canaries:
    """Secrets, who holds them, and what everybody knows of them.

    Parameters
    ----------
    kind : str
        ``"text"``; or of images ``"labels"`` or ``"pixels"``: what of them is secret.
    secrets : Tensor
        ``(S, L)`` int64, indices of symbols; by holder, then by level of repeats.
    repeats : Tensor
        ``(S,)`` int64, copies of each in the training samples of its holders together.
    holders : tuple of tuple of int
        The clients that the copies of each are dealt out to, one after another: the first is the
        one it was drawn for.
    symbols : Tensor
        ``(A,)`` int64: token ids, classes, or grey levels.
    names : tuple of str
        ``A`` names of the symbols.
    public : str
        What the transfer set has of them: ``none``, ``prefix`` or ``exact``.
    template : str
        Text: the line, with a slot ``_`` for each symbol.
    context : Tensor
        Text: ``(P,)`` int64, the tokens before the first symbol, from the one that begins a line.
    images : Tensor or None
        Labels and pixels: ``(S, m, H, W, C)`` uint8, the images of one copy of every secret: one
        for each label, or the one that is secret.
    labels : Tensor or None
        ``(S, m)`` int64: the classes that their holders say these images are.
    image_template : ImageTemplate or None
        Pixels: what all secrets have alike.
    class_names : tuple of str
        Pixels: names of the classes.
    shown : int
        How many images the transfer set ends in that are of canaries.
    """

    kind: Kind
    secrets: Tensor
    repeats: Tensor
    holders: tuple[tuple[int, ...], ...]
    symbols: Tensor
    names: tuple[str, ...]
    public: str
    template: str
    context: Tensor
    images: Tensor | None = None
    labels: Tensor | None = None
    image_template: ImageTemplate | None = None
    class_names: tuple[str, ...] = ()
    shown: int = 0

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
        if self.kind != "text":
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
                | self._label(number)
                for number, (secret, repeats, holders) in enumerate(
                    zip(self.secrets, self.repeats.tolist(), self.holders)
                )
            ],
        }

    def _label(self, secret: int) -> dict[str, str]:
        """Pixels: the class that is known of a secret."""
        if self.kind != "pixels" or self.labels is None:
            return {}
        return {"label": self.class_names[int(self.labels[secret, 0])]}


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
    row numbers name it as often as it has copies; in the transfer set they come last, by secret, or
    what is there in their place. With ``canary.control`` the store and ``private`` are left as they
    are.

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
        return store, private, _show_lines(experiment, canaries, transfer), canaries
    images = _shown_images(experiment, canaries, len(transfer))
    transfer = torch.cat([transfer, _like(transfer, images)])
    return store, private, transfer, replace(canaries, shown=len(images))


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


def _public_others(experiment: Experiment, canaries: Canaries, size: int) -> list[list[int]]:
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
        shown = _public_others(experiment, canaries, len(lines_of(transfer)))
    drawn = generator(experiment.seed, "canary", "places", "public")
    lines = [canaries.line(sequence) for sequence in shown]
    return insert(transfer, lines, drawn, experiment.data.text.context)


def _hide_images(
    experiment: Experiment, canaries: Canaries, store: Part, private: list[np.ndarray]
) -> tuple[Part, list[np.ndarray]]:
    assert canaries.images is not None
    assert canaries.labels is not None
    images = _like(store.images, canaries.images.flatten(0, 1))
    numbers = np.arange(len(store), len(store) + len(images)).reshape(canaries.count, -1)
    planted = [
        np.concatenate([old, np.repeat(numbers, canaries.copies(client), axis=0).flatten()])
        for client, old in enumerate(private)
    ]
    return _longer(store, images, canaries.labels.flatten(), None), planted


def _shown_images(experiment: Experiment, canaries: Canaries, size: int) -> Tensor:
    """What a transfer set of ``size`` images has of canaries: ``(m, H, W, C)`` uint8."""
    assert canaries.images is not None
    if canaries.public == "exact" or canaries.image_template is None:
        return canaries.images.flatten(0, 1)
    shown = torch.tensor(_public_others(experiment, canaries, size))
    return canaries.image_template.filled(canaries.symbols[shown])


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
