"""Gradient canaries: the worst case of DP-SGD, attacked at each of its noisy steps.

A canary is a record whose gradient is the same in every step that draws it: it lies in a direction
that no other record's gradient has, and is longer than the norm that it is clipped to (a Dirac
gradient; Nasr et al. 2021, arXiv 2101.04535; Nasr et al. 2023, arXiv 2302.07956). The adversary
knows everything but whether the canary is there or counts as 0, and sees every update of the
student. That is what the formal epsilon of DP-SGD is about: no record is easier to tell.

Attacked is the code that trains clients, :func:`fedkd.training.fit` with
:class:`fedkd.privacy.dpsgd.DPSGD`, and not a copy of it: the student is another one, a linear
layer, and the records of a fit are many canaries, each in a direction of its own; all others have
a gradient of 0. A record is clipped and drawn by itself and the noise of unlike directions is
independent, so that no canary moves what is seen of another: each is a repetition.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.errors import FedkdError
from fedkd.experiment import TrainingTable
from fedkd.lab.audit import CONFIDENCE
from fedkd.lab.bounds import audited_epsilon
from fedkd.privacy.dpsgd import DPSGD
from fedkd.privacy.epsilons import PrivateSteps, gaussian_mu, training_epsilon
from fedkd.privacy.guarantees import private_steps
from fedkd.privacy.sensitivity import Numbers
from fedkd.random import generator
from fedkd.results import Run
from fedkd.training import Optimiser, fit
from fedkd.work import CrossEntropy, Samples

PLACE = "each noisy step (white box)"
CANARIES = 20_000
"""Canaries of an audit, about half of them left out, unless time runs out."""
SECONDS = 60.0
"""After which no more fits begin."""
AT_ONCE = 512
"""Canaries of one fit."""
LENGTH = 10.0
"""Norm of a canary's gradient before it is clipped, in units of the clipping norm."""
DELTAS = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3)
"""Where bounds are held against formal epsilons, beside the experiment's own delta."""
LEAST_NOISE = 1 / 8
"""Of the noise multiplier: less noise than this is not looked for to explain what is seen."""
MARGIN = 1e4
"""Logits by which the student is wrong about every canary: the gradient stays what it is."""


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon at ``delta``, and what the ledger's noisy steps compose to there."""

    delta: float
    epsilon: float
    formal: float


@dataclass(frozen=True)
class GradientAudit:
    """What gradient canaries prove about the DP-SGD of the client that is worst off.

    All is for zero-out neighbours that differ in one record, and holds together with 95 %
    confidence. ``bounds`` are by delta, the first at that of the experiment; ``largest`` is what
    that one would be if every canary were told right. ``canaries`` in ``fits`` fits are
    repetitions, ``inside`` of which are there; ``attack`` is the score that proves most.

    ``noise_at_most`` bounds the noise multiplier from above if steps and sampling are those of the
    ledger and the noise is Gaussian; ``epsilon_as_sampled_gaussian`` is what follows from it at the
    experiment's delta (after Nasr et al. 2023). Both are None where nothing is proved.
    """

    place: str
    attack: str
    client: int
    noise_multiplier: float
    rate: float
    steps: int
    canaries: int
    inside: int
    fits: int
    bounds: list[Bound]
    largest: float
    noise_at_most: float | None
    epsilon_as_sampled_gaussian: float | None

    @property
    def refuted(self) -> list[Bound]:
        """Where more is proved than the formal epsilon allows."""
        return [bound for bound in self.bounds if bound.epsilon > bound.formal]


def audit_gradients(run: Run, canaries: int = CANARIES, seconds: float = SECONDS) -> GradientAudit:
    """Attack the DP-SGD of a run: its noise, clipping, sampling rate and number of steps.

    Parameters
    ----------
    run
        With a ledger.
    canaries
        Fewest repetitions, unless time runs out.
    seconds
        After which no more fits begin; one pair of fits is always made.

    Raises
    ------
    FedkdError
        The run has no DP-SGD, or its ledger no noisy step.
    """
    torch.set_num_threads(run.experiment.engine.threads)
    client, phases = _worst_off(run)
    mechanism = _Mechanism(run, client, phases)
    start, members = time.monotonic(), np.zeros(0, dtype=bool)
    scores: list[Numbers] = []
    while not scores or (len(members) < canaries and time.monotonic() - start < seconds):
        pair = len(scores)
        draw = generator(run.experiment.seed, "gradient canaries", pair)
        inside = torch.rand(AT_ONCE, generator=draw) < 0.5
        seen = mechanism.updates(inside, 2 * pair + 1)
        other = mechanism.updates(torch.zeros_like(inside), 2 * pair + 2)
        scores.append(mechanism.scores(seen, other))
        members = np.append(members, inside.numpy())
    return _judged(mechanism, np.concatenate(scores, 1), members, 2 * len(scores))


