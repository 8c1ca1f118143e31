"""What leaves the clients of a run: every release is in the ledger, every exposure in its place."""

import math
from collections import Counter

import pytest
import texts
import torch
from lines import Killed, KilledAfter, measured
from torch import nn

from fedkd import FedkdError, check, registry, run
from fedkd.data.federated import load
from fedkd.engine.worker import Worker
from fedkd.exposures import NULL_MEAN
from fedkd.privacy.epsilons import gaussian_epsilon
from fedkd.privacy.guarantees import guarantee
from fedkd.privacy.releases import Release
from fedkd.strategies.base import KnowledgeStrategy
from fedkd.strategies.swing import Swing
from fedkd.summaries import exposure, exposures
from fedkd.work import Predict, Sending

ALL = registry.names("strategies")
SENDERS = ["comet", "dsfl", "fedmd", "knfu", "ktpfl", "swing", "uniform"]
GAUSSIAN = ("release.mechanism=gaussian", "release.scale=0.05", "release.clip=10")
# Teachers that never change: what they answer is answered once.
STILL = ("strategy.name=swing", "training.local_epochs=0")
SECRETS = ("canary.secrets=1", "canary.repeats=[8]", "canary.length=2", "canary.public=exact")
SPACE = math.log2(100)  # two of ten digits, or two labels of ten classes
CLIENTS = range(4)


def places(done):
    """Of each place and observer, its secrets, in the last round."""
    last = max(line["round"] for line in done.exposures)
    found = {}
    for line in done.exposures:
        if line["round"] == last:
            found.setdefault((line["place"], line["observer"]), []).append(line["secret"])
    return found


def by_observer(place, secrets):
    return {(place, observer): found for observer, found in secrets.items()}


OWN = {client: [client] for client in CLIENTS}
OTHERS = {client: [c for c in CLIENTS if c != client] for client in CLIENTS}
EVERYBODY = {None: [*CLIENTS]}

# --- the ledger -----------------------------------------------------------------------------


@pytest.fixture
def small(small):
    """Clients one by one."""
    return lambda *overrides: small("engine.cohort=off", *overrides)


@pytest.fixture
def sent(monkeypatch):
    """What clients were asked to send: a counter of round, client, step and key."""
    found = Counter()
    perform = Worker.perform

    def listening(self, assignment):
        for step in assignment.steps:
            if isinstance(step, Sending):
                found[assignment.round, assignment.client, type(step).__name__, step.key] += 1
        return perform(self, assignment)

    monkeypatch.setattr(Worker, "perform", listening)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_all_that_leaves_a_client_has_a_line(name, small, tmp_path, sent):
    keys = [f"strategy.name={name}", "participation=0.5"]
    keys += ["strategy.every_round=true"] if name == "dense" else []  # else in the last one alone
    done = run(small(*keys), tmp_path / "run")
    lines = Counter((e["round"], e["client"], e["step"], e["key"]) for e in done.releases)
    assert lines == sent
    assert set(lines.values()) <= {1}
    took_part = {(line["round"], n) for line in done.rounds for n in line["participants"]}
    assert {(e["round"], e["client"]) for e in done.releases} == (
        set() if name in ("local", "selfdistill") else took_part
    )
    assert all(e["items"] >= 1 and e["fresh"] and e["mechanism"] == "none" for e in done.releases)
    assert bool(done.releases) == bool(done.summary["bytes_up"])


def test_local_training_releases_nothing(small, tmp_path):
    done = run(small("strategy.name=local"), tmp_path / "run")
    assert done.releases == []
    assert guarantee(done.releases, done.experiment).epsilon == 0


def test_parameters_are_one_item_and_guarantee_nothing(small, tmp_path):
    done = run(small("strategy.name=fedavg", "rounds=1"), tmp_path / "run")
    assert [(e["client"], e["step"], e["key"], e["items"]) for e in done.releases] == [
        (client, "Share", "parameters", 1) for client in CLIENTS
    ]
    formal = guarantee(done.releases, done.experiment)
    assert formal.epsilon is None
    assert formal.why == "none: parameters leave the client without noise"


