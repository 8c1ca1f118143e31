"""Mixtures of samples: their limits and what they keep."""

import pytest
import torch

from fedkd.distillation.augmentation import cutmix, mixup, partners, shares


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


IMAGES = torch.rand(12, 3, 8, 6, generator=draw(9))
OTHER = torch.randperm(12, generator=draw(8))


def test_mixup_has_both_samples_as_its_limits_and_lies_between():
    ones = torch.ones(12)
    assert torch.equal(mixup(IMAGES, OTHER, ones), IMAGES)
    assert torch.equal(mixup(IMAGES, OTHER, 0 * ones), IMAGES[OTHER])
    half = mixup(IMAGES, OTHER, ones / 2)
    assert torch.allclose(half, (IMAGES + IMAGES[OTHER]) / 2)


def test_a_share_of_none_is_no_mixup_and_of_some_leaves_the_others():
    half = torch.full((len(IMAGES),), 0.5)
    assert torch.equal(mixup(IMAGES, partners(len(IMAGES), draw(), 0.0), half), IMAGES)
    mixed = mixup(IMAGES, partners(len(IMAGES), draw(), 0.5), half)
    stayed = (mixed == IMAGES).flatten(1).all(1)
    assert int(stayed.sum()) >= 6
    assert not stayed.all()


def test_partners_are_samples_and_as_many_as_the_share():
    for share in (0.0, 0.25, 1.0):
        other = partners(40, draw(1), share)
        assert sorted(other.tolist())[0] >= 0
        assert int((other != torch.arange(40)).sum()) <= round(40 * share)
    assert sorted(partners(40, draw(1)).tolist()) == list(range(40))


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_shares_are_of_the_beta_law(beta):
    found = shares(20_000, beta, draw())
    assert bool(((found >= 0) & (found <= 1)).all())
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert found.var() == pytest.approx(1 / (4 * (2 * beta + 1)), abs=0.005)
    assert torch.equal(found, shares(20_000, beta, draw()))


def test_cutmix_pastes_the_share_that_it_says():
    kept = torch.linspace(0, 1, 12).double()
    mixed, left = cutmix(IMAGES, OTHER, kept, draw())
    alike, pasted = mixed == IMAGES, mixed == IMAGES[OTHER]
    assert bool((alike | pasted).all())
    moved = torch.arange(12) != OTHER
    assert torch.allclose(left[moved], alike.double().mean((1, 2, 3))[moved])
    assert bool((left[~moved] == 1).all())
    assert left[-1] == 1
    assert bool((left >= kept - 0.15).all())  # cut off at the border, and to whole pixels


def test_of_all_channels_the_same_places_are_pasted():
    mixed, _ = cutmix(IMAGES, OTHER, torch.full((12,), 0.5), draw(3))
    same = mixed == IMAGES
    assert bool((same == same[:, :1]).all())
