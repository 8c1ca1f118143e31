"""DENSE: Zhang, Chen, Li, Lyu, Wu, Ding, Shen & Wu, NeurIPS 2022 (arXiv 2112.12371).

One-shot federated learning without data on the server: it trains a generator against the ensemble
of what the clients have uploaded once, and distils the ensemble on what was generated. With
D(x) = mean_n f_n(x), logits, and K codes z and labels y drawn anew in each epoch of the server::

    client n   train on private data in all rounds;  w_n                   sent in the last round
    server     E times, for its student f:
               minimise CE(D(G(z)), y) + bn * mean_n S_n(G(z)) - adversarial * A(G(z))  over G, z
               x      = G(z), at the smallest such loss; added to all before
               minimise mean_x KL(softmax(D(x)) || softmax(f(x)))          over f, one pass

    S_n        over f_n's layers of batch normalisation: the distance of a batch's mean to the one
               that the layer has learned, and the same of the variances; 0 without such layers
    A          mean_x [argmax D(x) != argmax f(x)] KL(softmax(D(x)) || softmax(f(x)))

Students of the clients may be of any architectures. The server's, of the first one, is what the
paper scores (``server``); before the last round it has learned nothing. With ``every_round`` the
clients upload, and it goes on learning, in each round; nothing comes down in either case.

As in the authors' code, the generator begins anew in each epoch, codes are trained with it, and all
that was generated before stays in use. Of images alone.

Departures: fewer epochs by default, 20 for 200; the generator ends in a normalisation where theirs
ends in a sigmoid, as inputs here are normalised; images are not augmented; Adam has its usual
betas, and the student on the server the optimiser of ``[training]``, begun afresh each epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.distillation.objectives import ObjectiveOption
from fedkd.errors import FedkdError
from fedkd.options import MOST, MOST_UNITS
from fedkd.strategies.base import (
    Headline,
    Knowledge,
    KnowledgeStrategy,
    Line,
    Replies,
    ServerTable,
    StrategyOptions,
)
from fedkd.strategies.dsfl import server_tested
from fedkd.work import Fit, Samples, Share, Step


class DENSE(KnowledgeStrategy):
    """Distils uploaded students on what a generator makes of them, once (Zhang et al. 2022)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        every_round: bool = False
        """Whether clients upload and the server distils in each round, not in the last alone."""
        server_epochs: int = Field(20, ge=0, le=MOST)
        """Times that images are generated, and the student passes over all that there are."""
        generated: int = Field(128, ge=2, le=MOST)
        """Images an epoch, K."""
        generator_steps: int = Field(30, ge=1, le=MOST)
        """Steps of the generator an epoch, each on all of the epoch's codes."""
        generator_lr: float = Field(1e-3, gt=0)
        """Learning rate of the generator and the codes, by Adam."""
        codes: int = Field(256, ge=1, le=MOST)
        """Numbers of a code z."""
        channels: int = Field(64, ge=1, le=MOST_UNITS)
        """Channels of the generator's last layer but one; those before have twice as many."""
        bn: float = Field(1.0, ge=0)
        """Weight of the statistics of batch normalisation; lambda_1 in the paper."""
        adversarial: float = Field(0.5, ge=0)
        """Weight of the divergence from the server's student; lambda_2 in the paper."""
        objective: ObjectiveOption = "forward_kl"
        """How the server's student learns from the ensemble, of ``fedkd list objectives``; what is
        generated has no labels."""

    headline = Headline(evaluation="server")
    knowledge = Knowledge("logits")
    server_training = ServerTable(batch_size=128)

    def setup(self) -> None:
        """The server has not trained yet."""
        self.server_line: Line = {}

    def setup_server(self) -> None:
        """The server's student, one to put uploads in for each architecture, and the generator."""
        if self.task.tokens or len(self.task.shape) != 3:
            name, dataset = self.experiment.strategy.name, self.experiment.data.dataset
            inputs = "text" if self.task.tokens else f"vectors of {self.task.shape[0]} features"
            raise FedkdError(
                f"data.dataset = {dataset!r} is not allowed with strategy.name = {name!r}: it "
                f"generates images, and these are {inputs}"
            )
        self.server.add("server", self.initial_student)
        for model in self.experiment.student.models:
            self.server.add(f"client {model}", partial(self.initial_student, model))
        self.server.add("generator", self.fresh_generator)

    def fresh_generator(self) -> nn.Module:
        """A generator with codes of its own, drawn by the round."""
        options = self.options
        return Generator(options.generated, options.codes, options.channels, self.task.shape)

    def uploads(self, round: int) -> bool:
        """Whether clients send their students in the round."""
        return self.options.every_round or round == self.experiment.rounds

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data; in the last round, send the student."""
        return [Fit(), Share()] if self.uploads(round) else [Fit()]

    def fuse(self, round: int, replies: Replies) -> None:
        """Generate, and distil, ``server_epochs`` times."""
        if not self.uploads(round):
            return
        options = self.options
        names = [f"client {self.experiment.architecture(client)}" for client in replies.clients]
        sent = zip(names, replies.parameters(), strict=True)
        ensemble = Ensemble([self.server.frozen(name, parameters) for name, parameters in sent])
        images, logits = torch.empty(0), torch.empty(0)
        self.server_line = {}
        for _ in range(options.server_epochs):
            made = self.generate(round, ensemble)
            with torch.no_grad():
                said = ensemble(made)
            images, logits = torch.cat([images, made.cpu()]), torch.cat([logits, said.cpu()])
            self.server_line["server_loss"] = self.server.fit(
                "server",
                round,
                Samples(images),
                [self.soft(logits)],
                1.0,
            )

    def generate(self, round: int, ensemble: Ensemble) -> Tensor:
        """Images ``(K, ...)`` of a generator that was trained against the ensemble."""
        options, student = self.options, self.server.frozen("server")
        labels = torch.randint(self.task.classes, (options.generated,)).to(self.server.device)
        self.server.load("generator", dict(self.fresh_generator().state_dict()))
        best, images = torch.inf, torch.empty(0)

        def loss(generator: nn.Module, index: Tensor, draw: torch.Generator) -> Tensor:
            nonlocal best, images
            made = generator(index)
            teachers = ensemble(made)
            value = (
                F.cross_entropy(teachers, labels[index])
                + options.bn * ensemble.gap
                - options.adversarial * disagreement(student(made), teachers)
            )
            if float(value.detach()) < best or not len(images):
                best, images = float(value.detach()), made.detach()
            return value

        self.server_line["generator_loss"] = self.server.minimise(
            "generator",
            round,
            loss,
            size=options.generated,
            epochs=options.generator_steps,
            lr=options.generator_lr,
            batch_size=options.generated,
            optimiser="adam",
        )
        return images

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> Line:
        """The losses of the generator's last step and of the student's last pass."""
        return self.server_line

    def score(self, round: int, client: int) -> Sequence[Step]:
        """The server's student, as the paper predicts."""
        return server_tested(self)


