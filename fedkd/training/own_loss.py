"""The training loop for any module, by a loss of its author's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fedkd.errors import FedkdError, blamed, brief
from fedkd.experiment import TrainingTable
from fedkd.random import key
from fedkd.training.batches import Batch
from fedkd.training.learners import Trainee
from fedkd.training.loop import fit_together
from fedkd.work import Parameters, Samples

OwnLoss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
"""``loss(module, index, generator)``: see :func:`minimise`."""


def minimise(
    module: nn.Module,
    loss: OwnLoss,
    size: int,
    training: TrainingTable,
    generator: torch.Generator,
    *,
    epochs: float | None = None,
    lr: float | None = None,
    part: tuple[str, ...] = (),
    kept: Parameters | None = None,
) -> float:
    """Minimise a loss of one's own of any module, changing the module in place.

    Parameters
    ----------
    module
        What learns. Its blocks, which ``part`` may name, are the modules it is made of, and its
        parameters that belong to none.
    loss
        ``loss(module, index, generator)`` gives the loss ``()`` of a mini-batch: ``index`` ``(B,)``
        are numbers of rows, on the module's device; ``generator``, on the CPU, is for all that it
        draws.
    size
        Number of rows: each pass goes through 0 to ``size - 1``, in a new order.
    training, generator, epochs, lr, kept
        As in :func:`fit`; there is no fewest number of steps.

    Returns
    -------
    float
        Mean loss over the steps of the last pass; 0 if there was nothing to do.

    Raises
    ------
    FedkdError
        Nothing learns; the loss raises something, is no scalar, or has no gradient.
    """
    device = next((parameter.device for parameter in module.parameters()), None)
    drawing = torch.Generator().manual_seed(key(generator.initial_seed(), "loss"))
    seed = key(generator.initial_seed(), "student")
    own = Own(module, loss, drawing)
    student = cast(nn.Sequential, module)  # whose blocks nobody runs
    (value,) = fit_together(
        [Trainee(student, (), seed, lr=lr, part=part, own=own, kept=kept)],
        Samples(torch.empty(size, 0, device=device)),
        training,
        generator,
        epochs=epochs,
        min_steps=0,
    )
    return value


@dataclass(frozen=True)
class Own:
    """A loss of its author's, of a module, with the generator that it draws from."""

    module: nn.Module
    loss: OwnLoss
    generator: torch.Generator
    on = reach = None

    def __call__(self, batch: Batch) -> Tensor:
        """Its value ``()`` for the rows of a batch."""
        with blamed("its loss"):
            value = self.loss(self.module, batch.index, self.generator)
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            raise FedkdError(f"its loss gave {brief(value)}; allowed: a tensor of one float")
        if not value.requires_grad:
            raise FedkdError(
                "its loss gave a tensor that depends on nothing that learns: it has no gradient"
            )
        return value
