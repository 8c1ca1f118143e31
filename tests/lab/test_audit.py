"""Audits: what a ledger guarantees, what exposures prove, what attacks find in what is sent."""

import math

import pytest
import texts
import torch

from fedkd import run
from fedkd.data.federated import load
from fedkd.experiment import Experiment
from fedkd.lab import audit
from fedkd.lab.bounds import audited_epsilon, audited_epsilon_from_exposure
from fedkd.privacy.costs import described
from fedkd.privacy.epsilons import PrivateSteps, gaussian_epsilon, training_epsilon
from fedkd.privacy.guarantees import guarantee
from fedkd.privacy.releases import Release
from fedkd.results import Run

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
    found = guarantee([line(round=round, **priced) for round in (1, 2)], experiment)
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
    assert guarantee(lines, Experiment.from_dict(tables)).epsilon > 0
    private = tables | {"data": {"statistics": "private"}}
    found = guarantee(lines, Experiment.from_dict(private))
    assert found.epsilon is None
    assert found.rho is None
    assert found.text().startswith("none: data.statistics = 'private'")


def test_the_same_answer_again_is_free_and_a_new_one_is_not():
    once = guarantee([gaussian(0.5)], Experiment())
    again = guarantee([gaussian(0.5), gaussian(0.5, round=2, fresh=False)], Experiment())
    twice = guarantee([gaussian(0.5), gaussian(0.5, round=2)], Experiment())
    assert once.epsilon == again.epsilon == pytest.approx(gaussian_epsilon(1.0, 1e-5))
    assert twice.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(2), 1e-5))


def test_clients_do_not_add_up_and_the_worst_one_counts():
    lines = [gaussian(0.5, client=0), gaussian(2.0, client=1), gaussian(0.5, client=2)]
    found = guarantee(lines, Experiment())
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
    found = guarantee([gaussian(0.5), broken], Experiment())
    assert found.epsilon is None
    assert found.text().startswith("none: ")
    assert why in found.text()


DP = Experiment.from_toml("[training.dp]\nnoise_multiplier = 2.0\ndelta = 1e-6")


def test_private_training_is_composed_for_each_client_over_all_its_lines():
    trained = [(0, 1, [[0.1, 20.0]]), (1, 1, [[0.1, 20.0], [0.1, 10.0]]), (1, 2, [[0.2, 30.0]])]
    lines = [line(client, round) | {"dp_training": steps} for client, round, steps in trained]
    found = guarantee(lines, DP)
    steps = [PrivateSteps(2.0, 0.1, 30), PrivateSteps(2.0, 0.2, 30)]
    assert found.epsilon == pytest.approx(training_epsilon(steps, 1e-6))
    assert (found.unit, found.delta, found.client) == ("record", 1e-6, 1)


def test_private_training_does_not_cover_answers_about_private_samples():
    lines = [line(step="Represent", on="private") | {"dp_training": [[0.1, 20.0]]}]
    assert guarantee(lines, DP).text() == ("none: answers about private samples leave the client")


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
