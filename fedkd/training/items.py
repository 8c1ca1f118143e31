"""Items: what a student answers one by one, samples or the tokens of a text."""

from __future__ import annotations

import torch
from torch import Tensor

from fedkd.data.language import PAD
from fedkd.work import Samples


def items(inputs: Tensor) -> Tensor:
    """Places ``(M,)`` of the tokens of ``(K, T)`` that are not padding, in ``inputs.flatten()``."""
    return (inputs != PAD).flatten().nonzero()[:, 0]


def item_labels(samples: Samples) -> Tensor | None:
    """A label for each row that :func:`predict` gives: ``(K,)``; of text ``(M,)``, -1 for none."""
    if samples.labels is None or samples.labels.dim() == 1:
        return samples.labels
    return samples.labels.flatten()[items(samples.inputs)]


def at_items(given: Tensor, chosen: Tensor | None) -> Tensor:
    """Rows of ``(B, T, ...)`` at places ``chosen`` ``(M,)``, or all of it without."""
    return given if chosen is None else given.flatten(0, 1).index_select(0, chosen)


def item_counts(inputs: Tensor) -> Tensor | None:
    """Items of each sample, ``(K,)``: of text, its tokens. None where each has one."""
    return None if inputs.is_floating_point() else (inputs != PAD).sum(1)


def item_numbers(index: Tensor, counts: Tensor | None) -> Tensor:
    """Where the items of samples ``index`` ``(K,)`` are among those of all samples: ``(R,)``.

    ``counts`` is what :func:`item_counts` says of all samples.
    """
    if counts is None:
        return index
    index = index.to(counts.device)
    here, first = counts[index], (counts.cumsum(0) - counts)[index]
    within = torch.arange(int(here.sum()), device=counts.device)
    return within + (first - here.cumsum(0) + here).repeat_interleave(here)


def on_all_items(
    values: Tensor, index: Tensor, inputs: Tensor, others: float | None = None
) -> Tensor:
    """A row for every item of ``inputs``, ``(M, C)``, from ``values`` ``(R, C)`` of some samples.

    ``index`` ``(K,)`` has the numbers of these samples. The other rows hold ``others``, or the
    uniform law.
    """
    counts = item_counts(inputs)
    count = len(inputs) if counts is None else int(counts.sum())
    value = 1 / values.shape[1] if others is None else others
    whole = values.new_full((count, values.shape[1]), value)
    return whole.index_copy(0, item_numbers(index, counts).to(values.device), values)


def some(samples: Samples, index: Tensor) -> Samples:
    """The samples with these numbers ``(K,)``, in this order."""
    index = index.to(samples.inputs.device)
    labels = None if samples.labels is None else samples.labels[index]
    return Samples(take(samples.inputs, index), labels, samples.cut)


def placed(samples: Samples, device: torch.device) -> Samples:
    """The samples on ``device``."""
    labels = None if samples.labels is None else samples.labels.to(device)
    return Samples(samples.inputs.to(device), labels, samples.cut)


def take(inputs: Tensor, index: Tensor) -> Tensor:
    """``inputs[index]``, keeping images channels-last in memory."""
    if inputs.dim() != 4:
        return inputs.index_select(0, index)
    return inputs.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
