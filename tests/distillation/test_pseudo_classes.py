"""Pseudo-classes, by laws."""

import pytest
import torch

from fedkd.distillation.pseudo_classes import pseudo_classes

M, D, C = 60, 8, 3


@pytest.fixture
def teacher():
    """Features, probabilities and output weights."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(M, D, generator=draw, dtype=torch.float64)
    weights = torch.randn(C, D, generator=draw, dtype=torch.float64)
    return features, (features @ weights.T).softmax(1), weights


def test_one_part_is_the_probabilities(teacher):
    assert torch.equal(pseudo_classes(*teacher, 1), teacher[1])


@pytest.mark.parametrize("parts", [2, 3, 5, D])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_over_its_parts_a_class_is_what_it_was(teacher, parts, temperature):
    found = pseudo_classes(*teacher, parts, temperature)
    assert found.shape == (M, C * parts)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.view(M, C, parts).sum(2), teacher[1], rtol=0, atol=1e-12)


def test_what_the_output_weights_see_says_nothing(teacher):
    features, probabilities, weights = teacher
    draw = torch.Generator().manual_seed(1)
    along = torch.randn(M, C, generator=draw, dtype=torch.float64) @ weights
    found = pseudo_classes(features + 5 * along, probabilities, weights, 3)
    expected = pseudo_classes(features, probabilities, weights, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("change", [lambda f: 7 * f, lambda f: f + 3.0], ids=["scale", "shift"])
def test_scale_and_origin_of_the_features_do_not_matter(teacher, change):
    features, *others = teacher
    expected = pseudo_classes(features, *others, 3)
    torch.testing.assert_close(pseudo_classes(change(features), *others, 3), expected)


def test_the_order_of_samples_does_not_matter(teacher):
    order = torch.randperm(M, generator=torch.Generator().manual_seed(2))
    features, probabilities, weights = teacher
    found = pseudo_classes(features[order], probabilities[order], weights, 3)
    torch.testing.assert_close(found, pseudo_classes(*teacher, 3)[order])


def test_the_same_seed_gives_the_same_parts(teacher):
    found = [pseudo_classes(*teacher, 3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 1e-3


def test_features_that_say_nothing_more_split_evenly(teacher):
    """As where there are no more features than classes, and the weights span them all."""
    features, probabilities, weights = teacher
    inside = features @ torch.linalg.pinv(weights) @ weights
    found = pseudo_classes(inside, probabilities, weights, 4)
    torch.testing.assert_close(found, (probabilities / 4).repeat_interleave(4, 1))


def test_a_cold_temperature_picks_one_part_and_a_hot_one_none(teacher):
    cold, hot = (pseudo_classes(*teacher, 3, t).view(M, C, 3) for t in (1e-4, 1e4))
    inside = cold / cold.sum(2, keepdim=True)
    assert (inside.amax(2) > 0.99).double().mean() > 0.95
    torch.testing.assert_close(hot, (teacher[1] / 3)[..., None].expand(M, C, 3), rtol=1e-3, atol=0)


def test_a_class_that_nobody_is_of_is_no_number_less(teacher):
    features, probabilities, weights = teacher
    probabilities = torch.cat([probabilities, torch.zeros(M, 1, dtype=torch.float64)], 1)
    weights = torch.cat([weights, torch.zeros(1, D, dtype=torch.float64)])
    found = pseudo_classes(features, probabilities, weights, 2)
    assert bool(found.isfinite().all())
    assert bool((found[:, -2:] == 0).all())


@pytest.mark.parametrize("parts", [0, D + 1])
def test_more_parts_than_features_are_refused(teacher, parts):
    with pytest.raises(ValueError, match="1 to 8"):
        pseudo_classes(*teacher, parts)
