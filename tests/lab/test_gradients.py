"""Gradient canaries: audited epsilon of DP-SGD at most the formal one, unless DP-SGD is broken."""

import math
from itertools import repeat

import numpy as np
import opacus.optimizers.optimizer as opacus_optimizer
import pytest
import torch
from scipy.stats import norm

from fedkd import run as simulate
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.lab import gradients
from fedkd.lab.gradients import (
    AT_ONCE,
    ATTACKS,
    Bound,
    audit_gradients,
    log_likelihood_ratio,
    noise_at_most,
    sizes,
)
from fedkd.privacy import dpsgd
from fedkd.privacy.dpsgd import DPSGD
from fedkd.privacy.epsilons import PrivateSteps, training_epsilon
from fedkd.privacy.guarantees import guarantee
from fedkd.privacy.releases import Release
from fedkd.results import Run
from fedkd.training import fit

NOISE = 2.0
STEPS = [[0.5, 4]]


@pytest.fixture
def made(tmp_path):
    """A function that makes up a finished run whose clients took these noisy steps."""

    def make(*trained, batch_size=16, samples=30, **dp):
        tables = {"batch_size": batch_size, "dp": {"noise_multiplier": NOISE, **dp}}
        experiment = Experiment.from_dict({"training": tables})
        run = Run.at(experiment, tmp_path / "mine").begin(experiment)
        clients = len(trained)
        run.write_partition(["a"], np.full((clients, 1), samples), [0] * clients, ["m"] * clients)
        lines = [
            Release(1, client, "Predict", "soft_labels", 5).to_dict() | {"dp_training": steps}
            for client, steps in enumerate(trained)
        ]
        run.append_round({"round": 1}, releases=lines)
        run.write_summary({"own_accuracy_mean": 0.5})
        return run

    return make


# --- the mechanism as it should be --------------------------------------------------------------


def test_no_more_is_proved_than_the_formal_epsilon_and_not_much_less(made):
    run = made(STEPS)
    found = audit_gradients(run, 8 * AT_ONCE)
    assert found.refuted == []
    assert all(0 <= bound.epsilon <= bound.formal for bound in found.bounds)
    assert found.bounds[0].delta == 1e-5
    assert found.bounds[0].formal == guarantee(run.releases, run.experiment).epsilon
    assert found.bounds[0].epsilon > 0
    assert NOISE <= found.noise_at_most < 2 * NOISE
    assert found.bounds[0].epsilon < found.epsilon_as_sampled_gaussian < found.bounds[0].formal
    assert (found.canaries, found.fits) == (8 * AT_ONCE, 16)
    assert found.inside == pytest.approx(4 * AT_ONCE, abs=200)
    assert found == audit_gradients(run, 8 * AT_ONCE)


def test_of_several_clients_the_one_that_is_worst_off_is_attacked_at_all_its_steps(made):
    run = made(STEPS, [[0.5, 3], [0.5, 5]], [[0.5, 2]])
    found = audit_gradients(run, 1)
    assert (found.client, found.steps, found.rate) == (1, 8, 0.5)
    assert found.bounds[0].formal == training_epsilon([PrivateSteps(NOISE, 0.5, 8)], 1e-5)


def steps_taken(monkeypatch):
    """Sampling rate and steps of every fit that an audit makes."""
    taken = []

    def watched(*given, dp, **how):
        fit(*given, dp=dp, **how)
        taken.append([dp.sample_rate, dp.steps])

    monkeypatch.setattr(gradients, "fit", watched)
    return taken


def test_sampling_rate_and_steps_are_those_of_the_ledger(made, monkeypatch):
    taken = steps_taken(monkeypatch)
    trained = [[0.5, 4], [0.25, 3]]
    found = audit_gradients(made(trained), 1)
    # A fit with canaries, and one without.
    assert taken == 2 * trained
    assert (found.rate, found.steps) == (0.5, 7)


@pytest.mark.slow
def test_a_run_is_audited_by_its_own_sampling_rate_and_steps(small, tmp_path, monkeypatch):
    keys = ("rounds=2", "training.dp.noise_multiplier=2", "strategy.name=fedavg")
    run = simulate(small(*keys, "data.clients=2"), tmp_path / "run")
    taken = steps_taken(monkeypatch)
    found = audit_gradients(run)
    lines = [line for line in run.releases if line["client"] == found.client]
    ledger = [steps for line in lines for steps in line.get("dp_training", [])]
    # 60 samples in batches of 16, and two passes in each of two rounds.
    assert ledger == [[1 / 4, 8]] * 2
    assert taken == found.fits // 2 * 2 * ledger
    assert found.refuted == []
    assert 2 <= found.noise_at_most < 2.5


