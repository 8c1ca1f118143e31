"""FedGen: Zhu, Hong & Zhou, ICML 2021 (arXiv 2105.10056), data-free distillation by a generator.

The server trains a generator of representations of a class, which the clients' heads agree on.
Clients then learn from what it generates, beside their own samples: it enters above the cut, so
that their heads know of classes that they have few samples of::

    client n   w_n = (own blocks, shared blocks), trained from the shared ones of the server:
               minimise CE(f_n(x), y) + weight CE(h_n(G(e, y')), y'),  y' ~ p         (K of G's)
               the shared blocks and n_n[c], its samples of class c;  sent
    server     shared blocks = sum_n samples_n / samples * those of client n
               minimise  sum_n a_n[y'] CE(h_n(z), y') + diversity exp(-mean |z - z_i| |e - e_i|^2)
               over G, with z = G(e, y'), e uniform, y' ~ p
               a_n[c] = n_n[c] / sum_m n_m[c],    p[c] = sum_n n_n[c] / samples

h_n are the blocks of client n above the cut, all of which are shared. In a client's loss G is not
trained, and its term has no gradient below the cut. In round 1 there is no G yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import students
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.options import MOST, MOST_UNITS
from fedkd.strategies.base import Line, Replies, ServerTable, StrategyOptions
from fedkd.strategies.fedhkd import refuse_part_below, refuse_text
from fedkd.strategies.fedproto import cut_of
from fedkd.strategies.lg_fedavg import LGFedAvg
from fedkd.work import Count, CrossEntropy, Fit, Load, Parameters, Samples, Share, Step

BATCH = 32
"""Representations a step of the generator, where ``[server]`` says nothing."""


class FedGen(LGFedAvg):
    """Clients learn from representations of a generator on the server (Zhu et al. 2021).

    Departures: the generator's parameters do not travel: clients get ``generated`` representations
    K, anew each round and the same for all, and draw their mini-batches from these, where in the
    paper they get the generator and draw from it at every step. What goes down to each client is
    K (4 d + 8) bytes, in the place of 4 (hidden (noise + C + d + 5) + d) for the generator. The
    server weighs losses by label counts, as the authors' code does, and draws labels by them, where
    that code draws all classes alike; its optimiser begins afresh each round, and its rate does not
    decay. That code has one more term, towards what the client's head says of generated
    representations of a sample's class, and ``weight`` begins at 10 there and decays; the loss here
    is after the description in the paper.
    """

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        weight: float = Field(1.0, ge=0)
        """Of the cross-entropy on generated representations; with 0 there is no generator, and it
        is FedAvg, or LG-FedAvg where fewer blocks are shared."""
        shared_blocks: int = Field(0, ge=0)
        """Number of last blocks that are averaged; 0: all. With fewer, clients' students may differ
        below."""
        cut: str = ""
        """Block whose output is generated; empty: the last one below the head."""
        generated: int = Field(256, ge=1, le=MOST)
        """Representations that a client gets in a round; K."""
        noise: int = Field(32, ge=1, le=MOST_UNITS)
        """Numbers of noise that the generator takes."""
        hidden: int = Field(256, ge=1, le=MOST_UNITS)
        """Units in the generator's hidden layer."""
        diversity: float = Field(1.0, ge=0)
        """Weight of the diversity loss; eta in the authors' code."""
        server_steps: int = Field(50, ge=0, le=MOST)
        """Steps of the generator's training a round."""

    server_training = ServerTable(optimiser="adam", lr=3e-4, weight_decay=0.01, batch_size=BATCH)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse a step of one representation, which nothing is unlike."""
        super().check(experiment)
        if experiment.server.batch_size == 1 and cls.read_options(experiment).weight:
            raise FedkdError(
                "server.batch_size = 1 is not allowed with strategy.name = 'fedgen': its generator "
                "learns from two representations at least, by how they differ"
            )

    def setup(self) -> None:
        """The shared blocks, the cuts, and nothing generated yet."""
        super().setup()
        self.made = torch.empty(0)  # (K, ...)
        self.made_labels = torch.empty(0, dtype=torch.long)  # (K,)
        self.server_line: Line = {}

    def setup_server(self) -> None:
        """The generator, and a head in the shape of the clients'."""
        models = list(dict.fromkeys(self.experiment.student.models))
        found = {model: cut_of(self, model, self.options.cut, last=1) for model in models}
        self.cuts = {model: cut for model, (cut, _) in found.items()}
        if not self.options.weight:
            return
        refuse_text(self)
        for model in models:
            refuse_part_below(self, model, self.cuts[model])
        shapes = {model: tuple(shape) for model, (_, shape) in found.items()}
        shape = shapes[models[0]]
        if len({*shapes.values()}) > 1:
            given = ", ".join(f"{shapes[m]} ({m} at {self.cuts[m]})" for m in models)
            raise FedkdError(
                f"student.models = {models} is not allowed with strategy.name = 'fedgen': it "
                f"generates representations of one shape, and theirs are {given}; "
                "student.representation gives all one of the same, at the last cut"
            )
        options, classes = self.options, self.task.classes
        self.server.add("head", lambda: self.above(models[0]))
        self.server.add(
            "generator", lambda: Generator(classes, options.noise, options.hidden, shape)
        )

    def above(self, model: str) -> nn.Sequential:
        """What a fresh ``model`` has above the cut.

        Raises
        ------
        FedkdError
            Not all of it is shared.
        """
        student, shared = self.initial_student(model), self.options.shared_blocks
        index = students.cut_index(student, self.cuts[model])
        if 0 < shared < len(student) - index:
            raise FedkdError(
                f"strategy.shared_blocks = {shared} is not allowed with a cut at "
                f"{self.cuts[model]!r}: the server needs the {len(student) - index} blocks above"
            )
        return student[index:]

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train below the shared blocks and with them, and send these and the label counts."""
        weight = self.options.weight
        if not weight:
            return super().learn(round, client)
        fit = Fit()
        if len(self.made):
            cut = self.cuts[self.experiment.architecture(client)]
            made = CrossEntropy(weight, on=Samples(self.made, self.made_labels, cut))
            fit = Fit(terms=(CrossEntropy(), made))
        return [Load(self.parameters), fit, Share(self.shared), Count()]

    def fuse(self, round: int, replies: Replies) -> None:
        """Average the shared blocks, train the generator, and have it generate."""
        super().fuse(round, replies)
        if not self.options.weight:
            return
        counts = replies.stack("label_counts").double()  # (N, C)
        loss = self.train(round, replies.parameters(), counts)
        labels = torch.multinomial(counts.sum(0), self.options.generated, replacement=True)
        noise = torch.rand(len(labels), self.options.noise)
        self.made, self.made_labels = self.server.predict("generator", noise, labels), labels
        self.server_line = {"generator_loss": loss}

    def train(self, round: int, parameters: Sequence[Parameters], counts: Tensor) -> float:
        """Train the generator on the clients' heads; its mean loss in the last step.

        ``parameters`` are the shared blocks of each client, ``counts`` (N, C) its samples a class.
        """
        options, device = self.options, self.server.device
        names = self.server.parameters("head")
        heads = [self.server.frozen("head", {n: one[n] for n in names}) for one in parameters]
        # A class that nobody holds is never drawn.
        weights = (counts / counts.sum(0).clamp_min(1)).float().to(device)

        def loss(module: nn.Module, index: Tensor, draw: torch.Generator) -> Tensor:
            labels = torch.multinomial(counts.sum(0), len(index), replacement=True, generator=draw)
            noise = torch.rand(len(index), options.noise, generator=draw).to(device)
            labels = labels.to(device)
            made = module(noise, labels)
            each = [F.cross_entropy(head(made), labels, reduction="none") for head in heads]
            agreeing = (weights[:, labels] * torch.stack(each)).sum(0).mean()
            return agreeing + options.diversity * alike(noise, made)

        return self.server.minimise(
            "generator",
            round,
            loss,
            size=self.experiment.server.batch_size or BATCH,
            epochs=options.server_steps,
        )

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> Line:
        """The generator's loss in its last step of the round."""
        return self.server_line


class Generator(nn.Module):
    """Representations ``(K, *shape)`` of noise ``(K, noise)`` and classes ``(K,)``."""

    def __init__(self, classes: int, noise: int, hidden: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.classes, self.shape = classes, shape
        self.layers = nn.Sequential(
            nn.Linear(noise + classes, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, torch.Size(shape).numel()),
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """A representation of each class."""
        given = torch.cat([noise, F.one_hot(labels, self.classes).to(noise)], 1)
        made: Tensor = self.layers(given)
        return made.unflatten(1, self.shape)


def alike(noise: Tensor, made: Tensor) -> Tensor:
    """How alike representations ``(B, ...)`` of unlike noise ``(B, z)`` are, from 0 to 1.

    ``exp(-mean of |e_i - e_j|^2 |z_i - z_j|)`` over all pairs, the squares and the absolute values
    being means over what they are of.
    """
    flat = made.flatten(1)
    apart = (flat[:, None] - flat).abs().mean(2)
    different = (noise[:, None] - noise).square().mean(2)
    return (-(apart * different).mean()).exp()
