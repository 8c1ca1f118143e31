"""What attacks find: rates with intervals that hold for all attacks of an audit together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.lab.audit import CONFIDENCE
from fedkd.lab.bounds import audited_epsilon_in_one_run
from fedkd.lab.rates import Rate, detection
from fedkd.records import MEMBERSHIP

FPRS = (0.001, 0.01, 0.1)
LAST, ALL = "last round", "all rounds"
LABELS = "label distribution"
DRAWS_BEYOND = 5
"""Draws of a bootstrap that are to lie beyond an end of an interval, on the mean."""


@dataclass(frozen=True)
class Finding:
    """What one attack finds at one place.

    ``place`` is what was sent (kind of step and key) and ``window`` when: in the last round, or in
    all of them. ``target`` is what is inferred, membership of records or label distributions of
    clients. ``auc`` and, by false positive rate, ``tpr`` are rates with their intervals;
    ``refused`` are false positive rates at which too few false positives are expected, and how
    many. ``epsilon`` is a lower bound on an epsilon at ``delta``, None where the attack proves
    none; it is about ``group`` records of a client at once, the most copies of one that there are.
    Intervals and bounds of all findings of an audit hold together.
    """

    place: str
    window: str
    target: str
    attack: str
    auc: Rate
    tpr: dict[str, Rate]
    refused: dict[str, float]
    epsilon: float | None
    delta: float
    group: int = 1


@dataclass(frozen=True)
class Evidence:
    """The scores of one attack, a client each ``(runs, records)``, and who was a member.

    Of a label distribution a record is a class, and a member is one of which the client has more
    than others. Of membership the first run alone proves a lower bound on an epsilon (Steinke et
    al. 2023).
    """

    place: str
    window: str
    target: str
    attack: str
    scores: Sequence[np.ndarray]
    members: Sequence[np.ndarray]
    group: int = 1


def judged(evidence: Sequence[Evidence], delta: float) -> list[Finding]:
    """Rates and bounds of attacks, with a Bonferroni correction for how many there are."""
    confidence = 1 - (1 - CONFIDENCE) / max(len(evidence), 1)
    draws = max(500, math.ceil(DRAWS_BEYOND * 2 / (1 - confidence)))
    return [_judged(each, delta, confidence, draws) for each in evidence]


def _judged(each: Evidence, delta: float, confidence: float, draws: int) -> Finding:
    found = detection(each.scores, each.members, FPRS, confidence, draws)
    epsilon = None
    if each.target == MEMBERSHIP:
        first = np.concatenate([scores[0] for scores in each.scores])
        inside = np.concatenate([members[0] for members in each.members])
        if inside.any() and not inside.all():
            epsilon = audited_epsilon_in_one_run(first, inside, delta, confidence)
    return Finding(
        place=each.place,
        window=each.window,
        target=each.target,
        attack=each.attack,
        auc=found.auc,
        tpr={f"{fpr:g}": rate for fpr, rate in found.tpr.items()},
        refused={f"{fpr:g}": count for fpr, count in found.refused.items()},
        epsilon=epsilon,
        delta=delta,
        group=each.group,
    )


def strongest(findings: Sequence[Finding]) -> list[Finding]:
    """The attack with the highest AUC of each place, window and target.

    Its ``epsilon`` is the most that any of them proves.
    """
    best: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        best.setdefault((finding.place, finding.window, finding.target), []).append(finding)
    return [_best(group) for group in best.values()]


def _best(group: Sequence[Finding]) -> Finding:
    top = max(group, key=lambda finding: finding.auc[0])
    proved = [finding.epsilon for finding in group if finding.epsilon is not None]
    return Finding(**(vars(top) | {"epsilon": max(proved, default=None)}))


def over_rounds(by_round: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of the last round, and where there are several their sum over all rounds.

    Of log-likelihood ratios the sum is that of all rounds, as if these were independent.
    """
    rounds = sorted(by_round)
    found = {LAST: by_round[rounds[-1]]}
    if len(rounds) > 1:
        found[ALL] = np.sum([by_round[each] for each in rounds], axis=0)
    return found
