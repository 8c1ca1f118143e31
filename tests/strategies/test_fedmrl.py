"""FedMRL: nested representations of a shared student and one's own."""

import pytest
import torch
from torch.nn import functional as F

from fedkd import FedkdError, check, run, students
from fedkd.random import generator
from fedkd.sections import StudentTable
from fedkd.students.pair import EXIT, SHARED, PairTable
from fedkd.training import fit
from fedkd.training_tables import TrainingTable
from fedkd.work import CrossEntropy

WIDE = 0.05  # ten units a hidden layer
BOTH = (CrossEntropy(), CrossEntropy(0.5, exit=EXIT))
SGD = TrainingTable(optimiser="sgd", lr=0.1, batch_size=40)


def pair(nested=4, model="mlp"):
    table = PairTable(width=WIDE, shared="mlp", nested=nested)
    return students.build(model, (6,), 4, table, 0)


def heads(student, inputs):
    """Both heads' logits, written out."""
    state = dict(student.named_parameters())

    def body(inputs, of):
        for name in of:
            inputs = F.linear(inputs, state[f"{name}.weight"], state[f"{name}.bias"])
            inputs = inputs.relu() if ".fc" in name else inputs
        return inputs

    shared = body(inputs, [f"shared.body.{n}" for n in ("fc1.1", "fc2.1", "representation")])
    own = body(inputs, ["own.body.0.1"]).relu()
    own = body(own, ["own.body.1.1"]).relu()
    nested = body(torch.cat([shared, own], 1), ["projection"])
    return body(nested, ["head.head"]), body(nested[:, :4], ["shared_head.head"])


def test_a_step_is_descent_by_the_sum_of_both_heads_losses(samples):
    student, same = pair(), pair()
    own, shared = heads(same, samples.inputs)
    assert torch.allclose(student(samples.inputs), own)
    loss = F.cross_entropy(own, samples.labels) + 0.5 * F.cross_entropy(shared, samples.labels)
    slopes = torch.autograd.grad(loss, list(same.parameters()))
    found = fit(student, samples, BOTH, SGD, generator(0, "fit"), epochs=1, min_steps=1)
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    for new, old, slope in zip(student.parameters(), same.parameters(), slopes, strict=True):
        assert torch.allclose(new, old - 0.1 * slope, atol=1e-6)


def test_the_own_heads_loss_reaches_both_bodies_and_the_shared_head_not(samples):
    student = pair()
    F.cross_entropy(student(samples.inputs), samples.labels).backward()
    for name, parameter in student.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached != name.startswith(f"{EXIT}."), name


def test_the_shared_heads_loss_reaches_both_bodies_and_the_own_head_not(samples):
    student = pair()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    fit(student, samples, BOTH[1:], SGD, generator(0, "fit"), epochs=1, min_steps=1)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("head."), name


def test_where_the_projection_passes_the_shared_body_alone_it_learns_as_if_by_itself(samples):
    table = StudentTable(width=WIDE, representation=4)
    alone, student = students.build("mlp", (6,), 4, table, 1), pair()
    shared, head = student.shared.body, student.shared_head.head
    shared.load_state_dict(alone[:-1].state_dict())
    head.load_state_dict(alone[-1].state_dict())
    with torch.no_grad():
        student.projection.weight.zero_().fill_diagonal_(1.0)
        student.projection.bias.zero_()
    plain, nested = [CrossEntropy()], [CrossEntropy(exit=EXIT)]
    settings = SGD.model_copy(update={"batch_size": 8})
    one = fit(alone, samples, plain, settings, generator(0, "fit"), epochs=3)
    other = fit(student, samples, nested, settings, generator(0, "fit"), epochs=3, part=SHARED)
    assert one == pytest.approx(other, rel=1e-5)
    found = {**shared.state_dict(), **{f"head.{n}": v for n, v in head.state_dict().items()}}
    assert all(torch.allclose(found[n], v, atol=1e-6) for n, v in alone.state_dict().items())


def test_the_own_student_begins_as_it_would_by_itself():
    alone = students.build("mlp", (6,), 4, StudentTable(width=WIDE), 0)
    assert torch.equal(pair().own.body[0][1].weight, alone.fc1[1].weight)
    assert torch.equal(pair().head.head.weight, alone.head.weight)


def test_own_students_differ_and_the_shared_one_alone_travels(small, tmp_path):
    experiment = small(
        "strategy.name=fedmrl", "student.models=['cnn2', 'mlp']", "strategy.shared_model=mlp"
    )
    done = run(experiment, tmp_path / "run")
    shared = 64 * 200 + 200 + 200 * 200 + 200 + 200 * 100 + 100 + 100 * 10 + 10
    assert done.rounds[0]["bytes_up"] == done.rounds[0]["bytes_down"] == 4 * 4 * shared
    assert done.summary["own_accuracy_mean_local"] > 0.3


def test_it_learns_under_dp_sgd(small, tmp_path):
    private = ("training.dp.noise_multiplier=0.5", "training.batch_size=16")
    done = run(small("strategy.name=fedmrl", *private), tmp_path / "run")
    assert done.rounds[-1]["train_loss_mean"] > 0


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("strategy.nested=300", "its representation has 200 numbers, and the shared student's"),
        ("strategy.shared_model=cnn9", "strategy.shared_model = 'cnn9' is not known"),
    ],
)
def test_what_does_not_fit_is_one_line(override, line, small, tmp_path):
    with pytest.raises(FedkdError, match=line):
        run(small("strategy.name=fedmrl", override), tmp_path / "run")


def test_the_public_model_is_refused(small):
    experiment = small("strategy.name=fedmrl", "student.init=public")
    with pytest.raises(FedkdError, match=r"student\.init = 'public' is not allowed"):
        check(experiment)