@pytest.mark.parametrize("name", SENDERS)
def test_a_soft_label_of_every_transfer_sample_is_an_item(name, small, tmp_path):
    done = run(small(f"strategy.name={name}"), tmp_path / "run")
    key = "logits" if name == "fedmd" else "soft_labels"
    assert [(e["round"], e["client"], e["key"], e["items"]) for e in done.releases] == [
        (round, client, key, 80) for round in (1, 2) for client in CLIENTS
    ]
    assert {e["on"] for e in done.releases} == {"transfer"}
    # What is counted as bytes is these items, of ten float32 each.
    for line in done.rounds:
        items = sum(e["items"] for e in done.releases if e["round"] == line["round"])
        assert line["bytes_up"] == items * 10 * 4


def test_items_of_a_text_are_its_tokens(tmp_path):
    experiment = texts.small(tmp_path / "texts", "strategy.name=uniform")
    done = run(experiment, tmp_path / "run")
    tokens = int((load(experiment).transfer().inputs != 0).sum())
    assert [e["items"] for e in done.releases] == [tokens] * 3


def test_a_client_that_is_left_out_has_sent_all_the_same(small, tmp_path, monkeypatch):
    perform = Worker.perform

    def lie(self, assignment):
        reply = perform(self, assignment)
        if assignment.client == 2 and "soft_labels" in reply.values:
            reply.values["soft_labels"][7] *= 2
        return reply

    monkeypatch.setattr(Worker, "perform", lie)
    done = run(small("strategy.name=knfu", "rounds=1"), tmp_path / "run")
    assert done.rounds[0]["participants"] == [0, 1, 3]
    assert [e["client"] for e in done.releases] == [*CLIENTS]


# --- [release] ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SENDERS)
def test_any_method_that_sends_labels_releases_them_by_configuration_alone(name, small, tmp_path):
    rounds = 2 if name == "comet" else 1  # its clients learn from labels of the round before
    keys = (f"strategy.name={name}", f"rounds={rounds}")
    plain = run(small(*keys), tmp_path / "plain")
    done = run(small(*keys, *GAUSSIAN), tmp_path / "run")
    assert done.rounds[0]["left_out"] == []
    assert done.rounds[-1]["own_loss_mean"] != plain.rounds[-1]["own_loss_mean"]
    # Training came before, and is what it was.
    assert done.rounds[0]["local"] == plain.rounds[0]["local"]
    tau = 2 if name == "swing" else 1
    # The furthest that clipped labels of ten classes get: from one class at the top to another.
    top = math.exp(10 / tau)
    square = 2 * ((top - 1) / (top + 9)) ** 2
    for entry in done.releases:
        assert entry["mechanism"] == "gaussian"
        assert (entry["scale"], entry["clip"]) == (0.05, 10)
        assert (entry["temperature_min"], entry["temperature_max"]) == (tau, tau)
        assert entry["rho"] == pytest.approx(80 * square / (2 * 0.05**2))
    formal = guarantee(done.releases, done.experiment)
    assert formal.epsilon == pytest.approx(
        gaussian_epsilon(math.sqrt(rounds * 80 * square) / 0.05, 1e-5)
    )


def test_fedmd_gets_logarithms_of_what_is_released(small, tmp_path, monkeypatch):
    heard = []
    perform = Worker.perform

    def listening(self, assignment):
        reply = perform(self, assignment)
        if "logits" in reply.values:
            heard.append(reply.values["logits"])
        return reply

    monkeypatch.setattr(Worker, "perform", listening)
    run(small("strategy.name=fedmd", "rounds=1", *GAUSSIAN), tmp_path / "run")
    assert len(heard) == 4
    for logits in heard:
        assert torch.allclose(logits.exp().sum(1), torch.ones(80), atol=1e-5)


@pytest.mark.parametrize("name", sorted({*ALL} - {*SENDERS, "cfd", "scarlet"}))
def test_other_methods_refuse_a_release_policy_in_one_line(name, small):
    line = rf"\[release\] is not allowed with strategy\.name = '{name}'"
    with pytest.raises(FedkdError, match=line) as error:
        check(small(f"strategy.name={name}", *GAUSSIAN))
    assert "\n" not in str(error.value)


