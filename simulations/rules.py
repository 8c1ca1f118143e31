"""The rules that claims are judged by: what an interval says under each.

Effects are always turned so that positive speaks for the claim. With an interval of the paired
differences over seeds (Student's t):

========== ============================== ==============================
rule       supported                      not supported
========== ============================== ==============================
better     low > margin                   high < margin
not worse  low > -margin                  high < -margin
level      -margin < low, high < margin   low > margin, or high < -margin
trend      as better, of the slope        as better
interior   an inner label of the axis     an end of it is better than
           is better than both ends       every inner label
reduction  low >= margin, of the share    high < margin
           of excess exposure gone
========== ============================== ==============================

and undecided else. An interval is at 95 %; where a test compares with k others, each at 1 - 5 %/k
(Bonferroni), so that all k hold at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedkd.results import Run
from fedkd.simulations.claim import Claim, Criterion
from fedkd.simulations.run_values import Row, Samples
from fedkd.statistics import Interval, interval
from fedkd.summaries import exposures, most_repeated

ERROR = 0.05
"""Chance that an interval, or one of several that are judged at once, misses what it is about."""
Judgement = Literal["supported", "not supported", "undecided", "vacuous", "not run"]


@dataclass(frozen=True)
class Found:
    """What a rule says before seeds are counted; the effect in the value's own unit."""

    verdict: Judgement
    effect: Interval | None
    seeds: int
    detail: str


def _absent(samples: Samples, least: int = 1) -> Found | None:
    """That nothing can be compared, if so: a label without a run, or fewer than ``least``."""
    if len(samples) < least:
        return Found("not run", None, 0, f"the axis has {len(samples)} labels, not {least}")
    names = [str(label) for label, by in samples.items() if not by]
    return Found("not run", None, 0, f"no run of {', '.join(names)}") if names else None


def compared(claim: Claim, test: Criterion, samples: Samples) -> Found:
    """``better``, ``not worse`` and ``level``: one label against each of others."""
    of, others = claim.compare.of, claim.compare.with_
    assert of is not None
    if absent := _absent(samples):
        return absent
    effects = {
        other: _difference(test, samples[of], samples[other], 1 - ERROR / len(others))
        for other in others
    }
    said = {other: _ruled(test, effect) for other, effect in effects.items()}
    refuted = [other for other in others if said[other] == "not supported"]
    weakest = min(refuted or others, key=lambda other: _strength(test, effects[other]))
    verdict: Judgement = "undecided"
    if refuted:
        verdict = "not supported"
    elif all(one == "supported" for one in said.values()):
        verdict = "supported"
    seeds = min(effect.n for effect in effects.values())
    lost = [
        f"seed {seed} of {label} is missing"
        for label in (of, *others)
        for seed in sorted({s for every in (of, *others) for s in samples[every]})
        if seed not in samples[label]
    ]
    open_ = [str(other) for other in others if said[other] == "undecided" and other != weakest]
    also = [f"undecided too against {', '.join(open_)}"] if open_ and not refuted else []
    return Found(verdict, effects[weakest], seeds, "; ".join([f"against {weakest}", *also, *lost]))


def _difference(
    test: Criterion, of: Mapping[int, float], other: Mapping[int, float], confidence: float
) -> Interval:
    """Paired differences over the seeds that both have, positive where ``of`` is better."""
    sign = -1 if test.lower else 1
    differences = []
    for seed in sorted(of.keys() & other.keys()):
        scale = abs(other[seed]) if test.relative else 1.0
        differences.append(sign * (of[seed] - other[seed]) / scale)
    return interval(differences, confidence)


def _ruled(test: Criterion, effect: Interval) -> Judgement:
    """What an interval says under a rule; one that is not known, NaN, decides nothing."""
    low, high, margin = effect.low, effect.high, test.margin
    if test.rule == "level":
        if -margin < low and high < margin:
            return "supported"
        return "not supported" if low > margin or high < -margin else "undecided"
    least = -margin if test.rule == "not worse" else margin
    if low > least:
        return "supported"
    return "not supported" if high < least else "undecided"


