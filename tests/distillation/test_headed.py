"""Laws of objectives with an auxiliary head: DHKD, USKD."""

import math

import pytest
import torch
from objective_inputs import Rows, gradient, value
from torch.nn.functional import cross_entropy

from fedkd.distillation.headed import log_cosh
from fedkd.distillation.objectives import made

ASIDE = {"name": "dhkd", "main": 0.0}


@pytest.fixture
def rows():
    return Rows()


def centred(scores):
    return scores - scores.mean(1, keepdim=True)


# --- DHKD -------------------------------------------------------------------------------------


def test_log_cosh_is_even_and_its_slope_is_at_most_1():
    x = torch.tensor([0.0, 1e-3, 1.0, 50.0, 1000.0], dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(log_cosh(x), log_cosh(-x), atol=1e-12, rtol=0)
    torch.testing.assert_close(log_cosh(x[:3]), x[:3].cosh().log(), atol=1e-12, rtol=0)
    assert log_cosh(x)[-1].item() == pytest.approx(1000 - math.log(2))
    slope = torch.autograd.grad(log_cosh(x).sum(), x)[0]
    torch.testing.assert_close(slope, x.tanh())


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_dhkd_is_0_where_the_auxiliary_head_says_what_the_teacher_says(rows, tau):
    assert (value(ASIDE, rows, tau) > 0).all()
    rows.auxiliary = rows.teacher + 3.0
    nothing = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(value(ASIDE, rows, tau), nothing, atol=1e-6, rtol=0)


def test_dhkd_is_even_and_a_squared_difference_near_the_teacher(rows):
    apart = 1e-2 * centred(rows.auxiliary)
    both = []
    for sign in (1, -1):
        rows.auxiliary = rows.teacher + sign * apart
        both.append(value(ASIDE, rows, 2.0))
    torch.testing.assert_close(both[0], both[1], atol=1e-9, rtol=0)
    torch.testing.assert_close(both[0], apart.square().sum(1) / 8, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_dhkds_slope_is_at_most_half_the_temperature_before_centring(rows, tau):
    rows.auxiliary = 1e4 * rows.auxiliary
    slope = gradient(ASIDE, rows, tau)[1]
    # Less a mean of slopes no larger than itself.
    assert slope.abs().max() <= tau
    assert slope.abs().max() > tau / 4


def test_the_auxiliary_head_alone_learns_from_dhkds_second_part(rows):
    main, aside = gradient(ASIDE, rows)
    assert main.abs().max() == 0
    assert aside.abs().max() > 0


def test_dhkds_first_part_is_forward_kl_times_tau_squared(rows):
    found = value({"name": "dhkd", "alpha": 0.0}, rows, 3.0)
    torch.testing.assert_close(found, 9 * value("forward_kl", rows, 3.0))


# --- USKD -------------------------------------------------------------------------------------


def test_uskd_of_the_true_class_alone_is_cross_entropy_where_all_are_as_sure(rows):
    rows.logits = torch.zeros(6, 4, dtype=torch.float64)
    rows.logits[range(6), rows.labels] = 1.5
    found = value({"name": "uskd", "beta": 0.0, "mu": 0.0}, rows)
    expected = cross_entropy(rows.logits, rows.labels, reduction="none")
    torch.testing.assert_close(found, expected)


def test_the_weights_of_the_true_class_have_mean_1_in_each_batch(rows):
    true = rows.logits.log_softmax(1).gather(1, rows.labels[:, None])[:, 0]
    weights = -value({"name": "uskd", "beta": 0.0, "mu": 0.0}, rows) / true
    for group in (0, 1):
        assert weights[rows.groups == group].mean().item() == pytest.approx(1)


def test_uskds_made_up_targets_sum_to_1_and_have_no_gradient(rows):
    """By the logits its gradient is then what a cross-entropy with constants has: no sum."""
    main, aside = gradient({"name": "uskd", "alpha": 0.0, "mu": 0.0, "beta": 1.0}, rows)
    torch.testing.assert_close(main.sum(1), torch.zeros(6).double(), atol=1e-12, rtol=0)
    assert (main.gather(1, rows.labels[:, None]) == 0).all()
    assert aside.abs().max() == 0
    objective = made("uskd")
    logs = rows.logits.log_softmax(1)
    shares = objective._shares(logs, rows.auxiliary.softmax(1), rows.labels)
    torch.testing.assert_close(shares.sum(1), torch.ones(6).double())
    student = rows.logits.scatter(1, rows.labels[:, None], -torch.inf).softmax(1)
    torch.testing.assert_close(main, student - shares)


def test_uskds_true_class_pulls_by_its_weight(rows):
    chosen = {"name": "uskd", "beta": 0.0, "mu": 0.0}
    place = rows.labels[:, None]
    weights = -value(chosen, rows) / rows.logits.log_softmax(1).gather(1, place)[:, 0]
    one = torch.zeros_like(rows.logits).scatter(1, place, 1.0)
    expected = weights[:, None] * (rows.logits.softmax(1) - one)
    torch.testing.assert_close(gradient(chosen, rows)[0], expected)


def test_uskd_trains_the_auxiliary_head_on_smoothed_labels(rows):
    main, aside = gradient({"name": "uskd", "alpha": 0.0, "beta": 0.0, "mu": 2.0}, rows)
    true = torch.zeros_like(rows.logits).scatter(1, rows.labels[:, None], 0.9) + 0.025
    torch.testing.assert_close(aside, 2.0 * (rows.auxiliary.softmax(1) - true))
    assert main.abs().max() == 0


def test_uskd_has_no_teacher_and_no_temperature(rows):
    before, rows.teacher = value("uskd", rows), rows.logits
    torch.testing.assert_close(value("uskd", rows, 5.0), before)
