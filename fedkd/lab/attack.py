"""All attacks on all that an experiment's clients send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedkd.experiment import Experiment
from fedkd.lab.audit import delta_of
from fedkd.lab.findings import Finding, judged
from fedkd.lab.labels import LabelGuesses, LabelInference
from fedkd.lab.membership import infer_members


@dataclass(frozen=True)
class Attacked:
    """What attacks found: one of ``findings`` for each place, window and attack.

    ``places`` are all things that clients sent, attacked or not; ``labels`` the errors of guessed
    label distributions.
    """

    shadows: int
    records: int
    places: list[str]
    findings: list[Finding]
    labels: list[LabelInference]


def attack(
    experiment: Experiment,
    shadows: int | None = None,
    done: Callable[[int, int], None] = lambda shadow, of: None,
) -> Attacked:
    """Attack membership and label distributions; parameters and errors as ``infer_members``."""
    guesses = LabelGuesses()
    members = infer_members(experiment, shadows, done, listener=guesses)
    errors, evidence = guesses.judged()
    findings = judged([*members.evidence, *evidence], delta_of(experiment))
    return Attacked(members.shadows, members.records, guesses.places, findings, errors)