def _strength(test: Criterion, effect: Interval) -> float:
    """How strongly an effect speaks for the claim; the weakest of several decides."""
    if math.isnan(effect.low):
        return -math.inf
    return -max(-effect.low, effect.high) if test.rule == "level" else effect.low


def trend(test: Criterion, samples: Samples) -> Found:
    """Whether the value rises along the axis: the slope against its labels, a slope a seed.

    Labels that are positive numbers count by their logarithm to base 2, others by their place.
    """
    labels = list(samples)
    if absent := _absent(samples, 2):
        return absent
    seeds = sorted(set.intersection(*(set(by) for by in samples.values())))
    numbers = all(isinstance(x, int | float) and x > 0 for x in labels)
    places = [math.log2(float(x)) if numbers else float(i) for i, x in enumerate(labels)]
    middle = sum(places) / len(places)
    spread = sum((place - middle) ** 2 for place in places)
    sign = -1 if test.lower else 1
    slopes = [
        sign
        * sum((place - middle) * samples[label][seed] for place, label in zip(places, labels))
        / spread
        for seed in seeds
    ]
    effect = interval(slopes, 1 - ERROR)
    detail = f"{'a doubling' if numbers else 'a step'} of {labels[0]} to {labels[-1]}"
    return Found(_ruled(test, effect), effect, len(seeds), detail)


def interior(test: Criterion, samples: Samples) -> Found:
    """Whether an inner label of the axis beats both of its ends.

    The intervals of all comparisons of an inner label with an end hold at once, so the best inner
    label may be chosen by looking.
    """
    labels = list(samples)
    if absent := _absent(samples, 3):
        return absent
    first, *inner, last = labels
    seeds = set.intersection(*(set(by) for by in samples.values()))
    common = {label: {seed: samples[label][seed] for seed in seeds} for label in labels}
    confidence = 1 - ERROR / (2 * len(inner))
    effects = {
        (label, end): _difference(test, common[label], common[end], confidence)
        for label in inner
        for end in (first, last)
    }
    # Of each inner label the comparison that is worse for it; of these the best.
    worse = {
        label: min((first, last), key=lambda end, label=label: effects[label, end].low)  # type: ignore[misc]
        for label in inner
    }
    best = max(inner, key=lambda label: _or_least(effects[label, worse[label]].low))
    end = worse[best]
    verdict: Judgement = "undecided"
    if effects[best, end].low > test.margin:
        verdict = "supported"
    for one in (first, last):
        if all(effects[label, one].high < test.margin for label in inner):
            verdict = "not supported"
            end = one
            best = max(inner, key=lambda label, one=one: effects[label, one].mean)  # type: ignore[misc]
    return Found(verdict, effects[best, end], len(seeds), f"{best} against {end}")


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def reduced(claim: Claim, test: Criterion, rows: Sequence[Row], samples: Samples) -> Found:
    """The share of excess exposure that is gone, clustered by model, by Fieller's interval."""
    from fedkd.exposures import reduction

    of, (plain,) = claim.compare.of, claim.compare.with_
    assert of is not None
    if absent := _absent(samples):
        return absent
    seeds = sorted(samples[of].keys() & samples[plain].keys())
    found = {}
    for label in (of, plain):
        runs = [
            Run(Path(row["folder"]))
            for seed in seeds
            for row in rows
            if row[claim.compare.axis] == label and row["seed"] == seed
        ]
        found[label] = exposures(runs, "student", most_repeated(runs[0]) if runs else None)
    share = reduction(found[plain][0], found[of][0], found[plain][1], found[of][1], 1 - ERROR)
    effect = Interval(share.mean, share.low, share.high, len(seeds))
    if math.isinf(share.low):
        return Found(
            "vacuous", effect, len(seeds), f"{plain} leaks nothing that can be told from chance"
        )
    verdict: Judgement = "undecided"
    if share.low >= test.margin:
        verdict = "supported"
    elif share.high < test.margin:
        verdict = "not supported"
    return Found(verdict, effect, len(seeds), f"against {plain}; wanted {100 * test.margin:g} %")
