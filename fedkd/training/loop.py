"""The one training loop: what Fit comes down to, of one student or of a stack of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedkd import optimisers
from fedkd.blends import moved
from fedkd.errors import FedkdError
from fedkd.experiment import TrainingTable
from fedkd.privacy.dpsgd import DPSGD, copied, is_private, quietly
from fedkd.random import key
from fedkd.training.batches import Augment, Batch, Batches, Drawn, Place, steps_of
from fedkd.training.course import Best, Course
from fedkd.training.items import placed, some
from fedkd.training.losses import Loss, Summand, source_of
from fedkd.training.student import check_learning, names_above, requiring, set_modes, student_draws
from fedkd.work import Blend, Parameters, Rows, Samples, Source, Term


class Optimiser(Protocol):
    """What the loop needs of an optimiser."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Change the parameters by their gradients."""


@dataclass(frozen=True)
class Trainee:
    """A student of a fit, changed in place, and what of the fit is its alone.

    ``name`` is what terms of others that have it as their targets call it; ``seed`` the key of what
    it draws by itself; ``at`` where it learns, if it is built on another one. With ``own`` it is
    any module, and learns by that loss and no terms. ``kept`` is what the optimiser goes on from,
    and is changed in place to what it keeps (see :mod:`fedkd.optimisers`); None: it starts afresh.
    The fit puts into ``measured`` what it was asked for beside the loss: ``slope``, as
    :class:`fedkd.blends.Blend` has it. The rest is as in :func:`fit`.
    """

    student: nn.Sequential
    terms: Sequence[Term]
    seed: int
    name: str = "own"
    lr: float | None = None
    part: tuple[str, ...] = ()
    dp: DPSGD | None = None
    at: Blend | None = None
    own: Summand | None = None
    kept: Parameters | None = None
    measured: dict[str, float] = field(default_factory=dict)
    course: Course | None = None


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
    trainee = Trainee(student, terms, seed, lr=lr, part=part, dp=dp, kept=kept, course=course)
    (loss,) = fit_together(
        [trainee],
        samples,
        training,
        generator,
        epochs=epochs,
        min_steps=min_steps,
        sources=sources,
        augment=augment,
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
            kind = _Learner if trainee.own is None else _OwnLearner
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
        )


