"""Known answers of the methods that need no transfer set: FedGKT, FedProto, FD."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from lines import Killed, KilledAfter, measured

from fedkd import FedkdError, registry, run
from fedkd.distillation.targets import soften
from fedkd.engine.worker import Worker
from fedkd.strategies.base import Replies
from fedkd.strategies.fedgkt import passes
from fedkd.strategies.fedproto import mean_by_class
from fedkd.work import (
    Assignment,
    CrossEntropy,
    Evaluate,
    Feature,
    Network,
    Predict,
    Reply,
    Represent,
    Soft,
)

ALL = ["feddistill", "fedgkt", "fedproto"]
OFF = {
    "feddistill": "strategy.gamma=0",
    "fedgkt": "strategy.weight=0",
    "fedproto": "strategy.weight=0",
}
NONE = "data.transfer.size=0"
NAN = [math.nan] * 2


def replies(key, sent):
    """Replies with the named arrays ``key``, by client."""
    return Replies([Reply(client, 10, {key: arrays}) for client, arrays in sent.items()])


def same(a, b):
    """Equality where no number is a number like any other."""
    return torch.allclose(a, torch.as_tensor(b, dtype=a.dtype), equal_nan=True)


# --- FedProto -------------------------------------------------------------------------------


def test_prototypes_are_weighted_by_counts():
    means = torch.tensor(
        [[[0.0, 4.0], [1.0, 1.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]
    )
    counts = torch.tensor([[3, 2, 0], [1, 0, 0]])
    assert same(mean_by_class(means, counts), [[1.0, 3.0], [1.0, 1.0], NAN])


def class_means(rows, counts, size):
    mean = torch.zeros(10, size)
    mean[: len(rows)] = torch.tensor(rows)[:, None]
    count = torch.zeros(10, dtype=torch.long)
    count[: len(counts)] = torch.tensor(counts)
    return {"mean": mean, "count": count}


def test_global_prototypes_by_hand(made):
    strategy = made("fedproto")
    sent = {
        0: class_means([1.0, 2.0], [3, 1], 200),
        1: class_means([5.0, 0.0, 7.0], [1, 0, 4], 200),
    }
    strategy.fuse(1, replies("prototypes", sent))
    assert strategy.prototypes[:3, 0].tolist() == [2.0, 2.0, 7.0]
    assert strategy.prototypes[3:].isnan().all()


def test_a_class_that_nobody_present_holds_keeps_its_prototype(made):
    strategy = made("fedproto")
    strategy.fuse(1, replies("prototypes", {0: class_means([1.0, 2.0], [3, 1], 200)}))
    strategy.fuse(2, replies("prototypes", {1: class_means([9.0, 0.0], [3, 0], 200)}))
    assert strategy.prototypes[:2, 0].tolist() == [9.0, 2.0]


def test_prototypes_are_taken_at_the_penultimate_cut_and_used_from_round_2(made):
    strategy = made("fedproto", "strategy.weight=0.3")
    fit, ask = strategy.learn(1, 0)
    assert fit.terms == (CrossEntropy(),)
    assert ask == Represent("fc2", per="class", key="prototypes")
    strategy.fuse(1, replies("prototypes", {0: class_means([1.0], [3], 200)}))
    (_, term) = strategy.learn(2, 1)[0].terms
    assert isinstance(term, Feature)
    assert (term.cut, term.weight) == ("fc2", 0.3)
    assert same(term.targets, strategy.prototypes)


def test_representations_of_different_sizes_are_refused_before_round_1(small, tmp_path):
    experiment = small("strategy.name=fedproto", "student.models=['cnn2', 'mlp']")
    line = (
        r"student\.models = \['cnn2', 'mlp'\] is not allowed with strategy\.name = 'fedproto': it "
        r"averages .* have 512 \(cnn2 at fc1\), 200 \(mlp at fc2\); student\.representation gives "
    )
    with pytest.raises(FedkdError, match=line) as failure:
        run(experiment, tmp_path / "run")
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_prototypes_bring_the_clients_representations_together(made):
    def apart(weight):
        strategy = made("fedproto", f"strategy.weight={weight}")
        worker = Worker(strategy.experiment)
        for number in (1, 2, 3):
            sent = Replies(
                worker.perform(
                    Assignment(client, number, "learn", tuple(strategy.learn(number, client)))
                )
                for client in range(4)
            )
            strategy.fuse(number, sent)
        pairs = [
            (one["mean"] - strategy.prototypes)[one["count"] > 0].square().mean()
            for one in sent.parameters("prototypes")
        ]
        return float(sum(pairs))

    assert apart(5) < 0.5 * apart(0)


# --- FD -------------------------------------------------------------------------------------


def logits(rows):
    """One client's means from ``{class: value}``; a class it does not hold has zeros."""
    mean, count = torch.zeros(10, 10), torch.zeros(10, dtype=torch.long)
    for label, value in rows.items():
        mean[label], count[label] = value, 1 + label
    return {"mean": mean, "count": count}