class Sick(nn.Module):
    def forward(self, inputs):
        return inputs.new_full((len(inputs), 10), torch.nan)


@pytest.fixture
def sick():
    """Overrides with which client 1 has a student whose logits are no numbers."""

    @registry.register("students", "sick")
    def student(shape, classes, norm, width):
        return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes), Sick())

    return "strategy.name=knfu", "student.models=['mlp', 'sick', 'mlp', 'mlp']"


NOISE = {
    "gaussian": GAUSSIAN,
    "laplace": ("release.mechanism=laplace", "release.scale=0.05"),
    "sample": ("release.mechanism=sample", "release.clip=10"),
}


@pytest.mark.parametrize("table", NOISE.values(), ids=NOISE)
def test_under_noise_nobody_sees_that_a_student_has_diverged(table, sick, small, tmp_path):
    """Neither by its labels nor by its loss: who is left out would tell of private data."""
    done = run(small(*sick, *table, *SECRETS), tmp_path / "run")
    for line in done.rounds:
        assert line["participants"] == [*CLIENTS]
        assert line["left_out"] == []
    lost = [e for e in done.clients if e["client"] == 1 and e["stage"] == "local"]
    assert [e["train_loss"] for e in lost] == [None, None]
    assert done.warnings == [
        "client 1: train_loss is nan; the client stays, as leaving it out would tell of its data "
        "past the noise",
        "round 1: 1 of 4 clients' students, client 1's for one, answer with NaN; such an answer "
        "counts as wrong, and as no loss",
    ]
    formal = guarantee(done.releases, done.experiment)
    assert formal.epsilon is not None


def test_under_dp_sgd_one_record_does_not_make_a_client_leave(small, tmp_path, monkeypatch):
    """Nor its student one that is not finite."""
    samples = Worker.samples

    def poisoned(self, client, on):
        found = samples(self, client, on)
        if client == 1 and on == "private":
            found.inputs[3] = torch.nan
        return found

    monkeypatch.setattr(Worker, "samples", poisoned)
    dp = ("training.dp.noise_multiplier=1", "strategy.name=fedavg")
    done = run(small(*dp), tmp_path / "run")
    for line in done.rounds:
        assert line["participants"] == [*CLIENTS]
        assert line["left_out"] == []
    assert math.isfinite(done.summary["own_loss_mean"])
    plain = run(small("strategy.name=fedavg"), tmp_path / "plain")
    assert [line["left_out"][0]["client"] for line in plain.rounds] == [1, 1]


WITHOUT_NOISE = {
    "argmax": ("release.mechanism=argmax",),
    "entropy": ("release.tau_max=9", "release.mix_with=entropy"),
}


@pytest.mark.parametrize("table", WITHOUT_NOISE.values(), ids=WITHOUT_NOISE)
def test_without_noise_no_labels_are_made_of_a_student_that_diverged(table, sick, small, tmp_path):
    # Without training no loss tells.
    done = run(small(*sick, "training.local_epochs=0", *table, *SECRETS), tmp_path / "run")
    for line in done.rounds:
        assert line["participants"] == [0, 2, 3]
        assert (line["left_out"][0]["client"], line["left_out"][0]["step"]) == (1, "Predict")
    # It has no exposure, and spoils no mean.
    assert [e["exposure"] for e in done.exposures if e["observer"] == 1 == e["secret"]] == [None]
    assert len(exposures([done], "teacher")[0]) == 3
    assert math.isfinite(exposure([done], "student").mean)


# --- fresh and cached -----------------------------------------------------------------------


def fresh(done):
    """Whether the answers of each round are fresh, as a word a round."""
    found = {}
    for entry in done.releases:
        found.setdefault(entry["round"], set()).add(entry["fresh"])
    return [found[round] for round in sorted(found)]


def test_an_answer_given_again_is_free(small, tmp_path):
    once, thrice = (run(small(*STILL, *GAUSSIAN, f"rounds={n}"), tmp_path / str(n)) for n in (1, 3))
    assert fresh(thrice) == [{True}, {False}, {False}]
    one, three = (guarantee(done.releases, done.experiment) for done in (once, thrice))
    assert one.epsilon == three.epsilon > 0
    assert one.rho == three.rho


