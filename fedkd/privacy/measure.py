"""Exposure of a run's planted secrets: by a student, and by soft labels on the transfer set."""

from __future__ import annotations

import hashlib
import inspect
import marshal
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedkd.experiment import CanaryTable
from fedkd.privacy import exposure
from fedkd.privacy.canary import label_conditionals
from fedkd.random import key
from fedkd.training import predict, student_draws

if TYPE_CHECKING:
    from fedkd.data.federated import FederatedData
    from fedkd.privacy.canary import Canaries

CANDIDATES = 256
"""Images that are made and shown to a student at a time."""


def digest(student: nn.Module) -> int:
    """48 bits that depend on every parameter and buffer: a float64 holds them exactly."""
    found = hashlib.blake2b(digest_size=6)
    for name, tensor in student.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return int.from_bytes(found.digest(), "little")


def fingerprint(values: Tensor | None) -> str:
    """A digest of a tensor's values."""
    held = b"" if values is None else values.cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(held, digest_size=16).hexdigest()


def source(module: ModuleType) -> str:
    """A digest of a module's source: what was computed by another one is not remembered.

    That of a package is of all modules in its folder.
    """
    file = Path(str(module.__file__))
    files = sorted(file.parent.glob("*.py")) if hasattr(module, "__path__") else [file]
    found = hashlib.blake2b(digest_size=16)
    for each in files:
        found.update(each.read_bytes())
    return found.hexdigest()


def described(student: nn.Module) -> str:
    """A digest of what a student is besides its ``state_dict``: layers, settings, own source."""
    found = hashlib.blake2b(repr(student).encode(), digest_size=16)
    for name, module in student.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | tuple) and key != "training"
        }
        found.update(repr((name, type(module).__qualname__, settings)).encode())
        if not type(module).__module__.startswith("torch."):
            found.update(_source_of(type(module)))
    frozen = [name for name, p in student.named_parameters() if not p.requires_grad]
    found.update(repr(frozen).encode())
    return found.hexdigest()


def _source_of(kind: type) -> bytes:
    """The source of a class and what stands in its file, or its bytecode where there is no file."""
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        codes = [value.__code__ for value in vars(kind).values() if hasattr(value, "__code__")]
        return b"".join(map(marshal.dumps, codes))


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
        laws = exposure.student_conditionals(student, context, symbols, length)
        return exposure.exact_exposure(laws, canaries.secrets)
    return _estimated(exposure.student_scorer(student, context, symbols), canaries, table)


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
    found = exposure.places(transfer, canaries.context, canaries.symbols, length)
    if not len(found.items):
        return None
    found, labels, among = _said(found, labels, among)
    said = (found, labels.double().log(), canaries.symbols, length)
    if table.estimator == "exact":
        laws = exposure.released_conditionals(*said, among=among, classes=classes)
        laws = exposure.probabilities(laws) if linear else laws
        return exposure.exact_exposure(laws, canaries.secrets)
    scorer = exposure.released_scorer(*said, among=among, classes=classes, linear=linear)
    return _estimated(scorer, canaries, table)


def _said(
    found: exposure.Places, labels: Tensor, among: Tensor | None
) -> tuple[exposure.Places, Tensor, Tensor | None]:
    """Only the rows that bear on a secret: few out of many."""
    rows = found.items
    few = exposure.Places(torch.arange(len(rows)), found.levels, found.prefixes)
    return few, labels[rows], None if among is None else among[rows]


def spans(canaries: Canaries, transfer: Tensor, items: int) -> Tensor:
    """Which of the transfer set's ``items`` bear on a secret: ``(M,)``, 0 or 1."""
    found = torch.zeros(items)
    if canaries.images is not None:
        found[items - canaries.shown :] = 1
    else:
        context, symbols = canaries.context, canaries.symbols
        found[exposure.places(transfer, context, symbols, canaries.length).items] = 1
    return found


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
        others = torch.cat([logits(exposure.digits(n, base, canaries.length)) for n in numbers])
        # Its own row and no second answer: ties are ties of the very same numbers.
        own = others[exposure.sequence_numbers(canaries.secrets, base)]
    else:
        seed = key(0, "canary", "references")
        drawn = exposure.references(base, canaries.length, table.references, seed)
        others = torch.cat([logits(sequences) for sequences in drawn.split(CANDIDATES)])
        own = logits(canaries.secrets)
    found = torch.full((canaries.count,), torch.nan, dtype=torch.float64)
    if not bool(torch.isfinite(others).all()) or not bool(torch.isfinite(own).all()):
        return found
    labels = canaries.labels[:, 0]
    for label in labels.unique().tolist():
        mine = labels == label
        scores = exposure.label_log_odds(own[mine], label)
        found[mine] = _ranked(scores, exposure.label_log_odds(others, label), table)
    return found


def _by_laws(canaries: Canaries, laws: Tensor, table: CanaryTable, linear: bool = False) -> Tensor:
    """Exposure of label sequences, from log-probabilities ``(S m, C)`` on their images."""
    found = []
    laws = laws.reshape(*canaries.secrets.shape, -1)
    for conditionals, secret in zip(label_conditionals(laws), canaries.secrets[:, None]):
        conditionals = exposure.probabilities(conditionals) if linear else conditionals
        if table.estimator == "exact":
            found.append(exposure.exact_exposure(conditionals, secret))
        else:
            found.append(_estimated(conditionals, canaries, table, secret))
    return torch.cat(found)


def _estimated(
    source: exposure.Conditionals | exposure.Scorer,
    canaries: Canaries,
    table: CanaryTable,
    secrets: Tensor | None = None,
) -> Tensor:
    """Exposure from the scores of references in the place of the whole space."""
    secrets = canaries.secrets if secrets is None else secrets
    seed = key(0, "canary", "references")
    others = exposure.references(len(canaries.symbols), canaries.length, table.references, seed)
    scores = exposure.sequence_scores(source, secrets)
    return _ranked(scores, exposure.sequence_scores(source, others), table)


def _ranked(scores: Tensor, others: Tensor, table: CanaryTable) -> Tensor:
    """Exposure ``(S,)`` from scores of secrets, and of the whole space or of references."""
    if table.estimator == "exact":
        return exposure.ranked_exposure(scores, others)
    if table.estimator == "interpolation":
        return exposure.interpolated_exposure(scores, others)
    return exposure.extrapolated_exposure(scores, others).exposure
