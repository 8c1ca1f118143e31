"""What releases cost: constants by brute force, epsilon against dp-accounting, the broken rules."""

import itertools
import json
import math

import dp_accounting as dp
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.special import logsumexp

from fedkd.errors import FedkdError
from fedkd.experiment import ReleaseTable
from fedkd.privacy import epsilons
from fedkd.privacy.accounting import compose
from fedkd.privacy.costs import cost, described
from fedkd.privacy.dpsgd import DPSGD
from fedkd.privacy.epsilons import PrivateSteps, gaussian_epsilon, training_epsilon, zcdp_epsilon
from fedkd.privacy.releases import Release
from fedkd.privacy.sensitivity import l1_sensitivity, l2_sensitivity
from fedkd.training_tables import PrivateTraining

DELTA = 1e-5
SIZES = (64, 65)
ORDERS = 1 + np.geomspace(1e-3, 300, 60)
NONE = (None, None, None)


def pld(event):
    return PLDAccountant(value_discretization_interval=1e-3).compose(event).get_epsilon(DELTA)


# --- Gaussian noise -------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [0.05, 0.1, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.1])
def test_gaussian_epsilon_is_that_of_dp_accounting(multiplier, delta):
    expected = dp.get_epsilon_gaussian(multiplier, delta)
    assert gaussian_epsilon(1 / multiplier, delta) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_gaussian_epsilon_is_that_of_privacy_losses():
    """With the full distance between neighbours in the multiplier, for adding or removing."""
    for multiplier in (0.5, 1 / math.sqrt(2), 3.0):
        found = gaussian_epsilon(1 / multiplier, DELTA)
        assert found == pytest.approx(pld(dp.GaussianDpEvent(multiplier)), abs=1e-3)


def test_what_dp_accounting_takes_for_replacing_one():
    """Why nothing here is asked of it for replacing: one accountant doubles the distance."""
    replace, event = dp.NeighboringRelation.REPLACE_ONE, dp.GaussianDpEvent(1.0)
    by_losses = PLDAccountant(replace, 1e-3).compose(event).get_epsilon(DELTA)
    assert by_losses == pytest.approx(gaussian_epsilon(2.0, DELTA), abs=1e-3)
    by_orders = RdpAccountant(neighboring_relation=replace).compose(event).get_epsilon(DELTA)
    assert by_orders < gaussian_epsilon(2.0, DELTA)


@pytest.mark.parametrize(("mu", "above"), [(0.3, 1.095), (1.41, 1.077), (15.8, 1.036)])
def test_renyi_orders_cost_some_percent(mu, above):
    assert zcdp_epsilon(mu**2 / 2, DELTA) / gaussian_epsilon(mu, DELTA) == pytest.approx(
        above, abs=0.004
    )


def test_limits_of_gaussian_epsilon():
    assert gaussian_epsilon(0, DELTA) == 0
    assert gaussian_epsilon(1e-6, DELTA) == 0
    assert gaussian_epsilon(math.inf, DELTA) == math.inf
    assert gaussian_epsilon(1e6, DELTA) == pytest.approx(5e11, rel=1e-4)
    ratios = np.geomspace(1e-3, 1e4, 30)
    assert (np.diff([gaussian_epsilon(ratio, DELTA) for ratio in ratios]) > 0)[8:].all()


def test_magnitudes():
    """Noise as papers add it is no guarantee."""
    unit = cost("gaussian", 0.1, 1, [1.0], None, 10)
    assert unit.nominal == pytest.approx(159, rel=0.02)
    assert cost("gaussian", 1.0, 1, [1.0], None, 10).nominal == pytest.approx(6.6, rel=0.02)
    table = ReleaseTable(mechanism="gaussian", scale=0.2, trust="central")
    for clients, epsilon in ((100, 7.5), (10, 192)):
        mean = described(table, np.ones(500), 10, False, clients)
        found = gaussian_epsilon(math.sqrt(2 * mean["rho"]), DELTA)
        assert found == pytest.approx(epsilon, rel=0.02)


