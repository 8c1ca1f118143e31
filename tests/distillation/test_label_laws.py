"""Laws of objectives that fit the true class too: NKD, OFA, Borup's, PLD; DKD's warm-up."""

import math
from itertools import pairwise

import pytest
import torch
from objective_inputs import Rows, draw, gradient, value
from torch.nn.functional import cross_entropy, one_hot

from fedkd.distillation.labelled import label_weight, not_true_logs, not_true_shares, two_way
from fedkd.distillation.objectives import made, traits
from fedkd.distillation.targets import entropy

TAUS = (0.5, 1.0, 3.0)


@pytest.fixture
def rows():
    return Rows()


def true_of(scores, rows):
    return scores.gather(1, rows.labels[:, None])[:, 0]


def hard(rows):
    return cross_entropy(rows.logits, rows.labels, reduction="none")


# --- parts ------------------------------------------------------------------------------------


def test_parts_of_a_row_sum_to_one(rows):
    logs, one = rows.logits.log_softmax(1), torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(two_way(logs, rows.labels).exp().sum(1), one)
    torch.testing.assert_close(not_true_shares(logs.exp(), rows.labels).sum(1), one)
    # The true class's 0 counts as 1.
    torch.testing.assert_close(not_true_logs(logs, rows.labels).exp().sum(1), 2 * one)


def test_what_is_left_beside_a_certain_class_keeps_its_logarithm():
    logs = torch.tensor([[200.0, 0.0, 0.0]]).log_softmax(1)
    found = two_way(logs, torch.tensor([0]))
    assert found[0, 1].item() == pytest.approx(-200 + math.log(2))


# --- DKD --------------------------------------------------------------------------------------


def test_dkd_warms_up_over_a_share_of_the_run(rows):
    warming, whole = {"name": "dkd", "warmup": 0.4}, value("dkd", rows)
    rows.progress = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.5, 0.9]).double()[:, None]
    part = torch.tensor([0.0, 0.25, 0.5, 1.0, 1.0, 1.0]).double()
    torch.testing.assert_close(value(warming, rows), part * whole)
    rows.progress = 0.1
    torch.testing.assert_close(value(warming, rows), 0.25 * whole)


def test_dkd_needs_progress_only_to_warm_up():
    assert traits(made("dkd")).needs == ("labels",)
    assert traits(made({"name": "dkd", "warmup": 0.4})).needs == ("labels", "progress")


# --- NKD --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", TAUS)
def test_nkd_without_the_rest_is_cross_entropy_by_the_teachers_trust(rows, tau):
    found = value({"name": "nkd", "gamma": 0.0}, rows, tau)
    torch.testing.assert_close(found, true_of(rows.teacher.softmax(1), rows) * hard(rows))


@pytest.mark.parametrize("tau", TAUS)
def test_nkd_of_the_rest_is_not_true_and_an_entropy(rows, tau):
    rest = value("nkd", rows, tau) - value({"name": "nkd", "gamma": 0.0}, rows, tau)
    shares = not_true_shares(rows.targets("nkd", tau), rows.labels)
    expected = value("not_true", rows, tau) + entropy(shares)
    torch.testing.assert_close(rest, 1.5 * tau**2 * expected)


def test_soft_cross_entropy_is_nkd_and_what_the_student_gives_the_rest(rows):
    true, rest = value({"name": "nkd", "gamma": 0.0}, rows), value({"name": "nkd"}, rows)
    others = 1 - true_of(rows.targets("nkd"), rows)
    left = two_way(rows.logits.log_softmax(1), rows.labels)[:, 1]
    found = true + others * (rest - true) / 1.5 - others * left
    torch.testing.assert_close(found, value("cross_entropy", rows))


# --- OFA --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", TAUS)
def test_ofa_and_power_at_1_are_soft_cross_entropy(rows, tau):
    expected = value("cross_entropy", rows, tau)
    torch.testing.assert_close(value("ofa", rows, tau), expected)
    torch.testing.assert_close(value("power", rows, tau), expected)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_ofa_and_power_fit_their_enhanced_targets(rows, epsilon):
    targets, true = rows.targets("ofa"), one_hot(rows.labels, 4)
    for name, best in (("ofa", (targets + true) ** epsilon - true), ("power", targets**epsilon)):
        found = gradient({"name": name, "epsilon": epsilon}, rows, logits=best.log())[0]
        torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)