SENT = {0: logits({0: 1.0, 1: 2.0}), 1: logits({0: 3.0}), 2: logits({0: 8.0, 1: 4.0, 2: 6.0})}


def test_a_client_learns_from_the_mean_of_the_others(made):
    strategy = made("feddistill")
    strategy.fuse(1, replies("class_logits", SENT))
    nan = math.nan
    for client, expected in {
        0: [5.5, 4.0, 6.0],
        1: [4.5, 3.0, 6.0],
        2: [2.0, 2.0, nan],
        3: [4.0, 3.0, 6.0],  # it has sent nothing yet
    }.items():
        assert same(strategy.target(client)[:3, 0], expected)
        assert strategy.target(client)[3:].isnan().all()


def test_a_class_that_only_one_client_holds_has_no_target_for_it(made):
    strategy = made("feddistill")
    strategy.fuse(1, replies("class_logits", SENT))
    (_, soft) = strategy.learn(2, 2)[0].terms
    assert soft.targets[2].isnan().all()
    assert soft.per == "class"
    assert same(strategy.learn(2, 0)[0].terms[1].targets[2], [6.0] * 10)


def test_who_is_away_still_teaches(made):
    strategy = made("feddistill")
    strategy.fuse(1, replies("class_logits", SENT))
    strategy.fuse(2, replies("class_logits", {1: logits({1: 10.0})}))
    assert same(strategy.target(0)[:3, 0], [8.0, 7.0, 6.0])
    assert same(strategy.target(1)[:3, 0], [4.5, 3.0, 6.0])


def test_a_client_alone_has_no_teacher(made):
    strategy = made("feddistill")
    strategy.fuse(1, replies("class_logits", {0: SENT[0]}))
    fit, ask = strategy.learn(2, 0)
    assert fit.terms == (CrossEntropy(),)
    assert ask == Predict("private", output="logits", per="class", key="class_logits")
    assert len(strategy.learn(2, 1)[0].terms) == 2


def test_softened_means_are_what_forward_kl_approaches(made):
    strategy = made("feddistill", "strategy.objective=forward_kl", "strategy.tau=2")
    sent = {"mean": torch.eye(10) * 4, "count": torch.tensor([1] * 9 + [0])}
    strategy.fuse(1, replies("class_logits", {1: sent}))
    (_, soft) = strategy.learn(2, 0)[0].terms
    assert isinstance(soft, Soft)
    assert (soft.objective, soft.temperature) == ("forward_kl", 2.0)
    assert same(soft.targets[:9], soften(4 * torch.eye(10), 2.0)[:9])
    assert soft.targets[9].isnan().all()


# --- FedGKT ---------------------------------------------------------------------------------


def uploads(client, samples, size=200):
    draw = torch.Generator().manual_seed(client)
    return {
        "inputs": torch.randn(samples, size, generator=draw),
        "soft_labels": torch.randn(samples, 10, generator=draw).softmax(1),
        "labels": torch.randint(10, (samples,), generator=draw),
    }


@pytest.mark.parametrize("head", ["same", "mlp"])
def test_a_client_gets_what_the_head_says_of_its_own_samples(head, made):
    strategy = made("fedgkt", f"strategy.head={head}")
    sent = {0: uploads(0, 7), 2: uploads(2, 5)}
    before = strategy.server.parameters("mlp")
    strategy.fuse(1, replies("representation", sent))
    after = strategy.server.parameters("mlp")
    assert not any(torch.equal(after[name], before[name]) for name in before)
    for client, arrays in sent.items():
        said = soften(strategy.server.predict("mlp", arrays["inputs"]), 3.0)
        assert torch.allclose(strategy.targets[client], said, atol=1e-6)
    (_, soft) = strategy.learn(2, 2)[0].terms
    assert torch.equal(soft.targets, strategy.targets[2])
    assert (soft.temperature, soft.weight, soft.objective) == (3.0, 1.0, "forward_kl")


def test_who_is_away_finds_the_labels_of_its_last_upload(made):
    strategy = made("fedgkt")
    strategy.fuse(1, replies("representation", {0: uploads(0, 7), 1: uploads(1, 7)}))
    kept = strategy.targets[0].clone()
    strategy.fuse(2, replies("representation", {1: uploads(1, 7)}))
    assert torch.equal(strategy.targets[0], kept)
    assert strategy.learn(3, 3)[0].terms == (CrossEntropy(),)  # never took part


