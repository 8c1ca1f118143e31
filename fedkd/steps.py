"""What steps and terms may hold: the contract of everything that a strategy asks of a client.

:data:`FIELDS` says, for each kind of step and term, what its fields may be. What depends on the
client, its students and the data is checked after that: sources and labels, names of blocks, cuts
and students, shapes, targets. It is checked when a hook has returned the steps, before anybody
does them, so that a mistake is told where it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedkd import registry, students
from fedkd.distillation.objectives import traits
from fedkd.distillation.targets import check_probabilities
from fedkd.errors import FedkdError, brief, nearest
from fedkd.options import MOST_EPOCHS
from fedkd.privacy.release import applies
from fedkd.replies import COHORT, DP, bounded
from fedkd.shapes import Shapes, Student, rows_of
from fedkd.training import predict
from fedkd.work import (
    SOURCES,
    CrossEntropy,
    Evaluate,
    Expose,
    Fit,
    Head,
    Hold,
    Load,
    Predict,
    Prototype,
    Proximal,
    Represent,
    Samples,
    Select,
    Share,
    Soft,
    Source,
    Step,
    Term,
)

STEPS = (Fit, Predict, Represent, Select, Hold, Load, Share, Evaluate, Expose)
TERMS = (CrossEntropy, Soft, Prototype, Proximal)
SENDS = (Predict, Represent, Select, Share)
"""Steps that send arrays."""
ALLOWED = {
    "learn": (Fit, Predict, Represent, Select, Hold, Load, Share, Evaluate),
    "receive": (Fit, Predict, Represent, Select, Hold, Load, Share, Evaluate),
    "deploy": (Fit, Hold, Load, Evaluate),
    "measure": (Fit, Predict, Represent, Select, Hold, Load, Share, Evaluate),
}
"""The steps that each hook may return. What ``deploy`` makes is undone, and nobody reads it."""
MEASURED = "measure_"
"""Begins the keys of what is measured, and never sent."""
TESTS = ("own_", "common_", "validation_")
"""Begins the names of the simulator's own tests of clients."""
RESERVED = {"seconds", "round", "client", "stage", *DP}
"""Names of metrics that are not a step's."""
UNWRITABLE = {"keys", "kind", "length", "floats"}
"""Keys that messages give a meaning of their own."""
DTYPES = {
    *(torch.float16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.complex64, torch.complex128),
}
"""What the tensors of a message may be of."""
MOST_STEPS = 10_000_000
"""Of one fit."""
TESTED_ON = ("own", "common")
"""Sources that students are tested on."""
KEY_OF = {
    "transfer": "data.transfer.size",
    "common": "data.test.common",
    "own": "data.test.fraction",
    "validation": "data.validation_fraction",
}
"""The key of an experiment that says how large a source is."""


class Allowed(NamedTuple):
    """What a field may hold: a test, and its description."""

    test: Callable[[Any], bool]
    description: str


# Types are exact: what only behaves like a number or a string does not go into a message.
def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)


