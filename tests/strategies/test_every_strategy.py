"""What holds for every method."""

import pytest
import torch
from lines import measured, sampled

from fedkd import FedkdError, check, registry, run
from fedkd.engine.host import HostGrid
from fedkd.engine.worker import Worker
from fedkd.experiment import Experiment
from fedkd.strategies.base import KnowledgeStrategy
from fedkd.work import Fit

ALL = registry.names("strategies")
SEND_LABELS = ["dsfl", "fedmd", "knfu", "ktpfl", "uniform"]
NEED_TRANSFER = [*SEND_LABELS, "cfd", "comet", "feddf", "scarlet", "selectivefd"]
AVERAGE_PARAMETERS = ["fedavg", "fedavg-ft", "fedbn", "feddf", "feddyn", "fedgkd", "fedntd"]
AVERAGE_PARAMETERS += ["fedlc"]
AVERAGE_PARAMETERS += ["fedprox", "moon", "scaffold"]
ONE_ARCHITECTURE = [name for name in AVERAGE_PARAMETERS if name != "feddf"]
ONE_ARCHITECTURE += ["ditto", "fedbabu", "fedper", "fedrep"]
ONE_ARCHITECTURE += ["apfl", "fedhkd", "fedrod"]


@pytest.mark.parametrize("name", ALL)
def test_two_rounds_on_digits_measure_every_client_at_both_stages(name, small, tmp_path):
    done = run(small(f"strategy.name={name}"), tmp_path / "run")
    assert [line["round"] for line in done.rounds] == [1, 2]
    for line in done.rounds:
        assert line["participants"] == [0, 1, 2, 3]
        assert line["left_out"] == []
        for stage in (line, line["local"]):
            assert 0 <= stage["own_accuracy_worst10"] <= stage["own_accuracy_mean"] <= 1
            assert 0 <= stage["common_accuracy_mean"] <= 1
    summary = done.summary
    assert summary["rounds"] == 2
    assert summary["own_accuracy_mean"] == done.rounds[-1]["own_accuracy_mean"]
    column = registry.load("strategies", name).headline.column()
    assert summary["headline"] == column
    assert summary["headline_accuracy"] == summary[column]
    assert 0 <= summary["other_stage_accuracy"] <= 1
    # Four clients, ten classes, two rounds of some epochs: far above chance or it learned nothing.
    assert summary["own_accuracy_mean_local"] > 0.3


@pytest.mark.parametrize("name", sampled(ALL, "fedgkt", "fml", "knfu"))
def test_the_same_command_twice_gives_the_same_lines(name, small, tmp_path):
    experiment = small(f"strategy.name={name}")
    once, again = (measured(run(experiment, tmp_path / side)) for side in "ab")
    assert once == again


@pytest.mark.parametrize("name", sampled(ALL, "fedavg", "fedgkt", "knfu"))
def test_the_order_in_which_clients_finish_does_not_matter(name, small, tmp_path, monkeypatch):
    experiment = small(f"strategy.name={name}", "seed=3")
    straight = measured(run(experiment, tmp_path / "straight"))
    send = HostGrid.send_and_receive

    def backwards(self, messages, *, timeout=None):
        return list(send(self, list(messages)[::-1], timeout=timeout))

    monkeypatch.setattr(HostGrid, "send_and_receive", backwards)
    assert measured(run(experiment, tmp_path / "backwards")) == straight


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_worker_processes_give_the_numbers_of_this_one(name, small, tmp_path):
    keys = (f"strategy.name={name}", "participation=0.75", "engine.cohort=off")
    inline = run(small(*keys, "engine.name=inline"), tmp_path / "inline")
    procs = run(small(*keys, "engine.name=procs", "engine.workers=2"), tmp_path / "procs")
    assert measured(procs) == measured(inline)
    assert procs.releases == inline.releases


