"""Runs on text: the same methods, one row a token, perplexity beside accuracy."""

import math

import pytest
import texts
import torch
from lines import measured

from fedkd import FedkdError, run
from fedkd.engine.worker import Worker
from fedkd.training import learners, local_steps
from fedkd.work import Assignment, Fit, Hold, Predict, Represent, Soft

VOCABULARY = 13 + len(texts.WORDS)


@pytest.fixture
def text(tmp_path):
    """A function that makes a small experiment on text with ``key=value`` overrides."""
    return lambda *overrides: texts.small(tmp_path / "texts", "rounds=2", *overrides)


def do(worker, *steps, client=0):
    return worker.perform(Assignment(client, 1, "learn", steps))


@pytest.mark.parametrize(
    "name", ["uniform", "knfu", "fedavg", "feddf", "fml", "fedproto", "fedntd", "moon", "fedmrl"]
)
def test_methods_run_on_text_as_they_are(name, text, tmp_path):
    done = run(text(f"strategy.name={name}"), tmp_path / "run")
    for line in done.rounds:
        assert line["participants"] == [0, 1, 2]
        for where in ("own", "common"):
            assert 1 < line[f"{where}_perplexity_mean"] < 2 * VOCABULARY
            assert math.isfinite(line[f"{where}_loss_mean"])
            assert 0 <= line[f"{where}_accuracy_mean"] <= 1
    assert done.summary["own_perplexity_mean"] == done.rounds[-1]["own_perplexity_mean"]
    assert done.partition["classes"][:3] == ["<pad>", "<line>", "<unk>"]


def test_local_steps_are_of_rows(text, monkeypatch):
    worker, taken, descend = Worker(text()), [], learners.descend
    counting = lambda *given, **named: (taken.append(1), descend(*given, **named))[1]  # noqa: E731
    monkeypatch.setattr(learners, "descend", counting)
    reply = do(worker, Fit())
    assert local_steps(reply.samples, worker.experiment.training) == len(taken) > 1


def test_the_same_command_twice_gives_the_same_lines(text, tmp_path):
    experiment = text("strategy.name=knfu", "student.models=['gru', 'gpt']")
    once, again = (measured(run(experiment, tmp_path / side)) for side in "ab")
    assert once == again


def test_what_is_sent_is_a_row_a_token(text, tmp_path):
    experiment = text("strategy.name=uniform", "rounds=1")
    worker = Worker(experiment)
    tokens = int((worker.data.transfer().inputs != 0).sum())
    labels = do(worker, Predict()).values["soft_labels"]
    assert labels.shape == (tokens, worker.data.task.classes)
    assert torch.allclose(labels.sum(1), torch.ones(tokens), atol=1e-5)
    line = run(experiment, tmp_path / "run").rounds[0]
    assert line["bytes_up"] == line["bytes_down"] == 3 * labels.nbytes


def test_students_of_a_client_teach_each_other_on_text(text):
    worker = Worker(text("training.optimiser=sgd", "training.lr=0.5"))
    before = {name: value.clone() for name, value in worker.state(0)["own"].items()}
    reply = do(worker, Fit(terms=(Soft("own", temperature=2.0),)))
    assert reply.metrics["train_loss"] == pytest.approx(0, abs=1e-6)
    for name, value in worker.state(0)["own"].items():
        assert torch.allclose(value, before[name], atol=1e-5)
    reply = do(worker, Hold("peer", "gru"), Fit("transfer", (Soft("peer"),)))
    assert reply.metrics["train_loss"] > 0


def test_means_by_class_are_by_the_next_token(text):
    worker = Worker(text())
    asked = (Predict("private", output="logits", per="class"), Represent("lstm1", per="class"))
    values = do(worker, *asked).values
    counts = worker.data.label_counts()[0]
    assert values["soft_labels"]["count"].equal(counts)
    assert values["representation"]["count"].equal(counts)
    assert values["representation"]["mean"].shape == (worker.data.task.classes, 13)


@pytest.mark.parametrize("name", ["fedcache", "fedgkt", "fedd2s"])
def test_methods_that_send_representations_of_samples_say_that_text_has_none(name, text, tmp_path):
    with pytest.raises(FedkdError, match=rf"strategy\.name = '{name}' is not allowed") as error:
        run(text(f"strategy.name={name}"), tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("student.models=['cnn2']", "'cnn2' takes images or feature vectors, and the data set is"),
        ("student.models=['lstm', 'mlp']", "'mlp' takes images or feature vectors"),
        ("student.norm=batch", "student.norm = 'batch' does not work with lstm"),
        ("data.dataset=digits", "'lstm' takes text, and the data set is images"),
        ("data.augment=true", "data.augment = true is not allowed"),
    ],
)
def test_what_does_not_fit_is_found_before_the_first_round(override, line, text, tmp_path):
    with pytest.raises(FedkdError, match=line):
        run(text(override, "data.test.own=split"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "keys",
    [
        ("training.align_weights=true", "training.class_variety=0.25"),
        ("distill.targets=surest", "distill.least_confidence=0.05"),
        ("distill.targets=surest", "release.candidates=3", "release.clip=10"),
    ],
)
def test_targets_are_chosen_and_students_prepared_on_text(text, tmp_path, keys):
    done = run(text("strategy.name=uniform", *keys), tmp_path / "run")
    plain = run(text("strategy.name=uniform", *keys[2:]), tmp_path / "plain")
    assert math.isfinite(done.rounds[-1]["own_loss_mean"])
    assert done.rounds[-1]["own_loss_mean"] != plain.rounds[-1]["own_loss_mean"]
