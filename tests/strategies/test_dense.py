"""Known answers of DENSE."""

import pytest
import torch
from lines import measured
from torch import nn
from torch.nn import functional as F

from fedkd import FedkdError, run
from fedkd.data.federated import Task
from fedkd.registry import load as find
from fedkd.strategies.base import Replies
from fedkd.strategies.dense import Ensemble, Generator, disagreement
from fedkd.work import Fit, Reply, Share


def replies(*sent):
    return Replies(Reply(n, 10, {"parameters": each}) for n, each in enumerate(sent))


def student(seed, norm="batch"):
    """A student that has seen some samples."""
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)]
    if norm == "batch":
        layers.insert(2, nn.BatchNorm1d(12))
    found = nn.Sequential(*layers)
    found(torch.randn(50, 1, 8, 8))
    return found.eval().requires_grad_(False)


# --- the terms ------------------------------------------------------------------------------


def test_the_ensemble_is_the_mean_of_the_logits():
    members, inputs = [student(0), student(1)], torch.randn(7, 1, 8, 8)
    by_hand = (members[0](inputs) + members[1](inputs)) / 2
    assert torch.allclose(Ensemble(members)(inputs), by_hand)


def test_the_gap_is_the_distance_of_a_batchs_statistics_from_those_that_were_learned():
    members, inputs = [student(0), student(1), student(2, "none")], torch.randn(7, 1, 8, 8)
    gaps = []
    for member in members[:2]:
        hidden, layer = member[:2](inputs), member[2]
        gaps.append((hidden.mean(0) - layer.running_mean).norm())
        gaps.append((hidden.var(0, correction=0) - layer.running_var).norm())
    ensemble = Ensemble(members)
    for _ in range(2):  # of one batch, not of all since
        ensemble(inputs)
        assert torch.allclose(ensemble.gap, sum(gaps) / 3)
    assert Ensemble(members[2:]).gap == 0


def test_a_batch_with_the_statistics_that_were_learned_has_no_gap():
    layer = nn.BatchNorm2d(3)
    images = torch.randn(5, 3, 4, 4)
    values = images.transpose(0, 1).flatten(1)
    layer.running_mean, layer.running_var = values.mean(1), values.var(1, correction=0)
    ensemble = Ensemble([layer.eval()])
    ensemble(images)
    assert ensemble.gap < 1e-6
    ensemble(2 * images)
    assert ensemble.gap > 1


def test_disagreement_counts_where_the_student_names_another_class():
    teachers = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    logits = torch.tensor([[9.0, 1.0], [0.0, 1.0], [5.0, 4.0]])
    law, own = teachers.softmax(1), logits.softmax(1)
    apart = (law * (law / own).log()).sum(1)
    assert torch.allclose(disagreement(logits, teachers), (apart[1] + apart[2]) / 3)
    assert disagreement(teachers, teachers) == 0


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 10), (1, 28, 28)])
def test_generated_images_have_the_shape_of_inputs_and_are_normalised(shape):
    images = Generator(20, 8, 4, shape)(torch.arange(20))
    assert images.shape == (20, *shape)
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.var((0, 2, 3)) - 1).abs().max() < 1e-2


# --- the server -----------------------------------------------------------------------------


def test_the_loss_of_the_first_step_by_hand(made):
    weights = ("strategy.bn=0.3", "strategy.adversarial=0.7", "student.norm=batch")
    strategy = made("dense", *weights, "strategy.generator_steps=1")
    members = [strategy.initial_student() for _ in range(2)]
    for seed, member in enumerate(members):
        torch.manual_seed(seed)
        member.train()(torch.randn(40, 1, 8, 8))
        for tensor in member.parameters():
            tensor.data += 0.1 * torch.randn_like(tensor)
        member.eval().requires_grad_(False)
    torch.manual_seed(7)
    images = strategy.generate(1, Ensemble(members))
    torch.manual_seed(7)
    labels, generator = torch.randint(10, (16,)), strategy.fresh_generator()
    made_up = generator(torch.arange(16))
    teachers = torch.stack([member(made_up) for member in members]).mean(0)
    ensemble = Ensemble(members)
    ensemble(made_up)
    by_hand = F.cross_entropy(teachers, labels) + 0.3 * ensemble.gap
    by_hand -= 0.7 * disagreement(strategy.server.frozen("server")(made_up), teachers)
    found = strategy.server_line["generator_loss"]
    assert found == pytest.approx(float(by_hand.detach()), rel=1e-4)
    # The same images, in another order.
    assert torch.allclose(images.flatten(1).sum(1).sort()[0], made_up.flatten(1).sum(1).sort()[0])


def test_training_the_generator_changes_no_student(made):
    strategy = made("dense", "strategy.generator_steps=20")
    before = {name: strategy.server.parameters(name) for name in ("server", "client mlp")}
    clients = strategy.server.frozen("client mlp")
    strategy.generate(1, Ensemble([clients]))
    for name, parameters in before.items():
        after = strategy.server.parameters(name)
        assert all(torch.equal(after[each], parameters[each]) for each in parameters)
    held = clients.state_dict()
    assert all(torch.equal(held[each], before["client mlp"][each]) for each in held)


