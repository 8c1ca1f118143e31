"""How alike an untrained student and a teacher are: scores to choose a student by."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def gram_score(
    student: Tensor, teacher: Tensor, student_gradient: Tensor, teacher_gradient: Tensor
) -> float:
    """DisWOT's similarity of two networks on one batch: 0 with itself, else less.

    Dong et al. 2023. With F a network's representations ``(B, ...)`` before they are pooled,
    flattened, W the gradient of the loss by its last layer ``(C, d)``, and G(A) the matrix of inner
    products of the rows of A, with its own rows scaled to length 1::

        - |G(F_student) - G(F_teacher)|^2 / B^2  -  |G(W_student) - G(W_teacher)|^2 / C

    The widths d need not be alike. After the authors' description and parts of their code: the
    file of the score itself there has another one.
    """
    relations = rows_alike(student.flatten(1)) - rows_alike(teacher.flatten(1))
    channels = rows_alike(student_gradient) - rows_alike(teacher_gradient)
    batch, classes = len(relations), len(channels)
    return -float(relations.square().sum() / batch**2 + channels.square().sum() / classes)


def rows_alike(values: Tensor) -> Tensor:
    """Inner products of the rows of ``values`` ``(K, d)``, each row scaled to length 1."""
    values = values.double()
    return functional.normalize(values @ values.T, dim=1)


def shown(student: nn.Sequential, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`gram_score` takes of a student: representations, and the last layer's gradient.

    Representations ``(B, ...)`` are those that its last block of feature maps gives, else those
    below the head; the gradient ``(C, d)`` is that of the cross-entropy with ``labels`` ``(B,)`` by
    the last matrix of parameters with a row a class.
    """
    student.eval()
    found: list[Tensor] = []
    values = inputs
    for block in student:
        found.append(values)
        values = block(values)
    maps = [each for each in found[1:] if each.dim() > 2]
    matrices = [p for p in student.parameters() if p.dim() == 2 and len(p) == values.shape[1]]
    loss = functional.cross_entropy(values, labels)
    (gradient,) = torch.autograd.grad(loss, matrices[-1:])
    return (maps or found)[-1].detach(), gradient
