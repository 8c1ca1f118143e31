"""Known answers of FedGen."""

import math

import pytest
import texts
import torch
from lines import measured

from fedkd import FedkdError, check, run
from fedkd.strategies.base import Replies
from fedkd.strategies.fedgen import alike
from fedkd.work import Count, CrossEntropy, Fit, Reply

OFF = "strategy.weight=0"
TWO = ("student.models=['cnn2', 'cnn3']", "student.width=0.1", "strategy.shared_blocks=1")


def reply(strategy, client, counts, move=0.0):
    """A client that holds so many of the first classes, and whose shared blocks lie beside."""
    parameters = {name: value + move for name, value in strategy.parameters.items()}
    counted = torch.tensor([*counts, *[0] * (10 - len(counts))])
    return Reply(client, sum(counts), {"parameters": parameters, "label_counts": counted})


@pytest.mark.parametrize(("shared", "other"), [(0, "fedavg"), (3, "fedavg"), (1, "lg-fedavg")])
def test_without_a_generator_it_is_fedavg_or_lg_fedavg_to_the_bit(shared, other, small, tmp_path):
    still = run(
        small("strategy.name=fedgen", OFF, f"strategy.shared_blocks={shared}"), tmp_path / "fedgen"
    )
    plain = run(small(f"strategy.name={other}"), tmp_path / other)
    assert measured(still) == measured(plain)


def test_clients_learn_from_what_was_generated_once_there_is_something(made):
    strategy = made("fedgen", "strategy.generated=40", "strategy.weight=0.5")
    _, fit, share, count = strategy.learn(1, 0)
    assert (fit, count) == (Fit(), Count())
    assert set(share.part) == {"fc1", "fc2", "head"}
    strategy.fuse(1, Replies([reply(strategy, 0, [3, 1]), reply(strategy, 1, [1, 0, 5])]))
    own, generated = strategy.learn(2, 0)[1].terms
    assert own == CrossEntropy()
    assert (generated.weight, generated.on.cut) == (0.5, "fc2")
    assert generated.on.inputs.shape == (40, 200)


def test_classes_are_generated_as_often_as_clients_hold_them(made):
    strategy = made("fedgen", "strategy.generated=2000", "strategy.server_steps=1")
    strategy.fuse(1, Replies([reply(strategy, 0, [30, 10]), reply(strategy, 1, [10, 0, 50])]))
    shares = strategy.made_labels.bincount(minlength=10) / 2000
    assert torch.allclose(shares, torch.tensor([0.4, 0.1, 0.5] + [0.0] * 7), atol=0.04)


def test_the_generator_learns_what_the_heads_take_for_its_classes(made):
    strategy = made("fedgen", "server.lr=0.01", "strategy.server_steps=200")
    sent = [reply(strategy, 0, [5] * 10), reply(strategy, 1, [5] * 10, move=0.01)]
    strategy.fuse(1, Replies(sent))
    for each in sent:
        head = {name: each.values["parameters"][name] for name in ("head.weight", "head.bias")}
        logits = strategy.made @ head["head.weight"].T + head["head.bias"]
        assert (logits.argmax(1) == strategy.made_labels).float().mean() > 0.9


def test_a_head_has_its_say_about_the_classes_that_its_client_holds(made):
    """One client holds all of a class: another one's head, which is no number, does not count."""
    strategy = made("fedgen", "strategy.server_steps=3")
    sent = [reply(strategy, 0, [5, 5]), reply(strategy, 1, [5, 5])]
    counts = torch.tensor([[5.0, 5.0] + [0.0] * 8, [0.0] * 10])
    parameters = [each.values["parameters"] for each in sent]
    both = strategy.train(1, parameters, counts)
    far = {name: value * 1000 for name, value in parameters[1].items()}
    other = made("fedgen", "strategy.server_steps=3").train(1, [parameters[0], far], counts)
    assert both == pytest.approx(other, rel=1e-6)


def test_likeness_by_hand():
    noise = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    made = torch.tensor([[1.0, 1.0], [2.0, 5.0]])
    # Two of four pairs are unlike: |z - z'| = 2.5 and |e - e'|^2 = 5, means over what they are of.
    assert float(alike(noise, made)) == pytest.approx(math.exp(-2 * 2.5 * 5 / 4))
    assert float(alike(noise, torch.ones(2, 7))) == 1.0


def test_bytes_are_those_of_what_was_generated_and_of_counts(small, tmp_path):
    done = run(small("strategy.name=fedgen", "strategy.generated=50"), tmp_path / "run")
    parameters = 4 * (64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10)
    first, second = done.rounds
    assert first["bytes_down"] == 4 * parameters
    assert second["bytes_down"] == 4 * (parameters + 50 * (200 * 4 + 8))
    assert first["bytes_up"] == second["bytes_up"] == 4 * (parameters + 10 * 8)
    steps = {(line["step"], line["on"]) for line in done.releases}
    assert steps == {("Count", "private"), ("Share", "")}


def test_bodies_may_differ_where_representations_have_one_shape(small, tmp_path):
    done = run(small("strategy.name=fedgen", *TWO), tmp_path / "run")
    assert [client["student"] for client in done.partition["clients"]] == ["cnn2", "cnn3"] * 2
    assert all(line["left_out"] == [] for line in done.rounds)


def test_feature_maps_may_be_generated(small, tmp_path):
    keys = ("student.models=['cnn2']", "student.width=0.1", "strategy.cut=conv2")
    done = run(small("strategy.name=fedgen", *keys), tmp_path / "run")
    assert done.rounds[1]["strategy"]["generator_loss"] > 0


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            ["student.models=['cnn2', 'mlp']", "strategy.shared_blocks=1"],
            r"representations of one shape, .* are \(512,\) \(cnn2 at fc1\), \(200,\) \(mlp",
        ),
        (["student.models=['cnn2', 'cnn3']"], r"its clients have one head, and theirs differ"),
        (
            ["strategy.shared_blocks=1", "strategy.cut=fc1"],
            "shared_blocks = 1 is not allowed with a cut at 'fc1': the server needs the 2 blocks",
        ),
        (["strategy.cut=fc9"], "cut 'fc9' is not a cut"),
        (["strategy.shared_blocks=4"], "shared_blocks = 4 is not allowed: mlp has 3 blocks"),
    ],
)
def test_what_does_not_fit_is_refused_before_round_1(keys, line, small, tmp_path):
    with pytest.raises(FedkdError, match=line):
        run(small("strategy.name=fedgen", *keys), tmp_path / "run")


def test_text_is_refused_in_one_line(tmp_path):
    with pytest.raises(FedkdError, match=r"'fedgen' is not allowed with data\.dataset = "):
        run(texts.small(tmp_path / "texts", "strategy.name=fedgen"), tmp_path / "run")


@pytest.mark.slow
def test_every_option_changes_the_numbers(each_changes_the_numbers):
    choices = [f"strategy.{key}" for key in ("weight=5", "cut=fc1", "generated=20", "noise=4")]
    choices += [f"strategy.{key}" for key in ("hidden=8", "diversity=9", "server_steps=3")]
    choices += ["server.lr=0.1", "server.batch_size=8", "server.weight_decay=1"]
    choices += ["server.optimiser=sgd", "strategy.shared_blocks=1"]
    each_changes_the_numbers(["strategy.name=fedgen"], choices)


def test_a_step_of_one_representation_is_refused(small):
    with pytest.raises(FedkdError, match=r"server\.batch_size = 1 is not allowed"):
        check(small("strategy.name=fedgen", "server.batch_size=1"))
    check(small("strategy.name=fedgen", "server.batch_size=1", "strategy.weight=0"))
