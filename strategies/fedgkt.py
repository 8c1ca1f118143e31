"""FedGKT: He, Annavaram & Avestimehr, NeurIPS 2020 (arXiv 2007.14513), group knowledge transfer.

The server trains what lies above a cut, on the clients' representations. A round, with the cut l,
base B_n and the whole student f_n of client n, and the server's head H::

    client n   minimise CE(f_n(x), y) + weight tau^2 KL(g || softmax(f_n(x) / tau)), g of last round
               send h = B_n(x), p = softmax(f_n(x) / tau) and y of its private samples
    server     minimise CE(H(h), y) + weight tau^2 KL(p || softmax(H(h) / tau)) over all uploads
               g = softmax(H(h) / tau) for the client whose samples they are; sent with the next
               round it takes part in

The server's optimiser goes on from round to round and its rate falls on a plateau, as in the
authors' code, which also has the server train longest at first.

Departures: H is as small as what it stands in for, unless ``server_model`` names a larger network,
as the paper's is; there is one for each architecture, trained on all uploads shuffled. A plateau is
one of the server's loss, where the authors' code looks at accuracy on test data, and the last
quarter of the rounds teaches the clients too. Clients' optimisers start afresh, unless
``training.keep_optimiser``.

Scored as the paper does, with H on top of the client's base (``server``), beside the client's own
student; not where H is ``mlp``. Uploads hold a row a
private sample: no public data is needed, which is not to say that nothing leaves the client.

Only who takes part in a round teaches the server in it. A client that was away finds the soft
labels made of its last upload; one that has none yet trains without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedkd.distillation.objectives import ObjectiveOption
from fedkd.distillation.targets import soften
from fedkd.errors import FedkdError
from fedkd.options import MOST_UNITS, Epochs, OnlyWith
from fedkd.random import key
from fedkd.server import blocks_above, small_head
from fedkd.strategies.base import (
    Headline,
    Knowledge,
    KnowledgeStrategy,
    Line,
    Replies,
    ServerTable,
    StrategyOptions,
)
from fedkd.strategies.fedproto import cut_of
from fedkd.students.build import build
from fedkd.work import (
    CrossEntropy,
    Evaluate,
    Fit,
    Load,
    Network,
    Represent,
    Samples,
    Soft,
    Step,
    Term,
)

PASSES = ((0.1, 20.0), (0.15, 15.0), (0.2, 10.0), (0.5, 5.0), (0.75, 3.0), (1.0, 2.0))
"""The server's, up to each share of all rounds; the authors' code has them for 200 rounds."""


class FedGKT(KnowledgeStrategy):
    """Trains heads on the server from clients' features, and sends back soft labels (2020)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        cut: str = ""
        """Block whose output is sent; empty: the one below the last hidden block."""
        server_model: str = ""
        """A name of ``fedkd list students``: a network on representations, in place of ``head``,
        such as ``resnet8`` where they are feature maps."""
        head: Annotated[Literal["same", "mlp"], OnlyWith("server_model", "")] = "same"
        """The server's head: shaped as the client's blocks above the cut, or one hidden layer."""
        hidden: Annotated[int, OnlyWith("head", "mlp")] = Field(128, ge=1, le=MOST_UNITS)
        """Units in the hidden layer of ``mlp``."""
        server_epochs: Epochs | None = None
        """Passes of the server over the round's uploads. Not given, as in the authors' code: 20 in
        the first tenth of all rounds, 15 and 10 in the next two twentieths, 5 up to half, 3 up to
        three quarters, then 2."""
        tau: float = Field(3.0, gt=0)
        """Temperature of both sides' soft labels."""
        objective: ObjectiveOption = "forward_kl"
        """How either side learns from the other's soft labels, of ``fedkd list objectives``."""
        weight: float = Field(1.0, ge=0)
        """Of the distillation terms, beside cross-entropy; alpha in the paper."""

    headline = Headline(evaluation="server")
    knowledge = Knowledge(labelled=True)
    server_training = ServerTable(keep_optimiser=True, schedule="plateau")

    def setup(self) -> None:
        """Soft labels (K, C) for each client's samples, none yet."""
        self.targets: dict[int, Tensor] = {}
        self.server_line: Line = {}

    def setup_server(self) -> None:
        """A head for each architecture."""
        self.cuts: dict[str, str] = {}
        for model in sorted(set(self.experiment.student.models)):
            self.cuts[model], shape = cut_of(self, model, self.options.cut, last=2)
            self.server.add(model, partial(self.make_head, model, tuple(shape)))

    def make_head(self, model: str, shape: tuple[int, ...]) -> nn.Sequential:
        """A fresh head on representations of ``shape``."""
        if larger := self.options.server_model:
            seed = key(self.experiment.seed, "head", model, larger)
            try:
                return build(larger, shape, self.task.classes, self.experiment.student, seed)
            except FedkdError as error:
                raise FedkdError(
                    f"strategy.server_model = {larger!r} does not fit representations of {model!r} "
                    f"at {self.cuts[model]}, of shape {shape}: {error}"
                ) from error
        if self.options.head == "mlp":
            return small_head(self.experiment, self.task, shape, self.options.hidden, model)
        return blocks_above(self.experiment, self.task, model, self.cuts[model])

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train with the server's soft labels, then send representations and one's own."""
        terms: tuple[Term, ...] = (CrossEntropy(),)
        if self.options.weight and client in self.targets:
            terms += (self.towards(self.targets[client]),)
        cut = self.cuts[self.experiment.architecture(client)]
        return [Fit(terms=terms), Represent(cut, temperature=self.options.tau)]

    def towards(self, labels: Tensor) -> Soft:
        """The distillation term, the same on both sides."""
        return self.soft(labels, self.options.tau, weight=self.options.weight)

    def fuse(self, round: int, replies: Replies) -> None:
        """Train each head on its clients' uploads, and label these."""
        self.server_line = {"server_loss": {}, "server_accuracy": {}}
        for model in self.cuts:
            group = [n for n in replies.clients if self.experiment.architecture(n) == model]
            if not group:
                continue
            sent = [replies.of(n, "representation") for n in group]
            inputs, labels, said = (
                torch.cat([one[what] for one in sent])
                for what in ("inputs", "labels", "soft_labels")
            )
            given = self.options.server_epochs
            epochs = passes(round, self.experiment.rounds) if given is None else given
            terms = CrossEntropy(), self.towards(said)
            loss = self.server.fit(model, round, Samples(inputs, labels), terms, epochs)
            logits = self.server.predict(model, inputs)
            hits = (logits.argmax(1) == labels).double()
            self.server_line["server_loss"][model] = loss
            self.server_line["server_accuracy"][model] = float(hits.mean())
            if not math.isfinite(loss):  # rows of NaN are no targets: clients train without
                self.warn_once(
                    model,
                    f"FedGKT: the server's head for {model} diverged (loss {loss:g}) and teaches "
                    "nobody; lower server.lr",
                )
            rows = soften(logits, self.options.tau).split([len(one["labels"]) for one in sent])
            self.targets |= {n: own.clone() for n, own in zip(group, rows, strict=True)}

    def score(self, round: int, client: int) -> Sequence[Step]:
        """The server's head on the client's base, as the paper predicts.

        A head of one hidden layer is no student by name, and is not tested there.
        """
        model, larger = self.experiment.architecture(client), self.options.server_model
        head = self.server.parameters(model)
        if larger:
            return [Evaluate(key="server", above=Network(self.cuts[model], larger, head))]
        return [Load(head), Evaluate(key="server")] if self.options.head == "same" else []

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> Line:
        """The server's loss, and the accuracy of its heads on the uploads, by architecture."""
        return self.server_line


def passes(round: int, rounds: int) -> float:
    """Passes of the server over the uploads of ``round`` of ``rounds``: most at first."""
    return next(epochs for share, epochs in PASSES if (round - 1) / rounds < share)
