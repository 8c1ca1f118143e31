"""Build a student by name, and speak of its blocks."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from fedkd.errors import FedkdError, nearest, summary_of
from fedkd.random import global_draws
from fedkd.registry import load, names
from fedkd.sections import StudentTable
from fedkd.students.pair import PairTable, paired
from fedkd.students.representation import with_representation

Architecture = TypeVar("Architecture", bound=Callable[..., nn.Module])
KNOWN_CODE = ("torch.", "torchvision.", "fedkd.students.")
"""Where the code of layers lies that draw, if at all, from torch's generators alone."""
TORCH_ONLY = "draws from torch's generators alone"
"""Attribute of a student that :func:`build` has made: what :func:`torch_only` says of it."""
HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
"""Where a module keeps its hooks."""


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
        ``norm``, ``width`` and ``representation``; a :class:`fedkd.students.pair.PairTable` makes a
        pair.
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
    with float32_by_default(), global_draws(seed_key):
        student = _made(name, shape, classes, table, tokens)
        if isinstance(table, PairTable):
            small = table.model_copy(update={"representation": table.nested})
            shared = _made(table.shared, shape, classes, small, tokens)
            student = paired(name, student, shared, tuple(shape), tokens)
            _check_logits(name, student, shape, classes, tokens)
    _check_new(name, student)
    vars(student)[TORCH_ONLY] = torch_only(student)
    return student.to(memory_format=torch.channels_last)


def _made(
    name: str, shape: tuple[int, ...], classes: int, table: StudentTable, tokens: bool
) -> nn.Sequential:
    """What an architecture makes, checked, with the representation that ``table`` asks for."""
    architecture = load("students", name)
    if _takes_tokens(name) != tokens:
        fitting = [known for known in names("students") if _takes_tokens(known) == tokens]
        kinds = ("images or feature vectors", "text")
        raise FedkdError(
            f"student.models = {name!r} takes {kinds[not tokens]}, and the data set is "
            f"{kinds[tokens]}; allowed: {', '.join(fitting)}"
        )
    try:
        with float32_by_default():  # whatever the factory sets
            student = architecture(tuple(shape), classes, table.norm, table.width)
    except FedkdError:
        raise
    except Exception as error:
        raise FedkdError(
            f"student.models = {name!r} cannot be made: {summary_of(error)}"
        ) from error
    if not isinstance(student, nn.Sequential) or len(student) < 2:
        raise FedkdError(
            f"student.models = {name!r} must give a torch.nn.Sequential of at least two named "
            f"blocks, not {type(student).__name__}"
        )
    student.float()
    _check_logits(name, student, shape, classes, tokens)
    if problem := unfit(student):
        raise FedkdError(f"student.models = {name!r} is not allowed: {problem}")
    if type(student) is not nn.Sequential:
        student = nn.Sequential(OrderedDict(named_blocks(student)))
    if table.representation is not None:
        student = with_representation(name, student, table.representation)
        _check_logits(name, student, shape, classes, tokens)
    return student


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Have torch's default type be float32, then what it was: a user's module may set another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def named_blocks(student: nn.Module, above: str = "") -> list[tuple[str, nn.Module]]:
    """The blocks from input to output, with their names; those ``above`` a cut, if one is named.

    Torch's ``named_children`` leaves out a block that stands there a second time, as an activation
    often does. Blocks of a module that is no student are the modules that it is made of.
    """
    first = cut_index(student, above) if isinstance(student, nn.Sequential) and above else 0
    return [(name, block) for name, block in student._modules.items() if block is not None][first:]


def unfit(student: nn.Sequential) -> str | None:
    """Why a student would not be trained, or kept, as its ``forward`` has it; None if it is fit.

    Training runs its blocks one after the other, and a client keeps its ``state_dict``.
    """
    kind = type(student)
    classes = kind.__mro__[: kind.__mro__.index(nn.Sequential)]
    own = {name for parent in classes for name in vars(parent)} | {*vars(student)}
    own &= set(dir(nn.Sequential)) - set(vars(nn.Sequential()))
    if own := {name for name in own if not name.startswith("__") or name == "__call__"}:
        return (
            f"its class {kind.__name__} has {min(own)} of its own, and a student is the sequence "
            "of its blocks; put what it does into a block"
        )
    if any(getattr(student, hooks) for hooks in HOOKS):
        return "it has hooks, and a student is the sequence of its blocks; put them on a block"
    if direct := [*student._parameters, *student._buffers]:
        return f"{direct[0]} belongs to none of its blocks"
    parameters = dict(student.named_parameters(remove_duplicate=False))
    if complexes := [name for name, tensor in parameters.items() if tensor.is_complex()]:
        return f"{complexes[0]} is complex; optimisers here take real parameters"
    held = parameters | dict(student.named_buffers(remove_duplicate=False))
    state = student.state_dict()
    for name in (*state, *parameters):
        if name not in state or name not in held or not _same_memory(state[name], held[name]):
            return (
                f"{name} in its state_dict is not its parameter or buffer of that name; a client "
                "keeps its student as the state_dict"
            )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        return "nothing in it learns: it has no parameter with requires_grad"
    return None


