"""A prior of label counts in cross-entropy: known answers, and gradients that must be zero."""

import pytest
import torch
from test_training import SGD, equal, student, trained
from torch import nn

from fedkd.errors import FedkdError
from fedkd.privacy.dpsgd import DPSGD
from fedkd.training import fit
from fedkd.training_tables import PrivateTraining
from fedkd.work import CrossEntropy, Prior, Samples


def uneven(labels):
    draw = torch.Generator().manual_seed(1)
    return Samples(torch.randn(len(labels), 6, generator=draw), torch.tensor(labels))


@pytest.mark.parametrize(
    ("prior", "shift"),
    [
        (Prior(), lambda n: n.log()),
        (Prior("log", 0.5), lambda n: 0.5 * n.log()),
        (Prior("margin", 2.0), lambda n: -2 * n ** (-1 / 4)),
    ],
)
def test_logits_are_shifted_by_the_counts_of_all_samples_and_not_of_the_batch(prior, shift):
    samples = uneven([0] * 21 + [1] * 11 + [2] * 6 + [3] * 2)
    mine, _ = trained(samples, [CrossEntropy(prior=prior)])
    model, counts = student(), torch.tensor([21.0, 11.0, 6.0, 2.0])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for index in torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(8):
        optimiser.zero_grad()
        logits = model(samples.inputs[index]) + shift(counts)
        nn.functional.cross_entropy(logits, samples.labels[index]).backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        assert torch.allclose(mine[name], value, atol=1e-6), name


@pytest.mark.parametrize("form", ["log", "margin"])
def test_classes_of_equal_counts_change_nothing(form):
    samples = uneven([0, 1, 2, 3] * 10)
    shifted, loss = trained(samples, [CrossEntropy(prior=Prior(form))])
    plain, before = trained(samples, [CrossEntropy()])
    assert all(torch.allclose(shifted[name], plain[name], atol=1e-6) for name in plain)
    assert loss == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("form", ["log", "margin"])
def test_a_class_without_samples_gets_no_gradient(form):
    samples = uneven([0, 1, 3] * 12)
    found, loss = trained(samples, [CrossEntropy(prior=Prior(form))])
    before = student().state_dict()
    for name in ("head.weight", "head.bias"):
        moved = (found[name] != before[name]).flatten(1 if found[name].dim() > 1 else 0)
        moved = moved.any(1) if moved.dim() > 1 else moved
        assert moved.tolist() == [True, True, False, True]
    assert torch.isfinite(torch.tensor(loss))
    assert equal({"b": found["head.bias"][2]}, {"b": before["head.bias"][2]})


def test_it_is_refused_under_dp_sgd(samples):
    dp = DPSGD(PrivateTraining(noise_multiplier=1), "private", 0)
    with pytest.raises(FedkdError, match="does not work with a prior, by which each private label"):
        fit(
            student(),
            samples,
            [CrossEntropy(prior=Prior())],
            SGD,
            torch.Generator().manual_seed(0),
            dp=dp,
        )
