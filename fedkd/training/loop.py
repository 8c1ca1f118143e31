"""The one training loop: what Fit comes down to, of one student or of a stack of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext

import torch
from torch import nn

from fedkd.errors import FedkdError
from fedkd.experiment import TrainingTable
from fedkd.privacy.dpsgd import DPSGD, is_private
from fedkd.random import key
from fedkd.training.auxiliary import Auxiliary
from fedkd.training.batches import Augment, Batches, steps_of
from fedkd.training.course import WHOLE, Course, Span
from fedkd.training.items import placed, some
from fedkd.training.learners import Learner, OwnLearner, Trainee
from fedkd.training.student import check_learning, requiring, student_draws
from fedkd.work import Parameters, Rows, Samples, Source, Term


def fit(
    student: nn.Sequential,
    samples: Samples,
    terms: Sequence[Term],
    training: TrainingTable,
    generator: torch.Generator,
    *,
    epochs: float | None = None,
    min_steps: int | None = None,
    lr: float | None = None,
    part: tuple[str, ...] = (),
    sources: Mapping[str, Callable[[], Samples]] | None = None,
    augment: Augment | None = None,
    dp: DPSGD | None = None,
    seed: int | None = None,
    kept: Parameters | None = None,
    course: Course | None = None,
    span: Span = WHOLE,
    auxiliary: Auxiliary | None = None,
) -> float:
    """Minimise the sum of ``terms`` over ``samples``, changing ``student`` in place.

    Parameters
    ----------
    samples
        Inputs ``(K, ...)`` and labels ``(K,)`` on the student's device; of text ``(K, T)`` both.
    terms
        What the loss is made of. A term with ``on`` draws mini-batches of its own from there.
    training
        Optimiser and the defaults of ``epochs``, ``min_steps`` and ``lr``.
    generator
        Draws the order of samples, and augmentation.
    part
        Names of the blocks that learn; empty means all. What does not require a gradient before
        stays as it is in any case.
    sources
        Where terms with ``on`` draw from.
    dp
        Makes what private samples contribute DP-SGD's.
    seed
        Key of what the student draws by itself, as dropout does; made of the generator's own key
        when not given.
    kept
        What the optimiser goes on from and keeps, as in :class:`Trainee`.
    course
        How the rate changes and when the fit ends; a constant rate, and never, if not given.
    span
        From which to which share of the run's training the fit goes.
    auxiliary
        Heads beside the student that its objectives need, as in :class:`Trainee`.

    Returns
    -------
    float
        Mean loss over the steps of the last pass, of all steps with validation; 0 if there was
        nothing to do.

    Raises
    ------
    FedkdError
        A term needs labels that the samples do not have, or targets of another length; nothing of
        the student learns; a batch is too small for its normalisation; or what ``dp`` cannot do is
        asked for.
    """
    if seed is None:
        seed = key(generator.initial_seed(), "student")
    trainee = Trainee(
        student,
        terms,
        seed,
        lr=lr,
        part=part,
        dp=dp,
        kept=kept,
        course=course,
        auxiliary=auxiliary,
    )
    (loss,) = fit_together(
        [trainee],
        samples,
        training,
        generator,
        epochs=epochs,
        min_steps=min_steps,
        sources=sources,
        augment=augment,
        span=span,
    )
    return loss


def fit_together(
    trainees: Sequence[Trainee],
    samples: Samples,
    training: TrainingTable,
    generator: torch.Generator,
    *,
    epochs: float | None = None,
    min_steps: int | None = None,
    sources: Mapping[str, Callable[[], Samples]] | None = None,
    augment: Augment | None = None,
    span: Span = WHOLE,
) -> list[float]:
    """What :func:`fit` does, with several students that learn from the same batches.

    Each learns by its own terms and optimiser, in its own mode, and draws by its own key. In a
    step, all look at the batch before any of them learns from it.

    Returns
    -------
    list of float
        Of each student, what :func:`fit` returns of one.
    """
    if not len(samples.inputs):
        return [0.0] * len(trainees)
    epochs, min_steps = training.length(epochs, min_steps)
    together = len(trainees) > 1
    with ExitStack() as stack:
        learners = []
        for trainee in trainees:
            student = trainee.student
            draws = student_draws(student, trainee.seed, samples.inputs.device, again=together)
            if not together:
                stack.enter_context(draws)
            names = stack.enter_context(requiring(student, trainee.part))
            kind = Learner if trainee.own is None else OwnLearner
            learners.append(kind(trainee, names, draws if together else nullcontext()))
        return _fit(
            learners,
            samples,
            training,
            generator,
            epochs=epochs,
            min_steps=min_steps,
            sources=sources,
            augment=augment,
            span=span,
        )


def _fit(
    learners: Sequence[Learner],
    samples: Samples,
    training: TrainingTable,
    generator: torch.Generator,
    *,
    epochs: float,
    min_steps: int,
    sources: Mapping[str, Callable[[], Samples]] | None,
    augment: Augment | None,
    span: Span,
) -> list[float]:
    """The steps of :func:`fit_together`."""
    size, private = training.batch_size, [each.dp for each in learners if each.dp is not None]
    own = next((dp for dp in private if dp.own), None)
    batches = Batches(samples, size, generator, augment, own)
    for dp in private:
        dp.together = len(private)
        if dp is not own and dp.own:
            dp.batches(len(samples.inputs), size)  # which own draws
    steps = steps_of(epochs, batches.per_epoch, min_steps)
    if steps:
        for each in learners:
            check_learning(each.student, each.names, each.part)
    others = {
        on: Batches(
            *(_source(sources, on, samples.inputs.device), size, generator, augment),
            next(iter(private), None) if is_private(on) else None,
        )
        for each in learners
        for on in each.sources
        if on is not None
    }
    looks = {None: batches} | others
    for each in learners:
        each.prepare({on: looks[on].samples for on in each.sources}, [one.name for one in learners])
    if not all(each.learning for each in learners):
        return [0.0] * len(learners)
    for each in learners:
        each.begin(training, samples.inputs.device, learners)
    for step in range(steps):
        progress = span[0] + (span[1] - span[0]) * step / steps
        drawn = {on: source.draw(progress) for on, source in looks.items()}
        for each in sorted(learners, key=lambda one: one.base is not None):
            each.look(looks, drawn, alone=len(learners) == 1)
        if len(learners) > 1:
            for each in learners:
                each.listen(learners)
        for each in learners:
            each.pace(step / steps)
            each.descend(counts=step >= steps - batches.per_epoch)
        ended = [each.ended(step + 1, steps) for each in learners]
        if all(ended):
            break
    return [each.end() for each in learners]


def _source(
    sources: Mapping[str, Callable[[], Samples]] | None, on: Source, device: torch.device
) -> Samples:
    if isinstance(on, Samples):
        return placed(on, device)
    if isinstance(on, Rows):
        return some(_source(sources, on.source, device), on.index)
    if not sources or on not in sources:
        raise FedkdError(f"on = {on!r} is not known; known: {', '.join(sources or ())}")
    return sources[on]()