def test_a_trained_student_gives_a_new_answer_that_is_charged(small, tmp_path):
    done = run(small("strategy.name=swing", "rounds=3", *GAUSSIAN), tmp_path / "run")
    assert fresh(done) == [{True}, {True}, {True}]
    formal = guarantee(done.releases, done.experiment)
    assert formal.rho == pytest.approx(3 * done.releases[0]["rho"])
    assert formal.unit == "client"


def test_another_temperature_is_another_answer(small, tmp_path):
    @registry.register("strategies", "heating")
    class Heating(KnowledgeStrategy):
        """Asks for labels at 1, 2, and 1 again."""

        sends_soft_labels = True

        def learn(self, round, client):
            return [Predict(temperature=2.0 - round % 2)]

    done = run(small("strategy.name=heating", "rounds=3", *GAUSSIAN), tmp_path / "run")
    assert fresh(done) == [{True}, {True}, {False}]
    assert [e["temperature_min"] for e in done.releases if e["client"] == 0] == [1, 2, 1]
    rho = [e["rho"] for e in done.releases if e["client"] == 0]
    assert guarantee(done.releases, done.experiment).rho == pytest.approx(rho[0] + rho[1])


def test_noise_that_is_redrawn_guarantees_nothing(small, tmp_path):
    done = run(small(*STILL, *GAUSSIAN, "release.cache=false"), tmp_path / "run")
    assert fresh(done) == [{True}, {True}]
    assert all(e["redrawn"] for e in done.releases)
    formal = guarantee(done.releases, done.experiment)
    assert formal.epsilon is None
    assert formal.why == "none: noise is redrawn for the same answer"


def test_scores_by_the_true_canaries_guarantee_nothing(small, tmp_path):
    swing = ["release.tau_max=20", "release.scores=oracle"]
    done = run(small("strategy.name=swing", *GAUSSIAN, *swing, *SECRETS), tmp_path / "run")
    assert {(e["temperature_min"], e["temperature_max"]) for e in done.releases} == {(2, 20)}
    assert guarantee(done.releases, done.experiment).why == "none: scores come from private data"


def test_the_server_trains_on_the_same_labels_again_where_they_are_cached(small, tmp_path):
    """Fused labels have the same bits in every round."""
    seen = []

    @registry.register("strategies", "watching")
    class Watching(Swing):
        def fuse(self, round, replies):
            super().fuse(round, replies)
            seen.append(self.fused.clone())

    run(small("strategy.name=watching", *STILL[1:], *GAUSSIAN), tmp_path / "cached")
    assert torch.equal(*seen)
    seen.clear()
    redrawn = small("strategy.name=watching", *STILL[1:], *GAUSSIAN, "release.cache=false")
    run(redrawn, tmp_path / "redrawn")
    assert not torch.equal(*seen)


def test_a_line_is_read_back_as_it_was_written(small, tmp_path):
    done = run(small("strategy.name=knfu", *GAUSSIAN), tmp_path / "run")
    assert [Release.from_dict(entry).to_dict() for entry in done.releases] == done.releases


def test_private_training_is_told_once_with_the_next_release(small, tmp_path):
    dp = ["training.dp.noise_multiplier=1", "training.local_epochs=0.5", "participation=0.5"]
    done = run(small("strategy.name=knfu", "rounds=4", *dp), tmp_path / "run")
    for entry in done.releases:
        ((rate, steps),) = entry["dp_training"]
        assert (rate, steps) == (pytest.approx(16 / 60, rel=0.1), 2)
    formal = guarantee(done.releases, done.experiment)
    assert formal.unit == "record"
    assert 0 < formal.epsilon < 30


# --- killed and resumed ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", [[*STILL], ["strategy.name=knfu"], ["strategy.name=fedavg"]])
def test_a_killed_run_ends_with_the_releases_and_exposures_it_would_have_had(how, small, tmp_path):
    noise = [] if how[0].endswith("fedavg") else GAUSSIAN
    experiment = small(*how, *noise, *SECRETS, "canary.every=1", "rounds=4", "checkpoint_every=2")
    whole = run(experiment, tmp_path / "whole")
    for after in (2, 3):
        folder = tmp_path / f"killed{after}"
        with pytest.raises(Killed):
            run(experiment, folder, observer=KilledAfter(after))
        resumed = run(experiment, folder, resume=True)
        assert resumed.releases == whole.releases
        assert resumed.exposures == whole.exposures
        assert resumed.canaries == whole.canaries
    if how[0] == STILL[0]:
        assert fresh(whole) == [{True}, {False}, {False}, {False}]


