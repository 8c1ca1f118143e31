"""Objectives that need labels, and those with options, against known answers, limits and laws."""

import math

import pytest
import torch
from torch.func import grad, vmap
from torch.nn.functional import log_softmax

from fedkd import FedkdError, registry
from fedkd.distillation.labelled import DKD, not_true
from fedkd.distillation.objectives import Objective, declare, forward_kl, made, traits

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
DIVERGENCES = ("not_true", "dkd")
NAMES = (*DIVERGENCES, "nkd", "ofa", "borup", "pld")
TAUS = (0.5, 1.0, 3.0)


def draw(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradient(objective, logits, targets, tau=1.0, labels=LABELS):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(objective(logits, targets, tau, labels=labels).sum(), logits)[0]


# --- not-true ---------------------------------------------------------------------------------


def test_not_true_is_the_kl_of_what_is_left_without_the_true_class():
    """By hand: the student says 1 : 3 of the two others, the teacher 1 : 1."""
    logits = torch.tensor([[5.0, 0.0, math.log(3.0)]], dtype=torch.float64)
    targets = torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64)
    found = not_true(logits, targets, 1.0, labels=torch.tensor([0]))
    assert found.item() == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))


@pytest.mark.parametrize("tau", TAUS)
def test_not_true_is_forward_kl_where_the_true_class_is_taken_out(tau):
    logits, targets = draw(6, 4), draw(6, 4, seed=1).softmax(1)
    others = torch.stack([torch.tensor([c for c in range(4) if c != y]) for y in LABELS])
    rest = targets.gather(1, others)
    expected = forward_kl(logits.gather(1, others), rest / rest.sum(1, keepdim=True), tau)
    torch.testing.assert_close(not_true(logits, targets, tau, labels=LABELS), expected)


def test_not_true_does_not_see_the_true_class_of_either_side():
    logits, teacher = draw(6, 4), draw(6, 4, seed=1)
    place, before = LABELS[:, None], not_true(draw(6, 4), teacher.softmax(1), 3.0, labels=LABELS)
    changed = logits.scatter(1, place, 7.0), teacher.scatter(1, place, -2.0).softmax(1)
    torch.testing.assert_close(not_true(*changed, 3.0, labels=LABELS), before)


def test_not_true_has_no_gradient_at_the_true_class_at_all():
    found = gradient(not_true, draw(6, 4), draw(6, 4, seed=1).softmax(1))
    assert bool((found.gather(1, LABELS[:, None]) == 0).all())
    assert bool((found.abs().sum(1) > 0).all())
    torch.testing.assert_close(found.sum(1), torch.zeros(6, dtype=torch.float64))


def test_not_true_of_two_classes_says_nothing():
    logits, targets = draw(6, 2), draw(6, 2, seed=1).softmax(1)
    assert not_true(logits, targets, 1.0, labels=LABELS % 2).abs().max() < 1e-12


def test_not_true_makes_up_for_no_temperature():
    assert traits(not_true) == ("probabilities", False, ("labels",), True)


# --- decoupled --------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", TAUS)
def test_dkd_without_the_true_class_is_not_true(tau):
    logits, targets = draw(6, 4), draw(6, 4, seed=1).softmax(1)
    found = DKD(alpha=0, beta=1)(logits, targets, tau, labels=LABELS)
    torch.testing.assert_close(found, not_true(logits, targets, tau, labels=LABELS))


@pytest.mark.parametrize("tau", TAUS)
def test_dkd_weighted_by_what_the_teacher_gives_the_others_is_forward_kl(tau):
    """Zhao et al. 2022, equation 7."""
    logits, targets = draw(6, 4), draw(6, 4, seed=1).softmax(1)
    binary = DKD(alpha=1, beta=0)(logits, targets, tau, labels=LABELS)
    others = 1 - targets.gather(1, LABELS[:, None])[:, 0]
    whole = binary + others * not_true(logits, targets, tau, labels=LABELS)
    torch.testing.assert_close(whole, forward_kl(logits, targets, tau))


