"""The one training loop: what Fit comes down to, of one student or of a stack of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedkd import optimisers
from fedkd.errors import FedkdError
from fedkd.experiment import TrainingTable
from fedkd.privacy.dpsgd import DPSGD, copied, is_private, quietly
from fedkd.random import key
from fedkd.training.batches import Augment, Batch, Batches
from fedkd.training.losses import Loss, source_of
from fedkd.training.student import check_learning, requiring, set_modes, student_draws
from fedkd.work import Samples, Term


class Optimiser(Protocol):
    """What the loop needs of an optimiser."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Change the parameters by their gradients."""


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

    Returns
    -------
    float
        Mean loss over the steps of the last pass; 0 if there was nothing to do.

    Raises
    ------
    FedkdError
        A term needs labels that the samples do not have, or targets of another length; nothing of
        the student learns; a batch is too small for its normalisation; or what ``dp`` cannot do is
        asked for.
    """
    if not len(samples.inputs):
        return 0.0
    if seed is None:
        seed = key(generator.initial_seed(), "student")
    epochs, min_steps = training.length(epochs, min_steps)
    with student_draws(student, seed, samples.inputs.device), requiring(student, part) as names:
        return _fit(
            student,
            names,
            part,
            samples,
            terms,
            training,
            generator,
            epochs=epochs,
            min_steps=min_steps,
            lr=lr or training.lr,
            sources=sources,
            augment=augment,
            dp=dp,
        )


def _fit(
    student: nn.Sequential,
    names: Sequence[str],
    part: tuple[str, ...],
    samples: Samples,
    terms: Sequence[Term],
    training: TrainingTable,
    generator: torch.Generator,
    *,
    epochs: float,
    min_steps: int,
    lr: float,
    sources: Mapping[str, Callable[[], Samples]] | None,
    augment: Augment | None,
    dp: DPSGD | None,
) -> float:
    """What :func:`fit` does, where ``names`` are those of the parameters that learn."""
    covered = [dp is not None and dp.covers(term) for term in terms]
    dp = dp if any(covered) else None
    kept, student = student, student if dp is None else copied(student)
    own = dp if dp is not None and dp.own else None
    batches = Batches(samples, training.batch_size, generator, augment, own)
    steps = max(math.ceil(epochs * batches.per_epoch - 1e-9), min_steps)
    if steps:
        check_learning(student, names, part)
    learning = {name: p for name, p in student.named_parameters() if name in {*names}}
    others = {
        on: Batches(
            *(_source(sources, on), training.batch_size, generator, augment),
            dp if is_private(on) else None,
        )
        for term in terms
        if (on := source_of(term)) is not None
    }
    losses = [
        Loss(student, term, samples if on is None else others[on].samples, learning)
        for term in terms
        for on in [source_of(term)]
    ]
    cuts = {loss.cut for loss in losses if loss.cut}
    if not learning:
        return 0.0
    optimiser = optimisers.optimiser(list(learning.values()), training, lr)
    if dp is not None:
        optimiser = dp.attach(student, optimiser)
    total = torch.zeros((), device=samples.inputs.device)
    set_modes(student, learning)
    for step in range(steps):
        batch = batches.draw(student, cuts)
        drawn = {on: source.draw(student, cuts) for on, source in others.items()}
        value = descend(losses, batch, drawn, optimiser, total, dp, covered)
        if step >= steps - batches.per_epoch:
            total += value
    if dp is not None:
        dp.finish(kept, learning)
    return float(total) / max(1, min(steps, batches.per_epoch))


def descend(
    losses: Sequence[Loss],
    batch: Batch,
    drawn: Mapping[str, Batch],
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


def _source(sources: Mapping[str, Callable[[], Samples]] | None, on: str) -> Samples:
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
