"""What a field may hold: tests, each with the words that say what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedkd.compression import Delta, Quantised
from fedkd.options import MOST, MOST_EPOCHS
from fedkd.work import SOURCES, Head, Rows, Samples

DTYPES = {
    *(torch.float16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.complex64, torch.complex128),
}
"""What the tensors of a message may be of."""
MOST_STEPS = 10_000_000
"""Of one fit."""


class Allowed(NamedTuple):
    """What a field may hold: a test, and its description."""

    test: Callable[[Any], bool]
    description: str


# Types are exact: what only behaves like a number or a string does not go into a message.
def is_number(value: Any) -> bool:
    """Whether it is a finite int or float that a message can hold."""
    return type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)


def are_names(value: Any) -> bool:
    """Whether they are strings, in a tuple or a list."""
    return isinstance(value, tuple | list) and all(type(name) is str for name in value)


def is_array(value: Any) -> bool:
    """Whether it is a tensor that a message can hold."""
    return (
        isinstance(value, Tensor)
        and value.dtype in DTYPES
        and value.layout == torch.strided
        and value.device.type != "meta"
    )


def are_arrays(value: Any) -> bool:
    """Whether they are such tensors, by name."""
    return isinstance(value, dict) and all(
        type(name) is str and is_array(array) for name, array in value.items()
    )


def are_options(value: Any) -> bool:
    """Whether they are strings, flags and numbers, by name."""
    return isinstance(value, dict) and all(
        type(name) is str and (type(option) in (str, bool) or is_number(option))
        for name, option in value.items()
    )


def one_of(*values: str) -> Allowed:
    """One of these strings."""
    return Allowed(
        lambda value: type(value) is str and value in values, " or ".join(map(repr, values))
    )


def or_none(allowed: Allowed) -> Allowed:
    """What is allowed, or None."""
    return Allowed(
        lambda value: value is None or allowed.test(value), f"{allowed.description}, or None"
    )


NUMBER = Allowed(is_number, "a finite number")
POSITIVE = Allowed(lambda value: is_number(value) and value > 0, "a number above 0")
SHARE = Allowed(lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
EPOCHS = Allowed(
    lambda value: is_number(value) and 0 <= value <= MOST_EPOCHS,
    f"a number from 0 to {MOST_EPOCHS:,}",
)
STEPS_OF_A_FIT = Allowed(
    lambda value: type(value) is int and 0 <= value <= MOST_STEPS,
    f"a whole number from 0 to {MOST_STEPS:,}",
)
FLAG = Allowed(lambda value: type(value) is bool, "True or False")
NAME = Allowed(lambda value: type(value) is str and value != "", "a name")
BLOCK = Allowed(lambda value: type(value) is str, "the name of a block, or ''")
NAMES = Allowed(are_names, "a tuple of names of blocks")
EXIT = Allowed(lambda value: type(value) is str, "the name of a block, or none")
SOURCE = Allowed(
    lambda value: type(value) in (str, Samples, Rows),
    f"{', '.join(map(repr, SOURCES))}, Rows(...) of one of them, or Samples(...)",
)
PARAMETERS = Allowed(are_arrays, "a dictionary of tensors by name")
PARAMETERS_OR_STUDENT = Allowed(
    lambda value: NAME.test(value) or PARAMETERS.test(value),
    f"{PARAMETERS.description}, or the name of a student",
)
TARGETS = Allowed(
    lambda value: is_array(value) and value.is_floating_point() and value.dim() == 2,
    "a tensor of floats with two dimensions",
)
TARGETS_OR_STUDENT = Allowed(
    lambda value: type(value) is str or TARGETS.test(value),
    f"{TARGETS.description}, or the name of a student",
)
PER = one_of("sample", "class")
OBJECTIVE = Allowed(
    lambda value: NAME.test(value) or are_options(value),
    'a name, or a dictionary of a name and options, as in {"name": "dkd", "beta": 4.0}',
)
HEAD = or_none(Allowed(lambda value: type(value) is Head, "Head(...)"))
TEMPERATURE = Allowed(
    lambda value: (
        POSITIVE.test(value)
        or (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.dim() == 1
            and bool((value > 0).all() and torch.isfinite(value).all())
        )
    ),
    "a number above 0, or a tensor of such (K,)",
)
WEIGHTS = Allowed(
    lambda value: (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() == 1
        and bool(torch.isfinite(value).all())
    ),
    "a tensor of finite numbers (K,)",
)
CANDIDATES = Allowed(
    lambda value: is_array(value) and value.dtype == torch.int64 and value.dim() == 2,
    "a tensor of int64 (K, k)",
)
QUANTISED = Allowed(lambda value: type(value) is Quantised, "Quantised(...)")
ENCODING = or_none(
    Allowed(
        lambda value: type(value) in (Quantised, Delta), "Quantised(...), Delta(Quantised(...))"
    )
)
COUNT = Allowed(
    lambda value: type(value) is int and 1 <= value <= MOST, f"a whole number from 1 to {MOST:,}"
)
