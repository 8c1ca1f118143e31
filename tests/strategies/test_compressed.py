"""Methods that send less: SCARLET's cache, CFD's few bits, FedMD's subset."""

import ast
import math
from pathlib import Path

import pytest
import texts
import torch
from lines import Killed, KilledAfter, measured, sampled

from fedkd import FedkdError, check, registry, run
from fedkd.codec import nbytes
from fedkd.compression import Delta, Quantised
from fedkd.data.federated import load
from fedkd.distillation.targets import entropy, power, retemper
from fedkd.encodings import as_received
from fedkd.engine.worker import Worker
from fedkd.privacy.guarantees import guarantee
from fedkd.strategies.uniform import Uniform
from fedkd.work import (
    Fit,
    Predict,
    Rows,
)

SCARLET, CFD = "strategy.name=scarlet", "strategy.name=cfd"
FOLDER = Path(__file__).parents[2] / "strategies"
LABELS = 10 * 4  # bytes of a row: ten classes, float32
NUMBER = 8


def listening(monkeypatch):
    """Assignments and replies, as they pass."""
    passed, perform = [], Worker.perform

    def listen(self, assignment):
        reply = perform(self, assignment)
        passed.append((assignment, reply))
        return reply

    monkeypatch.setattr(Worker, "perform", listen)
    return passed


