"""Fits of several students, and fits on the server, checked before anybody does them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fedkd.allowed import COUNT
from fedkd.distillation.objectives import COUPLING, couples, made, name_of, traits
from fedkd.errors import FedkdError, about, brief
from fedkd.fields import check_fields, source_name
from fedkd.learner import Learner, Seen
from fedkd.mixtures import Mixture
from fedkd.privacy.dpsgd import is_private, sees_private
from fedkd.shapes import Student, rows_of
from fedkd.terms import check_fit
from fedkd.training import Validation, predict
from fedkd.training.auxiliary import has_head
from fedkd.work import (
    Blend,
    Contrast,
    CrossEntropy,
    Feature,
    Fit,
    Peer,
    Penalty,
    Samples,
    Soft,
    Source,
    origin,
)


def check_together(step: Fit, noise_multiplier: float, models: Mapping[str, str]) -> None:
    """Refuse students that cannot learn together, where ``noise_multiplier`` is DP-SGD's.

    ``models`` has the architecture of each.

    Raises
    ------
    FedkdError
        One line naming them, or the term of one that has no targets there.
    """
    names = [peer.student for peer in step.peers]
    if len({*names}) < len(names):
        raise FedkdError(
            f"Fit: together: the students that learn are {', '.join(names)}; each can learn once"
        )
    if step.together and noise_multiplier and sees_private(step) and not is_private(step.on):
        raise FedkdError(
            f"Fit: together: on = {source_name(step.on)} with terms that draw private samples is "
            f"not allowed with training.dp.noise_multiplier = {noise_multiplier:g}; allowed: "
            "on = 'private'"
        )
    sources = {
        peer.student: {None, *(getattr(term, "on", None) for term in peer.terms)}
        for peer in step.peers
    }
    for peer in step.peers:
        if peer.at is not None:
            with about(f"Peer {peer.student!r}: at"):
                _blend(step, peer, peer.at, noise_multiplier, models)
        for term in peer.terms:
            if not isinstance(term, Soft):
                continue
            others = sources.keys() - {peer.student}
            live = isinstance(term.targets, str) and term.targets in others
            if noise_multiplier and is_private(step.on if term.on is None else term.on):
                _coupled(term, noise_multiplier)
            if term.adaptive and not live:
                raise FedkdError(
                    f"Soft: adaptive = True is not allowed with targets = {brief(term.targets)}; "
                    f"allowed: a student that learns together ({', '.join(others) or 'none here'})"
                )
            asked = [name for name in _asked(term) if term.per == "class"]
            if asked and live:
                raise FedkdError(
                    f"Soft: targets = {term.targets!r} per class is not allowed: this student "
                    "learns in the same step, and has no means of what it says of a batch"
                )
            if asked and noise_multiplier and is_private(step.on if term.on is None else term.on):
                raise FedkdError(
                    f"Soft: targets = {asked[0]!r} per class on private samples is not allowed "
                    f"with training.dp.noise_multiplier = {noise_multiplier:g}: the means of what "
                    "it says are of all of them, and no noise is on them"
                )
            if isinstance(term.targets, str) and live and term.on not in sources[term.targets]:
                raise FedkdError(
                    f"Soft: targets = {term.targets!r} is not allowed with on = {term.on!r}: this "
                    "student learns in the same step, and not from there; give it a term with this "
                    "on, or a step of its own"
                )


def _coupled(term: Soft, noise_multiplier: float) -> None:
    """Refuse an objective that couples rows, on private samples under DP-SGD."""
    objective = made(term.objective)
    if couples(objective):
        needed = " and ".join(name for name in traits(objective).needs if name in COUPLING)
        raise FedkdError(
            f"Soft: objective = {name_of(term.objective)!r} is not allowed on private samples with "
            f"training.dp.noise_multiplier = {noise_multiplier:g}: it needs {needed}, so that a "
            "sample has no gradient of its own to clip; allowed: an objective that needs neither "
            "groups nor memory, or on = 'transfer'"
        )


def _asked(term: Soft) -> list[str]:
    """The students whose word is among the targets of ``term``."""
    parts = term.targets.parts if isinstance(term.targets, Mixture) else (term.targets,)
    return [part for part in parts if isinstance(part, str)]


def _blend(
    step: Fit, peer: Peer, at: Blend, noise_multiplier: float, models: Mapping[str, str]
) -> None:
    """Refuse a student that cannot be built on another one as ``at`` says."""
    bases = {one.student: one for one in step.peers if one is not peer and one.at is None}
    if at.student not in bases:
        raise FedkdError(
            f"student = {at.student!r} is not allowed; allowed: a student that learns in the same "
            f"step, at its own parameters ({', '.join(bases) or 'none here'})"
        )
    own, other = models[peer.student], models[at.student]
    if own != other:
        raise FedkdError(f"they are of other architectures, {own!r} and {other!r}")
    if noise_multiplier and sees_private(step):
        raise FedkdError(
            "it is not allowed with training.dp.noise_multiplier = "
            f"{noise_multiplier:g}: a sample acts through the other student too"
        )
    for term in peer.terms:
        through = getattr(term, "through", None) is not None
        through = through or (isinstance(term, CrossEntropy) and bool(term.exit))
        if isinstance(term, Feature | Contrast) or through or has_head(term):
            raise FedkdError(
                f"{type(term).__name__} at a cut is not allowed for a student that is built on "
                "another one"
            )
        drawn = {None, *(getattr(each, "on", None) for each in bases[at.student].terms)}
        if getattr(term, "on", None) not in drawn:
            raise FedkdError(
                f"{type(term).__name__}: on = {getattr(term, 'on', None)!r} is not allowed: "
                f"{at.student!r} does not learn from there in this step"
            )


def check_validation(validation: Validation) -> None:
    """Refuse what a fit on the server cannot be watched by.

    Raises
    ------
    FedkdError
        One line naming the field, its value and what is allowed.
    """
    check_fields(validation.samples)
    labels, inputs = validation.samples.labels, validation.samples.inputs
    if labels is None or not len(inputs) or len(labels) != len(inputs):
        raise FedkdError("Validation: samples with a label each are needed, one at least")
    for name in ("every", "patience"):
        if not COUNT.test(value := getattr(validation, name)):
            raise FedkdError(
                f"Validation: {name} = {brief(value)} is not allowed; allowed: {COUNT.description}"
            )


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
        if isinstance(term, Soft) and isinstance(term.targets, Mixture):
            raise FedkdError(
                "Soft: a Mixture is not allowed for a student on the server, where all parts are "
                "at hand; allowed: a tensor made of them"
            )
        if isinstance(term, Soft) and term.encoding is not None:
            raise FedkdError(
                "Soft: encoding is not allowed for a student on the server: nothing travels to it"
            )
        if not isinstance(term, Penalty) and term.on not in (None, *sources):
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
    if samples.cut:
        raise FedkdError(
            f"Samples: cut = {samples.cut!r} is not allowed for a student on the server; one that "
            "takes representations has only the blocks above"
        )
    first = samples.inputs[:1].to(next(student.parameters()).device)

    def of(on: Source) -> Samples:
        return on if isinstance(on, Samples) else sources[origin(on)]

    learner = Learner(
        lambda: Student(student, first),
        predict(student, first).shape[1],
        lambda on: rows_of(of(on)),
        lambda on: of(on).labels is not None,
    )
    check_fit(samples, step.terms, (), learner, Seen())
