"""The exact checks of FedD2S's specification."""

from itertools import pairwise

import pytest
import torch
from lines import measured

from fedkd import FedkdError, registry, run
from fedkd.data.federated import load
from fedkd.sections import StudentTable
from fedkd.strategies.base import KnowledgeStrategy, Replies
from fedkd.strategies.fedd2s import FedD2S, cut_at, pooled
from fedkd.students import build
from fedkd.training import fit
from fedkd.work import Fit, Reply, Samples

D2S = ("strategy.name=fedd2s", "data.transfer.size=0")
CNN = ("student.models=['cnn2']", "student.width=0.25")


@pytest.fixture
def made(small):
    def make(*overrides):
        experiment = small(*D2S, *overrides)
        data = load(experiment)
        return FedD2S(experiment, data.task, data.label_counts())

    return make


# --- the schedule ---------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1, 3, 10])
@pytest.mark.parametrize("cuts", [1, 3, 5])
def test_the_cut_never_moves_deeper_and_visits_the_set_in_order(cuts, q):
    places = [cut_at(round, cuts, q) for round in range(1, 61)]
    assert places[0] == 0
    assert all(0 <= after - before <= 1 for before, after in pairwise(places))
    assert sorted(set(places)) == list(range(cuts))
    assert all(places.count(place) == q for place in range(cuts - 1))


def test_without_a_rate_the_cut_never_moves():
    assert {cut_at(round, 4, None) for round in range(1, 200)} == {0}


