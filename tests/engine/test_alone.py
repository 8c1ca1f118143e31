"""A cohort is used only where it computes what ``forward`` computes."""

import random

import nasty
import numpy as np
import pytest
import torch
from torch import nn

from fedkd import Experiment, FedkdError, registry, run
from fedkd.engine import plan
from fedkd.engine.inline import Inline
from fedkd.engine.stack import Stack
from fedkd.engine.worker import Worker
from fedkd.work import (
    Assignment,
    CrossEntropy,
    Evaluate,
    Fit,
    Predict,
    Proximal,
    Represent,
    Soft,
)

UNEVEN = """
[data]
clients = 3
alpha = 2.0
sizes = "natural"
samples_per_client = 60
[data.test]
common = 0
[data.transfer]
size = 30
[student]
models = ["own"]
[training]
local_epochs = 1.5
batch_size = 16
"""
STEPS = (
    Fit(terms=(CrossEntropy(), Proximal(0.1))),
    Predict(),
    Represent("0", on="own"),
    Fit("transfer", (Soft(torch.full((30, 10), 0.1)),), epochs=1, key="distilled"),
    Evaluate("own", "own"),
)


def worker(cohort, *overrides):
    return Worker(Experiment.from_toml(UNEVEN, [f"engine.cohort={cohort}", *overrides]))


def performed(cohort, *overrides, steps=STEPS):
    host = worker(cohort, *overrides)
    work = [Assignment(client, 1, "learn", steps) for client in range(3)]
    replies = host.perform_all(work, lambda _: None)
    assert not any(reply.error or reply.failure for reply in replies), replies
    return replies, host


def apart(one, other):
    """The largest difference between two sets of replies, in arrays and in metrics."""
    gaps = [0.0]
    for mine, theirs in zip(one, other, strict=True):
        for key, value in mine.values.items():
            pairs = value.items() if isinstance(value, dict) else [(None, value)]
            for name, array in pairs:
                against = theirs.values[key] if name is None else theirs.values[key][name]
                gaps.append(float((array - against).abs().max()))
        gaps += [abs(mine.metrics[m] - theirs.metrics[m]) for m in mine.metrics if m != "seconds"]
    return max(gaps)


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    """torch.nn.utils.weight_norm is deprecated, and there."""


@pytest.mark.parametrize("name", nasty.STUDENTS)
def test_a_cohort_gives_what_a_loop_gives_whatever_the_student(name):
    nasty.add(nasty.STUDENTS[name])
    alone, _ = performed("off")
    for cohort in ("auto", "on"):
        together, host = performed(cohort)
        assert apart(alone, together) < 1e-3, cohort
        if cohort == "on":
            marked = [m for m in together[0].metrics if m.startswith("cohort Fit")]
            assert bool(marked) == (name in nasty.TOGETHER)
    why = host.alone("own").fit
    if name in nasty.REASONS:
        assert nasty.REASONS[name][1] in why
        assert why
        assert why in plan.host(host, print).plan
    else:
        assert "client by client" not in plan.host(host, print).plan


def test_a_layer_that_computes_other_than_its_class_learns_the_same_in_a_cohort(tmp_path):
    def student(shape, classes, norm, width):
        head = nasty.Cosine(64, classes, bias=False)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), head)

    registry.register("students", "own")(student)
    keys = ("strategy.name=fedavg", "rounds=5", "data.test.common=200", "data.alpha=5")
    accuracies = []
    for cohort in ("auto", "on", "off"):
        experiment = Experiment.from_toml(UNEVEN, [*keys, f"engine.cohort={cohort}"])
        accuracies.append(run(experiment, tmp_path / cohort).rounds[-1]["own_accuracy_mean"])
    assert accuracies[2] > 0.5
    assert accuracies == pytest.approx([accuracies[2]] * 3, abs=1e-3)


def test_the_plan_names_the_student_and_says_what_it_does_client_by_client():
    nasty.add(nasty.STUDENTS["batch norm"])
    said = plan.host(worker("on"), print).plan.split("; ")[1:]
    assert said == [
        "own trains client by client: a sample's output depends on the others of its batch"
    ]
    assert ";" not in plan.host(worker("auto"), print).plan  # it would not be faster, either


def test_a_difference_is_a_warning_that_travels_with_the_run(tmp_path):
    nasty.add(nasty.STUDENTS["wrong gradient"])
    experiment = Experiment.from_toml(UNEVEN, ["engine.cohort=on", "rounds=2", "data.alpha=5"])
    done = run(experiment, tmp_path / "run")
    (warning,) = [line for line in done.warnings if "student 'own'" in line]
    assert warning.startswith("student 'own' goes client by client: in a cohort the gradient of")


