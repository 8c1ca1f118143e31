"""Training on k of n records: what docs/privacy.md says of it."""

import math
from itertools import combinations

import numpy as np
import pytest

from fedkd.data.partitions import stratified
from fedkd.lab.rates import auc


@pytest.mark.parametrize(("n", "k"), [(4, 1), (6, 2), (7, 5)])
def test_the_stated_epsilon_and_delta_hold_of_the_draw_by_counting(n, k):
    """The drawn records in clear: of n, or with one more. FedMD-NFDP's theorem, at its tightest."""
    fewer = [*combinations(range(n), k)]
    more = [*combinations(range(n + 1), k)]
    assert math.log(len(more) / len(fewer)) == pytest.approx(math.log((n + 1) / (n + 1 - k)))
    with_it = sum(n in drawn for drawn in more) / len(more)
    assert with_it == pytest.approx(k / (n + 1))
    assert with_it <= k / n


def test_a_replaced_record_is_hidden_wherever_it_is_not_drawn():
    """Of n records in both worlds: epsilon 0 and delta k/n, whatever is done to what is drawn."""
    n, k = 6, 2
    drawn = [*combinations(range(n), k)]
    assert sum(0 in each for each in drawn) / len(drawn) == pytest.approx(k / n)


def test_an_attack_among_drawn_records_loses_its_edge_by_k_over_n():
    n, k, members = 100, 25, 40_000
    rng = np.random.default_rng(0)
    drawn = np.arange(members) % n < k
    inside = rng.normal(size=members) + 1.5 * drawn
    outside = rng.normal(size=members)
    scores, member = np.concatenate([inside, outside]), np.repeat([True, False], members)
    among = np.concatenate([inside[drawn], outside])
    known = auc(among, np.repeat([True, False], [drawn.sum(), members]))
    assert auc(scores, member) == pytest.approx(k / n * (known - 0.5) + 0.5, abs=0.005)
    # At each rate of false alarms: k/n of the hits, and as many false alarms of the others.
    threshold = np.quantile(outside, 0.9)
    hits = (inside[drawn] > threshold).mean()
    assert (inside > threshold).mean() == pytest.approx(k / n * hits + (1 - k / n) * 0.1, abs=0.005)


def test_every_record_that_a_client_holds_is_drawn_alike():
    """samples_per_client, where a client holds more: to within one a class, k/n for each record."""
    labels, rng, times = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]), np.random.default_rng(0), 4000
    counts = np.zeros(10)
    for _ in range(times):
        counts[stratified(labels, 3, rng)] += 1
    assert counts / times == pytest.approx(np.full(10, 0.3), abs=0.03)
