"""Epsilon against delta, and mu of Gaussian DP."""

import math

import pytest

from fedkd.experiment import Experiment
from fedkd.privacy.epsilons import PrivateSteps, gaussian_epsilon, gaussian_mu, training_epsilon
from fedkd.privacy.guarantees import DELTAS, guarantees, profiles
from fedkd.privacy.releases import Release

GAUSSIAN = Release(1, 0, "Predict", "soft_labels", 5, "gaussian", scale=1.0, rho=0.5).to_dict()
LAPLACE = Release(
    *(1, 0, "Predict", "soft_labels", 5, "laplace"), scale=1.0, rho=0.1, epsilon=1.0
).to_dict()


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
def test_mu_is_found_again_from_epsilon(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    if epsilon:
        assert gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-6)
    else:
        assert gaussian_mu(epsilon, delta) >= mu
    assert gaussian_epsilon(gaussian_mu(0.0, delta), delta) == pytest.approx(0, abs=1e-9)


def test_of_gaussian_noise_the_profile_is_that_of_one_mu():
    (found,) = profiles([GAUSSIAN], Experiment())
    assert found.exact
    assert found.mu == 1.0
    assert found.epsilons == pytest.approx([gaussian_epsilon(1.0, delta) for delta in DELTAS])
    assert list(found.epsilons) == sorted(found.epsilons, reverse=True)
    assert found.text((1e-6, 1e-2)) == (
        f"ε {gaussian_epsilon(1, 1e-6):.3g} at δ 1e-06, {gaussian_epsilon(1, 1e-2):.3g} at 0.01; "
        "GDP μ = 1"
    )


def test_of_other_noise_mu_is_of_a_gaussian_that_promises_no_more():
    (found,) = profiles([GAUSSIAN, LAPLACE], Experiment())
    assert not found.exact
    for delta, epsilon in zip(found.deltas, found.epsilons, strict=True):
        assert epsilon <= gaussian_epsilon(found.mu, delta) + 1e-9
    assert "no more than that of GDP μ" in found.text()


def test_of_private_training_it_is_that_of_privacy_losses():
    experiment = Experiment.from_dict({"training": {"dp": {"noise_multiplier": 2.0}}})
    sent = Release(1, 0, "Predict", "soft_labels", 5).to_dict()
    (found,) = profiles([sent | {"dp_training": [[0.1, 30]]}], experiment, (1e-8, 1e-5, 1e-3))
    steps = [PrivateSteps(2.0, 0.1, 30)]
    assert found.epsilons == tuple(training_epsilon(steps, delta) for delta in found.deltas)
    assert not found.exact


def test_where_nothing_is_guaranteed_there_is_none():
    sent = Release(1, 0, "Predict", "soft_labels", 5).to_dict()
    assert profiles([sent], Experiment()) == []


def test_it_passes_through_the_epsilon_that_is_stated():
    average = Release(1, None, "Average", "parameters", 1, "gaussian", rho=0.02).to_dict()
    lines = [average | {"clients": [0, 1]} for _ in range(4)]
    experiment = Experiment()
    (found,) = profiles(lines, experiment, (experiment.release.delta,))[1:]
    stated = guarantees(lines, experiment)[1]
    assert found.epsilons == (stated.epsilon,)
    assert found.mu == pytest.approx(math.sqrt(2 * 0.08))
