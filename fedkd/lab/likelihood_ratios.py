"""The likelihood-ratio attack on membership, from scores of records under many models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.privacy.sensitivity import Numbers, as_numbers

LEAST = 1e-45
"""What stands for a probability of 0: about the least above it in float32."""
FEW = 32
"""Shadow models of a record, in or out, below which variances are pooled over records."""


def logit_confidence(probabilities: Tensor, labels: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of the true class, which is nearly Gaussian over models.

    After Carlini et al. 2022 (*Membership Inference Attacks From First Principles*), section V-A;
    ``1 - p`` is summed from the other classes, so that confident models keep their digits.

    Parameters
    ----------
    probabilities : Tensor of shape (..., C)
        Soft labels.
    labels : Tensor of shape (...)
        True classes; one set of them serves many models.

    Returns
    -------
    Tensor of shape (...)
        In float64, finite.
    """
    law = probabilities.double()
    classes = labels.expand(law.shape[:-1])[..., None]
    own = law.gather(-1, classes)[..., 0].clamp_min(LEAST)
    others = law.scatter(-1, classes, 0).sum(-1).clamp_min(LEAST)
    return own.log() - others.log()


def lira(scores: Any, members: Any, few: int = FEW) -> Numbers:
    """Log-likelihood ratios of the likelihood-ratio attack, each run in turn being the target.

    Carlini et al. 2022, algorithm 1 (online): a record's score under the target is compared with
    Gaussians fitted to its scores under all other runs, those trained with it and those without.

    Parameters
    ----------
    scores : array or Tensor of shape (runs, records)
        Such as :func:`logit_confidence` by the student of each run.
    members : array or Tensor of bool, shape (runs, records)
        Whether the run was trained with the record.
    few : int
        With fewer other runs than this, in or out, all records share one variance within records.

    Returns
    -------
    ndarray of shape (runs, records)
        Positive for members; 0, no evidence, for a record that all other runs had, or none.

    Raises
    ------
    FedkdError
        If shapes differ, a score is not finite, or there are fewer than 3 runs.
    """
    given, inside = _checked_runs(scores, members)
    centred = given - given.mean(0)
    with_it = _likelihood(centred, inside, few)
    without = _likelihood(centred, ~inside, few)
    return np.where(np.isfinite(with_it) & np.isfinite(without), with_it - without, 0.0)


def lira_offline(scores: Any, members: Any, few: int = FEW) -> Numbers:
    """Standardised scores of the offline attack, each run in turn being the target.

    Carlini et al. 2022, section VI-C: a record's score under the target is compared with its scores
    under other runs that were trained without it, as ``(score - mean) / deviation``; a record needs
    no run that was trained with it, and half as many numbers are estimated as by :func:`lira`.

    Parameters, return value and errors are those of :func:`lira`.
    """
    given, inside = _checked_runs(scores, members)
    mean, variance = _of_others(given - given.mean(0), ~inside, few)
    with np.errstate(invalid="ignore"):
        found = (given - given.mean(0) - mean) / np.sqrt(variance)
    return np.where(np.isfinite(found), found, 0.0)


def _checked_runs(scores: Any, members: Any) -> tuple[Numbers, NDArray[np.bool_]]:
    given, inside = as_numbers(scores), as_numbers(members).astype(bool)
    if given.shape != inside.shape or given.ndim != 2:
        raise FedkdError(
            f"scores {given.shape} and members {inside.shape}: both must be (runs, records)"
        )
    if not np.isfinite(given).all():
        raise FedkdError("scores are not all finite: bound them, as logit_confidence does")
    if len(given) < 3:
        raise FedkdError(f"{len(given)} runs: an attack needs a target and two others, in and out")
    return given, inside


def _likelihood(scores: Numbers, group: np.ndarray, few: int) -> Numbers:
    """Log-density of each score under the Gaussian of the others in its column's ``group``."""
    mean, variance = _of_others(scores, group, few)
    with np.errstate(invalid="ignore"):
        return -((scores - mean) ** 2) / (2 * variance) - np.log(variance) / 2


def _of_others(scores: Numbers, group: np.ndarray, few: int) -> tuple[Numbers, Numbers]:
    """Mean and variance of the other scores in each score's column that are in ``group``."""

    def others(values: Numbers) -> Numbers:
        values = np.where(group, values, 0.0)
        return values.sum(0) - values

    count = others(np.ones(scores.shape))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = others(scores) / count
        spread = np.maximum(others(scores**2) - count * mean**2, 0.0)
        pooled = np.nansum(spread, 1, keepdims=True)
        pooled = pooled / np.maximum(count - 1, 0).sum(1, keepdims=True)
        variance = np.where(count < few, pooled, spread / (count - 1))
        return mean, np.maximum(variance, 1e-12)
