"""How far a student's confidence is from its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

BINS = 15


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Expected calibration error (Guo et al. 2017, equation 3), a float64 scalar.

    Mean over samples of the gap between confidence and accuracy, taken in equal-width bins of
    confidence that are open below and closed above. NaN without samples.

    Parameters
    ----------
    probabilities : Tensor of shape (B, C)
        The student's; of logits, their softmax.
    labels : Tensor of shape (B,)
        Hard labels.
    bins : int
        Number of bins.
    """
    confidence, predicted = probabilities.max(-1)
    return calibration_error(confidence, predicted == labels, bins)


def calibration_error(confidence: Tensor, hits: Tensor, bins: int = BINS) -> Tensor:
    """The same from the probability of the predicted class, and whether it was right: ``(B,)``."""
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)
    members = one_hot(torch.bucketize(confidence, edges[1:-1]), bins).double()
    surplus = hits.double() - confidence.double()
    return (surplus @ members).abs().sum() / len(hits)


def reliability_bins(confidence: Tensor, hits: Tensor, bins: int = BINS) -> Tensor:
    """What a reliability diagram is made of, ``(bins, 3)`` float64, in the bins of the error.

    Of the samples in each bin: how many there are, the sum of their confidences, and how many are
    right. A confidence that is NaN is in no bin. Sums of several of these are those of all samples.

    Parameters
    ----------
    confidence, hits : Tensor of shape (B,)
        The probability of the predicted class, and whether it was right.
    """
    there = ~confidence.isnan()
    confidence, hits = confidence[there], hits[there]
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)
    place = torch.bucketize(confidence, edges[1:-1])
    values = torch.stack([torch.ones_like(hits, dtype=torch.float64), confidence, hits], 1)
    return values.new_zeros(bins, 3).index_add_(0, place, values)
