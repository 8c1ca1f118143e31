"""Torch's optimisers, without torch's compiler.

In torch 2.x the first use of any optimiser imports ``torch._dynamo``, which takes longer than all
else that a small run imports, to mark as not compiled what nobody compiles. ``functools.wraps`` has
left the plain methods in reach; where it has not, the marked ones are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fedkd.sections import TrainingTable


def optimiser(
    parameters: list[torch.nn.Parameter], training: TrainingTable, lr: float
) -> torch.optim.Optimizer:
    """The fused optimiser that ``[training]`` names, at a learning rate."""
    decay = training.weight_decay
    if training.optimiser == "sgd":
        return SGD(parameters, lr=lr, momentum=training.momentum, weight_decay=decay, fused=True)
    kind = AdamW if training.optimiser == "adamw" else Adam
    return kind(parameters, lr=lr, weight_decay=decay, fused=True)


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
