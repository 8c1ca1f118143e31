"""Mini-batches of a source, and what a student makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.data.language import PAD
from fedkd.errors import FedkdError
from fedkd.experiment import TrainingTable
from fedkd.privacy.dpsgd import DPSGD, steps_a_pass
from fedkd.students import named_blocks
from fedkd.training.items import at_items, items, take
from fedkd.work import Samples

Augment = Callable[[Tensor, torch.Generator], Tensor]


class BatchOfOne(FedkdError):
    """A batch is too small for the statistics that a student takes of it."""


@dataclass(frozen=True)
class Drawn:
    """Samples of a batch, as :class:`Batch` has them, and their inputs ``(b, ...)``."""

    inputs: Tensor
    index: Tensor
    labels: Tensor | None
    chosen: Tensor | None
    count: int
    progress: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a student is looked at that is built on another one.

    ``parameters`` take the place of its own, by name. It has only its blocks above ``cut`` look, at
    ``held``, what the other gives there; of an empty cut all of them, at the batch itself.
    """

    parameters: Mapping[str, Tensor]
    cut: str = ""
    held: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """``index`` (B,) into the source, ``labels`` (B,) where there are, ``logits`` (B, C).

    ``held`` has the representations at the cuts that a term asks for, at ``""`` the inputs. Of
    text, B is the number of tokens, ``index`` counts the tokens of the source, and ``chosen`` (B,)
    is their places in what the blocks give, as in ``held``; a label may be -1. ``drawn`` is the
    number of samples, and ``over`` what sums of losses are divided by if that may not depend on
    them. ``peers`` has the logits (B, C) of each student that learns together with this one, by
    name, without a graph.
    ``progress`` is the share of the run's training that is done.

    Of a stack of n students, B counts the samples of all of them, ``index`` goes into their targets
    behind one another, ``held`` is ``(n, b, ...)``, and ``owners`` (B,) says whose a sample is,
    ``shares`` (B,) what part it is of its owner's batch, and ``places`` (B,) where its owner's
    targets by class are; so is its owner's ``progress``.
    """

    index: Tensor
    labels: Tensor | None
    logits: Tensor
    held: dict[str, Tensor]
    chosen: Tensor | None = None
    drawn: int = 0
    over: int | None = None
    owners: Tensor | None = None
    shares: Tensor | None = None
    places: Tensor | None = None
    students: int = 1
    peers: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float | Tensor = 0.0

    def mean(self, losses: Tensor, there: Tensor | None = None) -> Tensor:
        """The mean of losses ``(B,)``: ``()``, or of a stack ``(n,)``, one of each owner's.

        ``there`` ``(B,)`` says which samples have a loss, where some have none.
        """
        if self.owners is None or self.shares is None:
            return losses.sum() / (self.over or len(self.index))
        owners, shares = self.owners, self.shares
        if there is not None:
            owners, shares = owners[there], shares[there]
        return losses.new_zeros(self.students).index_add(0, owners, losses * shares)


def per_epoch(count: int, size: int) -> int:
    """Batches of ``size`` in a pass over ``count`` samples.

    A last batch of one sample is left out where there are others: batch statistics need two.
    """
    return max(1, math.ceil(count / size) - (count % size == 1))


def steps_of(passes: float, each: int, least: int) -> int:
    """Steps in a number of passes of ``each`` steps, and ``least`` of them in any case."""
    return max(math.ceil(passes * each - 1e-9), least)


def local_steps(samples: int, training: TrainingTable) -> int:
    """Steps that a ``Fit`` takes on so many private samples, where it leaves all to ``training``.

    0 where there are no samples. Of text, a sample is a row.
    """
    size = training.batch_size
    private = training.dp.noise_multiplier > 0
    each = steps_a_pass(samples, size) if private else per_epoch(samples, size)
    return steps_of(training.local_epochs, each, training.min_steps) if samples else 0


