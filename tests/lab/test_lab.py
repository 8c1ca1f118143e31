"""Attacks on all that clients send: what is attacked, what is found, what is found of nothing."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import texts
import torch

from fedkd import registry, run
from fedkd.data.federated import load
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.lab import membership, models
from fedkd.lab.attack import attack
from fedkd.lab.findings import ALL, LABELS, LAST, Evidence, judged, strongest
from fedkd.lab.likelihood_ratios import lira, lira_offline
from fedkd.lab.membership import infer_members
from fedkd.lab.worlds import WatchedWorker, play, quiet
from fedkd.privacy.guarantees import guarantee
from fedkd.records import MEMBERSHIP
from fedkd.simulations.shipped import experiment_text
from fedkd.work import Assignment, Fit, Predict

QUICK = ("rounds=1", "data.clients=2", "data.samples_per_client=20", "training.local_epochs=1")
WHOLE = {"confidence"}
SOFT = {"kernel regression"}
MEANS = {"tracing", "distance to the mean", "count"}
ROWS = {"nearest row (members are the rows)"}
HEADLESS = {"confidence under the server's own head"}
ATTACKED = {
    **dict.fromkeys(
        (
            *("fedavg", "fedavg-ft", "fedprox", "fedgkd", "fedbn", "ditto", "feddf", "fml"),
            *(
                "fedkd-svd",
                "fedntd",
                "moon",
                "feddyn",
                "scaffold",
                "fedlc",
                "fedrod",
                "dense",
                "apfl",
            ),
        ),
        ("Share parameters", WHOLE, "parameters"),
    ),
    **dict.fromkeys(
        ("fedbabu", "fedmrl", "fedper", "fedrep", "lg-fedavg"),
        ("Share parameters", HEADLESS, None),
    ),
    **dict.fromkeys(
        ("uniform", "dsfl", "knfu", "ktpfl", "comet", "scarlet", "selectivefd", "swing"),
        ("Predict soft_labels", SOFT, "soft labels"),
    ),
    "cfd": (
        "Predict soft_labels",
        SOFT | {"label-only: agreement of the nearest"},
        "soft labels",
    ),
    "fedmd": ("Predict logits", SOFT, "logits"),
    "feddistill": ("Predict class_logits", MEANS, "counts"),
    "fedproto": ("Represent prototypes", MEANS, "counts"),
    "fedtgp": ("Represent prototypes", MEANS, "counts"),
    "fedgen": ("Share parameters", WHOLE, "parameters"),
    "fedhkd": ("Represent features", MEANS, "counts"),
    "fedgh": ("Represent representations", MEANS, "counts"),
    "fedcache": ("Represent hashes", ROWS, "labels"),
    "fedgkt": ("Represent representation", ROWS, "labels"),
    "fedd2s": ("Represent fc2", ROWS, "labels"),
}
"""What each method sends, the attacks on it, and what label distributions are read from."""
BESIDE = {
    "fedcache": {"Predict logits": set()},
    "fedgen": {"Count label_counts": {"count"}},
    "fedhkd": {"Predict class_labels": MEANS, "Share parameters": WHOLE},
    "selectivefd": {"Select selected": {"selected among the nearest"}},
}
"""What a method sends beside it, and the attacks on that."""
READ_BESIDE = {"fedcache": {"logits"}, "fedgen": {"counts"}, "fedhkd": {"parameters"}}
"""What label distributions are read from, of what a method sends beside."""


def bare(attack):
    """The name of an attack without the ratio that was taken."""
    return attack.partition(", LiRA")[0]


def test_every_method_that_sends_something_is_attacked():
    assert {*registry.names("strategies")} == {*ATTACKED, "local", "selfdistill"}


@pytest.mark.parametrize(
    "method",
    ["fedavg", "fedper", "uniform", "cfd", "scarlet", "fedmd", "fedproto", "fedgkt", "fedd2s"],
)
def test_what_is_attacked_follows_from_what_is_sent(small, method):
    place, attacks, how = ATTACKED[method]
    found = attack(small(*QUICK, f"strategy.name={method}"), 4)
    assert found.places == [place]
    assert {(one.place, one.window, bare(one.attack)) for one in members_of(found)} == {
        (place, LAST, name) for name in attacks
    }
    assert {guess.how for guess in found.labels} == ({how} if how else set())
    assert found.records == 40


def test_nothing_is_attacked_where_nothing_is_sent(small):
    found = attack(small(*QUICK, "strategy.name=local"), 4)
    assert (found.places, found.findings, found.labels) == ([], [], [])
    assert found.shadows == 1


def test_all_rounds_are_attacked_and_each_place_shows_its_strongest_attack(small):
    rounds = ("rounds=3", *QUICK[1:], "strategy.name=fedproto")
    found = attack(small(*rounds), 4)
    assert {one.window for one in found.findings} == {LAST, ALL}
    shown = strongest(found.findings)
    assert {(one.place, one.window, one.target) for one in shown} == {
        ("Represent prototypes", window, target)
        for window in (LAST, ALL)
        for target in (MEMBERSHIP, LABELS)
    }
    assert len(shown) == 4
    for one in shown[:2]:
        same = [each for each in members_of(found) if each.window == one.window]
        assert one.auc == max(each.auc for each in same)
        assert one.epsilon == max(each.epsilon or 0 for each in same)


def test_a_listener_is_shown_what_clients_send(small):
    experiment, seen = quiet(small("strategy.name=uniform", "rounds=1")), []
    play(WatchedWorker(experiment, lambda worker, sent: seen.append(sent)))
    worker = Worker(experiment)
    assert [sent.client for sent in seen] == [0, 1, 2, 3]
    for sent in seen:
        reply = worker.perform(Assignment(sent.client, 1, "learn", (Fit(), Predict())))
        assert sent.place == "Predict soft_labels"
        assert torch.equal(sent.value, reply.values["soft_labels"])


def test_the_last_rounds_knowledge_is_not_used_any_more(small, monkeypatch):
    method, rounds = registry.load("strategies", "uniform"), []
    fuse = method.fuse

    def counted(self, round, replies):
        rounds.append(round)
        fuse(self, round, replies)

    monkeypatch.setattr(method, "fuse", counted)
    worker = WatchedWorker(
        quiet(small("strategy.name=uniform", "rounds=3")), lambda worker, sent: None
    )
    play(worker)
    assert rounds == [1, 2]


# --- numbers ------------------------------------------------------------------------------------


def test_the_offline_ratio_is_the_standardised_score_by_hand():
    scores = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 9.0], [9.0, 1.0]])
    members = np.array([[0, 0], [0, 0], [0, 1], [1, 1]], dtype=bool)
    found = lira_offline(scores, members, few=2)
    # Of the first record under the last run: the others without it have 0, 2 and 4.
    assert found[3, 0] == pytest.approx((9 - 2) / 2)
    # One run alone has no deviation, and gives no evidence.
    assert found[0, 1] == 0
    assert np.isfinite(found).all()


def test_the_ratio_of_a_run_does_not_know_its_own_members():
    draw = np.random.default_rng(0)
    scores, members = draw.normal(size=(8, 50)), draw.random((8, 50)) < 0.5
    other = members.copy()
    other[3] = ~members[3]
    for ratio in (lira, lira_offline):
        assert np.allclose(ratio(scores, members)[3], ratio(scores, other)[3])


@pytest.mark.slow
def test_intervals_hold_for_all_attacks_together():
    """Of 30 audits of 8 useless attacks each, nearly all have 0.5 in all of their intervals."""
    draw, missed = np.random.default_rng(0), 0
    for _ in range(30):
        evidence = []
        for number in range(8):
            members = [draw.random((4, 30)) < 0.5 for _ in range(4)]
            scores = [draw.normal(size=(4, 30)) for _ in range(4)]
            target = LABELS if number else MEMBERSHIP
            evidence.append(Evidence("place", LAST, target, "", scores, members))
        findings = judged(evidence, 1e-5)
        missed += any(not one.auc.low <= 0.5 <= one.auc.high for one in findings)
        assert findings[0].epsilon < 0.5
    assert missed <= 5


# --- label distributions ------------------------------------------------------------------------


def test_labels_that_are_sent_along_tell_the_distribution_exactly(small):
    (guess,) = attack(small(*QUICK, "strategy.name=fedgkt"), 4).labels
    assert guess.l1 == pytest.approx(0, abs=1e-12)
    assert (guess.top, guess.l1_others > 0.1) == (1, True)


def test_the_same_guess_for_every_client_tells_no_label_distribution(small):
    found = attack(small(*QUICK, *TRUSTED["central"]), 4)
    (one,) = [
        each
        for each in found.findings
        if (each.place, each.target) == ("Aggregate soft_labels", LABELS)
    ]
    assert one.auc == (0.5, 0.5, 0.5)


def test_clients_that_are_alike_are_told_by_guessing_too(small):
    alike = ("data.partition=iid", "data.clients=4", "data.samples_per_client=200", "rounds=1")
    guesses = attack(small("strategy.name=fedavg", "training.local_epochs=6", *alike), 4).labels
    assert guesses[0].l1 < 0.35
    assert guesses[0].l1_others < 0.35


# --- membership ---------------------------------------------------------------------------------

OVERFITTED = (
    *("strategy.name=fedavg", "rounds=1", "data.partition=iid", "data.clients=2"),
    *("data.samples_per_client=40", "training.local_epochs=40", "training.lr=0.005"),
)


def members_of(found):
    return [one for one in found.findings if one.target == MEMBERSHIP]


def test_members_of_overfitted_clients_are_told(small):
    told = []
    found = attack(small(*OVERFITTED), 8, lambda shadow, of: told.append((shadow, of)))
    assert told == [(n, 8) for n in range(1, 9)]
    assert (found.shadows, found.records) == (8, 80)
    best = max(members_of(found), key=lambda one: one.auc)
    assert best.auc.value > 0.65
    rate, low, high = best.tpr["0.1"]
    assert 0.1 < low < rate < high
    assert 0.5 < best.auc.low < best.auc.value < best.auc.high
    # 320 scores of others: too few for rarer false positives.
    assert best.refused == {"0.001": pytest.approx(0.32, 0.2), "0.01": pytest.approx(3.2, 0.2)}
    assert best.epsilon > 0
    assert best.delta == 1e-5


def test_students_that_never_trained_tell_nothing(small):
    found = attack(small(*OVERFITTED, "training.local_epochs=0"), 8)
    for one in members_of(found):
        assert one.auc.value == pytest.approx(0.5, abs=0.06)
        assert one.epsilon == 0


DROWNED = (*OVERFITTED[:-2], "training.local_epochs=10", "training.dp.noise_multiplier=20")


def test_noise_that_drowns_the_data_is_not_cancelled_between_shadows(small):
    """Each shadow draws its own: shared noise would leave the data bare in every comparison."""
    for one in members_of(attack(small(*DROWNED), 8)):
        assert one.auc.value == pytest.approx(0.5, abs=0.1)
        assert one.epsilon == 0


# --- what a trusted server makes ----------------------------------------------------------------

NOISY = ("release.mechanism=gaussian", "release.clip=10", "release.scale=0.1")
TRUSTED = {
    "average": ("strategy.name=fedavg", "strategy.clipping_norm=1", "strategy.noise_multiplier=1"),
    "central": ("strategy.name=uniform", *NOISY, "release.trust=central"),
    "secure-aggregation": ("strategy.name=fedmd", *NOISY, "release.trust=secure-aggregation"),
    "votes": (
        "strategy.name=uniform",
        "release.mechanism=votes",
        "release.scale=1",
        "release.trust=central",
    ),
}


@pytest.mark.parametrize("way", TRUSTED)
def test_what_a_trusted_server_makes_is_what_others_attack(small, way):
    """Behind secure aggregation it is all that anybody sees."""
    found = attack(small(*QUICK, *TRUSTED[way]), 4)
    made = [place for place in found.places if place.startswith("Aggregate ")]
    assert len(made) == 1
    assert {finding.place for finding in found.findings} >= {*made}
    sent = [place for place in found.places if place not in made]
    assert len(sent) == (0 if way == "secure-aggregation" else 1)


@pytest.mark.parametrize("way", ["average", "central", "votes"])
def test_worlds_share_no_noise_of_the_server(small, way):
    """Else comparing them would cancel it."""
    heavy = {"average": "strategy.noise_multiplier=1e6"}.get(way, "release.scale=1e6")
    experiment = quiet(small(*QUICK, *TRUSTED[way], heavy))

    def made(world):
        values = []

        def listener(worker, sent):
            if sent.aggregate:
                value = sent.value
                values.extend(value.values() if isinstance(value, dict) else [value])

        play(WatchedWorker(experiment, listener, world=world))
        return torch.cat([value.flatten() for value in values])

    assert made(1).equal(made(1))
    apart = torch.corrcoef(torch.stack([made(1), made(2)]))[0, 1]
    assert abs(float(apart)) < 0.2


@pytest.mark.parametrize("way", ["average", "central"])
def test_noise_of_the_server_that_drowns_the_data_leaves_nothing_to_attack(small, way):
    heavy = {"average": "strategy.noise_multiplier=1e4"}.get(way, "release.scale=1e4")
    found = attack(small(*QUICK, *TRUSTED[way], heavy), 8)
    aucs = [one.auc for one in found.findings if one.place.startswith("Aggregate")]
    aucs = [auc for auc, one in zip(aucs, found.findings) if one.target == MEMBERSHIP]
    assert aucs
    assert all(low <= 0.5 <= high for _, low, high in aucs)


def test_hard_labels_alone_are_attacked_too(small):
    release = ("strategy.name=uniform", "release.mechanism=argmax")
    found = attack(small(*QUICK, *release), 4)
    assert {bare(one.attack) for one in members_of(found)} == {
        "kernel regression",
        "label-only: agreement of the nearest",
    }


NULL = ("rounds=2", "data.clients=3", "data.samples_per_client=30", "training.local_epochs=8")


def check_null(experiment):
    """Nobody was trained on the halves that are guessed: every attack is a coin's toss."""
    found = infer_members(experiment, 8, others=True)
    findings = judged(found.evidence, 1e-5)
    assert findings
    for one in findings:
        assert one.auc.low <= 0.5 <= one.auc.high, one
        assert one.auc.value == pytest.approx(0.5, abs=0.12)
        assert one.epsilon < 0.5


