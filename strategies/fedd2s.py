"""FedD2S: Atapour, Seyedmohammadi, Abouei, Mohammadi & Plataniotis, 2024 (arXiv 2402.10846).

Personalised data-free federated distillation with deep-to-shallow layer dropping. An implementation
after the public description: the paper's equations, payload, schedule and tables are not known, and
every choice it leaves open is an option. The dropping set is ``l_1 > ... > l_m``, deepest first;
round t uses the cut ``l_{1 + min(m - 1, floor((t - 1) / q))}``::

    client     local epochs of CE;  h = B^l(x), p = softmax(f(x) / T);  send h, p and labels y
    server     epochs over all uploads:  CE(H^l(h), y) + lam T^2 KL(p || softmax(H^l(h) / T))
               g = softmax(H^l(h) / T);  send g to the client whose samples they are
    client     epochs of  CE(f(x), y) + lam T^2 KL(g || s)

"Data-free" means that no public data is needed. Representations, soft labels and labels of private
samples do leave the client; ``bytes_up`` shows how much.

Departures: not known, as the paper is not in full, but for ``pool``, which is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from fedkd import students
from fedkd.caveats import LOCAL_TRAINING
from fedkd.distillation.objectives import ObjectiveOption, forward_kl
from fedkd.errors import FedkdError
from fedkd.options import MOST_UNITS, Epochs, OnlyWith
from fedkd.server import blocks_above, small_head
from fedkd.strategies.base import (
    Knowledge,
    KnowledgeStrategy,
    Replies,
    ServerTable,
    StrategyOptions,
)
from fedkd.work import (
    CrossEntropy,
    Fit,
    Head,
    Parameters,
    Represent,
    Samples,
    Step,
    Term,
)

DROPPING_SET = 3
"""Cuts in the dropping set unless it is given: the deepest ones of the student."""


class FedD2S(KnowledgeStrategy):
    """Server heads on client features teach back, from ever shallower cuts (2024)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        cuts: tuple[str, ...] = ()
        """The dropping set, deepest first, named by the block below the cut; empty: the student's
        three deepest cuts."""
        rounds_per_drop: PositiveInt | Literal["auto", "never"] = "auto"
        """q; ``auto`` is rounds / (cuts + 1)."""
        student: Literal["full", "base", "head"] = "full"
        """Whose output s learns. ``full``: the student's, into all blocks; ``base``: the same, into
        the blocks below the cut; ``head``: the server's frozen head on the client's base."""
        active: Literal["deepest", "all"] = "deepest"
        """Use the deepest cut that is not yet dropped, or all of these."""
        teacher: Literal["server", "self"] = "server"
        """``self`` is a control without a server: the client's own soft labels teach it."""
        tau: float = Field(3.0, gt=0)
        """Temperature T."""
        lam: float = Field(1.0, ge=0)
        """Weight of distillation, on the clients and on the server."""
        objective: ObjectiveOption = "forward_kl"
        """How both learn from soft labels, of ``fedkd list objectives``."""
        kd_epochs: Epochs = 1.0
        """Passes of the second phase over private data."""
        server_epochs: Annotated[Epochs, OnlyWith("teacher", "server")] = 3.0
        """Passes over all uploads, a round."""
        weighting: Literal["samples", "clients"] = "samples"
        """Whether every upload counts the same in a head's training, or every client: the uploads
        of small clients are then repeated."""
        warm_up: Annotated[int, OnlyWith("teacher", "server")] = Field(0, ge=0)
        """Rounds that a new head trains before clients learn from it."""
        head: Literal["same", "mlp"] = "same"
        """A head has the shape of the client's blocks above the cut, or one hidden layer."""
        hidden: Annotated[int, OnlyWith("head", "mlp")] = Field(128, ge=1, le=MOST_UNITS)
        """Width of an ``mlp`` head."""
        pool: bool = False
        """Average feature maps over their places before they are sent (a departure)."""

    server_training = ServerTable(batch_size=64)
    knowledge = Knowledge(labelled=True)

    def setup(self) -> None:
        """Look the cuts up in every architecture: a wrong one is found before round 1."""
        self.fused: dict[int, dict[str, Tensor]] = {}
        self.seen: dict[str, int] = {}
        self.found: dict[str, float] = {}
        self.blocks: dict[str, tuple[str, ...]] = {}
        for model in sorted(set(self.experiment.student.models)):
            student = self.initial_student(model)
            self.blocks[model] = students.blocks(student)
            self._check_cuts(model, student)
        options = self.options
        if options.head == "same" and options.pool:
            raise FedkdError(
                "strategy.pool = True is not allowed with strategy.head = 'same': a pooled feature "
                "map no longer fits the blocks above the cut; set strategy.head = 'mlp'"
            )
        if options.student == "head" and options.head != "same":
            raise FedkdError(
                f"strategy.head = {options.head!r} is not allowed with strategy.student = 'head': "
                "clients can only put a head of their own blocks' shape on their base; set 'same'"
            )

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Phase 1: train on private data, then send what the active cuts hold."""
        if self.options.teacher == "self":
            return [Fit()]
        return [Fit(), *self._represent(round, client, "private", "")]

    def fuse(self, round: int, replies: Replies) -> None:
        """Train a head for each architecture and active cut; keep what it says of each sample."""
        self.fused, self.found = {client: {} for client in replies.clients}, {}
        if self.options.teacher == "self":
            return
        measured: list[tuple[float, float, float, int]] = []
        for model in sorted(set(self.experiment.student.models)):
            of_model = [n for n in replies.clients if self.experiment.architecture(n) == model]
            for cut in self._active(round, model) if of_model else ():
                uploads = {client: replies.of(client, cut) for client in of_model}
                measured.append(self._train_head(round, model, cut, uploads))
                name = f"{model}:{cut}"
                self.seen[name] = self.seen.get(name, 0) + 1
        count = sum(samples for *_, samples in measured) or 1
        names = ("head_loss", "head_accuracy", "head_kl")
        self.found = {
            name: sum(row[place] * row[3] for row in measured) / count
            for place, name in enumerate(names)
        }

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Phase 2: train on private data towards the labels and what the server's heads say."""
        options, model = self.options, self.experiment.architecture(client)
        terms: list[Term] = [CrossEntropy()]
        if options.teacher == "self":
            terms.append(self.soft("own", options.tau, weight=options.lam))
        cuts = [cut for cut in self.fused[client] if self.seen[f"{model}:{cut}"] > options.warm_up]
        if options.teacher == "server" and not cuts:
            if options.warm_up >= self.experiment.rounds:
                self.warn_once(
                    LOCAL_TRAINING,
                    f"strategy.warm_up = {options.warm_up} and rounds = {self.experiment.rounds}: "
                    "no head teaches anybody, so it equals local training",
                )
            return []
        for cut in cuts:
            terms += self._terms(model, cut, self.fused[client][cut], options.lam / len(cuts))
        return [Fit("private", tuple(terms), epochs=options.kd_epochs, min_steps=0, key="kd_loss")]

    def measure(self, round: int, client: int) -> Sequence[Step]:
        """What the heads are tested on: the client's own test split, where there is one."""
        if self.options.teacher == "self" or not self.experiment.data.test.fraction:
            return []
        return self._represent(round, client, "own", "measure_")

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> dict[str, Any]:
        """The cut; loss, accuracy and KL(p || g) of the heads; accuracy on held-out samples."""
        active = list(self._active(round, self.experiment.student.models[0]))
        line: dict[str, Any] = {"cut": active[0] if len(active) == 1 else active, **self.found}
        hits = []
        for client in replies.clients:
            model = self.experiment.architecture(client)
            for cut in self._active(round, model):
                if held := replies.of(client, f"measure_{cut}"):
                    said = self.server.predict(f"{model}:{cut}", held["inputs"]).argmax(1)
                    hits.append((said == held["labels"]).double())
        if hits:
            line["head_heldout_accuracy"] = float(torch.cat(hits).mean())
        return line

    # --- the schedule -----------------------------------------------------------------------

    def cuts(self, model: str) -> tuple[str, ...]:
        """The dropping set of an architecture, deepest first."""
        if self.options.cuts:
            return self.options.cuts
        return self.blocks[model][:-1][::-1][:DROPPING_SET]

    def _active(self, round: int, model: str) -> tuple[str, ...]:
        cuts, q = self.cuts(model), self.options.rounds_per_drop
        if q == "auto":
            q = max(1, self.experiment.rounds // (len(cuts) + 1))
        place = cut_at(round, len(cuts), None if q == "never" else q)
        return cuts[place:] if self.options.active == "all" else cuts[place : place + 1]

    def _check_cuts(self, model: str, student: torch.nn.Sequential) -> None:
        places = []
        for cut in self.cuts(model):
            try:
                places.append(students.cut_index(student, cut))
            except FedkdError as error:
                raise FedkdError(f"strategy.cuts, student {model!r}: {error}") from None
        if places != sorted(set(places), reverse=True):
            raise FedkdError(
                f"strategy.cuts = {list(self.cuts(model))} is not allowed: the dropping set goes "
                f"from deep to shallow, each cut once; student {model!r} has, from shallow to "
                f"deep: {', '.join(self.blocks[model][:-1])}"
            )

    # --- inside -----------------------------------------------------------------------------

    def _represent(self, round: int, client: int, on: str, prefix: str) -> list[Step]:
        options, model = self.options, self.experiment.architecture(client)
        return [
            Represent(cut, on, options.tau, pool=options.pool, key=f"{prefix}{cut}")
            for cut in self._active(round, model)
        ]

    def _train_head(
        self, round: int, model: str, cut: str, uploads: dict[int, Parameters]
    ) -> tuple[float, float, float, int]:
        """Loss, accuracy and KL(p || g) over the uploads of a cut, and their number."""
        options, task = self.options, self.task
        name = f"{model}:{cut}"
        shape = tuple(next(iter(uploads.values()))["inputs"].shape[1:])
        self.server.add(
            name,
            lambda: (
                blocks_above(self.experiment, task, model, cut)
                if options.head == "same"
                else small_head(self.experiment, task, shape, options.hidden, name)
            ),
        )
        taught = pooled(list(uploads.values()), equally=options.weighting == "clients")
        loss = self.server.fit(
            name,
            round,
            Samples(taught["inputs"], taught["labels"]),
            [
                CrossEntropy(),
                self.soft(taught["soft_labels"], options.tau, weight=options.lam),
            ],
            options.server_epochs,
        )
        if not math.isfinite(loss):  # rows of NaN are no targets: clients train without
            self.warn_once(
                name,
                f"FedD2S: the server's head at {cut} of {model} diverged (loss {loss:g}) and "
                "teaches nobody; lower server.lr",
            )
        hits, apart, count = 0.0, 0.0, 0
        for client, upload in uploads.items():
            logits = self.server.predict(name, upload["inputs"])
            self.fused[client][cut] = (logits / options.tau).softmax(1)
            hits += float((logits.argmax(1) == upload["labels"]).sum())
            apart += float(forward_kl(logits, upload["soft_labels"], options.tau).sum())
            count += len(logits)
        return loss, hits / max(count, 1), apart / max(count, 1), count

    def _terms(self, model: str, cut: str, targets: Tensor, lam: float) -> list[Term]:
        """The terms by which a client learns from one head."""
        options = self.options
        soft = partial(self.soft, targets, options.tau, weight=lam)
        if options.student == "full":
            return [soft()]
        if options.student == "base":
            blocks = self.blocks[model]
            return [soft(reach=blocks[: blocks.index(cut) + 1])]
        head = Head(cut, self.server.parameters(f"{model}:{cut}"))
        # Its KL begins at zero, as g is what this very head says: labels give it a direction.
        return [soft(through=head), CrossEntropy(lam, through=head)]


def cut_at(round: int, cuts: int, rounds_per_drop: int | None) -> int:
    """Place in the dropping set, 0 the deepest, of the cut that ``round`` (from 1) uses."""
    dropped = 0 if rounds_per_drop is None else (round - 1) // rounds_per_drop
    return min(cuts - 1, dropped)


def pooled(uploads: Sequence[Parameters], equally: bool) -> Parameters:
    """All uploads as one; ``equally`` repeats those of small clients up to the largest's number."""
    most = max(len(upload["labels"]) for upload in uploads)

    def rows(upload: Parameters) -> Tensor:
        count = len(upload["labels"])
        return torch.arange(most if equally else count) % max(count, 1)

    return {
        name: torch.cat([upload[name][rows(upload)] for upload in uploads])
        for name in ("inputs", "soft_labels", "labels")
    }
