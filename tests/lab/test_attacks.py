"""Attacks against known laws, lower bounds on epsilon against known mechanisms."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm

from fedkd.errors import FedkdError
from fedkd.exposures import bound
from fedkd.lab import rates
from fedkd.lab.bounds import (
    audited_epsilon,
    audited_epsilon_from_exposure,
    audited_epsilon_in_one_run,
)
from fedkd.lab.distributions import (
    baseline_distributions,
    distribution_errors,
    infer_label_distribution,
)
from fedkd.lab.likelihood_ratios import lira, logit_confidence
from fedkd.lab.rates import auc, clopper_pearson, detection, members_and_others, roc
from fedkd.privacy.epsilons import gaussian_epsilon

# --- rates ----------------------------------------------------------------------------------


def tpr_at(scores, members, fpr):
    """True positive rate at a false positive rate of at most ``fpr``, with its exact interval."""
    curve = roc(scores, members)
    inside, _ = members_and_others(scores, members)
    true = curve.true[np.flatnonzero(curve.false <= fpr)[-1]]
    return clopper_pearson(round(true * len(inside)), len(inside))


def test_intervals_are_the_exact_binomial_ones():
    for successes, trials in ((0, 10), (3, 10), (10, 10), (999, 1000)):
        exact = binomtest(successes, trials).proportion_ci(0.9, method="exact")
        found = clopper_pearson(successes, trials, 0.9)
        assert found == pytest.approx((successes / trials, exact.low, exact.high))


def test_a_roc_curve_by_hand():
    scores, members = [0.9, 0.8, 0.8, 0.3], [True, True, False, False]
    curve = roc(scores, members)
    assert curve.thresholds.tolist() == [math.inf, 0.9, 0.8, 0.3]
    assert curve.true.tolist() == [0, 0.5, 1, 1]
    assert curve.false.tolist() == [0, 0, 0.5, 1]
    assert auc(scores, members) == 0.875
    assert tpr_at(scores, members, 0.0) == clopper_pearson(1, 2)
    assert tpr_at(scores, members, 0.5) == clopper_pearson(2, 2)


def test_perfect_useless_and_reversed_scores():
    members = np.arange(10) < 5
    assert auc(members, members) == 1
    assert auc(-members.astype(float), members) == 0
    assert auc(np.ones(10), members) == 0.5
    assert tpr_at(np.ones(10), members, 0.1).value == 0
    assert tpr_at(members, members, 0.0).value == 1


def test_auc_counts_pairs_in_any_shape_and_scale():
    draw = np.random.default_rng(0)
    scores, members = draw.integers(0, 9, (6, 20)).astype(float), draw.random((6, 20)) < 0.4
    higher = np.sign(scores[members][:, None] - scores[~members][None])
    assert auc(scores, members) == pytest.approx((1 + higher.mean()) / 2)
    assert auc(torch.tensor(scores).exp(), torch.tensor(members)) == auc(scores, members)


def test_gaussians_one_deviation_apart():
    draw = np.random.default_rng(0)
    members = np.arange(40_000) % 2 == 0
    scores = draw.normal(size=members.shape) + members
    assert auc(scores, members) == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.01)
    found = tpr_at(scores, members, 0.01)
    expected = norm.sf(norm.isf(0.01) - 1)
    assert found.low - 0.01 < expected < found.high + 0.01


@pytest.mark.parametrize(
    ("scores", "members", "said"),
    [
        ([1.0], [True, False], "scores \\(1,\\) and members \\(2,\\) are not of the same shape"),
        ([math.nan, 1.0], [True, False], "scores have NaN"),
        ([1.0, 2.0], [True, True], "2 members and 0 others: an attack needs some of both"),
    ],
)
def test_what_is_no_attack_is_said(scores, members, said):
    with pytest.raises(FedkdError, match=said):
        roc(scores, members)


def attacked(draw, effect, clients=4, records=60, runs=8):
    """Likelihood ratios of every client's records, and who is a member, of made-up scores.

    A record, a run of a client, and both together move a score.
    """
    ratios, inside = [], []
    for _ in range(clients):
        members = draw.random((runs, records)) < 0.5
        scores = 2 * draw.normal(size=records) + 0.5 * draw.normal(size=(runs, 1))
        scores = scores + draw.normal(size=members.shape) + effect * members
        ratios.append(lira(scores, members))
        inside.append(members)
    return ratios, inside


def joined(arrays):
    return np.concatenate([array.ravel() for array in arrays])


def test_rates_are_those_of_all_scores_together():
    ratios, inside = attacked(np.random.default_rng(0), 1.0)
    found = detection(ratios, inside, [0.05, 0.2], draws=50)
    assert found.auc.value == pytest.approx(auc(joined(ratios), joined(inside)))
    assert found.auc.low < found.auc.value < found.auc.high
    for fpr, rate in found.tpr.items():
        assert rate.value == pytest.approx(tpr_at(joined(ratios), joined(inside), fpr).value)
    assert detection(ratios, inside, [0.05, 0.2], draws=50) == found
    same = [np.zeros(client.shape) for client in ratios]
    assert detection(same, inside, [0.2], draws=20).auc == (0.5, 0.5, 0.5)


def test_a_rate_is_not_told_where_too_few_false_positives_are_expected():
    ratios, inside = attacked(np.random.default_rng(0), 0.0)
    others = int((~joined(inside)).sum())
    found = detection(ratios, inside, [9 / others, 10 / others, 11 / others], draws=20)
    assert set(found.tpr) == {10 / others, 11 / others}
    assert found.refused == {9 / others: pytest.approx(9)}


def test_a_bootstrap_in_pieces_is_the_same_as_at_once(monkeypatch):
    ratios, inside = attacked(np.random.default_rng(0), 1.0)
    whole = detection(ratios, inside, [0.1], draws=30)
    monkeypatch.setattr(rates, "LARGEST_DRAW", 7 * len(joined(ratios)))
    assert detection(ratios, inside, [0.1], draws=30) == whole


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_intervals_hold_what_they_are_about(effect):
    """Scores of one record in several runs are not independent: by pairs they are too narrow."""
    draw = np.random.default_rng(1)
    ratios, inside = attacked(draw, effect, clients=300)
    truth = [auc(joined(ratios), joined(inside))]
    truth += [tpr_at(joined(ratios), joined(inside), fpr).value for fpr in (0.02, 0.1)]
    held = []
    for _ in range(60):
        found = detection(*attacked(draw, effect), [0.02, 0.1], draws=100)
        rates = [found.auc, *found.tpr.values()]
        held.append([rate.low <= true <= rate.high for rate, true in zip(rates, truth)])
    # 95 % are wanted: below 86 % by chance once in three hundred.
    assert (np.mean(held, 0) > 0.86).all()


# --- membership -----------------------------------------------------------------------------


def test_logit_confidence_is_the_logit_of_the_true_class():
    law = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
    found = logit_confidence(law, torch.tensor([0, 2]))
    assert found.tolist() == pytest.approx([math.log(0.7 / 0.3), 0], rel=1e-6)
    # 1 - p is 0 in floating point, and the sum of the others is not.
    certain = torch.tensor([[50.0, 0.0, 0.0]]).softmax(1)
    found = logit_confidence(certain, torch.tensor([0]))
    assert found.item() == pytest.approx(50 - math.log(2), rel=1e-6)
    assert logit_confidence(torch.eye(2), torch.tensor([0, 1])).isfinite().all()


def test_logit_confidence_of_many_models():
    law = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    labels = torch.arange(7) % 4
    assert torch.equal(logit_confidence(law, labels)[3], logit_confidence(law[3], labels))


def by_the_definition(scores, members, few):
    """Every run the target, every record by itself."""
    found = np.zeros(scores.shape)
    for target in range(len(scores)):
        rest = np.arange(len(scores)) != target
        groups = [(scores[rest], members[rest]), (scores[rest], ~members[rest])]
        for sign, (values, group) in zip((1, -1), groups, strict=True):
            inside = np.ma.array(values, mask=~group)
            mean, count = inside.mean(0), group.sum(0)
            squares = ((inside - mean) ** 2).sum(0)
            pooled = squares.sum() / (count - 1).sum()
            variance = np.where(count < few, pooled, squares / (count - 1))
            density = norm.logpdf(scores[target], mean, np.sqrt(variance))
            found[target] += sign * density
    return found


@pytest.mark.parametrize("few", [0, 8, 99])
def test_lira_leaves_the_target_out(few):
    draw = np.random.default_rng(0)
    members = np.stack([draw.permutation(16) < 8 for _ in range(30)], 1)
    scores = draw.normal(100, 2, members.shape) + 1.5 * members
    assert lira(scores, members, few) == pytest.approx(by_the_definition(scores, members, few))


def test_lira_finds_the_true_likelihood_ratio():
    draw = np.random.default_rng(0)
    members = draw.random((400, 40)) < 0.5
    hardness = 3 * draw.normal(size=40)
    scores = draw.normal(size=members.shape) + hardness + 1.0 * members
    true = (scores - hardness) - 0.5
    found = lira(scores, members)
    assert np.abs(found - true).mean() < 0.2
    assert auc(found, members) == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.02)
    assert auc(found, members) > auc(scores, members) + 0.1


def test_pooled_variance_is_better_with_few_runs():
    draw = np.random.default_rng(0)
    members = np.stack([draw.permutation(8) < 4 for _ in range(500)], 1)
    scores = draw.normal(size=members.shape) + 2.0 * members
    assert auc(lira(scores, members), members) > auc(lira(scores, members, few=0), members)


def test_lira_of_scores_that_know_nothing_is_a_coin():
    draw = np.random.default_rng(0)
    members = draw.random((12, 2000)) < 0.5
    found = lira(draw.normal(size=members.shape), members)
    assert auc(found, members) == pytest.approx(0.5, abs=0.02)


def test_lira_says_nothing_where_all_other_runs_are_alike():
    members = np.array([[1, 1], [1, 1], [1, 1], [1, 0], [1, 0], [1, 0]], bool)
    found = lira(np.random.default_rng(0).normal(size=(6, 2)), members)
    assert (found[:, 0] == 0).all()
    assert (found[:, 1] != 0).all()


def test_lira_wants_runs_by_records():
    with pytest.raises(FedkdError, match="both must be \\(runs, records\\)"):
        lira(np.zeros(4), np.zeros(4, bool))
    with pytest.raises(FedkdError, match="2 runs: an attack needs a target and two others"):
        lira(np.zeros((2, 3)), np.zeros((2, 3), bool))
    with pytest.raises(FedkdError, match="not all finite"):
        lira(np.full((3, 3), math.inf), np.zeros((3, 3), bool))


# --- label distribution ---------------------------------------------------------------------

SOFT = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.7, 0.2]])
MEAN = [0.3, 0.6, 0.1]


def mean_soft_label(parameters):
    return SOFT if "head.weight" in parameters else None


@pytest.mark.parametrize(
    ("values", "distribution", "how"),
    [
        ({"soft_labels": SOFT}, MEAN, "soft labels"),
        ({"logits": SOFT.clamp_min(1e-30).log() + 5}, MEAN, "logits"),
        ({"cut": {"inputs": torch.ones(2, 9), "soft_labels": SOFT}}, MEAN, "soft labels"),
        (
            {"cut": {"soft_labels": SOFT, "labels": torch.tensor([2, 2, 0, -1])}},
            [1 / 3, 0, 2 / 3],
            "labels",
        ),
        (
            {"means": {"mean": torch.zeros(3, 3), "count": torch.tensor([1, 3, 0])}},
            [0.25, 0.75, 0],
            "counts",
        ),
        ({"parameters": {"head.weight": torch.ones(3, 4)}}, MEAN, "parameters"),
        ({"other": torch.ones(2, 5) / 5, "soft_labels": SOFT}, MEAN, "soft labels"),
    ],
)
def test_what_was_sent_tells_the_label_distribution(values, distribution, how):
    found = infer_label_distribution(values, mean_soft_label, classes=3)
    assert found.how == how
    assert found.distribution == pytest.approx(distribution, abs=1e-6)
    if "other" not in values:
        unknown = infer_label_distribution(values, mean_soft_label)
        assert unknown.how == how
        assert unknown.distribution.tolist() == found.distribution.tolist()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"parameters": {"body.weight": torch.ones(4, 4)}},
        {"soft_labels": torch.ones(2, 5) / 5},
        {"means": {"mean": torch.zeros(3, 3), "count": torch.zeros(3)}},
    ],
)
def test_what_says_nothing_of_labels(values):
    assert infer_label_distribution(values, mean_soft_label, classes=3) is None


def test_errors_of_known_distributions():
    same = distribution_errors([0.2, 0.8], torch.tensor([0.2, 0.8]))
    assert same == (0, 0, True)
    apart = distribution_errors([1.0, 0.0], [0.0, 1.0])
    assert apart == (2, 1, False)
    assert distribution_errors([1, 3], [0.5, 0.5]).l1 == pytest.approx(0.5)


def test_baselines_take_nothing_from_the_client():
    truths = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    found = baseline_distributions(truths)
    assert found["uniform"].tolist() == [[0.5, 0.5]] * 3
    assert found["others"].tolist() == [[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]
    assert baseline_distributions(truths[:1])["others"].tolist() == [[0.5, 0.5]]


# --- lower bounds on epsilon ----------------------------------------------------------------

DELTA = 1e-5


def not_above(found, truth):
    """Whether bounds at 95 % exceed the truth no more often than they may."""
    return np.sum(np.array(found) > truth) <= 0.05 * len(found)


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_an_audited_gaussian_mechanism_stays_below_its_epsilon(mu):
    draw = np.random.default_rng(0)
    truth = gaussian_epsilon(mu, DELTA)
    found = [
        audited_epsilon(draw.normal(mu, 1, 200), draw.normal(0, 1, 200), DELTA) for _ in range(150)
    ]
    assert not_above(found, truth)


def test_with_many_samples_an_audit_gets_half_of_a_gaussian_epsilon():
    draw = np.random.default_rng(0)
    for mu in (0.5, 1.0, 2.0):
        count = 200_000
        found = audited_epsilon(draw.normal(mu, 1, count), draw.normal(0, 1, count), DELTA)
        truth = gaussian_epsilon(mu, DELTA)
        assert truth / 2 < found < truth


def test_randomised_response_is_audited_to_its_epsilon():
    draw = np.random.default_rng(0)
    epsilon, count = 1.0, 100_000
    honest = math.exp(epsilon) / (1 + math.exp(epsilon))
    noise = 1e-9 * draw.random((2, count))
    scores = draw.random((2, count)) < np.array([[honest], [1 - honest]])
    found = audited_epsilon(*(scores + noise), 0.0)
    assert 0.9 < found < 1.0


def test_noise_proves_nothing():
    draw = np.random.default_rng(0)
    found = [audited_epsilon(*draw.normal(size=(2, 300)), 0.0) for _ in range(150)]
    assert not_above(found, 0)
    assert audited_epsilon(np.ones(50), np.ones(50), DELTA) == 0
    assert audited_epsilon([], [1.0], DELTA) == 0


def test_an_audit_does_not_depend_on_units_or_order():
    draw = np.random.default_rng(0)
    inside, outside = draw.normal(2, 1, 500), draw.normal(0, 1, 400)
    found = audited_epsilon(inside, outside, DELTA)
    assert found > 1
    assert audited_epsilon(np.exp(inside[::-1]), np.exp(outside), DELTA) == found
    # Positives and negatives change places.
    assert audited_epsilon(-outside, -inside, DELTA) == pytest.approx(found)


def chance_to_be_told(epsilon, space):
    return math.exp(epsilon) / (math.exp(epsilon) + space - 1)


def exposures_of_randomised_response(epsilon, secrets, log2_space, draw):
    """A secret is told as often as epsilon allows, else any other; the rest is ranked blindly."""
    space = 2**log2_space
    told = draw.random(secrets) < chance_to_be_told(epsilon, space)
    return log2_space - np.log2(np.where(told, 1, draw.integers(2, space + 1, secrets)))


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0, 8.0])
def test_exposure_of_randomised_response_stays_within_its_epsilon(epsilon):
    draw = np.random.default_rng(1)
    found = exposures_of_randomised_response(epsilon, 20_000, 10, draw)
    error = found.std() / math.sqrt(len(found))
    assert found.mean() - 3 * error <= bound(epsilon, 0.0, 10)
    audits = [
        audited_epsilon_from_exposure(
            exposures_of_randomised_response(epsilon, 40, 10, draw), 10, 0.0
        )
        for _ in range(200)
    ]
    assert not_above(audits, epsilon)
    proved = audited_epsilon_from_exposure(found, 10, 0.0)
    shown = math.log(chance_to_be_told(epsilon, 2**10) * 2**10)
    assert proved == pytest.approx(shown, rel=0.2) if epsilon > 1 else proved <= epsilon


def test_exposure_that_any_epsilon_allows_is_the_worst_case_of_the_bound():
    """Ranks of the law ``P(E >= x) = min(1, e^epsilon 2^-x)`` have the mean that the bound says."""
    draw = np.random.default_rng(0)
    for epsilon in (1.0, 4.0):
        found = np.log2(math.exp(epsilon) / draw.random(100_000))
        assert found.mean() == pytest.approx(bound(epsilon, 0.0, 1e9), abs=0.02)


def test_secrets_nobody_saw_prove_nothing():
    draw = np.random.default_rng(0)
    blind = [
        audited_epsilon_from_exposure(-np.log2(draw.integers(1, 1001, 20) / 1000), 9.966, 0.0)
        for _ in range(200)
    ]
    assert not_above(blind, 0)
    assert audited_epsilon_from_exposure([], 10, 0.0) == 0


def test_secrets_that_are_all_found_prove_what_their_number_allows():
    log2_space = 6 * math.log2(10)
    found = audited_epsilon_from_exposure([log2_space] * 20, log2_space, DELTA)
    rate = (0.05 / 20) ** (1 / 20)  # Clopper and Pearson's for 20 of 20, at one of 20 thresholds
    assert found == pytest.approx(math.log((rate - DELTA) * 10**6), rel=1e-6)
    assert audited_epsilon_from_exposure([log2_space] * 200, log2_space, DELTA) > found
    assert found < math.log(10**6)


def randomised_response(members, epsilon, draw):
    """Each record's coin, told as honestly as epsilon allows."""
    honest = draw.random(members.shape) < 1 / (1 + math.exp(-epsilon))
    return (members == honest) + 1e-9 * draw.random(members.shape)


