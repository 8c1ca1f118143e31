"""Why students of an architecture cannot be in a cohort: what they have, and how they compare."""

from __future__ import annotations

from textwrap import shorten
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedkd.engine.stack import Stack
from fedkd.students import named_blocks
from fedkd.students.build import HOOKS
from fedkd.students.probe import Probe, Traits, as_before, close, outputs

WORDS = {"fit": "trains client by client", "forward": "answers client by client"}
"""What is done in a cohort, and how it is said that it is not."""
EVERYWHERE = (
    *("_global_forward_hooks", "_global_forward_pre_hooks"),
    *("_global_backward_hooks", "_global_backward_pre_hooks"),
)
"""Where torch keeps hooks on all modules."""
DIFFERENCE = 1e-3
"""Of the largest value: how far a cohort's outputs and gradients may be from a loop's."""


class Alone(NamedTuple):
    """Why students of an architecture cannot be in a cohort; empty where they can be.

    ``fit`` in training, ``forward`` when they answer. ``differs`` says how far a cohort is from
    what ``forward`` computes, where nothing but that speaks against it.
    """

    fit: str = ""
    forward: str = ""
    differs: str = ""


def alone(student: nn.Sequential, found: Probe, inputs: Tensor) -> Alone:
    """Why students like this one cannot be in a cohort.

    A cohort computes what a student's blocks compute from its parameters, for each sample by
    itself. It passes by hooks and whatever else was put on a module; of what cannot be read off,
    :func:`fedkd.students.probe` has ``found`` some, and the rest shows where cohort and loop are
    compared, in outputs and gradients, on ``inputs`` ``(4, ...)``.
    """
    if reason := _attached(student):
        return Alone(reason, reason)
    if found.error:
        return Alone(*[f"a pass ended in {found.error}"] * 2)
    if found.keeps:
        return Alone(*[f"it changes {found.keeps}, which its state_dict does not have"] * 2)
    reasons = {what: _trait(traits) for what, traits in zip(WORDS, (found.training, found.answers))}
    differs = ""
    for what in WORDS:
        if not reasons[what]:
            try:
                if apart := _apart(student, inputs, training=what == "fit"):
                    reasons[what] = differs = apart
            except Exception as error:  # whatever torch, or a layer, says to a batch of students
                message = shorten(str(error).split("\n")[0], 100, placeholder=" …")
                reasons[what] = f"torch cannot batch it over students ({message})"
    return Alone(**reasons, differs=differs)


def _trait(traits: Traits) -> str:
    if traits.draws:
        return "it draws random numbers"
    if traits.varies:
        return "it gives something else each time"
    if traits.mixes:
        return "a sample's output depends on the others of its batch"
    return "it writes to its buffers" if traits.writes else ""


def _attached(student: nn.Sequential) -> str:
    """What a student has that is no part of its layers' computation, if anything."""
    if any(getattr(nn.modules.module, hooks, None) for hooks in EVERYWHERE):
        return "there are hooks on all modules"
    for name, module in student.named_modules():
        if parametrize.is_parametrized(module):
            return f"{name} is parametrised"
        if any(getattr(module, hooks) for hooks in HOOKS):
            return f"{name} has hooks"
        if "forward" in vars(module):
            return f"{name} has another forward than its class"
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in (
        *student.named_parameters(remove_duplicate=False),
        *student.named_buffers(remove_duplicate=False),
    ):
        if type(tensor) not in (nn.Parameter, nn.Buffer, Tensor) or type(tensor.data) is not Tensor:
            return f"{name} is a tensor of another class than torch's"
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            return f"{name} has hooks"
        if isinstance(tensor, nn.Parameter) and tensor.dtype != torch.float32:
            return f"{name} is not float32"
        if isinstance(tensor, nn.Parameter) and not tensor.dim():
            return f"{name} is a single number, which torch promotes otherwise in a batch"
        if not tensor.numel():
            continue
        extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride()))
        if extent < tensor.numel():
            return f"values of {name} share memory"
        start, size = tensor.data_ptr(), extent * tensor.element_size()
        held = spans.setdefault(tensor.untyped_storage().data_ptr(), [])
        for first, end, other in held:
            if start < end and first < start + size:
                return f"{name} and {other} share memory"
        held.append((start, start + size, name))
    return ""


def _apart(student: nn.Sequential, inputs: Tensor, training: bool) -> str:
    """How far two students in a stack are from the same two by themselves, if too far."""
    draw = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=draw, dtype=like.dtype).to(like.device)

    names = [name for name, _ in named_blocks(student)]
    learning = [name for name, p in student.named_parameters() if p.requires_grad and training]
    with as_before(student), torch.inference_mode(False), torch.enable_grad():
        student.train(training)
        tensors = student.state_dict()
        first = {name: tensor.clone() for name, tensor in tensors.items()}
        parameters = dict(student.named_parameters())
        other = {name: first[name] + 0.1 * noise(first[name]) for name in parameters}
        states = [first, first | other]
        stack = {name: torch.stack([state[name] for state in states]) for name in tensors}
        stack |= {name: stack[name].requires_grad_() for name in learning}
        held, logits = Stack(student, stack).forward(
            stack, inputs.expand(len(states), *inputs.shape).clone(), {*names}
        )
        held[names[-1]] = logits
        weights = noise(logits[0])
        slopes = _slopes(logits, weights, [stack[name] for name in learning])
        for place, state in enumerate(states):
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(state[name])
            given = outputs(student, inputs)
            own = dict(student.named_parameters())
            mine = _slopes(given[-1], weights, [own[name] for name in learning])
            pairs = [
                (f"what {name} gives", held[name][place], each) for name, each in zip(names, given)
            ]
            pairs += [
                (f"the gradient of {name}", slope[place], each)
                for name, slope, each in zip(learning, slopes, mine)
            ]
            for what, together, by_itself in pairs:
                if not close(by_itself.detach(), together.detach(), DIFFERENCE):
                    gap = float((by_itself - together).detach().abs().max())
                    return f"in a cohort {what} would differ by {gap:.2g}"
    return ""


def _slopes(logits: Tensor, weights: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Gradients of a weighted sum of logits."""
    if not parameters:
        return []
    value = (logits * weights).sum()
    slopes = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(slopes, parameters)]