def test_a_canary_that_all_steps_draw_is_a_gaussian_mechanism(made):
    """What is seen is 1 with it and 0 without, and noise of the noise multiplier."""
    mechanism = gradients._Mechanism(
        made([[1.0, 4]], batch_size=30), 0, [PrivateSteps(2.0, 1.0, 4)]
    )
    inside = torch.arange(AT_ONCE) % 2 == 0
    seen = mechanism.updates(inside, 1)
    assert seen.shape == (4, AT_ONCE)
    assert seen[:, inside].mean() == pytest.approx(1, abs=0.2)
    assert seen[:, ~inside].mean() == pytest.approx(0, abs=0.2)
    assert seen[:, ~inside].std() == pytest.approx(NOISE, rel=0.1)
    ratio = log_likelihood_ratio(seen, np.ones((4, 1)), NOISE)
    assert ratio == pytest.approx((norm.logpdf(seen, 1, 2) - norm.logpdf(seen, 0, 2)).sum(0))


def test_no_canary_moves_what_is_seen_of_another(made):
    mechanism = gradients._Mechanism(made(STEPS), 0, [PrivateSteps(NOISE, 0.5, 4)])
    inside = torch.arange(AT_ONCE) % 2 == 0
    less = inside & (torch.arange(AT_ONCE) != 4)
    one, other = (mechanism.updates(each, 1) for each in (inside, less))
    changed = np.flatnonzero((one != other).any(0))
    assert changed.tolist() == [4]


@pytest.mark.parametrize("norm", [0.01, 1000.0])
def test_the_clipping_norm_changes_nothing(norm, made):
    mechanism = gradients._Mechanism(
        made(STEPS, max_grad_norm=norm, noise_multiplier=1e-3), 0, [PrivateSteps(1e-3, 0.5, 4)]
    )
    seen = mechanism.updates(torch.ones(AT_ONCE, dtype=torch.bool), 1)
    assert np.abs(seen - seen.round()).max() < 0.01
    assert {*seen.round().ravel()} == {0, 1}
    assert seen.mean() == pytest.approx(0.5, abs=0.05)


def test_noise_of_the_operating_system_is_audited_too(made):
    run = made(STEPS)
    table = run.experiment.release.model_copy(update={"secure": True})
    mechanism = gradients._Mechanism(run, 0, [PrivateSteps(NOISE, 0.5, 4)])
    mechanism.experiment = run.experiment.model_copy(update={"release": table})
    nobody = torch.zeros(AT_ONCE, dtype=torch.bool)
    one, other = (mechanism.updates(nobody, 1) for _ in range(2))
    assert one.std() == pytest.approx(NOISE, rel=0.1)
    assert not np.array_equal(one, other)


# --- broken mechanisms --------------------------------------------------------------------------


def without_noise_to_speak_of(monkeypatch):
    real = opacus_optimizer._generate_noise
    monkeypatch.setattr(
        opacus_optimizer,
        "_generate_noise",
        lambda std, *given, **how: real(std / 10, *given, **how),
    )


def with_the_same_noise_in_every_fit(monkeypatch):
    real = dpsgd.noise_generator
    monkeypatch.setattr(dpsgd, "noise_generator", lambda seed, *purpose, **how: real(0, **how))


def with_the_same_noise_in_every_step(monkeypatch):
    real = opacus_optimizer._generate_noise

    def again(std, reference, generator, **how):
        fresh = torch.Generator().manual_seed(generator.initial_seed())
        return real(std, reference, fresh, **how)

    monkeypatch.setattr(opacus_optimizer, "_generate_noise", again)


def with_the_same_noise_in_every_coordinate(monkeypatch):
    real = opacus_optimizer._generate_noise

    def alike(std, reference, generator, **how):
        return real(std, reference.new_zeros(1), generator, **how).expand_as(reference)

    monkeypatch.setattr(opacus_optimizer, "_generate_noise", alike)


def without_clipping(monkeypatch):
    def summed(self):
        for parameter in self.params:
            parameter.summed_grad = self._get_flat_grad_sample(parameter).sum(0)

    monkeypatch.setattr(opacus_optimizer.DPOptimizer, "clip_and_accumulate", summed)
    monkeypatch.setattr(opacus_optimizer, "_check_processed_flag", lambda tensor: None)


