"""Known answers and laws of COMET."""

import pytest
import torch
from lines import measured

from fedkd import run
from fedkd.strategies.base import Replies
from fedkd.strategies.comet import distances, k_means
from fedkd.work import CrossEntropy, Predict, Reply


def labels(seed, count=4):
    """Soft labels (count, 80, 10) of clients with beliefs of their own."""
    draw = torch.Generator().manual_seed(seed)
    beliefs = 2 * torch.randn(count, 1, 10, generator=draw)
    return (torch.randn(count, 80, 10, generator=draw) + beliefs).softmax(-1)


def replies(sent):
    return Replies(Reply(client, 10, {"soft_labels": one}) for client, one in sent.items())


@pytest.fixture
def groups():
    """Twelve points about three centres, far from each other."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]]).repeat(4, 1)
    return centres + torch.randn(12, 2, generator=draw)


def partition(owners):
    return {frozenset((owners == one).nonzero()[:, 0].tolist()) for one in owners.unique()}


def test_k_means_finds_groups_that_are_apart(groups):
    wanted = {frozenset(range(start, 12, 3)) for start in range(3)}
    assert partition(k_means(groups, 3)) == wanted


def test_an_order_of_clients_changes_no_cluster(groups):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for clusters in (2, 4, 5):
        shuffled = partition(k_means(groups[order], clusters))
        plain = partition(k_means(groups, clusters))
        assert {frozenset(order[[*one]].tolist()) for one in shuffled} == plain


@pytest.mark.parametrize("clusters", range(1, 13))
def test_every_point_is_nearest_to_the_mean_of_its_own(clusters, groups):
    owners = k_means(groups, clusters)
    means = torch.stack([groups[owners == one].mean(0) for one in range(int(owners.max()) + 1)])
    assert torch.equal(distances(groups, means).argmin(1), owners)


def test_equal_points_are_one_cluster():
    assert k_means(torch.ones(5, 3), 4).tolist() == [0] * 5


def test_one_cluster_is_the_mean_of_uniform_fusion_to_the_bit(made):
    comet, uniform = made("comet", "strategy.clusters=1"), made("uniform")
    sent = dict(enumerate(labels(0)))
    for strategy in (comet, uniform):
        strategy.fuse(1, replies(sent))
    for client in range(4):
        assert torch.equal(comet.target(client), uniform.fused)


def test_as_many_clusters_as_clients_leave_each_with_its_own_labels(made):
    strategy = made("comet", "strategy.clusters=9")
    sent = dict(enumerate(labels(0)))
    strategy.fuse(1, replies(sent))
    assert all(torch.equal(strategy.target(client), one) for client, one in sent.items())


def test_clients_that_are_alike_teach_each_other(made):
    strategy = made("comet", "strategy.weight=0.3")
    near, far = labels(0, 1)[0], labels(1, 1)[0]
    sent = {0: near, 1: far, 3: 0.9 * near + 0.1 * far}
    assert strategy.learn(1, 0)[0].terms == (CrossEntropy(),)
    strategy.fuse(1, replies(sent))
    assert torch.allclose(strategy.target(0), (sent[0] + sent[3]) / 2)
    assert torch.equal(strategy.target(3), strategy.target(0))
    assert torch.equal(strategy.target(1), far)
    (fit, ask) = strategy.learn(2, 3)
    assert ask == Predict()
    assert (fit.terms[1].on, fit.terms[1].weight) == ("transfer", 0.3)
    assert torch.equal(fit.terms[1].targets, strategy.target(3))
    assert strategy.learn(2, 2)[0].terms == (CrossEntropy(),)  # has sent nothing yet


def test_who_was_away_finds_the_centroid_nearest_to_what_it_sent_last(made):
    strategy = made("comet")
    first, second = labels(0, 1)[0], labels(1, 1)[0]
    strategy.fuse(1, replies({0: first, 1: second}))
    strategy.fuse(2, replies({2: second, 3: first}))
    assert torch.equal(strategy.target(0), first)
    assert torch.equal(strategy.target(1), second)


def test_without_weight_it_is_local_training_to_the_bit(small, tmp_path):
    weightless = run(small("strategy.name=comet", "strategy.weight=0"), tmp_path / "comet")
    local = run(small("strategy.name=local"), tmp_path / "local")
    assert measured(weightless)[1] == measured(local)[1]


def test_bytes_are_those_of_labels_and_one_centroid(small, tmp_path):
    done = run(small("strategy.name=comet"), tmp_path / "run")
    one = 4 * 80 * 10 * 4  # clients, transfer samples, classes, bytes of a float32
    assert [line["bytes_up"] for line in done.rounds] == [one, one]
    assert [line["bytes_down"] for line in done.rounds] == [0, one]
    assert sum(done.rounds[-1]["strategy"]["sizes"]) == 4
