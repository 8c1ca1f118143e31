"""The exact checks of KnFu's specification."""

import pytest
import torch

from fedkd.distillation.targets import mix, soften
from fedkd.strategies.knfu import effectiveness, estimated_distribution

N, M, C = 6, 40, 5
DIVERGENCES = ["kl", "reverse_kl", "symmetric_kl", "jensen_shannon"]


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(0)
    biased = torch.randn(N, M, C, generator=generator) + 2 * torch.randn(
        N, 1, C, generator=generator
    )
    return biased.softmax(-1)


@pytest.fixture
def epds(labels):
    return torch.stack([estimated_distribution(rows) for rows in labels])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_beta_zero_is_uniform_averaging_to_the_bit(labels, epds, divergence):
    fused = mix(effectiveness(epds, 0.0, divergence), labels)
    uniform = mix(torch.full((1, N), 1 / N), labels)
    assert torch.equal(fused, uniform.expand(N, M, C))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_large_beta_leaves_every_client_to_itself(epds, divergence):
    weights = effectiveness(epds, 1e9, divergence)
    assert torch.equal(weights, torch.eye(N, dtype=weights.dtype))


@pytest.mark.parametrize("beta", [0.0, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_beliefs_give_uniform_weights_for_any_beta(beta, divergence):
    epds = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).repeat(4, 1)
    weights = effectiveness(epds, beta, divergence)
    assert torch.allclose(weights, torch.full((4, 4), 0.25, dtype=weights.dtype), atol=1e-12)


@pytest.mark.parametrize("choice", [{}, {"top_k": 2}, {"threshold": 0.2}, {"include_self": False}])
def test_rows_of_weights_and_of_targets_sum_to_one(labels, epds, choice):
    weights = effectiveness(epds, 10.0, **choice)
    assert torch.allclose(weights.sum(1), torch.ones(N, dtype=weights.dtype))
    assert torch.allclose(mix(weights, labels).sum(-1), torch.ones(N, M), atol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_permuting_clients_permutes_rows_and_columns(epds, divergence):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = effectiveness(epds[order], 10.0, divergence)
    assert torch.allclose(permuted, effectiveness(epds, 10.0, divergence)[order][:, order])


def test_a_closer_belief_weighs_more():
    epds = torch.tensor([[0.6, 0.4], [0.55, 0.45], [0.1, 0.9]], dtype=torch.float64)
    weights = effectiveness(epds, 10.0)
    assert weights[0, 0] > weights[0, 1] > weights[0, 2]
    expected = torch.exp(-10 * (epds[0] * (epds[0] / epds[1]).log()).sum())
    assert torch.isclose(weights[0, 1] / weights[0, 0], expected)


def test_top_k_keeps_k_neighbours_and_their_proportions(epds):
    every, kept = effectiveness(epds, 5.0), effectiveness(epds, 5.0, top_k=2)
    assert ((kept > 0).sum(1) == 2).all()
    first, second = every.topk(2).indices[0]
    assert torch.isclose(kept[0, first] / kept[0, second], every[0, first] / every[0, second])


def test_threshold_drops_the_weak_and_never_the_strongest(epds):
    every, kept = effectiveness(epds, 1.0), effectiveness(epds, 1.0, threshold=0.2)
    strongest = every == every.amax(1, keepdim=True)
    assert torch.equal(kept > 0, (every >= 0.2) | strongest)


def test_without_self_a_client_has_no_part_in_its_own_target(epds):
    assert (effectiveness(epds, 3.0, include_self=False).diagonal() == 0).all()


def test_the_epd_is_that_of_temperature_one_whatever_was_sent():
    logits = torch.randn(200, C, generator=torch.Generator().manual_seed(1))
    plain = estimated_distribution(soften(logits, 1.0))
    assert torch.allclose(estimated_distribution(soften(logits, 4.0), tau=4.0), plain, atol=1e-5)


def test_the_histogram_counts_the_most_likely_class():
    labels = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    counts = estimated_distribution(labels, "histogram")
    assert torch.equal(counts, torch.tensor([0.75, 0.25], dtype=torch.float64))


def test_clipping_keeps_weights_finite_where_a_class_is_never_believed():
    epds = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert torch.isfinite(effectiveness(epds, 10.0)).all()
