"""Exposure: known answers, and laws it obeys whatever the model."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedkd import students
from fedkd.data.canaries.places import places
from fedkd.data.language import LINE, PAD, pack
from fedkd.errors import FedkdError
from fedkd.experiment import StudentTable
from fedkd.exposures import NULL_MEAN, bound, excess, excess_over, interval, reduction
from fedkd.lab.exposure.conditionals import (
    LEAST,
    independent_conditionals,
    probabilities,
    student_conditionals,
    student_scorer,
)
from fedkd.lab.exposure.ranks import (
    _skew_normal_log_cdf,
    exact_exposure,
    extrapolated_exposure,
    interpolated_exposure,
)
from fedkd.lab.exposure.released import released_conditionals, released_scorer
from fedkd.lab.exposure.sequences import references, sequence_scores, totals

CONTEXT, SYMBOLS = torch.tensor([LINE, 13, 14]), torch.tensor([5, 3, 9])
VOCABULARY = 20
MILLION = math.log2(10**6)


def ceiling(log2_space, sharing):
    """Mean exposure of perfectly memorised secrets, ``sharing`` of which compete in one model.

    Their ranks are 1 to ``sharing`` at best: 18.55 bits for five out of 10^6.
    """
    return log2_space - math.lgamma(sharing + 1) / math.log(2) / sharing


def built(name, width=0.125, seed=0):
    return students.build(name, (12,), VOCABULARY, StudentTable(width=width), seed, tokens=True)


def conditionals(symbols, length, seed=0, scale=1.0):
    """Random laws over symbols and as many other words."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(symbols**level, 2 * symbols) for level in range(length)]
    laws = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    return [law.log_softmax(1)[:, :symbols] for law in laws]


def everything(symbols, length):
    """All sequences in lexicographic order."""
    return torch.cartesian_prod(*[torch.arange(symbols)] * length).view(-1, length)


def fit_line(student, line, steps):
    """Train a student on one line again and again."""
    row = torch.tensor([[LINE, *line, LINE]])
    optimiser = torch.optim.Adam(student.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(student(row[:, :-1])[0], row[0, 1:]).backward()
        optimiser.step()
    student.zero_grad()


# --- the null ---------------------------------------------------------------------------------


def test_secrets_nobody_has_seen_have_the_null_law():
    laws = conditionals(10, 5)
    found = exact_exposure(laws, references(10, 5, 1000, seed=1))
    assert float(found.mean()) == pytest.approx(NULL_MEAN, abs=4 * NULL_MEAN / math.sqrt(1000))
    assert stats.kstest(found.numpy(), stats.expon(scale=NULL_MEAN).cdf).pvalue > 0.001


@pytest.mark.parametrize("name", ["lstm", "gru", "gpt"])
def test_a_student_that_was_never_trained_exposes_nothing(name):
    symbols = torch.arange(3, 13)
    laws = student_conditionals(built(name), CONTEXT, symbols, 3)
    found = exact_exposure(laws, references(10, 3, 600, seed=2))
    # Over all of a space of 1000, the mean of log2 |R| - log2 rank is a little less.
    null = ceiling(math.log2(1000), 1000)
    assert float(found.mean()) == pytest.approx(null, abs=4 * NULL_MEAN / math.sqrt(600))


# --- every sequence ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "gru", "gpt"])
def test_the_trie_says_what_reading_every_sequence_says(name):
    student = built(name)
    sequences = everything(3, 4)
    rows = torch.cat([CONTEXT.expand(81, -1), SYMBOLS[sequences]], 1)
    with torch.no_grad():
        logs = student(rows[:, :-1]).log_softmax(-1)
    each = logs.gather(2, rows[:, 1:, None])[:, len(CONTEXT) - 1 :, 0].double().sum(1)
    # Batches smaller than a level, and not a multiple of anything.
    laws = student_conditionals(student, CONTEXT, SYMBOLS, 4, batch=5)
    assert [tuple(law.shape) for law in laws] == [(3**level, 3) for level in range(4)]
    torch.testing.assert_close(totals(laws), each, rtol=0, atol=1e-5)
    scorer = student_scorer(student, CONTEXT, SYMBOLS, batch=7)
    scores = sequence_scores(scorer, sequences)
    torch.testing.assert_close(scores, each, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "gpt"])
