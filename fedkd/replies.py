"""What a client's reply may hold: the contract of everything that comes back to the server.

Each step of an assignment has a form (:func:`form_of`): the shape, dtype and law of every array
that it replies with. Metrics have ranges. A reply holds what was asked, and nothing else; one that
does not is left out of the round, whatever the method and the engine.

====================  ==========================================================================
``Predict``           ``(M, C)`` float32: probabilities, or logits up to :data:`LARGEST`; over
                      candidates ``(M, k + 1)``
``Represent``         ``inputs`` ``(K, ...)`` float32, ``soft_labels`` ``(K, C)`` probabilities,
                      ``labels`` ``(K,)`` int64 in 0 to C - 1
either, a class       ``mean`` ``(C, d)`` float32, 0 where there are no samples, and ``count``
                      ``(C,)`` int64, which add up to the samples
``Select``            ``(M,)`` bool
``Count``             ``(C,)`` int64, which add up to the samples
``Share``             the arrays of the asked blocks of the client's student, as these are
``Fit``               a loss, finite; what a trial undoes may have diverged
``Evaluate``          accuracy and calibration error in 0 to 1, loss at least 0, perplexity at
                      least 1; a student that diverged has neither loss nor calibration error;
                      by the nearest prototype accuracy alone
a reply               the client's number and its number of samples, as the simulator knows them;
                      seconds, cohorts, loyalties and DP-SGD's account where the engine adds them
====================  ==========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from flwr.app import Message
from torch import Tensor

from fedkd.codec import decode
from fedkd.distillation.calibration import BINS
from fedkd.distillation.targets import check_probabilities
from fedkd.errors import brief, summary_of
from fedkd.privacy.dpsgd import sees_private
from fedkd.privacy.release import claims_epsilon
from fedkd.shapes import Shapes
from fedkd.training.loyalty import LOYALTIES
from fedkd.work import (
    Assignment,
    Contrast,
    Count,
    CrossEntropy,
    Evaluate,
    Expose,
    Feature,
    Fit,
    Parameters,
    Peer,
    Predict,
    Proximal,
    Reply,
    Represent,
    Select,
    Share,
    Step,
    origin,
)

LARGEST = 1e12
"""Largest number, in size, that a logit, a representation, a parameter or a loss may have: one
beyond it comes of a student that diverged, or of no student."""
DP = ("dp_sample_rate", "dp_steps")
"""Metrics that DP-SGD adds for the ledger."""
COHORT = "cohort "
"""Begins the metrics that say which steps were done in a cohort."""
PARTS = {"client": int, "samples": int, "values": dict, "metrics": dict, "error": str} | {
    "failure": str
}
WHOLE = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
"""What counters and masks of a student are of."""
Law = Callable[[Tensor, str], str | None]
"""Why an array, of this name, cannot be what it is to be; None if it can."""


class Form(NamedTuple):
    """What one array is to be; a length of None is any."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    law: Law


class Group(NamedTuple):
    """What named arrays are to be, each by itself and, by ``law``, together."""

    arrays: Mapping[str, Form]
    law: Callable[[Mapping[str, Tensor], str], str | None] | None = None


class Unreadable(NamedTuple):
    """Stands for a reply that cannot be read, for this reason.

    ``failed``: the client says that its work could not be done.
    """

    reason: str
    failed: bool = False


