"""Audits: what a ledger guarantees, what exposures prove, what attacks find in what is sent."""

import math

import numpy as np
import pytest
import texts
import torch

from fedkd import registry, run
from fedkd.data.federated import load
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy import audit
from fedkd.privacy.accounting import (
    PrivateSteps,
    Release,
    described,
    gaussian_epsilon,
    training_epsilon,
)
from fedkd.privacy.attacks import audited_epsilon, audited_epsilon_from_exposure
from fedkd.privacy.lab import models
from fedkd.privacy.lab.labels import infer_labels
from fedkd.privacy.lab.membership import infer_members
from fedkd.privacy.lab.worlds import knowledge, quiet
from fedkd.results import Run
from fedkd.work import Assignment, Fit, Predict
from simulations.shipped import experiment_text

# --- the ledger ---------------------------------------------------------------------------------


def line(client=0, round=1, step="Predict", **more):
    """A line of the ledger as a run's folder has it."""
    release = Release(round=round, client=client, step=step, key="soft_labels", items=100, **more)
    return release.to_dict()


def gaussian(rho, **more):
    return line(mechanism="gaussian", scale=1.0, rho=rho, **more)


def test_gaussian_noise_on_labels_is_one_gaussian_by_hand():
    experiment = Experiment.from_toml("[release]\nmechanism = 'gaussian'\nscale = 4.0")
    table = experiment.release
    priced = described(table, torch.ones(50), 10, over_candidates=False)
    # Unclipped soft labels are sqrt 2 apart at most, each of 50 items in 2 rounds.
    found = audit.guarantee([line(round=round, **priced) for round in (1, 2)], experiment)
    ratio = math.sqrt(2 * 50) * math.sqrt(2) / 4
    assert found.epsilon == pytest.approx(gaussian_epsilon(ratio, table.delta))
    assert (found.unit, found.delta, found.client) == ("client", table.delta, 0)


@pytest.mark.parametrize(
    "tables",
    [
        {"release": {"mechanism": "gaussian", "scale": 4.0}},
        {"training": {"dp": {"noise_multiplier": 1.0}}},
    ],
)
def test_statistics_of_clients_own_samples_leave_no_guarantee(tables):
    lines = [gaussian(0.5) | {"dp_training": [[0.1, 10]]}]
    assert audit.guarantee(lines, Experiment.from_dict(tables)).epsilon > 0
    private = tables | {"data": {"statistics": "private"}}
    found = audit.guarantee(lines, Experiment.from_dict(private))
    assert found.epsilon is None
    assert found.rho is None
    assert found.text().startswith("none: data.statistics = 'private'")


def test_the_same_answer_again_is_free_and_a_new_one_is_not():
    once = audit.guarantee([gaussian(0.5)], Experiment())
    again = audit.guarantee([gaussian(0.5), gaussian(0.5, round=2, fresh=False)], Experiment())
    twice = audit.guarantee([gaussian(0.5), gaussian(0.5, round=2)], Experiment())
    assert once.epsilon == again.epsilon == pytest.approx(gaussian_epsilon(1.0, 1e-5))
    assert twice.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(2), 1e-5))


def test_clients_do_not_add_up_and_the_worst_one_counts():
    lines = [gaussian(0.5, client=0), gaussian(2.0, client=1), gaussian(0.5, client=2)]
    found = audit.guarantee(lines, Experiment())
    assert found.client == 1
    assert found.epsilon == pytest.approx(gaussian_epsilon(2.0, 1e-5))


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (line(), "labels are released without noise"),
        (line(step="Share"), "parameters leave the client without noise"),
        (line(mechanism="argmax"), "the likeliest class is released without noise"),
        (gaussian(1.0, scores_private=True), "scores come from private data"),
        (gaussian(1.0, redrawn=True), "noise is redrawn"),
        (line(mechanism="sample"), "logits that are not clipped"),
    ],
)
def test_one_line_that_breaks_a_rule_leaves_nothing(broken, why):
    found = audit.guarantee([gaussian(0.5), broken], Experiment())
    assert found.epsilon is None
    assert found.text().startswith("none: ")
    assert why in found.text()