def test_measuring_a_student_leaves_it_as_it_is(name):
    student = built(name).train()
    student[0].eval()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    student(torch.randint(3, VOCABULARY, (2, 12))).sum().backward()
    gradients = [parameter.grad.clone() for parameter in student.parameters()]
    student_conditionals(student, CONTEXT, SYMBOLS, 2)
    student_scorer(student, CONTEXT, SYMBOLS)(everything(3, 2))
    assert [block.training for block in student] == [False] + [True] * (len(student) - 1)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    pairs = zip(student.parameters(), gradients)
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in pairs)


def test_a_recurrent_state_may_have_several_layers():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 6, num_layers=2, batch_first=True)

        def step(self, inputs, state=None):
            return self.rnn(inputs, state)

        def forward(self, inputs):
            return self.step(inputs)[0]

    torch.manual_seed(0)
    student = nn.Sequential(nn.Embedding(VOCABULARY, 6), Deep(), Deep(), nn.Linear(6, VOCABULARY))
    sequences = everything(3, 3)
    laws = student_conditionals(student, CONTEXT, SYMBOLS, 3, batch=4)
    each = student_scorer(student, CONTEXT, SYMBOLS)(sequences)
    torch.testing.assert_close(totals(laws), each, rtol=0, atol=1e-5)


def test_labels_of_independent_positions_add_up():
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(4, 3, generator=generator).log_softmax(1)
    laws = independent_conditionals(log_probs)
    sequences = everything(3, 4)
    each = log_probs.double()[torch.arange(4), sequences].sum(1)
    torch.testing.assert_close(totals(laws), each)
    torch.testing.assert_close(sequence_scores(laws, sequences), each)
    assert [tuple(law.shape) for law in laws] == [(3**level, 3) for level in range(4)]
    assert all(law.untyped_storage().nbytes() == laws[0].untyped_storage().nbytes() for law in laws)


def test_scores_of_sequences_are_those_of_all_sequences_bit_for_bit():
    laws = conditionals(4, 5)
    sequences = everything(4, 5)
    assert torch.equal(sequence_scores(laws, sequences), totals(laws))


def test_what_is_not_a_law_is_refused():
    with pytest.raises(FedkdError, match=r"row 1 sums to 0\.7 and not to 1"):
        independent_conditionals(torch.tensor([[0.5, 0.5], [0.3, 0.4]]).log())
    with pytest.raises(FedkdError, match="log-probabilities"):
        independent_conditionals(torch.tensor([[0.5, 0.5]]))


# --- exposure ---------------------------------------------------------------------------------


def test_the_likeliest_sequence_has_all_bits_and_the_unlikeliest_none():
    laws = conditionals(5, 3)
    order = totals(laws).argsort(descending=True)
    found = exact_exposure(laws, everything(5, 3)[order])
    ranks = torch.arange(1, 126).double()
    torch.testing.assert_close(found, math.log2(125) - ranks.log2())


def test_ties_count_against_the_secret():
    flat = independent_conditionals(torch.full((3, 4), 0.25).log())
    assert exact_exposure(flat, everything(4, 3)).eq(0).all()
    pair = independent_conditionals(torch.tensor([[0.4, 0.4, 0.2]]).log())
    found = exact_exposure(pair, torch.tensor([[0], [1], [2]]))
    torch.testing.assert_close(found, math.log2(3) - torch.tensor([2.0, 2, 3]).double().log2())


def test_what_is_equal_is_equal_in_bits_in_whatever_order_it_is_summed():
    law = torch.tensor([0.7, 0.2, 0.1]).log()
    laws = independent_conditionals(law.expand(6, -1))
    sequences = everything(3, 6)
    found = totals(laws)
    for counts in {tuple(row.bincount(minlength=3).tolist()) for row in sequences}:
        alike = [row.bincount(minlength=3).tolist() == [*counts] for row in sequences]
        assert len(found[torch.tensor(alike)].unique()) == 1


