"""A client's label distribution, inferred from what it sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd.privacy.sensitivity import Numbers, as_numbers


class Inferred(NamedTuple):
    """A client's label distribution ``(C,)`` as somebody guesses it, and what from."""

    distribution: Numbers
    how: str


def infer_label_distribution(
    values: Mapping[str, Tensor | dict[str, Tensor]],
    predict: Callable[[dict[str, Tensor]], Tensor | None] | None = None,
    classes: int | None = None,
) -> Inferred | None:
    """What a server takes a client's label distribution to be, from what the client sent.

    The first of: labels sent along (their histogram), counts of classes, soft labels (their mean),
    logits (the mean of their softmax), parameters (the mean soft label of that model).

    Parameters
    ----------
    values : mapping
        Arrays of a reply, by key: soft labels or logits ``(M, C)``, or named arrays.
    predict : callable, optional
        From named parameters to what a model with them says of public samples: soft labels
        ``(M, C)`` or their mean ``(C,)``, None where they are not a whole model.
    classes : int, optional
        Number of classes C: arrays of another width are passed over. If not given, that of the
        arrays themselves, and of labels without soft labels one more than the largest.

    Returns
    -------
    Inferred or None
        ``how`` is "labels", "counts", "soft labels", "logits" or "parameters"; None if there is
        nothing of them.
    """
    named = [value for value in values.values() if not isinstance(value, Tensor)]
    arrays = [value for value in values.values() if isinstance(value, Tensor)]
    arrays += [found["soft_labels"] for found in named if "soft_labels" in found]
    for found in named:
        if "labels" in found:
            width = found["soft_labels"].shape[-1] if "soft_labels" in found else 0
            labels = found["labels"].flatten().cpu()
            counts = torch.bincount(labels[labels >= 0], minlength=classes or width)
            if len(counts) == (classes or len(counts)) and counts.sum():
                return Inferred(_normalised(counts), "labels")
    for found in named:
        counts = found.get("count", torch.zeros(0))
        if counts.sum() > 0 and len(counts) == (classes or len(counts)):
            return Inferred(_normalised(counts), "counts")
    whole = [
        array.double().cpu()
        for array in arrays
        if array.dim() == 2 and len(array) and array.shape[1] == (classes or array.shape[1])
    ]
    for array in whole:
        if _are_probabilities(array):
            return Inferred(_normalised(array.mean(0)), "soft labels")
    for array in whole:
        if array.isfinite().all():
            return Inferred(_normalised(array.softmax(1).mean(0)), "logits")
    for found in named:
        if predict is not None and not {"labels", "count", "soft_labels"} & found.keys():
            said = predict(found)
            if said is not None:
                law = said.double().reshape(-1, said.shape[-1]).mean(0)
                return Inferred(_normalised(law), "parameters")
    return None


class Errors(NamedTuple):
    """How far a guess is from a distribution: L1 distance, Jensen-Shannon divergence in bits."""

    l1: float
    jensen_shannon: float
    top_hit: bool


def distribution_errors(estimate: Any, truth: Any) -> Errors:
    """How far an inferred label distribution ``(C,)`` is from the true one.

    Returns
    -------
    Errors
        ``l1`` is at most 2, ``jensen_shannon`` at most 1; ``top_hit`` says whether the likeliest
        class is the right one (of several that are equally likely, the first).
    """
    guess, true = _normalised(estimate), _normalised(truth)
    middle = (guess + true) / 2
    return Errors(
        float(np.abs(guess - true).sum()),
        (_bits(guess, middle) + _bits(true, middle)) / 2,
        bool(guess.argmax() == true.argmax()),
    )


def baseline_distributions(truths: Any) -> dict[str, Numbers]:
    """Guesses ``(N, C)`` that take nothing from the client, from all true distributions ``(N, C)``.

    ``uniform``, and ``others``: the mean of the other clients (uniform where there are none).
    """
    law = np.stack([_normalised(row) for row in as_numbers(truths)])
    uniform = np.full(law.shape, 1 / law.shape[1])
    others = (law.sum(0) - law) / (len(law) - 1) if len(law) > 1 else uniform
    return {"uniform": uniform, "others": others}


def _are_probabilities(rows: Tensor) -> bool:
    return bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-3).all())


def _normalised(weights: Any) -> Numbers:
    found = as_numbers(weights)
    return found / found.sum()


def _bits(law: Numbers, other: Numbers) -> float:
    there = law > 0
    return float((law[there] * np.log2(law[there] / other[there])).sum())
