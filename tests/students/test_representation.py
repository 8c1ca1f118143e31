"""Students of one representation, whatever their architecture."""

from collections import OrderedDict

import pytest
import texts
import torch
from torch import nn

from fedkd import FedkdError, registry, run
from fedkd.data.dataset import Task
from fedkd.experiment import Experiment
from fedkd.sections import StudentTable
from fedkd.students import blocks, build
from fedkd.students.outline import check_size, outline
from fedkd.students.representation import with_representation
from fedkd.training import represent

IMAGES, TEXT = ("cnn2", "cnn3", "mlp", "resnet8", "resnet18"), ("lstm", "gru", "gpt")
MIXED = ("student.models=['cnn2', 'mlp']", "student.representation=24", "rounds=2")


def made(name, representation=24):
    tokens = name in TEXT
    norm = "group" if name.startswith("resnet") else "none"
    table = StudentTable(width=0.1, norm=norm, representation=representation)
    shape, classes = ((12,), 30) if tokens else ((1, 8, 8), 10)
    return build(name, shape, classes, table, 7, tokens=tokens)


@pytest.mark.parametrize("name", IMAGES + TEXT)
def test_every_student_ends_in_a_representation_of_the_width_and_a_linear_head(name):
    student, classes = made(name), 30 if name in TEXT else 10
    assert blocks(student) == (*blocks(made(name, None))[:-1], "representation", "head")
    assert type(student.head) is nn.Linear
    assert student.head.weight.shape == (classes, 24)
    shape = (2, 12) if name in TEXT else (2, 1, 8, 8)
    inputs = torch.ones(shape, dtype=torch.long if name in TEXT else torch.float32)
    assert represent(student, inputs, "representation")[0].shape[1:] == (24,)


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_what_is_below_is_what_it_is_without(name):
    student, plain = made(name).state_dict(), made(name, None).state_dict()
    same = {key for key in plain if key in student and not key.startswith("head")}
    assert same == {key for key in plain if not key.startswith("head")}
    assert all(torch.equal(student[key], plain[key]) for key in same)
    first = student["representation.weight" if name == "mlp" else "representation.1.weight"]
    assert not torch.equal(first.flatten()[:8], plain[min(same)].flatten()[:8])


def test_the_same_key_gives_the_same_representation():
    one, other = made("cnn2").state_dict(), made("cnn2").state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


class Odd(nn.Linear):
    """A linear layer that is another kind."""


def block(name, last):
    return nn.Sequential(OrderedDict([(name, nn.Linear(3, 4)), ("head", last)]))


@pytest.mark.parametrize(
    ("student", "line"),
    [
        (block("fc", nn.Sequential(nn.Linear(4, 2), nn.ReLU())), "its last layer is ReLU"),
        (block("fc", Odd(4, 2)), "its last layer is Odd, not torch.nn.Linear"),
        (block("representation", nn.Linear(4, 2)), "it has a block called 'representation'"),
    ],
)
def test_a_student_that_does_not_end_so_is_refused_in_a_line(student, line):
    said = r"student\.representation = 24 is not allowed with student\.models = 'mine': "
    with pytest.raises(FedkdError, match=said + line):
        with_representation("mine", student, 24)


def test_a_head_that_is_another_block_too_is_refused():
    student = block("fc", nn.Linear(4, 3))
    student.head.weight = nn.Parameter(student.fc.weight.detach())
    student.fc.weight = student.head.weight
    with pytest.raises(FedkdError, match="its head are those of another block too"):
        with_representation("mine", student, 24)


def test_a_student_of_ones_own_that_ends_in_a_linear_layer_gets_one():
    mine = nn.Sequential(OrderedDict(flat=nn.Flatten(), out=nn.Linear(64, 10, bias=False)))
    student = with_representation("mine", mine, 24)
    assert blocks(student) == ("flat", "representation", "out")
    assert student.out.bias is None
    assert student(torch.ones(2, 1, 8, 8)).shape == (2, 10)


def test_one_that_no_machine_has_memory_for_is_a_line_before_it_is_made(monkeypatch):
    monkeypatch.setattr("fedkd.students.outline._memory", lambda: 10**8)
    experiment = Experiment.from_toml("[student]\nmodels = ['mlp']\nrepresentation = 60_000\n")
    task = Task((1, 8, 8), 10, tuple("0123456789"))
    with pytest.raises(FedkdError, match=r"student\.representation = 60000, .* is too large"):
        check_size(experiment, task)
    names = [name for name, _ in outline("mlp", experiment.student, task)]
    assert "representation.weight" in names


# --- methods --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedproto", "fedgh", "lg-fedavg"])
def test_methods_of_one_size_work_across_architectures(method, small, tmp_path):
    done = run(small(f"strategy.name={method}", *MIXED), tmp_path / "run")
    assert len(done.rounds) == 2
    line = r"is not allowed with strategy\.name = .*; student\.representation gives all"
    with pytest.raises(FedkdError, match=line):
        run(small(f"strategy.name={method}", MIXED[0]), tmp_path / "without")


@pytest.mark.parametrize("method", ["fedproto", "fedgh", "lg-fedavg"])
def test_of_text_too(method, tmp_path):
    keys = (f"strategy.name={method}", "student.models=['lstm', 'gpt']")
    keys += ("student.representation=24",)
    done = run(texts.small(tmp_path / "texts", *keys), tmp_path / "run")
    assert len(done.rounds) == 1


def test_every_built_in_student_is_looked_at():
    assert {*IMAGES, *TEXT} <= {*registry.names("students")}
