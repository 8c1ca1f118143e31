"""What happens to soft labels as they leave a client: one mechanism for every method.

In this order, each step only where ``[release]`` asks for it::

    z   <- max(z - max z, -c)                         clipped logits
    p   =  softmax(z / tau_t)                         tau_t by the item's public privacy score s_t
    p   <- (p of k public candidates, p of the rest)  candidate set
    p   <- (1 - m) p + m q                            mixed with a public law
    p~  =  project(p + noise), drawn labels, or the likeliest class

``tau_t = tau + (tau_max - tau) s_t``: swing-style release after Li et al. 2022 (arXiv 2212.08349),
whose temperature function, score and noise law are not public to us. A softmax at any temperature
can be inverted by a student that divides by the same one, so what flattening protects depends on
the student's temperature: see ``strategies/swing.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from fedkd.distillation.targets import entropy, onto_simplex
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment, ReleaseTable
from fedkd.privacy.candidates import over_candidates, possible
from fedkd.privacy.costs import described
from fedkd.privacy.dpsgd import is_private
from fedkd.privacy.public import Public
from fedkd.random import SystemNoise
from fedkd.work import Predict, Rows, Source, Step

Draw: TypeAlias = np.random.Generator | SystemNoise
"""What noise is drawn by."""
BISECTIONS = 40
LARGEST = 1e30
"""What stands for infinity among logits that noise is added to the labels of."""


def applies(step: Step, table: ReleaseTable) -> TypeGuard[Predict]:
    """Whether ``[release]`` decides on what ``step`` gives: soft labels of what is no client's own.

    All else that leaves a client under ``[release]`` leaves as it is, and the ledger says so.
    """
    return (
        table.active
        and isinstance(step, Predict)
        and step.per == "sample"
        and not is_private(step.on)
    )


def is_noisy(table: ReleaseTable) -> bool:
    """Whether released labels are noisy or drawn, so that an epsilon may be claimed of them."""
    return table.mechanism == "sample" or (
        table.mechanism in ("gaussian", "laplace", "votes") and table.scale > 0
    )


def claims_epsilon(experiment: Experiment) -> bool:
    """Whether an epsilon is claimed: what private data decide must then not be seen."""
    return is_noisy(experiment.release) or experiment.training.dp.noise_multiplier > 0


def known_of(public: Public, on: Source, items: int) -> Public:
    """What is public of the items of a source: of all but the transfer set, nothing.

    Their privacy score is 0, and they are released over all classes.
    """
    if isinstance(on, Rows) and on.source == "transfer":
        return public.at(on.index)
    if on == "transfer":
        return public
    return replace(public, scores=torch.zeros(items), among=None, law=None)


def charge(
    base: float, table: ReleaseTable, public: Public, classes: int, clients: int = 0
) -> dict[str, Any]:
    """What the ledger says of labels that :func:`release` makes of the same arguments.

    With ``clients``: of what :func:`aggregate` makes of the labels of so many.

    Returns
    -------
    dict
        Fields of :class:`fedkd.privacy.releases.Release`.
    """
    sizes = False if public.among is None else (public.among >= 0).sum(1)
    return described(table, temperatures(table, public.scores, base), classes, sizes, clients)


def temperatures(table: ReleaseTable, scores: Tensor, base: float) -> Tensor:
    """The temperature of each item ``(M,)``, from scores ``(M,)`` and the method's temperature."""
    low = base if table.temperature is None else table.temperature
    high = low if table.tau_max is None else table.tau_max
    if high < low:
        raise FedkdError(
            f"release.tau_max = {high:g} is below the temperature of items with score 0, {low:g}; "
            "private items need the higher one"
        )
    if table.curve == "geometric":
        return low * (high / low) ** scores
    return low + (high - low) * scores