DP = Experiment.from_toml("[training.dp]\nnoise_multiplier = 2.0\ndelta = 1e-6")


def test_private_training_is_composed_for_each_client_over_all_its_lines():
    trained = [(0, 1, [[0.1, 20.0]]), (1, 1, [[0.1, 20.0], [0.1, 10.0]]), (1, 2, [[0.2, 30.0]])]
    lines = [line(client, round) | {"dp_training": steps} for client, round, steps in trained]
    found = audit.guarantee(lines, DP)
    steps = [PrivateSteps(2.0, 0.1, 30), PrivateSteps(2.0, 0.2, 30)]
    assert found.epsilon == pytest.approx(training_epsilon(steps, 1e-6))
    assert (found.unit, found.delta, found.client) == ("record", 1e-6, 1)


def test_private_training_does_not_cover_answers_about_private_samples():
    lines = [line(step="Represent", on="private") | {"dp_training": [[0.1, 20.0]]}]
    assert audit.guarantee(lines, DP).text() == (
        "none: answers about private samples leave the client"
    )


# --- planted secrets ----------------------------------------------------------------------------

BITS, HIGH = 10.0, [10.0] * 30


def planted(folder, *, sent=("Predict",), dp=0.0, public="none", **table):
    experiment = Experiment.from_dict(
        {"training": {"dp": {"noise_multiplier": dp, "delta": 1e-3}}}
        | {"canary": {"secrets": 1, "repeats": [8], "public": public, **table}}
    )
    run = Run.at(experiment, folder).begin(experiment)
    run.append_round({"round": 1}, releases=[line(step=step) for step in sent])
    run.write_canaries({"log2_space": BITS, "public": public})
    return run


def test_a_bound_is_about_what_leaves_clients_and_what_is_made_of_it(tmp_path):
    bits = {"teacher": HIGH, "released": HIGH, "fused": HIGH, "student": [5.0] * 30}
    found = audit.proved(planted(tmp_path), bits, 8)
    assert found == {
        place: audited_epsilon_from_exposure(bits[place], BITS, 1e-5, 0.975)
        for place in ("released", "student")
    }
    assert found["released"] > found["student"] > 0


def test_parameters_that_are_sent_are_the_teachers(tmp_path):
    run = planted(tmp_path, sent=("Share",))
    assert set(audit.proved(run, {"teacher": HIGH, "student": HIGH}, 8)) == {"teacher", "student"}


def test_one_place_alone_has_all_the_confidence(tmp_path):
    found = audit.proved(planted(tmp_path), {"released": HIGH}, 8)
    assert found == {"released": audited_epsilon_from_exposure(HIGH, BITS, 1e-5, 0.95)}


def test_epsilon_is_stated_at_the_delta_of_private_training_where_there_is_any(tmp_path):
    found = audit.proved(planted(tmp_path, dp=1.0), {"released": HIGH}, 8)
    assert found == {"released": audited_epsilon_from_exposure(HIGH, BITS, 1e-3, 0.95)}


def test_shown_secrets_prove_something_only_of_a_clients_own_release_against_clean_ones(tmp_path):
    run, bits = planted(tmp_path, public="exact"), {"released": HIGH, "student": HIGH}
    clean = {"released": [n / 10 for n in range(30)], "student": [n / 10 for n in range(30)]}
    assert audit.proved(run, bits, 8) == {}
    found = audit.proved(run, bits, 8, clean)
    assert found == {"released": audited_epsilon(HIGH, clean["released"], 1e-5, 0.95)}