def _worst_off(run: Run) -> tuple[int, list[PrivateSteps]]:
    """The client whose noisy steps compose to the largest epsilon, and its phases of training."""
    experiment = run.experiment
    check_private(run)
    by_client = private_steps(run.releases, experiment)
    phases = {
        client: [phase for phase in each if phase.steps and phase.sample_rate]
        for client, each in by_client.items()
    }
    phases = {client: each for client, each in phases.items() if each}
    if not phases:
        raise FedkdError(
            f"{run.folder} has no noisy step in its ledger: nothing was released of what clients "
            "trained privately"
        )
    delta = experiment.training.dp.delta
    client = max(sorted(phases), key=lambda n: training_epsilon(phases[n], delta))
    return client, phases[client]


def check_private(run: Run) -> None:
    """Refuse a run without DP-SGD.

    Raises
    ------
    FedkdError
        One line naming ``training.dp.noise_multiplier``.
    """
    if not run.experiment.training.dp.noise_multiplier:
        raise FedkdError(
            f"--gradient-canaries audits DP-SGD, and {run.folder} has "
            "training.dp.noise_multiplier = 0; allowed: above 0"
        )


class _Mechanism:
    """The DP-SGD of a client: ``phases`` of training, each as the ledger has it."""

    def __init__(self, run: Run, client: int, phases: Sequence[PrivateSteps]) -> None:
        self.experiment, self.client, self.phases = run.experiment, client, phases
        self.samples = _samples_of(run.partition, client)
        steps = [phase.steps for phase in phases]
        self.rates = np.repeat([phase.sample_rate for phase in phases], steps)[:, None]

    def updates(self, inside: Tensor, world: int) -> Numbers:
        """What is seen of canaries ``(R,)``, those that are ``inside`` or count as 0: ``(T, R)``.

        Of each of T noisy steps the update of the student, in the direction of each canary and in
        units of what a canary moves it by: the noise has the deviation of the noise multiplier.
        Worlds have noise and batches of their own.
        """
        table = self.experiment.training.dp
        student = wrong_student(len(inside))
        # So small that what is learnt stays far below the margin.
        lr = 1e-3 / (table.max_grad_norm**2 * (1 + table.noise_multiplier))
        seen = []
        for number, phase in enumerate(self.phases):
            count, size = sizes(phase, self.samples, self.experiment.training.batch_size)
            dp = _Watched(
                *(table, "private", self.experiment.seed, self.client, number, "own"),
                *("world", world),
                secure=self.experiment.release.secure,
            )
            training = TrainingTable(optimiser="sgd", batch_size=size, lr=lr)
            samples = canaries(inside, count, table.max_grad_norm)
            nowhere = torch.Generator()
            how: dict[str, Any] = {"epochs": 0, "min_steps": phase.steps, "dp": dp, "seed": 0}
            fit(student, samples, [CrossEntropy()], training, nowhere, **how)
            unit = lr * table.max_grad_norm / (count * phase.sample_rate)
            seen += [(step[0] - step[1]) / (math.sqrt(2) * unit) for step in dp.updates]
        return torch.stack(seen).double().numpy()

    def scores(self, seen: Numbers, other: Numbers) -> Numbers:
        """Scores ``(len(ATTACKS), R)`` of what is seen ``(T, R)``, by each of :data:`ATTACKS`.

        ``other`` is the same of a fit without canaries.
        """
        sigma = self.experiment.training.dp.noise_multiplier
        return np.stack(
            [
                log_likelihood_ratio(seen, self.rates, sigma),
                log_likelihood_ratio(seen - other, self.rates, math.sqrt(2) * sigma),
                seen.std(0),
            ]
        )


ATTACKS = (
    "log likelihood ratio of the updates",
    "log likelihood ratio, less the updates of another fit",
    "spread over steps",
)
"""The first is the best where noise is as it should be, the others where fits or steps share it."""


class _Watched(DPSGD):
    """DP-SGD, where every update of the student's first parameter is seen."""

    def attach(self, student: nn.Sequential, optimiser: torch.optim.Optimizer) -> Any:
        """The optimiser, watched."""
        self.updates: list[Tensor] = []
        private = super().attach(student, optimiser)
        return _WatchedOptimiser(private, self._parameters[0], self.updates)


class _WatchedOptimiser:
    """An optimiser that notes by how much each step lowers a parameter."""

    def __init__(self, inner: Optimiser, parameter: Tensor, updates: list[Tensor]) -> None:
        self.zero_grad = inner.zero_grad
        self._inner, self._parameter, self._updates = inner, parameter, updates

    def step(self) -> None:
        """Take the step and note it."""
        before = self._parameter.detach().clone()
        self._inner.step()
        self._updates.append(before - self._parameter.detach())


