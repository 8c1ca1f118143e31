"""Build a student by name, and speak of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedkd.errors import FedkdError, nearest
from fedkd.experiment import StudentTable
from fedkd.registry import load, names

Architecture = TypeVar("Architecture", bound=Callable[..., nn.Module])


def takes_tokens(architecture: Architecture) -> Architecture:
    """Decorator that marks an architecture as one for text.

    It takes token ids ``(B, T)`` and gives logits ``(B, T, V)``; all others take images or feature
    vectors and give ``(B, C)``.
    """
    architecture.__dict__["tokens"] = True
    return architecture


def build(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    table: StudentTable,
    seed_key: int,
    *,
    tokens: bool = False,
) -> nn.Sequential:
    """A freshly initialised student, in float32 and channels-last memory format.

    The same arguments give the same bits in any process. The global random number generators are
    left as they were.

    Parameters
    ----------
    name : str
        A name of ``fedkd list students``.
    shape : tuple of int
        Shape of one input: ``(channels, height, width)``; ``(d,)`` for feature vectors; ``(T,)``
        for tokens.
    classes : int
        Number of classes C; of text, the size of the vocabulary.
    table : StudentTable
        ``norm`` and ``width``.
    seed_key : int
        Key of the initialisation (see :func:`fedkd.random.key`).
    tokens : bool
        Whether inputs are tokens.

    Raises
    ------
    FedkdError
        If the name is unknown, the architecture does not fit the input or the table, or what it
        makes is not a sequence of blocks that ends in ``(B, C)`` logits, of text ``(B, T, C)``.
    """
    architecture = load("students", name)
    if _takes_tokens(name) != tokens:
        fitting = [known for known in names("students") if _takes_tokens(known) == tokens]
        kinds = ("images or feature vectors", "text")
        raise FedkdError(
            f"student.models = {name!r} takes {kinds[not tokens]}, and the data set is "
            f"{kinds[tokens]}; allowed: {', '.join(fitting)}"
        )
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the generators of every GPU as well.
        torch.default_generator.manual_seed(seed_key)
        student = architecture(tuple(shape), classes, table.norm, table.width)
        _check(name, student, shape, classes, tokens)
    return student.to(torch.float32).to(memory_format=torch.channels_last)


def blocks(student: nn.Sequential) -> tuple[str, ...]:
    """Names of the student's blocks, from input to output."""
    return tuple(name for name, _ in student.named_children())


def selected(student: nn.Sequential, part: tuple[str, ...]) -> tuple[str, ...]:
    """The blocks that ``part`` names, in the student's order; an empty part names all.

    ``"head"`` stands for the last block and ``"body"`` for all others, whatever they are called.

    Raises
    ------
    FedkdError
        If a name is not a block; the line names the blocks that the student has.
    """
    names = blocks(student)
    known = {"body": names[:-1], "head": names[-1:], **{name: (name,) for name in names}}
    for name in part:
        if name not in known:
            raise FedkdError(
                f"part: {name!r} is not a block of this student{nearest(name, list(known))}; "
                f"its blocks: {', '.join(names)}; also body, head"
            )
    wanted = {block for name in part for block in known[name]}
    return tuple(name for name in names if not part or name in wanted)


def cut_index(student: nn.Sequential, cut: str) -> int:
    """Number of blocks below ``cut``, which is named by the last of them.

    ``student[:index]`` gives the representation and ``student[index:]`` makes logits of it.

    Raises
    ------
    FedkdError
        If there is no such cut; the line names the cuts that the student has.
    """
    cuts = blocks(student)[:-1]
    if cut not in cuts:
        raise FedkdError(
            f"cut {cut!r} is not a cut of this student{nearest(cut, list(cuts))}; "
            f"its cuts, named by the block below: {', '.join(cuts)}"
        )
    return cuts.index(cut) + 1


def part_names(student: nn.Sequential, part: tuple[str, ...] = ()) -> list[str]:
    """Names of the parameters and buffers in the blocks that ``part`` names, as in the state."""
    wanted = set(selected(student, part))
    return [name for name in student.state_dict() if name.split(".", 1)[0] in wanted]


def count_parameters(student: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(tensor.numel() for tensor in student.parameters() if tensor.requires_grad)


def multiply_adds(student: nn.Sequential, shape: tuple[int, ...], tokens: bool = False) -> int:
    """Multiplications that the student's parameters take part in, for one sample, one way.

    Of every layer that has parameters: these times the places of its output, which are pixels of a
    feature map or tokens. Products of activations, as in attention, are not counted.
    """
    found = 0

    def count(layer: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        nonlocal found
        held = sum(tensor.numel() for tensor in layer.parameters(recurse=False))
        output = output if isinstance(output, Tensor) else output[0]
        places = output[0, 0].numel() if output.dim() == 4 else output[0, ..., 0].numel()
        if not isinstance(layer, nn.Embedding):
            found += held * places

    layers = [layer for layer in student.modules() if any(True for _ in layer.parameters(False))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    modes = [(layer, layer.training) for layer in student.modules()]
    device = next(student.parameters()).device
    try:
        with torch.no_grad():
            student.eval()
            dtype = torch.long if tokens else None
            student(torch.zeros(1, *shape, dtype=dtype, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes:
            layer.training = training
    return found


def _takes_tokens(name: str) -> bool:
    return getattr(load("students", name), "tokens", False)


def _check(
    name: str, student: nn.Module, shape: tuple[int, ...], classes: int, tokens: bool
) -> None:
    if not isinstance(student, nn.Sequential) or len(student) < 2:
        raise FedkdError(
            f"student.models = {name!r} must give a torch.nn.Sequential of at least two named "
            f"blocks, not {type(student).__name__}"
        )
    student.eval()
    with torch.no_grad():
        logits = student(torch.zeros(2, *shape, dtype=torch.long if tokens else None))
    student.train()
    wanted = (*shape, classes) if tokens else (classes,)
    if logits.shape != (2, *wanted):
        raise FedkdError(
            f"student.models = {name!r} must end in logits of shape "
            f"(B, {', '.join(map(str, wanted))}); got {tuple(logits.shape)} for a batch of 2"
        )
