"""What terms are checked against: the student that learns by them, and the samples.

One check serves fits on clients and on the server: targets, candidates, heads and anchors have the
shapes of the student and of the samples, and targets are what their objective takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedkd import students
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
from fedkd.mixtures import Band, Labels, Mean, Mixture
from fedkd.replies import bounded
from fedkd.shapes import Shapes, Student
from fedkd.training.auxiliary import NOT_AMONG, has_head, spot
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


@dataclass(frozen=True)
class Learner:
    """What the terms of a fit are checked against.

    ``rows`` and ``labelled`` tell of a source how many rows it has (None where that is not known)
    and whether these have labels; ``teachers`` are the students that may take the place of targets,
    by name.
    """

    student: Callable[[], Student]
    classes: int
    rows: Callable[[Source], int | None]
    labelled: Callable[[Source], bool]
    teachers: Mapping[str, Callable[[], Student]] = field(default_factory=dict)


class Seen:
    """Arrays that were looked through, kept so that their ids are theirs alone."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], Any] = {}

    def add(self, thing: Any, purpose: str) -> bool:
        """Whether ``thing`` is new for this purpose."""
        known = (id(thing), purpose) in self._held
        self._held[id(thing), purpose] = thing
        return not known

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()


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
            _soft(term, source, learner, seen)
        elif isinstance(term, Feature):
            _feature(term, source, learner, seen)


def check_above(name: str, cut: str, entry: str, student: Student) -> None:
    """Refuse a step or a term that is at a ``cut`` which samples that enter do not pass.

    Raises
    ------
    FedkdError
        One line naming both cuts.
    """
    first, last = (students.cut_index(student.module, one) for one in (entry, cut))
    if last <= first:
        raise FedkdError(
            f"{name}: cut = {cut!r} is not allowed with samples that enter above {entry!r}; "
            "allowed: a block above it"
        )


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


def _soft(term: Soft, on: Source, learner: Learner, seen: Seen) -> None:
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
        teacher = _teacher("Soft", term.targets, learner)
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
        if seen.add(term.targets, takes) and (reason := _no_targets(term.targets, takes)):
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
            _teacher("Mixture", part, learner)
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
            if seen.add(part, takes) and (reason := _no_targets(part, takes)):
                raise FedkdError(f"Mixture: {reason}")
    if isinstance(rule, Mean) and rule.weights and len(rule.weights) != len(parts):
        raise FedkdError(f"Mean: {len(rule.weights)} weights for {len(parts)} parts; one each")
    if isinstance(rule, Band) and not (len(parts) == 2 and rule.low <= rule.middle <= rule.top):
        raise FedkdError(
            f"Band: low = {rule.low:g}, middle = {rule.middle:g}, top = {rule.top:g} of "
            f"{len(parts)} parts is not allowed; allowed: two parts, low <= middle <= top"
        )


def _teacher(term: str, name: str, learner: Learner) -> Student:
    """The student called ``name`` of those that may take the place of targets."""
    if name not in learner.teachers:
        known = ", ".join(learner.teachers) or "none"
        raise FedkdError(f"{term}: student {name!r} is not known; known: {known}")
    return learner.teachers[name]()


def _contrast(term: Contrast, on: Source, learner: Learner, seen: Seen) -> None:
    size, rows = learner.student().representation(term.cut).numel(), learner.rows(on)
    for side, given in (("positive", term.positive), ("negative", term.negative)):
        if isinstance(given, str):
            other = _teacher("Contrast", given, learner)
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


def _no_targets(targets: Tensor, takes: str) -> str | None:
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
    if seen.add(term.targets, "features") and (reason := _no_targets(term.targets, "features")):
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
        other = _teacher("Head", head.parameters, learner)
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
