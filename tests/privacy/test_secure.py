"""Noise of the operating system: its law, where it comes from, and what is said of it."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedkd import run
from fedkd.effects import without_effect
from fedkd.privacy.dpsgd import DPSGD
from fedkd.privacy.guarantees import guarantees
from fedkd.random import SystemNoise
from fedkd.training_tables import PrivateTraining

SECURE = "release.secure=true"
LABELS = ("strategy.name=uniform", "release.mechanism=gaussian", "release.scale=0.5")
QUICK = (
    *("training.local_epochs=0.1", "evaluate_every=100", "engine.cohort=off", "data.clients=3"),
    *("data.transfer.size=10", "data.samples_per_client=16", "engine.name=inline", "rounds=2"),
)
NOISY = {
    "local": LABELS,
    "central": (*LABELS, "release.trust=central"),
    "drawn": (LABELS[0], "release.mechanism=sample", "release.clip=3"),
    "average": (
        *("strategy.name=fedavg", "strategy.clipping_norm=1", "strategy.noise_multiplier=1"),
    ),
    "training": ("strategy.name=uniform", "training.dp.noise_multiplier=2"),
}


@pytest.mark.parametrize(
    ("law", "drawn"),
    [
        ("uniform", lambda draw: draw.random(4000)),
        ("norm", lambda draw: draw.standard_normal((40, 100)).ravel()),
        ("laplace", lambda draw: draw.laplace(size=4000)),
    ],
)
def test_the_noise_has_its_law(law, drawn):
    """Fails once in a million: the noise is never the same."""
    assert kstest(drawn(SystemNoise()), law).pvalue > 1e-6


def test_noise_has_the_type_that_was_asked_for_and_never_repeats():
    once, again = (SystemNoise().standard_normal((3, 2), dtype=np.float32) for _ in range(2))
    assert once.dtype == np.float32
    assert once.shape == (3, 2)
    assert not np.array_equal(once, again)


def test_the_ends_of_the_uniform_law_are_finite_noise(monkeypatch):
    for byte in (b"\x00", b"\xff"):
        monkeypatch.setattr("os.urandom", lambda count, byte=byte: byte * count)
        assert np.isfinite(SystemNoise().standard_normal(5)).all()
        assert np.isfinite(SystemNoise().laplace(size=5)).all()


def gradient(secure, multiplier=3.0, rows=8):
    """The gradient of one step on samples whose own gradients are 0: noise alone."""
    student = torch.nn.Sequential(torch.nn.Linear(50, 40, bias=False))
    dp = DPSGD(PrivateTraining(noise_multiplier=multiplier), "private", 0, secure=secure)
    _, batches = dp.batches(rows, rows)
    optimiser = dp.attach(student, torch.optim.SGD(student.parameters(), lr=1.0))
    batch = next(batches)
    with dp.recording():
        loss = student(torch.zeros(len(batch), 50)).square().mean()
    with dp.per_sample(len(batch)):
        loss.backward()
    optimiser.step()
    return student[0].weight.grad.flatten(), batch


def test_noise_of_private_training_is_as_large_as_opacus_own():
    (ours, batch), (opacus, _) = gradient(True), gradient(False)
    assert sorted(batch.tolist()) == list(range(8))
    assert float(ours.std()) == pytest.approx(3.0 / 8, rel=0.1)
    assert float(ours.std()) == pytest.approx(float(opacus.std()), rel=0.15)
    assert not torch.equal(ours, gradient(True)[0])
    assert torch.equal(opacus, gradient(False)[0])


@pytest.mark.parametrize("name", NOISY)
def test_a_run_cannot_be_repeated_and_says_so_and_costs_the_same(name, small, tmp_path):
    plain = run(small(*NOISY[name], *QUICK), tmp_path / "plain")
    experiment = small(*NOISY[name], *QUICK, SECURE)
    once, again = (run(experiment, tmp_path / side) for side in "ab")
    last = [done.rounds[-1]["common_loss_mean"] for done in (plain, once, again)]
    assert len({*last}) == 3
    assert any("cannot be repeated" in message for message in once.warnings)
    epsilons = [
        [found.epsilon for found in guarantees(done.releases, done.experiment)]
        for done in (plain, once, again)
    ]
    assert epsilons[0] == epsilons[1] == epsilons[2]
    assert any(epsilon is not None for epsilon in epsilons[0])


def test_every_answer_is_a_new_one(small, tmp_path):
    """No key gives the same noise a second time, so an answer that is asked for again costs."""
    still = ("training.local_epochs=0", "training.min_steps=0", "strategy.distill_epochs=0")
    for secure, fresh in (("false", 3), ("true", 6)):
        keys = (*LABELS, *QUICK, *still, f"release.secure={secure}")
        done = run(small(*keys), tmp_path / secure)
        assert sum(line["fresh"] for line in done.releases) == fresh


def test_a_resumed_run_has_no_epsilon(small, tmp_path):
    """What an interrupted round released stays released, and a new draw of it is another."""
    from lines import Killed, KilledAfter

    experiment = small(*LABELS, *QUICK, SECURE, "checkpoint_every=1")
    with pytest.raises(Killed):
        run(experiment, tmp_path / "killed", observer=KilledAfter(1))
    done = run(experiment, tmp_path / "killed", resume=True)
    (found,) = guarantees(done.releases, experiment)
    assert found.epsilon is None
    assert "resumed with other noise" in found.why


def test_where_there_is_no_noise_it_has_no_effect(small):
    assert any("release.secure" in line for line in without_effect(small(SECURE)))
    for keys in NOISY.values():
        assert not any("release.secure" in line for line in without_effect(small(*keys, SECURE)))
