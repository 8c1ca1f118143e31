"""What the fields of steps and terms may hold, whatever the client and the data.

:data:`FIELDS` says it for each kind; :func:`check_fields` holds a step or a term to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedkd.compression import Delta, Encoding, LowRank, Quantised
from fedkd.errors import FedkdError, brief
from fedkd.mixtures import Band, Labels, Mean, Mixture, Rule, Surest
from fedkd.options import MOST, MOST_EPOCHS
from fedkd.work import (
    SOURCES,
    Align,
    Blend,
    Contrast,
    Count,
    CrossEntropy,
    Evaluate,
    Expose,
    Feature,
    Fit,
    Head,
    Hold,
    Linear,
    Load,
    Network,
    Peer,
    Predict,
    Prior,
    Proximal,
    Represent,
    Rows,
    Samples,
    Select,
    Share,
    Soft,
    Source,
    Step,
    Term,
)

STEPS = (Fit, Align, Predict, Represent, Select, Count, Hold, Load, Share, Evaluate, Expose)
TERMS = (CrossEntropy, Soft, Feature, Contrast, Proximal, Linear)
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
def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)


def _names(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(type(name) is str for name in value)


def _array(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype in DTYPES
        and value.layout == torch.strided
        and value.device.type != "meta"
    )


def _arrays(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(name) is str and _array(array) for name, array in value.items()
    )


def _options(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(name) is str and (type(option) in (str, bool) or _number(option))
        for name, option in value.items()
    )


def _one_of(*values: str) -> Allowed:
    return Allowed(
        lambda value: type(value) is str and value in values, " or ".join(map(repr, values))
    )


def _or_none(allowed: Allowed) -> Allowed:
    return Allowed(
        lambda value: value is None or allowed.test(value), f"{allowed.description}, or None"
    )


def kinds_of(kinds: tuple[type, ...]) -> str:
    """The names of some kinds of steps or terms, for a line of complaint."""
    return ", ".join(kind.__name__ for kind in kinds)


def _terms(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) > 0
        and all(type(term) in TERMS for term in value)
    )


NUMBER = Allowed(_number, "a finite number")
POSITIVE = Allowed(lambda value: _number(value) and value > 0, "a number above 0")
SHARE = Allowed(lambda value: _number(value) and 0 <= value <= 1, "a number from 0 to 1")
EPOCHS = Allowed(
    lambda value: _number(value) and 0 <= value <= MOST_EPOCHS,
    f"a number from 0 to {MOST_EPOCHS:,}",
)
STEPS_OF_A_FIT = Allowed(
    lambda value: type(value) is int and 0 <= value <= MOST_STEPS,
    f"a whole number from 0 to {MOST_STEPS:,}",
)
FLAG = Allowed(lambda value: type(value) is bool, "True or False")
NAME = Allowed(lambda value: type(value) is str and value != "", "a name")
BLOCK = Allowed(lambda value: type(value) is str, "the name of a block, or ''")
NAMES = Allowed(_names, "a tuple of names of blocks")
EXIT = Allowed(lambda value: type(value) is str, "the name of a block, or none")
SOURCE = Allowed(
    lambda value: type(value) in (str, Samples, Rows),
    f"{', '.join(map(repr, SOURCES))}, Rows(...) of one of them, or Samples(...)",
)
PARAMETERS = Allowed(_arrays, "a dictionary of tensors by name")
PARAMETERS_OR_STUDENT = Allowed(
    lambda value: NAME.test(value) or PARAMETERS.test(value),
    f"{PARAMETERS.description}, or the name of a student",
)
TARGETS = Allowed(
    lambda value: _array(value) and value.is_floating_point() and value.dim() == 2,
    "a tensor of floats with two dimensions",
)
TARGETS_OR_STUDENT = Allowed(
    lambda value: type(value) is str or TARGETS.test(value),
    f"{TARGETS.description}, or the name of a student",
)
PER = _one_of("sample", "class")
SOME_TERMS = Allowed(_terms, f"a tuple of terms ({kinds_of(TERMS)}), as in (CrossEntropy(),)")
OBJECTIVE = Allowed(
    lambda value: NAME.test(value) or _options(value),
    'a name, or a dictionary of a name and options, as in {"name": "dkd", "beta": 4.0}',
)
HEAD = _or_none(Allowed(lambda value: type(value) is Head, "Head(...)"))
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
    lambda value: _array(value) and value.dtype == torch.int64 and value.dim() == 2,
    "a tensor of int64 (K, k)",
)

QUANTISED = Allowed(lambda value: type(value) is Quantised, "Quantised(...)")
ENCODING = _or_none(
    Allowed(
        lambda value: type(value) in (Quantised, Delta), "Quantised(...), Delta(Quantised(...))"
    )
)

FIELDS: dict[type, dict[str, Allowed]] = {
    Samples: {
        "inputs": Allowed(_array, "a tensor (K, ...)"),
        "labels": _or_none(
            Allowed(
                lambda value: _array(value) and value.dtype == torch.int64,
                "a tensor of int64 (K,)",
            )
        ),
        "cut": BLOCK,
    },
    Rows: {
        "source": Allowed(lambda value: type(value) is str, ", ".join(map(repr, SOURCES))),
        "index": Allowed(
            lambda value: (
                _array(value) and value.dtype == torch.int64 and value.dim() == 1 and len(value) > 0
            ),
            "a tensor of int64 (K,), with one number at least",
        ),
    },
    Quantised: {
        "bits": Allowed(
            lambda value: type(value) is int and 1 <= value <= 8, "a whole number from 1 to 8"
        ),
        "grid": _one_of("simplex", "range"),
    },
    Delta: {"rows": _or_none(QUANTISED), "name": NAME},
    Labels: {"smoothing": SHARE},
    Mean: {
        "weights": Allowed(
            lambda value: (
                isinstance(value, tuple | list)
                and all(_number(weight) and weight >= 0 for weight in value)
                and (not value or sum(value) > 0)
            ),
            "a tuple of numbers from 0, not all of them 0; empty: all the same",
        )
    },
    Surest: {"by": _one_of("entropy", "confidence", "label"), "every": FLAG},
    Band: {"low": SHARE, "middle": SHARE, "top": SHARE, "by": _one_of("confidence", "label")},
    Mixture: {
        "parts": Allowed(
            lambda value: (
                isinstance(value, tuple | list)
                and len(value) > 1
                and all(type(part) is Labels or TARGETS_OR_STUDENT.test(part) for part in value)
            ),
            "a tuple of two at least: tensors of floats (K, C), names of students, Labels(...)",
        ),
        "rule": Allowed(
            lambda value: type(value) in (Mean, Surest, Band),
            "Mean(...), Surest(...) or Band(...)",
        ),
    },
    Head: {"cut": BLOCK, "parameters": PARAMETERS_OR_STUDENT, "below": BLOCK},
    Prior: {"form": _one_of("log", "margin"), "weight": POSITIVE},
    CrossEntropy: {
        "weight": NUMBER,
        "on": _or_none(SOURCE),
        "through": HEAD,
        "prior": _or_none(Allowed(lambda value: type(value) is Prior, "Prior(...)")),
        "exit": EXIT,
    },
    Soft: {
        "targets": Allowed(
            lambda value: type(value) is Mixture or TARGETS_OR_STUDENT.test(value),
            f"{TARGETS.description}, the name of a student, or a Mixture(...)",
        ),
        "objective": OBJECTIVE,
        "temperature": TEMPERATURE,
        "weight": NUMBER,
        "tau_squared": FLAG,
        "per": PER,
        "reach": NAMES,
        "on": _or_none(SOURCE),
        "through": HEAD,
        "among": _or_none(CANDIDATES),
        "row_weights": _or_none(WEIGHTS),
        "encoding": ENCODING,
        "adaptive": FLAG,
    },
    Feature: {
        "targets": TARGETS,
        "cut": NAME,
        "measure": _one_of("squared", "cosine"),
        "per": PER,
        "weight": NUMBER,
        "on": _or_none(SOURCE),
        "norms": _or_none(WEIGHTS),
    },
    Contrast: {
        "positive": TARGETS_OR_STUDENT,
        "negative": TARGETS_OR_STUDENT,
        "cut": NAME,
        "temperature": POSITIVE,
        "weight": NUMBER,
        "on": _or_none(SOURCE),
    },
    Proximal: {"weight": NUMBER, "anchor": _or_none(PARAMETERS)},
    Linear: {"given": PARAMETERS, "weight": NUMBER},
    Fit: {
        "on": SOURCE,
        "terms": SOME_TERMS,
        "epochs": _or_none(EPOCHS),
        "min_steps": _or_none(STEPS_OF_A_FIT),
        "lr": _or_none(POSITIVE),
        "part": NAMES,
        "key": NAME,
        "student": NAME,
        "together": Allowed(
            lambda value: (
                isinstance(value, tuple | list) and all(type(peer) is Peer for peer in value)
            ),
            "a tuple of Peer(...)",
        ),
    },
    Peer: {
        "student": NAME,
        "terms": SOME_TERMS,
        "key": NAME,
        "lr": _or_none(POSITIVE),
        "part": NAMES,
        "at": _or_none(Allowed(lambda value: type(value) is Blend, "Blend(...)")),
    },
    Blend: {"student": NAME, "mine": NUMBER, "theirs": NUMBER, "cut": BLOCK, "slope": FLAG},
    Predict: {
        "on": SOURCE,
        "temperature": POSITIVE,
        "output": _one_of("probabilities", "logits"),
        "per": PER,
        "key": NAME,
        "student": NAME,
        "encoding": ENCODING,
    },
    Represent: {
        "cut": NAME,
        "on": SOURCE,
        "temperature": POSITIVE,
        "pool": FLAG,
        "per": PER,
        "key": NAME,
        "student": NAME,
    },
    Select: {"on": SOURCE, "width": POSITIVE, "quantile": SHARE, "key": NAME},
    Count: {"on": SOURCE, "key": NAME},
    Align: {"on": SOURCE, "part": NAMES, "student": NAME},
    Hold: {
        "student": Allowed(
            lambda value: type(value) is str and value not in ("", "own") and ":" not in value,
            "a name without a colon, other than 'own': a name has no colon",
        ),
        "model": Allowed(lambda value: type(value) is str, "the name of a student, or ''"),
    },
    Load: {
        "parameters": Allowed(
            lambda value: type(value) is str or (_arrays(value) and len(value) > 0),
            f"{PARAMETERS.description}, with one at least, or the name of a student",
        ),
        "part": NAMES,
        "student": NAME,
        "keep": NUMBER,
        "weight": NUMBER,
    },
    Share: {
        "part": NAMES,
        "key": NAME,
        "student": NAME,
        "encoding": _or_none(Allowed(lambda value: type(value) is LowRank, "LowRank(...)")),
    },
    LowRank: {
        "energy": Allowed(
            lambda value: _number(value) and 0 < value <= 1, "a number above 0, up to 1"
        )
    },
    Evaluate: {
        "on": SOURCE,
        "key": NAME,
        "student": NAME,
        "prototypes": _or_none(TARGETS),
        "cut": BLOCK,
        "bins": FLAG,
        "above": _or_none(Allowed(lambda value: type(value) is Network, "Network(...)")),
    },
    Network: {"cut": NAME, "model": NAME, "parameters": PARAMETERS},
    Expose: {"key": NAME, "student": NAME},
}
"""What each kind of step and term may hold, field by field."""


COUNT = Allowed(
    lambda value: type(value) is int and 1 <= value <= MOST, f"a whole number from 1 to {MOST:,}"
)
MINIMISE: dict[str, Allowed] = {
    "loss": Allowed(callable, "a function loss(module, index, generator)"),
    "size": COUNT,
    "epochs": EPOCHS,
    "lr": _or_none(POSITIVE),
    "batch_size": _or_none(COUNT),
    "optimiser": _or_none(_one_of("adam", "adamw", "sgd")),
    "part": NAMES,
}
"""What the server may be given to minimise a loss of one's own by."""