# --- mechanisms by brute force --------------------------------------------------------------


def vertices(classes, ratio):
    logits = np.array(list(itertools.product([0.0, ratio], repeat=classes)))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def renyi(one, other):
    """Renyi divergences of each order between rows, in nats: (..., orders)."""
    one, other = np.log(one)[..., None], np.log(other)[..., None]
    return logsumexp(ORDERS * one + (1 - ORDERS) * other, axis=-2) / (ORDERS - 1)


def check_draws(laws, found):
    """No two laws are further apart than ``found`` says; the pure bound is reached."""
    losses = np.log(laws)[:, None] - np.log(laws)[None]
    assert found.epsilon == pytest.approx(losses.max(), abs=1e-9)
    assert (renyi(laws[:, None], laws[None]) <= found.rho * ORDERS + 1e-9).all()


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("ratio", [0.2, 1.0, 3.0, 8.0])
def test_a_draw_of_clipped_logits(classes, ratio):
    found = cost("sample", 0.0, 1, [2.0], 2 * ratio, classes)
    check_draws(vertices(classes, ratio), found)
    assert found.epsilon <= 2 * ratio
    assert found.rho <= ratio**2 / 2
    assert found.nominal == found.epsilon


@pytest.mark.parametrize("mix", [0.01, 0.3])
@pytest.mark.parametrize("ratio", [1.0, 8.0])
def test_a_draw_of_clipped_logits_mixed_with_the_uniform_law(mix, ratio):
    laws = (1 - mix) * vertices(4, ratio) + mix / 4
    check_draws(laws, cost("sample", 0.0, 1, [1.0], ratio, 4, mix=mix, floor=0.25))


@pytest.mark.parametrize("mix", [0.0, 0.2])
@pytest.mark.parametrize("candidates", [0, 1, 2, 4, 5])
def test_a_draw_over_candidates(candidates, mix):
    laws = vertices(5, 2.0)
    laws = np.concatenate([laws[:, :candidates], laws[:, candidates:].sum(1, keepdims=True)], 1)
    laws = laws[:, laws.max(0) > 0]
    laws = (1 - mix) * laws + mix / laws.shape[1]
    floor = 1 / laws.shape[1]
    check_draws(laws, cost("sample", 0.0, 1, [1.0], 2.0, 5, candidates, mix, floor=floor))


def test_draws_of_any_logits_are_bounded_by_a_uniform_share_only():
    assert cost("sample", 0.0, 1, [1.0], None, 4) == NONE
    mixed = cost("sample", 0.0, 1, [1.0], None, 4, mix=0.2, floor=0.25)
    assert mixed.epsilon == pytest.approx(math.log((0.8 + 0.05) / 0.05))
    check_draws(0.8 * vertices(4, 40.0) + 0.05, mixed)
    assert cost("sample", 0.0, 1, [1.0], None, 4, mix=1.0) == (0, 0, 0)


def test_small_draws_cost_what_the_temperature_says():
    """rho = c^2 / (2 tau^2), and no constant below it would do for an even number of classes."""
    found = cost("sample", 0.0, 1, [20.0], 2.0, 4).rho
    assert found == pytest.approx(2.0**2 / (2 * 20.0**2))
    laws = vertices(4, 0.1)
    assert (renyi(laws[:, None], laws[None]) / ORDERS).max() > 0.999 * found


def test_draws_add_up():
    one, tau = cost("sample", 0.0, 1, [2.0], 4.0, 10), [2.0, 2.0, 2.0]
    many = cost("sample", 0.0, 5, tau, 4.0, 10)
    assert many.rho == pytest.approx(15 * one.rho)
    assert many.epsilon == pytest.approx(15 * one.epsilon)
    assert many.nominal == one.nominal


