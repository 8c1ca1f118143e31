"""How assignments and replies travel: as Flower records, and back.

One ``ConfigRecord`` holds every scalar under its dotted path (``"0.terms.1.objective"``), and each
array, or dictionary of named arrays, is an ``ArrayRecord`` of its own, so that one sent to many
clients is encoded once. One that stands twice in an assignment travels once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedkd.arrays import Array
from fedkd.compression import Delta, LowRank, Quantised
from fedkd.mixtures import Band, Labels, Mean, Mixture, Surest
from fedkd.work import (
    Align,
    Assignment,
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
    Reply,
    Represent,
    Rows,
    Samples,
    Select,
    Share,
    Soft,
)

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Samples, Rows, Quantised, Delta, LowRank, Head, Prior, CrossEntropy, Soft, Feature),
        *(Mixture, Labels, Mean, Surest, Band),
        *(Network, Contrast, Proximal, Linear, Blend, Peer),
        *(Fit, Align, Predict, Represent, Select, Count, Hold, Load, Share, Evaluate, Expose),
    )
}

SCALARS = (bool, int, float, str)
ENVELOPES = {kind.__name__: kind for kind in (Assignment, Reply)}
PLANS = ("steps.", "trial.")
"""What the paths of an assignment's steps begin with."""


def nbytes(thing: Any) -> int:
    """Bytes of all arrays in a step, a sequence of steps or a reply's values, each array once.

    This is what the knowledge itself takes on the wire; Flower's framing (about 200 bytes an
    array) and the few hundred bytes that name the steps are not counted.
    """
    found: dict[int, torch.Tensor] = {}
    _gather(thing, found)
    return sum(tensor.nbytes for tensor in found.values())


def _gather(thing: Any, found: dict[int, torch.Tensor]) -> None:
    """Put every array of ``thing`` into ``found``, by identity."""
    if thing is None or isinstance(thing, SCALARS):
        return
    if hasattr(thing, "detach"):
        found[id(thing)] = thing
        return
    if is_dataclass(thing):
        thing = vars(thing)
    for item in thing.values() if isinstance(thing, dict) else thing:
        _gather(item, found)


class Codec:
    """Assignments and replies to Flower records and back.

    One codec serves the messages of one phase: an array that several of them hold is encoded once,
    and so are steps that several of them are to do.
    """

    WORK: ClassVar[str] = "work"
    """Name of the record of scalars; those of steps have a record of their own."""
    STEPS: ClassVar[str] = "steps"

    def __init__(self) -> None:
        # The object is kept beside its record: an id is only unique while its object lives.
        self._encoded: dict[int, tuple[Any, ArrayRecord]] = {}
        self._steps: dict[str, ConfigRecord] = {}

    def encode(self, thing: Assignment | Reply) -> RecordDict:
        """``thing`` as Flower records."""
        scalars: dict[str, Any] = {}
        arrays: dict[str, Any] = {}
        _flatten(thing, "", scalars, arrays)
        _name_once(scalars, arrays)
        steps = {path: scalars.pop(path) for path in list(scalars) if path.startswith(PLANS)}
        records = RecordDict({self.WORK: ConfigRecord(scalars)})
        if steps:
            same = repr(steps)
            if same not in self._steps:
                self._steps[same] = ConfigRecord(steps)
            records[self.STEPS] = self._steps[same]
        for path, group in arrays.items():
            records[path] = self._arrays(group)
        return records

    def _arrays(self, group: Mapping[str, torch.Tensor]) -> ArrayRecord:
        held = group.get("", group)  # a single array has no name
        if id(held) not in self._encoded:
            record = ArrayRecord()  # which would copy arrays that it is made of
            for name, tensor in group.items():
                record[name] = Array(_numpy(tensor))
            self._encoded[id(held)] = (held, record)
        return self._encoded[id(held)][1]


def decode(records: RecordDict, seen: dict[Any, Any] | None = None) -> Any:
    """The assignment or reply that ``records`` hold.

    Messages that are decoded with the same ``seen``, empty at first and dropped with them, share
    the arrays and the steps that were encoded once.
    """
    arrays: dict[str, Any] = {}
    seen = {} if seen is None else seen
    for path, record in records.items():
        if isinstance(record, ArrayRecord):
            if id(record) not in seen:
                group = {name: _tensor(array) for name, array in record.items()}
                seen[id(record)] = group.get("", group)
            arrays[path] = seen[id(record)]
    scalars = records.config_records
    if (steps := scalars.get(Codec.STEPS)) is not None:
        known = id(steps), *((path, id(array)) for path, array in arrays.items())
        if known not in seen:
            told = dict(steps)
            seen[known] = {path[:-1]: _unflatten(told, arrays, path[:-1]) for path in PLANS}
        arrays |= seen[known]
    return _unflatten(dict(scalars[Codec.WORK]), arrays, "")


def _numpy(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy()


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(array.numpy())


@cache
def _parts(kind: type) -> tuple[str, ...]:
    return tuple(part.name for part in fields(kind))


def _flatten(thing: Any, path: str, scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Put every scalar of ``thing`` into ``scalars`` and every array into ``arrays``, by path."""

    def inside(part: str | int) -> str:
        return f"{path}.{part}" if path else str(part)

    if thing is None:
        return
    if isinstance(thing, SCALARS):
        scalars[path] = thing
    elif is_dataclass(thing):
        scalars[inside("kind")] = type(thing).__name__
        for name, value in vars(thing).items():
            if value is not None:
                _flatten(value, inside(name), scalars, arrays)
    elif isinstance(thing, tuple | list):
        scalars[inside("length")] = len(thing)
        for index, item in enumerate(thing):
            _flatten(item, inside(index), scalars, arrays)
    elif isinstance(thing, Mapping):
        if thing and all(hasattr(value, "detach") for value in thing.values()) and path != "values":
            arrays[path] = thing
            return
        scalars[inside("keys")] = list(thing)
        if all(type(value) is float for value in thing.values()):
            scalars[inside("floats")] = list(thing.values())
            return
        for name, value in thing.items():
            _flatten(value, inside(name), scalars, arrays)
    else:
        arrays[path] = {"": thing}


def _name_once(scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Have each array in ``arrays`` once; ``scalars`` say where else it stands."""
    first: dict[int, str] = {}
    for path, group in list(arrays.items()):
        place = first.setdefault(id(group.get("", group)), path)
        if place != path:
            del arrays[path]
            scalars[f"{path}.same"] = place


def _unflatten(scalars: dict[str, Any], arrays: dict[str, Any], path: str) -> Any:
    def inside(part: str | int) -> str:
        return f"{path}.{part}" if path else str(part)

    if path in scalars:
        return scalars[path]
    if path in arrays:
        return arrays[path]
    if inside("same") in scalars:
        return arrays[scalars[inside("same")]]
    if inside("kind") in scalars:
        name = scalars[inside("kind")]
        kind = KINDS.get(name) or ENVELOPES[name]
        return kind(**{part: _unflatten(scalars, arrays, inside(part)) for part in _parts(kind)})
    if inside("length") in scalars:
        count = scalars[inside("length")]
        if count > len(scalars) + len(arrays):
            raise ValueError(f"{path} has a length of {count}, and fewer entries")
        return tuple(_unflatten(scalars, arrays, inside(index)) for index in range(count))
    if inside("keys") in scalars:
        names = scalars[inside("keys")]
        if inside("floats") in scalars:
            return dict(zip(names, scalars[inside("floats")], strict=True))
        return {name: _unflatten(scalars, arrays, inside(name)) for name in names}
    return None