@pytest.mark.parametrize(
    "table", [{"control": True}, {"estimator": "extrapolation"}, {"spread": 2}]
)
def test_exposure_that_proves_nothing_gives_no_bound(tmp_path, table):
    assert audit.proved(planted(tmp_path, **table), {"released": HIGH}, 8) == {}


def test_a_single_copy_is_one_clients_however_copies_are_spread(tmp_path):
    assert audit.proved(planted(tmp_path, spread=2), {"released": HIGH}, 1)


# --- what is sent -------------------------------------------------------------------------------

LABELS = {
    "fedavg": "parameters",
    "uniform": "soft labels",
    "fedmd": "logits",
    "feddistill": "counts",
    "fedproto": "counts",
    "fedd2s": "labels",
    "fedper": None,
    "local": None,
}
MODELS = {
    "fedavg": "the parameters it sent",
    "uniform": "a student distilled from the soft labels it sent",
    "fedmd": "a student distilled from the logits it sent",
    **dict.fromkeys(("feddistill", "fedproto", "fedd2s", "fedper", "local")),
}
QUICK = ("rounds=1", "data.clients=2", "data.samples_per_client=20", "training.local_epochs=1")


@pytest.mark.parametrize("method", LABELS)
def test_what_is_attacked_follows_from_what_is_sent(small, method, monkeypatch):
    monkeypatch.setattr(models, "PROXY_EPOCHS", 1)
    experiment = small(*QUICK, f"strategy.name={method}")
    labels = infer_labels(experiment)
    assert (labels and labels.how) == LABELS[method]
    members = infer_members(experiment, 4)
    assert (members and members.how) == MODELS[method]


def test_knowledge_is_what_clients_send(small):
    experiment = quiet(small("strategy.name=uniform", "rounds=1"))
    heard = knowledge(Worker(experiment))
    worker = Worker(experiment)
    assert sorted(heard) == [0, 1, 2, 3]
    for client, values in heard.items():
        reply = worker.perform(Assignment(client, 1, "learn", (Fit(), Predict())))
        assert list(values) == ["soft_labels"]
        assert torch.equal(values["soft_labels"], reply.values["soft_labels"])


def test_the_last_rounds_knowledge_is_not_used_any_more(small, monkeypatch):
    method, rounds = registry.load("strategies", "uniform"), []
    fuse = method.fuse

    def counted(self, round, replies):
        rounds.append(round)
        fuse(self, round, replies)

    monkeypatch.setattr(method, "fuse", counted)
    knowledge(Worker(quiet(small("strategy.name=uniform", "rounds=3"))))
    assert rounds == [1, 2]


# --- label distributions ------------------------------------------------------------------------


def test_labels_that_are_sent_along_tell_the_distribution_exactly(small):
    found = infer_labels(small(*QUICK, "strategy.name=fedd2s"))
    assert (found.l1, found.top) == (0, 1)
    assert found.l1_others > 0.1


def test_clients_that_are_alike_are_told_by_guessing_too(small):
    alike = ("data.partition=iid", "data.clients=4", "data.samples_per_client=200")
    found = infer_labels(small("strategy.name=fedavg", "training.local_epochs=6", *alike))
    assert found.l1 < 0.35
    assert found.l1_others < 0.35


# --- membership ---------------------------------------------------------------------------------

OVERFITTED = (
    *("strategy.name=fedavg", "rounds=1", "data.partition=iid", "data.clients=2"),
    *("data.samples_per_client=40", "training.local_epochs=40", "training.lr=0.005"),
)


def test_members_of_overfitted_clients_are_told(small):
    told = []
    found = infer_members(small(*OVERFITTED), 8, told.append)
    assert told == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (found.shadows, found.records) == (8, 80)
    assert found.auc > 0.65
    rate, low, high = found.tpr["0.1"]
    assert 0.1 < low < rate < high
    assert 0.5 < found.auc_low < found.auc < found.auc_high
    # 320 scores of others: too few for rarer false positives.
    assert found.refused == {"0.001": pytest.approx(0.32, 0.2), "0.01": pytest.approx(3.2, 0.2)}
    assert found.epsilon > 0
    assert found.delta == 1e-5


