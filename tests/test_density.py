"""Density ratios: laws of the estimator, and what it selects."""

from itertools import pairwise

import pytest
import torch

from fedkd.density import alike, density_ratio, kernel


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(count, mean, deviation=0.05, seed=0):
    noise = torch.randn(count, 3, generator=draw(seed), dtype=torch.float64)
    return mean + deviation * noise


def test_the_ratio_is_where_the_gradient_of_the_least_squares_problem_is_zero():
    """At every point v: lambda r(v) + mean_i r(u_i) k(v, u_i) = mean_j k(v, x_j)."""
    known, noise, points = normal(20, 0.3), normal(30, 0.5, 0.3, 1), normal(10, 0.4, 0.2, 2)
    ratio = density_ratio(known, noise, 0.2)
    left = 30**-0.5 * ratio(points) + (kernel(points, noise, 0.2) * ratio(noise)).mean(1)
    assert torch.allclose(left, kernel(points, known, 0.2).mean(1), atol=1e-12)


def test_the_ratio_is_high_where_known_samples_are_and_low_elsewhere():
    noise = torch.rand(200, 3, generator=draw(1), dtype=torch.float64)
    ratio = density_ratio(normal(100, 0.3), noise, 0.1)
    assert ratio(normal(50, 0.3, seed=3)).min() > 20 * ratio(normal(50, 0.8)).abs().max()


def test_samples_of_ones_own_cluster_are_alike_and_of_another_are_not():
    own = normal(200, 0.3)
    samples = torch.cat([normal(200, 0.3, seed=1), normal(100, 0.8, seed=2)])
    found = alike(samples, own, 0.5, 0.25, draw())
    assert float(found[:200].double().mean()) == pytest.approx(0.75, abs=0.12)
    assert not found[200:].any()


def test_a_higher_quantile_selects_fewer():
    own, samples = normal(100, 0.3), normal(100, 0.3, 0.08, seed=1)
    found = [alike(samples, own, 0.5, quantile, draw()) for quantile in (0, 0.25, 0.5, 1)]
    assert all((more | ~fewer).all() for more, fewer in pairwise(found))
    assert found[0].sum() > found[-1].sum()


def test_the_order_of_samples_does_not_matter():
    own, samples = normal(60, 0.3), normal(80, 0.3, 0.2, seed=1)
    order = torch.randperm(80, generator=draw(5))
    found = alike(samples, own, 0.3, 0.25, draw())
    assert torch.equal(alike(samples[order], own, 0.3, 0.25, draw()), found[order])


@pytest.mark.parametrize("own", [normal(1, 0.3), normal(3, 0.3)[:1].repeat(8, 1), normal(0, 0.3)])
def test_without_two_own_samples_that_differ_all_are_alike(own):
    assert alike(normal(5, 0.8), own, 0.5, 0.25, draw()).all()
    assert alike(normal(0, 0.8), normal(9, 0.3), 0.5, 0.25, draw()).shape == (0,)