@pytest.mark.parametrize("ratio", [0.01, 0.3, 2.0, 10.0])
def test_laplace_noise_in_all_directions(ratio):
    """The zCDP of a shift of half the distance up in some classes, and of half down in others."""
    found = cost("laplace", 2 / ratio, 1, [1.0], None, 10)
    assert found.epsilon == pytest.approx(ratio)
    draw = np.random.default_rng(0)
    halves = [[np.ones(1)] * 2, *(draw.dirichlet(np.ones(4), 2) for _ in range(20))]
    for half in halves:
        shifts = ratio / 2 * np.concatenate(half)[:, None]
        spent = np.logaddexp(
            np.log(ORDERS / (2 * ORDERS - 1)) + (ORDERS - 1) * shifts,
            np.log((ORDERS - 1) / (2 * ORDERS - 1)) - ORDERS * shifts,
        ).sum(0) / (ORDERS - 1)
        assert (spent <= found.rho * ORDERS * (1 + 1e-6)).all()
    assert found.rho <= ratio**2 / 4


def test_items_add_up_and_are_charged_by_their_own_temperature():
    tau, law = torch.tensor([1.0, 4.0, 16.0]), (10.0, 10, None, 0.25)
    gaussian = cost("gaussian", 0.5, 1, tau, *law)
    far = l2_sensitivity(tau, *law)
    assert gaussian.rho == pytest.approx((far**2).sum() / (2 * 0.25))
    assert gaussian.epsilon is None
    assert gaussian.nominal == pytest.approx(gaussian_epsilon(far.max() / 0.5, DELTA))
    laplace = cost("laplace", 0.5, 1, tau, *law)
    assert laplace.epsilon == pytest.approx(l1_sensitivity(tau, *law).sum() / 0.5)
    assert cost("gaussian", 0.5, 1, [], *law).rho == 0


def test_ten_thousand_items_of_fifty_thousand_classes():
    tau = np.linspace(2, 20, 10_000)
    for mechanism in ("gaussian", "laplace", "sample"):
        found = cost(mechanism, 1.0, 1, tau, 10.0, 50_000, 33)
        assert 0 < found.rho < math.inf


def test_no_noise_has_no_cost():
    for mechanism in ("none", "argmax", "gaussian", "laplace"):
        assert cost(mechanism, 0.0, 1, [1.0], 10.0, 10) == NONE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("uniform", 1.0, 1), "mechanism = 'uniform' is not known"),
        (("gaussian", -1.0, 1), "scale = -1 is not allowed"),
        (("sample", 0.0, 0), "draws = 0 is not allowed"),
    ],
)
def test_wrong_input_is_said(arguments, said):
    with pytest.raises(FedkdError, match=said):
        cost(*arguments, [1.0], 10.0, 10)
    with pytest.raises(FedkdError, match="delta = 0 is not allowed"):
        gaussian_epsilon(1.0, 0.0)


# --- the ledger -----------------------------------------------------------------------------


def line(client=0, mechanism="gaussian", scale=1.0, items=4, step="Predict", round=1, **more):
    tau = np.full(items, 2.0)
    price = cost(mechanism, scale, 1, tau, 10.0, 10)._asdict()
    return Release(
        round,
        client,
        step,
        "soft_labels",
        items,
        **({"mechanism": mechanism, "scale": scale} | price | more),
    )


def test_a_line_goes_to_json_and_back():
    there = line(scores="rules", temperature_min=2.0, clip=10.0)
    text = json.dumps(there.to_dict() | {"dp_steps": 3})
    assert Release.from_dict(json.loads(text)) == there
    with pytest.raises(FedkdError, match="is not a line of releases"):
        Release.from_dict({"round": 1})


def table(**keys):
    return ReleaseTable(**({"mechanism": "gaussian", "scale": 1.0, "clip": 10.0} | keys))