def test_students_that_never_trained_tell_nothing(small):
    found = infer_members(small(*OVERFITTED, "training.local_epochs=0"), 8)
    assert found.auc == pytest.approx(0.5, abs=0.06)
    assert found.epsilon == 0


DROWNED = (*OVERFITTED[:-2], "training.local_epochs=10", "training.dp.noise_multiplier=20")


def test_noise_that_drowns_the_data_is_not_cancelled_between_shadows(small):
    """Each shadow draws its own: shared noise would leave the data bare in every comparison."""
    found = infer_members(small(*DROWNED), 8)
    assert found.auc == pytest.approx(0.5, abs=0.1)
    assert found.epsilon == 0


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [20, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_audit_of_dp_sgd_proves_no_more_than_its_formal_epsilon(sigma, seed, tmp_path):
    overrides = ("strategy.name=fedavg", "rounds=1", f"seed={seed}")
    noise = f"training.dp.noise_multiplier={sigma}"
    experiment = Experiment.from_toml(experiment_text("quickstart"), (*overrides, noise))
    formal = audit.guarantee(run(experiment, tmp_path / "run").releases, experiment)
    found = infer_members(experiment, 16)
    assert found.epsilon <= formal.epsilon < 0.4
    assert found.auc == pytest.approx(0.5, abs=0.03)


def test_the_same_attack_twice_finds_the_same(small):
    experiment = small(*QUICK, "strategy.name=fedavg")
    assert infer_members(experiment, 4) == infer_members(experiment, 4)


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
    assert found.group == 7


def test_a_secret_of_labels_is_a_record_for_each_label_of_each_copy(small, tmp_path):
    planted = ("canary.secrets=1", "canary.repeats=[4]", "canary.length=6", "rounds=1")
    done = run(small(*planted, "strategy.name=local"), tmp_path / "run")
    plain = load(small("rounds=1", "strategy.name=local")).sizes()
    more = load(small(*planted, "strategy.name=local")).sizes() - plain
    assert audit.secret_in_records(done, 4) == (24, True)
    assert more.tolist() == [24] * 4


def test_a_line_of_text_may_move_others(tmp_path):
    experiment = texts.experiment(tmp_path, "rounds=1")
    done = Run.at(experiment, tmp_path / "run").begin(experiment)
    done.write_canaries(load(experiment).canaries.to_json())
    assert audit.secret_in_records(done, 8) == (8, False)


@pytest.mark.parametrize("method", ["fedavg", "swing"])
def test_rows_of_text_are_records_with_and_without_planted_secrets(tmp_path, method, monkeypatch):
    monkeypatch.setattr(models, "PROXY_EPOCHS", 1)
    experiment = texts.experiment(tmp_path, "rounds=1", "strategy.name=swing")
    if method == "fedavg":
        tables = experiment.model_dump(mode="json", exclude_none=True)
        plain = {"release": {}, "canary": {}, "strategy": {"name": method}}
        experiment = Experiment.from_dict(tables | plain)
    found = infer_members(experiment, 4)
    rows = sum(len(np.unique(load(experiment).private(n).inputs, axis=0)) for n in range(3))
    assert found.records == rows
    assert 0 <= found.auc <= 1
    labels = infer_labels(experiment)
    assert labels.how == {"fedavg": "parameters", "swing": "soft labels"}[method]
    assert 0 < labels.l1 < 2


def test_labels_over_candidates_are_attacked_as_labels_over_all_words(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "PROXY_EPOCHS", 1)
    overrides = ("rounds=1", "strategy.name=swing", "release.candidates=3")
    experiment = texts.experiment(tmp_path, *overrides)
    assert infer_labels(experiment).how == "soft labels"
    assert infer_members(experiment, 4).records > 0


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
        infer_labels(wrong)
