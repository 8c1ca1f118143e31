"""``student.choose``: the student that is most like a teacher, before anything is trained."""

import json

import pytest
import texts
import torch
from lines import measured

from fedkd import FedkdError, run
from fedkd.data.federated import load
from fedkd.distillation.similarity import gram_score, rows_alike, shown
from fedkd.effects import without_effect
from fedkd.engine.worker import Worker
from fedkd.random import key
from fedkd.students import build
from fedkd.students.choice import with_chosen_students

CHOOSE = ("student.choose=similarity", "student.models=['mlp','cnn2','cnn3']")
FAST = ("rounds=1", "training.local_epochs=1")


def values(seed=0, rows=6, width=4):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def chosen(experiment):
    data = load(experiment)
    task = data.task
    return with_chosen_students(experiment, data.transfer().inputs, task.shape, task.classes)


def student(name, experiment, seed):
    task = load(experiment).task
    return build(name, task.shape, task.classes, experiment.student, key(seed, name))


def test_a_network_is_most_like_itself():
    own = values(), values(1)
    assert gram_score(own[0], own[0], own[1], own[1]) == 0
    for seed in range(2, 8):
        assert gram_score(own[0], values(seed), own[1], own[1]) < 0
        assert gram_score(own[0], own[0], own[1], values(seed)) < 0


def test_scale_rotation_and_width_are_irrelevant_and_it_is_symmetric():
    one, other, gradient = values(), values(1, width=9), values(2)
    score = gram_score(one, other, gradient, gradient)
    turn = torch.linalg.qr(values(3, 4, 4))[0]
    assert gram_score(5 * one @ turn, other, gradient, gradient) == pytest.approx(score, rel=1e-5)
    assert gram_score(other, one, gradient, gradient) == pytest.approx(score)


def test_the_score_by_hand():
    eye, alike = torch.eye(2), torch.ones(2, 3)
    assert torch.allclose(rows_alike(alike), torch.full((2, 2), 0.5**0.5).double())
    apart = 2 * (1 - 0.5**0.5) ** 2 + 2 * 0.5
    assert gram_score(eye, alike, eye, eye) == pytest.approx(-apart / 4)
    assert gram_score(eye, eye, eye, alike) == pytest.approx(-apart / 2)


@pytest.mark.parametrize("name", ["mlp", "cnn2", "resnet8"])
def test_students_show_representations_before_pooling_and_the_heads_gradient(name, small):
    made = student(name, small("student.norm=group"), 0)
    inputs, labels = load(small()).transfer().inputs[:5], torch.arange(5)
    features, gradient = shown(made, inputs, labels)
    assert len(features) == 5
    assert (features.dim() > 2) == (name != "mlp")
    assert len(gradient) == 10
    assert all(parameter.grad is None for parameter in made.parameters())


def test_each_client_gets_the_student_of_the_largest_score(small):
    experiment = small(*CHOOSE)
    found = chosen(experiment).student.models
    assert len(found) == 4
    assert set(found) <= {"mlp", "cnn2", "cnn3"}
    assert chosen(experiment).student.models == found
    assert chosen(chosen(experiment)) == chosen(experiment)
    assert small() == chosen(small())


def test_nobody_gets_the_teacher_unless_there_is_no_other(small):
    two = chosen(small("student.choose=similarity", "student.models=['mlp','cnn3']"))
    assert len({*two.student.models}) == 1
    named = chosen(small(*CHOOSE, "student.teacher=mlp", "student.init=same"))
    assert "mlp" not in named.student.models
    assert len({*named.student.models}) == 1
    one = small("student.choose=similarity", "student.models=mlp")
    assert chosen(one).student.models == ("mlp",) * 4


def test_the_run_says_who_got_which_and_has_the_numbers_of_these_students(small, tmp_path):
    few = ("strategy.name=uniform", *FAST)
    done = run(small(*few, *CHOOSE), tmp_path / "chosen")
    models = Worker(small(*few, *CHOOSE)).experiment.student.models
    held = json.loads((tmp_path / "chosen" / "partition.json").read_text())
    assert tuple(client["student"] for client in held["clients"]) == models
    assert done.experiment.student.choose == "similarity"
    named = run(small(*few, f"student.models={list(models)}"), tmp_path / "named")
    assert measured(done) == measured(named)
    assert run(small(*few, *CHOOSE), tmp_path / "chosen").folder == done.folder


def test_other_processes_have_the_same_students(small, tmp_path):
    how = ("strategy.name=uniform", *FAST, *CHOOSE, "engine.cohort=off")
    one = run(small(*how), tmp_path / "inline")
    other = run(small(*how, "engine.name=procs", "engine.workers=2"), tmp_path / "procs")
    assert measured(one) == measured(other)


def test_what_cannot_be_compared_is_one_line(small, tmp_path):
    with pytest.raises(FedkdError, match=r"data\.transfer\.size = 0: students are compared"):
        chosen(small(*CHOOSE, "data.transfer.size=0"))
    with pytest.raises(FedkdError, match="in text only tokens have one"):
        chosen(texts.small(tmp_path / "t", "student.choose=similarity"))
    with pytest.raises(FedkdError, match=r"student\.models = 'resnet9' is not known"):
        run(small(*CHOOSE, "student.teacher=resnet9"), tmp_path / "run")


def test_a_choice_of_one_has_no_effect(small):
    (line,) = without_effect(small("student.choose=similarity"))
    assert line.startswith("student.choose = 'similarity' has no effect: student.models = ")
    (line,) = without_effect(small("student.teacher=mlp", "student.models=['mlp','cnn2']"))
    assert line == "student.teacher = 'mlp' has no effect: student.choose = 'cycle'"
    assert without_effect(small(*CHOOSE, "student.teacher=mlp")) == []
