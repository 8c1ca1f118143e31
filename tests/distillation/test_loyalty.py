"""Loyalty: laws of both measures."""

import math

import pytest
import torch

from fedkd.distillation.loyalty import label_loyalty, probability_loyalty

MEASURES = pytest.mark.parametrize("measure", [label_loyalty, probability_loyalty])


def rows(seed, count=50, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, generator=generator, dtype=torch.float64).softmax(1)


@MEASURES
def test_equal_answers_are_loyal_to_the_full(measure):
    assert measure(rows(0), rows(0)).item() == 1
    certain = torch.eye(4, dtype=torch.float64)
    assert measure(certain, certain).item() == 1


@MEASURES
def test_answers_without_a_class_in_common_are_not_loyal_at_all(measure):
    certain = torch.eye(4, dtype=torch.float64)
    assert measure(certain, certain.roll(1, 0)).item() == pytest.approx(0, abs=1e-7)


@MEASURES
def test_it_is_in_the_unit_interval_and_symmetric(measure):
    for seed in range(5):
        found = measure(rows(seed), rows(seed + 100))
        assert 0 <= found <= 1
        assert found.item() == pytest.approx(
            measure(rows(seed + 100), rows(seed)).item(), abs=1e-12
        )


@MEASURES
def test_the_order_of_classes_and_of_rows_does_not_matter(measure):
    classes, order = torch.tensor([3, 1, 4, 0, 2]), torch.randperm(50)
    one, other = rows(1), rows(2)
    for changed in (
        measure(one[:, classes], other[:, classes]),
        measure(one[order], other[order]),
    ):
        assert changed.item() == pytest.approx(measure(one, other).item(), abs=1e-12)


def test_probability_loyalty_is_one_less_the_jensen_shannon_distance_in_bits():
    one, other = rows(3, 6), rows(4, 6)
    expected = []
    for p, q in zip(one.tolist(), other.tolist()):
        middle = [(a + b) / 2 for a, b in zip(p, q)]
        bits = sum(
            (a * math.log2(a / m) + b * math.log2(b / m)) / 2 for a, b, m in zip(p, q, middle)
        )
        expected.append(1 - math.sqrt(bits))
    assert probability_loyalty(one, other).item() == pytest.approx(sum(expected) / 6, abs=1e-12)


def test_it_agrees_with_scipy_where_that_is_there():
    distance = pytest.importorskip("scipy.spatial.distance")
    one, other = rows(5), rows(6)
    apart = distance.jensenshannon(one.numpy(), other.numpy(), base=2, axis=1)
    assert probability_loyalty(one, other).item() == pytest.approx(1 - apart.mean(), abs=1e-12)


@MEASURES
def test_a_row_that_is_no_number_is_not_loyal(measure):
    broken = rows(7, 4)
    broken[0, 1] = math.nan
    assert measure(broken, rows(7, 4)).item() == pytest.approx(3 / 4)