@pytest.mark.parametrize("delta", [0.0, DELTA])
def test_one_run_of_randomised_response_is_audited_to_its_epsilon(delta):
    draw = np.random.default_rng(0)
    for epsilon in (0.5, 2.0):
        members = draw.random(10_000) < 0.5
        scores = randomised_response(members, epsilon, draw)
        found = audited_epsilon_in_one_run(scores, members, delta)
        assert 0.8 * epsilon < found < epsilon


def test_one_run_stays_below_epsilon_as_often_as_it_says():
    draw = np.random.default_rng(0)
    found = []
    for _ in range(150):
        members = draw.random(100) < 0.5
        scores = randomised_response(members, 1.0, draw)
        found.append(audited_epsilon_in_one_run(scores, members, 0.0))
    assert not_above(found, 1.0)


def test_one_run_of_noise_proves_nothing_and_that_of_no_privacy_what_its_size_allows():
    draw = np.random.default_rng(0)
    members = draw.random((150, 100)) < 0.5
    found = [audited_epsilon_in_one_run(draw.random(100), row, 0.0) for row in members]
    assert not_above(found, 0)
    half = np.arange(64) < 32
    certain = audited_epsilon_in_one_run(half, half, 0.0)
    rate = (0.05 / 6) ** (1 / 64)  # all of 64 guesses right, at one of six sizes
    assert certain == pytest.approx(math.log(rate / (1 - rate)), rel=1e-6)
    assert audited_epsilon_in_one_run(half, half, 0.01) < certain