def test_what_a_student_keeps_elsewhere_is_a_warning_and_goes_to_no_other_client(tmp_path):
    nasty.add(nasty.STUDENTS["python counter"])
    replies, _ = performed("off")
    (warning,) = replies[0].warnings
    assert "changes 2.passes" in warning
    host = worker("off")
    last = host.perform(Assignment(2, 1, "learn", STEPS))
    assert apart([last], [replies[2]]) == 0  # as if there were no others


def test_answers_that_hang_on_who_is_asked_together_are_a_warning():
    nasty.add(nasty.STUDENTS["centred"])
    replies, _ = performed("off")
    (warning,) = replies[0].warnings
    assert warning.startswith("student 'own' answers a sample by the others of its batch too")
    nasty.add(nasty.STUDENTS["batch norm"])  # in training alone
    replies, _ = performed("off")
    assert not replies[0].warnings


class Unseeded(nn.Module):
    """Draws from a generator that nobody else knows."""

    def forward(self, x):
        return x + torch.from_numpy(np.random.default_rng().normal(size=x.shape)).float()


LAST = iter(range(10**9))


class ByTheCall(nn.Module):
    """Goes by something outside."""

    def forward(self, x):
        return x + next(LAST)


@pytest.mark.parametrize("layer", [Unseeded, ByTheCall])
def test_what_no_seed_decides_is_a_warning(layer):
    nasty.add(lambda: nasty.between(layer()))
    replies, host = performed("off")
    (warning,) = replies[0].warnings
    assert warning.startswith("student 'own' gives something else for the same samples each time")
    assert host.alone("own").fit == "it gives something else each time"


def test_a_compiled_block_goes_client_by_client():
    nasty.add(lambda: nasty.between(torch.jit.script(nn.Linear(64, 64))))
    alone, _ = performed("off")
    together, _ = performed("on")
    assert apart(alone, together) < 1e-3


def test_activations_put_aside_are_no_warning():
    nasty.add(nasty.STUDENTS["remembering"])
    replies, _ = performed("on")
    assert not any(reply.warnings for reply in replies)


def test_a_cohort_that_is_wrong_for_torchs_own_layers_is_found_out(monkeypatch):
    """However it comes about: here by a stack with a slip."""
    right = Stack.forward

    def wrong(self, tensors, inputs, cuts, lr=0.0):
        held, logits = right(self, tensors, inputs, cuts, lr)
        return held, 1.01 * logits

    monkeypatch.setattr(Stack, "forward", wrong)
    nasty.add(nasty.STUDENTS["plain"])
    replies, _ = performed("auto")
    assert not any(name.startswith("cohort") for name in replies[0].metrics)
    assert "in a cohort" in replies[0].warnings[0]


def test_hooks_on_all_modules_keep_clients_alone():
    nasty.add(nasty.STUDENTS["plain"])
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert worker("on").alone("own").fit == "there are hooks on all modules"
    finally:
        handle.remove()


def test_trying_a_student_out_leaves_it_and_the_global_generators_as_they_were():
    nasty.add(lambda: nasty.between(nn.BatchNorm1d(64), nn.Dropout(), nasty.PythonNoise()))
    host = worker("on")
    student = host.template("own")
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    host.alone("own")
    assert all(torch.equal(before[name], now) for name, now in student.state_dict().items())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert (generators[1] == np.random.get_state()[1]).all()
    assert generators[2] == random.getstate()
    assert all(p.grad is None for p in student.parameters())


def test_a_student_whose_training_raises_is_that_clients_trouble_and_not_the_probes():
    class Raising(nn.Module):
        def forward(self, inputs):
            if self.training:
                raise ValueError("no")
            return inputs

    nasty.add(lambda: nasty.between(Raising()))
    assert "a pass ended in ValueError: no" in worker("on").alone("own").forward


def test_a_parameter_that_is_replaced_is_one_line():
    nasty.add(lambda: nasty.between(nasty.Replacing()))
    host = worker("off")
    (reply, *_) = host.perform_all([Assignment(0, 1, "learn", STEPS)], lambda _: None)
    assert "its forward replaces the parameter 2.weight" in reply.error


@pytest.mark.parametrize("other", ["width", "layer", "setting"])
def test_a_factory_that_gives_another_student_each_time_is_one_line(other):
    calls = iter(range(1000))

    def factory():
        call = next(calls)
        width = 8 + call if other == "width" else 8
        layer = nn.Dropout(0.1 * (call % 5)) if other == "setting" else nn.ReLU()
        layer = nn.Tanh() if other == "layer" and call % 2 else layer
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), layer, nn.Linear(width, 10))

    nasty.add(factory)
    with pytest.raises(FedkdError, match="gives another student each time"):
        worker("off").state(0)


def test_the_inline_plan_is_as_ever_where_cohorts_are_as_they_should_be(small):
    host = Worker(small())
    assert plan.host(host, print).plan == Inline(host).plan