def test_the_order_of_symbols_does_not_matter():
    laws = conditionals(4, 3)
    order = torch.tensor([2, 0, 3, 1])
    permuted = [
        law.view(*[4] * (level + 1))[torch.meshgrid(*[order] * (level + 1), indexing="ij")]
        for level, law in enumerate(laws)
    ]
    permuted = [law.reshape(-1, 4) for law in permuted]
    secrets = everything(4, 3)
    expected = exact_exposure(laws, order[secrets])
    assert torch.equal(exact_exposure(permuted, secrets), expected)


def test_a_score_that_is_not_a_number_gives_no_exposure_and_hides_nobody():
    laws = [torch.tensor([[0.5, 0.3, 0.2]]).log()]
    laws[0][0, 2] = math.nan
    found = exact_exposure(laws, torch.tensor([[0], [1], [2]]))
    torch.testing.assert_close(found[:2], math.log2(3) - torch.tensor([2.0, 3]).double().log2())
    assert found[2].isnan()


@pytest.mark.parametrize("name", ["lstm", "gpt"])
def test_an_overfitted_student_gives_its_one_secret_away(name):
    student, secret = built(name), torch.tensor([[2, 0, 1, 1]])
    fit_line(student, [*CONTEXT[1:].tolist(), *SYMBOLS[secret[0]].tolist()], steps=60)
    laws = student_conditionals(student, CONTEXT, SYMBOLS, 4)
    assert float(exact_exposure(laws, secret)) == math.log2(3**4)


def test_a_space_too_large_to_go_through_is_refused():
    student = built("lstm")
    with pytest.raises(FedkdError, match=r"canary\.template: 8 symbols out of 10 are 1.0e\+08"):
        student_conditionals(student, CONTEXT, torch.arange(3, 13), 8)
    laws = independent_conditionals(torch.full((6, 100), 0.01).log())
    with pytest.raises(FedkdError, match=r"canary\.length"):
        exact_exposure(laws, torch.zeros(1, 6, dtype=torch.int64))
    # The score of one sequence is had all the same.
    scores = sequence_scores(laws, references(100, 6, 50, seed=0))
    torch.testing.assert_close(scores, torch.full((50,), -6 * math.log(100)).double())


# --- estimates --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three():
    """Exposures of secrets in one model: exact, from 4,000 references, and from a fitted law."""
    laws = conditionals(10, 5, scale=0.7)
    secrets = references(10, 5, 200, seed=3)
    others = sequence_scores(laws, references(10, 5, 4000, seed=4))
    scores = sequence_scores(laws, secrets)
    return (
        exact_exposure(laws, secrets),
        interpolated_exposure(scores, others),
        extrapolated_exposure(scores, others),
    )


def test_interpolation_agrees_with_the_exact_rank_to_its_sampling_error(three):
    exact, interpolated, _ = three
    share = 2**-exact
    error = ((1 - share) / share / 4000).sqrt() / math.log(2)
    known = share > 20 / 4000
    assert known.sum() > 150
    assert ((interpolated - exact)[known].abs() < 4 * error[known] + 0.02).all()


def test_extrapolation_agrees_with_the_exact_rank_to_the_misfit_of_the_law(three):
    exact, _, extrapolated = three
    error = (extrapolated.exposure - exact).abs()
    # What distance there is between the two laws is what they may differ by.
    assert extrapolated.distance < 0.05
    assert (error < math.log2(1 + 0.05) + 0.05 / math.log(2) * 2**exact).all()
    assert float(error.mean()) < 0.1


def test_interpolation_is_capped_and_counts_ties_against_the_secret():
    references = torch.arange(8.0)
    found = interpolated_exposure(torch.tensor([9.0, 7, 6.5, -1, math.nan]), references)
    torch.testing.assert_close(found[:4], torch.tensor([3.0, 2, 2, 0]).double())
    assert found[4].isnan()


def test_extrapolation_goes_on_beyond_the_references():
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(4000, generator=generator) * math.log(2)
    scores = torch.tensor([0.0, 3.0, 6.0, 60.0]) * math.log(2)
    found = extrapolated_exposure(scores, references)
    expected = torch.from_numpy(-stats.norm.logcdf([0.0, -3, -6]) / math.log(2))
    torch.testing.assert_close(found.exposure[:3], expected, rtol=0.2, atol=0.05)
    assert 1000 < found.exposure[3] < math.inf
    assert found.p_value > 0.01


