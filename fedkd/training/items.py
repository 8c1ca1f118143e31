"""Items: what a student answers one by one, samples or the tokens of a text."""

from __future__ import annotations

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


def take(inputs: Tensor, index: Tensor) -> Tensor:
    """``inputs[index]``, keeping images channels-last in memory."""
    if inputs.dim() != 4:
        return inputs.index_select(0, index)
    return inputs.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