def test_what_is_generated_is_named_as_was_asked_for(made):
    losses = []
    for steps in (1, 60):
        keys = (f"strategy.generator_steps={steps}", "strategy.generator_lr=0.01")
        strategy = made("dense", *keys, "strategy.adversarial=0")
        strategy.generate(1, Ensemble([strategy.server.frozen("client mlp")]))
        losses.append(strategy.server_line["generator_loss"])
    assert losses[1] < losses[0] - 0.3


def test_an_ensemble_that_is_the_servers_student_teaches_it_nothing(made):
    strategy = made("dense", "training.optimiser=sgd", "strategy.server_epochs=3")
    before = strategy.server.parameters("server")
    strategy.fuse(2, replies(before, before))
    assert strategy.server_line["server_loss"] < 1e-6
    after = strategy.server.parameters("server")
    assert all(torch.allclose(after[each], before[each], atol=1e-6) for each in before)


def test_the_servers_student_learns_what_the_ensemble_says(made):
    long = ("strategy.server_epochs=12", "server.batch_size=16")
    strategy = made("dense", *long)
    first = strategy.server.frozen("server")
    sent = {name: value + 0.1 for name, value in strategy.server.parameters("server").items()}
    strategy.fuse(2, replies(sent))
    ensemble = Ensemble([strategy.server.frozen("client mlp", sent)])
    images = strategy.generate(2, ensemble)
    law = ensemble(images).softmax(1)

    def distance(other):
        return F.kl_div(other(images).log_softmax(1), law, reduction="batchmean")

    assert distance(strategy.server.frozen("server")) < distance(first) / 2


# --- the rounds -----------------------------------------------------------------------------


def test_clients_train_alone_and_upload_once(small, tmp_path):
    done = run(small("strategy.name=dense"), tmp_path / "dense")
    alone = run(small("strategy.name=local"), tmp_path / "local")
    up = 4 * sum(tensor.numel() for tensor in student_of_the_small_run().parameters())
    assert [line["bytes_up"] for line in done.rounds] == [0, 4 * up]
    assert [line["bytes_down"] for line in done.rounds] == [0, 0]
    for mine, other in zip(measured(done)[0], measured(alone)[0], strict=True):
        for column in ("own_accuracy_mean", "own_loss_mean", "common_loss_mean", "local"):
            assert mine[column] == other[column]
    assert done.summary["headline"] == "own_server_accuracy_mean"
    first, last = (line["own_server_loss_mean"] for line in done.rounds)
    assert first != last


def student_of_the_small_run():
    from fedkd.sections import StudentTable
    from fedkd.students import build

    return build("mlp", (1, 8, 8), 10, StudentTable(), 0)


def test_every_round_is_another_choice(made):
    once, each = made("dense"), made("dense", "strategy.every_round=true")
    assert (once.learn(1, 0), once.learn(2, 0)) == ([Fit()], [Fit(), Share()])
    assert each.learn(1, 0) == each.learn(2, 0) == [Fit(), Share()]
    assert once.fuse(1, replies({})) is None


def test_architectures_may_differ(small, tmp_path):
    keys = ("strategy.name=dense", "student.models=['cnn2', 'mlp']", "student.width=0.1")
    done = run(small(*keys), tmp_path / "run")
    assert [client["student"] for client in done.partition["clients"]] == ["cnn2", "mlp"] * 2
    assert all(line["left_out"] == [] for line in done.rounds)
    assert done.rounds[1]["strategy"]["server_loss"] > 0


@pytest.mark.parametrize(
    ("task", "what"),
    [
        (Task((6,), 4, tuple("abcd")), "vectors of 6 features"),
        (Task((8,), 4, tuple("abcd"), tokens=True), "text"),
    ],
)
def test_what_is_no_image_is_refused(task, what, small):
    line = f"with strategy.name = 'dense': it generates images, and these are {what}"
    with pytest.raises(FedkdError, match=line):
        find("strategies", "dense")(small("strategy.name=dense"), task, torch.ones(4, 4))


def test_each_option_changes_the_servers_student(small, tmp_path):
    def loss(number, *overrides):
        keys = ("strategy.name=dense", "rounds=1", "student.norm=batch", *overrides)
        return run(small(*keys), tmp_path / str(number)).rounds[-1]["own_server_loss_mean"]

    plain = loss("plain")
    choices = [
        *("strategy.server_epochs=2", "server.lr=0.1", "server.batch_size=3"),
        *("strategy.generated=20", "strategy.generator_steps=9", "strategy.generator_lr=0.1"),
        *("strategy.codes=9", "strategy.channels=5", "strategy.bn=0", "strategy.adversarial=9"),
    ]
    for choice in choices:
        assert loss(choice, choice) != plain, choice