def test_the_schedule_follows_the_formula():
    for round in range(1, 40):
        assert cut_at(round, 3, 7) == min(2, (round - 1) // 7)


def test_the_record_shows_the_cut_of_each_round(small, tmp_path):
    done = run(small(*D2S, *CNN, "rounds=4", "strategy.rounds_per_drop=1"), tmp_path / "run")
    cuts = [line["strategy"]["cut"] for line in done.rounds]
    assert cuts == ["fc1", "conv2", "conv1", "conv1"]
    for line in done.rounds:
        found = line["strategy"]
        assert 0 < found["head_loss"] < 20
        assert 0 <= found["head_accuracy"] <= 1
        assert 0 <= found["head_heldout_accuracy"] <= 1
        assert found["head_kl"] >= 0


def test_all_active_cuts_are_those_not_yet_dropped(small, tmp_path):
    options = ("rounds=3", "strategy.rounds_per_drop=1", "strategy.active=all")
    done = run(small(*D2S, *CNN, *options), tmp_path / "run")
    cuts = [line["strategy"]["cut"] for line in done.rounds]
    assert cuts == [["fc1", "conv2", "conv1"], ["conv2", "conv1"], "conv1"]


# --- the second phase -----------------------------------------------------------------------


def test_without_distillation_the_second_phase_is_local_training(small, tmp_path):
    @registry.register("strategies", "twice")
    class Twice(KnowledgeStrategy):
        def receive(self, round, client):
            return [Fit("private", epochs=1, min_steps=0)]

    d2s = run(small(*D2S, "strategy.lam=0"), tmp_path / "d2s")
    twice = run(small("strategy.name=twice", "data.transfer.size=0"), tmp_path / "twice")

    def tests(done):
        return [
            {key: value for key, value in line.items() if "loss" not in key or "own" in key}
            for line in measured(done)[1]
        ]

    assert tests(d2s) == tests(twice)


@pytest.mark.parametrize("student", ["full", "base", "head"])
@pytest.mark.parametrize("cut", ["fc1", "conv2", "conv1"])
def test_the_gradient_of_distillation_is_zero_above_the_cut(made, student, cut):
    """In base and head to the bit; in full it reaches everything."""
    strategy = made(*CNN, f"strategy.student={student}", f"strategy.cuts=['{cut}']")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(40, 1, 8, 8, generator=generator)
    labels = torch.arange(40) % 10
    client = build("cnn2", (1, 8, 8), 10, StudentTable(width=0.25), 5)
    before = {name: value.clone() for name, value in client.state_dict().items()}
    blocks = list(dict(client.named_children()))
    below = blocks[: blocks.index(cut) + 1]
    with torch.no_grad():
        held = client[: len(below)](inputs)
    upload = {"inputs": held, "soft_labels": torch.rand(40, 10).softmax(1), "labels": labels}
    strategy.fused = {0: {}}
    strategy._train_head(1, "cnn2", cut, {0: upload})
    distillation = strategy._terms("cnn2", cut, strategy.fused[0][cut], 1.0)
    training = strategy.experiment.training
    fit(client, Samples(inputs, labels), distillation, training, generator, epochs=1)
    for name, value in client.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == (student == "full" or name.split(".")[0] in below), name


def test_a_control_without_a_server_sends_nothing(small, tmp_path):
    done = run(small(*D2S, "strategy.teacher=self"), tmp_path / "run")
    assert (done.summary["bytes_up"], done.summary["bytes_down"]) == (0, 0)
    local = run(small("strategy.name=local", "data.transfer.size=0"), tmp_path / "local")
    assert done.rounds[0]["local"] == local.rounds[0]["local"]


# --- what is sent ---------------------------------------------------------------------------


def test_bytes_are_the_sizes_of_the_arrays(small, tmp_path):
    done = run(small(*D2S, *CNN, "rounds=2", "strategy.rounds_per_drop=1"), tmp_path / "run")
    samples, classes = 4 * 60, 10
    sizes = [samples * (4 * (width + classes) + 8) for width in (128, 16 * 2 * 2)]
    assert [line["bytes_up"] for line in done.rounds] == [sizes[0], samples * (4 * (64 + 10) + 8)]
    assert [line["bytes_down"] for line in done.rounds] == [samples * classes * 4] * 2


def test_pooled_feature_maps_are_smaller(small, tmp_path):
    options = (*D2S, *CNN, "rounds=1", "strategy.cuts=['conv1']", "strategy.head=mlp")
    whole = run(small(*options), tmp_path / "whole").rounds[0]["bytes_up"]
    means = run(small(*options, "strategy.pool=true"), tmp_path / "means").rounds[0]["bytes_up"]
    assert whole - means == 4 * 60 * 4 * (8 * 4 * 4 - 8)


def test_a_new_head_may_train_before_anyone_learns_from_it(small, tmp_path):
    options = ("rounds=4", "strategy.rounds_per_drop=2", "strategy.warm_up=1")
    done = run(small(*D2S, *options), tmp_path / "run")
    assert [line["bytes_down"] > 0 for line in done.rounds] == [False, True, False, True]


def test_clients_count_the_same_when_asked_to():
    def upload(client, count):
        return {
            "inputs": torch.full((count, 2), float(client)),
            "soft_labels": torch.rand(count, 3),
            "labels": torch.arange(count),
        }

    uploads = [upload(0, 2), upload(1, 5)]
    by_sample = pooled(uploads, equally=False)["inputs"][:, 0]
    by_client = pooled(uploads, equally=True)
    assert by_sample.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert by_client["inputs"][:, 0].tolist() == [0] * 5 + [1] * 5
    assert by_client["labels"].tolist() == [0, 1, 0, 1, 0, 0, 1, 2, 3, 4]


def test_a_head_learns_what_the_uploads_show(made):
    strategy = made("student.models=['mlp']", "strategy.server_epochs=60", "strategy.lam=0")
    labels = torch.arange(100) % 10
    inputs = torch.eye(10)[labels].repeat(1, 20) + 0.1 * torch.randn(100, 200)
    upload = {"inputs": inputs, "soft_labels": torch.full((100, 10), 0.1), "labels": labels}
    strategy.fuse(1, Replies([Reply(0, 100, {"fc2": upload})]))
    assert strategy.found["head_accuracy"] > 0.9
    assert torch.equal(strategy.fused[0]["fc2"].argmax(1), labels)


# --- choices --------------------------------------------------------------------------------


CHOICES = [
    "strategy.student=base",
    "strategy.student=head",
    "strategy.active=all",
    "strategy.teacher=self",
    "strategy.tau=1",
    "strategy.lam=0.3",
    "strategy.kd_epochs=2",
    "strategy.server_epochs=1",
    "server.batch_size=16",
    "strategy.head=mlp",
    "strategy.warm_up=1",
    "strategy.rounds_per_drop=never",
]


@pytest.mark.slow
def test_every_choice_runs_and_changes_the_numbers(each_changes_the_numbers):
    each_changes_the_numbers((*D2S, "rounds=3", "strategy.rounds_per_drop=1"), CHOICES)


def test_a_head_that_diverges_is_warned_of_once_and_teaches_nobody(made):
    strategy = made("strategy.rounds_per_drop=never")
    upload = {
        "inputs": torch.full((50, 200), torch.inf),
        "soft_labels": torch.full((50, 10), 0.1),
        "labels": torch.arange(50) % 10,
    }
    for round in (1, 2):
        strategy.fuse(round, Replies([Reply(0, 50, {"fc2": upload})]))
    assert len(strategy._outcome.line["warnings"]) == 1
    assert "diverged" in strategy._outcome.line["warnings"][0]
    assert bool(strategy.fused[0]["fc2"].isnan().all())


def test_weighting_by_clients_matters_where_sizes_differ(small, tmp_path):
    sizes = ("data.partition=quantity-skew", "data.alpha=1", "rounds=1")
    by_sample = run(small(*D2S, *sizes), tmp_path / "samples").rounds[0]
    by_client = run(small(*D2S, *sizes, "strategy.weighting=clients"), tmp_path / "clients")
    assert by_client.rounds[0]["own_loss_mean"] != by_sample["own_loss_mean"]
    assert by_client.rounds[0]["bytes_up"] == by_sample["bytes_up"]


def test_architectures_may_differ_and_have_heads_of_their_own(small, tmp_path):
    done = run(small(*D2S, "student.models=['cnn2', 'mlp']"), tmp_path / "run")
    assert done.rounds[-1]["left_out"] == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy.cuts=['conv2']"], r"strategy\.cuts, student 'mlp': cut 'conv2' .*: fc1, fc2"),
        (
            ["student.models=['cnn2', 'mlp']", "strategy.cuts=['conv2']"],
            r"student 'mlp': cut 'conv2'",
        ),
        (["strategy.cuts=['head']"], r"cut 'head' is not a cut of this student"),
        (["strategy.cuts=['fc1', 'fc2']"], r"from deep to shallow, each cut once"),
        (["strategy.cuts=['fc2', 'fc2']"], r"from deep to shallow, each cut once"),
        (["strategy.pool=true"], r"strategy\.pool = True is not allowed with strategy\.head"),
        (["strategy.student=head", "strategy.head=mlp"], r"strategy\.head = 'mlp' is not allowed"),
        (["strategy.rounds_per_drop=often"], r"strategy\.rounds_per_drop"),
        (["strategy.rounds_per_drop=0"], r"strategy\.rounds_per_drop = 0 is not allowed"),
    ],
)
def test_a_cut_or_choice_that_cannot_be_is_one_line(overrides, line, small, tmp_path):
    with pytest.raises(FedkdError, match=line) as failure:
        run(small(*D2S, *overrides), tmp_path / "run")
    assert "\n" not in str(failure.value)
