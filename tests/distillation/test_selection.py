"""Which rows to ask for: the laws of the rules."""

import itertools

import pytest
import torch
from scipy.optimize import linprog

from fedkd.distillation.selection import (
    confident_rows,
    covering_radius,
    difference_sample,
    difference_scores,
    domain_weights,
    k_centre,
    margins,
    pick,
    pick_scores,
    random_subset,
    robust_query,
    size_of,
    weighted_subset,
)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def labels(rows=40, classes=5, seed=0):
    return torch.rand(rows, classes, generator=draw(seed), dtype=torch.float64).pow(3).softmax(1)


def test_a_random_subset_is_that_share_once_each_and_of_all_it_is_all():
    found = random_subset(40, 0.3, draw())
    assert len(found) == len(found.unique()) == 12
    assert torch.equal(found, found.sort().values)
    assert torch.equal(random_subset(40, 1.0, draw()), torch.arange(40))
    assert len(random_subset(40, 0.001, draw())) == 1
    assert size_of(0, 0.5) == 0


def test_a_random_subset_takes_every_row_as_often():
    counts = torch.zeros(20)
    for seed in range(400):
        counts[random_subset(20, 0.25, draw(seed))] += 1
    assert counts.sub(100).abs().max() < 45  # 5 standard deviations


def test_rows_of_no_weight_are_drawn_last():
    weights = torch.tensor([0.0, 1, 0, 2, 3])
    assert weighted_subset(weights, 3, draw()).tolist() == [1, 3, 4]
    assert weighted_subset(weights, 5, draw()).tolist() == [0, 1, 2, 3, 4]


def test_the_first_row_that_is_drawn_is_by_the_weights():
    weights, counts = torch.tensor([1.0, 2, 7]), torch.zeros(3)
    for seed in range(1000):
        counts[weighted_subset(weights, 1, draw(seed))] += 1
    assert torch.allclose(counts / 1000, weights / 10, atol=0.08)


def test_the_surest_are_kept_of_each_predicted_class():
    p, q = labels(), labels(seed=1)
    mean = (p + q) / 2
    kept = confident_rows(p, q, 0.4)
    for label in range(5):
        rows = (mean.argmax(1) == label).nonzero()[:, 0]
        here = [int(row) for row in kept if row in rows]
        assert len(here) == -(-len(rows) * 2 // 5)
        rest = [int(row) for row in rows if int(row) not in here]
        if here and rest:
            assert mean[here].amax(1).min() >= mean[rest].amax(1).max()


def test_confidence_does_not_ask_who_is_the_teacher_and_permutes_with_classes_and_rows():
    p, q = labels(), labels(seed=1)
    kept = confident_rows(p, q, 0.3)
    assert torch.equal(confident_rows(q, p, 0.3), kept)
    classes, rows = torch.randperm(5, generator=draw(2)), torch.randperm(40, generator=draw(3))
    assert torch.equal(confident_rows(p[:, classes], q[:, classes], 0.3), kept)
    assert torch.equal(rows[confident_rows(p[rows], q[rows], 0.3)].sort().values, kept)
    assert torch.equal(confident_rows(p, q, 1.0), torch.arange(40))


def test_k_centre_takes_duplicates_last_and_its_radius_falls():
    points = labels(12)
    twice = torch.cat([points, points])
    order = k_centre(twice, 24)
    assert len(order.unique()) == 24
    assert len((order[:12] % 12).unique()) == 12
    radii = [covering_radius(twice, order[:k]) for k in range(1, 13)]
    assert all(one >= other for one, other in itertools.pairwise(radii))
    assert radii[-1] == pytest.approx(0, abs=1e-6)


def test_k_centre_is_within_twice_of_the_best_and_goes_on_from_what_is_taken():
    points = labels(11, seed=4)
    order = k_centre(points, 3)
    best = min(
        covering_radius(points, torch.tensor(some)) for some in itertools.combinations(range(11), 3)
    )
    assert covering_radius(points, order) <= 2 * best
    assert torch.equal(k_centre(points, 2, order[:1]), order[1:])
    assert set(k_centre(points, 99, order).tolist()) == set(range(11)) - set(order.tolist())


def worth(q, gains, losses, mistakes):
    """What is gained when the worst ``mistakes`` rows, a fraction at last, are answered wrongly."""
    wrong = (q * (gains + losses)).sort(descending=True).values
    whole = int(mistakes)
    lost = wrong[:whole].sum() + (mistakes - whole) * (wrong[whole] if whole < len(q) else 0)
    return float((q * gains).sum() - lost)


def best_worth(gains, losses, mistakes):
    """The same of the best shares, by a linear programme: over q, t and u with u >= q(g + l) - t.

    The sum of the m largest of x is the least of ``m t + sum u``.
    """
    count = len(gains)
    cost = [*(-gains).tolist(), mistakes, *[1.0] * count]
    rows = [
        [(float(gains[i] + losses[i]) if j == i else 0.0) for j in range(count)]
        + [-1.0]
        + [-float(j == i) for j in range(count)]
        for i in range(count)
    ]
    equal = [[1.0] * count + [0.0] * (count + 1)]
    bounds = [(0, None)] * count + [(None, None)] + [(0, None)] * count
    found = linprog(cost, rows, [0.0] * count, equal, [1.0], bounds)
    return -found.fun


@pytest.mark.parametrize("mistakes", [0, 1, 2, 3.5])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_a_robust_query_is_the_best_of_a_linear_programme(mistakes, loss):
    for seed in range(5):
        gains = torch.rand(8, generator=draw(seed), dtype=torch.float64) + 0.05
        losses = torch.full_like(gains, loss)
        q = robust_query(gains, losses, mistakes)
        assert q.sum() == pytest.approx(1)
        best = best_worth(gains, losses, mistakes)
        if best > 1e-6:  # where nothing can be gained, no shares are better than others
            assert worth(q, gains, losses, mistakes) == pytest.approx(best, abs=1e-6)


def test_without_mistakes_the_best_row_is_asked_for():
    gains = torch.tensor([0.2, 0.9, 0.5])
    assert robust_query(gains, torch.zeros(3), 0).tolist() == [0, 1, 0]


def test_margins_are_those_of_the_two_likeliest():
    given = torch.tensor([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2]])
    assert torch.allclose(margins(given), torch.tensor([0.5, 0.0]))