@pytest.mark.parametrize(
    "method",
    ["uniform", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fedavg", "fedproto"))],
)
def test_membership_that_has_nothing_to_do_with_what_is_sent_is_not_told(small, method):
    check_null(small(*NULL, f"strategy.name={method}"))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(ATTACKED))
def test_the_null_is_a_coins_toss_for_every_method_and_place(small, method):
    check_null(small(*NULL, f"strategy.name={method}", "seed=1"))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(ATTACKED))
def test_every_method_is_attacked_at_every_place(small, method):
    place, attacks, how = ATTACKED[method]
    found = attack(small(*QUICK, f"strategy.name={method}"), 4)
    wanted = {place: attacks, **BESIDE.get(method, {})}
    assert found.places == [*wanted]
    attacked = {
        place: {bare(one.attack) for one in members_of(found) if one.place == place}
        for place in found.places
    }
    assert attacked == wanted
    read = ({how} if how else set()) | READ_BESIDE.get(method, set())
    assert {guess.how for guess in found.labels} == read


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [20, 200])
def test_an_audit_of_dp_sgd_proves_no_more_than_its_formal_epsilon(sigma, tmp_path):
    overrides = ("strategy.name=fedavg", "rounds=1", "seed=3")
    noise = f"training.dp.noise_multiplier={sigma}"
    experiment = Experiment.from_toml(experiment_text("quickstart"), (*overrides, noise))
    formal = guarantee(run(experiment, tmp_path / "run").releases, experiment)
    assert formal.epsilon < 0.4
    # The most that epsilon leaves: hits are at most e^epsilon times false alarms, and the other
    # way round (Wasserman & Zhou 2010).
    most = 0.5 + math.tanh(formal.epsilon / 2) / 2
    for one in members_of(attack(experiment, 16)):
        assert one.epsilon <= formal.epsilon
        assert one.auc.low <= most
        assert one.auc.high >= 0.5


