"""How far a student's confidence is from its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
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


def calibration_error(confidence: Tensor, hits: Tensor, bins: int = 15) -> Tensor:
    """The same from the probability of the predicted class, and whether it was right: ``(B,)``."""
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)
    members = one_hot(torch.bucketize(confidence, edges[1:-1]), bins).double()
    surplus = hits.double() - confidence.double()
    return (surplus @ members).abs().sum() / len(hits)