def _names(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(type(name) is str for name in value)


def _array(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype in DTYPES
        and value.layout == torch.strided
        and value.device.type != "meta"
    )


def _arrays(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(name) is str and _array(array) for name, array in value.items()
    )


def _one_of(*values: str) -> Allowed:
    return Allowed(
        lambda value: type(value) is str and value in values, " or ".join(map(repr, values))
    )


def _or_none(allowed: Allowed) -> Allowed:
    return Allowed(
        lambda value: value is None or allowed.test(value), f"{allowed.description}, or None"
    )


def _of(kinds: tuple[type, ...]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)


NUMBER = Allowed(_number, "a finite number")
POSITIVE = Allowed(lambda value: _number(value) and value > 0, "a number above 0")
SHARE = Allowed(lambda value: _number(value) and 0 <= value <= 1, "a number from 0 to 1")
EPOCHS = Allowed(
    lambda value: _number(value) and 0 <= value <= MOST_EPOCHS,
    f"a number from 0 to {MOST_EPOCHS:,}",
)
STEPS_OF_A_FIT = Allowed(
    lambda value: type(value) is int and 0 <= value <= MOST_STEPS,
    f"a whole number from 0 to {MOST_STEPS:,}",
)
FLAG = Allowed(lambda value: type(value) is bool, "True or False")
NAME = Allowed(lambda value: type(value) is str and value != "", "a name")
NAMES = Allowed(_names, "a tuple of names of blocks")
SOURCE = Allowed(
    lambda value: type(value) is str or type(value) is Samples,
    f"{', '.join(map(repr, SOURCES))}, or Samples(...)",
)
NAMED_SOURCE = Allowed(lambda value: type(value) is str, ", ".join(map(repr, SOURCES)))
PARAMETERS = Allowed(_arrays, "a dictionary of tensors by name")
TARGETS = Allowed(
    lambda value: _array(value) and value.is_floating_point() and value.dim() == 2,
    "a tensor of floats with two dimensions",
)
PER = _one_of("sample", "class")
HEAD = _or_none(Allowed(lambda value: type(value) is Head, "Head(...)"))
TEMPERATURE = Allowed(
    lambda value: (
        POSITIVE.test(value)
        or (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.dim() == 1
            and bool((value > 0).all() and torch.isfinite(value).all())
        )
    ),
    "a number above 0, or a tensor of such (K,)",
)
WEIGHTS = Allowed(
    lambda value: (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() == 1
        and bool(torch.isfinite(value).all())
    ),
    "a tensor of finite numbers (K,)",
)
CANDIDATES = Allowed(
    lambda value: _array(value) and value.dtype == torch.int64 and value.dim() == 2,
    "a tensor of int64 (K, k)",
)

FIELDS: dict[type, dict[str, Allowed]] = {
    Samples: {
        "inputs": Allowed(_array, "a tensor (K, ...)"),
        "labels": _or_none(
            Allowed(
                lambda value: _array(value) and value.dtype == torch.int64,
                "a tensor of int64 (K,)",
            )
        ),
    },
    Head: {"cut": NAME, "parameters": PARAMETERS},
    CrossEntropy: {"weight": NUMBER, "on": _or_none(NAMED_SOURCE), "through": HEAD},
    Soft: {
        "targets": Allowed(
            lambda value: type(value) is str or TARGETS.test(value),
            f"{TARGETS.description}, or the name of a student",
        ),
        "objective": NAME,
        "temperature": TEMPERATURE,
        "weight": NUMBER,
        "tau_squared": FLAG,
        "per": PER,
        "reach": NAMES,
        "on": _or_none(NAMED_SOURCE),
        "through": HEAD,
        "among": _or_none(CANDIDATES),
        "row_weights": _or_none(WEIGHTS),
    },
    Prototype: {"targets": TARGETS, "cut": NAME, "weight": NUMBER, "on": _or_none(NAMED_SOURCE)},
    Proximal: {"weight": NUMBER, "anchor": _or_none(PARAMETERS)},
    Fit: {
        "on": SOURCE,
        "terms": Allowed(
            lambda value: (
                isinstance(value, tuple | list)
                and len(value) > 0
                and all(type(term) in TERMS for term in value)
            ),
            f"a tuple of terms ({_of(TERMS)}), as in (CrossEntropy(),)",
        ),
        "epochs": _or_none(EPOCHS),
        "min_steps": _or_none(STEPS_OF_A_FIT),
        "lr": _or_none(POSITIVE),
        "part": NAMES,
        "key": NAME,
        "student": NAME,
    },
    Predict: {
        "on": SOURCE,
        "temperature": POSITIVE,
        "output": _one_of("probabilities", "logits"),
        "per": PER,
        "key": NAME,
        "student": NAME,
    },
    Represent: {
        "cut": NAME,
        "on": SOURCE,
        "temperature": POSITIVE,
        "pool": FLAG,
        "per": PER,
        "key": NAME,
        "student": NAME,
    },
    Select: {"on": SOURCE, "width": POSITIVE, "quantile": SHARE, "key": NAME},
    Hold: {
        "student": Allowed(
            lambda value: type(value) is str and value not in ("", "own") and ":" not in value,
            "a name without a colon, other than 'own': a name has no colon",
        ),
        "model": Allowed(lambda value: type(value) is str, "the name of a student, or ''"),
    },
    Load: {
        "parameters": Allowed(
            lambda value: _arrays(value) and len(value) > 0,
            f"{PARAMETERS.description}, with one at least",
        ),
        "part": NAMES,
        "student": NAME,
    },
    Share: {"part": NAMES, "key": NAME, "student": NAME},
    Evaluate: {"on": SOURCE, "key": NAME, "student": NAME},
    Expose: {"key": NAME, "student": NAME},
}
"""What each kind of step and term may hold, field by field."""


@dataclass(frozen=True)
class Learner:
    """What the terms of a fit are checked against.

    ``rows`` and ``labelled`` tell of a source how many rows it has (None where that is not known)
    and whether these have labels; ``teachers`` are the students that may take the place of targets.
    """

    student: Callable[[], Student]
    classes: int
    rows: Callable[[Source], int | None]
    labelled: Callable[[Source], bool]
    teachers: Collection[str] = ()


@contextmanager
def about(thing: str) -> Iterator[None]:
    """Begin the line of a complaint with what it is about."""
    try:
        yield
    except FedkdError as error:
        raise FedkdError(f"{thing}: {error}") from error.__cause__


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


class Given:
    """Arrays as they were when a hook returned them: a step holds them until it is sent."""

    def __init__(self) -> None:
        self._arrays: dict[int, tuple[Tensor, int]] = {}
        self._groups: dict[int, tuple[dict[str, Tensor], list[int]]] = {}

    def add(self, thing: Any) -> None:
        """Note the arrays of a step, and refuse one that has been written to since it was noted."""
        if isinstance(thing, Tensor):
            _, version = self._arrays.setdefault(id(thing), (thing, _version(thing)))
            if version != _version(thing):
                raise _overwritten()
        elif isinstance(thing, dict):
            _, now = self._groups.setdefault(id(thing), (thing, [*map(id, thing.values())]))
            if now != [*map(id, thing.values())]:
                raise _overwritten()
            for item in thing.values():
                self.add(item)
        elif is_dataclass(thing):
            for item in vars(thing).values():
                self.add(item)
        elif isinstance(thing, list | tuple):
            for item in thing:
                self.add(item)

    def check(self) -> None:
        """Refuse what has been written to since it was noted."""
        if any(version != _version(array) for array, version in self._arrays.values()) or any(
            now != [*map(id, group.values())] for group, now in self._groups.values()
        ):
            raise _overwritten()

    def clear(self) -> None:
        """Forget everything."""
        self._arrays.clear()
        self._groups.clear()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _overwritten() -> FedkdError:
    return FedkdError(
        "an array of these steps was written to after it had been given to another client or step, "
        "which would get the new values too; give each an array of its own (.clone())"
    )


class Checker:
    """Checks steps; what it has seen once in a phase, it does not look through again."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self._known: set[int] = set()
        self._seen = Seen()
        self._given = Given()

    def begin(self) -> None:
        """Begin a phase: arrays of the one before may be freed, and their ids given to others."""
        self._known.clear()
        self._seen.clear()
        self._given.clear()

    def end(self) -> None:
        """End a phase, before its steps are sent.

        Raises
        ------
        FedkdError
            An array of a step is no longer what it was when its hook returned it.
        """
        self._given.check()

    def check(self, hook: str, steps: Sequence[Step], client: int, models: dict[str, str]) -> None:
        """Refuse steps that ``client`` could not do, or that would not do what they say.

        Parameters
        ----------
        hook
            Name of the hook that returned them.
        models
            The architecture of each student that the client has, by name; those that steps add are
            put in.

        Raises
        ------
        FedkdError
            One line naming the step, the field, its value and what is allowed.
        """
        rows = self.shapes.all_rows(client)
        for number, step in enumerate(steps, 1):
            known = self._hash(hook, step, rows, *models.items())
            if known is None or known not in self._known:
                with about(f"step {number}"):
                    self._check(hook, step, client, models)
                    self._given.add(step)
                if known is not None:
                    self._known.add(known)
            if isinstance(step, Hold):
                own = self.shapes.experiment.architecture(client)
                models.setdefault(step.student, step.model or own)

    def _hash(self, hook: str, step: Step, *of: Any) -> int | None:
        """What steps that are checked alike have in common; None of a step that has no hash."""
        try:
            if type(step) is Load:
                self._seen.add(step.parameters, "parameters")
                return hash((hook, id(step.parameters), step.part, step.student, *of))
            # Steps that differ in an array have other hashes: an array's is its id.
            return hash((hook, step, *of))
        except TypeError:  # a dictionary or a list is among its fields
            return None

    def _check(self, hook: str, step: Step, client: int, models: dict[str, str]) -> None:
        kind, allowed = type(step), ALLOWED[hook]
        if kind not in allowed:
            raise FedkdError(f"{brief(step)} is not allowed in {hook}; allowed: {_of(allowed)}")
        check_fields(step)
        if isinstance(step, Hold):
            self._hold(step)
            return
        self._key(hook, step)
        if isinstance(step, Select):
            self._select(hook, step, client)
            return
        if step.student not in models:
            raise FedkdError(
                f"{kind.__name__}: student {step.student!r} is not known"
                f"{nearest(step.student, [*models])}; known: {', '.join(models)}"
            )
        student = partial(self.shapes.student, models[step.student])
        if isinstance(step, Load):
            _load(step, student())
        elif isinstance(step, Share):
            student().part(tuple(step.part))
        elif isinstance(step, Fit):
            self._fit(step, client, student, models)
        elif isinstance(step, Predict | Represent | Evaluate):
            self._answer(step, client, student)
        if hook in ("learn", "receive"):
            self._release(step)

    def _key(self, hook: str, step: Step) -> None:
        """Refuse a key that means something else, or nothing to whoever reads the reply."""
        key = getattr(step, "key", None)
        if key is None:
            return
        said, metric = f"{type(step).__name__}: key = {key!r} is not allowed", isinstance(step, Fit)
        if key in UNWRITABLE or (metric and (key in RESERVED or key.startswith(COHORT))):
            raise FedkdError(f"{said}: the name is the simulator's; give it another")
        if isinstance(step, Fit | Evaluate) and f"{key}_".startswith(TESTS):
            raise FedkdError(
                f"{said}: names that begin with {', '.join(TESTS)} are those of the simulator's "
                "own tests, in all rounds that are measured; give it another"
            )
        if key.startswith(MEASURED) != (hook == "measure"):
            raise FedkdError(
                f"{said}: what measure asks for, and nothing else, has a key that begins with "
                f"{MEASURED!r}"
            )

    def _hold(self, step: Hold) -> None:
        if step.model:
            self.shapes.student(step.model)

    def _select(self, hook: str, step: Select, client: int) -> None:
        self._source(step, step.on, client)
        if self.shapes.task.tokens:
            experiment = self.shapes.experiment
            raise FedkdError(
                f"Select is not allowed with data.dataset = {experiment.data.dataset!r}: between "
                "texts it knows no distance"
            )
        if hook in ("learn", "receive"):
            self._release(step)

    def _source(self, step: Step, on: Source, client: int, part: str = "") -> None:
        """Refuse a source that is not known, or that has nothing in it."""
        name = part or type(step).__name__
        if isinstance(on, Samples):
            self._samples(name, on)
            return
        if on not in SOURCES:
            raise FedkdError(
                f"{name}: on = {on!r} is not known{nearest(on, [*SOURCES])}; "
                f"known: {', '.join(SOURCES)}"
            )
        if self.shapes.empty(on):
            key = KEY_OF.get(on, "data.samples_per_client")
            raise FedkdError(f"{name}: on = {on!r} has no samples in this experiment; see {key}")
        if part and self.shapes.rows(on, client) == 0:
            raise FedkdError(f"{name}: on = {on!r} has no samples on client {client}")

    def _samples(self, name: str, samples: Samples) -> None:
        if not self._seen.add(samples, "samples"):
            return
        check_fields(samples)
        inputs, labels, task = samples.inputs, samples.labels, self.shapes.task
        dtype = torch.int64 if task.tokens else torch.float32
        if inputs.dtype != dtype or inputs.shape[1:] != task.shape:
            raise FedkdError(
                f"{name}: Samples: inputs = {brief(inputs)} is not allowed; students take "
                f"(K, {', '.join(map(str, task.shape))}) of {dtype}"
            )
        if (
            task.tokens
            and len(inputs)
            and not 0 <= int(inputs.min()) <= int(inputs.max()) < (task.classes)
        ):
            raise FedkdError(f"{name}: Samples: inputs hold what is no token (0 to {task.classes})")
        if not task.tokens and (reason := bounded(inputs, "inputs")):
            raise FedkdError(f"{name}: Samples: {reason}")
        if labels is None:
            return
        wanted, least = (inputs.shape, -1) if task.tokens else (inputs.shape[:1], 0)
        if labels.shape != wanted:
            raise FedkdError(
                f"{name}: Samples: labels = {brief(labels)} is not allowed; one for each of "
                f"{tuple(wanted)} is needed"
            )
        if len(labels) and not least <= int(labels.min()) <= int(labels.max()) < task.classes:
            raise FedkdError(
                f"{name}: Samples: labels hold what is no class ({least} to {task.classes - 1})"
            )

    def _answer(
        self, step: Predict | Represent | Evaluate, client: int, student: Callable[[], Student]
    ) -> None:
        self._source(step, step.on, client)
        name = type(step).__name__
        if isinstance(step, Represent):
            students.cut_index(student().module, step.cut)
            if self.shapes.task.tokens and step.per == "sample":
                experiment = self.shapes.experiment
                raise FedkdError(
                    f"strategy.name = {experiment.strategy.name!r} is not allowed with "
                    f"data.dataset = {experiment.data.dataset!r}: it sends a representation of "
                    "each sample, and in text only tokens have one"
                )
        by_label = isinstance(step, Evaluate) or step.per == "class"
        if by_label and not self.shapes.labelled(step.on):
            wants = "it" if isinstance(step, Evaluate) else "per class"
            raise FedkdError(
                f"{name}: {wants} needs labels, and on = {_name(step.on)} has none: the samples "
                "have no labels (the transfer set never has)"
            )

    def _fit(
        self, step: Fit, client: int, student: Callable[[], Student], teachers: Collection[str]
    ) -> None:
        self._source(step, step.on, client)
        for term in step.terms:
            check_fields(term)
            if not isinstance(term, Proximal) and term.on is not None:
                self._source(step, term.on, client, type(term).__name__)
        learner = Learner(
            student,
            self.shapes.classes,
            lambda on: self.shapes.rows(on, client),
            self.shapes.labelled,
            teachers,
        )
        check_fit(step.on, step.terms, tuple(step.part), learner, self._seen)

    def _release(self, step: Step) -> None:
        """Refuse what leaves a client around ``[release]``."""
        table = self.shapes.experiment.release
        if not table.active or not isinstance(step, SENDS) or applies(step, table):
            return
        on = getattr(step, "on", None)
        where = f" on {_name(on)}" if on is not None else ""
        per = " per class" if getattr(step, "per", "") == "class" else ""
        raise FedkdError(
            f"{type(step).__name__}{where}{per} is not allowed with [release]: it would leave the "
            "client unreleased; allowed: Predict a row a sample, on 'transfer', 'common' or on "
            "samples sent along"
        )


# --- fields ---------------------------------------------------------------------------------


def check_fields(thing: Step | Term | Samples | Head) -> None:
    """Refuse a step, term or other part of one with a field that holds what it may not.

    Raises
    ------
    FedkdError
        One line naming the field, its value and what is allowed.
    """
    for name, allowed in FIELDS[type(thing)].items():
        value = getattr(thing, name)
        if not allowed.test(value):
            raise FedkdError(
                f"{type(thing).__name__}: {name} = {brief(value)} is not allowed; "
                f"allowed: {allowed.description}"
            )


def _load(step: Load, student: Student) -> None:
    asked = student.part(tuple(step.part))
    for name, value in step.parameters.items():
        shape, dtype = student.state.get(name, (None, None))
        if dtype is None or value.shape != shape or _is_real(value.dtype) != _is_real(dtype):
            has = f"{tuple(shape or ())} of {dtype}" if dtype else "none of that name"
            raise FedkdError(
                f"Load: parameters: student {step.student!r} has no {name} of shape "
                f"{tuple(value.shape)}, {value.dtype}; it has {has}"
            )
    if not any(name in asked for name in step.parameters):
        raise FedkdError(
            f"Load: part = {tuple(step.part)} has none of the parameters, which are "
            f"{_some(step.parameters)}"
        )


def _is_real(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point


def _some(names: Collection[str]) -> str:
    first = list(names)[:3]
    return ", ".join(first) + (", …" if len(names) > len(first) else "")


def _name(on: Source) -> str:
    return repr(on) if isinstance(on, str) else "samples sent along"


# --- terms ----------------------------------------------------------------------------------


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
    for term in terms:
        if isinstance(term, Proximal):
            if term.anchor is not None:
                _anchor(term.anchor, part, learner.student())
            continue
        source = on if term.on is None else term.on
        if isinstance(term, CrossEntropy | Soft) and term.through is not None:
            _through(term.through, learner.student())
        by_label = not isinstance(term, Soft) or term.per == "class"
        if by_label and not learner.labelled(source):
            raise FedkdError(
                f"{type(term).__name__}: the samples of {_name(source)} have no labels (the "
                "transfer set never has)"
            )
        if isinstance(term, Soft):
            _soft(term, source, learner, seen)
        elif isinstance(term, Prototype):
            _prototype(term, learner, seen)


def check_server_fit(step: Fit, student: nn.Sequential, samples: Samples, public: Samples) -> None:
    """Refuse a fit of a student on the server that does not fit the student or ``samples``.

    Parameters
    ----------
    public
        What terms with ``on="public"`` draw from.

    Raises
    ------
    FedkdError
        One line naming the field, its value and what is allowed.
    """
    check_fields(step)
    check_fields(samples)
    sources = {"public": public}
    for term in step.terms:
        check_fields(term)
        if not isinstance(term, Proximal) and term.on not in (None, *sources):
            raise FedkdError(
                f"{type(term).__name__}: on = {term.on!r} is not known; known: {', '.join(sources)}"
            )
    if not len(samples.inputs):
        return
    if samples.labels is not None and len(samples.labels) != len(samples.inputs):
        raise FedkdError(
            f"Samples: {len(samples.labels)} labels for {len(samples.inputs)} inputs; one each is "
            "needed"
        )
    first = samples.inputs[:1].to(next(student.parameters()).device)

    def of(on: Source) -> Samples:
        return sources[on] if isinstance(on, str) else on

    learner = Learner(
        lambda: Student(student, first),
        predict(student, first).shape[1],
        lambda on: rows_of(of(on)),
        lambda on: of(on).labels is not None,
    )
    check_fit(samples, step.terms, (), learner, Seen())


def _soft(term: Soft, on: Source, learner: Learner, seen: Seen) -> None:
    if term.reach:
        learner.student().part(tuple(term.reach))
    takes = traits(registry.load("objectives", term.objective)).targets
    classes, among = learner.classes, term.among
    rows = classes if term.per == "class" else learner.rows(on)
    if isinstance(term.targets, str):
        if term.targets not in learner.teachers:
            known = ", ".join(learner.teachers) or "none"
            raise FedkdError(f"Soft: student {term.targets!r} is not known; known: {known}")
        if term.per == "class":
            raise FedkdError(
                "Soft: per = 'class' is not allowed with the name of a student, which says a row a "
                "sample"
            )
    else:
        rows = _rows(term.targets, rows, on, term.per)
        _columns(term.targets, classes if among is None else among.shape[1] + 1, among)
        if seen.add(term.targets, takes) and (reason := _no_targets(term.targets, takes)):
            raise FedkdError(f"Soft: {reason}; objective = {term.objective!r} takes {takes}")
    for what, given in (("temperature", term.temperature), ("row_weights", term.row_weights)):
        if isinstance(given, Tensor) and rows is not None and given.shape != (rows,):
            raise FedkdError(
                f"Soft: {what} of shape {tuple(given.shape)} is not allowed; one for each of "
                f"{rows} rows of targets is needed"
            )
    if among is None:
        return
    if takes != "probabilities":
        raise FedkdError(
            f"Soft: objective = {term.objective!r} is not allowed with candidates: it takes "
            "logits, and all other classes together have none"
        )
    if rows is not None and len(among) != rows:
        raise FedkdError(
            f"Soft: candidates of shape {tuple(among.shape)}; one row for each of {rows} rows of "
            "targets is needed"
        )
    if seen.add(among, "candidates") and (reason := _no_candidates(among, classes)):
        raise FedkdError(f"Soft: {reason}")


def _rows(targets: Tensor, wanted: int | None, on: Source, per: str) -> int:
    if wanted is not None and len(targets) != wanted:
        each = "class" if per == "class" else f"row of {_name(on)}"
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


def _prototype(term: Prototype, learner: Learner, seen: Seen) -> None:
    size = learner.student().representation(term.cut).numel()
    wanted = learner.classes, size
    if term.targets.shape != wanted:
        raise FedkdError(
            f"Prototype: targets of shape {tuple(term.targets.shape)} are not allowed; allowed: "
            f"{wanted}, a row a class, as wide as the representation at {term.cut!r}"
        )
    if seen.add(term.targets, "prototypes") and (reason := _no_targets(term.targets, "features")):
        raise FedkdError(f"Prototype: {reason}")


def _through(head: Head, student: Student) -> None:
    check_fields(head)
    above = student.above(head.cut)
    if different := above.keys() ^ head.parameters.keys():
        raise FedkdError(
            f"Head: its parameters are not those of the blocks above {head.cut!r}: "
            f"{min(different)} is in one of them only"
        )
    for name, shape in above.items():
        if head.parameters[name].shape != shape:
            raise FedkdError(
                f"Head: {name} of shape {tuple(head.parameters[name].shape)} is not allowed; the "
                f"student's is {tuple(shape)}"
            )


def _anchor(anchor: dict[str, Tensor], part: tuple[str, ...], student: Student) -> None:
    for name in student.learning(part):
        given, shape = anchor.get(name), student.state[name][0]
        if given is None or given.shape != shape:
            found = "has none" if given is None else f"has one of shape {tuple(given.shape)}"
            raise FedkdError(
                f"Proximal: anchor {found} for {name} of shape {tuple(shape)}; one is needed for "
                "every parameter that learns"
            )
    if other := anchor.keys() - student.state.keys():
        raise FedkdError(f"Proximal: anchor has {min(other)}, which the student has not")


def names_of(steps: Sequence[Step]) -> Iterator[tuple[str, str]]:
    """Of each step that replies: what with (``array`` or ``metric``), and under which name."""
    for step in steps:
        if isinstance(step, Fit):
            yield "metric", step.key
        elif isinstance(step, Evaluate):
            for name in ("accuracy", "loss", "ece", "perplexity"):
                yield "metric", f"{step.key}_{name}"
        elif isinstance(step, Predict | Represent | Select | Share | Expose):
            yield "array", step.key


def check_keys(steps: Sequence[Step]) -> None:
    """Refuse two steps of one assignment that reply under the same key.

    Raises
    ------
    FedkdError
        One line naming the key: the second answer would take the place of the first.
    """
    names = list(names_of(steps))
    if len({*names}) == len(names):
        return
    kind, name = next(name for place, name in enumerate(names) if name in names[:place])
    raise FedkdError(
        f"two steps reply with the {kind} {name!r}, and the second would take the place of the "
        "first; give each a key of its own"
    )