def test_the_server_learns_what_the_uploads_say(made):
    """Labels that depend on the representation: accuracy rises from chance."""
    strategy = made("fedgkt", "strategy.server_epochs=30", "strategy.weight=0")
    arrays = uploads(0, 60)
    arrays["labels"] = arrays["inputs"][:, :10].argmax(1)
    strategy.fuse(1, replies("representation", {0: arrays}))
    assert strategy.server_line["server_accuracy"]["mlp"] > 0.9


def test_a_server_that_diverges_is_warned_of_and_teaches_nobody(made):
    strategy = made("fedgkt")
    arrays = uploads(0, 7)
    arrays["inputs"] *= 1e38
    strategy.fuse(1, replies("representation", {0: arrays}))
    (warning,) = strategy._outcome.line["warnings"]
    assert "the server's head for mlp diverged" in warning
    assert strategy.targets[0].isnan().all()


def test_the_server_trains_longest_at_first():
    assert [passes(round, 200) for round in (1, 20, 21, 31, 41, 101, 151, 200)] == [
        *(20, 20, 15, 10, 5, 3, 2, 2)
    ]
    assert [passes(round, 10) for round in range(1, 11)] == [20, 15, 5, 5, 5, 3, 3, 3, 2, 2]
    assert passes(1, 1) == 20


def test_a_larger_network_takes_the_place_of_the_head(made, small, tmp_path):
    image = ["student.models=['cnn2']", "student.norm=group", "strategy.cut=conv1"]
    strategy = made("fedgkt", *image, "strategy.server_model=resnet8")
    head = strategy.server.parameters("cnn2")
    same = made("fedgkt", *image).server.parameters("cnn2")
    assert head.keys() != same.keys()
    assert strategy.score(1, 0)[0].above.parameters is head
    done = run(
        small("strategy.name=fedgkt", "strategy.server_model=mlp", "student.width=0.2", "rounds=1"),
        tmp_path / "run",
    )
    assert done.rounds[0]["strategy"]["server_accuracy"]["mlp"] > 0
    assert done.summary["headline_accuracy"] == done.rounds[0]["own_server_accuracy_mean"]


def test_a_network_that_is_what_it_stands_in_for_tests_as_the_student_does(small):
    @registry.register("students", "top")
    def top(shape, classes, norm, width):
        return copy.deepcopy(above)

    worker = Worker(small("strategy.name=local", "student.models=['cnn2']", "student.width=0.2"))
    above = worker.template("cnn2")[2:]
    own = worker.state(0)["own"]
    parameters = {name: own[name] for name in above.state_dict()}
    same = Evaluate(key="same", above=Network("conv2", "top", parameters))
    found = worker.perform(Assignment(0, 1, "learn", (Evaluate(), same))).metrics
    for name in ("accuracy", "loss", "ece"):
        assert found[f"same_{name}"] == pytest.approx(found[f"own_{name}"], rel=1e-6)


def test_a_network_with_other_parameters_ends_the_run_in_one_line(small, tmp_path):
    @registry.register("strategies", "misshapen")
    class Misshapen(registry.load("strategies", "fedgkt")):
        def score(self, round, client):
            (step,) = super().score(round, client)
            wrong = {**step.above.parameters, "head.bias": torch.zeros(3)}
            return [replace(step, above=replace(step.above, parameters=wrong))]

    keys = ("strategy.server_model=mlp", "student.width=0.2")
    with pytest.raises(FedkdError, match=r"head\.bias of its parameters is not that of 'mlp'"):
        run(small("strategy.name=misshapen", *keys), tmp_path / "run")


def test_a_larger_network_that_does_not_fit_is_one_line_before_round_1(small, tmp_path):
    wrong = small("strategy.name=fedgkt", "strategy.server_model=resnet8")
    with pytest.raises(FedkdError, match=r"strategy\.server_model = 'resnet8' does not fit .* fc1"):
        run(wrong, tmp_path / "run")


@pytest.mark.parametrize(("model", "cut"), [("cnn2", "conv2"), ("cnn3", "conv3"), ("mlp", "fc1")])
def test_the_cut_is_below_the_last_hidden_block(model, cut, made):
    strategy = made("fedgkt", f"student.models=['{model}']", "student.width=0.1")
    assert strategy.learn(1, 0)[1] == Represent(cut, temperature=3.0)