def test_extrapolation_without_a_law_is_interpolation():
    flat = torch.zeros(100)
    found = extrapolated_exposure(torch.tensor([0.0, 1]), flat)
    torch.testing.assert_close(found.exposure, torch.tensor([0, math.log2(100)]).double())
    assert math.isnan(found.distance)
    assert math.isnan(found.p_value)


@pytest.mark.parametrize("shape", [0.0, 1.0])
def test_the_tail_of_the_fitted_law_is_exact(shape):
    z = np.array([3.0, 0, -3, -10, -14, -20, -60, -500])
    # Azzalini 1985: the distribution function is that of the normal law, or its square.
    expected = (1 + shape) * stats.norm.logcdf(z)
    np.testing.assert_allclose(_skew_normal_log_cdf(z, shape), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [-3.0, 2.0, 6.0])
def test_the_two_ways_to_the_tail_meet(shape):
    z = stats.skewnorm.ppf(1e-3, shape) - np.linspace(0, 30, 400)
    value = _skew_normal_log_cdf(z, shape)
    steps = np.diff(value)
    assert np.isfinite(value).all()
    assert (steps < 0).all()
    assert (np.diff(steps) < 1e-3 * np.abs(steps[1:])).all()


# --- many secrets -----------------------------------------------------------------------------


def test_one_cluster_a_secret_is_the_ordinary_t_interval():
    values = np.random.default_rng(0).exponential(size=12)
    low, high = stats.t.interval(0.9, 11, values.mean(), stats.sem(values))
    for clusters in (range(12), None, ["one"] * 12):
        found = interval(values, clusters, confidence=0.9)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
        assert found.n == 12


def test_equal_clusters_count_as_their_means():
    values = np.random.default_rng(0).exponential(size=(6, 5))
    means = values.mean(1)
    low, high = stats.t.interval(0.95, 5, means.mean(), stats.sem(means))
    found = interval(values.flatten(), np.repeat(np.arange(6), 5).tolist())
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_an_interval_over_clusters_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), 5).tolist()
    covered = {"clustered": 0, "alone": 0}
    for _ in range(400):
        values = (rng.normal(size=(12, 1)) + rng.normal(size=(12, 5))).flatten()
        for name, groups in (("clustered", clusters), ("alone", None)):
            found = interval(values, groups)
            covered[name] += found.low <= 0 <= found.high
    assert 0.92 < covered["clustered"] / 400 < 0.98
    assert covered["alone"] / 400 < 0.85


def test_one_secret_has_a_mean_and_no_interval():
    found = interval([3.0])
    assert found.mean == 3
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert interval([]).n == 0


def test_excess_of_the_null_is_nothing():
    found = excess(interval([NULL_MEAN] * 4))
    assert (found.mean, found.low, found.high) == pytest.approx((0, 0, 0))
    assert ceiling(MILLION, 1) == MILLION


def noisy_laws(secret, known, rng):
    """Uniform laws, but for the prefixes of the secret, which alone the public corpus has.

    There they are flat, the secret's own symbol a little higher or not; then noise, as released.
    """
    laws, prefix = [torch.full((10**level, 10), -math.log(10)) for level in range(4)], 0
    for law, symbol in zip(laws, secret.tolist(), strict=True):
        given = np.full(10, 0.1)
        given[symbol] += 0.1 * known
        given = torch.from_numpy((given + 0.3 * rng.normal(size=10)).clip(1e-12))
        law[prefix] = (given / given.sum()).log().clamp_min(LEAST).float()
        prefix = prefix * 10 + symbol
    return laws


