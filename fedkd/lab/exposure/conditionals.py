"""What a student says of the next symbol of a secret, or of a label."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.data.canaries.secrets import check_space
from fedkd.errors import FedkdError
from fedkd.lab.exposure.sequences import Conditionals, Scorer, digits, summed

LEAST = math.log(torch.finfo(torch.float32).tiny)
"""What stands for the logarithm of 0: a released zero says unlikely, not impossible."""


@torch.inference_mode()
def student_conditionals(
    student: nn.Sequential, context: Tensor, symbols: Tensor, length: int, batch: int = 256
) -> Conditionals:
    """What a student of text says of every sequence, each prefix computed once.

    Recurrent blocks go on from the state of the prefix one symbol shorter: for 10^6 sequences of
    six digits that is 111,111 steps of one token. A student without such blocks reads every prefix
    from the beginning of its line.

    Parameters
    ----------
    student : nn.Sequential
        Blocks from tokens ``(B, T)`` to logits ``(B, T, V)``. A recurrent block has
        ``step(inputs (B, t, E), state) -> (output, state)``, where the state None is that at the
        beginning of a row. The student is left as it is: no gradient, no change of mode.
    context : Tensor
        ``(P,)`` token ids before the secret, from the one that begins the line on.
    symbols : Tensor
        ``(A,)`` token ids of the symbols.
    length : int
        Symbols L of a secret.
    batch : int
        Prefixes at a time; memory is bounded by what these need, next to the result.

    Returns
    -------
    list of Tensor
        ``(A**i, A)`` float32, on the CPU.

    Raises
    ------
    FedkdError
        If there are more than :data:`LARGEST_SPACE` sequences.
    """
    count = len(symbols)
    check_space(count, length, "canary.template")
    device = next(student.parameters()).device
    symbols, context = symbols.to(device), context.to(device)
    laws = [torch.empty(count**level, count) for level in range(length)]

    def read(level: int) -> None:
        for first in range(0, len(laws[level]), batch):
            index = torch.arange(first, min(first + batch, len(laws[level])), device=device)
            tokens = torch.cat(
                [context.expand(len(index), -1), symbols[digits(index, count, level)]], 1
            )
            laws[level][first : first + batch] = _next(student, student[:-1](tokens), symbols)

    def descend(level: int, first: int, parents: int, states: list[Any]) -> None:
        """Fill in the laws below ``parents`` prefixes, of which ``first`` is the first."""
        for start in range(0, parents * count, batch):
            children = torch.arange(start, min(start + batch, parents * count), device=device)
            above = [_rows(state, children // count) for state in states]
            hidden, below = _step(student, symbols[children % count][:, None], above)
            begin, size = first * count + start, len(children)
            laws[level][begin : begin + size] = _next(student, hidden, symbols)
            if level + 1 < length:
                descend(level + 1, begin, size, below)

    with _at_rest(student):
        if not any(hasattr(block, "step") for block in student):
            for level in range(length):
                read(level)
            return laws
        hidden, states = _step(student, context[None], [None] * len(student))
        laws[0][:] = _next(student, hidden, symbols)
        if length > 1:
            descend(1, 0, 1, states)
    return laws


def student_scorer(
    student: nn.Sequential, context: Tensor, symbols: Tensor, batch: int = 256
) -> Scorer:
    """The log-probability that a student gives any sequences: for spaces too large to go through.

    Parameters are those of :func:`student_conditionals`; ``batch`` sequences at a time.
    """
    device = next(student.parameters()).device
    context, symbols = context.to(device), symbols.to(device)

    @torch.inference_mode()
    def score(sequences: Tensor) -> Tensor:
        scores = []
        with _at_rest(student):
            for piece in sequences.to(device).split(batch):
                secret = symbols[piece]
                tokens = torch.cat([context.expand(len(piece), -1), secret], 1)
                law = student(tokens[:, :-1])[:, len(context) - 1 :].log_softmax(-1)
                chosen = law.gather(-1, secret[..., None])[..., 0]
                scores.append(summed(chosen.cpu().unbind(1)))
        return torch.cat(scores)

    return score


def label_log_odds(logits: Tensor, label: int) -> Tensor:
    """How likely a label is of each input, by logits ``(B, C)``: ``(B,)`` float64.

    ``log p / (1 - p)`` is in the order of the probability p, and so of the cross-entropy the other
    way round. It tells inputs apart that all have a p of 1 in floating point.
    """
    others = logits.double()
    others[:, label] = -torch.inf
    return logits[:, label].double() - others.logsumexp(1)


def probabilities(conditionals: Conditionals) -> Conditionals:
    """Conditionals that score a sequence by the sum of the probabilities of its symbols."""
    return [law.exp() for law in conditionals]


def independent_conditionals(log_probs: Tensor) -> Conditionals:
    """Conditionals of a sequence of labels, where no label depends on those before it.

    Parameters
    ----------
    log_probs : Tensor
        ``(m, C)``, the law of each label in nats; ``-inf`` counts as :data:`LEAST`.

    Returns
    -------
    list of Tensor
        ``(C**i, C)``: views, each of one row.

    Raises
    ------
    FedkdError
        If a row is not a law.
    """
    check_log_probs(log_probs, "a law of labels")
    laws = log_probs.detach().cpu().clamp_min(LEAST)
    return [law.expand(laws.shape[1] ** level, -1) for level, law in enumerate(laws)]


@contextmanager
def _at_rest(student: nn.Module) -> Iterator[None]:
    """The student in evaluation mode; afterwards every module as it was."""
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _step(student: nn.Sequential, tokens: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
    """What all blocks but the head make of tokens ``(B, t)`` that follow on ``states``."""
    held: Any = tokens
    after = []
    for block, state in zip(student[:-1], states):
        step = getattr(block, "step", None)
        if step is None:
            held = block(held)
        else:
            held, state = step(held, state)
        after.append(state)
    return held, after


def _rows(state: Any, index: Tensor) -> Any:
    """Rows of a state; in each of its tensors ``(layers, B, H)`` they are the middle axis."""
    if isinstance(state, Tensor):
        return state.index_select(-2, index)
    if state is None:
        return None
    return tuple(_rows(piece, index) for piece in state)


def _next(student: nn.Sequential, hidden: Tensor, symbols: Tensor) -> Tensor:
    """Log-probabilities ``(B, A)`` of symbols after the last of the positions ``(B, t, E)``."""
    logits = student[-1](hidden[:, -1:])[:, 0]
    return (logits[:, symbols] - logits.logsumexp(1, keepdim=True)).cpu()


def check_log_probs(log_probs: Tensor, what: str) -> None:
    """Refuse rows ``(..., C)`` whose probabilities do not sum to 1; ``what`` names them.

    Raises
    ------
    FedkdError
        Names the first such row.
    """
    sums = log_probs.double().exp().sum(-1)
    wrong = ~((sums - 1).abs() < 1e-3)
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise FedkdError(
            f"{what} must be log-probabilities, in nats: row {row} sums to {float(sums[row]):.4g} "
            "and not to 1"
        )
