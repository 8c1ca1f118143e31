"""``fedkd noise``: noise that gives another epsilon, checked by runs that have that noise."""

import re

import pytest

from fedkd import run
from fedkd.errors import FedkdError
from fedkd.privacy.guarantees import guarantees
from fedkd.results import SUMMARY
from fedkd.simulations.noise import noise_for
from fedkd.simulations.suite import read

WAYS = {
    "local labels": ("strategy.name=uniform", "release.mechanism=gaussian", "release.scale=2"),
    "labels of a trusted server": (
        *("strategy.name=uniform", "release.mechanism=gaussian", "release.scale=2"),
        "release.trust=central",
    ),
    "votes": (
        *("strategy.name=uniform", "release.mechanism=votes", "release.scale=20"),
        "release.trust=central",
    ),
    "averages": (
        *("strategy.name=fedavg", "strategy.clipping_norm=1", "strategy.noise_multiplier=3"),
        "participation=0.5",
    ),
    "private training": ("strategy.name=uniform", "training.dp.noise_multiplier=2"),
}


SLOW = ("private training", "averages")


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW)) for way in WAYS]
)
def test_a_run_with_the_noise_that_is_told_has_the_epsilon_that_was_asked_for(way, small, tmp_path):
    first = run(small("rounds=2", *WAYS[way]), tmp_path / "first")
    key, noise, formal = noise_for(first, 3.0)
    assert formal.epsilon == pytest.approx(3.0, rel=1e-3)
    assert formal.epsilon <= 3
    second = run(small("rounds=2", *WAYS[way], f"{key}={noise!r}"), tmp_path / "second")
    found = [one.epsilon for one in guarantees(second.releases, second.experiment)]
    assert found[-1] == pytest.approx(formal.epsilon, rel=1e-9)


def test_each_epsilon_is_a_line_with_the_key_to_set(fedkd, small, tmp_path):
    run(small("rounds=1", *WAYS["local labels"]), tmp_path / "mine")
    code, out, err = fedkd("noise", "mine", "--epsilon", "1, 8")
    assert (code, err) == (0, "")
    less, more = out.splitlines()
    assert re.match(r"release\.scale = [\d.]+: ε (1|0\.9999) \(delta 1e-05, client\); ", less)
    assert float(less.split()[2][:-1]) > float(more.split()[2][:-1])


@pytest.mark.parametrize(
    ("keys", "epsilon", "line"),
    [
        (("strategy.name=uniform",), "1", "(none: labels are released without noise)"),
        (WAYS["local labels"], "0", "--epsilon 0 is not allowed: above"),
        (WAYS["local labels"], "nan", "--epsilon nan is not allowed"),
        (WAYS["local labels"], "much", "--epsilon 'much' is not allowed: numbers, as in 0.5,1,2"),
        (
            (*WAYS["local labels"], "training.dp.noise_multiplier=1"),
            "1",
            "training.dp.noise_multiplier and release.scale are noise both",
        ),
    ],
)
def test_a_run_whose_epsilon_follows_from_no_noise_is_one_line(
    keys, epsilon, line, fedkd, small, tmp_path
):
    run(small("rounds=1", *keys), tmp_path / "mine")
    code, out, err = fedkd("noise", "mine", "--epsilon", epsilon)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm", ["dp-sgd", "local noise", "central noise", "drawn labels", "client-level fedavg"]
)
def test_the_suite_has_the_epsilons_that_it_says(arm, tmp_path):
    """Training is not what decides on them."""
    for cell in read("privacy-utility", out=tmp_path).cells:
        labels = cell.labels
        if (labels["data"], labels["arm"], labels["seed"]) == ("digits", arm, 1):
            done = run(cell.experiment, cell.folder)
            found = [one.epsilon for one in guarantees(done.releases, done.experiment)]
            epsilon = next(one for one in found if one is not None)
            assert epsilon == pytest.approx(float(labels["epsilon"]), rel=0.02)
            assert epsilon <= float(labels["epsilon"])


def test_a_run_that_has_not_ended_is_one_line(small, tmp_path):
    done = run(small("rounds=1", *WAYS["local labels"]), tmp_path / "mine")
    (done.folder / SUMMARY).unlink()
    with pytest.raises(
        FedkdError, match="has not ended: how much noise it needs is told of a finished run"
    ):
        noise_for(done, 1.0)