@pytest.mark.parametrize("name", sampled(ALL, "fedavg", "knfu"))
def test_another_seed_gives_other_numbers(name, small, tmp_path):
    runs = [
        run(small(f"strategy.name={name}", f"seed={seed}"), tmp_path / str(seed)) for seed in (0, 1)
    ]
    assert measured(runs[0]) != measured(runs[1])


@pytest.mark.parametrize("name", SEND_LABELS)
def test_soft_labels_are_what_is_counted_as_bytes(name, small, tmp_path):
    done = run(small(f"strategy.name={name}", "rounds=1"), tmp_path / "run")
    labels = 4 * 80 * 10 * 4  # clients, transfer samples, classes, bytes of a float32
    assert (done.rounds[0]["bytes_up"], done.rounds[0]["bytes_down"]) == (labels, labels)


@pytest.mark.parametrize("name", AVERAGE_PARAMETERS)
def test_parameters_are_what_is_counted_as_bytes(name, small, tmp_path):
    done = run(small(f"strategy.name={name}", "rounds=1"), tmp_path / "run")
    parameters = 4 * (64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10)
    assert done.rounds[0]["bytes_up"] == done.rounds[0]["bytes_down"] == 4 * parameters


@pytest.mark.parametrize("name", sampled(AVERAGE_PARAMETERS, "fedavg", "moon"))
def test_clients_that_diverged_once_train_again_from_the_global_student(
    name, small, tmp_path, monkeypatch
):
    plain = Experiment.training_on

    def diverging(self, source, round=None):
        table = plain(self, source, round)
        return table.model_copy(update={"lr": 1e30}) if round == 2 else table

    monkeypatch.setattr(Experiment, "training_on", diverging)
    experiment = small(f"strategy.name={name}", "rounds=4", "on_empty_round=skip")
    rounds = run(experiment, tmp_path / "run").rounds
    assert [line["participants"] for line in rounds] == [[*range(4)], [], [*range(4)], [*range(4)]]


def test_local_training_sends_nothing(small, tmp_path):
    summary = run(small("strategy.name=local"), tmp_path / "run").summary
    assert (summary["bytes_up"], summary["bytes_down"]) == (0, 0)


@pytest.mark.parametrize("name", [*SEND_LABELS, "comet", "selectivefd"])
def test_architectures_may_differ_where_soft_labels_are_exchanged(name, small, tmp_path):
    experiment = small(f"strategy.name={name}", "student.models=['cnn2', 'mlp']", "rounds=1")
    done = run(experiment, tmp_path / "run")
    assert [client["student"] for client in done.partition["clients"]] == ["cnn2", "mlp"] * 2


@pytest.mark.parametrize("name", ONE_ARCHITECTURE)
def test_architectures_must_agree_where_parameters_are_averaged(name, small):
    with pytest.raises(FedkdError, match=r"student\.models = \['cnn2', 'mlp'\] is not allowed"):
        check(small(f"strategy.name={name}", "student.models=['cnn2', 'mlp']"))


@pytest.mark.parametrize("name", NEED_TRANSFER)
def test_a_method_that_needs_a_transfer_set_says_so(name, small):
    with pytest.raises(FedkdError, match=r"data\.transfer\.size = 0 is not allowed"):
        check(small(f"strategy.name={name}", "data.transfer.size=0"))


@pytest.mark.parametrize("name", sampled(ALL, "fedavg", "fedd2s", "fml", "knfu"))
def test_who_does_not_take_part_is_unchanged_bit_for_bit(name, small, tmp_path, monkeypatch):
    experiment = small(f"strategy.name={name}", "participation=0.5", "rounds=1")
    workers = []
    init = Worker.__init__
    monkeypatch.setattr(
        Worker, "__init__", lambda self, *a, **k: (init(self, *a, **k), workers.append(self))[0]
    )
    done = run(experiment, tmp_path / "run")
    took_part = set(done.rounds[0]["participants"])
    assert len(took_part) == 2
    fresh = Worker(experiment)
    for client in range(4):
        now, before = workers[0].state(client)["own"], fresh.state(client)["own"]
        unchanged = all(torch.equal(now[key], before[key]) for key in before)
        assert unchanged == (client not in took_part)
    assert {line["client"] for line in done.clients if line["stage"] == "fused"} >= (
        set(range(4)) - took_part
    )


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_option_is_refused_by_the_strategy(name, small):
    with pytest.raises(FedkdError, match=r"strategy\.betta is not a known key"):
        check(small(f"strategy.name={name}", "strategy.betta=1"))