def test_in_noisy_labels_the_sum_of_probabilities_finds_what_their_product_does_not():
    """By the product, what noise has been on is less likely than what is not known at all.

    Neither null is that of a secret that has nothing to do with what scores it.
    """
    rng = np.random.default_rng(0)
    secrets = torch.from_numpy(rng.integers(10, size=(100, 4)))
    found = {True: {}, False: {}}
    for known, scores in found.items():
        for place, secret in enumerate(secrets):
            laws = noisy_laws(secret, known, rng)
            for score, one in (("exposure", laws), ("linear", probabilities(laws))):
                bits = float(exact_exposure(one, secret[None]))
                scores.setdefault(score, {})[place] = bits, place

    def excess(*scores):
        both = ({score: found[known][score] for score in scores} for known in (True, False))
        return excess_over(*both)

    nulls = {s: np.mean([bits for bits, _ in v.values()]) for s, v in found[False].items()}
    assert nulls["linear"] > NULL_MEAN + 0.5
    over, score = excess("exposure", "linear")
    assert score == "linear"
    assert over.low > 0
    assert over.mean == excess("linear")[0].mean > excess("exposure")[0].mean + 0.2


def test_an_excess_over_a_control_is_of_the_secrets_that_both_have():
    planted = {"exposure": {1: (5.0, "a"), 2: (7.0, "b"), 3: (9.0, "c")}}
    control = {"exposure": {1: (1.0, "a"), 2: (2.0, "b")}, "linear": {}}
    over, score = excess_over(planted, control)
    assert (over.mean, over.n, score) == (4.5, 2, "exposure")
    assert over == interval([4.0, 5.0], ["a", "b"], 0.95)
    both = {"exposure": {1: (5.0, "a"), 2: (7.0, "b")}}
    two = both | {"linear": {1: (4.0, "a"), 2: (4.0, "b")}}
    # The better of two: each interval is wider, so that both hold.
    none = {"exposure": control["exposure"], "linear": {1: (3.0, "a"), 2: (3.0, "b")}}
    assert excess_over(two, none) == (
        interval([4.0, 5.0], ["a", "b"], 0.975),
        "exposure",
    )
    assert excess_over(planted, {}) is None
    assert excess_over({}, control) is None


def test_an_arm_takes_nothing_from_itself_and_the_null_takes_all():
    plain = 5 + np.random.default_rng(0).normal(size=20)
    clusters = np.repeat(np.arange(5), 4).tolist()
    same = reduction(plain, plain, clusters, clusters)
    assert (same.mean, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-6)
    null = reduction(plain, [NULL_MEAN] * 20, clusters, clusters)
    assert (null.mean, null.low, null.high) == pytest.approx((1, 1, 1))


def test_the_interval_of_a_reduction_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(10), 4).tolist()
    covered = 0
    for _ in range(400):
        model = rng.normal(size=(10, 1))
        plain = NULL_MEAN + 4 + model + rng.normal(size=(10, 4))
        protected = NULL_MEAN + 1 + model / 2 + rng.normal(size=(10, 4))
        found = reduction(plain.flatten(), protected.flatten(), clusters, clusters)
        covered += found.low <= 0.75 <= found.high
    assert 0.92 < covered / 400 < 0.98


def test_where_nothing_leaks_there_is_no_share_to_take():
    rng = np.random.default_rng(0)
    plain = rng.exponential(NULL_MEAN, size=30)
    found = reduction(plain, plain + rng.normal(size=30))
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert math.isnan(reduction([1.0, 1.2], [1.0, 1.3]).mean)


def test_five_secrets_of_a_million_have_at_most_18_55_bits():
    assert ceiling(MILLION, 5) == pytest.approx(18.55, abs=0.005)
    ranks = np.arange(1, 8)
    assert ceiling(10, 7) == pytest.approx((10 - np.log2(ranks)).mean())


def test_bounds_of_private_releases():
    bits = [bound(epsilon, 0, MILLION) for epsilon in (1, 2, 8)]
    assert bits == pytest.approx([2.89, 4.33, 12.98], abs=0.005)
    assert bound(1, 0.01, MILLION) == pytest.approx(2.885 + 0.01 * MILLION, abs=0.001)
    assert bound(math.inf, 0, MILLION) == MILLION


@pytest.mark.parametrize("epsilon", [0.1, 1, 3, 8])
def test_randomised_response_keeps_to_the_bound(epsilon):
    size = 10**5
    # The secret itself is named with this chance, else another one; the rest are tied.
    chance = math.exp(epsilon) / (math.exp(epsilon) + size - 1)
    others = math.log2(size) - np.log2(np.arange(2, size + 1)).mean()
    mean = chance * math.log2(size) + (1 - chance) * others
    assert mean <= bound(epsilon, 0, math.log2(size))