def test_a_described_release_costs_what_it_does():
    tau = torch.tensor([2.0, 20.0])
    found = described(table(temperature=2.0, tau_max=20.0, mix=0.5), tau, 10, False)
    assert found["rho"] == cost("gaussian", 1.0, 1, tau, 10.0, 10, None, 0.5).rho
    assert (found["temperature_min"], found["temperature_max"]) == (2, 20)
    assert (found["scores"], found["scores_private"], found["redrawn"]) == ("max", False, False)
    assert Release(1, 0, "Predict", "soft_labels", 2, **found).mechanism == "gaussian"


def test_a_described_release_over_candidates():
    found = described(table(candidates=3), [2.0], 1000, True)
    assert found["candidates"] == 4
    three, four = (cost("gaussian", 1.0, 1, [2.0], 10.0, 1000, k).rho for k in (3, 4))
    assert found["rho"] == max(three, four)
    each = described(table(candidates=3), [2.0, 2.0, 2.0], 1000, [3, 4, 3])
    assert each["candidates"] == 4
    assert each["rho"] == pytest.approx(2 * three + four)
    drawn = described(
        table(mechanism="sample", candidates=3, clip=None, mix=0.5), [2.0], 1000, True
    )
    assert drawn["epsilon"] == pytest.approx(math.log((0.5 + 0.1) / 0.1))


@pytest.mark.parametrize("classes", range(3, 9))
def test_items_with_fewer_candidates_are_charged_for_what_they_show(classes):
    """Where the true class is among the k likeliest, k are released and not k + 1."""
    for candidates, ratio in itertools.product(range(1, classes), (0.1, 1.0, 3.0)):
        furthest = []
        for count in (candidates, candidates + 1):
            laws = vertices(classes, ratio)
            shown = np.concatenate([laws[:, :count], laws[:, count:].sum(1, keepdims=True)], 1)
            furthest.append(max(np.square(shown - law).sum(1).max() for law in shown) / 2)
        release = table(candidates=candidates, clip=ratio)
        found = described(release, [1.0], classes, True)["rho"]
        assert found == pytest.approx(max(furthest), abs=1e-12)
        # As sets really are, item by item.
        sizes = [candidates, candidates, candidates + 1]
        found = described(release, np.ones(3), classes, sizes)["rho"]
        assert found == pytest.approx(2 * furthest[0] + furthest[1], abs=1e-12)


def test_what_makes_a_release_private_or_not_is_described():
    assert described(table(scores="oracle", tau_max=20.0), [2.0], 10, False)["scores_private"]
    assert not described(table(scores="oracle"), [2.0], 10, False)["scores_private"]
    assert described(table(cache=False), [2.0], 10, False)["redrawn"]
    assert described(table(mechanism="none"), [2.0], 10, False)["rho"] is None


def test_a_share_that_follows_from_logits_counts_for_nothing():
    """It matches an entropy: as far as the base temperature goes, which must be known."""
    swing = {"mix_with": "entropy", "tau_max": 20.0}
    found = described(table(temperature=2.0, **swing), [2.0, 20.0], 10, False)
    assert found["mix"] == 0
    assert found["rho"] == cost("gaussian", 1.0, 1, [2.0, 2.0], 10.0, 10).rho
    unknown = described(table(**swing), [2.0, 20.0], 10, False)
    assert unknown["rho"] == pytest.approx(2 * 2 / 2)


# --- composition ----------------------------------------------------------------------------


def test_gaussians_of_any_rounds_and_items_are_one_gaussian():
    found = compose([line(round=1), line(round=2, items=7, scale=2.0)], DELTA)
    far = l2_sensitivity(2.0, 10.0, 10).item()
    multiplier = 1 / math.sqrt(4 * far**2 + 7 * far**2 / 4)
    assert found.rho == pytest.approx(1 / (2 * multiplier**2))
    assert found.epsilon == pytest.approx(pld(dp.GaussianDpEvent(multiplier)), abs=1e-3)
    assert (found.unit, found.why, found.client) == ("client", "", 0)
    one = dp.GaussianDpEvent(1 / far), dp.GaussianDpEvent(2 / far)
    events = [dp.SelfComposedDpEvent(e, n) for e, n in zip(one, (4, 7), strict=True)]
    assert found.epsilon == pytest.approx(pld(dp.ComposedDpEvent(events)), abs=1e-3)


