"""Selective-FD: what is selected, what is kept, and what becomes of what is not."""

import pytest
import texts
import torch
from lines import measured

from fedkd import FedkdError, check, run
from fedkd.caveats import LOCAL_TRAINING
from fedkd.density import alike
from fedkd.engine.worker import Worker
from fedkd.lab.attack import attack
from fedkd.privacy.guarantees import guarantee
from fedkd.random import generator
from fedkd.strategies.base import Replies
from fedkd.strategies.selectivefd import ambiguity, weighted_mean
from fedkd.work import Assignment, Fit, Predict, Reply, Select

NAME = "strategy.name=selectivefd"
NO_SELECTOR = (NAME, "strategy.client_selector=none")
RELEASE = ("release.clip=10", "release.mechanism=gaussian", "release.scale=0.05")
SURE, TORN, OTHER = [0.9, 0.1, 0.0], [0.0, 0.5, 0.5], [0.5, 0.1, 0.4]


def replies(*labels, selected=None):
    values = [{"soft_labels": torch.tensor(rows)} for rows in labels]
    for given, mask in zip(values, selected or []):
        given["selected"] = torch.tensor(mask)
    return Replies([Reply(n, 10, given) for n, given in enumerate(values)])


# --- the server's selector ------------------------------------------------------------------


def test_ambiguity_is_the_l1_distance_to_the_one_hot_label():
    labels = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).softmax(1)
    one_hot = torch.nn.functional.one_hot(labels.argmax(1), 7)
    assert torch.allclose(ambiguity(labels), (labels - one_hot).abs().sum(1), atol=1e-6)
    assert ambiguity(torch.eye(3)).tolist() == [0, 0, 0]
    assert ambiguity(torch.full((1, 4), 0.25)).tolist() == [1.5]


def test_clients_learn_from_the_means_that_are_not_ambiguous(made):
    strategy = made("selectivefd", NO_SELECTOR[1])
    strategy.fuse(1, replies([SURE, SURE, TORN], [SURE, OTHER, SURE]))
    assert strategy.kept.tolist() == [True, True, False]
    (step,) = strategy.receive(1, 0)
    targets = step.terms[0].targets
    assert torch.allclose(targets[:2], torch.tensor([SURE, [0.7, 0.1, 0.2]]))
    assert targets[2].isnan().all()
    assert strategy.fused_labels(0, [step])[2].tolist() == pytest.approx([1 / 3] * 3)


def test_where_everything_is_kept_it_is_uniform_fusion_to_the_bit(small, tmp_path):
    selective = run(small(*NO_SELECTOR, "strategy.tau_server=2"), tmp_path / "selective")
    uniform = run(small("strategy.name=uniform"), tmp_path / "uniform")
    assert measured(selective)[1] == measured(uniform)[1]
    assert [line["strategy"]["kept"] for line in selective.rounds] == [1.0, 1.0]


def test_where_nothing_is_kept_it_is_local_training_and_says_so(small, tmp_path):
    selective = run(small(NAME, "strategy.tau_server=0"), tmp_path / "selective")
    local = run(small("strategy.name=local"), tmp_path / "local")
    assert selective.rounds[-1]["own_loss_mean"] == local.rounds[-1]["own_loss_mean"]
    (line,) = selective.warning_lines
    assert line["about"] == LOCAL_TRAINING
    assert "raise strategy.tau_server = 0" in line["message"]


# --- the clients' selectors -----------------------------------------------------------------


def test_a_sample_has_the_mean_of_the_clients_that_know_it(made):
    strategy = made("selectivefd", "strategy.tau_server=2")
    selected = [[True, False, False], [True, True, False]]
    strategy.fuse(1, replies([SURE, SURE, SURE], [OTHER, OTHER, OTHER], selected=selected))
    assert torch.allclose(strategy.fused[:2], torch.tensor([[0.7, 0.1, 0.2], OTHER]))
    assert strategy.kept.tolist() == [True, True, False]


def test_equal_weights_give_the_plain_mean():
    labels = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).softmax(2)
    fused, known = weighted_mean(torch.ones(3, 5), labels)
    assert torch.allclose(fused, labels.mean(0))
    assert known.all()


def test_a_client_is_asked_once_what_it_knows(made):
    strategy = made("selectivefd")
    wanted = [Fit(), Predict(), Select(width=0.15, quantile=0.25)]
    assert strategy.learn(1, 0) == strategy.learn(1, 1) == wanted
    strategy.fuse(1, replies([SURE], selected=[[True]]))
    assert strategy.learn(2, 0) == [Fit(), Predict()]
    assert strategy.learn(2, 1) == wanted
    assert made("selectivefd", NO_SELECTOR[1]).learn(1, 0) == [Fit(), Predict()]