class Contract:
    """Checks replies against their assignments."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        # Where noise hides a record, a loss that it decides must not make its client leave.
        self._claims = claims_epsilon(shapes.experiment)
        self._private = shapes.experiment.training.dp.noise_multiplier > 0
        self._forms: dict[Any, Form | Group] = {}

    def unfit(
        self, assignment: Assignment, reply: Reply, models: Mapping[str, str]
    ) -> tuple[str, str] | None:
        """The step whose outcome cannot be used, and why; None if the whole reply can.

        Parameters
        ----------
        models
            Architectures of the client's students, by name.

        Returns
        -------
        tuple of str or None
            The step's class, empty where no step is to blame, and the reason.
        """
        known = self.shapes.samples(assignment.client)
        if known is not None and reply.samples != known:
            return "", f"samples = {reply.samples}, but the client has {known}"
        values, metrics = dict(reply.values), dict(reply.metrics)
        if reason := self._of_the_engine(assignment, metrics):
            return "", reason
        for steps, trial in ((assignment.steps, False), (assignment.trial, True)):
            for step in steps:
                if isinstance(step, Fit):
                    reasons = [_loss(peer, metrics, trial or self._claims) for peer in step.peers]
                    reason = next(filter(None, reasons), None)
                elif isinstance(step, Evaluate):
                    reason = self._quality(step, metrics, assignment.client)
                    if step.bins and (bins := values.pop(step.bins_key, None)) is not None:
                        reason = reason or _misfit(bins, IN_BINS, step.bins_key)
                elif isinstance(step, Select):
                    rows = self.shapes.rows(step.on, assignment.client)
                    chosen = Form((rows,), torch.bool, _anything)
                    reason = _misfit(values.pop(step.key, None), chosen, step.key)
                elif isinstance(step, Count):
                    law = _adding_up(
                        self.shapes.rows(step.on, assignment.client), self.shapes.task.tokens
                    )
                    counts = Form((self.shapes.classes,), torch.int64, law)
                    reason = _misfit(values.pop(step.key, None), counts, step.key)
                elif isinstance(step, Predict | Represent | Share | Expose):
                    form = self.form(step, assignment.client, models[step.student], trial)
                    reason = _misfit(values.pop(step.key, None), form, step.key)
                if reason:
                    return type(step).__name__, reason
        for name in (*values, *metrics):
            return "", f"{name} was not asked for"
        return None

    def form(
        self, step: Predict | Represent | Share | Expose, client: int, model: str, trial: bool
    ) -> Form | Group:
        """What ``step``, done by a student of architecture ``model``, replies with."""
        on = getattr(step, "on", "")
        rows = self.shapes.rows(on, client) if on else None
        if not isinstance(on, str):
            return form_of(step, self.shapes, model, rows, trial)
        asked = step, model, rows, trial
        if asked not in self._forms:
            self._forms[asked] = form_of(step, self.shapes, model, rows, trial)
        return self._forms[asked]

    def exposures(self, assignment: Assignment, reply: Reply) -> dict[str, Tensor | Parameters]:
        """What ``reply`` says of planted secrets, if it can be used, whatever else is in it."""
        found: dict[str, Tensor | Parameters] = {}
        for step in assignment.trial:
            if isinstance(step, Expose):
                form = Form((self.shapes.secrets,), torch.float64, _exposures)
                value = reply.values.get(step.key)
                if _misfit(value, form, step.key) is None and value is not None:
                    found[step.key] = value
        return found

    def _of_the_engine(self, assignment: Assignment, metrics: dict[str, float]) -> str | None:
        """Take out of ``metrics`` what the engine adds to them; why it cannot be right."""
        steps = assignment.steps
        if not 0 <= metrics.pop("seconds", 0.0) < math.inf:
            return "seconds are not a time"
        for name in [name for name in metrics if name.startswith(COHORT)]:
            known = any(name == cohort_name(step) for step in (*steps, *assignment.trial))
            if not known or metrics.pop(name) != 1:
                return f"{name!r} is not of a step that was asked"
        for name in [name for name in metrics if name in LOYALTIES]:
            if not any(isinstance(step, Fit) for step in steps):
                return f"{name} was not asked for"
            if not 0 <= (value := metrics.pop(name)) <= 1:
                return f"{name} is {value:g}"
        if self._private and any(isinstance(s, Fit) and sees_private(s) for s in steps):
            rate, count = (metrics.pop(name, math.nan) for name in DP)
            if not (0 <= rate <= 1 and count >= 0 and count % 1 == 0):
                return f"{' and '.join(DP)} are not a sample rate and a number of steps"
        return None

    def _quality(self, step: Evaluate, metrics: dict[str, float], client: int) -> str | None:
        rows = self.shapes.rows(step.on, client)
        names = [f"{step.key}_accuracy", f"{step.key}_loss", f"{step.key}_ece"]
        if self.shapes.task.tokens:
            names.append(f"{step.key}_perplexity")
        if step.prototypes is not None:
            del names[1:]
        there = [name for name in names if name in metrics]
        if rows == 0 or not self.shapes.labelled(step.on) or (rows is None and not there):
            return None  # what is there all the same was not asked for
        if missing := [name for name in names if name not in metrics]:
            return f"{missing[0]} is missing"
        found = [metrics.pop(name) for name in names]
        accuracy, loss, error, *perplexity = found if len(found) > 1 else (*found, 0.0, 0.0)
        diverged = math.isnan(error) and not math.isfinite(loss)
        right = [
            0 <= accuracy <= 1,
            diverged or 0 <= loss <= LARGEST,
            diverged or 0 <= error <= 1 + 1e-6,
            *(diverged or value >= 1 for value in perplexity),
        ]
        for name, value, fits in zip(names, found, right):
            if not fits:
                return f"{name} is {value:g}"
        return None


# --- forms ----------------------------------------------------------------------------------


def form_of(
    step: Predict | Represent | Share | Expose,
    shapes: Shapes,
    model: str,
    rows: int | None,
    trial: bool,
) -> Form | Group:
    """What ``step`` replies with: see the module's docstring.

    Parameters
    ----------
    model
        Architecture of the student that does it.
    rows
        Rows of the step's source, None where that is not known.
    trial
        Whether it is undone afterwards: a measurement, which ``[release]`` is not for.
    """
    classes = shapes.classes
    if isinstance(step, Share):
        blocks = shapes.student(model).part(tuple(step.part))
        return Group(
            {
                name: Form((*shape,), dtype, _whole if dtype in WHOLE else bounded)
                for name, (shape, dtype) in blocks.items()
            }
        )
    if isinstance(step, Expose):
        return Form((shapes.secrets,), torch.float64, _exposures)
    probabilities = isinstance(step, Represent) or step.output == "probabilities"
    if step.per == "class":
        if isinstance(step, Represent):
            width = shapes.student(model).representation(step.cut, step.pool).numel()
            probabilities = False
        else:
            width = classes
        mean = Form((classes, width), torch.float32, bounded)
        arrays = {"mean": mean, "count": Form((classes,), torch.int64, _counts)}
        # A token at the end of a text has no label, and is of no class.
        some = shapes.task.tokens
        return Group(arrays, _of_classes(rows, some, probabilities))
    law = probable if probabilities else bounded
    if isinstance(step, Predict):
        columns = shapes.released if not trial and origin(step.on) == "transfer" else classes
        return Form((rows, columns), torch.float32, law)
    held = shapes.student(model).representation(step.cut, step.pool)
    arrays = {
        "inputs": Form((rows, *held), torch.float32, bounded),
        "soft_labels": Form((rows, classes), torch.float32, probable),
    }
    if shapes.labelled(step.on):
        arrays["labels"] = Form((rows,), torch.int64, _labels(classes))
    return Group(arrays, _as_many)


def bounded(array: Tensor, name: str) -> str | None:
    """Why not all of ``array`` is finite and up to :data:`LARGEST`."""
    # A norm bounds all of it, and is sooner there than a look at each.
    if float(torch.linalg.vector_norm(array)) <= LARGEST:
        return None
    if not bool(torch.isfinite(array).all()):
        return f"{name} holds values that are not finite"
    largest = float(array.abs().max())
    return f"{name} holds {largest:g}, which is beyond {LARGEST:g}" if largest > LARGEST else None


def probable(array: Tensor, name: str) -> str | None:
    """Why the rows of ``array`` are not probabilities."""
    return check_probabilities(array, name)


def _whole(array: Tensor, name: str) -> str | None:
    return _counts(array, name) if array.dtype != torch.bool else None


def _counts(array: Tensor, name: str) -> str | None:
    if array.numel() and int(array.min()) < 0:
        return f"{name} holds {int(array.min())}, which is negative"
    return None


def _anything(array: Tensor, name: str) -> None:
    """Every array of the right shape and dtype will do."""


def _labels(classes: int) -> Law:
    def law(array: Tensor, name: str) -> str | None:
        outside = array[(array < 0) | (array >= classes)]
        if not len(outside):
            return None
        return f"{name} holds {int(outside[0])}; the classes are 0 to {classes - 1}"

    return law


def _exposures(array: Tensor, name: str) -> str | None:
    return bounded(array.nan_to_num(0.0, math.inf, -math.inf), name)


def _as_many(arrays: Mapping[str, Tensor], key: str) -> str | None:
    counts = {name: len(array) for name, array in arrays.items()}
    if len({*counts.values()}) == 1:
        return None
    return f"{key} has unlike numbers of rows: " + ", ".join(f"{n} {c}" for n, c in counts.items())


def _of_classes(
    rows: int | None, some: bool, probabilities: bool
) -> Callable[[Mapping[str, Tensor], str], str | None]:
    def law(arrays: Mapping[str, Tensor], key: str) -> str | None:
        mean, held = arrays["mean"], arrays["count"] > 0
        if reason := _total(arrays["count"], key, rows, some):
            return reason
        if bool(mean[~held].any()):
            return f"{key}: the mean of a class without samples is not 0"
        return probable(mean[held], f"{key}: means") if probabilities else None

    return law


def _total(counts: Tensor, key: str, rows: int | None, some: bool) -> str | None:
    """Why counts do not add up to ``rows``, or to less where ``some`` are of no class."""
    total = int(counts.sum())
    if rows is not None and (total > rows or (total < rows and not some)):
        return f"{key}: the counts add up to {total}, and there are {rows} samples"
    return None


def _adding_up(rows: int | None, some: bool) -> Law:
    return lambda array, name: _counts(array, name) or _total(array, name, rows, some)


def _misfit(value: Any, form: Form | Group, key: str) -> str | None:
    """Why ``value`` is not of this form."""
    if value is None:
        return f"{key} is missing"
    if isinstance(form, Form):
        if not isinstance(value, Tensor):
            return f"{key} holds named arrays where one array was asked"
        return _array(value, form, key)
    if not isinstance(value, dict):
        return f"{key} is one array where named arrays were asked"
    if value.keys() != form.arrays.keys():
        wrong = min(value.keys() ^ form.arrays.keys())
        return f"{key}: {wrong} {'was not asked for' if wrong in value else 'is missing'}"
    for name, wanted in form.arrays.items():
        if reason := _array(value[name], wanted, name):
            return f"{key}: {reason}"
    return form.law(value, key) if form.law is not None else None


def _array(array: Tensor, form: Form, name: str) -> str | None:
    if array.dtype is not form.dtype:
        return f"{name} is {_short(array.dtype)} where {_short(form.dtype)} was asked"
    if array.shape != form.shape and (
        len(array.shape) != len(form.shape)
        or any(b is not None and a != b for a, b in zip(array.shape, form.shape, strict=True))
    ):
        asked = ", ".join("any" if size is None else str(size) for size in form.shape)
        return f"{name} has shape {tuple(array.shape)} where ({asked}) was asked"
    return form.law(array, name)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _loss(peer: Peer, metrics: dict[str, float], any_value: bool) -> str | None:
    if peer.key not in metrics:
        return f"{peer.key} is missing"
    loss = metrics.pop(peer.key)
    for key in peer.keys[1:]:
        if not abs(slope := metrics.pop(key, math.nan)) <= LARGEST and not any_value:
            return f"{key} is {slope:g}"
    if any_value:
        return None
    never_negative = all(
        isinstance(term, CrossEntropy | Feature | Contrast | Proximal) and term.weight >= 0
        for term in peer.terms
    )
    if abs(loss) <= LARGEST and (loss >= 0 or not never_negative):
        return None
    return f"{peer.key} is {loss:g}"


def _in_bins(array: Tensor, name: str) -> str | None:
    """Why the rows of an array are not samples, the sum of their confidences and how many hit."""
    if reason := bounded(array, name):
        return reason
    sound = (array[:, 0] >= 0) & (array[:, 1:] >= 0).all(1)
    sound &= (array[:, 1:] <= array[:, :1] * (1 + 1e-6)).all(1)
    return None if bool(sound.all()) else f"{name} holds what no samples have"


IN_BINS = Form((BINS, 3), torch.float64, _in_bins)
"""What ``Evaluate`` replies with beside its metrics, where the simulator asks for bins."""


# --- reading --------------------------------------------------------------------------------


def cohort_name(step: Step) -> str:
    """The metric that says that ``step`` was done in a cohort."""
    return f"{COHORT}{type(step).__name__} {origin(getattr(step, 'on', ''))}"


def read(message: Message) -> Reply | Unreadable:
    """The reply that ``message`` holds, its parts of the right types; or why there is none."""
    if message.has_error():
        reason = " ".join(str(message.error.reason).split())
        return Unreadable(f"no readable reply: {reason}", failed=True)
    try:
        reply = decode(message.content)
    except Exception as error:  # whatever a client sends is no reason to stop
        return Unreadable(f"no readable reply: {summary_of(error)}")
    if not isinstance(reply, Reply):
        return Unreadable(f"no readable reply: it is a {type(reply).__name__}")
    if reason := _wrong_type(reply):
        return Unreadable(f"no readable reply: {reason}")
    return reply


def _wrong_type(reply: Reply) -> str:
    """The part of ``reply`` that is of another type than a reply's, or nothing."""
    for name, kind in PARTS.items():
        value = getattr(reply, name)
        if type(value) is not kind:
            return f"{name} is {brief(value)}; a reply has {kind.__name__} there"
    for key, value in reply.values.items():
        arrays = value.values() if isinstance(value, dict) else [value]
        if not all(isinstance(array, Tensor) for array in arrays):
            return f"{key} is {brief(value)}, and no array"
    for key, number in reply.metrics.items():
        if type(number) is not float:
            return f"{key} is {brief(number)}, and no float"
    return ""
