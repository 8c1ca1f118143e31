"""Students of one architecture as a stack: every parameter and buffer is ``(n, ...)``.

Fully connected blocks are batched products, written by hand; any other block goes through
``torch.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedkd import students
from fedkd.work import Parameters

Blocks = Callable[[Parameters, Tensor, float], Tensor]
"""A block of n students: of their parameters ``(n, ...)``, inputs ``(n, b, ...)`` and a rate at
which parameters descend by themselves, or 0: what it gives."""
LAYERS = (nn.Flatten, nn.Linear, nn.ReLU, nn.Identity)
"""What a dense student is made of: these very types, and nothing derived from them."""


class Stack:
    """Students of one architecture: ``tensors`` are theirs, ``(n, ...)``; ``module`` the blocks."""

    def __init__(self, module: nn.Sequential, tensors: Parameters) -> None:
        self.module, self.tensors = module, tensors
        self._lent = False
        self._names: dict[tuple[str, ...], list[str]] = {}
        self._blocks = [(name, _block(block)) for name, block in students.named_blocks(module)]
        self.dense = dense(module)

    def shared(self, place: int, part: tuple[str, ...]) -> Parameters:
        """Parameters of one of the students, to give out: they stay as they are."""
        self._lent = True
        if part not in self._names:
            self._names[part] = students.part_names(self.module, part)
        return {name: self.tensors[name][place].cpu() for name in self._names[part]}

    def own(self) -> None:
        """Have tensors that nobody else has, to write to."""
        if self._lent:
            self.tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
            self._lent = False

    def forward(
        self,
        tensors: Parameters,
        inputs: Tensor,
        cuts: set[str],
        lr: float = 0.0,
        above: str = "",
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What is at ``cuts``, ``(n, b, ...)``, and logits ``(n, b, C)``.

        ``above`` names the cut above which ``inputs`` ``(n, b, ...)`` enter, if there is one.
        """
        held = {}
        first = students.cut_index(self.module, above) if above else 0
        for name, block in self._blocks[first:]:
            prefix = f"{name}."
            own = {k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}
            inputs = block(own, inputs, lr)
            if name in cuts:
                # The next block may write into what it is given.
                held[name], inputs = inputs, inputs.clone()
        return held, inputs


def _block(module: nn.Module) -> Blocks:
    layers = _layers(module)
    if layers is not None:
        return partial(_dense, layers)
    # A layer of one's own without parameters may do what depends on whose samples it sees.
    folds = students.torch_only(module) and not module.state_dict()
    return partial(_folded if folds else _vmapped, module)


def dense(student: nn.Sequential) -> bool:
    """Whether a student consists of :data:`LAYERS`, each of which stands in a sequence."""
    return all(_layers(block) is not None for _, block in students.named_blocks(student))


def _layers(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]] | None:
    """The layers of a fully connected block, with their names; None if it is another."""
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return None
    if type(module) in LAYERS:
        return [(prefix, module)]
    if type(module) is not nn.Sequential:
        return None
    found = []
    for name, block in students.named_blocks(module):
        layers = _layers(block, f"{prefix}{name}.")
        if layers is None:
            return None
        found += layers
    return found


def _folded(module: nn.Module, tensors: Parameters, inputs: Tensor, lr: float) -> Tensor:
    """What has no parameters does the same with every student's samples."""
    return module(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])


def _vmapped(module: nn.Module, tensors: Parameters, inputs: Tensor, lr: float) -> Tensor:
    def call(tensors: Parameters, inputs: Tensor) -> Tensor:
        return torch.func.functional_call(module, tensors, (inputs,))

    return torch.vmap(call)(tensors, inputs)


def _dense(
    layers: list[tuple[str, nn.Module]], tensors: Parameters, inputs: Tensor, lr: float
) -> Tensor:
    for prefix, layer in layers:
        if isinstance(layer, nn.Flatten):
            inputs = inputs.flatten(2)
        elif isinstance(layer, nn.ReLU):
            inputs = inputs.relu()
        elif isinstance(layer, nn.Linear):
            weight, bias = tensors[f"{prefix}weight"], tensors.get(f"{prefix}bias")
            if torch.is_autocast_enabled(inputs.device.type):
                inputs = torch.bmm(inputs, weight.mT)
                inputs = inputs if bias is None else inputs + bias[:, None]
            else:
                inputs = _Linear.apply(inputs, weight, bias, lr)
    return inputs


class _Linear(torch.autograd.Function):
    """``x W' + b`` of n students: ``(n, b, i)``, ``(n, o, i)``, ``(n, o)`` to ``(n, b, o)``.

    Torch's own gradient of the weights is a transposed product, on which optimisers are slow. With
    ``lr`` there is no gradient: what descends by it alone does so as soon as it is known.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, lr: float) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.bias, ctx.lr = bias, lr
        if bias is None:
            return torch.bmm(inputs, weight.mT)
        return torch.baddbmm(bias[:, None], inputs, weight.mT)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        asked = ctx.needs_input_grad
        below = torch.bmm(given, weight) if asked[0] else None
        if ctx.lr:
            if asked[1]:
                weight.baddbmm_(given.mT, inputs, alpha=-ctx.lr)
            if asked[2]:
                ctx.bias.sub_(given.sum(1), alpha=ctx.lr)
            return below, None, None, None
        return (
            below,
            torch.bmm(given.mT, inputs) if asked[1] else None,
            given.sum(1) if asked[2] else None,
            None,
        )
