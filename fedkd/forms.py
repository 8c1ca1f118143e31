"""What the arrays of a reply are to be: shapes, dtypes and laws, by the step that asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedkd.distillation.calibration import BINS
from fedkd.distillation.targets import check_probabilities
from fedkd.shapes import Shapes
from fedkd.work import Expose, Predict, Represent, Share, origin

LARGEST = 1e12
"""Largest number, in size, that a logit, a representation, a parameter or a loss may have: one
beyond it comes of a student that diverged, or of no student."""
WHOLE = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
"""What counters and masks of a student are of."""
Law = Callable[[Tensor, str], str | None]
"""Why an array, of this name, cannot be what it is to be; None if it can."""


class Form(NamedTuple):
    """What one array is to be; a length of None is any."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    law: Law


class Group(NamedTuple):
    """What named arrays are to be, each by itself and, by ``law``, together."""

    arrays: Mapping[str, Form]
    law: Callable[[Mapping[str, Tensor], str], str | None] | None = None


def form_of(
    step: Predict | Represent | Share | Expose,
    shapes: Shapes,
    model: str,
    rows: int | None,
    trial: bool,
) -> Form | Group:
    """What ``step`` replies with: see :mod:`fedkd.replies`.

    Parameters
    ----------
    model
        Architecture of the student that does it.
    rows
        Rows of the step's source, None where that is not known.
    trial
        Whether it is undone afterwards: a measurement, which ``[release]`` is not for.
    """
    classes = shapes.classes
    if isinstance(step, Share):
        blocks = shapes.student(model).part(tuple(step.part))
        return Group(
            {
                name: Form((*shape,), dtype, _whole if dtype in WHOLE else bounded)
                for name, (shape, dtype) in blocks.items()
            }
        )
    if isinstance(step, Expose):
        return Form((shapes.secrets,), torch.float64, are_exposures)
    probabilities = isinstance(step, Represent) or step.output == "probabilities"
    if step.per == "class":
        if isinstance(step, Represent):
            width = shapes.student(model).representation(step.cut, step.pool).numel()
            probabilities = False
        else:
            width = classes
        mean = Form((classes, width), torch.float32, bounded)
        arrays = {"mean": mean, "count": Form((classes,), torch.int64, _counts)}
        # A token at the end of a text has no label, and is of no class.
        some = shapes.task.tokens
        return Group(arrays, _of_classes(rows, some, probabilities))
    law = probable if probabilities else bounded
    if isinstance(step, Predict):
        columns = shapes.released if not trial and origin(step.on) == "transfer" else classes
        return Form((rows, columns), torch.float32, law)
    held = shapes.student(model).representation(step.cut, step.pool)
    arrays = {
        "inputs": Form((rows, *held), torch.float32, bounded),
        "soft_labels": Form((rows, classes), torch.float32, probable),
    }
    if shapes.labelled(step.on):
        arrays["labels"] = Form((rows,), torch.int64, _labels(classes))
    return Group(arrays, _as_many)


def bounded(array: Tensor, name: str) -> str | None:
    """Why not all of ``array`` is finite and up to :data:`LARGEST`."""
    # A norm bounds all of it, and is sooner there than a look at each.
    if float(torch.linalg.vector_norm(array)) <= LARGEST:
        return None
    if not bool(torch.isfinite(array).all()):
        return f"{name} holds values that are not finite"
    largest = float(array.abs().max())
    return f"{name} holds {largest:g}, which is beyond {LARGEST:g}" if largest > LARGEST else None


def probable(array: Tensor, name: str) -> str | None:
    """Why the rows of ``array`` are not probabilities."""
    return check_probabilities(array, name)


def _whole(array: Tensor, name: str) -> str | None:
    return _counts(array, name) if array.dtype != torch.bool else None


def _counts(array: Tensor, name: str) -> str | None:
    if array.numel() and int(array.min()) < 0:
        return f"{name} holds {int(array.min())}, which is negative"
    return None


