"""Known answers of FedBN."""

import pytest
import torch
from lines import measured
from torch import nn

from fedkd import FedkdError, check, registry, run
from fedkd.engine.worker import Worker
from fedkd.strategies.base import Replies
from fedkd.work import Assignment


def test_without_normalisation_layers_it_is_fedavg_to_the_bit_and_says_so(small, tmp_path):
    fedbn = run(small("strategy.name=fedbn"), tmp_path / "fedbn")
    fedavg = run(small("strategy.name=fedavg"), tmp_path / "fedavg")
    (warning,) = fedbn.rounds[0].pop("warnings")
    assert "no normalisation layer, so it equals FedAvg" in warning
    assert measured(fedbn)[1] == measured(fedavg)[1]
    assert fedbn.rounds[-1]["bytes_down"] == fedavg.rounds[-1]["bytes_down"]


@pytest.fixture
def layered():
    """A student with normalisation of three kinds, one of them deep inside of a block."""

    @registry.register("students", "layered")
    def student(shape, classes, norm, width):
        return nn.Sequential(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU()),
            nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), nn.GroupNorm(2, 8)),
            nn.Linear(8, classes),
        )


@pytest.mark.usefixtures("layered")
def test_normalisation_layers_stay_personal_and_all_else_is_common(made):
    strategy = made("fedbn", "student.models=['layered']")
    worker = Worker(strategy.experiment)

    def do(client, steps):
        return worker.perform(Assignment(client, 1, "learn", tuple(steps)))

    strategy.fuse(1, Replies([do(client, strategy.learn(1, client)) for client in range(4)]))
    trained = [dict(worker.state(client)["own"]) for client in range(4)]
    for client in range(4):
        do(client, strategy.deploy(1, client))
    own = [worker.state(client)["own"] for client in range(4)]
    personal = {"0.2.", "1.0.1.", "1.1."}
    for name in own[0]:
        if name.endswith("num_batches_tracked"):
            continue
        mine = any(name.startswith(layer) for layer in personal)
        assert torch.equal(own[1][name], trained[1][name]) == mine, name
        assert torch.equal(own[0][name], own[1][name]) != mine, name
    assert not any(name.startswith(tuple(personal)) for name in strategy.parameters)


def test_normalisation_layers_are_not_sent_back(small, tmp_path):
    keys = ("student.norm=batch", "rounds=1")
    fedbn, fedavg = (
        run(small(f"strategy.name={name}", *keys), tmp_path / name).rounds[0]
        for name in ("fedbn", "fedavg")
    )
    # Weight, bias, mean and variance of two layers of 200, and a counter of each.
    layers = 2 * (4 * 200 * 4 + 8)
    assert fedbn["bytes_down"] == fedavg["bytes_down"] - 4 * layers
    assert fedbn["bytes_up"] == fedavg["bytes_up"]
    assert "warnings" not in fedbn


def test_it_does_not_clip_what_it_sets_aside(small):
    with pytest.raises(FedkdError, match="clipping_norm is not a known key"):
        check(small("strategy.name=fedbn", "strategy.clipping_norm=1"))
