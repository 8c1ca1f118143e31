"""DP-SGD on text: a sample is a row of tokens."""

import pytest
import torch
from torch.nn import functional as F

from fedkd import students
from fedkd.privacy.dpsgd import DPSGD
from fedkd.sections import StudentTable
from fedkd.training import fit
from fedkd.training_tables import PrivateTraining, TrainingTable
from fedkd.work import CrossEntropy, Proximal, Samples, Soft

ALL = ["lstm", "gru", "gpt"]
STEP = TrainingTable(optimiser="sgd", lr=1.0, momentum=0.5, batch_size=20, local_epochs=1)
LOOSE = PrivateTraining(noise_multiplier=0, max_grad_norm=1e6)
TIGHT = PrivateTraining(noise_multiplier=0, max_grad_norm=0.5)


def made(name):
    return students.build(name, (9,), 30, StudentTable(width=0.25), 1, tokens=True)


def rows(*padding):
    """Twenty rows of nine tokens, the last of them padding as many times as asked for."""
    tokens = torch.randint(1, 30, (20, 10), generator=torch.Generator().manual_seed(0))
    for row, count in enumerate(padding):
        tokens[row, 10 - count :] = 0
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    return Samples(inputs, torch.where(labels == 0, -1, labels))


def flat(student):
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


def trained(name, samples, dp, terms, training=STEP):
    student = made(name)
    dp = dp and DPSGD(dp, "private", 0)
    fit(student, samples, terms, training, torch.Generator().manual_seed(3), dp=dp)
    return flat(student)


@pytest.mark.parametrize("name", ALL)
def test_without_noise_and_clipping_it_is_ordinary_training(name):
    terms = [
        CrossEntropy(),
        Soft(torch.rand(180, 30).softmax(1), temperature=2.0),
        Proximal(0.1, {"head.bias": torch.ones(30)}),
    ]
    training = STEP.model_copy(update={"local_epochs": 3, "lr": 0.1})
    ordinary, private = (trained(name, rows(), dp, terms, training) for dp in (None, LOOSE))
    assert float((ordinary - flat(made(name))).abs().max()) > 1e-3
    assert torch.allclose(private, ordinary, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_rows_gradient_is_clipped_and_depends_on_no_other_rows_length(name):
    student, samples, total = made(name), rows(3, 7, 0, 5), 0.0
    for inputs, labels in zip(samples.inputs, samples.labels, strict=True):
        there = labels >= 0
        logits = student(inputs[None])[0][there]
        loss = F.cross_entropy(logits, labels[there], reduction="sum") / 9
        each = torch.cat([g.flatten() for g in torch.autograd.grad(loss, student.parameters())])
        total += each * min(1.0, 0.5 / float(each.norm()))
    moved = flat(student) - trained(name, samples, TIGHT, [CrossEntropy()])
    assert torch.allclose(moved, total / 20, atol=1e-5)