@pytest.mark.parametrize("name", ["fedgkt", "fedproto"])
def test_an_unknown_cut_is_one_line_before_round_1(name, small, tmp_path):
    experiment = small(f"strategy.name={name}", "strategy.cut=conv2")
    with pytest.raises(FedkdError, match=r"cut 'conv2' is not a cut .*: fc1, fc2$"):
        run(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


# --- all three ------------------------------------------------------------------------------


def test_bytes_are_those_of_the_arrays(small, tmp_path):
    samples, classes, float32, int64 = 60, 10, 4, 8
    one = {
        "fedgkt": (
            samples * ((200 + classes) * float32 + int64),
            samples * classes * float32,
        ),
        "fedproto": (classes * (200 * float32 + int64), classes * 200 * float32),
        "feddistill": (classes * (classes * float32 + int64), classes * classes * float32),
    }
    for name, (up, down) in one.items():
        lines = run(small(f"strategy.name={name}", NONE), tmp_path / name).rounds
        assert [line["bytes_up"] for line in lines] == [4 * up, 4 * up]
        assert [line["bytes_down"] for line in lines] == [0, 4 * down]


def after_training(done):
    """What clients' own students were after local training; nothing changes them later."""
    return [line for line in measured(done)[1] if line["stage"] == "local"]


@pytest.mark.parametrize("name", ALL)
def test_without_weight_it_is_local_training_to_the_bit(name, small, tmp_path):
    local = run(small("strategy.name=local", NONE), tmp_path / "local")
    weightless = run(small(f"strategy.name={name}", OFF[name], NONE), tmp_path / "run")
    assert after_training(weightless) == after_training(local)


@pytest.mark.parametrize("name", ALL)
def test_with_weight_it_is_local_training_in_round_1_alone(name, small, tmp_path):
    local = after_training(run(small("strategy.name=local", NONE), tmp_path / "local"))
    lines = after_training(run(small(f"strategy.name={name}", NONE), tmp_path / "run"))
    for number, alike in ((1, True), (2, False)):
        pair = [[line for line in side if line["round"] == number] for side in (lines, local)]
        assert (pair[0] == pair[1]) == alike


MODELS = {
    "feddistill": ("cnn2", "mlp"),
    "fedgkt": ("cnn2", "mlp"),
    "fedproto": ("cnn2", "cnn3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_killed_run_of_two_architectures_ends_as_it_would_have(name, small, tmp_path):
    experiment = small(
        f"strategy.name={name}",
        f"student.models={list(MODELS[name])}",
        "student.width=0.1",
        "participation=0.5",
        "rounds=4",
        "checkpoint_every=1",
        NONE,
    )
    whole = run(experiment, tmp_path / "whole")
    with pytest.raises(Killed):
        run(experiment, tmp_path / "killed", observer=KilledAfter(3))
    resumed = run(experiment, tmp_path / "killed", resume=True)
    assert measured(resumed) == measured(whole)
    assert whole.rounds[-1]["bytes_down"] > 0


@pytest.mark.parametrize("name", ALL)
def test_a_client_that_returns_nan_is_left_out(name, small, tmp_path, monkeypatch):
    perform = Worker.perform

    def spoil(self, assignment):
        reply = perform(self, assignment)
        if assignment.client == 1 and "train_loss" in reply.metrics:
            reply.metrics["train_loss"] = math.nan
            for arrays in reply.values.values():
                for array in arrays.values():
                    if array.is_floating_point():
                        array.fill_(math.nan)
        return reply

    monkeypatch.setattr(Worker, "perform", spoil)
    alone = "engine.cohort=off"
    done = run(small(f"strategy.name={name}", "rounds=3", NONE, alone), tmp_path / "run")
    for line in done.rounds:
        assert line["participants"] == [0, 2, 3]
        assert [entry["client"] for entry in line["left_out"]] == [1]
    healthy = [line for line in done.clients if line["client"] != 1]
    assert all(math.isfinite(line["own_loss"]) for line in healthy)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "feddistill strategy.objective=forward_kl strategy.tau=3",
        "fedgkt strategy.head=mlp strategy.hidden=16",
        "fedgkt strategy.cut=fc2",
        "fedgkt strategy.server_epochs=0",
        "fedgkt strategy.tau=1",
        "fedproto strategy.cut=fc1",
        "fedproto strategy.weight=5",
    ],
)
def test_every_choice_runs_and_changes_the_numbers(option, small, tmp_path):
    name, *options = option.split()
    plain = run(small(f"strategy.name={name}", NONE), tmp_path / "plain")
    chosen = run(small(f"strategy.name={name}", NONE, *options), tmp_path / "chosen")
    assert plain.rounds[-1]["own_loss_mean"] != chosen.rounds[-1]["own_loss_mean"]
