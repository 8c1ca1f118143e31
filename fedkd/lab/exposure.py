"""Exposure: how far a secret stands out among all that could have stood in its place.

A secret of ``L`` symbols is drawn uniformly from the space R of all ``A**L`` sequences. Whoever
looks for it scores every sequence of R; the rank of the secret is 1 plus the number of others that
score at least as well, and its exposure is ``log2 |R| - log2 rank``, in bits (Carlini, Liu,
Erlingsson, Kos & Song 2019, *The Secret Sharer*). Scores that know nothing of the secret give an
exponential law whose mean is not 0 but :data:`NULL_MEAN`.

Here are functions over numbers. *Conditionals* are what they share: a list over the positions
``i = 0 … L-1`` of log-probabilities ``(A**i, A)``, in nats, of the next symbol after each of the
``A**i`` prefixes in lexicographic order. A sequence scores the sum of its own. They need not sum to
one over the symbols: a language model has other words as well. A second score of a sequence is the
sum of the probabilities themselves (:func:`probabilities`): it tells more where laws are flat or
noisy and most prefixes are not known.

That mean of the null holds where a secret is drawn independently of what scores it and ties are
rare, as with a student. Of released labels it does not hold: prefixes that the public corpus does
not have are given a uniform law, those that it has a peaked one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.data.canaries.places import Places
from fedkd.data.canaries.secrets import check_space
from fedkd.errors import FedkdError

NULL_MEAN = 1 / math.log(2)
"""Mean, and standard deviation, of the exposure of a secret nobody has seen: 1.443 bits."""
LEAST = math.log(torch.finfo(torch.float32).tiny)
"""What stands for the logarithm of 0: a released zero says unlikely, not impossible."""

Conditionals: TypeAlias = "list[Tensor]"
Scorer: TypeAlias = Callable[[Tensor], Tensor]
"""From sequences ``(S, L)`` of symbol indices to their log-probabilities ``(S,)`` in nats."""

# --- what somebody says of the next symbol --------------------------------------------------


@torch.inference_mode()
def student_conditionals(
    student: nn.Sequential, context: Tensor, symbols: Tensor, length: int, batch: int = 256
) -> Conditionals:
    """What a student of text says of every sequence, each prefix computed once.

    Recurrent blocks go on from the state of the prefix one symbol shorter: for 10^6 sequences of
    six digits that is 111,111 steps of one token. A student without such blocks reads every prefix
    from the beginning of its line.

    Parameters
    ----------
    student : nn.Sequential
        Blocks from tokens ``(B, T)`` to logits ``(B, T, V)``. A recurrent block has
        ``step(inputs (B, t, E), state) -> (output, state)``, where the state None is that at the
        beginning of a row. The student is left as it is: no gradient, no change of mode.
    context : Tensor
        ``(P,)`` token ids before the secret, from the one that begins the line on.
    symbols : Tensor
        ``(A,)`` token ids of the symbols.
    length : int
        Symbols L of a secret.
    batch : int
        Prefixes at a time; memory is bounded by what these need, next to the result.

    Returns
    -------
    list of Tensor
        ``(A**i, A)`` float32, on the CPU.

    Raises
    ------
    FedkdError
        If there are more than :data:`LARGEST_SPACE` sequences.
    """
    count = len(symbols)
    check_space(count, length, "canary.template")
    device = next(student.parameters()).device
    symbols, context = symbols.to(device), context.to(device)
    laws = [torch.empty(count**level, count) for level in range(length)]

    def read(level: int) -> None:
        for first in range(0, len(laws[level]), batch):
            index = torch.arange(first, min(first + batch, len(laws[level])), device=device)
            tokens = torch.cat(
                [context.expand(len(index), -1), symbols[digits(index, count, level)]], 1
            )
            laws[level][first : first + batch] = _next(student, student[:-1](tokens), symbols)

    def descend(level: int, first: int, parents: int, states: list[Any]) -> None:
        """Fill in the laws below ``parents`` prefixes, of which ``first`` is the first."""
        for start in range(0, parents * count, batch):
            children = torch.arange(start, min(start + batch, parents * count), device=device)
            above = [_rows(state, children // count) for state in states]
            hidden, below = _step(student, symbols[children % count][:, None], above)
            begin, size = first * count + start, len(children)
            laws[level][begin : begin + size] = _next(student, hidden, symbols)
            if level + 1 < length:
                descend(level + 1, begin, size, below)

    with _at_rest(student):
        if not any(hasattr(block, "step") for block in student):
            for level in range(length):
                read(level)
            return laws
        hidden, states = _step(student, context[None], [None] * len(student))
        laws[0][:] = _next(student, hidden, symbols)
        if length > 1:
            descend(1, 0, 1, states)
    return laws


def student_scorer(
    student: nn.Sequential, context: Tensor, symbols: Tensor, batch: int = 256
) -> Scorer:
    """The log-probability that a student gives any sequences: for spaces too large to go through.

    Parameters are those of :func:`student_conditionals`; ``batch`` sequences at a time.
    """
    device = next(student.parameters()).device
    context, symbols = context.to(device), symbols.to(device)

    @torch.inference_mode()
    def score(sequences: Tensor) -> Tensor:
        scores = []
        with _at_rest(student):
            for piece in sequences.to(device).split(batch):
                secret = symbols[piece]
                tokens = torch.cat([context.expand(len(piece), -1), secret], 1)
                law = student(tokens[:, :-1])[:, len(context) - 1 :].log_softmax(-1)
                chosen = law.gather(-1, secret[..., None])[..., 0]
                scores.append(_summed(chosen.cpu().unbind(1)))
        return torch.cat(scores)

    return score


def label_log_odds(logits: Tensor, label: int) -> Tensor:
    """How likely a label is of each input, by logits ``(B, C)``: ``(B,)`` float64.

    ``log p / (1 - p)`` is in the order of the probability p, and so of the cross-entropy the other
    way round. It tells inputs apart that all have a p of 1 in floating point.
    """
    others = logits.double()
    others[:, label] = -torch.inf
    return logits[:, label].double() - others.logsumexp(1)


def probabilities(conditionals: Conditionals) -> Conditionals:
    """Conditionals that score a sequence by the sum of the probabilities of its symbols."""
    return [law.exp() for law in conditionals]


def independent_conditionals(log_probs: Tensor) -> Conditionals:
    """Conditionals of a sequence of labels, where no label depends on those before it.

    Parameters
    ----------
    log_probs : Tensor
        ``(m, C)``, the law of each label in nats; ``-inf`` counts as :data:`LEAST`.

    Returns
    -------
    list of Tensor
        ``(C**i, C)``: views, each of one row.

    Raises
    ------
    FedkdError
        If a row is not a law.
    """
    _check_log_probs(log_probs, "a law of labels")
    laws = log_probs.detach().cpu().clamp_min(LEAST)
    return [law.expand(laws.shape[1] ** level, -1) for level, law in enumerate(laws)]


def released_conditionals(
    found: Places,
    log_probs: Tensor,
    symbols: Tensor,
    length: int,
    *,
    among: Tensor | None = None,
    classes: int | None = None,
) -> Conditionals:
    """What somebody knows who has nothing but the soft labels of a public corpus.

    Where positions of the corpus have a prefix before them, the mean of the laws released there,
    normalised over the symbols, is the law after that prefix; after all others it is uniform.

    Parameters
    ----------
    found : Places
        From :func:`places`, with the same symbols and length.
    log_probs : Tensor
        ``(M, V)`` of all released positions, in nats; or with ``among``, ``(M, k+1)``.
    symbols : Tensor
        ``(A,)`` token ids.
    length : int
        Symbols L of a secret.
    among : Tensor or None
        ``(M, k)`` token ids, -1 for none, whose probabilities are released; all others together
        have the last one. It is shared out among them evenly.
    classes : int or None
        V; needed with ``among``.

    Returns
    -------
    list of Tensor
        ``(A**i, A)`` float32, none below :data:`LEAST`.

    Raises
    ------
    FedkdError
        If a row is not a law, or there are more than :data:`LARGEST_SPACE` sequences.
    """
    count = len(symbols)
    check_space(count, length, "canary.template")
    tables = []
    for level, (prefixes, laws) in enumerate(
        _released(found, log_probs, symbols, length, among, classes)
    ):
        tables.append(torch.full((count**level, count), -math.log(count)))
        tables[-1][prefixes] = laws
    return tables


def released_scorer(
    found: Places,
    log_probs: Tensor,
    symbols: Tensor,
    length: int,
    *,
    among: Tensor | None = None,
    classes: int | None = None,
    linear: bool = False,
) -> Scorer:
    """The same of any sequences: for spaces too large to go through.

    Parameters are those of :func:`released_conditionals`; ``linear`` sums :func:`probabilities`.
    """
    levels = _released(found, log_probs, symbols, length, among, classes)

    def score(sequences: Tensor) -> Tensor:
        numbers = torch.zeros(len(sequences), dtype=torch.int64)
        terms = []
        for (prefixes, laws), symbol in zip(levels, sequences.unbind(1), strict=True):
            term = torch.full(symbol.shape, -math.log(len(symbols)))
            if len(prefixes):
                place = torch.searchsorted(prefixes, numbers).clamp_max(len(prefixes) - 1)
                term = torch.where(prefixes[place] == numbers, laws[place, symbol], term)
            terms.append(term.exp() if linear else term)
            numbers = numbers * len(symbols) + symbol
        return _summed(terms)

    return score


# --- from there to exposure -----------------------------------------------------------------


def totals(conditionals: Conditionals) -> Tensor:
    """Log-probability of every sequence, in lexicographic order: ``(A**L,)`` float64.

    Terms are rounded to float32 and then summed in float64, from the first on: such sums are as
    good as exact, so that what is equal is equal in bits, in whatever order its terms come.

    Raises
    ------
    FedkdError
        If there are more than :data:`LARGEST_SPACE` sequences.
    """
    check_space(conditionals[0].shape[1], len(conditionals), "canary.template or canary.length")
    total = torch.zeros(1, dtype=torch.float64)
    for law in conditionals:
        total = (total[:, None] + law.float().double()).flatten()
    return total


def exact_exposure(conditionals: Conditionals, secrets: Tensor) -> Tensor:
    """Exposure of secrets among all sequences, in bits.

    Parameters
    ----------
    conditionals : list of Tensor
        ``(A**i, A)``.
    secrets : Tensor
        ``(S, L)`` int64, indices of symbols.

    Returns
    -------
    Tensor
        ``(S,)`` float64, from 0 to ``log2 |R|``. Ties count against the secret; where a secret's
        score is not a number, neither is its exposure.

    Raises
    ------
    FedkdError
        If there are more than :data:`LARGEST_SPACE` sequences.
    """
    return ranked_exposure(sequence_scores(conditionals, secrets), totals(conditionals))


def ranked_exposure(scores: Tensor, everything: Tensor) -> Tensor:
    """Exposure of secrets from their ``scores`` ``(S,)``, which are among those of ``everything``.

    ``everything`` ``(A**L,)`` has the score of each sequence. See :func:`exact_exposure`.
    """
    ranks = [len(everything) - int((everything < score).sum()) for score in scores]
    exposure = math.log2(len(everything)) - torch.tensor(ranks, dtype=torch.float64).log2()
    return exposure.where(~scores.isnan(), torch.nan)


def sequence_scores(source: Conditionals | Scorer, sequences: Tensor) -> Tensor:
    """Log-probability of some sequences ``(S, L)`` of symbol indices: ``(S,)`` float64, nats.

    From conditionals the bits are those of :func:`totals`.
    """
    if not isinstance(source, list):
        return source(sequences).double()
    prefixes = torch.zeros(len(sequences), dtype=torch.int64)
    terms = []
    for law, symbol in zip(source, sequences.unbind(1), strict=True):
        terms.append(law[prefixes, symbol])
        prefixes = prefixes * law.shape[1] + symbol
    return _summed(terms)


def digits(numbers: Tensor, base: int, length: int) -> Tensor:
    """Numbers ``(B,)`` written with ``length`` digits: ``(B, length)``.

    These are the sequences of ``length`` symbols out of ``base``, by their lexicographic number.
    """
    powers = base ** torch.arange(length - 1, -1, -1, device=numbers.device)
    return numbers[:, None] // powers % base


def sequence_numbers(sequences: Tensor, base: int) -> Tensor:
    """The lexicographic numbers ``(B,)`` of sequences ``(B, L)`` of symbols out of ``base``."""
    numbers = torch.zeros(len(sequences), dtype=torch.int64)
    for symbol in sequences.unbind(1):
        numbers = numbers * base + symbol
    return numbers


def references(symbols: int, length: int, count: int, seed: int) -> Tensor:
    """Sequences drawn uniformly from the space, to compare secrets with: ``(count, L)`` int64."""
    drawn = np.random.default_rng(seed).integers(symbols, size=(count, length))
    return torch.from_numpy(drawn)


def interpolated_exposure(scores: Tensor, reference_scores: Tensor) -> Tensor:
    """Exposure by the rank of each secret among sequences drawn at random.

    ``log2 n - log2 rank``, where the rank is 1 plus the number of references that score at least as
    well, and at least 0. No secret is found to have more than ``log2 n`` bits (Carlini et al. 2019,
    section 4, approximation by sampling).

    Parameters
    ----------
    scores, reference_scores : Tensor
        ``(S,)`` and ``(n,)``, log-probabilities.

    Returns
    -------
    Tensor
        ``(S,)`` float64, bits.
    """
    ordered = reference_scores.double().sort().values
    better = len(ordered) - torch.searchsorted(ordered, scores.double())
    exposure = math.log2(len(ordered)) - (better + 1).double().log2()
    return exposure.clamp_min(0).where(~scores.isnan(), torch.nan)


@dataclass(frozen=True)
class Extrapolation:
    """Exposure by a fitted law, and how well it fits.

    ``exposure`` (S,) float64, in bits, has no upper end. ``distance`` is the largest difference of
    the fitted distribution function from the observed one (Kolmogorov and Smirnov's statistic) on
    references that were not fitted to, ``p_value`` the chance of one as large if the law is right.
    """

    exposure: Tensor
    distance: float
    p_value: float


def extrapolated_exposure(scores: Tensor, reference_scores: Tensor) -> Extrapolation:
    """Exposure as if log-perplexities of the space followed a skew-normal law.

    It is fitted by maximum likelihood to every other reference and tested on the rest; exposure is
    ``-log2`` of the mass at log-perplexities as low as the secret's (Carlini et al. 2019, section
    4, approximation by distribution modelling). It is not bound by the size of the space.

    To fewer than 20 references, or such as are not finite or all the same, no law can be fitted:
    exposure is then that of :func:`interpolated_exposure`, ``distance`` and ``p_value`` are NaN.

    Parameters
    ----------
    scores, reference_scores : Tensor
        ``(S,)`` and ``(n,)``, log-probabilities.
    """
    from scipy import stats

    perplexities = -reference_scores.double().numpy() / math.log(2)
    if len(perplexities) < 20 or not np.isfinite(perplexities).all() or not np.ptp(perplexities):
        exposure = interpolated_exposure(scores, reference_scores)
        return Extrapolation(exposure, math.nan, math.nan)
    shape, location, scale = stats.skewnorm.fit(perplexities[::2])
    test = stats.kstest(perplexities[1::2], stats.skewnorm(shape, location, scale).cdf)
    standard = (-scores.double().numpy() / math.log(2) - location) / scale
    exposure = torch.from_numpy(-_skew_normal_log_cdf(standard, shape) / math.log(2))
    return Extrapolation(exposure, float(test.statistic), float(test.pvalue))


# --- many secrets ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` secrets and its confidence interval; NaN where it is not known."""

    mean: float
    low: float
    high: float
    n: int


