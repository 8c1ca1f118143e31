"""Soft targets and mixtures of them, checked against the student and the samples."""

from __future__ import annotations

from torch import Tensor

from fedkd.distillation.objectives import (
    check_candidates,
    columns_of,
    labels_of,
    made,
    name_of,
    traits,
)
from fedkd.distillation.targets import check_probabilities
from fedkd.errors import FedkdError, about
from fedkd.fields import check_fields, source_name
from fedkd.forms import bounded
from fedkd.learner import Learner, Seen, check_above, teacher_of
from fedkd.mixtures import Band, Labels, Mean, Mixture
from fedkd.shapes import Student
from fedkd.training.auxiliary import NOT_AMONG, has_head, spot
from fedkd.work import Samples, Soft, Source


def check_soft(term: Soft, on: Source, learner: Learner, seen: Seen) -> None:
    """Refuse soft targets, candidates and weights that do not fit the student or the samples.

    Raises
    ------
    FedkdError
        One line naming the field, its value and what is allowed.
    """
    if term.reach:
        learner.student().part(tuple(term.reach))
    with about("Soft"):
        expects = traits(made(term.objective))
    name, takes = name_of(term.objective), expects.targets
    own = "labels" in expects.needs and labels_of(term.objective) == "own"
    if own and not learner.labelled(on):
        raise FedkdError(
            f"Soft: objective = {name!r} needs labels, and the samples of {source_name(on)} have "
            "none (the transfer set never has); labels = 'argmax' takes the teacher's: "
            f"objective = {{name = {name!r}, labels = 'argmax'}}"
        )
    classes, among = learner.classes, term.among
    columns = columns_of(term.objective, classes)
    if has_head(term):
        _beside(term, on, learner.student())
    rows = classes if term.per == "class" else learner.rows(on)
    if isinstance(term.targets, Mixture):
        _mixture(term, term.targets, on, learner, seen)
    elif isinstance(term.targets, str):
        teacher = teacher_of("Soft", term.targets, learner)
        if isinstance(on, Samples):
            with about(f"Soft: targets = {term.targets!r}"):
                teacher.check_entry(on)
        if columns != classes:
            raise FedkdError(
                f"Soft: targets = {term.targets!r} is not allowed with objective = {name!r}, which "
                f"takes {columns} columns; a student says {classes}"
            )
        if term.per == "class" and among is not None:
            raise FedkdError(f"Soft: targets = {term.targets!r} per class {_ALONE}")
    elif isinstance(term.targets, Tensor):
        rows = _rows(term.targets, rows, on, term.per)
        _columns(term.targets, columns if among is None else among.shape[1] + 1, among)
        if seen.add(term.targets, takes) and (reason := unlike_targets(term.targets, takes)):
            raise FedkdError(f"Soft: {reason}; objective = {name!r} takes {takes}")
    for what, given in (("temperature", term.temperature), ("row_weights", term.row_weights)):
        if isinstance(given, Tensor) and rows is not None and given.shape != (rows,):
            raise FedkdError(
                f"Soft: {what} of shape {tuple(given.shape)} is not allowed; one for each of "
                f"{rows} rows of targets is needed"
            )
    if among is None:
        return
    check_candidates(term.objective)
    if rows is not None and len(among) != rows:
        raise FedkdError(
            f"Soft: candidates of shape {tuple(among.shape)}; one row for each of {rows} rows of "
            "targets is needed"
        )
    if seen.add(among, "candidates") and (reason := _no_candidates(among, classes)):
        raise FedkdError(f"Soft: {reason}")


def _beside(term: Soft, on: Source, student: Student) -> None:
    """Refuse an objective whose auxiliary head is not at a block that the samples pass."""
    with about(f"Soft: objective = {name_of(term.objective)!r}"):
        if term.among is not None:
            raise FedkdError(NOT_AMONG)
        at = spot(student.module, term)
        assert at is not None
        student.representation(at.cut)
        if isinstance(on, Samples) and on.cut:
            check_above("auxiliary", at.cut, on.cut, student)


