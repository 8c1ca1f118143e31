"""Known answers of FedGH."""

import pytest
import torch
from lines import class_means, measured

from fedkd import FedkdError, run
from fedkd.strategies.base import Replies
from fedkd.work import CrossEntropy, Fit, Load, Reply, Represent

STEP = (
    *("training.optimiser=sgd", "server.lr=0.5"),
    *("server.batch_size=99", "strategy.server_epochs=1"),
)


def test_a_step_of_the_server_by_hand(made):
    """Softmax regression: each mean of a class that a client holds is one sample, whatever n."""
    strategy = made("fedgh", *STEP)
    before = strategy.head
    sent = {0: class_means(0, [3, 1, 50]), 2: class_means(2, [7, 0, 2])}
    strategy.fuse(1, Replies(Reply(n, 10, {"representations": one}) for n, one in sent.items()))
    rows = torch.cat([sent[0]["mean"][[0, 1, 2]], sent[2]["mean"][[0, 2]]])
    hard = torch.eye(10)[[0, 1, 2, 0, 2]]
    apart = (rows @ before["head.weight"].T + before["head.bias"]).softmax(1) - hard
    slopes = {"head.weight": apart.T @ rows / 5, "head.bias": apart.mean(0)}
    for name, slope in slopes.items():
        assert torch.allclose(strategy.head[name], before[name] - 0.5 * slope, atol=1e-6)


def test_the_head_that_was_trained_takes_the_place_of_everybodys(made):
    strategy = made("fedgh")
    first = strategy.head
    sent = {0: class_means(0, [3, 1])}
    strategy.fuse(1, Replies(Reply(n, 10, {"representations": one}) for n, one in sent.items()))
    load, fit, ask = strategy.learn(2, 1)
    assert fit == Fit(terms=(CrossEntropy(),))
    assert ask == Represent("fc2", per="class", key="representations")
    for step in (load, *strategy.deploy(1, 3)):
        assert isinstance(step, Load)
        assert not torch.equal(step.parameters["head.weight"], first["head.weight"])


def test_with_heads_that_nobody_trains_it_is_lg_fedavg_to_the_bit(small, tmp_path):
    body = "training.part=['body']"
    still = run(small("strategy.name=fedgh", "strategy.server_epochs=0", body), tmp_path / "fedgh")
    other = run(small("strategy.name=lg-fedavg", body), tmp_path / "lg-fedavg")
    assert measured(still)[1] == measured(other)[1]


@pytest.mark.parametrize("cut", ["", "fc1"])
def test_bodies_may_differ_where_representations_have_one_size(cut, small, tmp_path):
    two = ("student.models=['cnn2', 'cnn3']", "student.width=0.1")
    done = run(small("strategy.name=fedgh", f"strategy.cut={cut}", *two), tmp_path / "run")
    assert [client["student"] for client in done.partition["clients"]] == ["cnn2", "cnn3"] * 2
    assert all(line["left_out"] == [] for line in done.rounds)


def test_a_head_may_begin_at_a_feature_map(small, tmp_path):
    keys = ("student.models=['cnn2']", "student.width=0.1", "strategy.cut=conv1", "rounds=1")
    done = run(small("strategy.name=fedgh", *keys), tmp_path / "run")
    assert done.rounds[0]["strategy"]["server_loss"] > 0


def test_heads_of_different_sizes_are_refused_before_round_1(small, tmp_path):
    line = r"with strategy\.name = 'fedgh': .* cnn2 has head\.weight \(10, 512\), .*; mlp has"
    with pytest.raises(FedkdError, match=line):
        run(small("strategy.name=fedgh", "student.models=['cnn2', 'mlp']"), tmp_path / "run")