# --- all that need labels ---------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("tau", TAUS)
def test_the_student_itself_teaches_nothing(name, tau):
    logits = draw(6, 4)
    targets = (logits / tau).softmax(1)
    zero = torch.zeros(6, dtype=torch.float64)
    found = made(name)(logits, targets, tau, labels=LABELS)
    torch.testing.assert_close(found, zero, atol=1e-12, rtol=0)
    assert gradient(made(name), logits, targets, tau).abs().max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    logits, targets = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).softmax(1)
    assert torch.autograd.gradcheck(
        lambda logits: made(name)(logits, targets, 2.0, labels=LABELS), logits
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", ["uniform", "certain", "certain and wrong"])
def test_loss_and_gradient_are_finite_at_the_edge(name, targets):
    logits = 100.0 * torch.eye(4)[[0, 1, 3, 2, 0, 1]] - 100.0 * torch.eye(4)[[1, 0, 0, 0, 2, 2]]
    given = {
        "uniform": torch.full((6, 4), 0.25),
        "certain": torch.eye(4)[LABELS],
        "certain and wrong": torch.eye(4)[(LABELS + 1) % 4],
    }[targets]
    assert made(name)(logits, given, 1.0, labels=LABELS).isfinite().all()
    assert gradient(made(name), logits, given).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_on_a_row_and_the_order_of_classes_do_not_matter(name):
    logits, targets = draw(6, 4), draw(6, 4, seed=1).softmax(1)
    expected = made(name)(logits, targets, 2.0, labels=LABELS)
    moved = made(name)(logits + draw(6, 1, seed=2), targets, 2.0, labels=LABELS)
    torch.testing.assert_close(moved, expected)
    order = torch.tensor([2, 0, 3, 1])
    labels = order.argsort()[LABELS]
    permuted = made(name)(logits[:, order], targets[:, order], 2.0, labels=labels)
    torch.testing.assert_close(permuted, expected)


@pytest.mark.parametrize("name", NAMES)
def test_they_run_batched_over_clients(name):
    logits, targets = draw(3, 6, 4), draw(3, 6, 4, seed=1).softmax(-1)
    labels = torch.stack([LABELS, LABELS.flip(0), (LABELS + 1) % 4])

    def mean_loss(logits, targets, labels):
        return made(name)(logits, targets, 2.0, labels=labels).mean()

    together = vmap(grad(mean_loss))(logits, targets, labels)
    alone = gradient(made(name), logits[1], targets[1], 2.0, labels[1]) / 6
    torch.testing.assert_close(together[1], alone)


# --- options ----------------------------------------------------------------------------------


def test_a_name_alone_has_the_options_defaults():
    assert made("dkd") == made({"name": "dkd"}) == DKD(alpha=1, beta=8)
    assert made({"name": "dkd", "beta": 2}).beta == 2
    assert made({"name": "forward_kl"}) is forward_kl


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        (
            {"name": "dkd", "gamma": 1},
            r"objective\.gamma is not a known key; known here: alpha, beta",
        ),
        (
            {"name": "dkd", "beta": -1},
            r"objective\.beta = -1 is not allowed: .*greater than or equal",
        ),
        ({"name": "dkd", "beta": "1"}, r"objective\.beta = '1' is not allowed: .*without quotes"),
        (
            {"name": "forward_kl", "beta": 1},
            r"objective\.beta is not a known key; known here: none",
        ),
        ({"beta": 1}, r"objective\.name = None is not allowed; known: .*cross_entropy, dhkd"),
        ("dkkd", r"objective = 'dkkd' is not known \(did you mean 'dkd'\?\)"),
    ],
)
def test_wrong_options_are_one_line(chosen, line):
    with pytest.raises(FedkdError, match=line) as error:
        made(chosen)
    assert "\n" not in str(error.value)


def test_an_objective_of_ones_own_has_options_as_a_method_has():
    @registry.register("objectives", "sharper")
    @declare(tau_squared=False)
    class Sharper(Objective):
        """KL to sharpened targets."""

        power: float = 2.0

        def __call__(self, logits, targets, temperature):
            sharp = targets**self.power
            return forward_kl(logits, sharp / sharp.sum(-1, keepdim=True), temperature)

    assert made({"name": "sharper", "power": 3.0}).power == 3
    assert traits(made("sharper")) == ("probabilities", False, (), True)
    logits, targets = draw(6, 4), draw(6, 4, seed=1)
    found = made("sharper")(logits, targets.softmax(1), 1.0)
    torch.testing.assert_close(found, forward_kl(logits, log_softmax(2 * targets, 1).exp(), 1.0))


def test_what_nobody_can_give_cannot_be_needed():
    with pytest.raises(FedkdError, match="cannot need 'weather'; it may need: labels"):
        declare(needs=("weather",))


@pytest.mark.parametrize("option", ["name", "kind"])
def test_an_option_has_no_name_that_tables_or_messages_use(option):
    with pytest.raises(FedkdError, match=f"cannot have an option '{option}'"):
        type("Mine", (Objective,), {"__annotations__": {option: str}, "__module__": __name__})
