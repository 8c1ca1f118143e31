"""Expected calibration error."""

import pytest
import torch

from fedkd.distillation.calibration import calibration_error, expected_calibration_error


def binary(confidence, right):
    """``(B, 2)`` probabilities that choose class 0 with this confidence, and ``(B,)`` labels."""
    confidence = torch.as_tensor(confidence)
    return torch.stack([confidence, 1 - confidence], -1), 1 - torch.as_tensor(right).long()


def test_as_right_as_sure_is_calibrated():
    probabilities, labels = binary([0.75] * 8, [True] * 6 + [False] * 2)
    assert expected_calibration_error(probabilities, labels).item() == pytest.approx(0)


def test_sure_and_always_wrong_is_one():
    probabilities, labels = binary([1.0] * 5, [False] * 5)
    assert expected_calibration_error(probabilities, labels).item() == 1


def test_sure_and_always_right_is_zero():
    probabilities, labels = binary([1.0] * 5, [True] * 5)
    assert expected_calibration_error(probabilities, labels).item() == 0


def test_bins_are_weighted_by_their_samples():
    probabilities, labels = binary([0.95, 0.95, 0.95, 0.6], [True, True, False, False])
    expected = 0.75 * abs(0.95 - 2 / 3) + 0.25 * 0.6
    assert expected_calibration_error(probabilities, labels).item() == pytest.approx(expected)


def test_gaps_cancel_within_a_bin_but_not_between_bins():
    probabilities, labels = binary([0.7, 0.9], [True, False])
    assert expected_calibration_error(probabilities, labels, bins=1).item() == pytest.approx(0.3)
    assert expected_calibration_error(probabilities, labels, bins=15).item() == pytest.approx(0.6)


def test_a_bin_is_closed_above():
    probabilities, labels = binary([0.75, 0.625], [True, False])
    together = abs(1 - 0.75 - 0.625) / 2
    assert expected_calibration_error(probabilities, labels, bins=4).item() == pytest.approx(
        together
    )


def test_the_order_of_samples_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(200, 5, generator=generator).softmax(-1)
    labels = torch.randint(5, (200,), generator=generator)
    order = torch.randperm(200, generator=generator)
    torch.testing.assert_close(
        expected_calibration_error(probabilities[order], labels[order]),
        expected_calibration_error(probabilities, labels),
    )


def test_labels_drawn_from_the_probabilities_are_nearly_calibrated():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(20_000, 5, generator=generator).softmax(-1)
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    assert expected_calibration_error(probabilities, labels).item() < 0.02


def test_confidence_and_hits_are_all_it_takes():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(50, 4, generator=generator).softmax(1)
    labels = torch.arange(50) % 4
    confidence, predicted = probabilities.max(1)
    assert calibration_error(confidence, predicted == labels) == expected_calibration_error(
        probabilities, labels
    )
