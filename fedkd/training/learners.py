"""Students at work in a fit: their losses, their optimisers, what they make of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fedkd import optimisers
from fedkd.blends import moved
from fedkd.experiment import TrainingTable
from fedkd.privacy.dpsgd import DPSGD, copied
from fedkd.training.auxiliary import Auxiliary, layers_for, parameters_of
from fedkd.training.batches import Batch, Batches, Drawn, Place
from fedkd.training.course import Best, Course
from fedkd.training.descent import Optimiser, descend
from fedkd.training.losses import Loss, Summand, source_of
from fedkd.training.student import names_above, set_modes
from fedkd.work import Blend, Parameters, Samples, Source, Term


@dataclass(frozen=True)
class Trainee:
    """A student of a fit, changed in place, and what of the fit is its alone.

    ``name`` is what terms of others that have it as their targets call it; ``seed`` the key of what
    it draws by itself; ``at`` where it learns, if it is built on another one. With ``own`` it is
    any module, and learns by that loss and no terms. ``kept`` is what the optimiser goes on from,
    and is changed in place to what it keeps (see :mod:`fedkd.optimisers`); None: it starts afresh.
    ``auxiliary`` are its auxiliary heads, changed to what they become; None: they are thrown away.
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
    auxiliary: Auxiliary | None = None


class Learner:
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
        self.base: Learner | None = None
        self._moved: Tensor | None = None

    def prepare(self, samples: Mapping[Source | None, Samples], names: Sequence[str]) -> None:
        """Make the losses ready: on the samples of its sources, among learners of these names."""
        parameters, wanted = self.student.named_parameters(), {*self.names}
        self.learning = {name: p for name, p in parameters if name in wanted}
        peers = [name for name in names if name != self.name]
        self._auxiliary = self._trainee.auxiliary or Auxiliary(self._trainee.seed)
        drawn_from = [(term, samples[source_of(term)]) for term in self._trainee.terms]
        self._heads = layers_for(self.student, drawn_from, self._auxiliary)
        losses = [
            Loss(self.student, term, of, self.learning, peers=peers, auxiliary=self._heads)
            for term, of in drawn_from
        ]
        self.cuts = {cut for loss in losses for cut in loss.cuts}
        self._losses: list[Summand] = [*losses]

    def begin(
        self, training: TrainingTable, device: torch.device, learners: Sequence[Learner]
    ) -> None:
        """Make the optimiser ready, and the student's mode; of ``learners`` one may be its base."""
        if (at := self._trainee.at) is not None:
            self.base = next(one for one in learners if one.name == at.student)
            self.base.cuts |= {at.cut} - {""}
            self._blended = names_above(self.student, at.cut)
        self._lr = self._trainee.lr or training.lr
        self._optimised = self.learning | parameters_of(self._heads)
        self._plain = optimisers.optimiser([*self._optimised.values()], training, self._lr)
        if self._trainee.kept is not None:
            optimisers.take_up(self._plain, self._optimised, self._trainee.kept)
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

    def listen(self, learners: Sequence[Learner]) -> None:
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
            optimisers.put_by(self._plain, self._optimised, self._trainee.kept)
        self._auxiliary.keep(self._heads)
        if self.dp is not None:
            self.dp.finish(self._trainee.student, self.learning)
        if self._best is not None:
            self._best.give_back()
        return float(self._total) / max(1, self._counted)


class OwnLearner(Learner):
    """A module that learns by a loss of its author's, which makes of a batch what it likes."""

    def prepare(self, samples: Mapping[Source | None, Samples], names: Sequence[str]) -> None:
        """Make the loss ready."""
        super().prepare(samples, names)
        self._losses = [each for each in (self._trainee.own,) if each is not None]

    def begin(
        self, training: TrainingTable, device: torch.device, learners: Sequence[Learner]
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


def _named(student: nn.Sequential) -> dict[str, Tensor]:
    """A student's parameters, those that are shared under each of their names."""
    return dict(student.named_parameters(remove_duplicate=False))
