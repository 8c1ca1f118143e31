"""Known answers of FedTGP."""

import math

import pytest
import torch
from lines import class_means
from torch.nn import functional as F

from fedkd import FedkdError, run
from fedkd.strategies.base import Replies
from fedkd.strategies.fedtgp import largest_gap, margin_loss
from fedkd.work import CrossEntropy, Evaluate, Feature, Fit, Reply, Represent


def replies(*sent):
    return Replies(Reply(n, 10, {"prototypes": each}) for n, each in enumerate(sent))


def test_a_step_of_the_server_by_hand(made):
    """The gradient at the last bias b, as P[c] = ... + b, over the means that are held."""
    strategy = made(
        *("fedtgp", "strategy.server_epochs=1", "server.batch_size=99"),
        *("server.lr=0.5", "strategy.margin=0.7"),
    )
    before = strategy.server.parameters("prototypes")
    prototypes = strategy.server.predict("prototypes", torch.arange(10))
    sent = class_means(0, [3, 1, 50]), class_means(2, [7, 0, 2])
    strategy.fuse(1, replies(*sent))
    rows = torch.cat([sent[0]["mean"][[0, 1, 2]], sent[1]["mean"][[0, 2]]])
    own = torch.eye(10)[[0, 1, 2, 0, 2]]
    towards = prototypes - rows[:, None]  # (5, 10, 200)
    distances = towards.norm(dim=2)
    odds = (-distances - 0.7 * own).softmax(1)
    slope = ((own - odds)[..., None] * towards / distances[..., None]).sum(1).mean(0)
    after = strategy.server.parameters("prototypes")
    bias = "layers.2.bias"
    assert torch.allclose(after[bias], before[bias] - 0.5 * slope, atol=1e-6)
    loss = -(odds * own).sum(1).log().mean()
    assert strategy.record(1, replies(*sent), None)["server_loss"] == pytest.approx(float(loss))


def test_the_margin_is_the_largest_gap_up_to_what_the_option_says(made):
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 5.0], [math.nan, 0.0]])
    assert largest_gap(corners) == 5  # of the third class; the others' gap is 3
    assert largest_gap(corners[:1]) == 0
    sent = class_means(0, [3, 1, 50])
    gap = largest_gap(sent["mean"][:3])
    for margin, found in ((1e6, gap), (1.5, 1.5)):
        strategy = made("fedtgp", f"strategy.margin={margin}", "strategy.server_epochs=0")
        strategy.fuse(1, replies(sent))
        assert strategy.record(1, replies(sent), None)["margin"] == pytest.approx(found)


def test_a_mean_that_is_its_prototype_does_not_pull_at_it():
    rows = torch.tensor([[1.0, 2.0], [4.0, 6.0]])
    prototypes = rows.clone().requires_grad_()
    loss = margin_loss(rows, torch.tensor([0, 1]), prototypes, 5.0)
    assert float(loss.detach()) == pytest.approx(math.log(2))  # the other is as far as the margin
    (slope,) = torch.autograd.grad(loss, prototypes)
    # Each is pushed away from the mean of the other class, by half of a sample of two.
    unit = torch.tensor([0.6, 0.8])
    assert torch.allclose(slope, torch.stack([unit, -unit]) / 4)


def test_without_a_margin_it_is_the_cross_entropy_of_distances():
    rows, prototypes = torch.randn(6, 3), torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 3, 0, 0])
    plain = F.cross_entropy(-(rows[:, None] - prototypes).norm(dim=2), labels)
    assert torch.allclose(margin_loss(rows, labels, prototypes, 0.0), plain)
    assert margin_loss(rows, labels, prototypes, 1.0) > plain


def test_trained_prototypes_are_nearest_to_their_own_classes_means(made):
    strategy = made("fedtgp", "strategy.margin=1")
    sent = class_means(0, [1] * 10), class_means(1, [1] * 10)
    strategy.fuse(1, replies(*sent))
    for each in sent:
        distances = torch.cdist(each["mean"], strategy.prototypes)
        assert torch.equal(distances.argmin(1), torch.arange(10))


def test_clients_learn_as_fedprotos_and_are_scored_by_the_nearest(made):
    strategy = made("fedtgp")
    assert strategy.learn(1, 0) == [
        Fit(terms=(CrossEntropy(),)),
        Represent("fc2", per="class", key="prototypes"),
    ]
    strategy.fuse(1, replies(class_means(0, [3, 1])))
    assert strategy.prototypes[:2].isfinite().all()
    assert strategy.prototypes[2:].isnan().all()
    strategy.fuse(2, replies(class_means(0, [0, 0, 4])))
    assert strategy.prototypes[:3].isfinite().all()
    fit, _ = strategy.learn(3, 1)
    assert fit.terms == (CrossEntropy(), Feature(strategy.prototypes, "fc2", weight=10.0))
    (test,) = strategy.score(3, 1)
    assert test == Evaluate(key="nearest", prototypes=strategy.prototypes, cut="fc2")


def test_bodies_may_differ_where_representations_have_one_size(small, tmp_path):
    two = ("student.models=['cnn2', 'cnn3']", "student.width=0.1")
    done = run(small("strategy.name=fedtgp", *two), tmp_path / "run")
    assert all(line["left_out"] == [] for line in done.rounds)
    assert "own_nearest_accuracy_mean" in done.rounds[-1]
    line = r"with strategy\.name = 'fedtgp': it averages .* theirs have 512 \(cnn2 at fc1\), "
    with pytest.raises(FedkdError, match=line):
        run(small("strategy.name=fedtgp", "student.models=['cnn2', 'mlp']"), tmp_path / "two")


def test_each_option_changes_the_numbers(each_changes_the_numbers):
    each_changes_the_numbers(
        ["strategy.name=fedtgp"],
        [
            *("strategy.weight=1", "strategy.margin=0", "strategy.server_epochs=3"),
            *("server.lr=0.1", "server.batch_size=3", "strategy.cut=fc1"),
        ],
    )