_ALONE = "is not allowed with candidates, which are a row a sample"


def _mixture(term: Soft, mixture: Mixture, on: Source, learner: Learner, seen: Seen) -> None:
    """Refuse parts that do not fit the samples, and rules that do not fit the parts."""
    parts, rule, among = mixture.parts, mixture.rule, term.among
    check_fields(mixture)
    check_fields(rule)
    takes = traits(made(term.objective)).targets
    if takes != "probabilities" and any(isinstance(part, Labels) for part in parts):
        raise FedkdError(
            f"Mixture: Labels are not allowed with objective = {name_of(term.objective)!r}, which "
            "takes logits"
        )
    if term.per == "class" and among is not None:
        raise FedkdError(f"Soft: a Mixture per class {_ALONE}")
    rows = learner.classes if term.per == "class" else learner.rows(on)
    by_label = getattr(rule, "by", "") == "label" or any(isinstance(p, Labels) for p in parts)
    if by_label and not learner.labelled(on):
        raise FedkdError(
            f"Mixture: it goes by labels, and the samples of {source_name(on)} have none (the "
            "transfer set never has)"
        )
    for part in parts:
        if isinstance(part, str):
            teacher_of("Mixture", part, learner)
        elif isinstance(part, Labels):
            check_fields(part)
            if part.smoothing and among is not None:
                raise FedkdError(
                    f"Labels: smoothing = {part.smoothing:g} is not allowed with candidates, which "
                    "are not all classes"
                )
        else:
            assert isinstance(part, Tensor)
            _rows(part, rows, on, term.per)
            _columns(part, learner.classes if among is None else among.shape[1] + 1, among)
            if seen.add(part, takes) and (reason := unlike_targets(part, takes)):
                raise FedkdError(f"Mixture: {reason}")
    if isinstance(rule, Mean) and rule.weights and len(rule.weights) != len(parts):
        raise FedkdError(f"Mean: {len(rule.weights)} weights for {len(parts)} parts; one each")
    if isinstance(rule, Band) and not (len(parts) == 2 and rule.low <= rule.middle <= rule.top):
        raise FedkdError(
            f"Band: low = {rule.low:g}, middle = {rule.middle:g}, top = {rule.top:g} of "
            f"{len(parts)} parts is not allowed; allowed: two parts, low <= middle <= top"
        )


def _rows(targets: Tensor, wanted: int | None, on: Source, per: str) -> int:
    if wanted is not None and len(targets) != wanted:
        each = "class" if per == "class" else f"row of {source_name(on)}"
        raise FedkdError(
            f"Soft: {len(targets)} targets for {wanted} {'classes' if per == 'class' else 'rows'}; "
            f"one a {each} is needed"
        )
    return len(targets)


def _columns(targets: Tensor, wanted: int, among: Tensor | None) -> None:
    if targets.shape[1] == wanted:
        return
    what = "classes" if among is None else "candidates, and one for all others"
    raise FedkdError(
        f"Soft: targets of shape {tuple(targets.shape)} for {wanted} {what}; one column for each "
        "is needed"
    )


def unlike_targets(targets: Tensor, takes: str) -> str | None:
    """Why the rows of ``targets`` that do not begin with NaN are not what an objective takes."""
    # Rows that begin with NaN are no targets, wherever they are.
    there = targets.detach().masked_fill(targets[:, :1].isnan(), 1 / targets.shape[1])
    if takes == "probabilities":
        return check_probabilities(there, "targets")
    return bounded(there, "targets")


def _no_candidates(among: Tensor, classes: int) -> str | None:
    if among.numel() and not -1 <= int(among.min()) <= int(among.max()) < classes:
        return f"among holds what is no class: -1 (none) to {classes - 1} are allowed"
    ordered = among.sort(1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        return "a row of candidates names a class twice; each once is needed"
    return None
