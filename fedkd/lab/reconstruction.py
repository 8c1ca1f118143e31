"""Reconstruction of clients' images, from what they sent.

Two attacks. *Decoding*: representations of private images, or their means by class, are brought
back to pixels by a linear map that the server fits on images that it has. *Gradient inversion*: an
image is optimised until the gradient that it would give is the one that was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.data.federated import load
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.lab.worlds import Sent, WatchedWorker, play, quiet
from fedkd.random import generator
from fedkd.training import fit, represent, requiring
from fedkd.work import CrossEntropy, Represent, Share, origin

SHOWN = 8
"""Images of each place that are kept to be looked at."""
INVERTED = 8
"""Images that are reconstructed from gradients: each takes a second."""
STEPS, RATE, SMOOTH = 300, 0.1, 1e-3
"""Steps of Adam and its rate in gradient inversion, and the weight of total variation."""
RIDGE = 0.1
"""Of the linear decoder, in units of the mean squared feature."""
FEWEST_ROWS = 4
"""Rows from which on their mean is brought to that of the decoder's, as students differ."""
WINDOW, SPREAD = 11, 1.5
"""Side and standard deviation of SSIM's Gaussian window (Wang et al. 2004)."""
STABLE = (0.01**2, 0.03**2)
"""SSIM's constants, for values in [0, 1]."""


