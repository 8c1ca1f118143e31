"""Known answers of APFL."""

import pytest
import torch

from fedkd import FedkdError, check, run
from fedkd.engine.worker import Worker
from fedkd.work import Assignment, Share

APFL = "strategy.name=apfl"
MLP = "student.models=['mlp']"
LOOP = ("engine.cohort=off", "rounds=3", "student.init=same")


def numbers(done):
    """All that was measured of clients' own students, at both stages."""
    return [
        {name: value for name, value in stage.items() if name.startswith(("own_", "common_"))}
        for line in done.rounds
        for stage in (line["local"], line)
    ]


@pytest.mark.parametrize(("alpha", "limit"), [(0, "fedavg"), (1, "local")])
def test_its_limits_are_fedavg_and_local_training_to_the_bit(alpha, limit, small, tmp_path):
    apfl = run(small(APFL, f"strategy.alpha={alpha}", *LOOP), tmp_path / "apfl")
    other = run(small(f"strategy.name={limit}", *LOOP), tmp_path / limit)
    assert numbers(apfl) == numbers(other)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_global_student_is_that_of_fedavg(alpha, small, made):
    """To the bit, whatever alpha is: nothing of the own student reaches it."""
    worker = Worker(small(MLP))
    one, other = (
        worker.perform(Assignment(0, 1, "learn", tuple(strategy.learn(1, 0)))).values["parameters"]
        for strategy in (made("apfl", MLP, f"strategy.alpha={alpha}"), made("fedavg", MLP))
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_client_is_the_mixture(made, small):
    strategy = made("apfl", MLP, "strategy.alpha=0.25")
    worker = Worker(small(MLP))
    shares = (Share(key="personal", student="personal"), Share(key="mixture"))
    reply = worker.perform(Assignment(0, 1, "learn", (*strategy.learn(1, 0), *shares)))
    w, v, mixture = (reply.values[key] for key in ("parameters", "personal", "mixture"))
    for name, value in mixture.items():
        assert torch.allclose(value, 0.25 * v[name] + 0.75 * w[name], atol=1e-7)
        assert not torch.equal(v[name], w[name])


def test_dp_sgd_is_refused_before_a_run(small):
    with pytest.raises(FedkdError, match=r"noise_multiplier = 1 is not allowed with .*'apfl'"):
        check(small(APFL, "training.dp.noise_multiplier=1"))
