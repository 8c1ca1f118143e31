"""A representation of a given width below a student's head, the same for all architectures."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fedkd.errors import FedkdError

BLOCK = "representation"
"""The name of the block whose output it is."""


def with_representation(name: str, student: nn.Sequential, width: int) -> nn.Sequential:
    """``student`` with a linear layer to ``width`` numbers below its head.

    The head becomes one linear layer on these; what stood in it before its last layer, as a
    normalisation does, goes below the new one, into its block. New layers are initialised as
    PyTorch's are.

    Parameters
    ----------
    name : str
        The architecture, for the line that refuses it.
    student : nn.Sequential
        Named blocks, of which the last ends in an ``nn.Linear``. Its other layers are taken over.
    width : int
        Numbers d of a sample's representation; of text, of a token's.

    Raises
    ------
    FedkdError
        The student does not end in a linear layer of its own, or has a block of this name.
    """
    said = f"student.representation = {width} is not allowed with student.models = {name!r}"
    *below, (last, head) = zip(student._modules, student, strict=True)
    layers = [*head] if type(head) is nn.Sequential else [head]
    linear = layers.pop() if layers else head
    if type(linear) is not nn.Linear:
        raise FedkdError(f"{said}: its last layer is {type(linear).__name__}, not torch.nn.Linear")
    if BLOCK in dict(below) or last == BLOCK:
        raise FedkdError(f"{said}: it has a block called {BLOCK!r}; give that another name")
    inside = {id(parameter) for _, block in below for parameter in block.parameters()}
    if any(id(parameter) in inside for parameter in linear.parameters()):
        raise FedkdError(f"{said}: the parameters of its head are those of another block too")
    new: nn.Module = nn.Linear(linear.in_features, width)
    if layers:
        new = nn.Sequential(*layers, new)
    top = nn.Linear(width, linear.out_features, bias=linear.bias is not None)
    return nn.Sequential(OrderedDict([*below, (BLOCK, new), (last, top)]))
