"""Torch's optimisers, without torch's compiler, and what they keep from one Fit to the next.

In torch 2.x the first use of any optimiser imports ``torch._dynamo``, which takes longer than all
else that a small run imports, to mark as not compiled what nobody compiles. ``functools.wraps`` has
left the plain methods in reach; where it has not, the marked ones are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fedkd.training_tables import TrainingTable
from fedkd.work import Parameters

STEP = "step"
"""What Adam calls the number of its steps, by which it corrects its moments: one a parameter."""


def optimiser(
    parameters: list[Parameter], training: TrainingTable, lr: float, unlike: bool = False
) -> torch.optim.Optimizer:
    """The fused optimiser that ``[training]`` names, at a learning rate.

    With ``unlike``, for stacks of students ``(n, ...)`` that have taken unlike numbers of steps.
    """
    decay = training.weight_decay
    if training.optimiser == "sgd":
        return SGD(parameters, lr=lr, momentum=training.momentum, weight_decay=decay, fused=True)
    if unlike:
        return _AdamOfMany(parameters, training, lr)
    kind = AdamW if training.optimiser == "adamw" else Adam
    return kind(parameters, lr=lr, weight_decay=decay, fused=True)


# --- what is kept ---------------------------------------------------------------------------


def take_up(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, Parameter],
    kept: Mapping[str, Tensor],
) -> None:
    """Have ``optimiser`` go on from what :func:`put_by` has kept, of ``parameters`` by name.

    Those of which nothing was kept begin as if they had taken no step.
    """
    names = dict.fromkeys(key.partition(" ")[0] for key in kept)
    for name, parameter in parameters.items():
        for own in names:
            held = kept.get(f"{own} {name}")
            if held is None:
                held = torch.zeros(() if own == STEP else parameter.shape)
            optimiser.state[parameter][own] = held.to(parameter.device, copy=True)


def put_by(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, Parameter],
    kept: Parameters,
    place: int | None = None,
) -> None:
    """Keep in ``kept`` what ``optimiser`` holds of ``parameters``, for :func:`take_up`.

    By its own name of the thing and the parameter's: ``"exp_avg fc1.weight"`` of its shape,
    ``"step fc1.weight"`` a number. What is there of other parameters stays. Where a number is not
    finite nothing is kept, as nobody could learn from there on.

    Parameters
    ----------
    place
        Of parameters ``(n, ...)`` of a stack: whose are kept.
    """
    for name, parameter in parameters.items():
        for own, held in optimiser.state[parameter].items():
            if isinstance(held, Tensor):
                mine = held[place] if place is not None and held.dim() else held
                kept[f"{own} {name}"] = mine.detach().cpu().clone()
    if not all(bool(held.isfinite().all()) for held in kept.values()):
        kept.clear()


def joined(kept: Sequence[Parameters], parameters: Mapping[str, Tensor]) -> Parameters:
    """What was kept of each of n students, as that of a stack of them.

    ``parameters`` are the stack's, ``(n, ...)``. Steps are one number where all have taken as
    many, else ``(n,)``.
    """
    found = {}
    for key in dict.fromkeys(key for one in kept for key in one):
        own, _, name = key.partition(" ")
        if name in parameters:
            none = torch.zeros(() if own == STEP else parameters[name].shape[1:])
            found[key] = torch.stack([one.get(key, none) for one in kept])
    steps = [held for key, held in found.items() if key.partition(" ")[0] == STEP]
    if all(bool((held == held[0]).all()) for held in steps):
        alike = {key: held[0] for key, held in found.items() if key.partition(" ")[0] == STEP}
        found |= alike
    return found


# --- torch's own ----------------------------------------------------------------------------


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(method, "__wrapped__", method)


def _uncompiled(kind: Any) -> Any:
    """``kind``, whose methods are those under torch's marks; a step builds no graph."""
    methods = {name: _plain(getattr(kind, name)) for name in ("add_param_group", "zero_grad")}
    step = torch.no_grad()(_plain(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step, "__doc__": kind.__doc__})


SGD = _uncompiled(torch.optim.SGD)
Adam = _uncompiled(torch.optim.Adam)
AdamW = _uncompiled(torch.optim.AdamW)


class _AdamOfMany(Adam):  # type: ignore[valid-type, misc]
    """Adam, or AdamW, of stacks ``(n, ...)``, whose students' steps ``(n,)`` are not the same."""

    def __init__(self, parameters: list[Parameter], training: TrainingTable, lr: float) -> None:
        super().__init__(parameters, lr=lr, weight_decay=training.weight_decay)
        self.decoupled = training.optimiser == "adamw"

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        (group,) = self.param_groups
        lr, decay, (first, second) = group["lr"], group["weight_decay"], group["betas"]
        for parameter in group["params"]:
            if (gradient := parameter.grad) is None:
                continue
            held = self.state[parameter]
            held[STEP] += 1
            steps = held[STEP].double().view(-1, *[1] * (parameter.dim() - 1))
            if self.decoupled:
                parameter.mul_(1 - lr * decay)
            elif decay:
                gradient = gradient.add(parameter, alpha=decay)
            mean, square = held["exp_avg"], held["exp_avg_sq"]
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (lr / (1 - first**steps)).to(mean)
            root = (1 - second**steps).sqrt().to(mean)
            parameter.sub_(size * mean / (square.sqrt() / root + group["eps"]))
