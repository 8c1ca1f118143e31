"""Averages of clients' parameters in which no client stands out (McMahan et al. 2018).

With S = ``clipping_norm``, z = ``noise_multiplier`` and the N clients that a round asked::

    w + 1/N sum_n min(1, S / |w_n - w|) (w_n - w) + N(0, (z S / N)^2 I)

A client whose reply cannot be used counts as one that did not change w, so that N follows from who
was asked alone. A client whose change counts as 0 in a neighbour (*zero-out*) moves the mean by at
most S / N, 1/z of the noise; one whose change is another (*replace-one*) by twice that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import DEFAULT_TTL, Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedkd.errors import FedkdError
from fedkd.random import SystemNoise
from fedkd.work import Parameters


@dataclass(frozen=True)
class Averaging:
    """How the server averages what clients share in a round.

    Parameters
    ----------
    before
        The named arrays that clients start from. They are public by then.
    clipping_norm
        Most that a client may change them by, in L2 norm over all arrays.
    noise_multiplier
        N times the standard deviation of the noise on the mean, in units of ``clipping_norm``.
    frozen
        Names of arrays that nobody changes: they get no noise.
    key
        What clients share the arrays under.
    """

    before: Parameters
    clipping_norm: float
    noise_multiplier: float
    frozen: Set[str] = frozenset()
    key: str = "parameters"

    def released(
        self, parameters: Sequence[Parameters], asked: int, draw: SystemNoise | None = None
    ) -> tuple[Parameters, dict[str, Any]]:
        """The average of ``asked`` clients, of whom some replied, and what it costs.

        The noise is Flower's, from numpy's global generator, unless ``draw`` gives it.

        Returns
        -------
        tuple
            The named arrays; and fields of :class:`fedkd.privacy.releases.Release`, with ``rho``
            for zero-out neighbours.

        Raises
        ------
        FedkdError
            A client has changed what is frozen.
        """
        for name in sorted(self.frozen & self.before.keys()):
            value = self.before[name]
            if value.is_floating_point() and any(
                not value.equal(sent[name]) for sent in parameters
            ):
                raise FedkdError(
                    f"strategy.clipping_norm = {self.clipping_norm:g} is not allowed with this "
                    f"student: {name} is no parameter, and training changes it"
                )
        unchanged = [self.before] * (asked - len(parameters))
        given = [*parameters, *unchanged]
        norm, multiplier = self.clipping_norm, self.noise_multiplier
        deviation = multiplier * norm / len(given)
        ours = draw if multiplier else None
        mean = private_average(self.before, given, norm, 0.0 if ours else multiplier, self.frozen)
        if ours is not None:
            for name in _record(mean, self.frozen):
                drawn = deviation * ours.standard_normal(tuple(mean[name].shape))
                mean[name] = mean[name] + torch.from_numpy(drawn).to(mean[name])
        noise: dict[str, Any] = {"mechanism": "none"}
        if multiplier:
            rho = (norm / len(given) / deviation) ** 2 / 2
            noise = {"mechanism": "gaussian", "scale": deviation, "rho": rho}
        return mean, {"clip": norm, **noise}


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
    before, clipping_norm, noise_multiplier, frozen
        As for :class:`Averaging`.
    parameters
        The N sets.
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