def _fit(
    learners: Sequence[_Learner],
    samples: Samples,
    training: TrainingTable,
    generator: torch.Generator,
    *,
    epochs: float,
    min_steps: int,
    sources: Mapping[str, Callable[[], Samples]] | None,
    augment: Augment | None,
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
        drawn = {on: source.draw() for on, source in looks.items()}
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


class _Learner:
    """A trainee at work: its losses, its optimiser, and what it makes of the batches of a step."""

    def __init__(
        self, trainee: Trainee, names: Sequence[str], draws: AbstractContextManager[None]
    ) -> None:
        """``names`` are those of the parameters that learn; in ``draws`` the student draws."""
        self.name, self.part, self.names = trainee.name, trainee.part, names
        self._trainee, self._draws, self._course = trainee, draws, trainee.course
        self._covered = [trainee.dp is not None and trainee.dp.covers(t) for t in trainee.terms]
        self.dp = trainee.dp if any(self._covered) else None
        self.student = trainee.student if self.dp is None else copied(trainee.student)
        self.sources = list(dict.fromkeys([None, *map(source_of, trainee.terms)]))
        self.batches: dict[Source | None, Batch] = {}
        self.base: _Learner | None = None
        self._moved: Tensor | None = None

    def prepare(self, samples: Mapping[Source | None, Samples], names: Sequence[str]) -> None:
        """Make the losses ready: on the samples of its sources, among learners of these names."""
        parameters, wanted = self.student.named_parameters(), {*self.names}
        self.learning = {name: p for name, p in parameters if name in wanted}
        peers = [name for name in names if name != self.name]
        losses = [
            Loss(self.student, term, samples[source_of(term)], self.learning, peers=peers)
            for term in self._trainee.terms
        ]
        self.cuts = {loss.cut for loss in losses if loss.cut}
        self._losses: list[Summand] = [*losses]

    def begin(
        self, training: TrainingTable, device: torch.device, learners: Sequence[_Learner]
    ) -> None:
        """Make the optimiser ready, and the student's mode; of ``learners`` one may be its base."""
        if (at := self._trainee.at) is not None:
            self.base = next(one for one in learners if one.name == at.student)
            self.base.cuts |= {at.cut} - {""}
            self._blended = names_above(self.student, at.cut)
        self._lr = self._trainee.lr or training.lr
        self._plain = optimisers.optimiser(list(self.learning.values()), training, self._lr)
        if self._trainee.kept is not None:
            optimisers.take_up(self._plain, self.learning, self._trainee.kept)
        self._optimiser: Optimiser = self._plain
        if self.dp is not None:
            self._optimiser = self.dp.attach(self.student, self._plain)
        self._total, self._slope = torch.zeros((), device=device), torch.zeros((), device=device)
        self._counted = 0
        validation = None if self._course is None else self._course.validation
        self._best = None if validation is None else Best(self.student, validation)
        set_modes(self.student, self.learning)

    def pace(self, done: float) -> None:
        """Set the rate for the next step, when a share ``done`` of all is done."""
        if self._course is not None and self._course.annealed:
            for group in self._plain.param_groups:
                group["lr"] = self._lr * self._course.pace(done)

    def look(
        self,
        looks: Mapping[Source | None, Batches],
        drawn: Mapping[Source | None, Drawn],
        alone: bool,
    ) -> None:
        """See the batches that were drawn; others may see them, too, if not ``alone``."""
        if self._trainee.at is not None and self._trainee.at.slope:
            self._moved = torch.zeros_like(self._total, requires_grad=True)
        with self._draws:
            for on in self.sources:
                one, dp = drawn[on], None if looks[on].dp is None else self.dp
                if not alone:
                    one = replace(one, inputs=one.inputs.clone())
                self.batches[on] = looks[on].seen(one, self.student, self.cuts, dp, self._place(on))

    def _place(self, on: Source | None) -> Place | None:
        """Where the student looks at a batch from ``on``, if it is built on another one."""
        at, base = self._trainee.at, self.base
        if at is None or base is None:
            return None
        mine, theirs = (
            {name: parameters[name] for name in self._blended}
            for parameters in map(_named, (self.student, base.student))
        )
        blend = at.of(mine, theirs)
        if self._moved is not None:
            blend = moved(blend, mine, theirs, self._moved)
        return Place(blend, at.cut, base.batches[on].held.get(at.cut))

    def listen(self, learners: Sequence[_Learner]) -> None:
        """Take in what the others say of the same batches."""
        for on, batch in self.batches.items():
            peers = {
                other.name: other.batches[on].logits.detach()
                for other in learners
                if other is not self and on in other.batches
            }
            self.batches[on] = replace(batch, peers=peers)

    def descend(self, counts: bool) -> None:
        """Learn from what it has seen; whether the loss ``counts`` for the mean."""
        batch, optimiser, zero = self.batches[None], self._optimiser, torch.zeros_like(self._total)
        drawn = {on: batch for on, batch in self.batches.items() if on is not None}
        with self._draws:
            value = descend(self._losses, batch, drawn, optimiser, zero, self.dp, self._covered)
        if counts or self._best is not None:
            self._total += value
            self._counted += 1
            if self._moved is not None and self._moved.grad is not None:
                self._slope += self._moved.grad

    def ended(self, step: int, steps: int) -> bool:
        """Whether it has learned enough after ``step`` of ``steps`` steps."""
        if self._best is None:
            return False
        ended = self._best.ended(step, step == steps)
        set_modes(self.student, self.learning)
        return ended

    def end(self) -> float:
        """Give the student what was learned; the mean of the losses that count."""
        if self._moved is not None:
            self._trainee.measured["slope"] = float(self._slope) / max(1, self._counted)
        if self._trainee.kept is not None:
            optimisers.put_by(self._plain, self.learning, self._trainee.kept)
        if self.dp is not None:
            self.dp.finish(self._trainee.student, self.learning)
        if self._best is not None:
            self._best.give_back()
        return float(self._total) / max(1, self._counted)


class _OwnLearner(_Learner):
    """A module that learns by a loss of its author's, which makes of a batch what it likes."""

    def prepare(self, samples: Mapping[Source | None, Samples], names: Sequence[str]) -> None:
        """Make the loss ready."""
        super().prepare(samples, names)
        self._losses = [each for each in (self._trainee.own,) if each is not None]

    def begin(
        self, training: TrainingTable, device: torch.device, learners: Sequence[_Learner]
    ) -> None:
        """Make the optimiser ready, and the module's mode, which its ``forward`` may go by."""
        super().begin(training, device, learners)
        self.student.training = True

    def look(
        self,
        looks: Mapping[Source | None, Batches],
        drawn: Mapping[Source | None, Drawn],
        alone: bool,
    ) -> None:
        """Note which rows were drawn."""
        one = drawn[None]
        self.batches[None] = Batch(one.index, None, one.inputs, {})


def descend(
    losses: Sequence[Summand],
    batch: Batch,
    drawn: Mapping[Source, Batch],
    optimiser: Optimiser,
    zero: Tensor,
    dp: DPSGD | None = None,
    covered: Sequence[bool] = (),
) -> Tensor:
    """One step of the training loop, of one student or of a stack of them.

    Parameters
    ----------
    batch, drawn
        What was drawn from the step's own source, and from those of its terms, by name.
    zero
        Zeros of the shape of what the losses give: ``()``, of a stack ``(n,)``.
    dp, covered
        DP-SGD, and which of the losses it covers.

    Returns
    -------
    Tensor
        The loss before the step, without a graph.
    """
    optimiser.zero_grad(set_to_none=True)
    value = torch.zeros_like(zero)
    bounded = []
    clipped, count = torch.zeros_like(value), 0
    for loss, private in zip(losses, covered or [False] * len(losses), strict=True):
        source = drawn[loss.on] if loss.on is not None else batch
        if private and not source.drawn:
            continue
        piece = loss(source)
        if private:
            # What the terms do not reach, as a head above a prototype, has gradients of zero.
            reached = clipped if count else 0 * source.logits.sum()
            clipped, count = reached + piece, source.drawn
        elif loss.reach is None:
            value = value + piece
        else:
            bounded.append((piece, loss.reach))
    with nullcontext() if dp is None else quietly():
        if value.requires_grad:
            value.sum().backward(retain_graph=bool(bounded))
        for index, (piece, reach) in enumerate(bounded):
            _backward_into(piece.sum(), reach, keep=index + 1 < len(bounded))
    if dp is not None:
        with dp.per_sample(count):
            if count:
                clipped.backward()
        value = value + clipped.detach() * dp.share(count)
    optimiser.step()
    return value.detach() + sum(piece.detach() for piece, _ in bounded)


def _named(student: nn.Sequential) -> dict[str, Tensor]:
    """A student's parameters, those that are shared under each of their names."""
    return dict(student.named_parameters(remove_duplicate=False))


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


def _backward_into(loss: Tensor, parameters: list[nn.Parameter], keep: bool) -> None:
    """Add the gradient of ``loss`` to ``parameters`` and to nothing else."""
    if not parameters:
        return
    gradients = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