class Batches:
    """Mini-batches of a source without end, in a new order every pass, as :func:`per_epoch` has it.

    With ``dp`` every sample is drawn, or not, by itself.
    """

    def __init__(
        self,
        samples: Samples,
        size: int,
        generator: torch.Generator,
        augment: Augment | None,
        dp: DPSGD | None = None,
    ) -> None:
        self.samples, self.size, self.generator = samples, size, generator
        self.augment = None if samples.cut else augment  # which is for images
        count = len(samples.inputs)
        self.per_epoch = per_epoch(count, size)
        self._queue: list[Tensor] = []
        self._numbers: Tensor | None = None
        if not samples.inputs.is_floating_point():
            there = samples.inputs != PAD
            self._numbers = there.flatten().cumsum(0).view_as(there) - 1
        self.dp = dp
        if dp is not None:
            self.per_epoch, self._drawn = dp.batches(count, size)

    def index(self) -> Tensor:
        """Which samples are next: ``(B,)``."""
        if self.dp is not None:
            self._queue = [next(self._drawn).to(self.samples.inputs.device)]
        if not self._queue:
            order = torch.randperm(len(self.samples.inputs), generator=self.generator)
            order = order.to(self.samples.inputs.device)
            self._queue = list(order.split(self.size))[: self.per_epoch][::-1]
        return self._queue.pop()

    def inputs(self, index: Tensor) -> Tensor:
        """Those samples' inputs ``(B, ...)``, augmented where that is asked for."""
        inputs = take(self.samples.inputs, index)
        if self.augment is not None and inputs.dim() == 4:
            inputs = self.augment(inputs, self.generator)
        return inputs

    def draw(self, progress: float = 0.0) -> Drawn:
        """The next batch, when the share ``progress`` of the run's training is done."""
        index = self.index()
        inputs, count = self.inputs(index), len(index)
        labels = None if self.samples.labels is None else self.samples.labels[index]
        chosen = None
        if self._numbers is not None:
            chosen = items(inputs)
            index = self._numbers[index].flatten()[chosen]
            labels = None if labels is None else labels.flatten()[chosen]
        return Drawn(inputs, index, labels, chosen, count, progress)

    def seen(
        self,
        drawn: Drawn,
        student: nn.Sequential,
        cuts: Set[str],
        dp: DPSGD | None = None,
        at: Place | None = None,
    ) -> Batch:
        """A batch, and what ``student`` makes of it: it may write into its inputs.

        ``dp`` covers this student's samples from here; ``at`` is where it is, if not at its own
        parameters.
        """
        inputs, count, chosen = drawn.inputs, drawn.count, drawn.chosen
        tokens = 1 if inputs.is_floating_point() else inputs.shape[1]
        over = None if self.dp is None else count * tokens
        held = {}
        blocks = named_blocks(student, self.samples.cut) if count else []
        if at is not None and at.held is not None:
            inputs, blocks = at.held.detach().clone(), named_blocks(student, at.cut)
        if "" in cuts:
            held[""], inputs = inputs, inputs.clone()
        with nullcontext() if dp is None else dp.recording():
            for name, block in blocks:
                given = None if at is None else within(at.parameters, name)
                inputs = self._forward(block, inputs, count, given)
                if name in cuts:
                    # The next block may write into what it is given.
                    held[name], inputs = inputs, inputs.clone()
            logits = (at_items(inputs, chosen) if count else inputs).float()
        return Batch(
            drawn.index,
            drawn.labels,
            logits,
            held,
            chosen,
            count,
            over,
            progress=drawn.progress,
        )

    def _forward(
        self, block: nn.Module, inputs: Tensor, drawn: int, given: dict[str, Tensor] | None
    ) -> Tensor:
        try:
            if given is None:
                return block(inputs)
            # Parameters that are shared come under each of their names.
            return functional_call(block, given, (inputs,), tie_weights=False)
        except ValueError as error:
            kind = nn.modules.batchnorm._BatchNorm
            if drawn > 1 or not any(isinstance(layer, kind) for layer in block.modules()):
                raise
            raise BatchOfOne(
                f"batch normalisation cannot train on a batch of one sample, and here "
                f"{len(self.samples.inputs)} samples come in batches of {self.size}: use "
                "student.norm = 'group' or 'none', or raise data.min_samples, data.transfer.size "
                "or training.batch_size"
            ) from error


def within(parameters: Mapping[str, Tensor], block: str) -> dict[str, Tensor]:
    """Those of a student's parameters that are a block's, by their names in it."""
    prefix = f"{block}."
    return {n[len(prefix) :]: value for n, value in parameters.items() if n.startswith(prefix)}
