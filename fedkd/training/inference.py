"""What students answer: predictions, representations, and how good they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.distillation.calibration import (
    BINS,
    calibration_error,
    expected_calibration_error,
    reliability_bins,
)
from fedkd.students import cut_index
from fedkd.training.items import at_items, item_labels, items, take
from fedkd.training.student import student_draws
from fedkd.work import Samples

EVALUATION_BATCH = 512
EVALUATION_TOKENS = 4096
"""Tokens of text at a time, each of which takes a row as long as the vocabulary."""


@torch.inference_mode()
def predict(student: nn.Sequential, inputs: Tensor, seed: int = 0, above: str = "") -> Tensor:
    """Logits ``(K, C)`` of inputs ``(K, ...)``, without training anything.

    ``above`` names the cut above which inputs enter, if they are representations.

    Of token ids ``(K, T)``: logits ``(M, V)`` at the M positions that are not padding, row by row.
    A student that draws even now does so by ``seed``.
    """
    student.eval()
    with student_draws(student, seed, inputs.device):
        if not inputs.is_floating_point():
            pieces_of_tokens = (logits for _, logits in _of_tokens(student, inputs))
            return _gathered(len(items(inputs)), pieces_of_tokens)
        blocks = student[cut_index(student, above) :] if above else student
        pieces = [blocks(take(inputs, piece)).float() for piece in _pieces(inputs)]
    return torch.cat(pieces) if pieces else inputs.new_zeros((0, 0))


@torch.inference_mode()
def represent(
    student: nn.Sequential, inputs: Tensor, cut: str, seed: int = 0, above: str = ""
) -> tuple[Tensor, Tensor]:
    """Representations ``(K, ...)`` at ``cut`` of inputs ``(K, ...)``, and the logits ``(K, C)``.

    ``above`` names a cut below it above which inputs enter, if they are representations.

    Of token ids ``(K, T)``: a row for each of the positions that are not padding. A student that
    draws even now does so by ``seed``.
    """
    student.eval()
    index = cut_index(student, cut)
    first = cut_index(student, above) if above else 0
    base, rest = student[first:index], student[index:]
    pairs = []
    with student_draws(student, seed, inputs.device):
        for piece in _pieces(inputs):
            given = take(inputs, piece)
            held = base(given)
            chosen = None if given.is_floating_point() else items(given)
            # What comes next may write into what it is given.
            logits = rest(held.clone())
            pairs.append((at_items(held, chosen).float(), at_items(logits, chosen).float()))
    return torch.cat([held for held, _ in pairs]), torch.cat([logits for _, logits in pairs])


def class_means(values: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """``mean`` ``(C, d)`` of rows ``(K, d)`` by class, 0 where none, and ``count`` ``(C,)``.

    ``labels`` is ``(K,)``; a row with the label -1 is of no class.
    """
    if bool((labels < 0).any()):
        values, labels = values[labels >= 0], labels[labels >= 0]
    count = labels.bincount(minlength=classes)
    total = values.new_zeros(classes, values.shape[1]).index_add_(0, labels, values)
    return {"mean": total / count.clamp_min(1)[:, None], "count": count}


@torch.inference_mode()
def evaluate(student: nn.Sequential, samples: Samples, seed: int = 0) -> dict[str, float]:
    """Accuracy, mean cross-entropy in nats, and expected calibration error on ``samples``.

    On text, of the next token wherever there is one, and perplexity: the exponential of the loss.
    A student that draws even now does so by ``seed``.
    """
    return evaluate_in_bins(student, samples, seed)[0]


@torch.inference_mode()
def evaluate_in_bins(
    student: nn.Sequential, samples: Samples, seed: int = 0
) -> tuple[dict[str, float], Tensor]:
    """What :func:`evaluate` gives, and the bins of confidence: see :func:`reliability_bins`."""
    if samples.labels is None or not len(samples.labels):
        return {}, torch.zeros(BINS, 3, dtype=torch.float64)
    if samples.labels.dim() == 2:
        with student_draws(student, seed, samples.inputs.device):
            return _evaluate_tokens(student, samples.inputs, samples.labels)
    logits = predict(student, samples.inputs, seed, samples.cut)
    return quality(logits, samples.labels), in_bins(logits, samples.labels)


def in_bins(logits: Tensor, labels: Tensor) -> Tensor:
    """The bins of confidence of logits ``(K, C)`` with labels ``(K,)``."""
    confidence, predicted = logits.softmax(1).max(1)
    return reliability_bins(confidence, predicted == labels).cpu()


def quality(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """What :func:`evaluate` says of logits ``(K, C)`` and labels ``(K,)``.

    An answer in which there is a NaN is wrong, whatever class comes first.
    """
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return {
        "accuracy": float(right.double().mean()),
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "ece": float(expected_calibration_error(logits.softmax(1), labels)),
    }


@torch.inference_mode()
def nearest_prototype(
    student: nn.Sequential, samples: Samples, cut: str, prototypes: Tensor, seed: int = 0
) -> dict[str, float]:
    """Accuracy on ``samples`` of the class whose row of ``prototypes`` ``(C, d)`` is nearest.

    By squared distance to the flattened representation at ``cut``; a row that begins with NaN is
    no class's. An answer that is no number is wrong, and so are all where there is no prototype.
    """
    labels = item_labels(samples)
    if labels is None or not len(labels):
        return {}
    held, _ = represent(student, samples.inputs, cut, seed, samples.cut)
    held, labels = held.flatten(1)[labels >= 0], labels[labels >= 0]
    there = ~prototypes[:, 0].isnan()
    classes = there.nonzero()[:, 0]
    if not len(classes):
        return {"accuracy": 0.0}
    rows = prototypes[there].to(held)
    apart = torch.cdist(held, rows, compute_mode="donot_use_mm_for_euclid_dist")
    right = (classes[apart.argmin(1)] == labels) & ~held.isnan().any(1)
    return {"accuracy": float(right.double().mean())}


def _evaluate_tokens(
    student: nn.Sequential, inputs: Tensor, labels: Tensor
) -> tuple[dict[str, float], Tensor]:
    student.eval()
    hits, losses, confidences = [], [], []
    for piece, logits in _of_tokens(student, inputs):
        said = labels[piece].flatten()[items(inputs[piece])]
        there = said >= 0
        logits, said = logits[there], said[there]
        norms = logits.logsumexp(1)
        best, predicted = logits.max(1)
        hits.append((predicted == said) & ~norms.isnan())
        losses.append(norms - logits.gather(1, said[:, None])[:, 0])
        confidences.append((best - norms).exp())
    hit = torch.cat(hits)
    loss, confidence = torch.cat(losses).double().mean(), torch.cat(confidences)
    found = {
        "accuracy": float(hit.double().mean()),
        "loss": float(loss),
        "ece": float(calibration_error(confidence, hit)),
        "perplexity": float(loss.exp()),
    }
    return found, reliability_bins(confidence, hit).cpu()


def _of_tokens(student: nn.Sequential, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time, and the logits ``(m, V)`` at their tokens."""
    for piece in _pieces(inputs):
        given = inputs.index_select(0, piece)
        yield piece, at_items(student(given), items(given)).float()


def _gathered(count: int, pieces: Iterator[Tensor]) -> Tensor:
    """``torch.cat`` that never holds everything twice."""
    whole, start = torch.zeros(0, 0), 0
    for piece in pieces:
        if not start:
            whole = piece.new_empty(count, piece.shape[1])
        whole[start : start + len(piece)] = piece
        start += len(piece)
    return whole


def _pieces(inputs: Tensor) -> Iterator[Tensor]:
    count, size = len(inputs), EVALUATION_BATCH
    if not inputs.is_floating_point():
        size = max(1, EVALUATION_TOKENS // inputs.shape[1])
    for start in range(0, count, size):
        yield torch.arange(start, min(start + size, count), device=inputs.device)
