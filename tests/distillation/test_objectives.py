"""Losses against known answers, limits and laws."""

import math

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional

from fedkd.distillation import objectives
from fedkd.distillation.targets import entropy, soften

ON_PROBABILITIES = ("forward_kl", "reverse_kl", "jensen_shannon", "cross_entropy")
ALL = (*ON_PROBABILITIES, "mse_logits", "mae_logits")
DIVERGENCES = ON_PROBABILITIES[:3]
TAUS = (0.5, 1.0, 3.0)


def draw(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def loss(name, logits, targets, tau=1.0):
    return getattr(objectives, name)(logits, targets, tau)


def gradient(name, logits, targets, tau=1.0):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(name, logits, targets, tau).sum(), logits)[0]


@pytest.mark.parametrize("name", ALL)
def test_one_loss_a_sample_that_depends_on_that_sample_only(name):
    logits, targets = draw(6, 4), soften(draw(6, 4, seed=1), 1)
    whole = loss(name, logits, targets)
    assert whole.shape == (6,)
    torch.testing.assert_close(whole[2:3], loss(name, logits[2:3], targets[2:3]))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_divergence_and_no_gradient_from_the_student_itself(name, tau):
    logits = draw(6, 4)
    targets = soften(logits, tau)
    zero = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(loss(name, logits, targets, tau), zero, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        gradient(name, logits, targets, tau), torch.zeros_like(logits), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_positive_between_different_distributions(name):
    assert (loss(name, draw(50, 4), soften(draw(50, 4, seed=1), 1)) > 0).all()


def test_known_values_of_two_classes():
    logits = torch.tensor([[0.8, 0.2]], dtype=torch.float64).log()
    targets = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    middle = torch.tensor([0.65, 0.35], dtype=torch.float64)
    forward = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    reverse = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    mixture = (
        0.25 * (math.log(0.5 / middle[0]) + math.log(0.5 / middle[1]))
        + 0.4 * math.log(0.8 / middle[0])
        + 0.1 * math.log(0.2 / middle[1])
    )
    assert loss("forward_kl", logits, targets).item() == pytest.approx(forward)
    assert loss("reverse_kl", logits, targets).item() == pytest.approx(reverse)
    assert loss("jensen_shannon", logits, targets).item() == pytest.approx(mixture)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("name", ["forward_kl", "cross_entropy"])
def test_gradient_is_student_minus_target_over_temperature(name, tau):
    logits, targets = draw(6, 4), soften(draw(6, 4, seed=1), 1)
    expected = (soften(logits, tau) - targets) / tau
    torch.testing.assert_close(gradient(name, logits, targets, tau), expected)


def test_reverse_kl_is_forward_kl_with_the_parts_swapped():
    one, other = draw(6, 4), draw(6, 4, seed=1)
    torch.testing.assert_close(
        loss("reverse_kl", one, soften(other, 1)), loss("forward_kl", other, soften(one, 1))
    )


def test_jensen_shannon_is_symmetric():
    one, other = draw(6, 4), draw(6, 4, seed=1)
    torch.testing.assert_close(
        loss("jensen_shannon", one, soften(other, 1)), loss("jensen_shannon", other, soften(one, 1))
    )


def test_jensen_shannon_is_at_most_ln_2_and_reaches_it():
    assert (
        loss("jensen_shannon", draw(50, 4, scale=20), soften(draw(50, 4, seed=1), 1)) < 0.694
    ).all()
    apart = loss("jensen_shannon", torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert apart.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("tau", TAUS)
def test_cross_entropy_is_forward_kl_plus_the_targets_entropy(tau):
    logits, targets = draw(6, 4), soften(draw(6, 4, seed=1), 1)
    difference = loss("cross_entropy", logits, targets, tau) - loss(
        "forward_kl", logits, targets, tau
    )
    torch.testing.assert_close(difference, entropy(targets))


@pytest.mark.parametrize("name", ["forward_kl", "cross_entropy"])
def test_one_hot_targets_give_hard_cross_entropy(name):
    logits, labels = draw(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    targets = functional.one_hot(labels, 4).double()
    torch.testing.assert_close(
        loss(name, logits, targets), functional.cross_entropy(logits, labels, reduction="none")
    )


def test_mse_is_the_mean_over_classes_whatever_the_temperature():
    logits, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert loss("mse_logits", logits, targets, 7.0).tolist() == [2.5]
    assert loss("mae_logits", logits, targets, 7.0).tolist() == [1.5]


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("name", ON_PROBABILITIES)
def test_exact_zeros_in_the_targets_leave_loss_and_gradient_finite(name, scale):
    logits = draw(4, 4).float() * scale
    targets = torch.eye(4)
    assert loss(name, logits, targets).isfinite().all()
    assert gradient(name, logits, targets).isfinite().all()


@pytest.mark.parametrize("name", ON_PROBABILITIES)
def test_temperature_divides_the_students_logits_only(name):
    logits, targets = draw(6, 4), soften(draw(6, 4, seed=1), 1)
    torch.testing.assert_close(loss(name, logits, targets, 3.0), loss(name, logits / 3, targets))


@pytest.mark.parametrize(
    ("name", "factor"), [("forward_kl", 1), ("reverse_kl", 1), ("jensen_shannon", 1 / 4)]
)
def test_times_tau_squared_the_high_temperature_gradient_is_that_of_matching_logits(name, factor):
    """Hinton, Vinyals & Dean 2015, section 2.1: (z - v) / C for centred logits."""
    logits, teacher = draw(6, 4), draw(6, 4, seed=1)
    difference = (logits - teacher) - (logits - teacher).mean(-1, keepdim=True)
    scaled = 1e4**2 * gradient(name, logits, soften(teacher, 1e4), 1e4)
    torch.testing.assert_close(scaled, factor * difference / 4, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_objectives_run_batched_over_clients(name):
    logits, targets = draw(3, 6, 4), soften(draw(3, 6, 4, seed=1), 1)

    def mean_loss(logits, targets):
        return loss(name, logits, targets, 2.0).mean()

    together = vmap(grad(mean_loss))(logits, targets)
    torch.testing.assert_close(together[1], gradient(name, logits[1], targets[1], 2.0) / 6)


def test_a_plain_function_expects_probabilities_and_tau_squared():
    def own(logits, targets, temperature):
        return logits.sum(-1)

    assert objectives.traits(own) == ("probabilities", True, (), True)
    assert objectives.traits(objectives.forward_kl) == ("probabilities", True, (), True)


def test_logit_matching_declares_itself():
    assert objectives.traits(objectives.mse_logits) == ("logits", False, (), True)
    assert objectives.traits(objectives.mae_logits) == ("logits", False, (), True)


@pytest.mark.parametrize("name", ALL)
def test_every_objective_says_in_a_line_what_it_is(name):
    assert getattr(objectives, name).__doc__.strip().endswith(".")
    assert "\n" not in getattr(objectives, name).__doc__.strip()


@pytest.mark.parametrize("name", ALL)
def test_each_row_may_have_a_temperature_of_its_own(name):
    logits, targets = draw(6, 4), soften(draw(6, 4, seed=1), 1)
    taus = torch.tensor([0.5, 1.0, 2.0, 3.0, 10.0, 20.0], dtype=torch.float64)
    one_by_one = [
        loss(name, logits[row : row + 1], targets[row : row + 1], float(tau))
        for row, tau in enumerate(taus)
    ]
    torch.testing.assert_close(loss(name, logits, targets, taus[:, None]), torch.cat(one_by_one))
