"""What a client's reply may hold: the contract of everything that comes back to the server.

Each step of an assignment has a form (:mod:`fedkd.forms`): the shape, dtype and law of every array
that it replies with. Metrics have ranges. A reply holds what was asked, and nothing else; one that
does not is left out of the round, whatever the method and the engine.

====================  ==========================================================================
``Predict``           ``(M, C)`` float32: probabilities, or logits up to ``forms.LARGEST``; over
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
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from flwr.app import Message
from torch import Tensor

from fedkd.codec import decode
from fedkd.errors import brief, summary_of
from fedkd.forms import (
    IN_BINS,
    LARGEST,
    Form,
    Group,
    adding_up,
    anything,
    are_exposures,
    form_of,
    misfit,
)
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

DP = ("dp_sample_rate", "dp_steps")
"""Metrics that DP-SGD adds for the ledger."""
COHORT = "cohort "
"""Begins the metrics that say which steps were done in a cohort."""
PARTS = {"client": int, "samples": int, "values": dict, "metrics": dict, "error": str} | {
    "failure": str
}


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
                        reason = reason or misfit(bins, IN_BINS, step.bins_key)
                elif isinstance(step, Select):
                    rows = self.shapes.rows(step.on, assignment.client)
                    chosen = Form((rows,), torch.bool, anything)
                    reason = misfit(values.pop(step.key, None), chosen, step.key)
                elif isinstance(step, Count):
                    law = adding_up(
                        self.shapes.rows(step.on, assignment.client), self.shapes.task.tokens
                    )
                    counts = Form((self.shapes.classes,), torch.int64, law)
                    reason = misfit(values.pop(step.key, None), counts, step.key)
                elif isinstance(step, Predict | Represent | Share | Expose):
                    form = self.form(step, assignment.client, models[step.student], trial)
                    reason = misfit(values.pop(step.key, None), form, step.key)
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
                form = Form((self.shapes.secrets,), torch.float64, are_exposures)
                value = reply.values.get(step.key)
                if misfit(value, form, step.key) is None and value is not None:
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


# --- metrics --------------------------------------------------------------------------------


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