def test_the_true_class_has_more_of_ofas_target_as_epsilon_grows(rows):
    targets, true = rows.targets("ofa"), one_hot(rows.labels, 4)
    shares = []
    for epsilon in (1.0, 1.5, 2.0, 3.0):
        enhanced = (targets + true) ** epsilon - true
        shares.append(true_of(enhanced / enhanced.sum(1, keepdim=True), rows))
    assert all((after > before).all() for before, after in pairwise(shares))


# --- Borup's ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_ground_truth_weights_are_a_squared_error_to_a_mixture(rows, alpha):
    chosen, true = {"name": "borup", "alpha": alpha}, one_hot(rows.labels, 4).double()
    targets = rows.targets("borup")
    mixed, plain = alpha * true + (1 - alpha) * targets, {"name": "borup", "alpha": 0.0}
    torch.testing.assert_close(gradient(chosen, rows)[0], gradient(plain, rows, targets=mixed)[0])
    apart = alpha * (1 - alpha) * (true - targets).square().sum(1) / 4
    torch.testing.assert_close(value(chosen, rows), value(plain, rows, targets=mixed) + apart)


def test_the_weight_of_labels_is_that_of_the_best_blend():
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    one, other = draw(6, 4).softmax(1), draw(6, 4, seed=1).softmax(1)
    best = label_weight(one, other, labels)
    true = one_hot(labels, 4)
    errors = [
        (true - share * one - (1 - share) * other).square().sum()
        for share in torch.linspace(0, 1, 1001)
    ]
    assert best == pytest.approx(int(torch.stack(errors).argmin()) / 1000, abs=1e-3)
    assert label_weight(true.double(), other, labels) == 1
    assert label_weight(other, true.double(), labels) == 0
    assert label_weight(other, other, labels) == 1


# --- PLD --------------------------------------------------------------------------------------


def test_pld_of_a_certain_teacher_who_is_right_is_cross_entropy(rows):
    certain = one_hot(rows.labels, 4).double()
    torch.testing.assert_close(value("pld", rows, targets=certain), hard(rows))


def test_pld_of_a_teacher_who_knows_nothing_is_listmle_over_the_classes(rows):
    """Ties are in the order of classes."""
    found = value("pld", rows, targets=torch.full((6, 4), 0.25, dtype=torch.float64))
    for row, label in enumerate(rows.labels.tolist()):
        order = [label, *(c for c in range(4) if c != label)]
        scores = rows.logits[row, order]
        listed = sum(scores[k:].logsumexp(0) - scores[k] for k in range(4))
        torch.testing.assert_close(found[row], listed / 4)


def test_plds_gradient_is_that_of_one_choice_after_another(rows):
    targets, expected = rows.targets("pld"), torch.zeros_like(rows.logits)
    for row, label in enumerate(rows.labels.tolist()):
        order = sorted(range(4), key=lambda c: (c != label, -float(targets[row, c])))
        for k, c in enumerate(order):
            left = order[k:]
            expected[row, left] += targets[row, c] * rows.logits[row, left].softmax(0)
            expected[row, c] -= targets[row, c]
    torch.testing.assert_close(gradient("pld", rows)[0], expected)


def test_pld_is_convex_and_falls_to_0_as_margins_grow(rows):
    other = draw(6, 4, seed=7)
    middle = value("pld", rows, logits=(rows.logits + other) / 2)
    assert (2 * middle <= value("pld", rows) + value("pld", rows, logits=other) + 1e-12).all()
    rows.labels = rows.teacher.argmax(1)
    losses = [value("pld", rows, logits=scale * rows.teacher) for scale in (1, 3, 1000)]
    assert (losses[1] < losses[0]).all()
    assert losses[2].max() < 1e-6


def test_pld_does_not_stand_still_at_the_teacher(rows):
    rows.labels = rows.teacher.argmax(1)
    assert gradient("pld", rows, logits=rows.teacher)[0].abs().max() > 1e-3


def test_plds_temperature_softens_the_targets_alone(rows):
    targets = rows.targets("pld", 4.0)
    torch.testing.assert_close(value("pld", rows, 4.0), value("pld", rows, 1.0, targets))
