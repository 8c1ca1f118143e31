"""Label distributions of clients, from what they sent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from fedkd.experiment import Experiment
from fedkd.privacy import attacks
from fedkd.privacy.lab.models import laws, plain
from fedkd.privacy.lab.worlds import Untested, knowledge, quiet


@dataclass(frozen=True)
class LabelInference:
    """How well a client's label distribution is told from what it sent, a mean over clients.

    ``l1`` is the L1 distance to the truth, ``l1_others`` that of the mean of the other clients'
    truth, the guess without anything sent; ``top`` the share of clients whose commonest class is
    told. ``how`` says what was read.
    """

    how: str
    l1: float
    l1_others: float
    top: float


def infer_labels(experiment: Experiment) -> LabelInference | None:
    """Attack clients' label distributions; None where what they send says nothing of them."""
    worker = Untested(quiet(experiment))
    sent = knowledge(worker)
    counts = worker.data.label_counts().double()
    truth = (counts / counts.sum(1, keepdim=True)).numpy()
    others = attacks.baseline_distributions(truth)["others"]
    found, how = [], ""
    for client, values in sorted(sent.items()):
        read = attacks.infer_label_distribution(
            plain(values, worker), partial(laws, worker, client), worker.data.task.classes
        )
        if read is None:
            return None
        guess, how = read
        mine = attacks.distribution_errors(guess, truth[client])
        theirs = attacks.distribution_errors(others[client], truth[client])
        found.append((mine.l1, theirs.l1, float(mine.top_hit)))
    if not found:
        return None
    l1, baseline, top = np.mean(found, axis=0).tolist()
    return LabelInference(how, l1, baseline, top)