def test_a_client_selects_by_its_own_samples_whatever_its_student(small):
    worker = Worker(small(NAME))
    for client in (0, 1):
        mask, again = (
            worker.perform(Assignment(client, 1, "learn", steps)).values["selected"]
            for steps in ((Select(),), (Fit(), Select()))
        )
        inputs, own = (worker.samples(client, on).inputs for on in ("transfer", "private"))
        draw = generator(0, "select", client)
        assert torch.equal(mask, alike(inputs, own, 0.15, 0.25, draw))
        assert torch.equal(mask, again)
        assert 0 < mask.sum() < len(mask)


def test_a_reply_that_does_not_say_it_as_asked_is_left_out(small, tmp_path, monkeypatch):
    perform = Worker.perform

    def spoiling(self, assignment):
        reply = perform(self, assignment)
        if assignment.client == 2 and assignment.round == 1 and "selected" in reply.values:
            reply.values["selected"] = reply.values["selected"].float()
        return reply

    monkeypatch.setattr(Worker, "perform", spoiling)
    done = run(small(NAME, "engine.cohort=off"), tmp_path / "run")
    (entry,) = done.rounds[0]["left_out"]
    assert (entry["client"], entry["step"]) == (2, "Select")
    assert [line["participants"] for line in done.rounds] == [[0, 1, 3], [0, 1, 2, 3]]
    asked = [(e["round"], e["client"]) for e in done.releases if e["step"] == "Select"]
    assert asked == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 2)]


def test_of_text_only_the_server_selects(tmp_path):
    def text(*overrides):
        return texts.small(tmp_path / "texts", *overrides)

    with pytest.raises(FedkdError, match=r"Select is not allowed with data\.dataset = 'text:"):
        run(text(NAME), tmp_path / "refused")
    done = run(text(*NO_SELECTOR, "strategy.tau_server=2"), tmp_path / "run")
    assert done.rounds[0]["strategy"] == {"kept": 1.0, "selected": 1.0}


# --- privacy --------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [(), ("training.dp.noise_multiplier=1",)], ids=str)
def test_what_is_selected_is_in_the_ledger_and_leaves_no_guarantee(private, small, tmp_path):
    done = run(small(NAME, "rounds=1", "training.local_epochs=1", *private), tmp_path / "run")
    lines = [(e["client"], e["key"], e["items"]) for e in done.releases if e["step"] == "Select"]
    assert lines == [(client, "selected", 80) for client in range(4)]
    formal = guarantee(done.releases, done.experiment)
    assert formal.epsilon is None
    if private:
        assert formal.why == "none: choices by private samples leave the client without noise"


def test_without_its_selector_private_training_has_an_epsilon(small, tmp_path):
    private = ("rounds=1", "training.local_epochs=1", "training.dp.noise_multiplier=1")
    done = run(small(*NO_SELECTOR, *private), tmp_path / "run")
    assert 0 < guarantee(done.releases, done.experiment).epsilon < 100


@pytest.mark.parametrize("trust", ["local", "central"])
def test_labels_are_released_where_nothing_is_selected(trust, small, tmp_path):
    keys = (*NO_SELECTOR, "strategy.tau_server=2", f"release.trust={trust}", *RELEASE)
    done = run(small(*keys, "rounds=1", "training.local_epochs=1"), tmp_path / "run")
    assert done.rounds[0]["left_out"] == []
    assert {e["mechanism"] for e in done.releases if e["step"] != "Predict"} <= {"gaussian"}
    if trust == "local":
        assert guarantee(done.releases, done.experiment).epsilon > 0


def test_a_selection_and_a_release_policy_exclude_each_other(small):
    with pytest.raises(FedkdError, match="client_selector = 'density_ratio': what it sel") as error:
        check(small(NAME, *RELEASE))
    assert "\n" not in str(error.value)


def test_what_is_selected_is_attacked(small):
    tiny = ("rounds=1", "training.local_epochs=1", "data.samples_per_client=20")
    found = attack(small(NAME, *tiny), 4)
    assert found.places == ["Predict soft_labels", "Select selected"]
    names = {one.attack for one in found.findings if one.place == "Select selected"}
    assert {name.partition(", LiRA")[0] for name in names} == {"selected among the nearest"}
