"""Laws of BD-KD and of the KL that is forward on the likeliest classes."""

import pytest
import torch
from objective_inputs import Rows, gradient, value

from fedkd.distillation.objectives import made
from fedkd.distillation.targets import entropy

TAUS = (0.5, 1.0, 3.0)


@pytest.fixture
def rows():
    return Rows()


@pytest.mark.parametrize("tau", TAUS)
def test_bd_kd_of_equal_weights_is_jeffreys_divergence(rows, tau):
    both = value("forward_kl", rows, tau) + value("reverse_kl", rows, tau)
    for width in (0.0, 0.3):
        found = value({"name": "bd_kd", "delta": 1.0, "width": width}, rows, tau)
        torch.testing.assert_close(found, both)


def test_bd_kd_weighs_forward_kl_where_the_student_is_surer(rows):
    forward, reverse = value("forward_kl", rows), value("reverse_kl", rows)
    surer = entropy(rows.logits.softmax(1)) < entropy(rows.targets("bd_kd"))
    assert 0 < int(surer.sum()) < 6
    expected = torch.where(surer, 3 * forward + reverse, forward + 3 * reverse)
    torch.testing.assert_close(value({"name": "bd_kd", "delta": 3.0}, rows), expected)


def test_bd_kds_weights_have_no_gradient(rows):
    surer = entropy(rows.logits.softmax(1)) < entropy(rows.targets("bd_kd"))
    forward, reverse = gradient("forward_kl", rows)[0], gradient("reverse_kl", rows)[0]
    expected = torch.where(surer[:, None], 2 * forward + reverse, forward + 2 * reverse)
    torch.testing.assert_close(gradient("bd_kd", rows)[0], expected)
    apart = entropy(rows.targets("bd_kd")) - entropy(rows.logits.softmax(1))
    share = (apart / 0.5).sigmoid()[:, None]
    expected = (1 + share) * forward + (2 - share) * reverse
    torch.testing.assert_close(gradient({"name": "bd_kd", "width": 0.5}, rows)[0], expected)


@pytest.mark.parametrize("width", [0.0, 0.5])
def test_bd_kd_swaps_its_roles_with_teacher_and_student(rows, width):
    chosen = {"name": "bd_kd", "width": width}
    before, rows.logits, rows.teacher = value(chosen, rows), rows.teacher, rows.logits
    torch.testing.assert_close(value(chosen, rows), before)


def test_bd_kd_of_little_width_is_that_of_none(rows):
    found = value({"name": "bd_kd", "width": 1e-6}, rows)
    torch.testing.assert_close(found, value("bd_kd", rows))


@pytest.mark.parametrize("tau", TAUS)
def test_all_classes_forwards_are_forward_kl_and_none_reverse_kl(rows, tau):
    for k, name in ((4, "forward_kl"), (9, "forward_kl"), (0, "reverse_kl")):
        found = value({"name": "top_k_kl", "k": k}, rows, tau)
        torch.testing.assert_close(found, value(name, rows, tau))


def test_a_tenth_of_the_classes_is_forwards_unless_it_is_said():
    teacher, student = torch.randn(5, 40).softmax(1), torch.randn(5, 40)
    found = made("top_k_kl")(student, teacher, 1.0)
    torch.testing.assert_close(found, made({"name": "top_k_kl", "k": 4})(student, teacher, 1.0))


def test_one_class_forwards_by_hand():
    teacher, student = torch.tensor([[0.7, 0.3]]).double(), torch.tensor([[0.4, 0.6]]).double()
    found = made({"name": "top_k_kl", "k": 1})(student.log(), teacher, 1.0)
    logs = (teacher / student).log()[0]
    assert found.item() == pytest.approx(
        float(0.7 * logs[0] - 0.7 + 0.4) + float(-0.6 * logs[1] - 0.6 + 0.3)
    )