def test_clients_do_not_add_up_and_the_worst_is_told():
    alone = compose([line(client=3, items=9)], DELTA)
    found = compose(
        [line(client=n, items=n + 1) for n in range(8)] + [line(client=3, items=9)], DELTA
    )
    assert found.client == 3
    assert found.epsilon > alone.epsilon
    assert (
        found.epsilon == compose([line(client=3, items=4), line(client=3, items=9)], DELTA).epsilon
    )


def test_the_order_of_lines_does_not_matter_and_a_cached_answer_is_free():
    lines = [line(client=n % 2, round=n, items=n + 1) for n in range(6)]
    found = compose(lines, DELTA)
    assert compose(lines[::-1], DELTA) == found
    assert compose([*lines, line(client=1, fresh=False)], DELTA) == found
    assert compose([*lines, line(client=1)], DELTA).epsilon > found.epsilon
    assert compose([], DELTA).epsilon == 0


def test_laplace_noise_against_privacy_losses():
    """Never below the exact loss of as many Laplace releases, and not far above."""
    for scale, items in ((2.0, 1), (20.0, 1000), (200.0, 1000)):
        found = compose([line(mechanism="laplace", scale=scale, items=items)], DELTA)
        # An item's distance is at best half upwards and half downwards: two events.
        half = l1_sensitivity(2.0, 10.0, 10).item() / 2
        exact = pld(dp.SelfComposedDpEvent(dp.LaplaceDpEvent(scale / half), 2 * items))
        assert exact - 1e-3 <= found.epsilon <= 1.1 * exact
        pure = line(mechanism="laplace", scale=scale, items=items).epsilon
        assert found.epsilon <= pure
    assert found.rho is None


def test_few_draws_are_pure_and_many_are_concentrated():
    few = line(mechanism="sample", items=1)
    assert compose([few], DELTA).epsilon == pytest.approx(few.epsilon)
    law = (1.0, 10)
    many = cost("sample", 0.0, 1, np.full(2000, 20.0), *law)
    release = line(mechanism="sample", **many._asdict())
    found = compose([release], DELTA).epsilon
    accountant = RdpAccountant().compose(dp.ZCDpEvent(many.rho))
    assert found == pytest.approx(accountant.get_epsilon(DELTA), rel=0.01)
    assert found < many.epsilon / 2


def test_a_mixture_is_no_more_than_its_parts_and_no_less_than_either():
    gaussian, laplace = line(scale=3.0), line(mechanism="laplace", scale=50.0)
    drawn = line(mechanism="sample", items=1)
    for others in ([laplace], [drawn], [laplace, drawn]):
        parts = [compose([part], DELTA).epsilon for part in (gaussian, *others)]
        found = compose([gaussian, *others], DELTA).epsilon
        pure = sum(other.epsilon for other in others)
        assert max(parts) < found <= parts[0] + pure + 1e-9
    events = [dp.ZCDpEvent(gaussian.rho), dp.SelfComposedDpEvent(dp.LaplaceDpEvent(50.0), 8)]
    by_orders = RdpAccountant().compose(dp.ComposedDpEvent(events)).get_epsilon(DELTA)
    assert compose([gaussian, laplace], DELTA).epsilon <= 1.05 * by_orders


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mechanism": "none"}, "none: labels are released without noise"),
        ({"scale": 0.0}, "none: labels are released without noise"),
        (
            {"mechanism": "none", "step": "Represent"},
            "none: representations leave the client without noise",
        ),
        ({"mechanism": "none", "step": "Share"}, "none: parameters leave the client without noise"),
        (
            {"mechanism": "none", "step": "Select"},
            "none: choices by private samples leave the client without noise",
        ),
        ({"mechanism": "argmax"}, "none: the likeliest class is released without noise"),
        ({"scores_private": True}, "none: scores come from private data"),
        ({"redrawn": True}, "none: noise is redrawn for the same answer"),
        (
            {"mechanism": "sample", "rho": None, "epsilon": None},
            "none: labels are drawn from logits that are not clipped",
        ),
    ],
)
def test_a_broken_rule_leaves_no_guarantee(change, why):
    found = compose([line(), line(client=2, **change)], DELTA)
    assert (found.epsilon, found.why, found.client) == (None, why, 2)


