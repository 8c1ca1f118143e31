"""Known answers of FedBABU."""

import pytest
import torch
from lines import measured

from fedkd import FedkdError, check, run
from fedkd.engine.worker import Worker
from fedkd.strategies.base import Replies
from fedkd.work import Assignment, Fit


def of_tests(done):
    """Client lines without the losses of training, which are named otherwise."""
    own = ("round", "client", "stage", "own_", "common_")
    return [{k: v for k, v in line.items() if k.startswith(own)} for line in measured(done)[1]]


def test_without_fine_tuning_it_is_fedavg_of_bodies_to_the_bit(small, tmp_path):
    fedbabu = run(small("strategy.name=fedbabu", "strategy.finetune_epochs=0"), tmp_path / "babu")
    bodies = run(small("strategy.name=fedavg", "training.part=['body']"), tmp_path / "fedavg")
    assert of_tests(fedbabu) == of_tests(bodies)


def test_fine_tuning_is_for_the_test_alone(small, tmp_path):
    tuned = run(small("strategy.name=fedbabu"), tmp_path / "tuned")
    plain = run(small("strategy.name=fedbabu", "strategy.finetune_epochs=0"), tmp_path / "plain")
    for a, b in zip(tuned.rounds, plain.rounds, strict=True):
        assert a["local"] == b["local"]
        assert a["own_loss_mean"] < b["own_loss_mean"]


def test_the_head_is_everybodys_first_one_and_is_sent_once(made):
    strategy = made("fedbabu")
    worker = Worker(strategy.experiment)

    def do(client, steps):
        return worker.perform(Assignment(client, 1, "learn", tuple(steps)))

    for round, first in ((1, True), (2, False)):
        steps = {client: strategy.learn(round, client) for client in range(4)}
        assert all(("head.weight" in own[0].parameters) == first for own in steps.values())
        replies = [do(client, own) for client, own in steps.items()]
        assert not any("head.weight" in reply.values["parameters"] for reply in replies)
        strategy.fuse(round, Replies(replies))
    for client in range(4):
        own = worker.state(client)["own"]
        assert all(torch.equal(own[name], w) for name, w in strategy.head.items())


@pytest.mark.parametrize(("part", "moves"), [("head", {"head"}), ("all", {"fc1", "fc2", "head"})])
def test_what_is_fine_tuned_moves_alone(part, moves, made):
    strategy = made("fedbabu", f"strategy.finetune_part={part}")
    worker = Worker(strategy.experiment)
    steps = strategy.deploy(1, 0)
    assert isinstance(steps[-1], Fit)
    worker.perform(Assignment(0, 1, "receive", tuple(steps)))
    given = strategy.parameters | strategy.head
    own = worker.state(0)["own"]
    assert {name.split(".")[0] for name in own if not torch.equal(own[name], given[name])} == moves


def test_another_say_in_what_learns_is_refused(small):
    with pytest.raises(FedkdError, match=r"training\.part = \['head'\] is not allowed"):
        check(small("strategy.name=fedbabu", "training.part=['head']"))
