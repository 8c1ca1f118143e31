"""The runs of each entry of a table: their numbers by seed, and names of rows and columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.caveats import ANOTHER_METHOD, Caveat
from fedkd.errors import FedkdError, nearest
from fedkd.escaping import plain
from fedkd.labels import is_setting
from fedkd.simulations.captions import shown

if TYPE_CHECKING:
    from pandas import DataFrame

Labels = tuple[Any, ...]
Key = tuple[Labels, Labels]
"""The labels of an entry's row, and those of its column."""


@dataclass
class Runs:
    """The runs of an entry: a finite number a seed, and the caveats of each run."""

    numbers: dict[Any, float] = field(default_factory=dict)
    caveats: list[tuple[Caveat, ...]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """The mean over seeds; NaN without any."""
        return float(np.mean(list(self.numbers.values()))) if self.numbers else math.nan

    @property
    def another(self) -> bool:
        """Whether a run says that its method comes to no more than another."""
        return any(one.kind in ANOTHER_METHOD for its in self.caveats for one in its)


def gathered_runs(
    frame: DataFrame, down: Sequence[str], across: Sequence[str], value: str, paired_by: str
) -> dict[Key, Runs]:
    """The runs of every entry, in the order of the frame; numbers in the unit they are shown in."""
    for name in (*down, *across, value, paired_by):
        if name not in frame.columns:
            known = sorted(map(str, frame.columns))
            raise FedkdError(f"{name!r} is not a column{nearest(name, known)}")
    factor = shown(value)[0]
    found: dict[Key, Runs] = {}
    seen = set()
    wanted = [*down, *across, paired_by, value, *(["warnings"] if "warnings" in frame else [])]
    keys = [name for name in frame.columns if is_setting(name) and name not in wanted]
    settings: dict[Key, dict[str, Any]] = {}
    for line in frame[list(dict.fromkeys([*wanted, *keys]))].to_dict("records"):
        key = (
            tuple(_label(line[name]) for name in down),
            tuple(_label(line[name]) for name in across),
        )
        seed = _label(line[paired_by])
        if (key, seed) in seen:
            raise FedkdError(
                f"several runs are of {', '.join(map(str, (*key[0], *key[1])))} and {paired_by} "
                f"{seed}: name what else tells them apart, or fix it"
            )
        seen.add((key, seed))
        now = {name: _label(line[name]) for name in keys}
        first = settings.setdefault(key, now)
        if apart := [name for name in keys if first[name] != now[name]]:
            more = f" and {len(apart) - 1} more keys" if len(apart) > 1 else ""
            raise FedkdError(
                f"runs of {', '.join(map(str, (*key[0], *key[1])))} differ in {apart[0]} "
                f"({first[apart[0]]} and {now[apart[0]]}){more}, and are no seeds of one "
                "experiment: name what tells them apart, or fix it"
            )
        its = found.setdefault(key, Runs())
        if math.isfinite(number := factor * _number(value, line[value])):
            its.numbers[seed] = number
        warnings = line.get("warnings")
        its.caveats.append(warnings if isinstance(warnings, tuple) else ())
    if not any(its.numbers for its in found.values()):
        raise FedkdError(f"{value} has no finite number in these runs: a table needs one")
    return found


def _label(label: Any) -> Any:
    """A label; None where there is none, as NaN is not equal to itself."""
    return None if isinstance(label, float) and math.isnan(label) else label


def _number(value: str, number: Any) -> float:
    if number is None:
        return math.nan
    try:
        if not isinstance(number, str):
            return float(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise FedkdError(f"{value} = {repr(number)[:60]} is not a number: a table needs one")


def headings(labels: Sequence[Labels]) -> list[str]:
    """A heading for each combination of labels, with as many digits as tell them apart."""
    shortest = [", ".join(map(short, some)) for some in labels]
    twice = {heading for heading, count in Counter(shortest).items() if count > 1}
    return [
        ", ".join(map(repr, some)) if heading in twice else heading
        for heading, some in zip(shortest, labels, strict=True)
    ]


def short(label: Any) -> str:
    """A label in as few digits as a heading needs; ``-`` for none."""
    if label is None:
        return "-"
    return f"{label:g}" if isinstance(label, float) else plain(label)


def titled(axes: Sequence[str], labels: Labels) -> str:
    """``knfu, alpha 0.1``: labels in a line, with what a number is of."""
    return ", ".join(
        f"{axis.split('.')[-1]} {short(label)}" if _is_number(label) else short(label)
        for axis, label in zip(axes, labels, strict=True)
    )


def _is_number(label: Any) -> bool:
    try:
        float(label)
    except (TypeError, ValueError):
        return False
    return not isinstance(label, bool)