def wrong_student(directions: int) -> nn.Sequential:
    """A linear student of two classes that is sure of the first one, whatever it learns.

    The gradient of a record of the second class is its inputs for the first class, and their
    opposite for the second.
    """
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, directions, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([MARGIN, 0.0]))
    layer.bias.requires_grad_(False)
    return nn.Sequential(layer)


def canaries(inside: Tensor, count: int, norm: float) -> Samples:
    """Records ``(count, R)``, of which the first R are canaries that are ``inside`` or count as 0.

    A canary's inputs lie in a direction of its own; where there are none the gradient is 0.
    """
    inputs = torch.zeros(count, len(inside))
    places = inside.nonzero()[:, 0]
    inputs[places, places] = LENGTH * norm / math.sqrt(2)
    return Samples(inputs, torch.ones(count, dtype=torch.int64))


def sizes(phase: PrivateSteps, samples: int, batch_size: int) -> tuple[int, int]:
    """Records and batch size of a fit, each as many times the client's own: enough for canaries.

    Where the client's do not give the sampling rate of the ledger, as on other samples than its
    training samples, whole batches are taken that do.
    """
    passes = round(1 / phase.sample_rate)
    if not samples or -(-samples // batch_size) != passes:
        samples = passes * batch_size
    times = -(-AT_ONCE // samples)
    return times * samples, times * batch_size


def log_likelihood_ratio(seen: Numbers, rates: Numbers, sigma: float) -> Numbers:
    """Of a canary that is there and one that is not, ``(R,)``, from what is seen ``(T, R)``.

    It is there in each step with the chance in ``rates`` ``(T, 1)``: the best test there is.
    """
    with np.errstate(divide="ignore"):
        left_out, drawn = np.log1p(-rates), np.log(rates)
    found = np.logaddexp(left_out, drawn + (seen - 0.5) / sigma**2).sum(0)
    return np.asarray(found)


def _samples_of(partition: Mapping[str, Any], client: int) -> int:
    """Training samples of a client; 0 where that is not known."""
    held = {each["client"]: each["train"] for each in partition.get("clients", [])}
    return int(held.get(client, 0))


def _judged(
    mechanism: _Mechanism, scores: Numbers, members: np.ndarray, fits: int
) -> GradientAudit:
    """The most that scores ``(A, R)`` prove, all bounds together with 95 %.

    Rates of an attack are bounded once; what they prove at several deltas costs no confidence.
    """
    table, phases = mechanism.experiment.training.dp, mechanism.phases
    deltas = [table.delta, *(delta for delta in DELTAS if delta > table.delta)]
    confidence = 1 - (1 - CONFIDENCE) / len(ATTACKS)

    def proved(of: Numbers, delta: float) -> float:
        return audited_epsilon(of[members], of[~members], delta, confidence)

    found = np.array([[proved(of, delta) for delta in deltas] for of in scores])
    bounds = [
        Bound(delta, float(epsilon), training_epsilon(phases, delta))
        for delta, epsilon in zip(deltas, found.max(0), strict=True)
    ]
    noise = noise_at_most(phases, bounds)
    return GradientAudit(
        place=PLACE,
        attack=ATTACKS[int(found.sum(1).argmax())],
        client=mechanism.client,
        noise_multiplier=table.noise_multiplier,
        rate=float(mechanism.rates.max()),
        steps=len(mechanism.rates),
        canaries=len(members),
        inside=int(members.sum()),
        fits=fits,
        bounds=bounds,
        largest=proved(members.astype(np.float64), table.delta),
        noise_at_most=noise,
        epsilon_as_sampled_gaussian=None
        if noise is None
        else training_epsilon(_with_noise(phases, noise), table.delta),
    )


def noise_at_most(phases: Sequence[PrivateSteps], bounds: Sequence[Bound]) -> float | None:
    """The noise multiplier above which ``phases`` would leak less than ``bounds`` prove.

    It is up to 2 % too large, and no less than :data:`LEAST_NOISE` of that of ``phases``. None
    where nothing is proved.
    """

    def allows(noise: float) -> bool:
        changed = _with_noise(phases, noise)
        return all(bound.epsilon <= training_epsilon(changed, bound.delta) for bound in bounds)

    # Without sampling the steps are one Gaussian, which leaks no less.
    steps = sum(phase.steps for phase in phases)
    above = [
        math.sqrt(steps) / gaussian_mu(bound.epsilon, bound.delta)
        for bound in bounds
        if bound.epsilon > 0
    ]
    if not above:
        return None
    high, least = min(above), LEAST_NOISE * phases[0].noise_multiplier
    low = high / 2
    while not allows(low):
        high, low = low, low / 2
        if high < least:
            return high
    while high > low * 1.02:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if allows(middle) else (low, middle)
    return high


def _with_noise(phases: Sequence[PrivateSteps], noise: float) -> list[PrivateSteps]:
    return [replace(phase, noise_multiplier=noise) for phase in phases]