def test_the_same_attack_twice_finds_the_same(small):
    experiment = small(*QUICK, "strategy.name=fedavg")
    assert attack(experiment, 4) == attack(experiment, 4)


def test_without_a_number_there_are_as_many_shadows_as_time_allows(small, monkeypatch):
    experiment = small(*QUICK, "strategy.name=fedavg")
    monkeypatch.setattr(membership, "SECONDS", 0.0)
    assert infer_members(experiment).shadows == membership.FEWEST
    monkeypatch.setattr(membership, "SECONDS", 1e9)
    monkeypatch.setattr(membership, "USUAL", 5)
    assert infer_members(experiment).shadows == 5


def test_a_machine_that_becomes_slow_meanwhile_gets_fewer_shadows(small, monkeypatch):
    """Two shadows of a second each, then one of five minutes: there is time for no more."""
    clock = iter([0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 302.0, 302.0, 303.0])
    monkeypatch.setattr(membership, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    told = []
    experiment = small(*QUICK, "strategy.name=fedavg")
    found = infer_members(experiment, done=lambda *counts: told.append(counts))
    assert found.shadows == membership.FEWEST == 4
    assert told == [(1, 16), (2, 16), (3, 4), (4, 4)]


def test_clients_that_never_take_part_are_left_out(small):
    found = infer_members(small(*QUICK, "strategy.name=fedavg", "participation=0.5"), 4)
    assert found.records == 20


def test_copies_of_a_record_are_one(small):
    planted = ("canary.secrets=1", "canary.repeats=[7]", "canary.length=2")
    experiment = small(*QUICK, "strategy.name=fedavg", *planted)
    data = load(experiment)
    assert data.sizes().tolist() == [20 + 14, 20 + 14]
    found = infer_members(experiment, 4)
    distinct = [len(np.unique(data.private(n).inputs.flatten(1), axis=0)) for n in (0, 1)]
    assert found.records == sum(distinct) <= 44
    # Two labels, seven times each: what is in or out together is up to seven records.
    assert {one.group for one in found.evidence} == {7}


@pytest.mark.parametrize("method", ["fedavg", "swing"])
def test_rows_of_text_are_records_with_and_without_planted_secrets(tmp_path, method, monkeypatch):
    monkeypatch.setattr(models, "PROXY_EPOCHS", 1)
    experiment = texts.experiment(tmp_path, "rounds=1", "strategy.name=swing")
    if method == "fedavg":
        tables = experiment.model_dump(mode="json", exclude_none=True)
        plain = {"release": {}, "canary": {}, "strategy": {"name": method}}
        experiment = Experiment.from_dict(tables | plain)
    found = attack(experiment, 4)
    rows = sum(len(np.unique(load(experiment).private(n).inputs, axis=0)) for n in range(3))
    assert found.records == rows
    assert all(0 <= one.auc.value <= 1 for one in found.findings)
    (guess,) = found.labels
    assert guess.how == {"fedavg": "parameters", "swing": "soft labels"}[method]
    assert 0 < guess.l1 < 2


def test_labels_over_candidates_are_attacked_as_labels_over_all_words(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "PROXY_EPOCHS", 1)
    overrides = ("rounds=1", "strategy.name=swing", "release.candidates=3")
    found = attack(texts.experiment(tmp_path, *overrides), 4)
    assert found.labels[0].how == "soft labels"
    assert found.records > 0


def test_too_few_shadows_are_one_line(small):
    with pytest.raises(FedkdError, match="--shadows 3 is too few"):
        infer_members(small(*QUICK), 3)


def test_a_mistake_in_the_experiment_is_one_line(tmp_path):
    experiment = texts.experiment(tmp_path, "rounds=1")
    tables = experiment.model_dump(mode="json", exclude_none=True)
    wrong = Experiment.from_dict(
        tables | {"release": {}, "canary": {}, "strategy": {"name": "fedgkt"}}
    )
    with pytest.raises(FedkdError, match="in text only tokens have one"):
        attack(wrong, 4)
