"""Membership of clients' training records, from what they sent.

The adversary is the server. It sees what each client sends in the last round, knows the transfer
set, the students and every setting, and is shown how the same clients answer when other halves of
their data are taken away: the experiment is run again and again, each time with a random half of
every client's training samples, so that each run is a shadow of all others (Carlini et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.data.federated import load
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy import attacks
from fedkd.privacy.audit import CONFIDENCE, delta_of
from fedkd.privacy.lab.models import model as model_of
from fedkd.privacy.lab.worlds import Untested, knowledge, quiet
from fedkd.random import generator
from fedkd.training import item_labels, predict
from fedkd.work import Samples

FPRS = (0.001, 0.01, 0.1)
FEWEST = 4
"""Shadows that a likelihood ratio needs."""


@dataclass(frozen=True)
class Membership:
    """How well members are told from records that were left out, over all clients and shadows.

    ``auc`` and, by false positive rate, ``tpr`` have 95 % intervals, over clients and their records
    (:func:`fedkd.privacy.attacks.detection`); ``refused`` are false positive rates at which too few
    false positives are expected, and how many. ``epsilon`` is a lower bound on an epsilon at
    ``delta``, from the first shadow alone (Steinke et al. 2023), its records scored by how much
    surer that shadow is of them than the others are on the mean. Copies of a record are in or out
    together: it is about ``group`` records of a client at once, the most copies that there are.
    ``how`` says what was attacked.
    """

    how: str
    shadows: int
    records: int
    auc: float
    auc_low: float
    auc_high: float
    tpr: dict[str, tuple[float, float, float]]
    refused: dict[str, float]
    epsilon: float
    delta: float
    group: int = 1


def infer_members(
    experiment: Experiment, shadows: int, done: Callable[[int], None] = lambda _: None
) -> Membership | None:
    """Attack membership of training records with likelihood ratios over ``shadows`` runs.

    Copies of a record are in or out together, and count as one. Clients that never take part are
    left out. ``done`` is called with the number of runs after each. None where clients send nothing
    that a model can be made of: class means, or representations, which are the records themselves.

    Raises
    ------
    FedkdError
        There are too few shadows for a likelihood ratio.
    """
    if shadows < FEWEST:
        raise FedkdError(
            f"--shadows {shadows} is too few: a likelihood ratio needs at least {FEWEST}"
        )
    experiment = quiet(experiment)
    # No other run has these halves.
    engine = experiment.engine.model_copy(update={"remember": False})
    experiment = experiment.model_copy(update={"engine": engine})
    whole = load(experiment)
    clients = range(whole.clients)
    copies = [_copies(whole.private(client).inputs) for client in clients]
    firsts = [np.unique(number, return_index=True)[1] for number in copies]
    most = [int(np.bincount(number).max()) for number in copies]
    scores = [np.zeros((shadows, len(first))) for first in firsts]
    members = [np.zeros((shadows, len(first)), dtype=bool) for first in firsts]
    how = ""
    for shadow in range(shadows):
        for client in clients:
            draw = generator(experiment.seed, "shadow", shadow, client)
            coins = torch.rand(len(firsts[client]), generator=draw) < 0.5
            members[client][shadow] = coins.numpy()
        kept = [np.flatnonzero(members[client][shadow][copies[client]]) for client in clients]
        halves = whole.with_part([torch.from_numpy(rows) for rows in kept])
        # Noise that two runs share is not there when they are compared.
        worker = Untested(experiment, halves, world=shadow + 1)
        sent = knowledge(worker)
        for client, values in sent.items():
            read = model_of(worker, client, values)
            if read is None:
                return None
            model, how = read
            sure = _confidence(model, whole.private(client))
            scores[client][shadow] = sure[firsts[client]]
        done(shadow + 1)
    # Who takes part is drawn from the seed, and so the same in every run.
    scores = [scores[client] for client in sorted(sent)]
    members = [members[client] for client in sorted(sent)]
    ratios = [attacks.lira(s, m) for s, m in zip(scores, members)]
    found = attacks.detection(ratios, members, FPRS, CONFIDENCE)
    surer = np.concatenate([score[0] - score[1:].mean(0) for score in scores])
    first = np.concatenate([m[0] for m in members])
    delta = delta_of(experiment)
    return Membership(
        how=how,
        shadows=shadows,
        records=len(first),
        auc=found.auc.value,
        auc_low=found.auc.low,
        auc_high=found.auc.high,
        tpr={f"{fpr:g}": (rate.value, rate.low, rate.high) for fpr, rate in found.tpr.items()},
        refused={f"{fpr:g}": count for fpr, count in found.refused.items()},
        epsilon=attacks.audited_epsilon_in_one_run(surer, first, delta, CONFIDENCE),
        delta=delta,
        group=max(most[client] for client in sent),
    )


def _copies(inputs: Tensor) -> np.ndarray:
    """``(K,)``: a number for each record, from 0, the same for those whose inputs are the same."""
    return inputs.flatten(1).unique(dim=0, return_inverse=True)[1].numpy()


def _confidence(model: nn.Sequential, samples: Samples) -> np.ndarray:
    """``(K,)``: log odds of each record's label; of text, the mean log-likelihood of its tokens."""
    logits = predict(model, samples.inputs)
    labels = item_labels(samples)
    assert labels is not None
    if samples.labels is not None and samples.labels.dim() == 1:
        return attacks.logit_confidence(logits.softmax(1), labels).numpy()
    there = labels >= 0
    likelihood = logits.log_softmax(1).gather(1, labels.clamp_min(0)[:, None])[:, 0] * there
    rows = (samples.inputs != 0).sum(1)
    owner = torch.arange(len(rows)).repeat_interleave(rows)
    total = torch.zeros(len(rows)).index_add_(0, owner, likelihood)
    return (total / torch.zeros(len(rows)).index_add_(0, owner, there.float()).clamp_min(1)).numpy()
