"""The training loop of a stack: students of several clients, as one batched computation.

A batch is filled up with rows that count nowhere, and who has done its steps leaves the stack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedkd import optimisers
from fedkd.blends import each_blended, moved
from fedkd.engine.stack import Stack
from fedkd.experiment import TrainingTable
from fedkd.training.batches import Batch, Batches, steps_of
from fedkd.training.course import WHOLE, Span
from fedkd.training.descent import Optimiser, descend
from fedkd.training.items import take
from fedkd.training.losses import Loss, source_of
from fedkd.training.student import check_learning, learning_names, names_above, set_modes
from fedkd.work import Blend, Fit, Head, Parameters, Peer, Penalty, Samples, Source, Term


def fit(
    stacks: Sequence[Stack],
    sources: Sequence[Samples],
    terms: Sequence[Sequence[Sequence[Term]]],
    training: TrainingTable,
    generators: Sequence[torch.Generator],
    step: Fit,
    others: Mapping[Source, list[Samples]],
    augment: Any = None,
    kept: Sequence[Sequence[Parameters | None]] = (),
    blends: Sequence[Sequence[Blend | None]] = (),
    span: Span = WHOLE,
) -> list[tuple[list[float], list[float]]]:
    """What :func:`fedkd.training.fit_together` does with each client's students, done as one.

    Parameters
    ----------
    stacks
        One for each of the students that learn together, of all clients.
    sources, generators
        Of each client.
    terms
        Of each stack, of each client.
    step
        Its ``epochs``, ``min_steps`` and ``peers``, the same for all but for their terms.
    others
        For each source that a term draws from by itself: every client's samples.
    kept
        Of each stack, of each client: as in :class:`fedkd.training.Trainee`.
    blends
        Of each stack, of each client: where its students learn, if they are built on another's.
    span
        From which to which share of the run's training the fits go.

    Returns
    -------
    list of tuple of list of float
        Of each stack, of each client: the mean loss over the steps of its last pass, and the mean
        slope along a blend, 0 where none was asked for.
    """
    count = len(sources)
    batches = [
        Batches(samples, training.batch_size, draw, augment)
        for samples, draw in zip(sources, generators, strict=True)
    ]
    epochs, least = training.length(step.epochs, step.min_steps)
    there = [len(samples.inputs) > 0 for samples in sources]
    passes = [source.per_epoch for source in batches]
    steps = [
        steps_of(epochs, each, least) if any_ else 0
        for each, any_ in zip(passes, there, strict=True)
    ]
    if not any(steps):
        return [([0.0] * count, [0.0] * count) for _ in stacks]
    drawn_from = {
        on: [
            Batches(samples, training.batch_size, draw, augment)
            for samples, draw in zip(held, generators, strict=True)
        ]
        for on, held in others.items()
    }
    device = sources[0].inputs.device
    joints: dict[Source | None, _Joint] = {None: _Joint(batches, device)} | {
        on: _Joint(held, device) for on, held in drawn_from.items()
    }
    lives = [
        _Live(stack, peer, of_stack, training, joints, step, of_clients, at)
        for stack, peer, of_stack, of_clients, at in zip(
            stacks,
            step.peers,
            terms,
            kept or [[None] * count] * len(stacks),
            blends or [()] * len(stacks),
            strict=True,
        )
    ]
    for live in lives:
        check_learning(live.stack.module, list(live.learning), live.part)
        set_modes(live.stack.module, live.learning)
    last = torch.tensor(
        [many - each for many, each in zip(steps, passes, strict=True)], device=device
    )
    each_step = (span[1] - span[0]) / torch.tensor(steps, device=device).clamp_min(1)
    for now in range(max(steps)):
        for live in lives:
            live.leave([place for place in live.who if steps[place] <= now])
        progress = span[0] + each_step * now
        drawn = {on: joint.draw(lives[0], progress) for on, joint in joints.items()}
        seen: dict[str, _Looks] = {}
        for live in sorted(lives, key=lambda one: one.at is not None):
            base = None
            if live.at is not None:
                live.begin()
                base = next(one for one in lives if one.name == live.at.student)
            seen[live.name] = {
                on: live.seen(*drawn[on], joints[on].cut, alone=len(lives) == 1)
                if base is None
                else live.built_on(base, seen[base.name][on], *drawn[on])
                for on in live.sources
            }
        if len(lives) > 1:
            seen = {
                name: {on: replace(batch, peers=_peers(seen, on)) for on, batch in each.items()}
                for name, each in seen.items()
            }
        for live in lives:
            each = seen[live.name]
            named = {on: batch for on, batch in each.items() if on is not None}
            zero = live.sums.new_zeros(len(live.who))
            value = descend(live.losses, each[None], named, live.optimiser, zero)
            counts = last[live.places] <= now
            live.sums.index_add_(0, live.places, torch.where(counts, value, zero))
            if live.moved is not None and live.moved.grad is not None:
                slope = torch.where(counts, live.moved.grad, zero)
                live.slopes.index_add_(0, live.places, slope)
    for live in lives:
        live.leave(list(live.who))
    taken = [max(1, min(many, each)) for many, each in zip(steps, passes, strict=True)]
    return [(_means(live.sums, taken), _means(live.slopes, taken)) for live in lives]


def _means(sums: Tensor, counts: Sequence[int]) -> list[float]:
    return [total / count for total, count in zip(sums.tolist(), counts, strict=True)]


_Looks = dict[Source | None, Batch]
"""What students see of each of their sources."""


def _peers(seen: Mapping[str, _Looks], on: Source | None) -> dict[str, Tensor]:
    """What each that looks at source ``on`` says of its batch, by name."""
    return {name: each[on].logits.detach() for name, each in seen.items() if on in each}


class _Live:
    """The students of a stack that still learn: ``who`` of them, and the parameters that change.

    Plain gradient descent of a fully connected student, where a gradient comes once a step and
    through layers alone, is done by its layers, at the rate ``direct``.
    """

    def __init__(
        self,
        stack: Stack,
        peer: Peer,
        terms: Sequence[Sequence[Term]],
        training: TrainingTable,
        joints: Mapping[Source | None, _Joint],
        step: Fit,
        kept: Sequence[Parameters | None],
        blends: Sequence[Blend | None],
    ) -> None:
        count = len(terms)
        self.stack, self.name, self.part, self.who = stack, peer.student, peer.part, [*range(count)]
        self.at, self._blends = peer.at, [each for each in blends if each is not None]
        self.moved: Tensor | None = None
        self.sources = list(dict.fromkeys([None, *map(source_of, terms[0])]))
        self._training, self._lr = training, peer.lr or training.lr
        plain = training.optimiser == "sgd" and not (training.momentum or training.weight_decay)
        device = next(iter(stack.tensors.values())).device
        plain = plain and not torch.is_autocast_enabled(device.type)
        simple = len(self.sources) == 1 and not any(
            isinstance(term, Penalty) or getattr(term, "reach", ()) for term in terms[0]
        )
        simple = simple and peer.at is None  # layers would change a blend, and not what learns
        self.direct = self._lr if simple and plain and stack.dense else 0.0
        names = learning_names(stack.module, peer.part)
        self.places = torch.arange(count, device=device)
        self._whole = True  # the parameters that learn are still the stack's own memory
        self.learning = {name: nn.Parameter(stack.tensors[name]) for name in names}
        self.tensors = {**stack.tensors, **self.learning}
        self._kept = [one for one in kept if one is not None and not self.direct]
        before = optimisers.joined(self._kept, self.learning)
        self._unlike = any(before[key].dim() for key in before if key.startswith(optimisers.STEP))
        self.optimiser: Optimiser = self._optimiser()
        if before:
            own = cast(torch.optim.Optimizer, self.optimiser)
            optimisers.take_up(own, self.learning, before)
        self.sums, self.slopes = torch.zeros(2, count, device=device)
        others = {other.student for other in step.peers} - {peer.student}
        self.losses = [
            Loss(
                stack.module,
                _joined(column),
                joints[source_of(column[0])].all,
                self.learning,
                stacked=count,
                peers=others,
                sizes=joints[source_of(column[0])].sizes,
            )
            for column in zip(*terms, strict=True)
        ]
        self._cuts = {loss.cut for loss in self.losses if loss.cut}
        self._cuts |= {
            other.at.cut
            for other in step.peers
            if other.at is not None and other.at.student == self.name and other.at.cut
        }

    def seen(self, inputs: Tensor, drawn: Batch, above: str, alone: bool) -> Batch:
        """A batch that was drawn, and what the students make of ``inputs`` ``(n, b, ...)``.

        These enter ``above`` a cut, if it is not empty.

        Others look at the inputs, too, if these are not there for this stack ``alone``.
        """
        inputs = inputs if alone else inputs.clone()  # a layer may write into them
        held, logits = self.stack.forward(self.tensors, inputs, self._cuts, self.direct, above)
        return self._batch(drawn, held, logits)

    def begin(self) -> None:
        """Begin a step in which the slope along a blend is asked for, if it is."""
        if self.at is not None and self.at.slope:
            zeros = self.sums.new_zeros(len(self.who))
            self.moved = zeros.requires_grad_()

    def built_on(self, base: _Live, looks: Batch, inputs: Tensor, drawn: Batch) -> Batch:
        """What :meth:`seen` gives of students at a blend with ``base``, who has seen ``looks``."""
        assert self.at is not None
        names = names_above(self.stack.module, self.at.cut)
        mine, theirs = {n: self.tensors[n] for n in names}, base.tensors
        blend = each_blended([self._blends[place] for place in self.who], mine, theirs)
        if self.moved is not None:
            blend = moved(blend, mine, theirs, self.moved)
        inputs = looks.held[self.at.cut].detach() if self.at.cut else inputs
        held, logits = self.stack.forward(
            self.tensors | blend, inputs.clone(), self._cuts, above=self.at.cut
        )
        return self._batch(drawn, held, logits)

    def _batch(self, drawn: Batch, held: dict[str, Tensor], logits: Tensor) -> Batch:
        """A batch that was drawn, with what the blocks give, ``(n, b, ...)``."""
        logits = logits.flatten(0, 1).float()
        if drawn.chosen is not None and len(drawn.chosen) < len(logits):
            logits = logits.index_select(0, drawn.chosen)
        return replace(drawn, logits=logits, held=held)

    def _optimiser(self) -> Any:
        if self.direct:
            return _Done()
        learning = list(self.learning.values())
        return optimisers.optimiser(learning, self._training, self._lr, self._unlike)

    def leave(self, done: list[int]) -> None:
        """Put students that have done their steps back into the stack."""
        if not done:
            return
        own = cast(torch.optim.Optimizer, self.optimiser)
        for at, place in enumerate(self.who) if self._kept else ():
            if place in done:
                optimisers.put_by(own, self.learning, self._kept[place], at)
        with torch.no_grad():
            if not self._whole:
                for name, parameter in self.learning.items():
                    self.stack.tensors[name][self.places] = parameter
            staying = [at for at, place in enumerate(self.who) if place not in set(done)]
            self.who = [self.who[at] for at in staying]
            if not self.who:
                return
            index = torch.tensor(staying, device=self.places.device)
            self.places, self._whole = self.places[index], False
            before = self.learning.copy()
            self.tensors = {name: tensor.detach()[index] for name, tensor in self.tensors.items()}
            for name in before:
                self.learning[name] = nn.Parameter(self.tensors[name])
            self.tensors |= self.learning
            new = self._optimiser()
            for name, parameter in before.items():
                new.state[self.learning[name]] = {
                    key: value[index] if isinstance(value, Tensor) and value.dim() else value
                    for key, value in own.state[parameter].items()
                }
            self.optimiser = new
            for loss in self.losses:
                loss.keep(index)


class _Done:
    """Stands for an optimiser whose work the layers have done."""

    def __init__(self) -> None:
        self.state: dict[nn.Parameter, dict[str, Any]] = defaultdict(dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """There are no gradients."""

    def step(self) -> None:
        """There is nothing left to do."""


class _Joint:
    """One source of every student: their batches as one, of rows that lie behind one another."""

    def __init__(self, batches: Sequence[Batches], device: torch.device) -> None:
        self.batches, self.device = batches, device
        samples = [source.samples for source in batches]
        self.common, self.cut = all(one is samples[0] for one in samples), samples[0].cut
        counts = [len(one.inputs) for one in samples]
        self.sizes = counts
        self.offsets = torch.tensor([0, *counts[:-1]], device=device).cumsum(0)
        labels = [one.labels for one in samples]
        held = [one for one in labels if one is not None]
        joined = torch.cat(held) if len(held) == len(labels) else None
        if self.common:
            self.inputs = samples[0].inputs
        elif samples[0].inputs.dim() == 4:
            whole = torch.cat([one.inputs.permute(0, 2, 3, 1) for one in samples])
            self.inputs = whole.permute(0, 3, 1, 2)
        else:
            self.inputs = torch.cat([one.inputs for one in samples])
        # Losses look at how many rows there are, and of what kind.
        self.all = Samples(self.inputs.new_empty(1).expand(sum(counts)), joined)

    def draw(self, live: _Live, progress: Tensor) -> tuple[Tensor, Batch]:
        """The next batch of those that still learn: inputs, and what no student has to say.

        ``progress`` ``(n,)`` is that of all students, those that have left among them.
        """
        indices = [self.batches[place].index() for place in live.who]
        sizes = [len(index) for index in indices]
        most, count, device = max(sizes), len(sizes), self.device
        ragged = min(sizes) < most
        offsets = self.offsets[live.places]
        if ragged:
            filled = torch.stack([filled_up(index, most) for index in indices])
        else:
            filled = torch.stack(indices)
        if self.batches[0].augment is not None and self.inputs.dim() == 4:
            pieces = [
                filled_up(self.batches[place].inputs(index), most)
                for place, index in zip(live.who, indices, strict=True)
            ]
            inputs = torch.stack(pieces)
        else:
            flat = filled if self.common else filled + offsets[:, None]
            inputs = take(self.inputs, flat.flatten()).unflatten(0, (count, most))
        owners = torch.arange(count, device=device).repeat_interleave(most)
        chosen = None
        index = (filled + offsets[:, None]).flatten()
        shares = torch.full((len(index),), 1 / most, device=device)
        if ragged:
            lengths = torch.tensor(sizes, device=device)
            chosen = (
                (torch.arange(most, device=device) < lengths[:, None]).flatten().nonzero()[:, 0]
            )
            owners, index = owners[chosen], index[chosen]
            shares = (1 / lengths)[owners]
        if chosen is None:
            chosen = torch.arange(len(index), device=device)
        batch = Batch(
            index,
            None if self.all.labels is None else self.all.labels[index],
            inputs,
            {},
            chosen,
            drawn=len(index),
            owners=owners,
            shares=shares,
            places=live.places[owners],
            students=count,
            progress=progress,
        )
        return inputs, batch


def filled_up(rows: Tensor, count: int) -> Tensor:
    """``rows`` ``(k, ...)`` as ``(count, ...)``, the rest zeros."""
    if len(rows) == count:
        return rows
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def _joined(terms: Sequence[Term]) -> Term:
    """One term of all students: targets behind one another, other arrays ``(n, ...)``."""
    first = terms[0]
    changes: dict[str, Any] = {}
    for part in fields(first):
        values = [getattr(term, part.name) for term in terms]
        if isinstance(values[0], Tensor):
            changes[part.name] = torch.cat(values)
        elif isinstance(values[0], Head):
            heads = [cast(Parameters, value.parameters) for value in values]
            changes[part.name] = replace(values[0], parameters=_stacked(heads))
        elif isinstance(first, Penalty) and isinstance(values[0], dict):
            changes[part.name] = _stacked(values)
    return replace(first, **changes)


def _stacked(tensors: Sequence[Parameters]) -> Parameters:
    return {name: torch.stack([one[name] for one in tensors]) for name in tensors[0]}
