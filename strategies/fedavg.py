"""FedAvg: McMahan, Moore, Ramage, Hampson & Aguera y Arcas, 2017 (arXiv 1602.05629).

With ``clipping_norm`` it is DP-FedAvg (McMahan, Ramage, Talwar & Zhang, 2018, arXiv 1710.06963):
what one client can change is bounded, and noise hides whether it did. With S = ``clipping_norm``,
z = ``noise_multiplier`` and the N clients of the round::

    client n   w_n, trained on private data from the global w;  sent
    server     w = w + 1/N sum_n min(1, S / |w_n - w|) (w_n - w) + N(0, (z S / N)^2 I)

Each client counts the same, whatever its samples. It is the server that clips and adds noise: this
hides a client from the other clients, and nothing from the server.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager

import numpy as np
import torch
from flwr.app import DEFAULT_TTL, Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from pydantic import Field

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.random import numpy_noise
from fedkd.work import Fit, Load, Parameters, Share, Step
from strategies.base import KnowledgeStrategy, Replies, StrategyOptions


class AverageOptions(StrategyOptions):
    """Options of methods whose server averages parameters, and makes nothing else of them."""

    clipping_norm: float | None = Field(None, gt=0)
    """L2 norm that each client's change of the shared parameters is clipped to; clients then count
    the same, whatever their samples. None for no clipping."""
    noise_multiplier: float = Field(0.0, ge=0)
    """Standard deviation of the noise on the sum of the clipped changes, in units of
    ``clipping_norm``; 0 for none."""


class FedAvg(KnowledgeStrategy):
    """Averages the clients' parameters, weighted by their samples (McMahan et al. 2017)."""

    Options = AverageOptions
    one_architecture = True

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse noise without clipping, and clipping of what is no parameter."""
        super().check(experiment)
        options = cls.read_options(experiment)
        if not isinstance(options, AverageOptions):
            return
        norm, noise = options.clipping_norm, options.noise_multiplier
        if noise and norm is None:
            raise FedkdError(
                f"strategy.noise_multiplier = {noise:g} is not allowed without "
                "strategy.clipping_norm, which the noise is in units of"
            )
        if norm is not None and experiment.student.norm == "batch":
            raise FedkdError(
                f"student.norm = 'batch' is not allowed with strategy.clipping_norm = {norm:g}: "
                "its statistics are no parameters; allowed: 'none', 'group'"
            )
        if norm is not None and experiment.training.part:
            raise FedkdError(
                f"training.part = {list(experiment.training.part)} is not allowed with "
                f"strategy.clipping_norm = {norm:g}: noise would change blocks that do not learn; "
                "freeze them in the student (requires_grad = False)"
            )

    def setup(self) -> None:
        """The global student, freshly initialised."""
        self.parameters = self.initial_parameters()

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the global student on private data and send it back."""
        return [Load(self.parameters), self.local_fit(), Share()]

    def local_fit(self) -> Fit:
        """The client's update."""
        return Fit()

    def fuse(self, round: int, replies: Replies) -> None:
        """``sum_n samples_n / samples * parameters_n``, or what ``clipping_norm`` makes of it."""
        given, options = replies.parameters(), self.options
        if isinstance(options, AverageOptions) and options.clipping_norm is not None:
            with numpy_noise(self.experiment.seed, "average", round):
                self.parameters = private_average(
                    self.parameters,
                    given,
                    options.clipping_norm,
                    options.noise_multiplier,
                    self.unchanging(given),
                )
        else:
            self.parameters = average(given, replies.samples)
            for name, first in given[0].items():
                whole = not (first.is_floating_point() or first.is_complex())
                counts = whole and not name.endswith("num_batches_tracked")
                if counts and any(not torch.equal(first, client[name]) for client in given[1:]):
                    self.warn_once(
                        name,
                        f"{name} holds whole numbers, which are not averaged: all clients get "
                        f"those of the first, client {replies.clients[0]}",
                    )

    def unchanging(self, given: Sequence[Parameters]) -> set[str]:
        """Names of what no client changes: frozen parameters, and buffers that stay as they are.

        Raises
        ------
        FedkdError
            A buffer does not.
        """
        parameters = dict(self.initial_student().named_parameters())
        names = {name for name, parameter in parameters.items() if not parameter.requires_grad}
        for name in (name for name in self.parameters if name not in parameters):
            before = self.parameters[name]
            counter = not before.is_floating_point()
            if not counter and any(not torch.equal(before, client[name]) for client in given):
                raise FedkdError(
                    f"strategy.clipping_norm = {self.options.clipping_norm:g} is not allowed with "
                    f"this student: {name} is no parameter, and training changes it"
                )
            names.add(name)
        return names

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """Every client is tested with the global student."""
        return [Load(self.parameters)]


def average(parameters: Sequence[Parameters], weights: torch.Tensor) -> Parameters:
    """Weighted mean of N sets of named arrays, summed in the order given.

    ``weights`` is (N,) and need not sum to 1. What is the same in all, as what is frozen, stays as
    it is to the last bit. Counters (whole numbers) are taken from the first.
    """
    shares = (weights / weights.sum()).tolist()
    mean = {}
    for name, first in parameters[0].items():
        counter = not (first.is_floating_point() or first.is_complex())
        if counter or all(torch.equal(first, client[name]) for client in parameters[1:]):
            mean[name] = first.clone()
            continue
        total = torch.zeros_like(first)
        for share, client in zip(shares, parameters, strict=True):
            total.add_(client[name], alpha=share)
        mean[name] = total
    return mean


def private_average(
    before: Parameters,
    parameters: Sequence[Parameters],
    clipping_norm: float,
    noise_multiplier: float,
    frozen: Set[str] = frozenset(),
) -> Parameters:
    """Mean of N sets of named arrays, each clipped around ``before``, with Gaussian noise.

    Clipping, mean and noise are Flower's own, whose wrapper is handed the sets as the replies of a
    round. It draws from numpy's global generator: see :func:`fedkd.random.numpy_noise`.

    Parameters
    ----------
    before
        The named arrays that the N sets started from.
    clipping_norm
        Most that a set may differ from ``before``, in L2 norm over all arrays.
    noise_multiplier
        N times the standard deviation of the noise on the mean, in units of ``clipping_norm``.
    frozen
        Names of arrays that nobody changes: they get no noise.
    """
    flower = DifferentialPrivacyServerSideFixedClipping(
        FlowerFedAvg(),
        noise_multiplier,
        # Flower divides by the norm of a change: a numpy number gives infinity where it is 0.
        np.float64(clipping_norm),
        num_sampled_clients=len(parameters),
    )
    flower.current_arrays = _record(before, frozen)
    with _quietly(), np.errstate(divide="ignore"):
        mean, _ = flower.aggregate_train(0, [_reply(given, frozen) for given in parameters])
    assert mean is not None
    return before | {name: torch.from_numpy(array.numpy().copy()) for name, array in mean.items()}


def _record(parameters: Parameters, frozen: Set[str]) -> ArrayRecord:
    floats = {
        name: value
        for name, value in parameters.items()
        if value.is_floating_point() and name not in frozen
    }
    return ArrayRecord({name: Array(value.numpy()) for name, value in floats.items()})


def _reply(parameters: Parameters, frozen: Set[str]) -> Message:
    """What Flower's strategies expect of a client, all of the same weight."""
    weight = MetricRecord({"num-examples": 1.0})
    metadata = Metadata(0, "", 0, 0, "", "", 0.0, DEFAULT_TTL, "train")
    content = RecordDict({"arrays": _record(parameters, frozen), "metrics": weight})
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without a line of Flower's for every client and round."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
