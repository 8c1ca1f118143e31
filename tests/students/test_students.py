"""The model zoo: blocks, shapes, initialisation, and the lines a wrong setting gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fedkd.students
from fedkd import registry
from fedkd.errors import FedkdError
from fedkd.sections import StudentTable
from fedkd.students import blocks, build, count_parameters, part_names, selected, zoo

ZOO = ("mlp", "cnn2", "cnn3", "resnet8", "resnet18")
SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 48))
BLOCKS = {
    "mlp": ("fc1", "fc2", "head"),
    "cnn2": ("conv1", "conv2", "fc1", "head"),
    "cnn3": ("conv1", "conv2", "conv3", "fc1", "head"),
    "resnet8": ("stem", "layer1", "layer2", "layer3", "pool", "head"),
    "resnet18": ("stem", "layer1", "layer2", "layer3", "layer4", "pool", "head"),
}


def norms(name):
    return ("group", "batch") if name.startswith("resnet") else ("none", "group", "batch")


@pytest.fixture(autouse=True)
def _zoo(monkeypatch):
    for name in ZOO:
        monkeypatch.setitem(registry._added, ("students", name), getattr(zoo, name))


def student(name, shape=(1, 8, 8), classes=10, norm="", width=0.25, seed_key=7):
    table = StudentTable(models=(name,), norm=norm or norms(name)[0], width=width)
    return build(name, shape, classes, table, seed_key)


def state_equal(one, other):
    return all(
        torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in one.state_dict()
    )


def images(shape=(1, 8, 8), batch=5, seed=0):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ZOO)
def test_every_student_takes_every_image_and_gives_one_logit_a_class(name, shape):
    model = student(name, shape, classes=7)
    assert model(images(shape, batch=2)).shape == (2, 7)


def test_mlp_takes_feature_vectors():
    assert student("mlp", (64,))(torch.zeros(2, 64)).shape == (2, 10)


@pytest.mark.parametrize("name", ZOO)
def test_the_blocks_depend_on_neither_shape_nor_norm_nor_width(name):
    for norm in norms(name):
        for width in (0.1, 1.5):
            model = student(name, (3, 32, 32), norm=norm, width=width)
            assert blocks(model) == BLOCKS[name]


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in ZOO for norm in norms(name)])
def test_every_norm_trains(name, norm):
    model = student(name, norm=norm, width=0.3)
    cross_entropy(model(images()), torch.arange(5)).backward()
    for tensor in model.parameters():
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", ZOO)
def test_every_block_boundary_is_a_cut(name):
    model, inputs = student(name).eval(), images()
    for cut in range(len(model) + 1):
        assert torch.equal(model[cut:](model[:cut](inputs)), model(inputs))


@pytest.mark.parametrize("name", ZOO)
def test_the_same_key_gives_the_same_student_and_another_key_another(name):
    assert state_equal(student(name), student(name))
    assert not state_equal(student(name), student(name, seed_key=8))


@pytest.mark.slow
def test_initialisation_is_the_same_in_another_process():
    here = student("cnn2").state_dict()["fc1.1.weight"]
    script = (
        "from fedkd import registry; from fedkd.sections import StudentTable\n"
        "from fedkd.students import build, zoo\n"
        "registry.register('students', 'cnn2')(zoo.cnn2)\n"
        "model = build('cnn2', (1, 8, 8), 10, StudentTable(width=0.25), 7)\n"
        "print(model.state_dict()['fc1.1.weight'].numpy().tobytes().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(fedkd.students.__file__).parents[2],
    )
    assert done.stdout.strip() == here.numpy().tobytes().hex()


def test_building_leaves_the_global_generator_as_it_was():
    before = torch.get_rng_state()
    student("resnet8")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_does_not_reach_the_student():
    torch.manual_seed(1)
    one = student("cnn3")
    torch.manual_seed(2)
    assert state_equal(one, student("cnn3"))


def test_students_are_float32_channels_last_and_ready_to_train():
    model = student("cnn2", (3, 32, 32))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert model.get_parameter("conv2.0.weight").is_contiguous(memory_format=torch.channels_last)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ZOO)
def test_with_group_norm_a_sample_does_not_see_its_batch(name):
    model, inputs = student(name, norm="group").train(), images(batch=8)
    others = torch.cat([inputs[:1], images(batch=7, seed=1)])
    torch.testing.assert_close(model(others)[0], model(inputs)[0])
    torch.testing.assert_close(model(inputs[:1])[0], model(inputs)[0])


@pytest.mark.parametrize("width", [0.01, 0.1, 0.3, 1.0])
def test_group_norm_takes_any_width_and_passes_a_signal(width):
    norm_layers = [
        module
        for module in student("resnet18", norm="group", width=width).modules()
        if isinstance(module, nn.GroupNorm)
    ]
    assert all(layer.num_channels % layer.num_groups == 0 for layer in norm_layers)
    assert all(
        layer.num_groups == 1 or layer.num_channels // layer.num_groups >= 4
        for layer in norm_layers
    )


@pytest.mark.parametrize("name", ZOO)
def test_width_scales_hidden_layers_only(name):
    narrow, wide = student(name, width=0.5), student(name, width=1.0)
    assert count_parameters(narrow) < count_parameters(wide)
    assert (
        narrow.state_dict()["head.weight"].shape[1] * 2 == wide.state_dict()["head.weight"].shape[1]
    )
    assert student(name, width=1e-6).state_dict()["head.weight"].shape == (10, 1)


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("mlp", (1, 28, 28), 199_210),  # the "2NN" of McMahan et al. 2017, section 3
        ("cnn2", (1, 28, 28), 1_630_090),
        ("cnn3", (3, 32, 32), 586_250),
        ("resnet8", (3, 32, 32), 78_042),
        ("resnet18", (3, 32, 32), 11_173_962),
    ],
)
def test_parameter_counts(name, shape, parameters):
    assert count_parameters(student(name, shape, width=1.0)) == parameters


def test_a_part_is_blocks_or_body_or_head_or_all():
    model = student("cnn3")
    assert selected(model, ()) == BLOCKS["cnn3"]
    assert selected(model, ("head",)) == ("head",)
    assert selected(model, ("body",)) == BLOCKS["cnn3"][:-1]
    assert selected(model, ("fc1", "conv1", "fc1")) == ("conv1", "fc1")


def test_body_and_head_are_found_by_place_when_the_blocks_have_other_names():
    model = nn.Sequential()
    model.add_module("features", nn.Linear(4, 3))
    model.add_module("classifier", nn.Linear(3, 2))
    assert part_names(model, ("head",)) == ["classifier.weight", "classifier.bias"]
    assert part_names(model, ("body",)) == ["features.weight", "features.bias"]


def test_part_names_hold_parameters_and_buffers_of_these_blocks():
    model = student("cnn2", norm="batch")
    assert part_names(model) == list(model.state_dict())
    assert part_names(model, ("head",)) == ["head.weight", "head.bias"]
    assert "conv1.1.running_mean" in part_names(model, ("conv1",))
    assert part_names(model, ("body",)) + part_names(model, ("head",)) == part_names(model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "cnn9"}, ["student.models", "'cnn9'", "cnn2"]),
        ({"name": "cnn3", "shape": (1, 4, 4)}, ["'cnn3'", "8x8", "4x4"]),
        ({"name": "cnn2", "shape": (1, 28, 3)}, ["'cnn2'", "4x4", "28x3"]),
        ({"name": "resnet18", "shape": (3, 7, 7)}, ["'resnet18'", "8x8", "7x7"]),
        ({"name": "cnn2", "shape": (64,)}, ["'cnn2'", "images", "(64,)", "'mlp'"]),
        ({"name": "resnet8", "norm": "none"}, ["student.norm", "'none'", "'group', 'batch'"]),
    ],
)
def test_wrong_settings_give_one_line(settings, words):
    with pytest.raises(FedkdError) as caught:
        student(**settings)
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words)


def test_an_unknown_block_gives_one_line_with_the_blocks_there_are():
    with pytest.raises(FedkdError, match=r"'conv9'.*conv1, conv2, fc1, head; also body, head"):
        part_names(student("cnn2"), ("conv9",))


def test_a_users_own_architecture_is_checked(monkeypatch):
    def wrong_classes(shape, classes, norm, width):
        """Forget a class."""
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes - 1))

    def no_blocks(shape, classes, norm, width):
        """Be one layer."""
        return nn.Linear(64, classes)

    monkeypatch.setitem(registry._added, ("students", "own"), wrong_classes)
    with pytest.raises(FedkdError, match=r"\(B, 10\); got \(2, 9\)"):
        student("own")
    monkeypatch.setitem(registry._added, ("students", "own"), no_blocks)
    with pytest.raises(FedkdError, match="not Linear"):
        student("own")


@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_says_in_a_line_what_it_is(name):
    assert getattr(zoo, name).__doc__.strip().endswith(".")
    assert "\n" not in getattr(zoo, name).__doc__.strip()