# --- soft labels alone --------------------------------------------------------------------------


def line_so_far(row, position):
    """Tokens of the line that ``position`` of a row is in, with the one that begins it."""
    so_far = row[: position + 1]
    return so_far[max(i for i, token in enumerate(so_far) if token == LINE) :]


@pytest.fixture(scope="module")
def corpus():
    """Rows of random short lines, many of which begin like a canary."""
    rng = np.random.default_rng(0)
    prefix, symbols = CONTEXT[1:].tolist(), SYMBOLS.tolist()
    lines = []
    for _ in range(80):
        lines.append(rng.integers(3, VOCABULARY, size=rng.integers(1, 6)).tolist())
        lines.append(prefix + rng.choice(symbols, size=rng.integers(0, 5)).tolist())
        lines.append([*prefix, *rng.choice(symbols, size=2).tolist(), 17])
    return pack([lines[i] for i in rng.permutation(len(lines))], 12)


def test_places_are_those_where_the_line_so_far_is_a_prefix(corpus):
    inputs = corpus[:, :-1]
    expected, item = [], 0
    for row in inputs.tolist():
        for position, token in enumerate(row):
            if token == PAD:
                continue
            for level in range(3):
                for prefix, symbols in enumerate(everything(3, level) if level else [[]]):
                    wanted = [*CONTEXT.tolist(), *(SYMBOLS[i].item() for i in symbols)]
                    if line_so_far(row, position) == wanted:
                        expected.append((item, level, prefix))
            item += 1
    found = places(inputs, CONTEXT, SYMBOLS, 3)
    got = zip(found.items.tolist(), found.levels.tolist(), found.prefixes.tolist())
    assert len(expected) > 200
    assert sorted(got) == sorted(expected)


def released(corpus, seed=0):
    """A law of its own at every released position: ``(M, V)``."""
    items = int((corpus[:, :-1] != PAD).sum())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(items, VOCABULARY, generator=generator).log_softmax(1)


def test_a_prefix_has_the_mean_of_the_laws_released_there(corpus):
    found = places(corpus[:, :-1], CONTEXT, SYMBOLS, 3)
    log_probs = released(corpus)
    laws = released_conditionals(found, log_probs, SYMBOLS, 3)
    for level, law in enumerate(laws):
        for prefix in range(3**level):
            here = found.items[(found.levels == level) & (found.prefixes == prefix)]
            expected = torch.full((3,), 1 / 3)
            if len(here):
                mean = log_probs[here].exp().mean(0)[SYMBOLS]
                expected = mean / mean.sum()
            torch.testing.assert_close(law[prefix].exp(), expected)


@pytest.mark.parametrize("length", [1, 3, 5])
def test_sequences_are_scored_without_going_through_the_space(corpus, length):
    found = places(corpus[:, :-1], CONTEXT, SYMBOLS, length)
    arguments = (found, released(corpus), SYMBOLS, length)
    sequences = everything(3, length)
    expected = totals(released_conditionals(*arguments))
    assert torch.equal(released_scorer(*arguments)(sequences), expected)
    laws = probabilities(released_conditionals(*arguments))
    scorer = released_scorer(*arguments, linear=True)
    assert torch.equal(scorer(sequences), totals(laws))


def test_a_large_space_is_scored_where_it_cannot_be_gone_through(corpus):
    found = places(corpus[:, :-1], CONTEXT, SYMBOLS, 20)
    arguments = (found, released(corpus), SYMBOLS, 20)
    with pytest.raises(FedkdError, match=r"canary\.template: 20 symbols out of 3"):
        released_conditionals(*arguments)
    scores = released_scorer(*arguments)(references(3, 20, 50, seed=0))
    assert torch.isfinite(scores).all()


