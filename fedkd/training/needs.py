"""What objectives are given besides logits and targets: their needs, of the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd.training.batches import Batch


def provided(
    needs: Sequence[str],
    batch: Batch,
    there: Tensor | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The ``needs`` of an objective, by name, for the K rows of a batch that have a target.

    Parameters
    ----------
    there
        Which rows of the batch these are ``(B,)``; None: all.
    given
        What is at hand for these rows already, and for no others.
    """
    found = {**given}
    if "progress" in needs:
        found["progress"] = _progress(batch, there)
    if "groups" in needs:
        owners = torch.zeros_like(batch.index) if batch.owners is None else batch.owners
        found["groups"] = _some(owners, there)
    return {name: found[name] for name in needs}


def _progress(batch: Batch, there: Tensor | None) -> float | Tensor:
    """A number, or of a stack ``(K, 1)``: its students take steps of different numbers."""
    if isinstance(batch.progress, Tensor) and batch.places is not None:
        return batch.progress[_some(batch.places, there)][:, None]
    return batch.progress


def _some(rows: Tensor, there: Tensor | None) -> Tensor:
    return rows if there is None else rows[there]
