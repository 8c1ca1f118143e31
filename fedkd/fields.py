"""What the fields of steps and terms may hold, whatever the client and the data.

:data:`FIELDS` says it for each kind; :func:`check_fields` holds a step or a term to it.
"""

from __future__ import annotations

from typing import Any

import torch

from fedkd.allowed import (
    BLOCK,
    CANDIDATES,
    COUNT,
    ENCODING,
    EPOCHS,
    EXIT,
    FLAG,
    HEAD,
    NAME,
    NAMES,
    NUMBER,
    OBJECTIVE,
    PARAMETERS,
    PARAMETERS_OR_STUDENT,
    PER,
    POSITIVE,
    QUANTISED,
    SHARE,
    SOURCE,
    STEPS_OF_A_FIT,
    TARGETS,
    TARGETS_OR_STUDENT,
    TEMPERATURE,
    WEIGHTS,
    Allowed,
    are_arrays,
    is_array,
    is_number,
    one_of,
    or_none,
)
from fedkd.compression import Delta, Encoding, LowRank, Quantised
from fedkd.errors import FedkdError, brief
from fedkd.mixtures import Band, Labels, Mean, Mixture, Rule, Surest
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


def kinds_of(kinds: tuple[type, ...]) -> str:
    """The names of some kinds of steps or terms, for a line of complaint."""
    return ", ".join(kind.__name__ for kind in kinds)


def _terms(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) > 0
        and all(type(term) in TERMS for term in value)
    )


SOME_TERMS = Allowed(_terms, f"a tuple of terms ({kinds_of(TERMS)}), as in (CrossEntropy(),)")


FIELDS: dict[type, dict[str, Allowed]] = {
    Samples: {
        "inputs": Allowed(is_array, "a tensor (K, ...)"),
        "labels": or_none(
            Allowed(
                lambda value: is_array(value) and value.dtype == torch.int64,
                "a tensor of int64 (K,)",
            )
        ),
        "cut": BLOCK,
    },
    Rows: {
        "source": Allowed(lambda value: type(value) is str, ", ".join(map(repr, SOURCES))),
        "index": Allowed(
            lambda value: (
                is_array(value)
                and value.dtype == torch.int64
                and value.dim() == 1
                and len(value) > 0
            ),
            "a tensor of int64 (K,), with one number at least",
        ),
    },
    Quantised: {
        "bits": Allowed(
            lambda value: type(value) is int and 1 <= value <= 8, "a whole number from 1 to 8"
        ),
        "grid": one_of("simplex", "range"),
    },
    Delta: {"rows": or_none(QUANTISED), "name": NAME},
    Labels: {"smoothing": SHARE},
    Mean: {
        "weights": Allowed(
            lambda value: (
                isinstance(value, tuple | list)
                and all(is_number(weight) and weight >= 0 for weight in value)
                and (not value or sum(value) > 0)
            ),
            "a tuple of numbers from 0, not all of them 0; empty: all the same",
        )
    },
    Surest: {"by": one_of("entropy", "confidence", "label"), "every": FLAG},
    Band: {"low": SHARE, "middle": SHARE, "top": SHARE, "by": one_of("confidence", "label")},
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
    Prior: {"form": one_of("log", "margin"), "weight": POSITIVE},
    CrossEntropy: {
        "weight": NUMBER,
        "on": or_none(SOURCE),
        "through": HEAD,
        "prior": or_none(Allowed(lambda value: type(value) is Prior, "Prior(...)")),
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
        "on": or_none(SOURCE),
        "through": HEAD,
        "among": or_none(CANDIDATES),
        "row_weights": or_none(WEIGHTS),
        "encoding": ENCODING,
        "adaptive": FLAG,
    },
    Feature: {
        "targets": TARGETS,
        "cut": NAME,
        "measure": one_of("squared", "cosine"),
        "per": PER,
        "weight": NUMBER,
        "on": or_none(SOURCE),
        "norms": or_none(WEIGHTS),
    },
    Contrast: {
        "positive": TARGETS_OR_STUDENT,
        "negative": TARGETS_OR_STUDENT,
        "cut": NAME,
        "temperature": POSITIVE,
        "weight": NUMBER,
        "on": or_none(SOURCE),
    },
    Proximal: {"weight": NUMBER, "anchor": or_none(PARAMETERS)},
    Linear: {"given": PARAMETERS, "weight": NUMBER},
    Fit: {
        "on": SOURCE,
        "terms": SOME_TERMS,
        "epochs": or_none(EPOCHS),
        "min_steps": or_none(STEPS_OF_A_FIT),
        "lr": or_none(POSITIVE),
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
        "lr": or_none(POSITIVE),
        "part": NAMES,
        "at": or_none(Allowed(lambda value: type(value) is Blend, "Blend(...)")),
    },
    Blend: {"student": NAME, "mine": NUMBER, "theirs": NUMBER, "cut": BLOCK, "slope": FLAG},
    Predict: {
        "on": SOURCE,
        "temperature": POSITIVE,
        "output": one_of("probabilities", "logits"),
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
            lambda value: type(value) is str or (are_arrays(value) and len(value) > 0),
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
        "encoding": or_none(Allowed(lambda value: type(value) is LowRank, "LowRank(...)")),
    },
    LowRank: {
        "energy": Allowed(
            lambda value: is_number(value) and 0 < value <= 1, "a number above 0, up to 1"
        )
    },
    Evaluate: {
        "on": SOURCE,
        "key": NAME,
        "student": NAME,
        "prototypes": or_none(TARGETS),
        "cut": BLOCK,
        "bins": FLAG,
        "above": or_none(Allowed(lambda value: type(value) is Network, "Network(...)")),
    },
    Network: {"cut": NAME, "model": NAME, "parameters": PARAMETERS},
    Expose: {"key": NAME, "student": NAME},
}
"""What each kind of step and term may hold, field by field."""


MINIMISE: dict[str, Allowed] = {
    "loss": Allowed(callable, "a function loss(module, index, generator)"),
    "size": COUNT,
    "epochs": EPOCHS,
    "lr": or_none(POSITIVE),
    "batch_size": or_none(COUNT),
    "optimiser": or_none(one_of("adam", "adamw", "sgd")),
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
