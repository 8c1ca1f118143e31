"""Selective-FD: Shao, Wu & Zhang, Nature Communications 15, 2024 (arXiv 2304.01731).

    client n:  s_n = whether each transfer sample is like its own, by a density ratio (KuLSIF)
    server:    G   = sum_n s_n F_n / sum_n s_n            mean of the clients that know the sample
    server:    kept where somebody knows the sample and |G - one-hot(argmax G)|_1 <= tau_server
    client n:  learns from G on what is kept

Departures: the authors' public code has no server-side selector; that ambiguity is this distance,
and the default of ``tau_server``, are ours. Of its client-side selector we keep penalty, noise,
quantile and kernel (width 5 on MNIST, where the median distance of two samples is 32). Where it
departs from KuLSIF, in multiplying by a matrix that is to be inverted, KuLSIF is followed. Ratios
are estimated from half of the private samples and not from 5 %, as clients here have few. Labels of
samples that a client does not know are sent all the same, and set aside by the server; a sample
that is not kept counts as one without a loss, so that its mini-batch teaches less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.caveats import LOCAL_TRAINING
from fedkd.distillation.targets import mix
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.options import OnlyWith
from fedkd.strategies.base import DistillOptions, Replies
from fedkd.strategies.uniform import Uniform
from fedkd.work import Select, Step


class SelectiveFD(Uniform):
    """Averages the probabilities of clients that know a sample, if not ambiguous (Shao 2024)."""

    class Options(DistillOptions):
        """Keys of ``[strategy]``."""

        client_selector: Literal["density_ratio", "none"] = "density_ratio"
        """Whether a client says, once, which transfer samples are like its own: a release of
        private data without noise; or counts as knowing them all (as under ``[release]`` and for
        text it must)."""
        kernel_width: Annotated[float, OnlyWith("client_selector", "density_ratio")] = Field(
            0.15, gt=0
        )
        """Width of the density ratio's kernel, as a share of the median distance between two of
        the client's samples."""
        client_quantile: Annotated[float, OnlyWith("client_selector", "density_ratio")] = Field(
            0.25, ge=0, le=1
        )
        """A transfer sample is like a client's own where its density ratio is above this quantile
        of theirs."""
        tau_server: float = Field(1.0, ge=0, le=2)
        """Most ambiguity, an L1 distance, of a mean soft label that clients learn from: at 1 the
        likeliest class has half of the probability at least, at 2 everything is kept."""

    def setup(self) -> None:
        """Nothing selected, nothing kept yet."""
        self.selected: dict[int, Tensor] = {}
        self.kept = torch.zeros(0, dtype=torch.bool)
        self.ever_kept = False

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse a release policy around which the client-side selector would go."""
        super().check(experiment)
        selector = cls.read_options(experiment).client_selector
        if experiment.release.active and selector != "none":
            raise FedkdError(
                f"[release] is not allowed with strategy.name = {experiment.strategy.name!r} and "
                f"strategy.client_selector = {selector!r}: what it selects by private samples "
                "would leave the client unreleased; allowed: 'none'"
            )

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train on private data, then send soft labels, and once which samples are selected."""
        options = self.options
        if options.client_selector == "none" or client in self.selected:
            return super().learn(round, client)
        select = Select(width=options.kernel_width, quantile=options.client_quantile)
        return [*super().learn(round, client), select]

    def fuse(self, round: int, replies: Replies) -> None:
        """``G``, (M, C), and which of its rows are kept, (M,)."""
        labels = replies.stack()
        weights = torch.ones(labels.shape[:2])
        if self.options.client_selector != "none":
            for reply in replies.replies:
                if isinstance(given := reply.values.get("selected"), Tensor):
                    self.selected[reply.client] = given
            selected = [self.of_asked(self.selected[client]) for client in replies.clients]
            weights = torch.stack(selected).float()
        self.fused, known = weighted_mean(weights, labels)
        self.kept = known & (ambiguity(self.fused) <= self.options.tau_server)
        self._watch(round)

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Fine-tune on the soft labels that were kept; rows of NaN are no targets."""
        if not self.kept.any():
            return []
        targets = self.fused.masked_fill(~self.kept[:, None], torch.nan)
        return [self.distil(self.soft(targets))]

    def fused_labels(self, client: int, steps: Sequence[Step]) -> Tensor:
        """What clients get; the uniform law stands for rows that the server keeps to itself."""
        shown = self.fused.where(self.kept[:, None], torch.tensor(1 / self.fused.shape[1]))
        return self.over_transfer(shown)

    def record(self, round: int, replies: Replies, label_counts: Tensor) -> dict[str, Any]:
        """Shares of the transfer samples: kept, and, on the mean, selected by a client."""
        shares = [float(self.selected[n].double().mean()) for n in sorted(self.selected)]
        selected = sum(shares) / len(shares) if shares else 1.0
        return {"kept": float(self.kept.double().mean()), "selected": selected}

    def _watch(self, round: int) -> None:
        """Warn where nothing was kept in any round."""
        self.ever_kept |= bool(self.kept.any())
        if round == self.experiment.rounds and not self.ever_kept:
            self.warn_once(
                LOCAL_TRAINING,
                "Selective-FD kept no transfer sample in any round, so it equals local training; "
                f"raise strategy.tau_server = {self.options.tau_server:g}",
            )


def weighted_mean(weights: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (M, C) of labels (N, M, C) by weights (N, M), and which rows have any, (M,).

    A row without any has the mean of all.
    """
    clients, total = len(labels), weights.sum(0)
    shares = torch.where(total > 0, clients * weights / total.clamp_min(1), 1.0)
    even = torch.full((1, clients), 1 / clients)
    return mix(even, shares[..., None] * labels)[0], total > 0


def ambiguity(labels: Tensor) -> Tensor:
    """L1 distance ``(M,)`` of soft labels ``(M, C)`` to the one-hot label of their likeliest class.

    From 0, for a label that is sure of its class, to ``2 - 2/C``, for the uniform one.
    """
    return 2 * (1 - labels.amax(1))