@dataclass(frozen=True)
class Reconstruction:
    """How near reconstructions come to the originals, a mean over ``count`` images.

    ``psnr`` in decibels and ``ssim`` are of pixels in [0, 1]; ``psnr_guess`` and ``ssim_guess``
    those of the mean public image, which takes nothing from the client. ``matched`` is the share of
    reconstructions that are nearer to their own original than to any other. ``originals`` and
    ``reconstructions`` are some of them, ``(n, C, H, W)`` as nested lists.
    """

    place: str
    attack: str
    count: int
    psnr: float
    ssim: float
    psnr_guess: float
    ssim_guess: float
    matched: float
    originals: list[object]
    reconstructions: list[object]


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio ``(K,)`` in decibels of images ``(K, C, H, W)`` in [0, 1].

    ``10 log10(1 / mean squared error)``; 100 where that would be more.
    """
    error = (images.double() - others.double()).square().flatten(1).mean(1)
    return -10 * error.clamp_min(1e-10).log10()


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity ``(K,)`` of images ``(K, C, H, W)`` in [0, 1].

    Wang, Bovik, Sheikh & Simoncelli 2004, equation 13, a mean over all places and channels of a
    Gaussian window of 11 x 11, or of the largest odd side that fits into the image.
    """
    one, other = images.double(), others.double()
    side = min(WINDOW, *one.shape[2:])
    side -= 1 - side % 2
    line = (-((torch.arange(side, dtype=torch.float64) - side // 2) ** 2) / (2 * SPREAD**2)).exp()
    window = torch.outer(line, line) / line.sum() ** 2

    def local(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], window[None, None])

    mean, mean_other = local(one), local(other)
    variance, variance_other = local(one**2) - mean**2, local(other**2) - mean_other**2
    covariance = local(one * other) - mean * mean_other
    light = (2 * mean * mean_other + STABLE[0]) / (mean**2 + mean_other**2 + STABLE[0])
    structure = (2 * covariance + STABLE[1]) / (variance + variance_other + STABLE[1])
    return (light * structure).flatten(1).mean(1).view(len(one), -1).mean(1)


def decoded(features: Tensor, known_features: Tensor, known_images: Tensor) -> Tensor:
    """Images ``(K, C, H, W)`` of features ``(K, d)``, by ridge regression on known pairs.

    Parameters
    ----------
    features : Tensor of shape (K, d)
        Of images that are wanted.
    known_features, known_images : Tensor of shape (M, d) and (M, C, H, W)
        Pairs to learn from.
    """
    known, wanted = known_features.double().flatten(1), features.double().flatten(1)
    centre, middle = known.mean(0), known_images.double().mean(0)
    known, wanted = known - centre, wanted - centre
    kernel = known @ known.T
    kernel += RIDGE * kernel.diagonal().mean().clamp_min(1e-12) * torch.eye(len(known)).double()
    weights = torch.linalg.solve(kernel, known @ wanted.T).T
    pixels = weights @ (known_images.double() - middle).flatten(1)
    return (pixels.view(-1, *known_images.shape[1:]) + middle).float()


def gradient_of(student: nn.Sequential, inputs: Tensor, labels: Tensor, graph: bool) -> Tensor:
    """The gradient ``(P,)`` of the mean cross-entropy, of all parameters that learn."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    loss = F.cross_entropy(student(inputs), labels)
    pieces = torch.autograd.grad(loss, parameters, create_graph=graph, allow_unused=True)
    return torch.cat([piece.flatten() for piece in pieces if piece is not None])


def inverted(
    student: nn.Sequential,
    gradient: Tensor,
    labels: Tensor,
    shape: tuple[int, ...],
    draw: torch.Generator,
    bounds: tuple[Tensor, Tensor],
) -> Tensor:
    """Inputs ``(B, *shape)`` whose gradient points where ``gradient`` does.

    Geiping et al. 2020, equation 4: one less the cosine of the two gradients, and total variation,
    minimised by Adam on the signs of the gradient, the rate falling tenfold at 3/8, 5/8 and 7/8.
    Labels are known, as they can be read from the gradient of the last bias (Zhao et al. 2020).

    Parameters
    ----------
    student : nn.Sequential
        That the gradient was taken of, in evaluation mode.
    gradient : Tensor of shape (P,)
        What was sent.
    labels : Tensor of shape (B,)
        Of the batch that is looked for.
    shape : tuple of int
        Of an input.
    draw : torch.Generator
        Of the inputs that are begun with.
    bounds : pair of Tensor
        The least and largest value of an input, broadcast to its shape.
    """
    guess = torch.randn(len(labels), *shape, generator=draw).requires_grad_(True)
    adam = torch.optim.Adam([guess], lr=RATE)
    milestones = [STEPS * part // 8 for part in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, milestones, 0.1)
    for _ in range(STEPS):
        found = gradient_of(student, guess, labels, graph=True)
        across = (guess[..., 1:] - guess[..., :-1]).abs().mean()
        down = (guess[..., 1:, :] - guess[..., :-1, :]).abs().mean()
        loss = 1 - F.cosine_similarity(found, gradient, dim=0) + SMOOTH * (across + down)
        (slope,) = torch.autograd.grad(loss, guess)
        guess.grad = slope.sign()
        adam.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(*bounds)
    return guess.detach()


def reconstruct(experiment: Experiment) -> list[Reconstruction]:
    """Reconstruct images from all that clients send; empty where nothing that is sent allows it.

    *Representations*, of the last round: the decoder is fitted on the transfer set and the samples
    of another client that colludes with the server. Its features are those of a student that begins
    as the client's did and is trained on the colluder's samples for as long. *Means by class* are
    decoded in the same way, and compared with the mean image of the class. *Parameters*: the worst
    case of an update, one step of SGD on a single image at the weights that everybody begins with;
    with DP-SGD the gradient is clipped and noised as there.

    Raises
    ------
    FedkdError
        Samples are not images.
    """
    experiment = quiet(experiment)
    data = load(experiment)
    if data.task.tokens or len(data.task.shape) != 3:
        raise FedkdError(
            f"--reconstruct is not possible with data.dataset = {experiment.data.dataset!r}: "
            "reconstruction is of images"
        )
    last: dict[str, dict[int, Sent]] = {}

    def keep(worker: Worker, sent: Sent) -> None:
        last.setdefault(sent.place, {})[sent.client] = sent

    worker = WatchedWorker(experiment, keep, data)
    play(worker)
    found = []
    for place, by_client in last.items():
        step = next(iter(by_client.values())).step
        if isinstance(step, Represent) and origin(step.on) == "private":
            found.append(_from_representations(worker, place, by_client))
        elif isinstance(step, Share):
            found.append(_from_gradients(experiment, place, by_client))
    return found


def _from_representations(worker: Worker, place: str, sent: dict[int, Sent]) -> Reconstruction:
    originals, guesses, publics = [], [], []
    means = False
    for client, one in sent.items():
        step = one.step
        assert isinstance(step, Represent)
        assert isinstance(one.value, dict)
        model = worker.experiment.architecture(client)
        others = [n for n in sent if n != client and worker.experiment.architecture(n) == model]
        if not others:
            continue
        colluder = others[0]
        public = worker.samples(client, "transfer").inputs
        known = torch.cat([public, worker.samples(colluder, "private").inputs])
        student = _begun_alike(worker, client, colluder)
        held = represent(student, known, step.cut)[0].clone()
        held = (held.mean((2, 3)) if step.pool and held.dim() == 4 else held).flatten(1)
        records = worker.samples(client, "private")
        if step.per == "class":
            means = True
            there = one.value["count"] > 0
            features = one.value["mean"][there]
            assert records.labels is not None
            classes = there.nonzero()[:, 0]
            own = [records.inputs[records.labels == label].mean(0) for label in classes]
            originals.append(torch.stack(own))
        else:
            features = one.value["inputs"].flatten(1)
            originals.append(records.inputs)
        if len(features) >= FEWEST_ROWS:
            features = features + (held.mean(0) - features.mean(0))
        guesses.append(decoded(features, held, known))
        publics.append(known.mean(0).expand_as(guesses[-1]))
    if not originals:
        raise FedkdError(f"{place}: no other client has the same student; nobody can collude")
    attack = "linear decoder, class means" if means else "linear decoder"
    return _compared(worker, place, attack, *map(torch.cat, (originals, guesses, publics)))


def _begun_alike(worker: Worker, client: int, colluder: int) -> nn.Sequential:
    """What the client's student would have become on the colluder's samples, by local training."""
    experiment = worker.experiment
    student = Worker(experiment, worker.data).module(client, "own")
    draw = generator(experiment.seed, "colluder", client, colluder)
    epochs = experiment.rounds * experiment.training.local_epochs
    samples = worker.samples(colluder, "private")
    fit(student, samples, [CrossEntropy()], experiment.training, draw, epochs=epochs)
    return student


def _from_gradients(experiment: Experiment, place: str, sent: dict[int, Sent]) -> Reconstruction:
    """Invert the gradient of single images, as of one step of SGD at the first weights."""
    worker, table = Worker(experiment), experiment.training.dp
    zero = worker.data.pixels(torch.zeros(1, *worker.data.task.shape))
    scale = worker.data.pixels(torch.ones(1, *worker.data.task.shape)) - zero
    bounds = -zero / scale, (1 - zero) / scale
    public = worker.data.transfer().inputs
    public = public.mean(0, keepdim=True) if len(public) else torch.zeros_like(zero)
    draw = generator(experiment.seed, "inversion")
    originals, guesses, publics = [], [], []
    for number in range(INVERTED):
        client = sorted(sent)[number % len(sent)]
        records = worker.samples(client, "private")
        assert records.labels is not None
        pick = slice(number // len(sent), number // len(sent) + 1)
        inputs, labels = records.inputs[pick].clone(), records.labels[pick]
        if not len(inputs):
            continue
        student = worker.template(experiment.architecture(client))
        student.eval()
        with requiring(student, experiment.training.part):
            gradient = gradient_of(student, inputs, labels, graph=False).detach()
            if table.noise_multiplier:
                gradient *= min(1.0, table.max_grad_norm / max(float(gradient.norm()), 1e-12))
                noise = torch.randn(gradient.shape, generator=draw)
                gradient += table.noise_multiplier * table.max_grad_norm * noise
            guess = inverted(student, gradient, labels, tuple(inputs.shape[1:]), draw, bounds)
        originals.append(inputs)
        guesses.append(guess)
        publics.append(public)
    attack = "gradient inversion, one step on one image"
    return _compared(worker, place, attack, *map(torch.cat, (originals, guesses, publics)))


def _compared(
    worker: Worker, place: str, attack: str, originals: Tensor, guesses: Tensor, public: Tensor
) -> Reconstruction:
    pixels: Callable[[Tensor], Tensor] = worker.data.pixels
    wanted, found, mean = (pixels(each).clamp(0, 1) for each in (originals, guesses, public))
    apart = torch.cdist(found.flatten(1), wanted.flatten(1))
    nearest = apart.min(1).values
    own = apart.diagonal()
    shown = torch.linspace(0, len(wanted) - 1, min(SHOWN, len(wanted))).long()
    return Reconstruction(
        place=place,
        attack=attack,
        count=len(wanted),
        psnr=float(psnr(wanted, found).mean()),
        ssim=float(ssim(wanted, found).mean()),
        psnr_guess=float(psnr(wanted, mean).mean()),
        ssim_guess=float(ssim(wanted, mean).mean()),
        matched=float((own <= nearest + 1e-9).double().mean()),
        originals=np.round(wanted[shown].numpy(), 3).tolist(),
        reconstructions=np.round(found[shown].numpy(), 3).tolist(),
    )
