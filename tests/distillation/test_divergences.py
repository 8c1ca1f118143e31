"""Divergences between clients' class distributions."""

import math

import pytest
import torch

from fedkd.distillation.divergences import DIVERGENCES

NAMES = list(DIVERGENCES)


def distributions(clients=6, classes=4, seed=0):
    return torch.randn(clients, classes, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@pytest.mark.parametrize("name", NAMES)
def test_equal_distributions_are_exactly_zero_apart(name):
    assert (DIVERGENCES[name](distributions(1).expand(6, 4)) == 0).all()
    assert (DIVERGENCES[name](distributions()).diagonal() == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_different_distributions_are_apart(name):
    apart = DIVERGENCES[name](distributions())
    assert apart.shape == (6, 6)
    assert apart.dtype == torch.float64
    assert (apart[~torch.eye(6, dtype=torch.bool)] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_clients_permutes_rows_and_columns(name):
    order = torch.tensor([3, 0, 5, 4, 1, 2])
    permuted = DIVERGENCES[name](distributions()[order])
    assert torch.equal(permuted, DIVERGENCES[name](distributions())[order][:, order])


@pytest.mark.parametrize("name", NAMES)
def test_exact_zeros_stay_finite(name):
    assert DIVERGENCES[name](torch.eye(4)).isfinite().all()


def test_known_values_of_two_classes():
    pair = torch.tensor([[0.5, 0.5], [0.8, 0.2]], dtype=torch.float64)
    forward = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    backward = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert DIVERGENCES["kl"](pair)[0, 1].item() == pytest.approx(forward)
    assert DIVERGENCES["kl"](pair)[1, 0].item() == pytest.approx(backward)
    assert DIVERGENCES["reverse_kl"](pair)[0, 1].item() == pytest.approx(backward)
    assert DIVERGENCES["symmetric_kl"](pair)[0, 1].item() == pytest.approx((forward + backward) / 2)


@pytest.mark.parametrize("name", ["symmetric_kl", "jensen_shannon"])
def test_symmetric_divergences_are_symmetric_to_the_bit(name):
    apart = DIVERGENCES[name](distributions())
    assert torch.equal(apart, apart.T)


def test_jensen_shannon_of_disjoint_distributions_is_ln_2():
    apart = DIVERGENCES["jensen_shannon"](torch.eye(3))
    assert apart[0, 1].item() == pytest.approx(math.log(2), abs=1e-6)
    assert (apart <= math.log(2)).all()


def test_jensen_shannon_is_the_mean_kl_to_the_mixture():
    one, other = distributions(2).double()
    mixture = (one + other) / 2
    expected = (
        DIVERGENCES["kl"](torch.stack([one, mixture]))[0, 1]
        + DIVERGENCES["kl"](torch.stack([other, mixture]))[0, 1]
    ) / 2
    apart = DIVERGENCES["jensen_shannon"](torch.stack([one, other]))[0, 1]
    torch.testing.assert_close(apart, expected)