def test_a_guarantee_in_words_beside_what_is_none():
    found = compose([line(), line(mechanism="laplace", round=2)], DELTA)
    assert found.text() == f"{found.epsilon:.3g} (delta 1e-05, client)"
    assert found.nominal == line().nominal
    broken = compose([line(), line(mechanism="none")], DELTA)
    assert broken.text() == "none: labels are released without noise"
    assert broken.nominal == line().nominal
    assert compose([line(mechanism="none")], DELTA).nominal is None


# --- private training -----------------------------------------------------------------------

STEPS = PrivateSteps(noise_multiplier=1.0, sample_rate=0.05, steps=100)


def test_steps_that_draw_everybody_are_one_gaussian():
    everybody = [PrivateSteps(3.0, 1.0, 4), PrivateSteps(6.0, 1.0, 20)]
    ratio = math.sqrt(4 / 3.0**2 + 20 / 6.0**2)
    assert training_epsilon(everybody, 1e-5) == gaussian_epsilon(ratio, 1e-5)
    twice = training_epsilon(everybody, 1e-5, replaced=True)
    assert twice == gaussian_epsilon(2 * ratio, 1e-5)


def test_what_a_privately_trained_student_says_is_free():
    unnoised = [
        line(mechanism="none"),
        line(mechanism="none", step="Share"),
        line(redrawn=True),
        line(mechanism="none", step="Represent", on="transfer"),
    ]
    found = compose(unnoised, DELTA, {0: [STEPS]})
    assert found.unit == "record"
    assert found.epsilon == training_epsilon([STEPS], DELTA)
    assert compose(unnoised * 3, DELTA, {0: [STEPS]}) == found


def test_steps_add_up_by_rate_and_the_worst_client_is_told():
    whole = training_epsilon([PrivateSteps(1.0, 0.05, 300)], DELTA)
    training = {0: [STEPS], 1: [STEPS] * 3, 2: []}
    found = compose([line(client=n) for n in range(3)], DELTA, training)
    assert (found.client, found.epsilon) == (1, whole)
    assert compose([line(client=0)], DELTA, training).epsilon < whole


def test_training_without_sampling_is_a_gaussian():
    found = training_epsilon([PrivateSteps(4.0, 1.0, 9)], DELTA)
    assert found == pytest.approx(gaussian_epsilon(3 / 4, DELTA), abs=1e-3)
    assert training_epsilon([PrivateSteps(4.0, 0.1, 9)], DELTA) < found
    assert training_epsilon([], DELTA) == training_epsilon([PrivateSteps(1.0, 0.1, 0)], DELTA) == 0


