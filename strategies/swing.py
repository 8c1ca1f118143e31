"""Swing distillation carried over to a federation: teachers, fused labels, one student.

After Li, Wu, Dong, Wu, Bian & Xiong, 2022 (arXiv 2212.08349), whose temperature function, score,
noise law and tables are not public to us. Clients train teachers on private data; each releases
soft labels on the transfer set, as ``[release]`` says; the server averages them and a student
learns from the mean::

    client n   p_n = release(z_n)                      temperature tau_t, noise: fedkd.privacy
    server     G   = 1/N sum_n p_n                                                      (M, C)
               minimise (1 - a) sum_t KL(G_t || softmax(z_S,t / tau_S)) + a CE(clean public text)

Without ``[release]`` this is plain federated distillation at ``tau``. What a per-token temperature
protects hangs on the student's: ``softmax(z / tau_t)`` can be inverted, so a student that divides
by the same ``tau_t`` (``student_temperature = "same"``) ends at the teacher's logits at any
``tau_t``; with ``"base"``, ``tau_S = tau``, it inherits the flattened law. A weight ``tau_t^2`` on
each token undoes the damping in the same way.

Departures: the paper has one teacher and one student, and no federation; beyond that they are not
known, as the paper is not in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from fedkd.distillation.objectives import ObjectiveOption
from fedkd.distillation.targets import mix
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.options import Epochs
from fedkd.privacy.release import temperatures
from fedkd.strategies.base import Knowledge, KnowledgeStrategy, Replies, StrategyOptions
from fedkd.work import CrossEntropy, Fit, Load, Predict, Soft, Step


class Swing(KnowledgeStrategy):
    """A student on the server learns from teachers' soft labels, released under ``[release]``."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        tau: float = Field(2.0, gt=0)
        """Temperature of an item with privacy score 0, unless ``release.temperature`` says
        otherwise, and of the student."""
        student_temperature: Literal["base", "same"] = "base"
        """The student's temperature: that of score 0, or each item's own."""
        tau_squared: Literal["none", "base", "token"] = "none"
        """Weight of the distillation: 1, the squared base temperature, each item's squared."""
        clean_weight: float = Field(0.0, ge=0, le=1)
        """Share a of cross-entropy on the transfer set's own text, as it is without canaries."""
        student_init: Literal["fresh", "public"] = "fresh"
        """Where the student starts: fresh weights, or the model of the public corpus."""
        server_epochs: Epochs = 5.0
        """Passes of the student over the transfer set, a round."""
        objective: ObjectiveOption = "forward_kl"
        """How the student learns from the mean, of ``fedkd list objectives``."""

    one_architecture = True
    needs_transfer_set = True
    sends_soft_labels = True
    asks_rows = True
    knowledge = Knowledge()

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse a student that is to start from a public model where there is none."""
        super().check(experiment)
        options = cls.read_options(experiment)
        if options.student_init == "public" and experiment.student.init != "public":
            raise FedkdError(
                "strategy.student_init = 'public' needs student.init = 'public': the model of the "
                "public corpus is made for the teachers"
            )

    def setup_server(self) -> None:
        """The student."""
        self.server.add("student", lambda: self.initial_student(init=self.options.student_init))

    def setup(self) -> None:
        """No fused labels yet."""
        self.fused = torch.zeros(0)

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the teacher on private data, then release soft labels on the transfer set."""
        return [Fit(), Predict(self.asked, temperature=self.options.tau)]

    def fuse(self, round: int, replies: Replies) -> None:
        """``G = 1/N sum_n p_n``; the student learns from it."""
        options, clients = self.options, len(replies)
        self.fused = mix(torch.full((1, clients), 1 / clients), replies.stack())[0]
        samples = self.asked_samples()
        terms: list[Any] = [self.fused_term()]
        if options.clean_weight:
            terms.append(CrossEntropy(options.clean_weight, on="public"))
        self.loss = self.server.fit("student", round, samples, terms, options.server_epochs)

    def fused_term(self) -> Soft:
        """Distillation of the fused labels, at the temperatures and weights of the options."""
        options, release = self.options, self.experiment.release
        scores = self.of_asked(self.public.scores)
        items = temperatures(release, scores, options.tau)
        base = options.tau if release.temperature is None else release.temperature
        weight = 1 - options.clean_weight
        same = options.student_temperature == "same"
        if options.tau_squared == "base":
            weight *= base**2
        return self.soft(
            self.fused,
            items if same else base,
            weight=weight,
            tau_squared=False,
            among=self.asked_candidates,
            row_weights=items.square() if options.tau_squared == "token" else None,
        )

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """Everybody is tested with the student."""
        return [Load(self.server.parameters("student"))]

    def fused_labels(self, client: int, steps: Sequence[Step]) -> torch.Tensor | None:
        """The mean, though it stays on the server."""
        return self.over_transfer(self.fused)

    def record(self, round: int, replies: Replies, label_counts: torch.Tensor) -> dict[str, Any]:
        """The student's loss."""
        return {"student_loss": self.loss}