# --- exposure: who sees what ----------------------------------------------------------------


def exposed(name, small, tmp_path, *overrides):
    return run(small(f"strategy.name={name}", *SECRETS, *overrides), tmp_path / f"exposed{name}")


def test_swing_is_measured_at_four_places(small, tmp_path):
    done = exposed("swing", small, tmp_path)
    assert places(done) == {
        **by_observer("teacher", OWN),
        **by_observer("released", OWN),
        **by_observer("fused", EVERYBODY),
        **by_observer("student", EVERYBODY),
    }
    for line in done.exposures:
        assert line["repeats"] == 8
        assert line["holders"] == [line["secret"]]
        assert 0 <= line["exposure"] <= SPACE
    assert done.canaries["log2_space"] == pytest.approx(SPACE)


@pytest.mark.parametrize("name", ["uniform", "dsfl", "fedmd"])
def test_what_all_receive_alike_is_measured_on_all_secrets_and_students_on_others(
    name, small, tmp_path
):
    assert places(exposed(name, small, tmp_path)) == {
        **by_observer("teacher", OWN),
        **by_observer("released", OWN),
        **by_observer("fused", EVERYBODY),
        **by_observer("student", OTHERS),
    }


@pytest.mark.parametrize("name", ["knfu", "ktpfl"])
def test_what_each_receives_for_itself_is_measured_on_the_others_secrets(name, small, tmp_path):
    assert places(exposed(name, small, tmp_path)) == {
        **by_observer("teacher", OWN),
        **by_observer("released", OWN),
        **by_observer("fused", OTHERS),
        **by_observer("student", OTHERS),
    }


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "feddf"])
def test_a_global_student_is_everybodys(name, small, tmp_path):
    assert places(exposed(name, small, tmp_path)) == {
        **by_observer("teacher", OWN),
        **by_observer("student", EVERYBODY),
    }


def test_a_student_of_its_own_is_measured_on_what_it_was_not_trained_on(small, tmp_path):
    assert places(exposed("local", small, tmp_path)) == {
        **by_observer("teacher", OWN),
        **by_observer("student", OTHERS),
    }


def test_labels_cannot_show_images_that_they_are_not_about(small, tmp_path):
    done = exposed("swing", small, tmp_path, "canary.public=none")
    assert {place for place, _ in places(done)} == {"teacher", "student"}


def test_a_secret_dealt_out_to_two_clients_is_an_own_one_of_both(small, tmp_path):
    done = exposed("knfu", small, tmp_path, "canary.spread=2")
    found = places(done)
    for client in CLIENTS:
        before = (client - 1) % 4
        assert found["teacher", client] == sorted([before, client])
        assert set(found["student", client]) == {*CLIENTS} - {before, client}


def test_who_does_not_take_part_has_no_teacher_but_a_student(small, tmp_path):
    done = exposed("knfu", small, tmp_path, "participation=0.5")
    took_part = set(done.rounds[-1]["participants"])
    found = places(done)
    assert {observer for place, observer in found if place == "teacher"} == took_part
    assert {observer for place, observer in found if place == "student"} == {*CLIENTS}


def test_without_canaries_nothing_is_measured(small, tmp_path):
    done = run(small("canary.every=1"), tmp_path / "run")
    assert done.exposures == []
    assert done.canaries is None


# --- exposure: when, and at no cost ---------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "rounds"), [("0", [5]), ("1", [1, 2, 3, 4, 5]), ("2", [2, 4, 5]), ("9", [5])]
)
def test_exposure_is_measured_every_so_many_rounds_and_in_the_last(every, rounds, small, tmp_path):
    overrides = [*STILL, "rounds=5", f"canary.every={every}", "evaluate_every=5"]
    done = run(small(*overrides, *SECRETS), tmp_path / "run")
    assert sorted({line["round"] for line in done.exposures}) == rounds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swing", "knfu", "fedavg", "fml", "local"])
