"""Known answers of APFL."""

import pytest
import torch
from texts import small as text

from fedkd import FedkdError, check, run
from fedkd.engine.worker import Worker
from fedkd.strategies.base import Replies
from fedkd.work import Assignment, Blend, Load, Reply, Share

APFL = "strategy.name=apfl"
MLP = "student.models=['mlp']"
SLOPE = "personal_loss_slope"
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


def test_shares_go_down_their_gradient_and_stay_shares(made):
    strategy = made("apfl", "strategy.alpha_lr=0.5", "strategy.alpha=0.25")
    sent = {"parameters": strategy.parameters}
    slopes = {0: -0.2, 1: 0.1, 3: 9.0}
    strategy.fuse(1, Replies([Reply(n, 9, sent, {SLOPE: each}) for n, each in slopes.items()]))
    assert strategy.alphas == pytest.approx({0: 0.35, 1: 0.2, 3: 0.0})
    *_, fit, _, mixture = strategy.learn(2, 0)
    assert fit.together[0].at == Blend("own", 0.35, 0.65, slope=True)
    assert mixture == Load("personal", keep=0.65, weight=0.35)
    assert strategy.deploy(1, 1)[1] == Load("personal", keep=0.8, weight=0.2)
    assert len(strategy.deploy(1, 2)) == 1


def test_a_run_moves_each_clients_share(small, tmp_path):
    keys = (APFL, "strategy.alpha_lr=0.1", "rounds=3")
    loop, joint = (
        run(small(*keys, f"engine.cohort={cohort}"), tmp_path / cohort) for cohort in ("off", "on")
    )
    alphas = [line["strategy"]["alpha_mean"] for line in joint.rounds]
    assert len({0.5, *alphas}) == 4
    assert alphas == pytest.approx(
        [line["strategy"]["alpha_mean"] for line in loop.rounds], abs=1e-3
    )
    assert joint.rounds[-1]["cohort"]["Fit private"] == 4


def test_dp_sgd_is_refused_before_a_run(small):
    with pytest.raises(FedkdError, match=r"noise_multiplier = 1 is not allowed with .*'apfl'"):
        check(small(APFL, "training.dp.noise_multiplier=1"))


def test_it_mixes_students_of_text_too(tmp_path):
    done = run(text(tmp_path / "text", APFL, "strategy.alpha_lr=0.1"), tmp_path / "run")
    assert done.rounds[0]["common_perplexity_mean"] > 1
    assert done.rounds[0]["strategy"]["alpha_mean"] != 0.5
