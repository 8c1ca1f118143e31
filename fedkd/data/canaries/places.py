"""Where a public corpus bears on secrets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.data.canaries.secrets import Canaries
from fedkd.data.language import PAD


@dataclass(frozen=True)
class Places:
    """Released positions where the next token would be a symbol of a secret.

    The line so far reads as the context and then the symbols of a prefix: position ``items`` (Q,)
    among all that are released, ``levels`` (Q,) symbols so far, ``prefixes`` (Q,) the number of the
    prefix in lexicographic order. All int64.
    """

    items: Tensor
    levels: Tensor
    prefixes: Tensor


def places(inputs: Tensor, context: Tensor, symbols: Tensor, length: int) -> Places:
    """Find where a corpus has the context of a secret, and the context with some symbols after it.

    Parameters
    ----------
    inputs : Tensor
        ``(K, T)`` token ids, :data:`PAD` where there are none. Released are all positions that are
        not, one row after another.
    context : Tensor
        ``(P,)`` token ids before a secret; begins with the token that begins a line, and has it
        nowhere else.
    symbols : Tensor
        ``(A,)`` token ids.
    length : int
        Symbols L of a secret.
    """
    inputs, symbols = inputs.cpu(), symbols.cpu()
    there = inputs != PAD
    items = (there.flatten().cumsum(0) - 1).view(there.shape)
    ids = torch.full((int(max(inputs.max(), symbols.max())) + 1,), -1)
    ids[symbols] = torch.arange(len(symbols))
    indices = ids[inputs]
    size = inputs.shape[1]
    begins = torch.ones_like(there)
    for offset, token in enumerate(context.tolist()):
        shifted = torch.zeros_like(there)
        shifted[:, : max(0, size - offset)] = inputs[:, offset:] == token
        begins &= shifted
    row, last = begins.nonzero(as_tuple=True)
    last = last + len(context) - 1
    prefix = torch.zeros_like(row)
    found = []
    for level in range(length):
        found.append((items[row, last], torch.full_like(row, level), prefix))
        on = last + 1 < size
        row, last, prefix = row[on], last[on] + 1, prefix[on]
        symbol = indices[row, last]
        on = symbol >= 0
        row, last, prefix = row[on], last[on], (prefix * len(symbols) + symbol)[on]
    return Places(*(torch.cat(parts) for parts in zip(*found)))


def spans(canaries: Canaries, transfer: Tensor, items: int) -> Tensor:
    """Which of the transfer set's ``items`` bear on a secret: ``(M,)``, 0 or 1."""
    found = torch.zeros(items)
    if canaries.images is not None:
        found[items - canaries.shown :] = 1
    else:
        context, symbols = canaries.context, canaries.symbols
        found[places(transfer, context, symbols, canaries.length).items] = 1
    return found
