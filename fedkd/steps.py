"""Steps that a hook has returned, checked against the client before anybody does them.

What depends on the client, its students and the data is checked here, after what fields may hold
(:mod:`fedkd.fields`) and together with the terms (:mod:`fedkd.terms`): sources and labels, names of
blocks, cuts and students, keys. So a mistake is told where it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from fedkd import students
from fedkd.compression import Delta
from fedkd.encodings import check_deltas, check_encodings
from fedkd.errors import FedkdError, about, brief, nearest
from fedkd.fields import check_fields, kinds_of, source_name
from fedkd.fits import check_together
from fedkd.given import Given
from fedkd.learner import Learner, Seen, check_above
from fedkd.privacy.release import applies
from fedkd.replies import COHORT, DP
from fedkd.shapes import Shapes, Student
from fedkd.source_checks import SourceChecker
from fedkd.terms import check_fit, check_network
from fedkd.training import last_layer
from fedkd.training.loyalty import LOYALTIES
from fedkd.work import (
    Align,
    Count,
    Evaluate,
    Expose,
    Fit,
    Hold,
    Load,
    Parameters,
    Peer,
    Penalty,
    Predict,
    Represent,
    Samples,
    Select,
    Share,
    Source,
    Step,
)

SENDS = (Predict, Represent, Select, Count, Share)
"""Steps that send arrays."""
ALLOWED = {
    "learn": (Fit, Align, *SENDS, Hold, Load, Evaluate),
    "receive": (Fit, Align, *SENDS, Hold, Load, Evaluate),
    "deploy": (Fit, Hold, Load, Evaluate),
    "measure": (Fit, *SENDS, Hold, Load, Evaluate),
    "score": (Fit, Hold, Load, Evaluate),
}
"""The steps that each hook may return. What ``deploy`` and ``score`` make is undone, and nobody
reads it."""
MEASURED = "measure_"
"""Begins the keys of what is measured, and never sent."""
TESTS = ("own_", "common_", "validation_")
"""Begins the names of the simulator's own tests of clients."""
RESERVED = {"seconds", "round", "client", "stage", *DP, *LOYALTIES}
"""Names of metrics that are not a step's."""
UNWRITABLE = {"keys", "kind", "length", "floats", "same"}
"""Keys that messages give a meaning of their own."""
TESTED_ON = ("own", "common")
"""Sources that students are tested on."""