def drawing_everybody_in_every_step(monkeypatch):
    real = DPSGD.batches

    def everybody(self, count, size):
        return real(self, count, size)[0], repeat(torch.arange(count))

    monkeypatch.setattr(DPSGD, "batches", everybody)


@pytest.mark.parametrize(
    "broken",
    [
        without_noise_to_speak_of,
        with_the_same_noise_in_every_fit,
        with_the_same_noise_in_every_step,
        with_the_same_noise_in_every_coordinate,
        without_clipping,
        drawing_everybody_in_every_step,
    ],
)
def test_a_broken_mechanism_is_refuted(broken, made, monkeypatch):
    broken(monkeypatch)
    monkeypatch.setattr(gradients, "noise_at_most", lambda phases, bounds: None)
    assert audit_gradients(made(STEPS), 2 * AT_ONCE).refuted


def test_without_noise_as_much_is_proved_as_the_repetitions_allow(made):
    run = made([[1.0, 4]], batch_size=30, noise_multiplier=1e-6)
    found = audit_gradients(run, 2 * AT_ONCE)
    assert found.bounds[0].epsilon == found.largest > 4
    assert found.refuted == []


# --- what follows -------------------------------------------------------------------------------


def test_the_noise_that_bounds_allow_is_that_which_they_are_of():
    phases = [PrivateSteps(1.0, 1.0, 4)]
    truth = [PrivateSteps(3.0, 1.0, 4)]
    bounds = [Bound(delta, training_epsilon(truth, delta), 0.0) for delta in (1e-5, 0.01)]
    assert 3.0 <= noise_at_most(phases, bounds) <= 3.0 * 1.021
    less = [PrivateSteps(0.3, 1.0, 4)]
    bounds = [Bound(0.01, training_epsilon(less, 0.01), 0.0)]
    assert 0.3 <= noise_at_most(phases, bounds) <= 0.3 * 1.021
    assert noise_at_most(phases, [Bound(0.01, 0.0, 1.0)]) is None
    sampled = [PrivateSteps(3.0, 0.5, 4)]
    bound = Bound(0.01, training_epsilon(sampled, 0.01), 0.0)
    assert 3.0 <= noise_at_most([PrivateSteps(1.0, 0.5, 4)], [bound]) <= 3.0 * 1.021
    # In one step of many a canary is in no batch, whatever the noise: nothing explains this.
    rare = [PrivateSteps(8.0, 0.01, 1)]
    assert noise_at_most(rare, [Bound(0.1, 1.0, 0.0)]) < 8 / 8


def test_records_of_a_fit_are_the_clients_times_a_whole_number():
    phase = PrivateSteps(1.0, 1 / 3, 5)
    # 65 samples in batches of 32: 3 steps a pass.
    assert sizes(phase, 65, 32) == (8 * 65, 8 * 32)
    # Of samples that are not known, as many as give the ledger's rate.
    assert sizes(phase, 0, 32) == sizes(phase, 64, 32) == (6 * 96, 6 * 32)
    for count, size in (sizes(phase, 65, 32), sizes(phase, 0, 32)):
        assert -(-count // size) == 3


def test_a_ratio_under_sampling_is_that_of_a_mixture():
    seen = np.array([[0.3], [-1.0]])
    mixture = 0.75 * norm.pdf(seen, 0, 1.5) + 0.25 * norm.pdf(seen, 1, 1.5)
    wanted = np.log(mixture / norm.pdf(seen, 0, 1.5)).sum(0)
    assert log_likelihood_ratio(seen, np.full((2, 1), 0.25), 1.5) == pytest.approx(wanted)
    # As far away as floats go.
    assert np.isfinite(log_likelihood_ratio(seen, np.full((2, 1), 0.25), 1e-6)).all()
    assert math.isfinite(log_likelihood_ratio(seen, np.ones((2, 1)), 1e6)[0])


def test_runs_without_noisy_steps_are_one_line(made):
    with pytest.raises(FedkdError, match=r"training\.dp\.noise_multiplier = 0; allowed: above 0"):
        audit_gradients(made(noise_multiplier=0.0))


def test_a_ledger_without_noisy_steps_is_one_line(made):
    with pytest.raises(FedkdError, match="no noisy step in its ledger"):
        audit_gradients(made([]))
    assert len(ATTACKS) == 3
