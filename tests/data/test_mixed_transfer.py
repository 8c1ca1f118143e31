"""``distill.augmentation``: the transfer set is mixed when it is loaded, the same for everybody."""

import pytest
import texts
import torch

from fedkd import FedkdError, run
from fedkd.data.federated import load

FAST = ("student.width=0.2", "training.local_epochs=1", "evaluate_every=9", "rounds=2")


def inputs(experiment):
    return load(experiment).transfer().inputs


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_everybody_makes_the_same_mixtures_of_the_same_size(kind, small):
    how = f"distill.augmentation={kind}"
    plain, mixed = inputs(small()), inputs(small(how))
    assert torch.equal(mixed, inputs(small(how)))
    assert mixed.shape == plain.shape
    assert not mixed.equal(plain)
    low, high = plain.amin(), plain.amax()
    assert bool(((mixed >= low - 1e-5) & (mixed <= high + 1e-5)).all())
    assert not mixed.equal(inputs(small(how, "distill.beta=0.1")))


def test_samples_that_are_not_mixed_stay(small):
    plain, mixed = (
        inputs(small()),
        inputs(small("distill.augmentation=mixup", "distill.mixed=0.25")),
    )
    stayed = (plain - mixed).abs().flatten(1).amax(1) < 1e-5
    assert 60 <= int(stayed.sum()) < 80


def test_pasted_pixels_are_those_of_some_sample(small):
    plain, mixed = inputs(small()), inputs(small("distill.augmentation=cutmix"))
    pixels = plain.flatten(1)
    same = (mixed.flatten(1)[:, None] - pixels[None]).abs() < 1e-5
    own = same[torch.arange(80), torch.arange(80)]
    best = (own[:, None] | same).float().mean(2).amax(1)
    assert bool((best > 0.999).all())


def test_copies_are_mixed_otherwise_and_nothing_else_moves(small):
    one, more = load(small()), load(small("distill.augmentation=mixup", "distill.copies=3"))
    first, second, third = more.transfer().inputs.split(80)
    assert not first.equal(second)
    assert not second.equal(third)
    assert torch.equal(first, inputs(small("distill.augmentation=mixup")))
    assert torch.equal(one.common().inputs, more.common().inputs)
    assert torch.equal(one.private(0).inputs, more.private(0).inputs)
    assert one.fingerprint() != more.fingerprint()


@pytest.mark.parametrize("name", ["uniform", "scarlet", "comet", "feddf"])
def test_methods_learn_on_mixtures_and_nothing_of_them_travels(name, small, tmp_path):
    how = (f"strategy.name={name}", *FAST)
    plain = run(small(*how), tmp_path / "plain")
    mixed = run(small(*how, "distill.augmentation=mixup"), tmp_path / "mixed")
    for one, other in zip(mixed.rounds, plain.rounds, strict=True):
        assert one["left_out"] == []
        assert (one["bytes_up"], one["bytes_down"]) == (other["bytes_up"], other["bytes_down"])
    assert mixed.rounds[-1]["own_loss_mean"] != plain.rounds[-1]["own_loss_mean"]


def test_the_mixtures_with_the_largest_scores_are_picked(small, tmp_path):
    how = ("strategy.name=uniform", *FAST, "rounds=4", "distill.augmentation=cutmix")
    picked = ("distill.copies=2", "distill.rows=pick", "distill.pick=student_entropy")
    done = run(small(*how, *picked), tmp_path / "run")
    assert [line["left_out"] for line in done.rounds] == [[]] * 4
    assert {line["items"] for line in done.releases} == {80}


def test_images_alone_are_mixed(small, tmp_path):
    experiment = texts.small(tmp_path / "t", "distill.augmentation=mixup")
    with pytest.raises(FedkdError, match=r"'mixup' is not allowed with data\.dataset = .*images"):
        load(experiment)
    with pytest.raises(FedkdError, match=r"with canary\.secrets = 2"):
        load(small("distill.augmentation=cutmix", "canary.secrets=2"))
