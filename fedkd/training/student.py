"""A student at work: what of it learns, which of its blocks train, and what it draws by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from fedkd.errors import FedkdError
from fedkd.random import global_draws
from fedkd.students import cut_index, named_blocks, part_names, selected
from fedkd.students.build import TORCH_ONLY


@contextmanager
def requiring(student: nn.Module, part: tuple[str, ...]) -> Iterator[list[str]]:
    """Have only what learns require a gradient, then what did before; yields parameters' names."""
    names = learning_names(student, part)
    parameters = dict(student.named_parameters())
    others = [p for name, p in parameters.items() if p.requires_grad and name not in names]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield names
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        for parameter in parameters.values():
            parameter.grad = None


def learning_names(student: nn.Module, part: tuple[str, ...]) -> list[str]:
    """Names of the parameters that learn, in the student's order.

    Of those in the blocks that ``part`` names, these are the ones that require a gradient.
    """
    names = [name for name, p in student.named_parameters() if p.requires_grad]
    if not part:
        return names
    wanted = set(part_names(student, part))
    return [name for name in names if name in wanted]


def names_above(student: nn.Sequential, cut: str) -> list[str]:
    """Names of the parameters above ``cut``, of all if it is empty; shared ones under each name."""
    blocks = list(named_blocks(student))[cut_index(student, cut) if cut else 0 :]
    return [
        f"{name}.{inner}"
        for name, block in blocks
        for inner, _ in block.named_parameters(remove_duplicate=False)
    ]


def names_around(student: nn.Sequential, below: str, cut: str) -> list[str]:
    """Names in the student's state of what is in its blocks up to ``below`` and above ``cut``.

    Raises
    ------
    FedkdError
        There is no such cut, or no block between the two.
    """
    first = cut_index(student, below) if below else 0
    last = cut_index(student, cut) if cut else len(student)
    if first >= last:
        raise FedkdError(
            f"below = {below!r} is not allowed with cut = {cut!r}: no block of the student's own "
            "is between them"
        )
    inside = {name for name, _ in named_blocks(student)[first:last]}
    return [name for name in student.state_dict() if name.partition(".")[0] not in inside]


def learning_state(student: nn.Sequential, part: tuple[str, ...]) -> list[str]:
    """Names in the student's state of what learns: a parameter that is shared, under each name."""
    learning = {*learning_names(student, part)}
    ids = {id(parameter) for name, parameter in student.named_parameters() if name in learning}
    return [name for name, held in student.state_dict(keep_vars=True).items() if id(held) in ids]


def check_learning(student: nn.Module, names: Sequence[str], part: tuple[str, ...]) -> None:
    """Refuse to train where nothing learns.

    Raises
    ------
    FedkdError
        ``names``, those of the parameters that learn, are none.
    """
    if not names:
        raise FedkdError(
            f"Fit: nothing learns in the blocks {', '.join(selected(student, part))}: they have no "
            "parameter that requires a gradient"
        )


def set_modes(student: nn.Module, learning: Iterable[str]) -> None:
    """Have blocks train, but for those that have parameters of which none is ``learning``.

    Those are frozen: their dropout is off, and their statistics stay as they are. A block without
    parameters, as dropout or normalisation without weights, trains with the student.
    """
    names = {*learning}
    learns = {id(parameter) for name, parameter in student.named_parameters() if name in names}
    for _, block in named_blocks(student):
        own = {id(parameter) for parameter in block.parameters()}
        block.train(not own or not own.isdisjoint(learns))


def student_draws(
    student: nn.Module, seed: int, device: torch.device, again: bool = False
) -> AbstractContextManager[None]:
    """While a student is at work: what it draws by itself comes from ``seed``.

    With ``again`` it may be at work more than once, and goes on drawing where it was.
    """
    return global_draws(seed, device, vars(student).get(TORCH_ONLY, False), again)
