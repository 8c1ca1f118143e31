"""What released soft labels say of the next symbol of a secret."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedkd.data.canaries.places import Places
from fedkd.data.canaries.secrets import check_space
from fedkd.lab.exposure.conditionals import LEAST, check_log_probs
from fedkd.lab.exposure.sequences import Conditionals, Scorer, summed


def released_conditionals(
    found: Places,
    log_probs: Tensor,
    symbols: Tensor,
    length: int,
    *,
    among: Tensor | None = None,
    classes: int | None = None,
) -> Conditionals:
    """What somebody knows who has nothing but the soft labels of a public corpus.

    Where positions of the corpus have a prefix before them, the mean of the laws released there,
    normalised over the symbols, is the law after that prefix; after all others it is uniform.

    Parameters
    ----------
    found : Places
        From :func:`fedkd.data.canaries.places.places`, with the same symbols and length.
    log_probs : Tensor
        ``(M, V)`` of all released positions, in nats; or with ``among``, ``(M, k+1)``.
    symbols : Tensor
        ``(A,)`` token ids.
    length : int
        Symbols L of a secret.
    among : Tensor or None
        ``(M, k)`` token ids, -1 for none, whose probabilities are released; all others together
        have the last one. It is shared out among them evenly.
    classes : int or None
        V; needed with ``among``.

    Returns
    -------
    list of Tensor
        ``(A**i, A)`` float32, none below :data:`LEAST`.

    Raises
    ------
    FedkdError
        If a row is not a law, or there are more than :data:`LARGEST_SPACE` sequences.
    """
    count = len(symbols)
    check_space(count, length, "canary.template")
    tables = []
    for level, (prefixes, laws) in enumerate(
        _released(found, log_probs, symbols, length, among, classes)
    ):
        tables.append(torch.full((count**level, count), -math.log(count)))
        tables[-1][prefixes] = laws
    return tables


def released_scorer(
    found: Places,
    log_probs: Tensor,
    symbols: Tensor,
    length: int,
    *,
    among: Tensor | None = None,
    classes: int | None = None,
    linear: bool = False,
) -> Scorer:
    """The same of any sequences: for spaces too large to go through.

    Parameters are those of :func:`released_conditionals`; ``linear`` sums probabilities.
    """
    levels = _released(found, log_probs, symbols, length, among, classes)

    def score(sequences: Tensor) -> Tensor:
        numbers = torch.zeros(len(sequences), dtype=torch.int64)
        terms = []
        for (prefixes, laws), symbol in zip(levels, sequences.unbind(1), strict=True):
            term = torch.full(symbol.shape, -math.log(len(symbols)))
            if len(prefixes):
                place = torch.searchsorted(prefixes, numbers).clamp_max(len(prefixes) - 1)
                term = torch.where(prefixes[place] == numbers, laws[place, symbol], term)
            terms.append(term.exp() if linear else term)
            numbers = numbers * len(symbols) + symbol
        return summed(terms)

    return score


def _released(
    found: Places,
    log_probs: Tensor,
    symbols: Tensor,
    length: int,
    among: Tensor | None,
    classes: int | None,
) -> list[tuple[Tensor, Tensor]]:
    """At each level, prefixes ``(U,)`` in order that laws are known after, and these ``(U, A)``."""
    rows = log_probs[found.items].detach().cpu().double()
    check_log_probs(rows, "released soft labels")
    symbols = symbols.cpu()
    if among is None:
        masses = rows[:, symbols].exp()
    else:
        if classes is None:
            raise ValueError("among needs classes")
        masses = _of_candidates(rows.exp(), among[found.items].cpu(), symbols, classes)
    levels = []
    for level in range(length):
        here = found.levels == level
        prefixes, index = found.prefixes[here].unique(return_inverse=True)
        total = torch.zeros(len(prefixes), len(symbols), dtype=torch.float64)
        # One after another: sums must not depend on the order of threads.
        for place, mass in zip(index.tolist(), masses[here]):
            total[place] += mass
        told = total.sum(1) > 0
        laws = total[told] / total[told].sum(1, keepdim=True)
        levels.append((prefixes[told], laws.log().float().clamp_min(LEAST)))
    return levels


def _of_candidates(masses: Tensor, among: Tensor, symbols: Tensor, classes: int) -> Tensor:
    """Probabilities ``(Q, A)`` of symbols, from those of candidates ``(Q, k)`` and all others."""
    hits = among[:, :, None] == symbols
    others = classes - (among >= 0).sum(1, keepdim=True)
    rest = masses[:, -1:] / others.clamp_min(1)
    given = (masses[:, :-1, None] * hits).sum(1)
    return torch.where(hits.any(1), given, rest)