def check_minimise(**given: Any) -> None:
    """Refuse an argument of the server's ``minimise`` that is not allowed.

    Raises
    ------
    FedkdError
        One line naming the argument, its value and what is allowed.
    """
    for name, value in given.items():
        allowed = MINIMISE[name]
        if not allowed.test(value):
            raise FedkdError(
                f"{name} = {brief(value)} is not allowed; allowed: {allowed.description}"
            )


def check_fields(
    thing: Step
    | Peer
    | Term
    | Samples
    | Rows
    | Head
    | Network
    | Prior
    | Blend
    | Encoding
    | LowRank
    | Mixture
    | Labels
    | Rule,
) -> None:
    """Refuse a step, term or other part of one with a field that holds what it may not.

    Raises
    ------
    FedkdError
        One line naming the field, its value and what is allowed.
    """
    for name, allowed in FIELDS[type(thing)].items():
        value = getattr(thing, name)
        if not allowed.test(value):
            raise FedkdError(
                f"{type(thing).__name__}: {name} = {brief(value)} is not allowed; "
                f"allowed: {allowed.description}"
            )


def source_name(on: Source) -> str:
    """How a source is called in a line of complaint."""
    if isinstance(on, Rows):
        return f"rows of {on.source!r}"
    if isinstance(on, str):
        return repr(on)
    return f"samples that enter above {on.cut!r}" if on.cut else "samples sent along"