@pytest.mark.parametrize("how", ["participation=0.5", "evaluate_every=2"])
def test_measuring_exposure_changes_no_other_number(name, how, small, tmp_path):
    overrides = [f"strategy.name={name}", *SECRETS, "rounds=3", how]
    often, seldom = (
        run(small(*overrides, f"canary.every={every}"), tmp_path / str(every)) for every in (1, 0)
    )
    assert measured(often) == measured(seldom)
    assert often.releases == seldom.releases
    last = [line for line in often.exposures if line["round"] == 3]
    assert last == seldom.exposures
    assert len(often.exposures) > len(last)


def test_the_same_command_twice_gives_the_same_exposures(small, tmp_path):
    once, again = (
        run(small("strategy.name=knfu", *SECRETS, *GAUSSIAN), tmp_path / side) for side in "ab"
    )
    assert once.exposures == again.exposures
    assert once.releases == again.releases


# --- exposure: what it says -----------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    return lambda *overrides: texts.small(tmp_path / "texts", *overrides)


LEARNT = ("strategy.name=swing", "training.local_epochs=30", "canary.secrets=1")


def test_memorised_lines_are_exposed_by_the_teacher_and_lines_nobody_has_are_not(text, tmp_path):
    table = ("canary.repeats=[1, 32]", "canary.public=exact")
    planted = run(text(*LEARNT, *table), tmp_path / "planted")
    often = exposure([planted], "teacher", 32).mean
    assert often > SPACE - 0.5  # two secrets of a hundred share their prefix
    assert exposure([planted], "released", 32).mean > SPACE - 1
    assert often >= exposure([planted], "teacher", 1).mean
    assert planted.canaries["space"] == 100


def test_where_nothing_was_planted_exposure_has_its_null_law(text, tmp_path):
    table = ("canary.secrets=12", "canary.repeats=[1, 2]", "canary.control=true")
    control = run(text("strategy.name=swing", "training.local_epochs=3", *table), tmp_path / "run")
    for place in ("teacher", "student"):
        values, clusters = exposures([control], place)
        assert len(values) == 72
        assert len({*clusters}) == (3 if place == "teacher" else 1)
        # Ranks are uniform out of a hundred, none twice: 0.17 is the mean's standard error.
        assert sum(values) / 72 == pytest.approx(NULL_MEAN, abs=0.5)


def test_images_are_memorised_too(small, tmp_path):
    overrides = ["canary.repeats=[20]", "training.local_epochs=20", "rounds=1", "canary.secrets=2"]
    done = exposed("swing", small, tmp_path, *overrides)
    assert exposure([done], "teacher").mean > SPACE - 0.5
    control = run(small("strategy.name=swing", *SECRETS, *overrides, "canary.control=true"))
    assert exposure([control], "teacher").mean < 4


# --- utility is of clean samples ------------------------------------------------------------


def test_nothing_that_utility_is_measured_on_knows_of_canaries(small):
    split = ("data.validation_fraction=0.2", "data.test.own=split")
    planted, plain = (load(small(*split, *table)) for table in (SECRETS, ()))
    for client in CLIENTS:
        for part in ("own", "validation"):
            one, other = (getattr(data, part)(client) for data in (planted, plain))
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.labels, other.labels)
    assert torch.equal(planted.common().inputs, plain.common().inputs)
    assert torch.equal(planted.public().inputs, plain.public().inputs)
    assert planted.sizes().tolist() == [16 + size for size in plain.sizes().tolist()]


@pytest.mark.parametrize("name", ["swing", "knfu", "fedavg"])
def test_a_control_that_shows_nothing_is_the_run_without_canaries(name, small, tmp_path):
    quiet = [*SECRETS, "canary.public=none", "canary.control=true"]
    control = run(small(f"strategy.name={name}", *quiet), tmp_path / "control")
    plain = run(small(f"strategy.name={name}"), tmp_path / "plain")
    assert measured(control) == measured(plain)
    assert control.exposures
    assert control.partition == plain.partition