def _check_new(name: str, student: nn.Sequential) -> None:
    """Refuse parameters that learn and are those of a student that was made before."""
    for parameter, tensor in student.named_parameters():
        if tensor.requires_grad:
            before = _learning.get(id(tensor))
            if before is not None and before() is tensor:
                raise FedkdError(
                    f"student.models = {name!r} is not allowed: its {parameter} is that of the "
                    "student it gave before; give each a copy.deepcopy of what they have in common"
                )
            _learning[id(tensor)] = weakref.ref(tensor, partial(_forget, id(tensor)))


def _forget(identity: int, gone: weakref.ref[Tensor]) -> None:
    if _learning.get(identity) is gone:
        del _learning[identity]


_learning: dict[int, weakref.ref[Tensor]] = {}
"""Parameters that learn, of all students that there are, by identity."""


def _same_memory(entry: object, tensor: Tensor) -> bool:
    return (
        isinstance(entry, Tensor)
        and entry.data_ptr() == tensor.data_ptr()
        and entry.shape == tensor.shape
    )


def torch_only(student: nn.Module) -> bool:
    """Whether all code of a student is torch's or fedkd's, which draw from torch's generators."""
    return not any(
        "forward" in vars(module)
        or not type(module).__module__.startswith(KNOWN_CODE)
        or any(getattr(module, hooks) for hooks in HOOKS)
        for module in student.modules()
    )


def blocks(student: nn.Module) -> tuple[str, ...]:
    """Names of the student's blocks, from input to output.

    Those of a module that is no student begin with its parameters that belong to none.
    """
    direct = [name for name, parameter in student._parameters.items() if parameter is not None]
    return (*direct, *(name for name, _ in named_blocks(student)))


def selected(student: nn.Module, part: tuple[str, ...]) -> tuple[str, ...]:
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


def part_names(student: nn.Module, part: tuple[str, ...] = ()) -> list[str]:
    """Names of the parameters and buffers in the blocks that ``part`` names, as in the state.

    Raises
    ------
    FedkdError
        If a name is not a block; or a parameter belongs to a block of the part and to another.
    """
    wanted = set(selected(student, part))
    if part:
        _check_undivided(student, wanted, part)
    return [name for name in student.state_dict() if name.split(".", 1)[0] in wanted]


def _check_undivided(student: nn.Module, wanted: set[str], part: tuple[str, ...]) -> None:
    places: dict[int, list[str]] = {}
    for name, parameter in student.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for shared in places.values():
        inside = [name for name in shared if name.split(".", 1)[0] in wanted]
        if inside and len(inside) < len(shared):
            outside = next(name for name in shared if name not in inside)
            raise FedkdError(
                f"part = {list(part)} divides a parameter: {inside[0]} and {outside} are one, and "
                "only one of them is in the part"
            )


def count_parameters(student: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(tensor.numel() for tensor in student.parameters() if tensor.requires_grad)


def multiply_adds(student: nn.Sequential, shape: tuple[int, ...], tokens: bool = False) -> int:
    """Multiplications that the student's parameters take part in, for one sample, one way.

    Of every layer that has parameters: these times the places of its output, which are pixels of a
    feature map or tokens. Products of activations, as in attention, and TorchScript do not count.
    """
    found = 0

    def count(layer: nn.Module, _: object, output: object) -> None:
        nonlocal found
        held = sum(tensor.numel() for tensor in layer.parameters(recurse=False))
        output = output[0] if isinstance(output, tuple) else output
        places = 1
        if isinstance(output, Tensor) and output.dim() > 1:
            places = output[0, 0].numel() if output.dim() == 4 else output[0, ..., 0].numel()
        if not isinstance(layer, nn.Embedding):
            found += held * places

    layers = [
        layer
        for layer in student.modules()
        if any(True for _ in layer.parameters(False)) and not isinstance(layer, ScriptModule)
    ]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    modes = [(layer, layer.training) for layer in student.modules()]
    device = next(student.parameters()).device
    try:
        with torch.no_grad(), global_draws(0, device):
            student.eval()
            dtype = torch.long if tokens else torch.float32
            student(torch.zeros(1, *shape, dtype=dtype, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes:
            layer.training = training
    return found


def _takes_tokens(name: str) -> bool:
    return getattr(load("students", name), "tokens", False)


def _check_logits(
    name: str, student: nn.Module, shape: tuple[int, ...], classes: int, tokens: bool
) -> None:
    """Refuse a student that does not end in logits; layers that wait for a shape get it here."""
    student.eval()
    try:
        with torch.no_grad():
            logits = student(torch.zeros(2, *shape, dtype=torch.long if tokens else None))
    except FedkdError:
        raise
    except Exception as error:
        raise FedkdError(
            f"student.models = {name!r} does not take a batch of inputs of shape "
            f"{tuple(shape)}: {summary_of(error)}"
        ) from error
    student.train()
    wanted = (2, *shape, classes) if tokens else (2, classes)
    given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if given != wanted:
        raise FedkdError(
            f"student.models = {name!r} must end in logits of shape "
            f"(B, {', '.join(map(str, wanted[1:]))}); got {given} for a batch of 2"
        )
