"""Votes under noise: data-dependent Renyi DP against divergences by integration."""

import itertools
import math

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from scipy.integrate import simpson
from scipy.special import logsumexp
from scipy.stats import norm

from fedkd.privacy.costs import cost
from fedkd.privacy.epsilons import gaussian_epsilon
from fedkd.privacy.votes import (
    ORDERS,
    data_dependent_rdp,
    epsilon_of_rdp,
    log_other,
    votes_rdp,
)

GRID = np.linspace(-9, 9, 1801)


def winners(counts, scale):
    """Chance of each class to have the most noisy votes, ``(C,)``."""
    found = []
    for own in range(len(counts)):
        behind = [
            norm.cdf(GRID + (counts[own] - votes) / scale)
            for other, votes in enumerate(counts)
            if other != own
        ]
        found.append(simpson(norm.pdf(GRID) * np.prod(behind, axis=0), x=GRID))
    return np.array(found) / sum(found)


def neighbours(counts):
    """All counts after one client has changed its vote."""
    for source, target in itertools.permutations(range(len(counts)), 2):
        if counts[source] > 0:
            moved = np.array(counts, dtype=float)
            moved[source] -= 1
            moved[target] += 1
            yield moved


def divergence(one, other, order):
    return logsumexp(order * np.log(one) + (1 - order) * np.log(other)) / (order - 1)


@pytest.mark.parametrize("scale", [0.8, 2.0, 5.0])
@pytest.mark.parametrize("counts", [(10, 0, 0), (9, 1, 0), (6, 4, 0), (4, 3, 3), (12, 2, 1)])
def test_no_neighbour_is_further_than_the_data_dependent_bound(counts, scale):
    orders = ORDERS[ORDERS < 8]
    bound = data_dependent_rdp(np.array([counts], dtype=float), scale, orders)
    # Theorem 6 is about the votes that there are, not about those of the neighbour.
    here = winners(counts, scale)
    for other in neighbours(counts):
        there = winners(other, scale)
        for order, most in zip(orders, bound, strict=True):
            assert divergence(here, there, order) <= most + 1e-6


@pytest.mark.parametrize("scale", [0.8, 2.0, 5.0])
def test_the_chance_that_another_wins_is_bounded(scale):
    for counts in ((10, 0, 0), (6, 4, 0), (4, 3, 3)):
        other = winners(counts, scale)[1:].sum()
        assert math.log(other) <= log_other(np.array([counts], dtype=float), scale)[0] + 1e-6


def test_consensus_costs_less_and_a_tie_what_any_votes_cost():
    agreed, tied = np.array([[100.0, 0, 0]]), np.array([[34.0, 33, 33]])
    free = votes_rdp(ORDERS, 10.0)
    assert np.allclose(data_dependent_rdp(tied, 10.0), free)
    assert (data_dependent_rdp(agreed, 10.0) <= free).all()
    assert data_dependent_rdp(agreed, 10.0)[0] < 1e-3 * free[0]
    both = data_dependent_rdp(np.concatenate([agreed, tied]), 10.0)
    assert np.allclose(both, data_dependent_rdp(agreed, 10.0) + free)


def test_a_column_that_is_no_class_is_no_rival():
    counts = np.array([[9.0, 3.0, -np.inf]])
    assert np.allclose(data_dependent_rdp(counts, 1.5), data_dependent_rdp(counts[:, :2], 1.5))


def test_votes_are_gaussian_counts_of_distance_sqrt_2():
    accountant = RdpAccountant([8.0]).compose(dp.GaussianDpEvent(10 / math.sqrt(2)), 5)
    assert votes_rdp(8.0, 10.0, 5) == pytest.approx(accountant._rdp[0])
    found = cost("votes", 10.0, 1, np.ones(5), None, 7)
    assert found.rho == pytest.approx(5 / 100)
    exact = gaussian_epsilon(math.sqrt(2 * found.rho), 1e-5)
    by_orders = epsilon_of_rdp(votes_rdp(ORDERS, 10.0, 5), 1e-5)
    assert exact < by_orders < 1.15 * exact