class Checker:
    """Checks steps; what it has seen once in a phase, it does not look through again."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self._known: set[int] = set()
        self._seen = Seen()
        self._sources = SourceChecker(shapes, self._seen)
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
            if type(step) is Load and isinstance(step.parameters, dict):
                self._seen.add(step.parameters, "parameters")
                return hash((hook, id(step.parameters), step.part, step.student, *of))
            # Steps that differ in an array have other hashes: an array's is its id.
            return hash((hook, step, *of))
        except TypeError:  # a dictionary or a list is among its fields
            return None

    def _check(self, hook: str, step: Step, client: int, models: dict[str, str]) -> None:
        kind, allowed = type(step), ALLOWED[hook]
        if kind not in allowed:
            raise FedkdError(
                f"{brief(step)} is not allowed in {hook}; allowed: {kinds_of(allowed)}"
            )
        check_fields(step)
        if isinstance(step, Hold):
            self._hold(step)
            return
        self._key(hook, step)
        if isinstance(step, Select):
            self._select(hook, step, client)
            return
        if isinstance(step, Count):
            self._count(hook, step, client)
            return
        _known(step, models)
        student = partial(self.shapes.student, models[step.student])
        if isinstance(step, Load):
            student().part(tuple(step.part))
            if isinstance(step.parameters, str):
                _copy(step, step.parameters, models)
            else:
                _load(step, step.parameters, student())
        elif isinstance(step, Share):
            student().part(tuple(step.part))
        elif isinstance(step, Fit):
            self._fit(hook, step, client, models)
        elif isinstance(step, Align):
            self._align(step, client, student())
        elif isinstance(step, Predict | Represent | Evaluate):
            self._answer(step, client, student)
        check_encodings(step, travels=hook in ("learn", "receive"))
        if hook in ("learn", "receive"):
            self._release(step)

    def _key(self, hook: str, step: Step | Peer) -> None:
        """Refuse a key that means something else, or nothing to whoever reads the reply."""
        key = getattr(step, "key", None)
        if key is None:
            return
        said = f"{type(step).__name__}: key = {key!r} is not allowed"
        metric = isinstance(step, Fit | Peer)
        if key in UNWRITABLE or (metric and (key in RESERVED or key.startswith(COHORT))):
            raise FedkdError(f"{said}: the name is the simulator's; give it another")
        if isinstance(step, Evaluate) and step.bins:
            raise FedkdError("Evaluate: bins = True is not allowed: they are the simulator's own")
        named = hook == "score" and isinstance(step, Evaluate)
        tested = (metric or isinstance(step, Evaluate)) and f"{key}_".startswith(TESTS)
        if tested and not named:
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
        self._sources.check(type(step).__name__, step.on, client)
        if isinstance(step.on, Samples) and step.on.cut:
            raise FedkdError(
                f"Select: on = {step.on!r} is not allowed: it takes samples as they are"
            )
        if self.shapes.task.tokens:
            experiment = self.shapes.experiment
            raise FedkdError(
                f"Select is not allowed with data.dataset = {experiment.data.dataset!r}: between "
                "texts it knows no distance"
            )
        if hook in ("learn", "receive"):
            self._release(step)

    def _count(self, hook: str, step: Count, client: int) -> None:
        self._sources.check("Count", step.on, client)
        self._labelled("Count", step.on)
        if hook in ("learn", "receive"):
            self._release(step)

    def _align(self, step: Align, client: int, student: Student) -> None:
        self._sources.check("Align", step.on, client)
        self._labelled("Align", step.on)
        student.part(tuple(step.part))
        last_layer(student.module, step.student)
        if noise_multiplier := self.shapes.experiment.training.dp.noise_multiplier:
            raise FedkdError(
                f"Align is not allowed with training.dp.noise_multiplier = {noise_multiplier:g}: "
                "it goes by how many private samples there are of each class, and no noise is on "
                "that"
            )

    def _labelled(self, name: str, on: Source) -> None:
        if not self.shapes.labelled(on):
            raise FedkdError(
                f"{name}: the samples of {source_name(on)} have no labels (the transfer set never "
                "has)"
            )

    def _answer(
        self, step: Predict | Represent | Evaluate, client: int, student: Callable[[], Student]
    ) -> None:
        name = type(step).__name__
        self._sources.check(name, step.on, client)
        if isinstance(step, Represent):
            students.cut_index(student().module, step.cut)
            if self.shapes.task.tokens and step.per == "sample":
                experiment = self.shapes.experiment
                raise FedkdError(
                    f"strategy.name = {experiment.strategy.name!r} is not allowed with "
                    f"data.dataset = {experiment.data.dataset!r}: it sends a representation of "
                    "each sample, and in text only tokens have one"
                )
        if isinstance(step, Evaluate):
            self._prototypes(step, student)
            if step.above is not None:
                check_network(step, student(), self.shapes)
        if isinstance(step.on, Samples) and step.on.cut:
            student().check_entry(step.on)
            if cut := getattr(step, "cut", ""):
                check_above(name, cut, step.on.cut, student())
        by_label = isinstance(step, Evaluate) or step.per == "class"
        if by_label and not self.shapes.labelled(step.on):
            wants = "it" if isinstance(step, Evaluate) else "per class"
            raise FedkdError(
                f"{name}: {wants} needs labels, and on = {source_name(step.on)} has none: the "
                "samples have no labels (the transfer set never has)"
            )

    def _prototypes(self, step: Evaluate, student: Callable[[], Student]) -> None:
        """Refuse prototypes that are not as wide as the representation."""
        given = step.prototypes
        if given is None:
            if step.cut:
                raise FedkdError(f"Evaluate: cut = {step.cut!r} has no effect without prototypes")
            return
        width = student().representation(step.cut).numel()
        wanted = self.shapes.task.classes, width
        if given.shape != wanted:
            raise FedkdError(
                f"Evaluate: prototypes of shape {tuple(given.shape)} are not allowed; allowed: "
                f"{wanted}, a row a class, as wide as the representation at {step.cut!r}"
            )
        if bool((given[:, :1].isnan() != given.isnan()).any()) or bool(given.isinf().any()):
            raise FedkdError(
                "Evaluate: prototypes hold what is no number; a class without one has NaN in all "
                "of its row"
            )

    def _fit(self, hook: str, step: Fit, client: int, models: dict[str, str]) -> None:
        self._sources.check(type(step).__name__, step.on, client)
        for peer in step.together:
            check_fields(peer)
            self._key(hook, peer)
            _known(peer, models)
        for peer in step.peers:
            for term in peer.terms:
                check_fields(term)
                if not isinstance(term, Penalty) and term.on is not None:
                    self._sources.check(type(term).__name__, term.on, client, of_term=True)
            learner = Learner(
                partial(self.shapes.student, models[peer.student]),
                self.shapes.classes,
                lambda on: self.shapes.rows(on, client),
                self.shapes.labelled,
                {name: partial(self.shapes.student, model) for name, model in models.items()},
            )
            part = tuple(peer.part) or self.shapes.experiment.training.part
            check_fit(step.on, peer.terms, part, learner, self._seen)
            if peer.at is not None:
                check_fields(peer.at)
                if peer.at.cut:
                    students.cut_index(learner.student().module, peer.at.cut)
        check_together(step, self.shapes.experiment.training.dp.noise_multiplier, models)

    def _release(self, step: Step) -> None:
        """Refuse what leaves a client around ``[release]``."""
        table = self.shapes.experiment.release
        masked = table.active and table.trust == "secure-aggregation"
        if masked and isinstance(getattr(step, "encoding", None), Delta):
            raise FedkdError(
                "Predict: encoding = Delta(...) is not allowed with release.trust = "
                f"{table.trust!r}: which rows have changed would be seen of each client; allowed: "
                "Quantised(...), or none"
            )
        if not table.active or not isinstance(step, SENDS) or applies(step, table):
            return
        on = getattr(step, "on", None)
        where = f" on {source_name(on)}" if on is not None else ""
        per = " per class" if getattr(step, "per", "") == "class" else ""
        raise FedkdError(
            f"{type(step).__name__}{where}{per} is not allowed with [release]: it would leave the "
            "client unreleased; allowed: Predict a row a sample, on 'transfer', 'common', rows of "
            "these, or samples sent along"
        )


def _known(step: Step | Peer, models: Collection[str]) -> None:
    name = getattr(step, "student", "own")
    if name not in models:
        raise FedkdError(
            f"{type(step).__name__}: student {name!r} is not known{nearest(name, [*models])}; "
            f"known: {', '.join(models)}"
        )


def _copy(step: Load, of: str, models: Mapping[str, str]) -> None:
    """Refuse the parameters of a student that is not there, or that is of another architecture."""
    if of not in models:
        raise FedkdError(
            f"Load: parameters: student {of!r} is not known{nearest(of, [*models])}; known: "
            f"{', '.join(models)}"
        )
    if models[of] != models[step.student]:
        raise FedkdError(
            f"Load: parameters = {of!r} is not allowed with student = {step.student!r}: they are "
            f"of other architectures, {models[of]!r} and {models[step.student]!r}"
        )


def _load(step: Load, parameters: Parameters, student: Student) -> None:
    asked = student.part(tuple(step.part))
    for name, value in parameters.items():
        shape, dtype = student.state.get(name, (None, None))
        if dtype is None or value.shape != shape or _is_real(value.dtype) != _is_real(dtype):
            has = f"{tuple(shape or ())} of {dtype}" if dtype else "none of that name"
            raise FedkdError(
                f"Load: parameters: student {step.student!r} has no {name} of shape "
                f"{tuple(value.shape)}, {value.dtype}; it has {has}"
            )
    if not any(name in asked for name in parameters):
        raise FedkdError(
            f"Load: part = {tuple(step.part)} has none of the parameters, which are "
            f"{_some(parameters)}"
        )


def _is_real(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point


def _some(names: Collection[str]) -> str:
    first = list(names)[:3]
    return ", ".join(first) + (", …" if len(names) > len(first) else "")


def names_of(steps: Sequence[Step]) -> Iterator[tuple[str, str]]:
    """Of each step that replies: what with (``array`` or ``metric``), and under which name."""
    for step in steps:
        if isinstance(step, Fit):
            yield from (("metric", key) for peer in step.peers for key in peer.keys)
        elif isinstance(step, Evaluate):
            for name in ("accuracy", "loss", "ece", "perplexity"):
                yield "metric", f"{step.key}_{name}"
            if step.bins:
                yield "array", step.bins_key
        elif isinstance(step, Predict | Represent | Select | Count | Share | Expose):
            yield "array", step.key


def check_keys(steps: Sequence[Step]) -> None:
    """Refuse two steps of one assignment that reply under the same key.

    Raises
    ------
    FedkdError
        One line naming the key: the second answer would take the place of the first.
    """
    check_deltas(steps)
    names = list(names_of(steps))
    if len({*names}) == len(names):
        return
    kind, name = next(name for place, name in enumerate(names) if name in names[:place])
    raise FedkdError(
        f"two steps reply with the {kind} {name!r}, and the second would take the place of the "
        "first; give each a key of its own"
    )
