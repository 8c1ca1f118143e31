"""Which entry of a column is the best, which a paired test tells worse, and what seeds could tell.

An entry that a test does not tell from the best one is not marked: with few seeds that is no tie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedkd.escaping import plain
from fedkd.simulations.captions import Best
from fedkd.simulations.table_runs import Key, Runs
from fedkd.statistics import (
    LEVEL,
    Paired,
    Test,
    at_once,
    fewest_to_tell,
    holm,
    paired,
    smallest_told,
)

WORSE = "↓"
THE_BEST = "the best of the column"
NAMES = {"t": "a paired t test", "wilcoxon": "Wilcoxon's signed-rank test"}


@dataclass(frozen=True)
class Comparison:
    """An entry against its reference: adjusted p, and what could be told at all.

    ``needed`` is how many pairs could tell anything, ``smallest`` the smallest mean difference that
    could be told of pairs that vary so.
    """

    pair: Paired
    p: float
    worse: bool
    needed: int
    smallest: float


def best_key(there: Mapping[Key, Runs], best: Best | None) -> Key | None:
    """The best of a column's entries, if there are several and one of them may be it."""
    means = {key: its.mean for key, its in there.items() if its.numbers}
    fit = [key for key in means if not there[key].another]
    if best is None or len(means) < 2 or not fit:
        return None
    return (max if best == "max" else min)(fit, key=lambda key: means[key])


def compared_with(
    there: Mapping[Key, Runs],
    reference: Key,
    best: Best | None,
    test: Test,
    *,
    together: bool = False,
) -> dict[Key, Comparison]:
    """A column's entries against one, in the seeds that both have; not tested if none is best.

    With ``together`` the intervals of their differences hold for all of them at once.
    """
    pairs: dict[Key, Paired] = {}
    smallest: dict[Key, float] = {}
    apart: dict[Key, list[float]] = {}
    for key, its in there.items():
        seeds = [seed for seed in its.numbers if seed in there[reference].numbers]
        if key != reference and seeds:
            a, b = ([there[one].numbers[seed] for seed in seeds] for one in (key, reference))
            pairs[key], smallest[key] = paired(a, b, test=test), smallest_told(a, b)
            apart[key] = [x - y for x, y in zip(a, b, strict=True)]
    if together:
        held = dict(zip(apart, at_once(list(apart.values())), strict=True))
        pairs = {key: replace(pair, difference=held[key]) for key, pair in pairs.items()}
    tested = [key for key, pair in pairs.items() if pair.n > 1 and best is not None]
    adjusted = dict(zip(tested, holm([pairs[key].p for key in tested]), strict=True))
    sign = 1 if best == "min" else -1
    found = {}
    for key, pair in pairs.items():
        p = adjusted.get(key, math.nan)
        worse = p < LEVEL and sign * pair.difference.mean > 0
        needed = fewest_to_tell(max(len(tested), 1), test)
        found[key] = Comparison(pair, p, worse, needed, smallest[key])
    return found


def of_tests(
    compared: Sequence[Comparison], reference: str, test: Test, unit: str, digits: int
) -> str:
    """What the mark of the worse means, and what these seeds could tell."""
    if not compared:
        return ""
    able = [one for one in compared if one.pair.n >= one.needed]
    if not able:
        needed = min(one.needed for one in compared)
        return f"Too few seeds to tell anything apart: {NAMES[test]} needs {needed} in common."
    other = plain(reference) if reference not in ("", THE_BEST) else "the best"
    parts = [
        f"{WORSE}: worse than {other} by {NAMES[test]} over seeds (Holm over the column, "
        f"p < {LEVEL:g})."
    ]
    largest = max(one.smallest for one in able)
    if test == "t" and not reference and largest > 0:
        ends = [f"{one:.{digits}f}" for one in (min(one.smallest for one in able), largest)]
        unit = {"%": " points"}.get(unit, f" {unit}" if unit else "")
        size = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
        by = " (by entry)" if ends[0] != ends[1] else ""
        parts.append(
            f"No {WORSE} is no tie: with these seeds a difference below {size}{unit}{by} would "
            "not be told."
        )
    else:
        parts.append(f"No {WORSE} is no tie: it is not told apart.")
    if few := len(compared) - len(able):
        parts.append(f"{few} of {len(compared)} entries have too few seeds to be told apart.")
    return " ".join(parts)