def anything(array: Tensor, name: str) -> None:
    """Every array of the right shape and dtype will do."""


def _labels(classes: int) -> Law:
    def law(array: Tensor, name: str) -> str | None:
        outside = array[(array < 0) | (array >= classes)]
        if not len(outside):
            return None
        return f"{name} holds {int(outside[0])}; the classes are 0 to {classes - 1}"

    return law


def are_exposures(array: Tensor, name: str) -> str | None:
    """Why ``array`` has no exposures, which may be of no number or without bound."""
    return bounded(array.nan_to_num(0.0, math.inf, -math.inf), name)


def _as_many(arrays: Mapping[str, Tensor], key: str) -> str | None:
    counts = {name: len(array) for name, array in arrays.items()}
    if len({*counts.values()}) == 1:
        return None
    return f"{key} has unlike numbers of rows: " + ", ".join(f"{n} {c}" for n, c in counts.items())


def _of_classes(
    rows: int | None, some: bool, probabilities: bool
) -> Callable[[Mapping[str, Tensor], str], str | None]:
    def law(arrays: Mapping[str, Tensor], key: str) -> str | None:
        mean, held = arrays["mean"], arrays["count"] > 0
        if reason := _total(arrays["count"], key, rows, some):
            return reason
        if bool(mean[~held].any()):
            return f"{key}: the mean of a class without samples is not 0"
        return probable(mean[held], f"{key}: means") if probabilities else None

    return law


def _total(counts: Tensor, key: str, rows: int | None, some: bool) -> str | None:
    """Why counts do not add up to ``rows``, or to less where ``some`` are of no class."""
    total = int(counts.sum())
    if rows is not None and (total > rows or (total < rows and not some)):
        return f"{key}: the counts add up to {total}, and there are {rows} samples"
    return None


def adding_up(rows: int | None, some: bool) -> Law:
    """The law of counts that add up to ``rows``, or to less where ``some`` are of no class."""
    return lambda array, name: _counts(array, name) or _total(array, name, rows, some)


def misfit(value: Any, form: Form | Group, key: str) -> str | None:
    """Why ``value`` is not of this form."""
    if value is None:
        return f"{key} is missing"
    if isinstance(form, Form):
        if not isinstance(value, Tensor):
            return f"{key} holds named arrays where one array was asked"
        return _array(value, form, key)
    if not isinstance(value, dict):
        return f"{key} is one array where named arrays were asked"
    if value.keys() != form.arrays.keys():
        wrong = min(value.keys() ^ form.arrays.keys())
        return f"{key}: {wrong} {'was not asked for' if wrong in value else 'is missing'}"
    for name, wanted in form.arrays.items():
        if reason := _array(value[name], wanted, name):
            return f"{key}: {reason}"
    return form.law(value, key) if form.law is not None else None


def _array(array: Tensor, form: Form, name: str) -> str | None:
    if array.dtype is not form.dtype:
        return f"{name} is {_short(array.dtype)} where {_short(form.dtype)} was asked"
    if array.shape != form.shape and (
        len(array.shape) != len(form.shape)
        or any(b is not None and a != b for a, b in zip(array.shape, form.shape, strict=True))
    ):
        asked = ", ".join("any" if size is None else str(size) for size in form.shape)
        return f"{name} has shape {tuple(array.shape)} where ({asked}) was asked"
    return form.law(array, name)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_bins(array: Tensor, name: str) -> str | None:
    """Why the rows of an array are not samples, the sum of their confidences and how many hit."""
    if reason := bounded(array, name):
        return reason
    sound = (array[:, 0] >= 0) & (array[:, 1:] >= 0).all(1)
    sound &= (array[:, 1:] <= array[:, :1] * (1 + 1e-6)).all(1)
    return None if bool(sound.all()) else f"{name} holds what no samples have"


IN_BINS = Form((BINS, 3), torch.float64, _in_bins)
"""What ``Evaluate`` replies with beside its metrics, where the simulator asks for bins."""
