"""Canaries put into clients' training samples, and into the transfer set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedkd.data.canaries.drawing import draw, public_others
from fedkd.data.canaries.secrets import Canaries
from fedkd.data.dataset import Part, Task
from fedkd.data.language import insert, lines_of
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.random import generator


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
        shown = public_others(experiment, canaries, len(lines_of(transfer)))
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
    shown = torch.tensor(public_others(experiment, canaries, size))
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
