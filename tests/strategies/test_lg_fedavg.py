"""Known answers of LG-FedAvg."""

import pytest
import torch
from lines import measured

from fedkd import FedkdError, run
from fedkd.engine.worker import Worker
from fedkd.strategies.base import Replies
from fedkd.work import Assignment, Reply

TWO = ("student.models=['cnn2', 'cnn3']", "student.width=0.1")


def test_sharing_all_blocks_is_fedavg_to_the_bit(small, tmp_path):
    shared = run(small("strategy.name=lg-fedavg", "strategy.shared_blocks=3"), tmp_path / "lg")
    fedavg = run(small("strategy.name=fedavg"), tmp_path / "fedavg")
    assert measured(shared) == measured(fedavg)


def test_the_body_never_leaves_the_client_and_the_head_is_common(made):
    strategy = made("lg-fedavg")
    worker = Worker(strategy.experiment)

    def do(client, steps):
        return worker.perform(Assignment(client, 1, "learn", tuple(steps)))

    replies = [do(client, strategy.learn(1, client)) for client in range(4)]
    assert {name for reply in replies for name in reply.values["parameters"]} == {
        "head.weight",
        "head.bias",
    }
    strategy.fuse(1, Replies(replies))
    for client in range(4):
        do(client, strategy.deploy(1, client))
    first, second = (worker.state(client)["own"] for client in (0, 1))
    for name in first:
        assert torch.equal(first[name], second[name]) == name.startswith("head.")


def test_heads_are_weighted_by_samples(made):
    strategy = made("lg-fedavg")
    sent = [
        Reply(n, samples, {"parameters": {"head.bias": torch.full((10,), value)}})
        for n, (samples, value) in enumerate([(10, 1.0), (30, 5.0)])
    ]
    strategy.fuse(1, Replies(sent))
    assert strategy.parameters["head.bias"].tolist() == [4.0] * 10


@pytest.mark.parametrize("blocks", [1, 2])
def test_bodies_may_differ_below_equal_heads(blocks, small, tmp_path):
    """cnn3 has a block more, and another input of fc1."""
    experiment = small("strategy.name=lg-fedavg", f"strategy.shared_blocks={blocks}", *TWO)
    if blocks == 2:
        with pytest.raises(FedkdError, match=r"fc1\.1\.weight .*; cnn3 has fc1\.1\.weight"):
            run(experiment, tmp_path / "run")
        return
    done = run(experiment, tmp_path / "run")
    assert [client["student"] for client in done.partition["clients"]] == ["cnn2", "cnn3"] * 2
    assert all(line["left_out"] == [] for line in done.rounds)


def test_more_blocks_than_there_are_is_one_line(made):
    with pytest.raises(FedkdError, match=r"shared_blocks = 4 is not allowed: mlp has 3 blocks"):
        made("lg-fedavg", "strategy.shared_blocks=4")
