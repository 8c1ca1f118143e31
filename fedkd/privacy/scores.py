"""Privacy scores: how likely each released item is to carry something private, from 0 to 1.

A score sets an item's temperature in swing-style release. All but ``oracle`` come from public
things alone: the transfer set, and a model of the public corpus (for images, its principal
components). On images no position is private as a digit is in a text, so only rarity is left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

COMPONENTS = 32
"""Principal components that model a public corpus of images, at most."""
EXPECTED = 0.5
"""Public probability of identifier-like tokens from which a position counts as one of theirs."""
LOW, HIGH = 0.5, 0.99
"""Quantiles of the public corpus that scores 0 and 1 stand for."""


def rarity(surprise: Tensor, reference: Tensor) -> Tensor:
    """``clip((s - q50) / (q99 - q50), 0, 1)``, the quantiles those of ``reference``.

    Parameters
    ----------
    surprise : Tensor of shape (M,)
        Negative log-likelihood in nats under a public model, or another measure of rarity.
    reference : Tensor of shape (K,)
        The same measure on the public corpus.
    """
    low, high = reference.double().quantile(torch.tensor([LOW, HIGH], dtype=torch.float64))
    return ((surprise.double() - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()


def identifier_like(vocabulary: Sequence[str]) -> Tensor:
    """Which words are, or hold, digits, or look like an identifier: ``(V,)`` bool."""
    return torch.tensor([bool(re.search(r"\d|\w_|_\w|@", word)) for word in vocabulary])


def rules(gold: Tensor, public_law: Tensor, private: Tensor) -> Tensor:
    """1 where the next token is identifier-like or the public model expects such a one, else 0.

    Parameters
    ----------
    gold : Tensor of shape (M,)
        The next tokens, -1 where there is none.
    public_law : Tensor of shape (M, V)
        The public model's probabilities.
    private : Tensor of shape (V,)
        Which tokens are identifier-like.
    """
    said = private[gold.clamp_min(0)] & (gold >= 0)
    return (said | (public_law @ private.float() > EXPECTED)).float()


def surprise(gold: Tensor, public_law: Tensor) -> Tensor:
    """Negative log-likelihood of the next tokens ``(M,)``, in nats; 0 where there is none."""
    likelihood = public_law.gather(1, gold.clamp_min(0)[:, None])[:, 0]
    return torch.where(gold >= 0, -likelihood.clamp_min(1e-12).log(), 0.0)


def outlierness(inputs: Tensor, public_inputs: Tensor) -> Tensor:
    """Squared distance of images to the principal components of a public set, ``(M,)``."""
    public = public_inputs.flatten(1).double()
    centre = public.mean(0)
    rank = max(1, min(COMPONENTS, len(public) // 4, public.shape[1] // 2))
    basis = torch.linalg.svd(public - centre, full_matrices=False).Vh[:rank]
    apart = inputs.flatten(1).double() - centre
    return (apart - apart @ basis.T @ basis).square().sum(1).float()