class Ensemble:
    """Students whose logits are averaged; ``gap`` is the mean of S_n on the last batch, ``()``."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        self.members = members
        self._gaps: list[Tensor] = []
        for layer in nn.ModuleList(members).modules():
            known = isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.track_running_stats
            if known:
                layer.register_forward_pre_hook(self._note)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, C)``."""
        self._gaps = []
        return torch.stack([member(inputs) for member in self.members]).mean(0)

    @property
    def gap(self) -> Tensor | float:
        """How far the statistics of the last batch are from those that the students know."""
        return torch.stack(self._gaps).sum() / len(self.members) if self._gaps else 0.0

    def _note(self, layer: nn.Module, given: tuple[Tensor]) -> None:
        learned = dict(layer.named_buffers())
        values = given[0].transpose(0, 1).flatten(1)  # (channels, B times places)
        means = values.mean(1) - learned["running_mean"]
        variances = values.var(1, unbiased=False) - learned["running_var"]
        self._gaps.append(means.norm() + variances.norm())


def disagreement(logits: Tensor, teachers: Tensor) -> Tensor:
    """Mean of KL(teachers || student) over samples that they call by different names, ``()``.

    Both are logits ``(B, C)``; where the names are the same, a sample counts as 0.
    """
    apart = F.kl_div(logits.log_softmax(1), teachers.softmax(1), reduction="none").sum(1)
    return (apart * (logits.argmax(1) != teachers.argmax(1))).mean()


class Generator(nn.Module):
    """Images of codes, which it learns too: a linear layer and three convolutions.

    At a quarter and a half of the images' size it has twice ``channels``, at all of it ``channels``
    and then theirs.
    """

    def __init__(self, count: int, codes: int, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        colours, height, width = shape
        twice, quarter = 2 * channels, (-(-height // 4), -(-width // 4))
        self.codes = nn.Parameter(torch.randn(count, codes))
        self.layers = nn.Sequential(
            nn.Linear(codes, twice * quarter[0] * quarter[1]),
            nn.Unflatten(1, (twice, *quarter)),
            nn.BatchNorm2d(twice),
            nn.Upsample((-(-height // 2), -(-width // 2))),
            nn.Conv2d(twice, twice, 3, padding=1, bias=False),
            nn.BatchNorm2d(twice),
            nn.LeakyReLU(0.2),
            nn.Upsample((height, width)),
            nn.Conv2d(twice, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, colours, 3, padding=1),
            nn.BatchNorm2d(colours, affine=False),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)

    def forward(self, index: Tensor) -> Tensor:
        """Images ``(B, C, height, width)`` of the codes ``index`` ``(B,)``."""
        images: Tensor = self.layers(self.codes[index])
        return images