def test_a_corpus_without_the_prefix_tells_nothing():
    rows = pack([[15, 16, 17], [14, 13, 5]], 12)
    found = places(rows[:, :-1], CONTEXT, SYMBOLS, 2)
    assert not len(found.items)
    laws = released_conditionals(found, released(rows), SYMBOLS, 2)
    assert exact_exposure(laws, everything(3, 2)).eq(0).all()
    scores = released_scorer(found, released(rows), SYMBOLS, 2)(everything(3, 2))
    assert len(scores.unique()) == 1


def test_a_line_that_is_cut_off_by_its_row_is_found_as_far_as_it_goes():
    rows = torch.tensor([[LINE, 13, 14, 5, 3], [LINE, 13, 14, PAD, PAD]])
    found = places(rows, CONTEXT, SYMBOLS, 6)
    assert found.items.tolist() == [2, 7, 3, 4]
    assert found.levels.tolist() == [0, 0, 1, 2]
    assert found.prefixes.tolist() == [0, 0, 0, 1]


def test_soft_labels_on_the_exact_line_of_a_memorised_secret_give_it_away():
    student, secret = built("lstm"), torch.tensor([2, 0, 1, 1])
    line = [*CONTEXT[1:].tolist(), *SYMBOLS[secret].tolist()]
    fit_line(student, line, steps=60)
    rows = pack([[15, 16], line, [17]], 12)
    inputs = rows[:, :-1]
    with torch.no_grad():
        log_probs = student(inputs)[inputs != PAD].log_softmax(1)
    found = places(inputs, CONTEXT, SYMBOLS, 4)
    laws = released_conditionals(found, log_probs, SYMBOLS, 4)
    assert float(exact_exposure(laws, secret[None])) == math.log2(3**4)


def test_released_zeros_are_unlikely_but_not_impossible():
    rows = pack([[13, 14, 5, 3]], 12)
    found = places(rows[:, :-1], CONTEXT, SYMBOLS, 2)
    # At the first slot one symbol alone; at the second, after a 5, nothing of all symbols.
    log_probs = torch.full((int((rows[:, :-1] != PAD).sum()), VOCABULARY), -math.inf)
    log_probs[:, 17] = 0
    log_probs[2] = -math.inf
    log_probs[2, 5] = 0
    laws = released_conditionals(found, log_probs, SYMBOLS, 2)
    assert all(torch.isfinite(law).all() for law in laws)
    assert laws[0][0].argmax() == 0
    torch.testing.assert_close(laws[1][0].exp(), torch.full((3,), 1 / 3))


def test_candidates_that_hold_all_symbols_lose_nothing(corpus):
    found = places(corpus[:, :-1], CONTEXT, SYMBOLS, 3)
    log_probs = released(corpus)
    among = torch.cat([SYMBOLS.flip(0), torch.tensor([12, -1])]).expand(len(log_probs), -1)
    probabilities = log_probs.exp()
    chosen = probabilities.gather(1, among.clamp_min(0)) * (among >= 0)
    grouped = torch.cat([chosen, 1 - chosen.sum(1, keepdim=True)], 1).log()
    expected = released_conditionals(found, log_probs, SYMBOLS, 3)
    laws = released_conditionals(found, grouped, SYMBOLS, 3, among=among, classes=VOCABULARY)
    for law, wanted in zip(laws, expected):
        torch.testing.assert_close(law, wanted, rtol=1e-4, atol=1e-5)


def test_a_symbol_that_is_no_candidate_has_its_share_of_the_rest():
    rows = pack([[13, 14]], 12)
    found = places(rows[:, :-1], CONTEXT, SYMBOLS, 1)
    among = torch.tensor([[5, 12, -1]]).expand(4, -1)
    grouped = torch.tensor([[0.4, 0.24, 0.0, 0.36]]).log().expand(4, -1)
    (law,) = released_conditionals(found, grouped, SYMBOLS, 1, among=among, classes=VOCABULARY)
    masses = torch.tensor([[0.4, 0.36 / 18, 0.36 / 18]])
    torch.testing.assert_close(law.exp(), masses / masses.sum())


def test_released_logits_are_refused(corpus):
    found = places(corpus[:, :-1], CONTEXT, SYMBOLS, 3)
    with pytest.raises(FedkdError, match="released soft labels must be log-probabilities"):
        released_conditionals(found, released(corpus) + 1, SYMBOLS, 3)
