"""What terms are checked against: the student that learns by them, and what was seen before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedkd import students
from fedkd.errors import FedkdError
from fedkd.shapes import Student
from fedkd.work import Source


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


def teacher_of(term: str, name: str, learner: Learner) -> Student:
    """The student called ``name`` of those that may take the place of targets."""
    if name not in learner.teachers:
        known = ", ".join(learner.teachers) or "none"
        raise FedkdError(f"{term}: student {name!r} is not known; known: {known}")
    return learner.teachers[name]()
