"""Reconstruction: measures with known answers, and attacks where the answer is known."""

import math

import pytest
import torch
from torch import nn

from fedkd.errors import FedkdError
from fedkd.lab.reconstruction import decoded, gradient_of, inverted, psnr, reconstruct, ssim

QUICK = ("rounds=1", "data.clients=2", "data.samples_per_client=20", "training.local_epochs=1")


def images(count=3, side=12, seed=0):
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_known_for_a_known_error():
    assert psnr(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1)) == pytest.approx(20)
    assert psnr(images(), images()).tolist() == [100, 100, 100]


def test_ssim_is_one_of_the_same_image_symmetric_and_known_for_flat_images():
    one, other = images(), images(seed=1)
    assert ssim(one, one).tolist() == pytest.approx([1, 1, 1])
    assert torch.allclose(ssim(one, other), ssim(other, one))
    assert ssim(one, other).abs().max() < 0.3
    # Flat images have no structure: what is left is how alike their means are.
    flat = ssim(torch.full((1, 1, 12, 12), 0.2), torch.full((1, 1, 12, 12), 0.6))
    assert float(flat) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4))


def test_ssim_by_hand_where_one_window_is_the_whole_image():
    one, other = images(1, side=3), images(1, side=3, seed=1)
    line = torch.tensor([math.exp(-1 / 4.5), 1.0, math.exp(-1 / 4.5)]).double()
    window = torch.outer(line, line) / line.sum() ** 2
    x, y = one[0, 0].double(), other[0, 0].double()
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
    both = (window * (x - mx) * (y - my)).sum()
    wanted = (2 * mx * my + 1e-4) * (2 * both + 9e-4)
    wanted /= (mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)
    assert float(ssim(one, other)) == pytest.approx(float(wanted))


def test_what_a_linear_map_keeps_is_decoded():
    known, wanted = images(200, side=4), images(5, side=4, seed=1)
    mix = torch.randn(16, 20, generator=torch.Generator().manual_seed(2))
    found = decoded(wanted.flatten(1) @ mix, known.flatten(1) @ mix, known)
    assert psnr(wanted, found).min() > 20


def test_the_gradient_of_one_step_on_one_image_gives_the_image_away():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    image, label = images(1, side=8), torch.tensor([2])
    gradient = gradient_of(student, image, label, graph=False).detach()
    bounds = torch.zeros(1), torch.ones(1)
    found = inverted(student, gradient, label, (1, 8, 8), torch.Generator().manual_seed(1), bounds)
    guess = psnr(image, torch.full_like(image, 0.5))
    assert float(psnr(image, found)) > float(guess) + 6
    drowned = gradient + 10 * torch.randn(gradient.shape)
    noisy = inverted(student, drowned, label, (1, 8, 8), torch.Generator().manual_seed(1), bounds)
    assert float(psnr(image, noisy)) < float(guess) + 1


def test_representations_are_decoded_far_better_than_by_guessing(small):
    (found,) = reconstruct(small(*QUICK, "strategy.name=fedgkt", "student.models=['cnn2']"))
    assert (found.place, found.attack) == ("Represent representation", "linear decoder")
    assert found.count == 40
    assert found.psnr > found.psnr_guess + 3
    assert found.ssim > found.ssim_guess + 0.2
    assert found.matched > 0.5
    assert len(found.originals) == len(found.reconstructions) == 8


def test_nothing_is_reconstructed_of_soft_labels(small):
    assert reconstruct(small(*QUICK, "strategy.name=uniform")) == []


def test_what_is_no_image_is_one_line(tmp_path):
    import texts

    with pytest.raises(FedkdError, match="reconstruction is of images"):
        reconstruct(texts.experiment(tmp_path, "rounds=1"))