def test_a_strategy_may_stop_the_run(small, tmp_path):
    @registry.register("strategies", "stops")
    class Stops(KnowledgeStrategy):
        def stop(self, round):
            return round == 1

    done = run(small("strategy.name=stops", "rounds=5"), tmp_path / "run")
    assert done.summary["rounds"] == 1


@pytest.mark.slow
def test_measuring_less_often_changes_no_other_number(small, tmp_path):
    often = run(small("rounds=4"), tmp_path / "often")
    seldom = run(small("rounds=4", "evaluate_every=3"), tmp_path / "seldom")
    assert ["own_accuracy_mean" in line for line in seldom.rounds] == [False, False, True, True]
    assert seldom.rounds[-1]["own_loss_mean"] == often.rounds[-1]["own_loss_mean"]
    assert seldom.rounds[-1]["strategy"] == often.rounds[-1]["strategy"]


def test_a_client_that_changed_while_nobody_measured_is_measured_again(small, tmp_path):
    overrides = ["strategy.name=local", "rounds=6", "participation=0.5"]
    often = run(small(*overrides), tmp_path / "often")
    seldom = run(small(*overrides, "evaluate_every=3"), tmp_path / "seldom")
    assert seldom.rounds[-1]["own_loss_mean"] == often.rounds[-1]["own_loss_mean"]


@pytest.mark.parametrize("name", sampled(ALL, "fedavg", "fedgkt"))
def test_validation_samples_are_measured_at_both_stages_and_beside_the_others(
    name, small, tmp_path
):
    validated = "data.validation_fraction=0.3"
    done = run(small(f"strategy.name={name}", validated), tmp_path / "run")
    for line in done.rounds:
        for stage in (line, line["local"]):
            assert 0 <= stage["validation_accuracy_mean"] <= 1
            assert stage["validation_loss_mean"] > 0
    found = [c for c in done.clients if c["round"] == 2 and "validation_accuracy" in c]
    assert {c["client"] for c in found} == {0, 1, 2, 3}
    last = {c["client"]: c["validation_accuracy"] for c in found}
    mean = sum(last.values()) / 4
    assert done.summary["validation_accuracy_mean"] == pytest.approx(mean)
    assert "validation_accuracy_mean_local" in done.summary
    # 60 training samples less 18 for validation, and none of them is tested by.
    assert [client["train"] for client in done.partition["clients"]] == [42] * 4


def test_without_validation_samples_there_is_no_such_measurement(small, tmp_path):
    done = run(small("rounds=1"), tmp_path / "run")
    names = {*done.rounds[0], *done.summary, *(name for line in done.clients for name in line)}
    assert not any(name.startswith("validation") for name in names)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([Fit("transfer")], "no labels"),
        ([Fit("transfr")], "'transfr' is not known"),
        ([Fit(part=("conv9",))], "'conv9' is not a block"),
        ([Fit(student="twin")], "student 'twin' is not known"),
    ],
)
def test_a_method_that_asks_for_the_impossible_hears_it_in_one_line(steps, reason, small, tmp_path):
    @registry.register("strategies", "impossible")
    class Impossible(KnowledgeStrategy):
        def learn(self, round, client):
            return steps

    with pytest.raises(FedkdError, match=reason):
        run(small("strategy.name=impossible"), tmp_path / "run")
