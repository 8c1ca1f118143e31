"""Laws of what is made of knowledge for an objective, and what is refused."""

import pytest
import torch

from fedkd import registry
from fedkd.distillation import objectives
from fedkd.distillation.knowledge import Knowledge, blind
from fedkd.distillation.targets import soften

DRAW = torch.Generator().manual_seed(3)
LOGITS = torch.randn(6, 5, generator=DRAW, dtype=torch.float64)


@pytest.fixture
def correlated():
    """An objective on logits that does not see a constant, with the name ``correlated``."""

    @objectives.declare(targets="logits", tau_squared=False)
    def correlated(logits, targets, temperature):
        apart = logits - targets
        return (apart - apart.mean(-1, keepdim=True)).square().mean(-1)

    registry.register("objectives", "correlated")(correlated)
    return correlated


def test_what_is_taken_as_it_is_stays_the_same_tensor():
    assert Knowledge().targets("forward_kl", LOGITS, 3.0) is LOGITS
    assert Knowledge("logits").targets("mse_logits", LOGITS, 3.0) is LOGITS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, torch.linspace(0.5, 3, 6)])
def test_logits_are_softened_at_the_temperature_of_the_term(temperature):
    tau = temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature
    made = Knowledge("logits").targets("forward_kl", LOGITS, temperature)
    assert torch.equal(made, soften(LOGITS, tau))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_logits_of_probabilities_are_the_logits_up_to_a_constant(temperature, correlated):
    made = Knowledge().targets("correlated", soften(LOGITS, temperature), temperature)
    constants = made - LOGITS
    assert torch.allclose(constants, constants[:, :1].expand(-1, 5), atol=1e-6)
    assert torch.allclose(correlated(LOGITS, made, 1.0), torch.zeros(6, dtype=made.dtype))


def test_a_probability_of_zero_and_a_row_without_a_target(correlated):
    rows = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])
    made = Knowledge().targets("correlated", rows, 2.0)
    assert made[0].isfinite().all()
    assert made[1].isnan().all()


def test_who_sees_a_constant_is_found_out_and_refused(correlated):
    assert blind(correlated)
    assert Knowledge().unfit("correlated") is None
    for name in ("mse_logits", "mae_logits"):
        assert not blind(objectives.made(name))
        assert "takes logits, and what is distilled here are probabilities" in Knowledge().unfit(
            name
        )
        assert Knowledge("logits").unfit(name) is None


def test_labels_that_are_not_there_are_asked_for_in_one_line():
    why = Knowledge().unfit("dkd")
    assert why.startswith("strategy.objective = 'dkd' needs labels, and")
    assert '{name = "dkd", labels = "argmax"}' in why
    assert "\n" not in why
    assert Knowledge(labelled=True).unfit({"name": "dkd", "beta": 2.0}) is None
