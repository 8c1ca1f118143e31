"""FedGKT: He, Annavaram & Avestimehr, NeurIPS 2020 (arXiv 2007.14513), group knowledge transfer.

The server trains what lies above a cut, on the clients' representations. A round, with the cut l,
base B_n and the whole student f_n of client n, and the server's head H::

    client n   minimise CE(f_n(x), y) + weight tau^2 KL(g || softmax(f_n(x) / tau)), g of last round
               send h = B_n(x), p = softmax(f_n(x) / tau) and y of its private samples
    server     minimise CE(H(h), y) + weight tau^2 KL(p || softmax(H(h) / tau)) over all uploads
               g = softmax(H(h) / tau) for the client whose samples they are; sent with the next
               round it takes part in

Departures: H is as small as what it stands in for (the paper's is a large network), there is one
for each architecture, and it is trained with ``[training]``'s optimiser on all uploads shuffled.

Scored as the paper does, with H on top of the client's base (``server``), beside the client's own
student; not with ``head = "mlp"``. Uploads hold a row a private sample: no public data is needed,
which is not to say that nothing leaves the client.

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

from fedkd.distillation.targets import soften
from fedkd.options import MOST_UNITS, Epochs, OnlyWith
from fedkd.server import blocks_above, small_head
from fedkd.strategies.base import Headline, KnowledgeStrategy, Line, Replies, StrategyOptions
from fedkd.strategies.fedproto import cut_of
from fedkd.work import CrossEntropy, Evaluate, Fit, Load, Represent, Samples, Soft, Step, Term


class FedGKT(KnowledgeStrategy):
    """Trains heads on the server from clients' features, and sends back soft labels (2020)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        cut: str = ""
        """Block whose output is sent; empty: the one below the last hidden block."""
        head: Literal["same", "mlp"] = "same"
        """The server's head: shaped as the client's blocks above the cut, or one hidden layer."""
        hidden: Annotated[int, OnlyWith("head", "mlp")] = Field(128, ge=1, le=MOST_UNITS)
        """Units in the hidden layer of ``mlp``."""
        server_epochs: Epochs = 3.0
        """Passes of the server over the round's uploads."""
        tau: float = Field(3.0, gt=0)
        """Temperature of both sides' soft labels."""
        weight: float = Field(1.0, ge=0)
        """Of the distillation terms, beside cross-entropy; alpha in the paper."""

    headline = Headline(evaluation="server")

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
        return Soft(labels, temperature=self.options.tau, weight=self.options.weight)

    def fuse(self, round: int, replies: Replies) -> None:
        """Train each head on its clients' uploads, and label these."""
        self.server_line = {"server_loss": {}, "server_accuracy": {}}
        for model in self.cuts:
            group = [n for n in replies.clients if self.experiment.architecture(n) == model]
            if not group:
                continue
            sent = [replies.of(n, "representation") for n in group]
            inputs, labels, said = (
                torch.cat([one[key] for one in sent]) for key in ("inputs", "labels", "soft_labels")
            )
            terms, epochs = (CrossEntropy(), self.towards(said)), self.options.server_epochs
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

        One that is shaped otherwise than the client's blocks above the cut cannot be tested there.
        """
        if self.options.head != "same":
            return []
        head = self.server.parameters(self.experiment.architecture(client))
        return [Load(head), Evaluate(key="server")]

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> Line:
        """The server's loss, and the accuracy of its heads on the uploads, by architecture."""
        return self.server_line
