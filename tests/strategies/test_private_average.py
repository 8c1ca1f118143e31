"""Clipping and noise where parameters are averaged."""

import pytest
import torch
from lines import measured

from fedkd import FedkdError, check, registry, run
from fedkd.privacy.average import private_average
from fedkd.random import numpy_noise
from fedkd.strategies.fedavg import FedAvg, average

CLIPPED = ["ditto", "fedavg", "fedavg-ft", "fedbabu", "fedgkd", "fedntd", "fedper"]
CLIPPED += ["fedprox", "fedrep", "lg-fedavg", "moon", "fedlc", "fedrod", "apfl"]
BEFORE = {"w": torch.ones(200, 100), "b": torch.zeros(50)}


def moved(*scales):
    draw = torch.Generator().manual_seed(0)
    return [
        {name: w + scale * torch.randn(w.shape, generator=draw) for name, w in BEFORE.items()}
        for scale in scales
    ]


def distance(parameters):
    return float(sum((parameters[name] - w).square().sum() for name, w in BEFORE.items()) ** 0.5)


def test_without_noise_and_clipping_it_is_the_plain_mean():
    given = moved(0.1, 1.0, 3.0)
    mean, plain = private_average(BEFORE, given, 1e9, 0), average(given, torch.ones(3))
    assert all(torch.allclose(mean[name], plain[name], atol=1e-5) for name in BEFORE)
    assert {name: w.dtype for name, w in mean.items()} == {n: w.dtype for n, w in BEFORE.items()}


def test_a_client_that_went_too_far_counts_as_if_it_had_stopped_on_the_way():
    near, far = moved(1e-4, 1.0)
    mean = private_average(BEFORE, [near, far], 0.5, 0)
    shortened = {name: w + (far[name] - w) * 0.5 / distance(far) for name, w in BEFORE.items()}
    expected = average([near, shortened], torch.ones(2))
    assert all(torch.allclose(mean[name], expected[name], atol=1e-6) for name in BEFORE)


def test_no_client_moves_the_mean_further_than_its_share_of_the_norm():
    assert distance(private_average(BEFORE, moved(50.0), 0.5, 0)) == pytest.approx(0.5, rel=1e-4)
    assert distance(private_average(BEFORE, [BEFORE, *moved(50.0)], 0.5, 0)) <= 0.25 + 1e-4


def test_clients_that_did_not_move_are_no_error():
    mean = private_average(BEFORE, [BEFORE, BEFORE], 0.5, 0)
    assert all(torch.equal(mean[name], w) for name, w in BEFORE.items())


def test_counters_are_left_as_they_were():
    before = BEFORE | {"n": torch.tensor(3)}
    mean = private_average(before, [BEFORE | {"n": torch.tensor(8)}], 0.5, 0)
    assert mean["n"] == 3


def test_the_noise_on_the_mean_has_the_deviation_that_was_asked_for():
    with numpy_noise(0, "test"):
        mean = private_average(BEFORE, [BEFORE] * 4, 0.5, 3.0)
    noise = mean["w"] - BEFORE["w"]
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 4, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)


def test_rounds_have_noise_of_their_own_and_the_same_again(small, tmp_path):
    private = ("strategy.clipping_norm=1", "strategy.noise_multiplier=1")
    quick = ("strategy.name=fedavg", "rounds=2", "training.local_epochs=0", "training.min_steps=0")
    seen = []

    class Keeping(FedAvg):
        def fuse(self, round, replies):
            super().fuse(round, replies)
            seen.append(self.parameters["head.bias"])

    registry.register("strategies", "keeping")(Keeping)
    experiment = small(*quick, *private, "strategy.name=keeping", *private)
    run(experiment, tmp_path / "once")
    run(experiment, tmp_path / "again")
    first, second = seen[0], seen[1] - seen[0]
    assert not torch.allclose(first, second)
    assert torch.equal(torch.stack(seen[:2]), torch.stack(seen[2:]))


def test_clients_of_the_same_size_make_it_fedavg(small, tmp_path):
    plain = run(small("strategy.name=fedavg"), tmp_path / "plain")
    loose = run(small("strategy.name=fedavg", "strategy.clipping_norm=1e9"), tmp_path / "loose")
    for one, other in zip(plain.rounds, loose.rounds, strict=True):
        assert one["own_loss_mean"] == pytest.approx(other["own_loss_mean"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPPED)
def test_two_private_runs_are_alike_and_not_the_plain_one(name, small, tmp_path):
    private = ("strategy.clipping_norm=0.5", "strategy.noise_multiplier=0.1")
    experiment = small(f"strategy.name={name}", *private)
    once, again = (measured(run(experiment, tmp_path / side)) for side in "ab")
    assert once == again
    assert once != measured(run(small(f"strategy.name={name}"), tmp_path / "plain"))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy.noise_multiplier=1"], r"is not allowed without strategy\.clipping_norm"),
        (["strategy.clipping_norm=1", "student.norm=batch"], r"student\.norm = 'batch' is not"),
        (["strategy.clipping_norm=0"], r"strategy\.clipping_norm = 0"),
        (["strategy.clipping_norm=1", "strategy.noise_multiplier=-1"], "noise_multiplier = -1"),
        (["strategy.clipping_norm=1", "strategy.name=feddf"], "clipping_norm is not a known key"),
    ],
)
def test_what_is_not_private_is_refused_in_one_line(overrides, line, small):
    with pytest.raises(FedkdError, match=line):
        check(small("strategy.name=fedavg", *overrides))