@pytest.mark.parametrize("name", ["cfd", "fedmd", "scarlet"])
def test_they_touch_no_private_name_of_the_library(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert names
    assert [name for name in names if name.startswith("_")] == []


# --- SCARLET --------------------------------------------------------------------------------


def test_without_cache_and_sharpening_it_is_uniform_fusion_bit_for_bit(small, tmp_path):
    options = ("strategy.duration=0", "strategy.beta=1", "strategy.share=1")
    scarlet = run(small(SCARLET, *options), tmp_path / "scarlet")
    uniform = run(small("strategy.name=uniform"), tmp_path / "uniform")
    rounds, clients = measured(scarlet)
    assert [line.pop("strategy") for line in rounds] == [{"asked": 1.0}] * 2
    assert (rounds, clients) == measured(uniform)


def test_the_power_is_a_temperature_between_the_mean_and_one_hot():
    labels = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert torch.equal(power(labels, 1), labels)
    assert torch.allclose(power(labels, 2.5), retemper(labels, 2.5), atol=1e-6)
    one_hot = torch.nn.functional.one_hot(labels.argmax(1), 7).float()
    assert torch.allclose(power(labels, 1e6), one_hot, atol=1e-3)
    assert bool((entropy(power(labels, 2)) < entropy(labels)).all())
    sparse = torch.tensor([[0.0, 0.25, 0.75]])
    assert power(sparse, 2).tolist() == [pytest.approx([0, 0.1, 0.9])]


def test_a_label_is_asked_for_again_when_it_is_older_than_its_duration(made):
    """One test for asking and keeping: made in round s, it is used until round s + D."""
    strategy = made("scarlet", "strategy.duration=2")
    strategy.made = torch.tensor([4])
    ages = {round: bool(strategy.cached(round, torch.tensor([0]))) for round in range(4, 9)}
    assert ages == {4: True, 5: True, 6: True, 7: False, 8: False}
    without = made("scarlet", "strategy.duration=0")
    without.made = torch.tensor([4])
    assert not without.cached(5, torch.tensor([0]))


def test_only_what_is_not_cached_is_asked_for_and_only_what_is_not_held_travels(
    small, tmp_path, monkeypatch
):
    passed = listening(monkeypatch)
    how = (SCARLET, "rounds=4", "strategy.share=0.25", "strategy.duration=2")
    done = run(small(*how, "engine.cohort=off"), tmp_path / "run")
    made, every = {}, []
    for round, line in enumerate(done.rounds, 1):
        asked, told = (
            next(a for a, _ in passed if (a.client, a.round, a.phase) == (0, round, phase)).steps
            for phase in ("learn", "receive")
        )
        drawn = set(told[0].on.index.tolist())
        wanted = {row for row in drawn if row not in made or round - made[row] > 2}
        made |= dict.fromkeys(wanted, round)
        assert len(drawn) == 20
        assert set(asked[1].on.index.tolist()) == wanted
        assert line["strategy"]["asked"] == len(wanted) / 20
        # What goes back are these rows, and a bit a row that says which they are.
        assert line["bytes_up"] == 4 * len(wanted) * LABELS
        back = len(wanted) * LABELS + math.ceil(20 / 8)
        assert line["bytes_down"] == 4 * ((len(wanted) + 20) * NUMBER + back)
        every.append(len(wanted))
    assert every[0] == 20
    assert min(every) < 20


def test_a_client_that_missed_rounds_is_sent_what_it_lacks(small, tmp_path, monkeypatch):
    passed = listening(monkeypatch)
    how = (SCARLET, "rounds=4", "strategy.share=1", "participation=0.5", "engine.cohort=off")
    done = run(small(*how), tmp_path / "run")
    assert [line["strategy"]["asked"] for line in done.rounds] == [1, 0, 0, 0]
    first, everybody = set(done.rounds[0]["participants"]), {0, 1, 2, 3}
    seen = set()
    for assignment, _ in passed:
        if assignment.phase == "receive" and assignment.steps:
            (step,) = assignment.steps
            rows = len(step.terms[0].targets["values"])
            assert rows == (0 if assignment.client in seen else 80)
            seen.add(assignment.client)
    assert seen > first
    assert seen <= everybody


def test_what_they_learn_from_is_the_same_with_the_cache_of_the_client_or_without(
    small, tmp_path, monkeypatch
):
    from fedkd.strategies import scarlet

    how = (SCARLET, "rounds=3", "strategy.share=0.5", "participation=0.75")
    cached = run(small(*how), tmp_path / "cached")
    monkeypatch.setattr(scarlet, "Delta", lambda: None)
    sent = run(small(*how), tmp_path / "sent")
    assert measured(cached)[1] == measured(sent)[1]
    assert cached.summary["bytes_down"] < sent.summary["bytes_down"]


def test_rows_that_are_cached_cost_nothing(small, tmp_path):
    noise = ("release.clip=10", "release.mechanism=gaussian", "release.scale=0.5")
    how = (SCARLET, "rounds=3", *noise)
    cached = run(small(*how, "strategy.share=1"), tmp_path / "cached")
    once = run(small(*how, "strategy.share=1", "rounds=1"), tmp_path / "once")
    again = run(small(*how, "strategy.share=1", "strategy.duration=0"), tmp_path / "again")
    rho = {
        name: guarantee(one.releases, one.experiment).rho
        for name, one in {"cached": cached, "once": once, "again": again}.items()
    }
    assert rho["cached"] == rho["once"]
    assert rho["again"] == pytest.approx(3 * rho["once"])


def test_what_is_known_of_a_client_is_all_that_it_ever_answered(small, tmp_path):
    """Exposure by labels that a client sent, in rounds in which it sends few; also resumed."""
    secrets = ("canary.secrets=1", "canary.repeats=[8]", "canary.length=2", "canary.public=exact")
    how = (SCARLET, *secrets, "strategy.share=0.5", "rounds=6", "checkpoint_every=1")
    done = run(small(*how), tmp_path / "whole")
    assert done.rounds[-1]["strategy"]["asked"] < 0.1
    released = [line["exposure"] for line in done.exposures if line["place"] == "released"]
    assert len(released) == 4
    assert min(released) > 3
    with pytest.raises(Killed):
        run(small(*how), tmp_path / "killed", observer=KilledAfter(4))
    assert run(small(*how), tmp_path / "killed", resume=True).exposures == done.exposures


# --- CFD ------------------------------------------------------------------------------------


def test_bytes_are_the_packed_bits_of_the_rows_that_have_changed(small, tmp_path, monkeypatch):
    passed = listening(monkeypatch)
    how = (CFD, "rounds=3", "strategy.bits_up=1", "strategy.bits_down=2", "engine.cohort=off")
    done = run(small(*how), tmp_path / "run")
    assert done.rounds[0]["bytes_up"] == 4 * (80 / 8 + 80 * 10 * 1 / 8)
    assert done.rounds[0]["bytes_down"] == 4 * (80 / 8 + 80 * 10 * 2 / 8)
    held, up = {}, {1: 0, 2: 0, 3: 0}
    plain = Worker(small(CFD))
    for assignment, reply in passed:
        if assignment.phase != "learn":
            continue
        name = assignment.client
        state = reply.values["soft_labels"]
        count = int(sum(bin(byte).count("1") for byte in state["changed"].tolist()))
        up[assignment.round] += 80 // 8 + math.ceil(count * 10 / 8)
        held[name] = count
        assert nbytes(state) == 80 // 8 + math.ceil(count * 10 / 8)
    assert {line["round"]: line["bytes_up"] for line in done.rounds} == up
    assert up[3] < up[1]
    assert len(held) == plain.data.clients


def test_clients_learn_what_the_servers_student_says_in_few_bits(made):
    strategy = made("cfd", "strategy.bits_down=3")
    strategy.taught = torch.randn(5, 10).softmax(1)
    (step,) = strategy.receive(1, 0)
    assert step.terms[0].encoding == Delta(Quantised(3))
    told = strategy.fused_labels(0, [step])
    assert torch.equal(told, as_received(strategy.taught, Quantised(3)))
    assert strategy.learn(1, 0) == [Fit(), Predict(encoding=Delta(Quantised(1)))]
    plain = made("cfd", "strategy.bits_up=0", "strategy.delta=false")
    assert plain.learn(1, 0) == [Fit(), Predict()]


def test_deltas_change_no_number_but_bytes(small, tmp_path):
    how = (CFD, "rounds=3", "participation=0.75")
    delta, whole = (
        run(small(*how, f"strategy.delta={on}"), tmp_path / on) for on in ("true", "false")
    )
    assert measured(delta)[1] == measured(whole)[1]
    assert delta.summary["bytes_up"] < whole.summary["bytes_up"]


def test_behind_masks_nobody_sees_which_rows_have_changed(small, tmp_path):
    masked = ("release.trust=secure-aggregation", "release.mechanism=gaussian", "release.scale=0.1")

    @registry.register("strategies", "encoded")
    class Mine(Uniform):
        def learn(self, round, client):
            return [Fit(), Predict(encoding=Delta())]

    with pytest.raises(
        FedkdError, match=r"Delta\(...\) is not allowed with release.trust = 'secure"
    ):
        run(small("strategy.name=encoded", *masked), tmp_path / "delta")
    done = run(small(CFD, *masked, "strategy.delta=false", "rounds=1"), tmp_path / "whole")
    assert guarantee(done.releases, done.experiment).epsilon is not None


def test_each_option_of_cfd_changes_the_numbers(each_changes_the_numbers):
    choices = ["strategy.bits_up=3", "strategy.bits_down=3", "strategy.server_epochs=1"]
    each_changes_the_numbers([CFD], [*choices, "server.lr=0.1"])


def test_each_option_of_scarlet_changes_the_numbers(each_changes_the_numbers):
    choices = ["strategy.share=0.5", "strategy.duration=0", "strategy.beta=1"]
    each_changes_the_numbers([SCARLET, "strategy.share=1"], choices)


# --- FedMD ----------------------------------------------------------------------------------


def test_a_subset_is_drawn_anew_each_round_and_all_of_it_is_the_transfer_set(
    small, tmp_path, monkeypatch
):
    passed = listening(monkeypatch)
    name = ("strategy.name=fedmd", "engine.cohort=off")
    done = run(small(*name, "strategy.subset=30"), tmp_path / "subset")
    drawn = {
        (a.round, *sorted(a.steps[1].on.index.tolist())) for a, _ in passed if len(a.steps) > 1
    }
    assert len(drawn) == 2
    assert len({rows[1:] for rows in drawn}) == 2
    assert done.rounds[0]["bytes_up"] == 4 * 30 * LABELS
    whole = run(small(*name, "strategy.subset=80"), tmp_path / "whole")
    plain = run(small(*name), tmp_path / "plain")
    assert measured(whole) == measured(plain)


def test_fedmd_may_digest_by_absolute_error(made):
    strategy = made("fedmd", "strategy.objective=mae_logits")
    strategy.fused = torch.zeros(5, 10)
    (step,) = strategy.receive(1, 0)
    assert (step.terms[0].objective, step.on) == ("mae_logits", "transfer")


PRETRAINED = ("strategy.name=fedmd", "strategy.pretrain_epochs=2", "data.transfer.labels=true")


def test_fedmd_trains_each_client_once_on_the_labelled_transfer_set_before_its_own(
    small, tmp_path, monkeypatch
):
    passed = listening(monkeypatch)
    half = ("participation=0.5", "rounds=4", "engine.cohort=off")
    done = run(small(*PRETRAINED, *half), tmp_path / "run")
    seen = set()
    for assignment, _ in passed:
        kinds = [step.on for step in assignment.steps if isinstance(step, Fit)]
        if "private" not in kinds:  # digest, or a test
            continue
        first = assignment.client not in seen
        assert kinds == (["transfer", "private"] if first else ["private"])
        seen.add(assignment.client)
    losses = [c["pretrain_loss"] for c in done.clients if "pretrain_loss" in c]
    assert len(losses) == len(seen)
    assert max(losses) < math.log(10)


def test_labels_of_the_transfer_set_are_there_where_they_are_public_alone(small):
    plain, open_ = load(small()), load(small("data.transfer.labels=true"))
    assert plain.transfer().labels is None
    assert torch.equal(plain.transfer().inputs, open_.transfer().inputs)
    assert open_.transfer().labels.bincount().sum() == 80
    assert plain.fingerprint() != open_.fingerprint()


def test_training_on_labels_that_nobody_has_and_public_labels_of_canaries_are_one_line(small):
    with pytest.raises(FedkdError, match=r"needs data\.transfer\.labels = true"):
        check(small(*PRETRAINED[:2]))
    with pytest.raises(FedkdError, match=r"data\.transfer\.labels = true is not allowed with can"):
        load(small(*PRETRAINED, "canary.secrets=2"))


# --- text, candidates -----------------------------------------------------------------------


@pytest.mark.parametrize("name", sampled(["scarlet", "cfd"], "scarlet"))
@pytest.mark.parametrize("candidates", [0, 4])
def test_on_text_a_row_asked_for_is_a_sample_and_its_tokens_are_answered(
    name, candidates, tmp_path, monkeypatch
):
    passed = listening(monkeypatch)
    table = (f"strategy.name={name}", f"release.candidates={candidates}", "rounds=2")
    share = ("strategy.share=0.5",) if name == "scarlet" else ()
    done = run(texts.small(tmp_path / "texts", *table, *share), tmp_path / "run")
    assert [line["left_out"] for line in done.rounds] == [[], []]
    losses = [c["distill_loss"] for c in done.clients if "distill_loss" in c]
    assert losses
    assert all(0 <= loss < 10 for loss in losses)
    for assignment, reply in passed:
        for step in assignment.steps:
            if isinstance(step, Predict) and isinstance(step.on, Rows):
                inputs = Worker(done.experiment).data.transfer().inputs[step.on.index]
                assert len(reply.values["soft_labels"]) == int((inputs != 0).sum())
                return
    assert name == "cfd"


def test_behind_secure_aggregation_deltas_are_refused_before_anything_is_written(fedkd):
    keys = ["strategy.name=cfd", "release.mechanism=gaussian", "release.scale=1", "release.clip=5"]
    keys += ["release.trust=secure-aggregation", "strategy.bits_up=0", "strategy.bits_down=0"]
    code, _, err = fedkd("run", "quickstart", *(word for key in keys for word in ("--set", key)))
    assert code == 2
    assert "strategy.delta = true is not allowed with release.trust" in err
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["cfd", "uniform"])
def test_without_distillation_only_a_method_that_is_scored_on_clients_is_local_training(
    name, small, tmp_path
):
    few = [f"strategy.name={name}", "rounds=1", "strategy.distill_epochs=0"]
    done = run(small(*few), tmp_path / "run")
    (told,) = [text for text in done.rounds[0]["warnings"] if "distill_epochs = 0" in text]
    assert ("equals local training" in told) == (name == "uniform")