def test_a_record_that_is_replaced_moves_twice_as_far():
    steps = [PrivateSteps(4.0, 1.0, 9)]
    found = training_epsilon(steps, DELTA, replaced=True)
    assert found == pytest.approx(gaussian_epsilon(2 * 3 / 4, DELTA), abs=1e-3)
    huge = [PrivateSteps(0.01, 0.5, 10_000)]
    assert training_epsilon(huge, DELTA, replaced=True) == gaussian_epsilon(2e4, DELTA)
    group = training_epsilon(steps, DELTA, 3, replaced=True)
    assert group == gaussian_epsilon(3 * 2 * 3 / 4, DELTA)
    assert training_epsilon([], DELTA, replaced=True) == 0


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_one_sampled_step_by_integration(rate, replaced):
    """Of the mass that one law has over e^epsilon times another, on a grid of outcomes."""
    sigma = 0.8
    grid = np.linspace(-12, 12, 2_000_001)

    def law(mean):
        at = np.exp(-((grid - mean) ** 2) / (2 * sigma**2))
        return rate * at + (1 - rate) * np.exp(-(grid**2) / (2 * sigma**2))

    there, other = law(1.0), law(-1.0) if replaced else law(0.0)
    found = training_epsilon([PrivateSteps(sigma, rate, 1)], DELTA, replaced=replaced)
    step = (grid[1] - grid[0]) / (sigma * math.sqrt(2 * math.pi))
    for p, q in ((there, other), (other, there)):
        # Where the loss is above epsilon; the grid of losses rounds it up.
        assert np.maximum(p - math.exp(found) * q, 0).sum() * step <= DELTA * (1 + 1e-6)
    less = math.exp(found - 2e-3)
    assert max(np.maximum(p - less * q, 0).sum() for p, q in ((there, other), (other, there))) > (
        DELTA / step
    )


def test_a_formal_epsilon_says_what_it_hides():
    record = compose([line()], DELTA, {0: [STEPS]})
    assert record.replaced == training_epsilon([STEPS], DELTA, replaced=True) > record.epsilon
    assert record.text() == (
        f"{record.epsilon:.3g} (delta 1e-05, record; replace-one: {record.replaced:.3g})"
    )
    assert "zero-out" in record.neighbours
    assert "K records of its client public" in record.neighbours
    client = compose([line()], DELTA)
    assert client.replaced is None
    assert client.text() == f"{client.epsilon:.3g} (delta 1e-05, client)"
    assert client.neighbours.startswith("replace-one client")


def test_how_many_records_a_client_has_is_not_hidden():
    """One more than a whole number of batches is a step more."""
    batches = {
        count: DPSGD(PrivateTraining(), "private", 0).batches(count, 32)[0] for count in SIZES
    }
    assert batches == {64: 2, 65: 3}


@pytest.mark.slow
def test_the_training_of_a_whole_group_of_records():
    steps = [PrivateSteps(4.0, 0.05, 50)]
    found = [training_epsilon(steps, DELTA, group) for group in (1, 2, 4)]
    assert found == sorted(found)
    # Batches that always have all of them: noise half as large beside two records.
    doubled = training_epsilon([PrivateSteps(16.0, 1.0, 9)], DELTA, group=2)
    assert doubled == pytest.approx(gaussian_epsilon(2 * 3 / 16, DELTA), abs=1e-3)


def test_noise_too_small_for_a_grid_of_losses():
    steps = PrivateSteps(noise_multiplier=0.01, sample_rate=0.5, steps=10_000)
    assert training_epsilon([steps], DELTA) == gaussian_epsilon(1e4, DELTA)
    assert gaussian_epsilon(1e4, DELTA) > epsilons.PLD_LARGEST


@pytest.mark.parametrize(
    ("lines", "training", "why"),
    [
        ([line(client=1)], {0: [STEPS]}, "none: client 1 trains without noise"),
        ([line(step="Represent")], {0: [STEPS]}, "none: answers about private samples leave"),
        ([line(on="private")], {0: [STEPS]}, "none: answers about private samples leave"),
        ([line(step="Select", on="transfer")], {0: [STEPS]}, "none: choices by private samples le"),
        ([line(scores_private=True)], {0: [STEPS]}, "none: scores come from private data"),
        ([line()], {0: [PrivateSteps(0.0, 0.1, 5)]}, "none: DP-SGD has no noise"),
    ],
)
def test_what_private_training_does_not_cover(lines, training, why):
    found = compose(lines, DELTA, training)
    assert found.epsilon is None
    assert found.why.startswith(why)
