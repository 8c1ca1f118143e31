"""Label distributions of clients, from all that they sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedkd.engine.worker import Worker
from fedkd.lab.distributions import (
    baseline_distributions,
    distribution_errors,
    infer_label_distribution,
)
from fedkd.lab.findings import LABELS, Evidence, over_rounds
from fedkd.lab.models import architecture, loaded, over_all_classes
from fedkd.lab.worlds import Sent
from fedkd.training import predict
from fedkd.work import Count, Parameters, Predict, Select


@dataclass(frozen=True)
class LabelInference:
    """How well clients' label distributions are told from what they sent, a mean over clients.

    ``l1`` is the L1 distance to the truth, ``l1_others`` that of the mean of the other clients'
    truth, the guess without anything sent; ``top`` the share of clients whose commonest class is
    told. ``how`` says what was read.
    """

    place: str
    window: str
    how: str
    l1: float
    l1_others: float
    top: float


class LabelGuesses:
    """What a server takes each client's label distribution to be, from each thing that it sent."""

    def __init__(self) -> None:
        self.places: list[str] = []
        """All things that were sent."""
        self._label_counts = torch.empty(0)
        self._guesses: dict[tuple[str, str], dict[int, dict[int, np.ndarray]]] = {}

    def __call__(self, worker: Worker, sent: Sent) -> None:
        """Read ``sent``."""
        if sent.place not in self.places:
            self.places.append(sent.place)
        step = sent.step
        if isinstance(step, Select):
            return
        value, self._label_counts = sent.value, worker.data.label_counts()

        def laws(given: Parameters) -> Tensor | None:
            if isinstance(step, Count):  # which no student gives
                return None
            student = loaded(worker, architecture(worker, sent.client, step.student), given)
            if student is None:
                return None
            return predict(student, worker.data.transfer().inputs).softmax(1)

        if isinstance(value, Tensor) and isinstance(step, Predict):
            value = over_all_classes(worker, value, step.on)
        if isinstance(value, Tensor) and isinstance(step, Count):
            value = {"count": value}
        found = infer_label_distribution({step.key: value}, laws, worker.data.task.classes)
        if found is not None:
            by_client = self._guesses.setdefault((sent.place, found.how), {})
            by_client.setdefault(sent.client, {})[sent.round] = found.distribution

    def judged(self) -> tuple[list[LabelInference], list[Evidence]]:
        """Errors of the guesses, and their evidence on which classes a client has more of.

        Of all rounds the guess is the mean. The evidence is, for each client and class, by how much
        the guess is above the mean guess of the other clients, and whether the truth is above
        theirs: who guesses the same of everybody tells nobody apart, an AUC of 0.5.
        """
        counts = self._label_counts.double()
        if not self._guesses:
            return [], []
        truth = (counts / counts.sum(1, keepdim=True)).numpy()
        others = baseline_distributions(truth)["others"]
        errors: list[LabelInference] = []
        evidence: list[Evidence] = []
        for (place, how), by_client in self._guesses.items():
            windows: dict[str, dict[int, np.ndarray]] = {}
            for client, by_round in sorted(by_client.items()):
                for window, guess in over_rounds(by_round).items():
                    windows.setdefault(window, {})[client] = guess / guess.sum()
            for window, guesses in windows.items():
                errors.append(_errors(place, window, how, guesses, truth, others))
                members = [(truth[n] > others[n])[None] for n in guesses]
                if 0 < np.concatenate(members, 1).mean() < 1:
                    scores = [over[None] for over in _over_others(np.stack([*guesses.values()]))]
                    attack = f"read from {how}"
                    evidence.append(Evidence(place, window, LABELS, attack, scores, members))
        return errors, evidence


def _over_others(guesses: np.ndarray) -> np.ndarray:
    """``(N, C)``: by how much each client's guess is above the mean of the others'."""
    if len(guesses) == 1:
        return guesses - 1 / guesses.shape[1]
    return np.asarray(guesses - (guesses.sum(0) - guesses) / (len(guesses) - 1))


def _errors(
    place: str,
    window: str,
    how: str,
    guesses: dict[int, np.ndarray],
    truth: np.ndarray,
    others: np.ndarray,
) -> LabelInference:
    each = []
    for client, guess in guesses.items():
        mine = distribution_errors(guess, truth[client])
        theirs = distribution_errors(others[client], truth[client])
        each.append((mine.l1, theirs.l1, float(mine.top_hit)))
    l1, baseline, top = np.mean(each, axis=0).tolist()
    return LabelInference(place, window, how, l1, baseline, top)
