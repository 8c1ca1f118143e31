"""Laws of what compares rows within groups: correlations, DIST, SinKD."""

import numpy as np
import pytest
import torch
from objective_inputs import Rows, draw, gradient, value

from fedkd.distillation.groups import group_means, group_pearson, group_sums, pearson, per_group
from fedkd.distillation.objectives import couples, made

GROUPS = Rows.groups


@pytest.fixture
def rows():
    return Rows()


# --- groups -----------------------------------------------------------------------------------


def test_sums_and_means_of_groups_are_those_of_a_loop():
    numbers = draw(6, 3)
    sums, means = group_sums(numbers, GROUPS), group_means(numbers, GROUPS)
    for group in (0, 1):
        mine = numbers[group == GROUPS]
        torch.testing.assert_close(sums[group], mine.sum(0))
        for row in means[group == GROUPS]:
            torch.testing.assert_close(row, mine.mean(0))
    assert group_sums(numbers, GROUPS, 4).shape == (4, 3)


def test_a_groups_value_stands_on_its_rows_and_each_row_may_have_its_own():
    numbers = draw(6, 3)
    found = per_group(lambda mine: mine.sum(), GROUPS, numbers)
    torch.testing.assert_close(found, group_sums(numbers.sum(1), GROUPS)[GROUPS])
    own = per_group(lambda mine: mine[:, 0] - mine[:, 0].mean(), GROUPS, numbers)
    torch.testing.assert_close(own, (numbers - group_means(numbers, GROUPS))[:, 0])


def test_pearson_is_numpys():
    a, b = draw(5, 7), draw(5, 7, seed=1)
    for dim in (0, 1):
        pairs = zip(a.numpy().swapaxes(0, 1 - dim), b.numpy().swapaxes(0, 1 - dim))
        expected = torch.tensor([np.corrcoef(*pair)[0, 1] for pair in pairs])
        torch.testing.assert_close(pearson(a, b, dim), expected)


def test_pearsons_weights_repeat_entries_or_leave_them_out():
    a, b = draw(5, 3), draw(5, 3, seed=1)
    again = torch.tensor([0, 0, 1, 3, 3, 3])
    weights = torch.tensor([2.0, 1.0, 0.0, 3.0, 0.0]).double()
    expected = pearson(a[again], b[again], 0)
    torch.testing.assert_close(pearson(a, b, 0, weights), expected)
    torch.testing.assert_close(pearson(a, b, 0, weights[:, None].expand(5, 3)), expected)


def test_pearson_with_a_constant_is_0_and_has_no_slope():
    a = draw(2, 5).requires_grad_()
    found = pearson(a, torch.full((2, 5), 0.2).double())
    assert found.tolist() == [0, 0]
    assert torch.autograd.grad(found.sum(), a)[0].abs().max() == 0


def test_correlations_of_groups_are_those_of_each():
    a, b = draw(6, 3), draw(6, 3, seed=1)
    found = group_pearson(a, b, GROUPS)
    for group in (0, 1):
        mine = group == GROUPS
        torch.testing.assert_close(found[group], pearson(a[mine], b[mine], 0))


# --- DIST -------------------------------------------------------------------------------------

ONLY_ROWS, ONLY_CLASSES = {"name": "dist", "gamma": 0.0}, {"name": "dist", "beta": 0.0}


def test_each_part_of_dist_lies_between_0_and_2(rows):
    for seed in range(10):
        rows.teacher = draw(6, 4, seed=seed, scale=10.0)
        for chosen in (ONLY_ROWS, ONLY_CLASSES):
            found = value(chosen, rows)
            assert ((found >= 0) & (found <= 2)).all()


def test_dist_is_the_sum_of_its_parts(rows):
    found = value({"name": "dist", "beta": 2.0, "gamma": 3.0}, rows)
    expected = 2 * value(ONLY_ROWS, rows) + 3 * value(ONLY_CLASSES, rows)
    torch.testing.assert_close(found, expected)


def test_dists_rows_do_not_see_a_mixture_with_uniform(rows):
    targets, before = rows.targets("dist"), value(ONLY_ROWS, rows)
    mixed = 0.3 * targets + 0.7 / 4
    torch.testing.assert_close(value(ONLY_ROWS, rows, targets=mixed), before)


def test_one_row_alone_has_no_classes_to_compare(rows):
    one = rows.of(2)
    assert value(ONLY_CLASSES, one).tolist() == [1]
    assert gradient(ONLY_CLASSES, one)[0].abs().max() == 0


def test_targets_that_say_nothing_teach_nothing(rows):
    uniform = torch.full((6, 4), 0.25, dtype=torch.float64)
    assert gradient("dist", rows, targets=uniform)[0].abs().max() == 0
    assert value("dist", rows, targets=uniform).tolist() == [2] * 6


def test_dist_of_rows_alone_couples_none():
    assert couples(made("dist"))
    assert not couples(made(ONLY_ROWS))


# --- SinKD ------------------------------------------------------------------------------------


def test_sinkd_does_not_see_which_row_is_whose(rows):
    rows.groups = torch.zeros(6, dtype=torch.int64)
    before, order = value("sinkd", rows), torch.tensor([3, 0, 5, 1, 4, 2])
    for key in ("teacher", "logits"):
        setattr(rows, key, getattr(rows, key)[order])
        torch.testing.assert_close(value("sinkd", rows), before)
        rows = Rows()
        rows.groups = torch.zeros(6, dtype=torch.int64)


def test_sinkd_lies_between_0_and_2_and_a_row_alone_is_twice_total_variation(rows):
    found = value("sinkd", rows)
    assert ((found >= 0) & (found <= 2)).all()
    one = rows.of(2)
    apart = (one.logits.softmax(1) - one.targets("sinkd")).abs().sum(1)
    torch.testing.assert_close(value("sinkd", one), apart)


def test_sinkd_of_equal_batches_goes_to_0_with_epsilon(rows):
    rows.teacher = rows.logits
    costs = [
        value({"name": "sinkd", "epsilon": epsilon}, rows)[0].item()
        for epsilon in (0.3, 0.1, 0.03, 0.001)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 1e-3
    assert costs[-1] < 1e-6


def test_a_large_batch_is_carried_in_parts(rows):
    rows.groups = torch.zeros(6, dtype=torch.int64)
    found = value({"name": "sinkd", "rows": 4}, rows)
    parts = value("sinkd", rows.of(0, 1, 2, 3))[0], value("sinkd", rows.of(4, 5))[0]
    torch.testing.assert_close(found, ((4 * parts[0] + 2 * parts[1]) / 6).expand(6))