def test_difference_sampling_keeps_what_only_the_teacher_knows():
    reference, teacher = torch.tensor([3.0, 3, 1, 2]), torch.tensor([1.0, 3, 0, 2])
    scores = difference_scores(reference, teacher)
    assert difference_sample(scores, 0.5).tolist() == [0, 2]
    assert difference_sample(scores, 1.0).tolist() == [0, 1, 2, 3]
    for shift in (-5.0, 100.0):
        assert difference_sample(scores + shift, 0.5).tolist() == [0, 2]
        shifted = difference_scores(reference + shift, teacher)
        assert difference_sample(shifted, 0.25).tolist() == [0]


def test_equal_ratios_pull_the_weights_of_domains_to_uniform():
    weights = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    for _ in range(60):
        weights = domain_weights(weights, torch.full((3,), 1.7))
    assert torch.allclose(weights, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_weights_of_domains_are_shares_of_a_least_size(alpha):
    ratios = torch.tensor([1.0, 3.0, 900.0, 1e30])
    found = domain_weights(torch.full((4,), 0.25), ratios, alpha)
    assert found.isfinite().all()
    assert found.sum() == pytest.approx(1)
    assert bool((found >= (1 - alpha) / 4 - 1e-12).all())


def test_weights_of_domains_by_hand_and_whatever_the_level_of_ratios():
    given, ratios = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]).log1p()
    found = domain_weights(given, ratios)
    assert torch.allclose(found, torch.tensor([5 / 12, 7 / 12], dtype=torch.float64))
    assert torch.allclose(domain_weights(given, ratios + 7), found)


def test_picks_are_by_what_is_to_be_learned():
    p, q = labels(), labels(seed=1)
    assert torch.allclose(pick_scores(p, p), torch.zeros(40).double(), atol=1e-12)
    assert bool((pick_scores(p, q) >= 0).all())
    assert torch.equal(pick_scores(p, q, "teacher_entropy"), pick_scores(q, p, "student_entropy"))
    zeros = torch.eye(5, dtype=torch.float64)
    assert pick_scores(zeros, zeros.flip(0)).isfinite().all()
    scores = pick_scores(p, q)
    kept = pick(scores, 10)
    rest = torch.ones(40, dtype=torch.bool).index_fill(0, kept, False)
    assert scores[kept].min() >= scores[rest].max()
