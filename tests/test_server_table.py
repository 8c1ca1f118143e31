"""``[server]``: how the server trains, where not as the method has it."""

import math

import pytest
import torch
from lines import Killed, KilledAfter, measured

from fedkd import FedkdError, registry, run
from fedkd.effects import without_effect
from fedkd.server import ServerStudents
from fedkd.strategies.local import Local
from fedkd.students import build
from fedkd.training_tables import ServerTable, TrainingTable
from fedkd.work import CrossEntropy, Samples

METHOD = ServerTable(optimiser="adam", lr=1e-3, batch_size=128)


def server(experiment, own=None):
    found = ServerStudents(experiment, own=own)
    found.add("head", lambda: build("mlp", (6,), 4, experiment.student, 0))
    return found


def trained(found, samples, *epochs, first=1):
    """The parameters after some trainings, one a round."""
    for round, each in enumerate(epochs, first):
        found.fit("head", round, samples, [CrossEntropy()], each)
    return found.parameters("head")


def apart(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_what_is_said_comes_before_the_method_and_the_method_before_training():
    clients = TrainingTable(optimiser="sgd", momentum=0.9, weight_decay=0.1, lr=0.5, batch_size=7)
    said = ServerTable(lr=0.25).over(METHOD).training(clients, 1, 1)
    assert (said.optimiser, said.lr, said.batch_size) == ("adam", 0.25, 128)
    assert (said.momentum, said.weight_decay) == (0, 0)
    as_clients = ServerTable().training(clients, 1, 1)
    assert as_clients == clients
    own = ServerTable(optimiser="sgd", momentum=0.5).training(clients, 1, 1)
    assert (own.momentum, own.weight_decay, own.lr) == (0.5, 0, 0.5)


def test_a_schedule_of_the_servers_own_has_known_rates():
    clients = TrainingTable(lr=1.0, schedule="cosine", warmup_rounds=3, keep_optimiser=True)

    def rates(**said):
        return [ServerTable(**said).training(clients, round, 4).lr for round in range(1, 5)]

    assert rates() == rates(schedule="plateau") == [1, 1, 1, 1]
    assert rates(schedule="step", schedule_rounds=2, schedule_factor=0.5) == [1, 1, 0.5, 0.5]
    cosine = [1, 0.853553, 0.5, 0.146447]
    assert rates(schedule="cosine") == pytest.approx(cosine, abs=1e-6)
    assert not ServerTable().training(clients, 1, 4).keep_optimiser


@pytest.mark.parametrize("name", ["feddf", "fedgh"])
def test_what_a_method_says_too_changes_nothing(small, name):
    few = [f"strategy.name={name}", "rounds=1"]
    plain = run(small(*few), "plain")
    same = {
        "feddf": ["server.optimiser=adam", "server.lr=0.001", "server.batch_size=128"],
        "fedgh": ["server.batch_size=1", "server.lr=0.001", "server.schedule=constant"],
    }[name]
    assert measured(run(small(*few, *same), "same")) == measured(plain)
    for number, other in enumerate(("server.lr=0.1", "server.batch_size=3")):
        assert measured(run(small(*few, other), f"run{number}")) != measured(plain)


def test_a_rate_is_the_same_wherever_it_is_said(small, samples):
    plain = trained(server(small("training.lr=0.01")), samples, 1)
    assert apart(trained(server(small(), ServerTable(lr=0.01)), samples, 1), plain) == 0
    assert apart(trained(server(small("server.lr=0.01")), samples, 1), plain) == 0
    assert apart(trained(server(small()), samples, 1), plain) > 0


@pytest.mark.parametrize("keep", [True, False])
def test_an_optimiser_that_is_kept_makes_of_two_trainings_one(small, samples, keep):
    whole = small("server.batch_size=40", f"server.keep_optimiser={str(keep).lower()}")
    once, twice = (trained(server(whole), samples, *epochs) for epochs in ((4,), (2, 2)))
    assert (apart(once, twice) < 1e-5) == keep


def test_an_optimiser_is_kept_under_a_loss_of_ones_own_too(small):
    def loss(module, index, generator):
        return (module(torch.eye(6)[index]) - 1).square().sum()

    def learned(*epochs):
        found = ServerStudents(small("server.keep_optimiser=true", "server.lr=0.05"))
        found.add("map", lambda: torch.nn.utils.skip_init(torch.nn.Linear, 6, 2))
        zeros = {name: torch.zeros_like(t) for name, t in found.parameters("map").items()}
        found.load("map", zeros)
        for round, each in enumerate(epochs, 1):
            found.minimise("map", round, loss, size=6, epochs=each, batch_size=6)
        return found.parameters("map")

    assert apart(learned(6), learned(3, 3)) < 1e-5
    assert apart(learned(6), learned(3)) > 1e-2


def test_what_is_kept_is_in_a_checkpoint(small, samples):
    kept = small("server.keep_optimiser=true", "server.schedule=plateau", "server.lr=0.05")
    first = server(kept)
    trained(first, samples, 1)
    resumed = ServerStudents(kept)
    resumed.restore(first.state())
    resumed.add("head", lambda: build("mlp", (6,), 4, kept.student, 1))
    assert resumed.state()["optimisers"].keys() == {"head"}
    one, other = (trained(each, samples, 1, first=2) for each in (resumed, first))
    assert apart(one, other) == 0


def test_on_a_plateau_the_rate_falls(small, samples):
    """A student that learns nothing is on one from the start."""
    table = ["server.schedule=plateau", "server.schedule_rounds=2", "server.schedule_factor=0.5"]
    found = server(small(*table, "server.lr=1e-9", "server.batch_size=40"))
    factors = []
    for round in range(1, 7):
        found.fit("head", round, samples, [CrossEntropy()], 1)
        factors.append(found.state()["plateaus"]["head"]["factor"])
    assert factors == [1, 1, 0.5, 0.5, 0.25, 0.25]
    learning = server(small(*table, "server.optimiser=sgd", "server.lr=0.1"))
    trained(learning, samples, *[2] * 6)
    assert learning.state()["plateaus"]["head"]["factor"] == 1


def test_a_loss_that_is_no_number_is_not_the_best(small, samples):
    found = server(small("server.schedule=plateau"))
    broken = Samples(samples.inputs * math.nan, samples.labels)
    for round, each in enumerate((samples, broken), 1):
        found.fit("head", round, each, [CrossEntropy()], 1)
    now = found.state()["plateaus"]["head"]
    assert math.isfinite(now["best"])
    assert now["worse"] == 1


def test_a_run_whose_server_keeps_its_optimiser_goes_on(small):
    given = ["strategy.name=dsfl", "rounds=3", "checkpoint_every=1"]
    kept = ["server.keep_optimiser=true", "server.schedule=plateau", "server.schedule_rounds=1"]
    whole = run(small(*given, *kept), "whole")
    with pytest.raises(Killed):
        run(small(*given, *kept), "cut", observer=KilledAfter(2))
    assert measured(run(small(*given, *kept), "cut", resume=True)) == measured(whole)
    assert measured(run(small(*given), "plain")) != measured(whole)


def test_keys_without_effect_are_told(small):
    def told(*overrides):
        return [line for line in without_effect(small(*overrides)) if line.startswith("server.")]

    (line,) = told("strategy.name=fedmd", "server.lr=0.1")
    assert line.endswith("strategy.name = 'fedmd' trains nothing on the server")
    assert not told("strategy.name=fedd2s", "server.lr=0.1")
    (line,) = told("strategy.name=feddf", "server.momentum=0.1")
    assert line.endswith("server.optimiser = 'adam'")
    assert not told("strategy.name=feddf", "server.momentum=0.1", "server.optimiser=sgd")
    (line,) = told("strategy.name=feddf", "server.schedule_rounds=3")
    assert line.endswith("server.schedule = 'constant'")


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names("strategies"))
def test_a_rate_of_the_server_changes_the_numbers_or_is_told_to_have_no_effect(name, small):
    """Of every method: what a person sets acts, or is said not to."""
    given = [f"strategy.name={name}", "server.lr=0.5"]
    if any(line.startswith("server.lr") for line in without_effect(small(*given))):
        assert measured(run(small(*given), "set")) == measured(run(small(given[0]), "plain"))
    else:
        assert measured(run(small(*given), "set")) != measured(run(small(given[0]), "plain"))


def test_a_table_of_another_kind_is_refused(small, monkeypatch):
    monkeypatch.setattr(Local, "server_training", {"lr": 1})
    with pytest.raises(FedkdError, match=r"server_training = .* is not allowed"):
        run(small("strategy.name=local"), "wrong")
