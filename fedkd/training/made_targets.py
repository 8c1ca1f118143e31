"""Targets out of parts: see :class:`fedkd.mixtures.Mixture`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedkd.distillation.objectives import made, traits
from fedkd.distillation.targets import candidate_column, entropy
from fedkd.errors import FedkdError
from fedkd.mixtures import Band, Labels, Mean, Mixture, Rule
from fedkd.training.inference import class_means
from fedkd.training.items import item_labels
from fedkd.training.losses import said
from fedkd.work import Parameters, Samples, Soft


def made_targets(
    term: Soft, samples: Samples, classes: int, answer: Callable[[str], Tensor]
) -> Tensor:
    """The targets ``(K, C)`` of a term on ``samples``, made of its parts.

    Parameters
    ----------
    term
        Its targets are a ``Mixture``; with candidates, parts are ``(K, k + 1)``.
    answer
        What a student of this name says of the samples, in the place of targets.
    """
    mixture, labels = term.targets, item_labels(samples)
    assert isinstance(mixture, Mixture)
    if term.per == "class":
        labels = torch.arange(classes, device=samples.inputs.device)
    if term.among is not None:
        columns = candidate_column(labels, term.among.to(samples.inputs.device))
        if labels is not None and columns is not None:
            labels = columns.masked_fill(labels < 0, -1)
        classes = term.among.shape[1] + 1

    def of(part: Tensor | str | Labels | Parameters) -> Tensor:
        if isinstance(part, Tensor):
            return part.to(samples.inputs.device, torch.float32)
        if isinstance(part, Labels):
            return label_rows(_needed(labels), classes, part)
        if isinstance(part, str):
            return answer(part)
        raise FedkdError("Mixture: a part of it was not decoded")

    parts, judged = [of(part) for part in mixture.parts], None
    if traits(made(term.objective)).targets == "logits":
        judged = [part.softmax(-1) for part in parts]
    elif term.among is not None and getattr(mixture.rule, "by", "") == "confidence":
        judged = [part[:, :-1] for part in parts]  # all other classes together are no class
    return mixed(parts, mixture.rule, labels, judged)


def class_targets(term: Soft, logits: Tensor, samples: Samples) -> Tensor:
    """The targets ``(C, C)`` of a term per class that a student gives which says ``logits``.

    They are means over the samples ``(K, C)`` of each class; NaN of a class that has none.
    """
    labels, classes, tau = _needed(item_labels(samples)), logits.shape[1], term.temperature
    if isinstance(tau, Tensor):
        tau = tau.to(logits.device)[labels.clamp_min(0)]
    means = class_means(said(replace(term, temperature=tau), logits), labels, classes)
    return means["mean"].masked_fill(means["count"][:, None] == 0, torch.nan)


def label_rows(labels: Tensor, classes: int, how: Labels) -> Tensor:
    """Labels ``(K,)`` as targets ``(K, C)``; NaN where a label is -1."""
    rows = torch.full((len(labels), classes), how.smoothing / classes, device=labels.device)
    held = labels.clamp_min(0)[:, None]
    rows = rows.scatter_add(1, held, rows.new_full(held.shape, 1 - how.smoothing))
    return rows.masked_fill(labels[:, None] < 0, torch.nan)


def mixed(
    parts: Sequence[Tensor],
    rule: Rule,
    labels: Tensor | None = None,
    judged: Sequence[Tensor] | None = None,
) -> Tensor:
    """One row of targets out of those of all parts, ``(K, C)``; NaN where there is none.

    Parameters
    ----------
    parts
        Probabilities ``(K, C)`` each, NaN in rows that a part lacks.
    labels
        True columns ``(K,)``, -1 for none, for rules that go by them.
    judged
        Probabilities in the place of the parts where it is asked how sure these are.
    """
    rows = torch.stack([*parts])
    looked_at = rows if judged is None else torch.stack([*judged])
    there = ~rows[..., 0].isnan()
    if isinstance(rule, Mean):
        given = rule.weights or (1.0,) * len(rows)
        weights = torch.tensor(given, device=rows.device)[:, None] * there
        sums = (weights[..., None] * rows.where(there[..., None], 0.0)).sum(0)
        return sums / weights.sum(0)[:, None]
    if isinstance(rule, Band):
        sure = _sureness(looked_at[0], rule.by, labels)
        found = torch.where((sure < rule.middle)[:, None], rows[1], rows[0])
        out = (sure < rule.low) | (sure > rule.top)
        if rule.by == "label":
            out |= _needed(labels) < 0
        return found.masked_fill(out[:, None], torch.nan)
    sure = torch.stack([_sureness(part, rule.by, labels) for part in looked_at])
    sure = sure.masked_fill(~there, -torch.inf)
    found, most = rows[0], sure[0]
    for part, score in zip(rows[1:], sure[1:], strict=True):
        found = torch.where((score > most)[:, None], part, found)
        most = most.maximum(score)
    return found.masked_fill(~there.all(0)[:, None], torch.nan) if rule.every else found


def _sureness(rows: Tensor, by: str, labels: Tensor | None) -> Tensor:
    """How sure each of the rows ``(K, C)`` is; without a label all are equally sure of it."""
    if by == "entropy":
        return -entropy(rows)
    if by == "confidence":
        return rows.amax(1)
    labels = _needed(labels)
    held = rows.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    return held.masked_fill(labels < 0, 0.0)


def _needed(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise FedkdError("Mixture: the samples have no labels (the transfer set never has)")
    return labels
