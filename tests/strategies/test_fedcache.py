"""Known answers of FedCache."""

import math

import pytest
import torch
from lines import measured

from fedkd import FedkdError, check, run
from fedkd.strategies.base import Replies
from fedkd.strategies.fedcache import mean_of, nearest
from fedkd.work import CrossEntropy, Hold, Predict, Reply, Represent

# Directions in a plane, and labels: of class 0 there are three near each other and one opposite.
ANGLES = torch.tensor([0.0, 0.1, 0.3, 3.1, 0.05, 1.0])
LABELS = torch.tensor([0, 0, 0, 0, 1, 2])
HASHES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1) * torch.arange(1.0, 7.0)[:, None]


def test_the_nearest_have_the_same_label_and_are_others():
    assert nearest(HASHES, LABELS, 2).tolist() == [
        [1, 2],
        [0, 2],
        [1, 0],
        [2, 1],
        [-1, -1],
        [-1, -1],
    ]
    assert (nearest(HASHES, LABELS, 9)[:4] >= 0).sum(1).tolist() == [3] * 4


def test_what_is_fetched_is_the_mean_over_those_that_there_are():
    logits = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 8.0]])
    related = torch.tensor([[1, 2], [2, -1], [-1, -1]])
    fetched = mean_of(logits, related)
    assert fetched[:2].tolist() == [[4.0, 6.0], [5.0, 8.0]]
    assert fetched[2].isnan().all()


def reply(client, rows, value, hashes=True):
    """What a client sends that has these of the samples, and says ``value`` of class 0."""
    logits = torch.zeros(len(rows), 10)
    logits[:, 0] = value
    values = {"logits": logits}
    if hashes:
        values["hashes"] = {"inputs": HASHES[rows], "labels": LABELS[rows]}
    return Reply(client, len(rows), values)


def test_samples_of_others_teach_and_so_does_who_is_away(made):
    strategy = made("fedcache", "strategy.neighbours=2", "strategy.weight=0.7")
    strategy.fuse(1, Replies([reply(0, [0, 4], 1.0), reply(2, [1, 2], 5.0)]))

    def says(client):
        return strategy.targets[client].T[0] - strategy.targets[client].T[1]

    assert torch.allclose(says(0), torch.tensor([5.0, math.nan]), equal_nan=True)
    assert torch.allclose(says(2), torch.tensor([3.0, 3.0]))
    strategy.fuse(2, Replies([reply(0, [0, 4], 9.0, hashes=False), reply(3, [3], 4.0)]))
    assert torch.allclose(says(2), torch.tensor([7.0, 7.0]))
    assert torch.allclose(says(3), torch.tensor([5.0]))
    fit, ask = strategy.learn(3, 2)
    assert ask == Predict("private", output="logits", key="logits")
    assert torch.equal(fit.terms[1].targets, strategy.targets[2].softmax(1))
    assert fit.terms[1].weight == 0.7


def test_hashes_are_asked_for_once(made):
    strategy = made("fedcache", "strategy.encoder=cnn2")
    hold, hashes, fit, _ = strategy.learn(1, 0)
    assert hold == Hold("encoder", model="cnn2")
    assert hashes == Represent("fc1", key="hashes", student="encoder")
    assert fit.terms == (CrossEntropy(),)
    strategy.fuse(1, Replies([reply(0, [0, 4], 1.0)]))
    assert len(strategy.learn(2, 0)) == 2
    assert len(strategy.learn(2, 1)) == 4


def test_without_weight_it_is_local_training_to_the_bit(small, tmp_path):
    none = "data.transfer.size=0"
    weightless = run(small("strategy.name=fedcache", "strategy.weight=0", none), tmp_path / "cache")
    local = run(small("strategy.name=local", none), tmp_path / "local")
    assert measured(weightless)[1] == measured(local)[1]


def test_architectures_may_differ_below_one_encoder(small, tmp_path):
    mixed = ("student.models=['cnn2', 'mlp']", "student.width=0.1", "strategy.encoder=mlp")
    done = run(small("strategy.name=fedcache", *mixed), tmp_path / "run")
    assert [client["student"] for client in done.partition["clients"]] == ["cnn2", "mlp"] * 2
    assert all(line["left_out"] == [] for line in done.rounds)


def test_an_unknown_encoder_is_one_line(small):
    with pytest.raises(FedkdError, match=r"strategy\.encoder = 'cnn9' is not known; known: cnn2"):
        check(small("strategy.name=fedcache", "strategy.encoder=cnn9"))
