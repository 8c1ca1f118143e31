"""Weight aligning: the last layer's rows of classes that a client has many samples of, scaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedkd.errors import FedkdError


def last_layer(student: nn.Sequential, name: str) -> tuple[str, nn.Linear]:
    """The linear layer that a student called ``name`` ends in, and its name in the student.

    Raises
    ------
    FedkdError
        One line: it ends in none of its own.
    """
    said, path = f"Align: student {name!r} is not allowed", []
    block: nn.Module = student
    while type(block) is nn.Sequential and len(block):
        last = [*block._modules][-1]
        path.append(last)
        block = getattr(block, last)
    if type(block) is not nn.Linear:
        raise FedkdError(f"{said}: its last layer is {type(block).__name__}, not torch.nn.Linear")
    every = [*student.named_parameters(remove_duplicate=False)]
    if sum(one is block.weight for _, one in every) > 1:
        raise FedkdError(f"{said}: the weight of its last layer is that of another layer too")
    return ".".join(path), block


def aligned(weight: Tensor, counts: Tensor) -> Tensor:
    """Rows of ``weight`` ``(C, d)`` with those of favoured classes as long as the others.

    Favoured are classes of which there are more samples, by ``counts`` ``(C,)``, than of the median
    class; their rows are multiplied by the mean norm of the others over their own (Zhao et al.
    2020, Weight Aligning; there new classes are favoured over old). Where a group is empty or has
    no length, nothing changes.
    """
    favoured = counts.double() > counts.double().quantile(0.5)
    norms = torch.linalg.vector_norm(weight.double(), dim=1)
    if not favoured.any():
        return weight
    mine, others = norms[favoured].mean(), norms[~favoured].mean()
    if not (mine > 0 and others > 0):  # nor where one is no number
        return weight
    return torch.where(favoured[:, None], (others / mine * weight.double()).to(weight), weight)
