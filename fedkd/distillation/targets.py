"""Operations on soft labels; the classes are the last axis."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = -1e4
"""The logarithm of no probability at all: finite, so that nothing times it is nothing."""
CHUNK = 1 << 17
"""Elements that :func:`mix` works on at a time, so that they stay in a core's cache."""


def soften(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """``softmax(logits / temperature)`` (Hinton, Vinyals & Dean 2015, equation 1)."""
    return torch.softmax(logits / temperature, -1)


def sharpen(labels: Tensor, temperature: float) -> Tensor:
    """``softmax(labels / temperature)`` on probabilities: entropy reduction aggregation.

    Itahara et al. 2020 (DS-FL): the averaged probabilities themselves take the place of logits.
    """
    return torch.softmax(labels / temperature, -1)


def power(labels: Tensor, beta: float) -> Tensor:
    """``p^beta / sum_c p_c^beta``: enhanced entropy reduction aggregation (Azuma et al. 2025).

    Zeros stay zeros; at 1 the probabilities are left as they are, to the bit.
    """
    if beta == 1:
        return labels
    # By the largest, so that no power of all of a row is too small for a float.
    powers = (labels / labels.amax(-1, keepdim=True)) ** beta
    return powers / powers.sum(-1, keepdim=True)


def retemper(labels: Tensor, temperature: float | Tensor) -> Tensor:
    """The probabilities at temperature 1 of labels softened at ``temperature``.

    ``softmax(log p * temperature)``: exact, as the softmax forgets only a constant.
    """
    return torch.softmax(labels.log() * temperature, -1)


def among_logs(logs: Tensor, among: Tensor) -> Tensor:
    """Log-probabilities of candidates and, last, of all other classes together.

    ``(M, C)`` with candidates ``(M, k)``, distinct in a row, to ``(M, k + 1)``. Where there is none
    (a candidate of -1, or no other class) stands a number whose exponential is 0.
    """
    nothing = logs.new_full((len(logs), 1), NOTHING)
    padded = torch.cat([logs, nothing], 1)
    index = torch.where(among < 0, logs.shape[1], among)
    given = padded.gather(1, index)
    rest = padded.scatter(1, index, NOTHING).logsumexp(1, keepdim=True)
    return torch.cat([given, rest], 1)


def mix(weights: Tensor, labels: Tensor) -> Tensor:
    """Weighted sums of the clients' labels, ``(K, N)`` by ``(N, M, C)`` to ``(K, M, C)``.

    Summed one client after another, in their order, by elementwise operations: a row has the same
    bits alone or among others, which a matrix product does not promise. Equal rows of weights are
    computed once; the result is then a view of that row, not to be written to.
    """
    weights = weights.to(labels)
    if len(weights) > 1 and bool((weights == weights[0]).all()):
        return mix(weights[:1], labels).expand(len(weights), *labels.shape[1:])
    mixed = labels.new_zeros(len(weights), *labels.shape[1:])
    rows = max(1, CHUNK // max(1, labels[0].numel()))
    for part, share in zip(mixed.split(rows), weights.split(rows)):
        for client, given in enumerate(labels):
            # Not addcmul: product and sum rounded apart leave no room for a fused variant.
            part += share[:, client].reshape(-1, *[1] * given.ndim) * given
    return mixed


def onto_simplex(rows: Tensor) -> Tensor:
    """The nearest row (Euclidean) of numbers >= 0 that sum to 1, for each of ``rows`` (N, K).

    By sorting (Duchi, Shalev-Shwartz, Singer & Chandra 2008, figure 1).
    """
    ordered = rows.sort(1, descending=True).values
    surplus = (ordered.cumsum(1) - 1) / torch.arange(1, rows.shape[1] + 1).to(rows)
    # A row that holds NaN stays one.
    count = (ordered > surplus).sum(1, keepdim=True).clamp_min(1)
    return (rows - surplus.gather(1, count - 1)).clamp_min(0)


def candidate_column(labels: Tensor | None, among: Tensor) -> Tensor | None:
    """Where the classes ``labels`` ``(B,)`` are among candidates ``(B, k)``; k for all others."""
    if labels is None:
        return None
    same = among == labels[:, None]
    return torch.where(same.any(1), same.int().argmax(1), among.shape[1])


def within(labels: Tensor, least: float, most: float, judged: Tensor | None = None) -> Tensor:
    """``labels`` ``(K, C)``, NaN in rows whose highest probability is not within two bounds.

    FerKD (Shen 2023): too hard a sample teaches nothing true, too easy a one nothing new.
    ``judged`` has the probabilities that are looked at, if they are not the labels.
    """
    sure = (labels if judged is None else judged).amax(-1, keepdim=True)
    return labels.masked_fill((sure < least) | (sure > most), torch.nan)


def entropy(labels: Tensor) -> Tensor:
    """Entropy in nats, ``(..., C)`` to ``(...)``; 0 log 0 is 0."""
    return torch.special.entr(labels).sum(-1)


def check_probabilities(labels: Tensor, what: str) -> str | None:
    """Why ``labels`` ``(M, C)`` are not probabilities, in one line, or None if they are.

    Rows must be free of NaN and negative numbers and sum to 1 within 1e-3. The line names the
    first row that is not.
    """
    rows = labels.reshape(-1, labels.shape[-1])
    sums = rows.sum(-1)
    bad = ~((sums - 1).abs() <= 1e-3) | (rows < 0).any(-1)
    if not bad.any():
        return None
    row = int(bad.int().argmax())
    if rows[row].isnan().any():
        reason = "holds NaN"
    elif (rows[row] < 0).any():
        reason = f"holds {rows[row].min():.4g}, which is negative"
    else:
        reason = f"sums to {sums[row]:.4g}, not 1"
    return f"{what} are not probabilities: row {row} {reason}"