def interval(
    exposures: Any, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Estimate:
    """The mean of exposures that are alike within a cluster.

    Secrets of one model share its chance: the standard error is that of sums over clusters (Liang &
    Zeger 1986, with the factor ``G / (G - 1)``) and the interval Student's t with ``G - 1`` degrees
    of freedom. Within a single cluster, or without clusters, secrets are taken for independent: the
    interval is then about that one model. One secret has no interval; bounds are NaN.

    Parameters
    ----------
    exposures : array_like
        ``(n,)``, bits.
    clusters : sequence or None
        ``n`` names of the model that each secret was measured in.
    confidence : float
        Chance that the interval holds the mean.
    """
    values = np.asarray(exposures, dtype=np.float64)
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    groups = _groups(clusters, len(values))
    sums = np.bincount(groups, (values - mean) / len(values))
    half = _half_width(_variance(sums, sums), len(sums), confidence)
    return Estimate(mean, mean - half, mean + half, len(values))


def excess(estimate: Estimate) -> Estimate:
    """Exposure over that of a secret nobody has seen: minus :data:`NULL_MEAN`."""
    return replace(
        estimate,
        mean=estimate.mean - NULL_MEAN,
        low=estimate.low - NULL_MEAN,
        high=estimate.high - NULL_MEAN,
    )


def excess_over(
    found: Mapping[str, Mapping[Any, tuple[float, Hashable]]],
    control: Mapping[str, Mapping[Any, tuple[float, Hashable]]],
    confidence: float = 0.95,
) -> tuple[Estimate, str] | None:
    """How much more exposed secrets are than where nobody has them, by the stronger score.

    For places whose null is not known: the same secrets, in runs that differ in nothing but that
    they are planted. The interval is that of :func:`interval` on differences, of each of the scores
    at a confidence at which all hold together, so that the stronger one may be picked.

    Parameters
    ----------
    found, control : mapping from score to mapping from secret to (exposure, cluster)
        With the secrets planted, and without.

    Returns
    -------
    tuple or None
        The estimate, in bits, and the score; None where no secret is in both.
    """
    excesses = []
    for score in found.keys() & control.keys():
        both = [secret for secret in found[score] if secret in control[score]]
        values = [found[score][secret][0] - control[score][secret][0] for secret in both]
        clusters = [found[score][secret][1] for secret in both]
        excesses.append((values, clusters, score))
    share = 1 - (1 - confidence) / max(1, len(excesses))
    estimates = [(interval(v, c, share), score) for v, c, score in sorted(excesses) if v]
    return max(estimates, key=lambda one: one[0].mean, default=None)


def reduction(
    plain: Any,
    protected: Any,
    plain_clusters: Sequence[Hashable] | None = None,
    protected_clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Share of the excess exposure that protection takes away: 1 for all of it.

    ``1 - excess(protected) / excess(plain)``, with Fieller's (1954) interval for a ratio of means,
    their variances and covariance from sums over clusters as in :func:`interval`. A cluster that
    both arms have (the same seed and client) is one cluster. With a single cluster in all, or
    without clusters, secrets are taken for independent, of one another and between the arms.

    Where the excess of the plain arm cannot be told from 0 there is nothing to take a share of: the
    bounds are then minus and plus infinity, and the mean NaN if that excess is not above 0.

    Parameters
    ----------
    plain, protected : array_like
        ``(n,)`` and ``(n',)`` exposures in bits.
    plain_clusters, protected_clusters : sequence or None
        Names of the model that each was measured in; both or neither.
    confidence : float
        Chance that the interval holds the share.

    Returns
    -------
    Estimate
        ``n`` counts the secrets of both arms.
    """
    arms = [np.asarray(values, dtype=np.float64) for values in (plain, protected)]
    n, split = sum(map(len, arms)), len(arms[0])
    if not all(map(len, arms)):
        return Estimate(math.nan, math.nan, math.nan, n)
    if (plain_clusters is None) != (protected_clusters is None):
        raise ValueError("reduction needs the clusters of both arms, or of neither")
    names = None
    if plain_clusters is not None and protected_clusters is not None:
        names = [*plain_clusters, *protected_clusters]
    groups = _groups(names, n)
    x, y = (float(values.mean()) - NULL_MEAN for values in arms)
    residuals = [(values - values.mean()) / len(values) for values in arms]
    count = int(groups.max()) + 1
    a = np.bincount(groups[:split], residuals[0], minlength=count)
    b = np.bincount(groups[split:], residuals[1], minlength=count)
    mean = 1 - y / x if x > 0 else math.nan
    # Ratios r that y - r x = 0 is not rejected for.
    t2 = _half_width(1.0, count, confidence) ** 2
    square = x * x - t2 * _variance(a, a)
    if not square > 0:
        return Estimate(mean, -math.inf, math.inf, n)
    middle = x * y - t2 * _variance(a, b)
    root = math.sqrt(max(0.0, middle**2 - square * (y * y - t2 * _variance(b, b))))
    return Estimate(mean, 1 - (middle + root) / square, 1 - (middle - root) / square, n)


def ceiling(log2_space: float, sharing: int) -> float:
    """Mean exposure of perfectly memorised secrets, ``sharing`` of which compete in one model.

    Their ranks are 1 to ``sharing`` at best: 18.55 bits for five out of 10^6.
    """
    return log2_space - math.lgamma(sharing + 1) / math.log(2) / sharing


def bound(epsilon: float, delta: float, log2_space: float) -> float:
    """Most bits of mean exposure that an (epsilon, delta)-private release allows.

    Private at the level at which the canary enters, all its copies at once. The chance of x bits or
    more is at most ``e^epsilon 2^-x + delta``, whose integral is ``(epsilon + 1) / ln 2 + delta
    log2 |R|``; and no exposure is above ``log2 |R|``.
    """
    return min((epsilon + 1) / math.log(2) + delta * log2_space, log2_space)


# --- the numbers behind them ----------------------------------------------------------------


@contextmanager
def _at_rest(student: nn.Module) -> Iterator[None]:
    """The student in evaluation mode; afterwards every module as it was."""
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _step(student: nn.Sequential, tokens: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
    """What all blocks but the head make of tokens ``(B, t)`` that follow on ``states``."""
    held: Any = tokens
    after = []
    for block, state in zip(student[:-1], states):
        step = getattr(block, "step", None)
        if step is None:
            held = block(held)
        else:
            held, state = step(held, state)
        after.append(state)
    return held, after


def _rows(state: Any, index: Tensor) -> Any:
    """Rows of a state; in each of its tensors ``(layers, B, H)`` they are the middle axis."""
    if isinstance(state, Tensor):
        return state.index_select(-2, index)
    if state is None:
        return None
    return tuple(_rows(piece, index) for piece in state)


def _next(student: nn.Sequential, hidden: Tensor, symbols: Tensor) -> Tensor:
    """Log-probabilities ``(B, A)`` of symbols after the last of the positions ``(B, t, E)``."""
    logits = student[-1](hidden[:, -1:])[:, 0]
    return (logits[:, symbols] - logits.logsumexp(1, keepdim=True)).cpu()


def _summed(terms: Sequence[Tensor]) -> Tensor:
    """Terms added as in :func:`totals`."""
    total = torch.zeros(terms[0].shape, dtype=torch.float64)
    for term in terms:
        total = total + term.float().double()
    return total


def _released(
    found: Places,
    log_probs: Tensor,
    symbols: Tensor,
    length: int,
    among: Tensor | None,
    classes: int | None,
) -> list[tuple[Tensor, Tensor]]:
    """At each level, prefixes ``(U,)`` in order that laws are known after, and these ``(U, A)``."""
    rows = log_probs[found.items].detach().cpu().double()
    _check_log_probs(rows, "released soft labels")
    symbols = symbols.cpu()
    if among is None:
        masses = rows[:, symbols].exp()
    else:
        if classes is None:
            raise ValueError("among needs classes")
        masses = _of_candidates(rows.exp(), among[found.items].cpu(), symbols, classes)
    levels = []
    for level in range(length):
        here = found.levels == level
        prefixes, index = found.prefixes[here].unique(return_inverse=True)
        total = torch.zeros(len(prefixes), len(symbols), dtype=torch.float64)
        # One after another: sums must not depend on the order of threads.
        for place, mass in zip(index.tolist(), masses[here]):
            total[place] += mass
        told = total.sum(1) > 0
        laws = total[told] / total[told].sum(1, keepdim=True)
        levels.append((prefixes[told], laws.log().float().clamp_min(LEAST)))
    return levels


def _of_candidates(masses: Tensor, among: Tensor, symbols: Tensor, classes: int) -> Tensor:
    """Probabilities ``(Q, A)`` of symbols, from those of candidates ``(Q, k)`` and all others."""
    hits = among[:, :, None] == symbols
    others = classes - (among >= 0).sum(1, keepdim=True)
    rest = masses[:, -1:] / others.clamp_min(1)
    given = (masses[:, :-1, None] * hits).sum(1)
    return torch.where(hits.any(1), given, rest)


def _check_log_probs(log_probs: Tensor, what: str) -> None:
    sums = log_probs.double().exp().sum(-1)
    wrong = ~((sums - 1).abs() < 1e-3)
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise FedkdError(
            f"{what} must be log-probabilities, in nats: row {row} sums to {float(sums[row]):.4g} "
            "and not to 1"
        )


def _skew_normal_log_cdf(z: np.ndarray, shape: float) -> np.ndarray:
    """``log P(Z <= z)`` of the standard skew-normal law, also where it is far below 1e-300.

    There the density falls off nearly exponentially to the left, and its integral by Gauss and
    Laguerre's rule in units of the local slope is exact to many digits.
    """
    from scipy import stats

    with np.errstate(divide="ignore"):
        value = np.array(stats.skewnorm.logcdf(z, shape), dtype=np.float64)
    far = value < -200
    if far.any():
        nodes, weights = np.polynomial.laguerre.laggauss(24)
        x = z[far]
        inverse_mills = np.exp(stats.norm.logpdf(shape * x) - stats.norm.logcdf(shape * x))
        slope = shape * inverse_mills - x
        top = stats.skewnorm.logpdf(x, shape)
        drop = stats.skewnorm.logpdf(x - nodes[:, None] / slope, shape) - top
        value[far] = top - np.log(slope) + np.log(weights @ np.exp(drop + nodes[:, None]))
    return value


def _groups(clusters: Sequence[Hashable] | None, count: int) -> np.ndarray:
    """A number from 0 for each cluster; every value by itself if there is but one cluster."""
    if clusters is not None and len(clusters) != count:
        raise ValueError(f"{len(clusters)} clusters for {count} exposures")
    numbers: dict[Hashable, int] = {}
    for name in clusters or ():
        numbers.setdefault(name, len(numbers))
    if clusters is None or len(numbers) == 1:
        return np.arange(count)
    return np.array([numbers[name] for name in clusters])


def _variance(a: np.ndarray, b: np.ndarray) -> float:
    """Covariance of two means, given by the sums of their residuals over each cluster."""
    return float(a @ b) * len(a) / (len(a) - 1) if len(a) > 1 else math.nan


def _half_width(variance: float, clusters: int, confidence: float) -> float:
    from scipy import stats

    if clusters < 2:
        return math.nan
    return float(stats.t.ppf((1 + confidence) / 2, clusters - 1)) * math.sqrt(variance)