def release(logits: Tensor, base: float, table: ReleaseTable, public: Public, draw: Draw) -> Tensor:
    """Released soft labels ``(M, C)``, or ``(M, k+1)`` over candidates, from logits ``(M, C)``.

    ``base`` is the method's own temperature; ``draw`` gives the noise. Where noise is added to what
    all clients send together, these are the labels that one of them sends, without it.

    Under noise or draws a client answers whatever its student says: a logit that is not a number
    counts as 0, one that is infinite as :data:`LARGEST`. Otherwise a row that holds NaN stays one,
    so that whoever collects it leaves the client out.
    """
    tau = temperatures(table, public.scores, base)[:, None].to(logits)
    if is_noisy(table):
        logits = logits.nan_to_num(0.0, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST)
        logits = logits - logits.amax(1, keepdim=True)
    if table.clip is not None:
        logits = (logits - logits.amax(1, keepdim=True)).clamp_min(-table.clip)
    if table.mix_with == "entropy":
        low = base if table.temperature is None else table.temperature
        labels = matched_mixture((logits / low).softmax(1), (logits / tau).softmax(1))
    else:
        labels = (logits / tau).softmax(1)
    there = torch.ones(1, labels.shape[1], dtype=torch.bool, device=labels.device)
    if public.among is not None:
        among = public.among.to(labels.device)
        there = possible(among, labels.shape[1])
        labels = over_candidates(labels, among)
    if table.mix and table.mix_with != "entropy":
        even = there.to(labels) / there.sum(1, keepdim=True)
        law = even if public.law is None else public.law.to(labels)
        labels = (1 - table.mix) * labels + table.mix * law
    if table.mechanism in ("argmax", "votes"):
        likeliest = torch.nn.functional.one_hot(labels.argmax(1), labels.shape[1])
        return likeliest + 0 * labels.sum(1, keepdim=True)
    if table.mechanism == "sample":
        return sampled(labels, table.draws, draw)
    if not is_noisy(table) or table.trust != "local":
        return labels
    if table.mechanism == "gaussian":
        noise = draw.standard_normal(tuple(labels.shape), dtype=np.float32)
    else:
        noise = draw.laplace(size=tuple(labels.shape)).astype(np.float32)
    noisy = labels + table.scale * torch.from_numpy(noise).to(labels)
    return onto_simplex(noisy.masked_fill(~there, -torch.inf))


def aggregate(
    labels: Tensor, table: ReleaseTable, public: Public, classes: int, draw: Draw
) -> Tensor:
    """The noisy aggregate ``(M, C)`` of what K clients sent, ``(K, M, C)``: a mean, or a vote.

    As a trusted server computes it; the sum of K clients' own shares of noise, which secure
    aggregation gives, has the same law.
    """
    if not is_noisy(table):
        return labels.mean(0)
    noise = table.scale * torch.from_numpy(
        draw.standard_normal(tuple(labels.shape[1:]), dtype=np.float32)
    )
    there = torch.ones(1, labels.shape[2], dtype=torch.bool)
    if public.among is not None:
        there = possible(public.among, classes)
    if table.mechanism == "votes":
        noisy = (labels.sum(0) + noise).masked_fill(~there, -torch.inf)
        return torch.nn.functional.one_hot(noisy.argmax(1), labels.shape[2]).to(labels)
    return onto_simplex((labels.mean(0) + noise).masked_fill(~there, -torch.inf))


def sampled(labels: Tensor, draws: int, draw: Draw) -> Tensor:
    """Shares ``(M, C)`` of ``draws`` labels drawn from each row: the exponential mechanism."""
    ends = labels.double().cumsum(1)
    ends = ends / ends[:, -1:]
    found = torch.searchsorted(ends, torch.from_numpy(draw.random((len(labels), draws))).to(ends))
    found = found.clamp_max(labels.shape[1] - 1)
    ones = torch.full(found.shape, 1 / draws, dtype=labels.dtype, device=labels.device)
    return torch.zeros_like(labels).scatter_add_(1, found, ones)


def matched_mixture(labels: Tensor, flattened: Tensor) -> Tensor:
    """``labels`` mixed with the uniform law to the entropy of ``flattened``, row by row."""
    wanted, uniform = entropy(flattened), 1 / labels.shape[1]
    low = torch.zeros(len(labels), 1, dtype=labels.dtype, device=labels.device)
    high = torch.ones_like(low)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = (entropy((1 - middle) * labels + middle * uniform) < wanted)[:, None]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    share = (low + high) / 2
    return (1 - share) * labels + share * uniform
