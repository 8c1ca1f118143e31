"""What a table of keys is made of, an experiment's or a method's own, and how it is read.

:class:`Table` is its base, ``MOST…`` are the bounds of its keys, :class:`OnlyWith` marks keys that
depend on others, and :func:`validated` makes a table of what a person wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedkd.errors import FedkdError, nearest, shown
from fedkd.toml import check_values, dotted

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

UNQUOTED = re.compile(r"\s*([+-]?[0-9][0-9._eE+-]*|true|false)\s*", re.IGNORECASE)
"""A text that was meant to be a number, true or false."""

Model = TypeVar("Model", bound=BaseModel)

# What is beyond these is a slip of the pen: it is refused before it takes memory or threads.
MOST = 1_000_000
MOST_EPOCHS = 100_000
MOST_TOKENS = 65_536
MOST_TIMES_WIDER = 100
MOST_UNITS = 65_536
MOST_DRAWS = 1_000
MOST_COPIES = 100
MOST_SECRETS = 1_000
MOST_SYMBOLS = 100
MOST_PROCESSES = 512
MOST_SECONDS = 10_000_000

Epochs = Annotated[float, Field(ge=0, le=MOST_EPOCHS)]
"""Passes over samples; fractions allowed."""


class OnlyWith:
    """Mark of an option that has an effect only while another one has one of some values.

    A run says so where it was set and has none::

        top_k: Annotated[int, OnlyWith("neighbours", "top_k")] = Field(3, ge=1)

    In the place of values there may be a function that says whether a value is one of them.
    """

    def __init__(self, option: str, *values: Any) -> None:
        self.option, self.values = option, values

    def acts(self, value: Any) -> bool:
        """Whether the option has an effect, ``value`` being that of the other one."""
        return any(one(value) if callable(one) else one == value for one in self.values)


class Table(BaseModel):
    """One table of an experiment file: unknown keys are refused, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def validated(model: type[Model], values: dict[str, Any], prefix: str = "") -> Model:
    """``model(**values)``, with what is wrong told in one line a person can act on.

    Types are taken as they stand, but that a whole number may stand for a fraction, and a single
    text or number for a list of one. ``prefix`` is put before every key, e.g. ``"strategy."``.

    Raises
    ------
    FedkdError
        One line naming the first key that is wrong, its value and what is allowed.
    """
    check_values(values, prefix)
    # As JSON, since strict types of Python's own would not take a list for a tuple.
    text = json.dumps(_with_lists(model, values), default=lambda number: number.item())
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as failure:
        first, *others = failure.errors()
    path = _written(model, first["loc"])
    key = prefix + dotted(path)
    if first["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        here = ", ".join(known) or "none"
        raise FedkdError(f"{key} is not a known key{nearest(path[-1], known)}; known here: {here}")
    if first["type"] == "missing":
        raise FedkdError(f"{key} is missing")
    if first["type"] == "value_error":
        raise FedkdError(str(first["ctx"]["error"]))
    # Further complaints about the same value are those of a type's alternatives.
    alternatives = [
        _allowed(error)
        for error in others
        if _written(model, error["loc"]) == path and error["input"] == first["input"]
    ]
    allowed = ", or ".join(dict.fromkeys([_allowed(first), *alternatives]))
    raise FedkdError(f"{key} = {shown(first['input'])} is not allowed: {allowed}")


def _allowed(error: ErrorDetails) -> str:
    """What pydantic says is allowed, in the words of TOML."""
    message, kind, value = error["msg"], error["type"], error["input"]
    message = message[0].lower() + message[1:]
    if kind in ("model_type", "dict_type"):
        return "input should be a table"
    if kind in ("tuple_type", "list_type"):
        return "input should be a list"
    if kind == "bool_type":
        message += ": true or false"
    if kind in ("bool_type", "int_type", "float_type") and isinstance(value, str):
        return message + (", without quotes" if UNQUOTED.fullmatch(value) else "")
    if kind == "int_type" and isinstance(value, float):
        message += ", without a decimal point"
    if kind == "string_type":
        message += ", in quotes"
    return message


def _with_lists(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with a list of one for each single text or number where a list is meant."""
    listed = dict(values)
    for name, field in model.model_fields.items():
        key, value = field.alias or name, values.get(field.alias or name)
        table = _table(field.annotation)
        if table and isinstance(value, dict):
            listed[key] = _with_lists(table, value)
        elif table and isinstance(value, list):
            listed[key] = [_with_lists(table, v) if isinstance(v, dict) else v for v in value]
        elif isinstance(value, str | int | float) and get_origin(field.annotation) is tuple:
            listed[key] = [value]
    return listed


def _written(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """``location`` as a dotted key: without what pydantic adds for the alternatives of a type."""
    parts = []
    for part in location:
        if isinstance(part, int):  # of a list of tables
            continue
        parts.append(part)
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        inner = _table(fields[part].annotation) if part in fields else None
        if inner is None:
            break
        model = inner
    return parts


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Keys of the table at ``path`` inside ``model``."""
    for part in path:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        inner = _table(fields[part].annotation) if part in fields else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _table(kind: Any) -> type[BaseModel] | None:
    """The model of a table, or of a list of tables; None for any other type."""
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
