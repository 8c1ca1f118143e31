"""Exposure of a run's planted secrets: by a student, and by soft labels on the transfer set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedkd.data.canaries.places import Places, places
from fedkd.data.canaries.secrets import Canaries
from fedkd.data.federated import FederatedData
from fedkd.experiment import CanaryTable
from fedkd.lab.exposure.conditionals import (
    independent_conditionals,
    label_log_odds,
    probabilities,
    student_conditionals,
    student_scorer,
)
from fedkd.lab.exposure.ranks import (
    exact_exposure,
    extrapolated_exposure,
    interpolated_exposure,
    ranked_exposure,
)
from fedkd.lab.exposure.released import released_conditionals, released_scorer
from fedkd.lab.exposure.sequences import (
    Conditionals,
    Scorer,
    digits,
    references,
    sequence_numbers,
    sequence_scores,
)
from fedkd.random import key
from fedkd.training import predict, student_draws

CANDIDATES = 256
"""Images that are made and shown to a student at a time."""


def by_student(student: nn.Sequential, data: FederatedData, table: CanaryTable) -> Tensor:
    """How exposed every planted secret is by ``student``: ``(S,)`` float64, in bits."""
    with student_draws(student, key(0, "exposure"), next(student.parameters()).device):
        return _by_student(student, data, table)


def _by_student(student: nn.Sequential, data: FederatedData, table: CanaryTable) -> Tensor:
    canaries = data.canaries
    assert canaries is not None
    context, symbols, length = canaries.context, canaries.symbols, canaries.length
    if canaries.image_template is not None:
        return _by_candidates(student, data, table)
    if canaries.images is not None:
        images = data.normalised(canaries.images.flatten(0, 1))
        logits = predict(student, images.to(next(student.parameters()).device)).cpu()
        if not bool(torch.isfinite(logits).all()):
            return torch.full((canaries.count,), torch.nan, dtype=torch.float64)
        return _by_laws(canaries, logits.log_softmax(1), table)
    if table.estimator == "exact":
        laws = student_conditionals(student, context, symbols, length)
        return exact_exposure(laws, canaries.secrets)
    return _estimated(student_scorer(student, context, symbols), canaries, table)


def by_labels(
    canaries: Canaries,
    labels: Tensor,
    transfer: Tensor,
    table: CanaryTable,
    among: Tensor | None = None,
    classes: int | None = None,
    linear: bool = False,
) -> Tensor | None:
    """How exposed every secret is to somebody who has soft labels on the transfer set alone.

    Parameters
    ----------
    labels : Tensor of shape (M, C), or (M, k+1) over candidates ``among`` of all ``classes``
        Probabilities.
    transfer : Tensor
        The transfer set's inputs.
    linear : bool
        Whether sequences are ranked by the sum of the probabilities of their symbols, in place of
        their product: it finds more in labels that are flat or noisy, and less in others.

    Returns
    -------
    Tensor of shape (S,) or None
        Bits; None where the labels say nothing of any secret, as no item bears on one. Labels of
        a few images rank no others, so that they never do where images are secret.
    """
    length = canaries.length
    if canaries.images is not None:
        if not canaries.shown or canaries.kind == "pixels":
            return None
        return _by_laws(canaries, labels[-canaries.shown :].double().log(), table, linear)
    found = places(transfer, canaries.context, canaries.symbols, length)
    if not len(found.items):
        return None
    found, labels, among = _said(found, labels, among)
    said = (found, labels.double().log(), canaries.symbols, length)
    if table.estimator == "exact":
        laws = released_conditionals(*said, among=among, classes=classes)
        laws = probabilities(laws) if linear else laws
        return exact_exposure(laws, canaries.secrets)
    scorer = released_scorer(*said, among=among, classes=classes, linear=linear)
    return _estimated(scorer, canaries, table)


def _said(
    found: Places, labels: Tensor, among: Tensor | None
) -> tuple[Places, Tensor, Tensor | None]:
    """Only the rows that bear on a secret: few out of many."""
    rows = found.items
    few = Places(torch.arange(len(rows)), found.levels, found.prefixes)
    return few, labels[rows], None if among is None else among[rows]


def _by_candidates(student: nn.Sequential, data: FederatedData, table: CanaryTable) -> Tensor:
    """Exposure of images, by how likely ``student`` finds the label that is known of each.

    All secrets share a template, so that one pass over its images serves them all.
    """
    canaries = data.canaries
    assert canaries is not None
    assert canaries.image_template is not None
    assert canaries.labels is not None
    template, symbols, base = canaries.image_template, canaries.symbols, len(canaries.symbols)
    device = next(student.parameters()).device

    def logits(sequences: Tensor) -> Tensor:
        images = data.normalised(template.filled(symbols[sequences]))
        return predict(student, images.to(device)).cpu()

    if table.estimator == "exact":
        numbers = torch.arange(canaries.space).split(CANDIDATES)
        others = torch.cat([logits(digits(n, base, canaries.length)) for n in numbers])
        # Its own row and no second answer: ties are ties of the very same numbers.
        own = others[sequence_numbers(canaries.secrets, base)]
    else:
        seed = key(0, "canary", "references")
        drawn = references(base, canaries.length, table.references, seed)
        others = torch.cat([logits(sequences) for sequences in drawn.split(CANDIDATES)])
        own = logits(canaries.secrets)
    found = torch.full((canaries.count,), torch.nan, dtype=torch.float64)
    if not bool(torch.isfinite(others).all()) or not bool(torch.isfinite(own).all()):
        return found
    labels = canaries.labels[:, 0]
    for label in labels.unique().tolist():
        mine = labels == label
        scores = label_log_odds(own[mine], label)
        found[mine] = _ranked(scores, label_log_odds(others, label), table)
    return found


def label_conditionals(log_probs: Tensor) -> list[Conditionals]:
    """Conditionals of each secret that is a sequence of labels, from ``(S, m, C)`` log-probs.

    Every secret has images of its own, so that nothing is shared between them.
    """
    return [independent_conditionals(law) for law in log_probs]


def _by_laws(canaries: Canaries, laws: Tensor, table: CanaryTable, linear: bool = False) -> Tensor:
    """Exposure of label sequences, from log-probabilities ``(S m, C)`` on their images."""
    found = []
    laws = laws.reshape(*canaries.secrets.shape, -1)
    for conditionals, secret in zip(label_conditionals(laws), canaries.secrets[:, None]):
        conditionals = probabilities(conditionals) if linear else conditionals
        if table.estimator == "exact":
            found.append(exact_exposure(conditionals, secret))
        else:
            found.append(_estimated(conditionals, canaries, table, secret))
    return torch.cat(found)


def _estimated(
    source: Conditionals | Scorer,
    canaries: Canaries,
    table: CanaryTable,
    secrets: Tensor | None = None,
) -> Tensor:
    """Exposure from the scores of references in the place of the whole space."""
    secrets = canaries.secrets if secrets is None else secrets
    seed = key(0, "canary", "references")
    others = references(len(canaries.symbols), canaries.length, table.references, seed)
    scores = sequence_scores(source, secrets)
    return _ranked(scores, sequence_scores(source, others), table)


def _ranked(scores: Tensor, others: Tensor, table: CanaryTable) -> Tensor:
    """Exposure ``(S,)`` from scores of secrets, and of the whole space or of references."""
    if table.estimator == "exact":
        return ranked_exposure(scores, others)
    if table.estimator == "interpolation":
        return interpolated_exposure(scores, others)
    return extrapolated_exposure(scores, others).exposure
