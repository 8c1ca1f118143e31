"""One step of descent, of one student or of a stack of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedkd.privacy.dpsgd import DPSGD, quietly
from fedkd.training.batches import Batch
from fedkd.training.losses import Summand
from fedkd.work import Source


class Optimiser(Protocol):
    """What the loop needs of an optimiser."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Change the parameters by their gradients."""


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


def _backward_into(loss: Tensor, parameters: list[nn.Parameter], keep: bool) -> None:
    """Add the gradient of ``loss`` to ``parameters`` and to nothing else."""
    if not parameters:
        return
    gradients = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
