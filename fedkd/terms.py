"""Terms of a fit, checked against the student that learns by them, and the samples.

One check serves fits on clients and on the server: targets, candidates, heads and anchors have the
shapes of the student and of the samples, and targets are what their objective takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedkd.errors import FedkdError, about
from fedkd.fields import check_fields, source_name
from fedkd.forms import bounded
from fedkd.learner import Learner, Seen, check_above, teacher_of
from fedkd.shapes import Shapes, Student
from fedkd.soft_terms import check_soft, unlike_targets
from fedkd.training.losses import up_to
from fedkd.work import (
    Contrast,
    CrossEntropy,
    Evaluate,
    Feature,
    Head,
    Linear,
    Penalty,
    Samples,
    Soft,
    Source,
    Term,
)


def check_fit(
    on: Source, terms: Sequence[Term], part: tuple[str, ...], learner: Learner, seen: Seen
) -> None:
    """Refuse terms, their fields checked already, that do not fit the student or the samples.

    Raises
    ------
    FedkdError
        One line naming the term, the field, its value and what is allowed.
    """
    if part:
        learner.student().part(part)
    if isinstance(on, Samples):
        learner.student().check_entry(on)
    for term in terms:
        if isinstance(term, Penalty):
            named = term.given if isinstance(term, Linear) else term.anchor
            if named is not None:
                _of_learning(term, named, part, learner.student())
            continue
        source = on if term.on is None else term.on
        if isinstance(source, Samples) and source.cut:
            _entering(term, source, part, learner)
        if isinstance(term, CrossEntropy | Soft) and term.through is not None:
            _through(term.through, learner)
        if isinstance(term, CrossEntropy) and term.prior is not None:
            check_fields(term.prior)
        if isinstance(term, CrossEntropy) and term.exit:
            _exit(term, learner)
        if isinstance(term, Contrast):
            _contrast(term, source, learner, seen)
            continue
        by_label = isinstance(term, CrossEntropy) or term.per == "class"
        by_label |= isinstance(term, Soft) and term.adaptive
        if by_label and not learner.labelled(source):
            raise FedkdError(
                f"{type(term).__name__}: the samples of {source_name(source)} have no labels (the "
                "transfer set never has)"
            )
        if isinstance(term, Soft):
            check_soft(term, source, learner, seen)
        elif isinstance(term, Feature):
            _feature(term, source, learner, seen)


def _entering(
    term: CrossEntropy | Soft | Feature | Contrast,
    samples: Samples,
    part: tuple[str, ...],
    learner: Learner,
) -> None:
    """Refuse a term on samples that enter above a cut, where nothing could learn by it."""
    name, student = type(term).__name__, learner.student()
    with about(name):
        student.check_entry(samples)
    at = getattr(term, "cut", "") or getattr(term, "exit", "")
    if isinstance(term, CrossEntropy | Soft) and term.through is not None:
        at = term.through.cut
        if term.through.below or not at:
            raise FedkdError(
                f"{name}: samples that enter above {samples.cut!r} are not allowed with frozen "
                "blocks below"
            )
    if at:
        check_above(name, at, samples.cut, student)
    reach = tuple(term.reach) if isinstance(term, Soft) else ()
    learning = {*student.learning(part)} & {*student.part(reach)}
    if not learning & student.between(samples.cut, at):
        raise FedkdError(
            f"{name}: samples that enter above {samples.cut!r} are not allowed here: nothing that "
            "learns by this term lies above"
        )


def _contrast(term: Contrast, on: Source, learner: Learner, seen: Seen) -> None:
    size, rows = learner.student().representation(term.cut).numel(), learner.rows(on)
    for side, given in (("positive", term.positive), ("negative", term.negative)):
        if isinstance(given, str):
            other = teacher_of("Contrast", given, learner)
            if isinstance(on, Samples):
                with about(f"Contrast: {side} = {given!r}"):
                    other.check_entry(on)
            width = other.representation(term.cut).numel()
            if width != size:
                raise FedkdError(
                    f"Contrast: {side} = {given!r} is not allowed: its representation at "
                    f"{term.cut!r} has {width} numbers, and the student's {size}"
                )
            continue
        wanted = len(given) if rows is None else rows, size
        if given.shape != wanted:
            raise FedkdError(
                f"Contrast: {side} of shape {tuple(given.shape)} is not allowed; allowed: "
                f"{wanted}, a row for each of {source_name(on)}, as wide as the representation at "
                f"{term.cut!r}"
            )
        if seen.add(given, "representations") and (reason := bounded(given, side)):
            raise FedkdError(f"Contrast: {reason}")


def _feature(term: Feature, on: Source, learner: Learner, seen: Seen) -> None:
    rows = learner.classes if term.per == "class" else learner.rows(on)
    rows = len(term.targets) if rows is None else rows
    wanted = rows, learner.student().representation(term.cut).numel()
    if term.targets.shape != wanted:
        each = "class" if term.per == "class" else f"row of {source_name(on)}"
        raise FedkdError(
            f"Feature: targets of shape {tuple(term.targets.shape)} are not allowed; allowed: "
            f"{wanted}, one a {each}, as wide as the representation at {term.cut!r}"
        )
    if seen.add(term.targets, "features") and (reason := unlike_targets(term.targets, "features")):
        raise FedkdError(f"Feature: {reason}")
    if term.norms is None:
        return
    if term.measure != "cosine":
        raise FedkdError(
            f"Feature: norms are not allowed with measure = {term.measure!r}; allowed: 'cosine'"
        )
    if term.norms.shape != (rows,):
        raise FedkdError(
            f"Feature: norms of shape {tuple(term.norms.shape)} are not allowed; one for each of "
            f"{rows} rows of targets is needed"
        )


def _exit(term: CrossEntropy, learner: Learner) -> None:
    shape = learner.student().representation(term.exit)
    if term.through is not None or len(shape) != 1 or shape[0] < learner.classes:
        with_head = " with another head" if term.through is not None else ""
        raise FedkdError(
            f"CrossEntropy: exit = {term.exit!r} is not allowed{with_head}: the block gives "
            f"{tuple(shape)} for a sample; allowed: without a head, a block that ends in "
            f"{learner.classes} logits"
        )


def _through(head: Head, learner: Learner) -> None:
    check_fields(head)
    student = learner.student()
    with about("Head"):
        frozen = student.around(head.below, head.cut)
    if isinstance(head.parameters, str):
        other = teacher_of("Head", head.parameters, learner)
        for name, shape in frozen.items():
            if name not in other.state or other.state[name][0] != shape:
                raise FedkdError(
                    f"Head: parameters = {head.parameters!r} is not allowed: that student has no "
                    f"{name} of shape {tuple(shape)}"
                )
        return
    if different := frozen.keys() ^ head.parameters.keys():
        raise FedkdError(
            f"Head: its parameters are not those of the blocks above {head.cut!r}{up_to(head)}: "
            f"{min(different)} is in one of them only"
        )
    for name, shape in frozen.items():
        if head.parameters[name].shape != shape:
            raise FedkdError(
                f"Head: {name} of shape {tuple(head.parameters[name].shape)} is not allowed; the "
                f"student's is {tuple(shape)}"
            )


def check_network(step: Evaluate, student: Student, shapes: Shapes) -> None:
    """Refuse a network that cannot take the place of the student's blocks above its cut.

    Raises
    ------
    FedkdError
        One line naming what is wrong with it.
    """
    if (above := step.above) is None:
        return
    check_fields(above)
    if step.prototypes is not None or shapes.task.tokens:
        what = "data.dataset of text" if shapes.task.tokens else "prototypes"
        raise FedkdError(f"Evaluate: above is not allowed with {what}")
    with about(f"Evaluate: above {above.cut!r}"):
        wanted = shapes.network(above.model, student.representation(above.cut)).state
    given = {name: value.shape for name, value in above.parameters.items()}
    for name in (*wanted, *given):
        if name not in wanted or given.get(name) != wanted[name][0]:
            raise FedkdError(
                f"Evaluate: above: {name} of its parameters is not that of {above.model!r}; all of "
                "these are needed, and no others"
            )


def _of_learning(
    term: Penalty, named: dict[str, Tensor], part: tuple[str, ...], student: Student
) -> None:
    """Refuse named arrays that are not as the parameters that learn."""
    field = f"{type(term).__name__}: {'given' if isinstance(term, Linear) else 'anchor'}"
    for name in student.learning(part):
        given, shape = named.get(name), student.state[name][0]
        if given is None or given.shape != shape:
            found = "has none" if given is None else f"has one of shape {tuple(given.shape)}"
            raise FedkdError(
                f"{field} {found} for {name} of shape {tuple(shape)}; one is needed for every "
                "parameter that learns"
            )
    if other := named.keys() - student.state.keys():
        raise FedkdError(f"{field} has {min(other)}, which the student has not")
