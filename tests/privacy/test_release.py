"""What soft labels become on their way out: known answers, laws, and noise that is drawn once."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedkd import run
from fedkd.distillation.targets import check_probabilities, entropy, onto_simplex
from fedkd.engine.worker import Worker
from fedkd.experiment import ReleaseTable
from fedkd.privacy import release as module
from fedkd.privacy.candidates import over_candidates, over_classes, possible
from fedkd.privacy.public import Public
from fedkd.privacy.release import matched_mixture, release, sampled, temperatures
from fedkd.work import Assignment, Fit, Predict, Samples

ITEMS, CLASSES = 40, 6
AMONG = torch.tensor([[0, 4, -1], [2, 0, 5], [3, 1, -1], [5, 4, 0]]).repeat(ITEMS // 4, 1)
NOISY = [{"mechanism": "gaussian", "scale": 0.3}, {"mechanism": "laplace", "scale": 0.3}]
MATCHED = {"tau_max": 9, "mix_with": "entropy"}
SAMPLE = {"mechanism": "sample", "draws": 3}


@pytest.fixture
def logits():
    return 3 * drawn(ITEMS, CLASSES)


def drawn(*shape, seed=0):
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def public(items=ITEMS, **known):
    """Public things of ``items`` items."""
    return Public(Samples(torch.zeros(items, 1)), **{"scores": torch.zeros(items), **known})


def released(logits, base=1.0, seed=0, known=None, **table):
    """``logits`` released under a ``[release]`` of these keys."""
    known = public(len(logits)) if known is None else known
    return release(logits, base, ReleaseTable(**table), known, np.random.default_rng(seed))


def spread_scores():
    """Scores of all items from 0 to 1."""
    return torch.linspace(0, 1, ITEMS)


# --- temperatures ---------------------------------------------------------------------------


@pytest.mark.parametrize("base", [1.0, 3.0])
def test_without_a_policy_it_is_the_softmax_at_the_methods_temperature(base, logits):
    assert torch.equal(released(logits, base), (logits / base).softmax(1))


def test_a_temperature_of_the_policy_takes_the_place_of_the_methods(logits):
    given = released(logits, 3.0, temperature=2.0)
    assert torch.equal(given, (logits / 2).softmax(1))


@pytest.mark.parametrize("curve", ["linear", "geometric"])
@pytest.mark.parametrize(("base", "temperature"), [(2.0, None), (7.0, 2.0)])
def test_temperatures_go_from_tau_to_tau_max_with_the_score(curve, base, temperature):
    table = ReleaseTable(temperature=temperature, tau_max=18, curve=curve)
    scores = torch.tensor([0.0, 0.25, 0.5, 1.0])
    tau = temperatures(table, scores, base)
    quarter, middle = {"linear": (6, 10), "geometric": (2 * 3**0.5, 6)}[curve]
    assert tau.tolist() == pytest.approx([2, quarter, middle, 18])


def test_without_a_largest_temperature_scores_change_nothing(logits):
    assert temperatures(ReleaseTable(), spread_scores(), 4.0).eq(4).all()
    given = released(logits, 4.0, known=public(scores=spread_scores()))
    assert torch.equal(given, released(logits, 4.0))


def test_every_item_has_its_own_temperature(logits):
    scores = spread_scores()
    given = released(logits, 1.0, known=public(scores=scores), tau_max=9)
    # A softmax gives the logits back at its temperature, up to a constant.
    back = given.double().log() * temperatures(ReleaseTable(tau_max=9), scores, 1.0)[:, None]
    apart = back - logits
    assert torch.allclose(apart - apart.mean(1, keepdim=True), torch.zeros(()).double(), atol=1e-4)
    hot, cold = entropy(given)[-1], entropy(given)[0]
    assert hot == pytest.approx(float(entropy((logits[-1] / 9).softmax(0))), rel=1e-5)
    assert cold == pytest.approx(float(entropy(logits[0].softmax(0))), rel=1e-5)


def test_logits_are_left_as_they_are(logits):
    before = logits.clone()
    everything = {"clip": 2, "tau_max": 9, "mix": 0.1, "mechanism": "gaussian", "scale": 0.1}
    released(logits, known=public(scores=spread_scores(), among=AMONG), **everything)
    assert torch.equal(logits, before)


# --- clipping -------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_no_two_probabilities_are_further_apart_than_the_clipped_range(tau, logits):
    given = released(1e4 * logits, tau, clip=5).double()
    ratios = given.amax(1) / given.amin(1)
    assert ratios.log().numpy() == pytest.approx(5 / tau, rel=1e-5)


def test_logits_within_the_range_are_not_changed_by_clipping(logits):
    width = float((logits.amax(1) - logits.amin(1)).max())
    assert torch.allclose(released(logits, clip=width + 0.1), released(logits), atol=1e-6)


def test_clipping_keeps_the_top_and_lifts_the_bottom():
    given = released(torch.tensor([[5.0, 4.0, -50.0, -9.0]]), clip=2)
    assert torch.allclose(given, torch.tensor([[2.0, 1.0, 0.0, 0.0]]).softmax(1))


# --- candidates -----------------------------------------------------------------------------


def test_candidates_have_their_own_probabilities_and_all_others_one_together(logits):
    full, given = released(logits), released(logits, known=public(among=AMONG))
    assert given.shape == (ITEMS, 4)
    assert torch.allclose(given.sum(1), torch.ones(ITEMS))
    for row, among, whole in zip(given, AMONG.tolist(), full):
        for mass, candidate in zip(row, among):
            assert mass == (whole[candidate] if candidate >= 0 else 0)
        others = [c for c in range(CLASSES) if c not in among]
        assert float(row[-1]) == pytest.approx(float(whole[others].sum()), abs=1e-6)


def test_over_all_classes_again_candidates_keep_what_they_had(logits):
    full = released(logits)
    given = over_candidates(full, AMONG)
    back = over_classes(given, AMONG, CLASSES)
    assert torch.allclose(back.sum(1), torch.ones(ITEMS))
    for row, among, whole in zip(back, AMONG.tolist(), full):
        there = [c for c in among if c >= 0]
        others = [c for c in range(CLASSES) if c not in there]
        assert torch.equal(row[there], whole[there])
        assert row[others].tolist() == pytest.approx(
            [float(whole[others].mean())] * len(others), abs=1e-6
        )
    assert torch.allclose(over_candidates(back, AMONG), given, atol=1e-6)


def test_candidates_that_are_all_classes_lose_nothing(logits):
    among = drawn(ITEMS, CLASSES, seed=1).argsort(1)
    given = over_candidates(released(logits), among)
    assert given[:, -1].abs().max() < 1e-6
    assert torch.allclose(over_classes(given, among, CLASSES), released(logits))
    assert possible(among, CLASSES)[:, :-1].all()
    assert not possible(among, CLASSES)[:, -1].any()


@pytest.mark.parametrize("table", [*NOISY, {"mix": 0.5}, {"mix": 0.5, **SAMPLE}], ids=str)
def test_what_is_no_class_gets_nothing(table, logits):
    given = released(logits, known=public(among=AMONG), **table)
    missing = ~possible(AMONG, CLASSES)
    assert missing.sum() == ITEMS / 2
    assert given[missing].eq(0).all()
    assert check_probabilities(given, "labels") is None
    whole = over_classes(given, AMONG, CLASSES)
    assert check_probabilities(whole, "labels") is None


# --- mixtures -------------------------------------------------------------------------------


def test_a_share_of_the_uniform_law(logits):
    given = released(logits, mix=0.3)
    assert torch.allclose(given, 0.7 * logits.softmax(1) + 0.3 / CLASSES)


def test_a_share_of_a_public_law(logits):
    law = drawn(ITEMS, CLASSES, seed=1).softmax(1)
    given = released(logits, known=public(law=law), mix=0.3, mix_with="public")
    assert torch.allclose(given, 0.7 * logits.softmax(1) + 0.3 * law)


@pytest.mark.parametrize("with_law", [False, True])
def test_the_whole_of_another_law_says_nothing_of_the_logits(with_law, logits):
    law = drawn(ITEMS, CLASSES, seed=1).softmax(1) if with_law else None
    known = public(law=law)
    given = released(logits, known=known, mix=1, mix_with="public" if with_law else "uniform")
    assert torch.equal(given, released(-logits, known=known, mix=1))


def test_over_candidates_the_uniform_law_is_over_what_is_there(logits):
    given = released(logits, known=public(among=AMONG), mix=1)
    assert torch.allclose(given[0], torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]))
    assert torch.allclose(given[1], torch.full((4,), 1 / 4))


def test_a_matched_mixture_has_the_entropy_of_the_heated_law(logits):
    scores = spread_scores()
    how = {"tau_max": 12, "known": public(scores=scores)}
    given, heated = released(logits, mix_with="entropy", **how), released(logits, **how)
    assert (entropy(given) - entropy(heated)).abs().max() < 1e-4
    assert torch.allclose(given[0], heated[0], atol=1e-5)  # score 0: nothing to match
    assert (given - heated).abs().amax(1)[ITEMS // 2 :].min() > 1e-3
    # It is a mixture of the law at the base temperature with the uniform one, and nothing else.
    cold = logits.softmax(1)
    share = 1 - (given.amax(1) - given.amin(1)) / (cold.amax(1) - cold.amin(1))
    expected = (1 - share[:, None]) * cold + share[:, None] / CLASSES
    assert torch.allclose(given, expected, atol=1e-6)
    assert share.min() > -1e-6
    assert share.max() <= 1


def test_the_uniform_law_is_matched_by_itself(logits):
    uniform = torch.full((ITEMS, CLASSES), 1 / CLASSES)
    assert torch.allclose(matched_mixture(logits.softmax(1), uniform), uniform, atol=1e-3)


# --- noise ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mechanism", "law"), [("gaussian", stats.norm()), ("laplace", stats.laplace())]
)
def test_noise_has_the_law_and_the_scale_that_were_asked_for(mechanism, law, monkeypatch):
    monkeypatch.setattr(module, "onto_simplex", lambda rows: rows)
    logits = drawn(20_000, 5)
    noise = released(logits, mechanism=mechanism, scale=0.2) - logits.softmax(1)
    noise = noise.double().numpy() / 0.2
    assert stats.kstest(noise.ravel(), law.cdf).pvalue > 1e-3
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(law.std(), rel=0.02)
    correlation = np.corrcoef(noise.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.04


@pytest.mark.parametrize("table", NOISY, ids=str)
def test_noisy_labels_are_probabilities_and_the_draw_decides_them(table, logits):
    one, again, other = (released(logits, seed=seed, **table) for seed in (0, 0, 1))
    assert check_probabilities(one, "labels") is None
    assert torch.equal(one, again)
    # Some rows are projected to the same corner.
    assert (one != other).any(1).float().mean() > 0.9


def test_noise_is_the_same_whatever_it_is_added_to(monkeypatch, logits):
    monkeypatch.setattr(module, "onto_simplex", lambda rows: rows)
    one, other = (released(z, **NOISY[0]) - z.softmax(1) for z in (logits, -2 * logits))
    assert torch.allclose(one, other, atol=1e-6)


def test_a_scale_of_nothing_adds_nothing(logits):
    assert torch.equal(released(logits, mechanism="gaussian", scale=0), released(logits))


def test_the_projection_leaves_probabilities_alone(logits):
    labels = logits.softmax(1)
    assert torch.allclose(onto_simplex(labels), labels, atol=1e-6)


def test_the_projection_is_the_nearest_point_of_the_simplex():
    steps = 60
    grid = torch.tensor(
        [(a, b, steps - a - b) for a, b in itertools.product(range(steps + 1), repeat=2)]
    ).double()
    grid = grid[grid[:, 2] >= 0] / steps
    rows = 2 * drawn(50, 3).double()
    found = onto_simplex(rows)
    assert check_probabilities(found, "rows") is None
    least = torch.cdist(rows, grid).min(1)
    apart = (rows - found).norm(dim=1)
    assert (apart <= least.values + 1e-12).all()
    assert (found - grid[least.indices]).abs().max() < 1.5 / steps


def test_the_projection_of_a_column_ruled_out_is_that_of_the_others():
    rows = drawn(20, 4)
    without = onto_simplex(rows.index_fill(1, torch.tensor([2]), -torch.inf))
    assert without[:, 2].eq(0).all()
    kept = torch.tensor([0, 1, 3])
    assert torch.allclose(without[:, kept], onto_simplex(rows[:, kept]))


# --- drawn labels ---------------------------------------------------------------------------


def test_drawn_labels_follow_the_law():
    law = torch.tensor([[0.5, 0.25, 0.15, 0.1, 0.0]])
    given = sampled(law.expand(20_000, -1), 1, np.random.default_rng(0))
    assert given.sum(1).eq(1).all()
    assert given.amax(1).eq(1).all()
    counts = given.sum(0).numpy()
    assert counts[4] == 0
    assert stats.chisquare(counts[:4], 20_000 * law[0, :4].double().numpy()).pvalue > 1e-3


def test_several_draws_are_shares_of_a_row(logits):
    given = released(logits, mechanism="sample", draws=7)
    assert torch.allclose(given.sum(1), torch.ones(ITEMS))
    whole = given * 7
    assert torch.allclose(whole, whole.round(), atol=1e-5)
    many = released(logits, mechanism="sample", draws=1_000)
    assert (many - logits.softmax(1)).abs().max() < 5 * math.sqrt(0.25 / 1_000)


def test_draws_of_one_item_do_not_depend_on_those_of_another():
    """Uncorrelated between items and between draws."""
    law = torch.full((2, 2), 0.5)
    pairs = torch.stack([sampled(law, 2, np.random.default_rng(n))[:, 0] for n in range(4000)])
    assert abs(np.corrcoef(pairs.T.numpy())[0, 1]) < 0.06
    # Of two fair draws, half are one of each.
    assert float((pairs == 0.5).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_the_likeliest_class_is_one_hot(logits):
    given = released(logits, 5.0, mechanism="argmax")
    assert given.dtype == logits.dtype
    assert torch.equal(given, torch.nn.functional.one_hot(logits.argmax(1), CLASSES).float())


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"mechanism": "argmax"},
        {"tau_max": 9, "mix_with": "entropy"},
        {"mix": 1},
    ],
    ids=str,
)
def test_without_noise_what_is_not_a_number_stays_none_and_spoils_no_other_row(table, logits):
    expected = released(logits, **table)
    logits[3, 2] = torch.nan
    given = released(logits, **table)
    assert given[3].isnan().any()
    rest = torch.arange(ITEMS) != 3
    assert torch.equal(given[rest], expected[rest])


@pytest.mark.parametrize("known", [{}, {"among": AMONG}], ids=["all", "candidates"])
@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize("table", [*NOISY, SAMPLE, {**NOISY[0], **MATCHED}], ids=str)
def test_under_noise_every_logit_has_an_answer(table, clip, known, logits):
    """NaN counts as 0, infinity as more than all others; no other row notices."""
    how = {"clip": clip, "known": public(**known), **table}
    expected = released(logits, **how)
    sick = logits.clone()
    sick[3, 2], sick[4], sick[5, 1], sick[6, 0] = torch.nan, torch.nan, torch.inf, -torch.inf
    sick[7], sick[8, 3] = torch.inf, 3e38
    given = released(sick, **how)
    assert check_probabilities(given, "labels") is None
    rest = torch.ones(ITEMS, dtype=torch.bool)
    rest[3:9] = False
    assert torch.equal(given[rest], expected[rest])
    well = logits.clone()
    well[3, 2], well[4], well[5, 1], well[6, 0], well[7], well[8, 3] = 0, 0, 1e30, -1e30, 1, 1e30
    assert torch.equal(given, released(well, **how))


def test_the_coldest_release_of_the_largest_logits_is_finite(logits):
    given = released(1e38 * logits, 1e-30, mechanism="sample")
    assert check_probabilities(given, "labels") is None


# --- drawn once -----------------------------------------------------------------------------

NOISE = ("release.mechanism=gaussian", "release.scale=0.1")
# Clipped to nothing, labels are uniform whatever the student says: what differs is the noise.
ALONE = (*NOISE, "release.clip=1e-9", "student.init=same")
PREDICT = Predict()


def ask(worker, *steps, client=0, round=1, phase="learn"):
    return worker.perform(Assignment(client, round, phase, (*steps,))).values


def labels(worker, step=PREDICT, **when):
    return ask(worker, step, **when)[step.key]


NAMED = Predict(answer="a")


def test_the_same_answer_has_the_same_noise_in_another_round(small):
    worker = Worker(small(*NOISE))
    first = labels(worker, NAMED)
    assert not torch.equal(first, labels(Worker(small()), NAMED))
    assert torch.equal(labels(worker, NAMED, round=2), first)
    assert torch.equal(labels(worker, NAMED, round=2, phase="receive"), first)
    assert torch.equal(labels(Worker(small(*NOISE)), NAMED, round=7), first)


def test_the_name_of_an_answer_alone_decides_its_noise(small):
    """Not what the student is like: whether it has changed may be private."""
    worker = Worker(small(*ALONE))
    first = labels(worker, NAMED)
    ask(worker, Fit(epochs=0.1))
    assert torch.equal(labels(worker, NAMED), first)
    assert (labels(worker, Predict(answer="b")) != first).any(1).all()


def test_an_answer_without_a_name_is_a_new_one(small):
    worker = Worker(small(*ALONE))
    first = labels(worker)
    assert (labels(worker, round=2) != first).any(1).all()
    assert (labels(worker, phase="receive") != first).any(1).all()
    both = ask(worker, Predict(), Predict(key="again"))
    assert (both["soft_labels"] != both["again"]).any(1).all()


def test_two_clients_never_share_noise(small):
    worker = Worker(small(*ALONE))
    one, other = labels(worker, client=0), labels(worker, client=1)
    assert (one != other).any(1).all()
    both = np.stack([one.numpy().ravel(), other.numpy().ravel()])
    assert abs(np.corrcoef(both)[0, 1]) < 5 / math.sqrt(one.numel())


def test_another_seed_has_other_noise(small):
    one, other = (labels(Worker(small(*ALONE, f"seed={seed}"))) for seed in (0, 1))
    assert (one != other).any(1).all()


def test_another_world_has_other_noise(small):
    one, other = (labels(Worker(small(*ALONE), world=world)) for world in (0, 1))
    assert (one != other).any(1).all()


def test_drawn_labels_are_drawn_once_too(small):
    worker = Worker(small("release.mechanism=sample", "release.clip=1e-9"))
    assert torch.equal(labels(worker, NAMED), labels(worker, NAMED, round=2))
    assert not torch.equal(labels(worker, NAMED), labels(worker, NAMED, client=1))


def test_one_release_is_made_for_all_epochs_of_distillation(small, tmp_path, monkeypatch):
    made = []

    def counting(*given):
        made.append(release(*given))
        return made[-1]

    monkeypatch.setattr("fedkd.engine.sending.release", counting)
    run(small("strategy.name=uniform", "strategy.distill_epochs=4", *NOISE), tmp_path / "run")
    assert len(made) == 2 * 4  # rounds, clients


@pytest.mark.parametrize("on", ["common", Samples(torch.randn(5, 1, 8, 8))], ids=["common", "sent"])
def test_labels_of_any_samples_but_a_clients_own_are_released(on, small):
    worker, plain = Worker(small(*NOISE)), Worker(small())
    step = Predict(on=on)
    one, other = labels(worker, step), labels(plain, step)
    assert (one != other).any(1).all()
    (line,) = worker.perform(Assignment(0, 1, "learn", (step,))).releases
    assert (line["mechanism"], line["items"]) == ("gaussian", len(one))
    assert line["rho"] == pytest.approx(len(one) * 2 / (2 * 0.1**2))


def test_answers_about_a_clients_own_samples_are_not_changed_and_have_no_mechanism(small):
    worker, plain = Worker(small(*NOISE)), Worker(small())
    for line in worker.perform(Assignment(0, 1, "learn", (Predict(on="own"),))).releases:
        assert "mechanism" not in line
    for step in (Predict(on="own"), Predict(on="private", per="class")):
        one, other = labels(worker, step), labels(plain, step)
        if step.per == "class":
            one, other = one["mean"], other["mean"]
        assert torch.equal(one, other)


def test_what_is_tried_out_is_measured_as_it_is(small):
    step = Predict(key="measure_labels")
    tried = Assignment(0, 1, "learn", (), (step,))
    one, other = (Worker(e).perform(tried).values for e in (small(*NOISE), small()))
    assert torch.equal(one[step.key], other[step.key])


def test_who_asks_for_logits_gets_logarithms_of_what_is_released(small):
    worker = Worker(small(*ALONE))
    one, other = labels(worker), labels(worker, Predict(output="logits"))
    there = one > 0
    assert torch.allclose(other.exp()[there], one[there])
    assert other[~there].exp().max() < 1e-7
    assert torch.isfinite(other).all()
