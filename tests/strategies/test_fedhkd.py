"""Known answers of FedHKD."""

import pytest
import texts
import torch
from lines import measured
from torch.nn import functional as F

from fedkd import FedkdError, run
from fedkd.engine.worker import Worker
from fedkd.strategies.base import Replies
from fedkd.work import Assignment, Feature, Reply, Samples, Soft

OFF = ("strategy.weight=0", "strategy.gamma=0")


def knowledge(seed, counts, width):
    """Class means of a client with so many samples a class; zeros where there are none."""
    draw = torch.Generator().manual_seed(seed)
    count = torch.tensor([*counts, *[0] * (10 - len(counts))])
    mean = torch.rand(10, width, generator=draw).softmax(1) * (count > 0)[:, None]
    return {"mean": mean, "count": count}


def sent(strategy, *counts):
    replies = []
    for n, each in enumerate(counts):
        known = {"features": knowledge(n, each, 200), "class_labels": knowledge(9 + n, each, 10)}
        replies.append(Reply(n, sum(each), {"parameters": strategy.parameters, **known}))
    return Replies(replies)


def test_with_both_weights_0_it_is_fedavg_to_the_bit(small, tmp_path):
    still = run(small("strategy.name=fedhkd", *OFF), tmp_path / "fedhkd")
    fedavg = run(small("strategy.name=fedavg"), tmp_path / "fedavg")
    assert measured(still)[1] == measured(fedavg)[1]


def test_means_are_weighted_by_counts_and_a_class_that_nobody_holds_keeps_its_last(made):
    strategy = made("fedhkd")
    first = sent(strategy, [3, 1], [1, 0, 5])
    strategy.fuse(1, first)
    one, other = (reply.values["features"]["mean"] for reply in first.replies)
    assert torch.allclose(strategy.features[0], 0.75 * one[0] + 0.25 * other[0])
    assert torch.allclose(strategy.features[1], one[1])
    assert torch.allclose(strategy.features[2], other[2])
    assert strategy.features[3:].isnan().all()
    assert torch.allclose(strategy.labels[:3].sum(1), torch.ones(3))
    before = strategy.features[2]
    strategy.fuse(2, sent(strategy, [3, 1], [1, 4]))
    assert torch.equal(strategy.features[2], before)


def test_only_classes_that_somebody_has_held_are_taught(made):
    strategy = made("fedhkd", "strategy.weight=0.3", "strategy.gamma=0.2")
    assert len(strategy.learn(1, 0)[1].terms) == 1
    strategy.fuse(1, sent(strategy, [3, 1], [1, 0, 5]))
    _, head, body = strategy.learn(2, 0)[1].terms
    assert isinstance(head, Soft)
    assert isinstance(head.on, Samples)
    assert (head.on.cut, len(head.on.inputs), head.weight) == ("fc2", 3, 0.3)
    assert torch.equal(head.targets, strategy.labels[:3])
    assert body == Feature(strategy.features, "fc2", weight=0.2)


def test_where_all_classes_are_known_their_means_travel_once(made):
    strategy = made("fedhkd")
    strategy.fuse(1, sent(strategy, [1] * 10))
    _, head, body = strategy.learn(2, 0)[1].terms
    assert head.on.inputs is body.targets


def test_the_heads_term_by_hand_and_no_gradient_of_it_below(made):
    """The loss of one step, with the weight of the other terms left out."""
    keys = ("training.optimiser=sgd", "training.batch_size=99", "training.local_epochs=1")
    strategy = made("fedhkd", *keys, "training.lr=0.5", "strategy.gamma=0")
    strategy.fuse(1, sent(strategy, [3, 1, 2, 2]))
    load, fit, *_ = strategy.learn(2, 0)
    (head,) = fit.terms[1:]
    weights, bias = (strategy.parameters[f"head.{name}"].clone() for name in ("weight", "bias"))
    weights.requires_grad_(), bias.requires_grad_()
    rows, targets = strategy.features[:4], strategy.labels[:4]
    logs = ((rows @ weights.T + bias) / 0.5).log_softmax(1)
    loss = 0.05 * F.kl_div(logs, targets, reduction="batchmean")
    loss.backward()
    worker = Worker(strategy.experiment)
    alone = type(fit)(head.on, (Soft(**(vars(head) | {"on": None})),))
    reply = worker.perform(Assignment(0, 2, "learn", (load, alone)))
    assert reply.metrics["train_loss"] == pytest.approx(loss.item(), rel=1e-4)
    own = worker.state(0)["own"]
    for name, value in own.items():
        if name.startswith("head."):
            slope = (weights if name == "head.weight" else bias).grad
            wanted = strategy.parameters[name] - 0.5 * slope
            assert torch.allclose(value, wanted, atol=1e-5)
        else:
            assert torch.equal(value, strategy.parameters[name])


@pytest.mark.parametrize("cut", ["conv1", "fc1"])
def test_a_class_may_lie_among_feature_maps(cut, small, tmp_path):
    keys = ("student.models=['cnn2']", "student.width=0.1", f"strategy.cut={cut}")
    done = run(small("strategy.name=fedhkd", *keys), tmp_path / "run")
    assert all(line["left_out"] == [] for line in done.rounds)


def test_every_option_changes_the_numbers(each_changes_the_numbers):
    choices = ["strategy.weight=5", "strategy.gamma=5", "strategy.tau=3", "strategy.cut=fc1"]
    choices += ["strategy.objective=reverse_kl"]
    each_changes_the_numbers(["strategy.name=fedhkd", "strategy.weight=1"], choices)


def test_text_is_refused_in_one_line(tmp_path):
    with pytest.raises(FedkdError, match=r"'fedhkd' is not allowed with data\.dataset = "):
        run(texts.small(tmp_path / "texts", "strategy.name=fedhkd"), tmp_path / "run")


@pytest.mark.parametrize("name", ["fedhkd", "fedgen"])
def test_a_part_below_the_cut_is_refused_before_the_first_round(name, made):
    with pytest.raises(FedkdError, match=r"training\.part = \['fc1'\] is not allowed"):
        made(name, "training.part=['fc1']")
    made(name, "training.part=['head']")
