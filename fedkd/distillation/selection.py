"""Which rows of a transfer set to ask for: pure functions of scores and soft labels.

Soft labels are ``(M, C)``, a row a sample; what is returned are numbers of rows, int64, or shares
that sum to 1. What is drawn comes from a generator that is given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedkd.distillation.targets import entropy

SMALLEST = 1e-12
"""The least probability that a logarithm is taken of."""


def size_of(count: int, share: float) -> int:
    """How many of ``count`` rows a share of them is: the nearest whole number, one at least."""
    return min(count, max(1, round(share * count)))


def random_subset(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Any ``share`` of ``count`` rows, without replacement, ascending.

    What cleverer choices have to beat: with soft labels a random subset is as good as theirs in
    Ben-Baruch et al. 2025 (data pruning).
    """
    order = torch.randperm(count, generator=generator)
    return order[: size_of(count, share)].sort().values


def weighted_subset(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows drawn one after the other by ``weights`` ``(M,)``, without replacement.

    Ascending. Rows of weight 0 are taken when there are no others left.
    """
    # Gumbel noise: the largest are such a draw (Efraimidis & Spirakis 2006).
    noise = torch.rand(len(weights), generator=generator, dtype=torch.float64)
    keys = weights.double().clamp_min(0).log() - (-noise.clamp_min(1e-300).log()).log()
    order = torch.randperm(len(weights), generator=generator)
    found = order[keys[order].argsort(descending=True, stable=True)]
    return found[:count].sort().values


def confident_rows(teacher: Tensor, student: Tensor, share: float) -> Tensor:
    """The surest ``share`` of each predicted class, rounded up; ascending.

    A row's score is the largest probability of ``p / 2 + q / 2``, p the teacher's and q the
    student's soft labels ``(M, C)``, and its class where that is. After the public description of
    KD3 (Tang et al. 2023); no code was found, and the half and the class are our choice.
    """
    scores, classes = ((teacher + student) / 2).max(1)
    kept = []
    for label in classes.unique():
        rows = (classes == label).nonzero()[:, 0]
        order = scores[rows].argsort(descending=True, stable=True)
        kept.append(rows[order[: math.ceil(share * len(rows) - 1e-9)]])
    return torch.cat(kept).sort().values


def k_centre(points: Tensor, count: int, taken: Tensor | None = None) -> Tensor:
    """``count`` of ``points`` ``(M, d)``, each the farthest from all before; in that order.

    Greedy k-centre, on probabilities as PCoreSet has it (2025). It begins with the points that are
    ``taken`` ``(K,)`` as the centres that there are, and returns others; without any, at the point
    that is farthest from the mean of all, which is our choice. Of two at one place the second comes
    last.
    """
    points = points.double()
    chosen = torch.zeros(len(points), dtype=torch.bool)
    apart = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for row in () if taken is None else taken.tolist():
        chosen[row] = True
        apart = torch.minimum(apart, (points - points[row]).square().sum(1))
    if not chosen.any():
        apart = (points - points.mean(0)).square().sum(1)
        fresh = True
    else:
        fresh = False
    found: list[int] = []
    for _ in range(min(count, len(points) - int(chosen.sum()))):
        row = int(apart.masked_fill(chosen, -1).argmax())
        found.append(row)
        chosen[row] = True
        here = (points - points[row]).square().sum(1)
        apart, fresh = here if fresh else torch.minimum(apart, here), False
    return torch.tensor(found, dtype=torch.long)


def covering_radius(points: Tensor, centres: Tensor) -> float:
    """The largest distance of one of ``points`` ``(M, d)`` to the nearest of ``centres`` (K,)."""
    return float(torch.cdist(points.double(), points[centres].double()).amin(1).max())


def robust_query(gains: Tensor, losses: Tensor, mistakes: float) -> Tensor:
    """Shares ``(M,)`` to ask for rows by, whichever ``mistakes`` of them are answered wrongly.

    They maximise ``sum q g - max over wrong rows of sum q (g + l)``: a right answer gains g > 0, a
    wrong one loses l >= 0. With the gains falling, q is in proportion to ``1 / (g + l)`` on the
    first k rows, of the k for which ``(sum g / (g + l) - m) / sum 1 / (g + l)`` is largest. Without
    mistakes all of it is on the best row. After the public description of robust active
    distillation (Baykal et al. 2023); no code was found, and the rule is derived: it is the best
    for losses that are all the same.
    """
    gains, losses = gains.double().clamp_min(SMALLEST), losses.double()
    order = gains.argsort(descending=True, stable=True)
    each = 1 / (gains + losses)[order]
    values = ((gains[order] * each).cumsum(0) - mistakes) / each.cumsum(0)
    count = int(values.argmax()) + 1
    shares = torch.zeros_like(gains)
    shares[order[:count]] = each[:count] / each[:count].sum()
    return shares


def margins(labels: Tensor) -> Tensor:
    """By how much the likeliest class of soft labels ``(M, C)`` leads the second: ``(M,)``."""
    best = labels.topk(2, 1).values
    return best[:, 0] - best[:, 1]


def difference_scores(reference: Tensor, teacher: Tensor) -> Tensor:
    """What a teacher knows and a small reference does not: its loss less the teacher's, ``(M,)``.

    Both are mean losses of a row in nats (MiniPLM: Gu et al. 2025).
    """
    return reference - teacher


def difference_sample(scores: Tensor, share: float) -> Tensor:
    """The ``share`` of rows with the largest scores ``(M,)``, ascending; of ties the first."""
    order = scores.argsort(descending=True, stable=True)
    return order[: size_of(len(scores), share)].sort().values


def domain_weights(weights: Tensor, ratios: Tensor, alpha: float = 0.5) -> Tensor:
    """The next shares ``(D,)`` of D domains, after ``weights`` ``(D,)``, by how far students lag.

    With r the weights and ``ratios`` ``(D,)`` a student's perplexity over the teacher's::

        psi_i = r_i exp(ratio_i)        r_i = alpha psi_i / sum psi + (1 - alpha) / D

    DDK (Liu et al. 2024); the text of the paper was read, and no code.
    """
    psi = weights.double() * (ratios.double() - ratios.double().max()).exp()
    return alpha * psi / psi.sum() + (1 - alpha) / len(weights)


def pick_scores(teacher: Tensor, student: Tensor, by: str = "kl") -> Tensor:
    """How much is to be learned from each row ``(M,)``, by soft labels p and q ``(M, C)``.

    ``kl`` is KL(p || q), ``teacher_entropy`` the entropy of p, ``student_entropy`` that of q
    (CutMixPick: Wang et al. 2022, which keeps the rows of the largest).
    """
    if by == "teacher_entropy":
        return entropy(teacher)
    if by == "student_entropy":
        return entropy(student)
    logs = teacher.clamp_min(SMALLEST).log() - student.clamp_min(SMALLEST).log()
    return (teacher * logs).sum(1)


def pick(scores: Tensor, count: int) -> Tensor:
    """The ``count`` rows of the largest scores ``(M,)``, ascending; of ties the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
