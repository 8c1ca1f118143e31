"""Epsilon of averaged parameters, against other clients: what is computed, and what is charged."""

import math

import dp_accounting as dp
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant

from fedkd import FedkdError, registry, run
from fedkd.engine.worker import Worker
from fedkd.privacy.accounting import SEES_ALL, SEES_AVERAGES
from fedkd.privacy.average import Averaging
from fedkd.privacy.epsilons import gaussian_epsilon
from fedkd.privacy.guarantees import guarantees
from fedkd.privacy.releases import Release
from fedkd.random import numpy_noise
from fedkd.strategies.fedavg import FedAvg
from fedkd.work import Predict

AVERAGED = ["ditto", "fedavg", "fedavg-ft", "fedbabu", "fedgkd", "fedntd", "fedper"]
AVERAGED += ["fedprox", "fedrep", "lg-fedavg", "moon", "fedlc", "fedrod", "apfl"]
PRIVATE = ("strategy.clipping_norm=0.5", "strategy.noise_multiplier=4")
QUICK = ("training.local_epochs=0.1", "evaluate_every=100", "engine.cohort=off")
BEFORE = {"w": torch.zeros(400), "b": torch.ones(3)}
DELTA = 1e-5


def line(round=1, multiplier=4.0, clients=range(10)):
    rho = 1 / (2 * multiplier**2)
    average = Release(round, None, "Average", "parameters", 1, "gaussian", rho=rho)
    return average.to_dict() | {"clients": list(clients)}


def against_others(lines, experiment):
    server, others = guarantees(lines, experiment)
    assert (server.adversary, others.adversary) == (SEES_ALL, SEES_AVERAGES)
    return others


# --- what is computed -----------------------------------------------------------------------


def averages(change, asked=5, noise=0.0, replied=True):
    """The average when the first client changes w by ``change`` and nobody else does."""
    given = [BEFORE | {"w": change}] if replied else []
    given += [BEFORE] * (asked - 1)
    return Averaging(BEFORE, 0.5, noise).released(given, asked)[0]["w"]


def test_a_client_moves_the_mean_by_its_share_of_the_norm_and_a_replaced_one_by_twice_that():
    """Worst cases: far in one direction, zeroed out or far in the opposite one."""
    far = torch.full((400,), 1e6)
    nothing = averages(torch.zeros(400))
    assert float((averages(far) - nothing).norm()) == pytest.approx(0.5 / 5, rel=1e-5)
    assert float((averages(far) - averages(-far)).norm()) == pytest.approx(2 * 0.5 / 5, rel=1e-5)


def test_who_does_not_answer_counts_as_unchanged_and_the_divisor_stays():
    """A client whose student diverged would else make the others' shares, and the noise, larger."""
    for noise in (0.0, 3.0):
        with numpy_noise(0, "test"):
            there = averages(torch.zeros(400), noise=noise)
        with numpy_noise(0, "test"):
            left_out = averages(torch.zeros(400), noise=noise, replied=False)
        assert torch.equal(there, left_out)


def test_neighbours_are_told_apart_as_well_as_the_charge_says():
    """By the best statistic, the projection on the direction of change, as far as sqrt(2 rho)."""
    direction = torch.zeros(400)
    direction[0] = 9.0
    found = {}
    for world, change in (("in", direction), ("out", torch.zeros(400))):
        draws = []
        for n in range(300):
            with numpy_noise(n, world):
                draws.append(float(averages(change, asked=1, noise=2.0)[0]))
        found[world] = np.array(draws)
    _, charge = Averaging(BEFORE, 0.5, 2.0).released([BEFORE], 1)
    apart = (found["in"].mean() - found["out"].mean()) / found["out"].std()
    assert math.sqrt(2 * charge["rho"]) == 0.5
    assert apart == pytest.approx(0.5, abs=3 * math.sqrt(2 / 300))
    assert found["out"].std() == pytest.approx(charge["scale"], rel=0.2)


# --- what it comes to -----------------------------------------------------------------------


def test_fifty_rounds_of_noise_multiplier_four(small):
    found = against_others([line(round) for round in range(1, 51)], small("data.clients=10"))
    assert found.epsilon == pytest.approx(8.6, abs=0.05)
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    by_losses = accountant.compose(dp.GaussianDpEvent(4.0), 50).get_epsilon(DELTA)
    assert found.epsilon == pytest.approx(by_losses, abs=2e-3)
    twice = accountant.__class__(value_discretization_interval=1e-3)
    assert found.replaced == pytest.approx(
        twice.compose(dp.GaussianDpEvent(2.0), 50).get_epsilon(DELTA), abs=2e-3
    )
    assert (found.unit, found.sampled, found.rho) == ("client", None, pytest.approx(50 / 32))
    assert found.text() == (
        f"{found.epsilon:.3g} (delta 1e-05, client; replace-one: {found.replaced:.3g})"
    )
    assert found.neighbours.startswith("zero-out client")


def test_each_client_is_charged_for_the_rounds_that_it_was_asked_in(small):
    lines = [line(1, clients=[0, 1]), line(2, clients=[1, 2]), line(3, clients=[1, 3])]
    found = against_others(lines, small("data.clients=4"))
    assert found.client == 1
    assert found.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(3) / 4, DELTA))


def test_poisson_sampling_is_told_beside_and_only_where_not_all_take_part(small):
    lines = [line(round, 1.0, clients=[0]) for round in range(1, 21)]
    found = against_others(lines, small("data.clients=10"))
    event = dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.0))
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    expected = accountant.compose(event, 20).get_epsilon(DELTA)
    assert found.sampled == pytest.approx(expected, abs=2e-3)
    assert found.rate == 0.1
    assert found.sampled < found.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(20), DELTA))


# --- what the ledger says -------------------------------------------------------------------


@pytest.mark.parametrize("name", AVERAGED)
def test_every_method_that_averages_has_it_in_its_ledger(name, small, tmp_path):
    keys = (f"strategy.name={name}", *PRIVATE, *QUICK, "rounds=3", "participation=0.5")
    experiment = small(*keys)
    done = run(experiment, tmp_path / "run")
    server, others = guarantees(done.releases, experiment)
    assert (server.epsilon, server.why) == (None, "none: parameters leave the client without noise")
    participants = [line["participants"] for line in done.rounds]
    most = max(sum(n in each for each in participants) for n in range(experiment.data.clients))
    assert others.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(most) / 4, DELTA))
    assert others.rate == len(participants[0]) / experiment.data.clients
    averages = [line for line in done.releases if line["client"] is None]
    assert [line["clients"] for line in averages] == participants


def test_without_noise_there_is_none(small, tmp_path):
    experiment = small("strategy.name=fedavg", PRIVATE[0], *QUICK, "rounds=1")
    _, others = guarantees(run(experiment, tmp_path / "run").releases, experiment)
    assert (others.epsilon, others.why) == (None, "none: averages are released without noise")


def test_statistics_of_clients_own_samples_leave_none(small):
    found = against_others([line()], small("data.statistics=private", "data.clients=10"))
    assert found.epsilon is None
    assert "data.statistics" in found.why


class Shown(FedAvg):
    """Keeps what it is shown."""

    def setup(self):
        super().setup()
        self.shown = []

    def fuse(self, round, replies):
        super().fuse(round, replies)
        self.shown = replies.parameters()
        for one in self.shown:
            assert all(torch.equal(one[name], w) for name, w in self.parameters.items())


class Weighing(Shown):
    def fuse(self, round, replies):
        super().fuse(round, replies)
        self.weights = replies.samples


class Labelling(Shown):
    def learn(self, round, client):
        return [*super().learn(round, client), Predict()]


class Keeping(Shown):
    def record(self, round, replies, label_counts):
        self.kept = replies.parameters()
        return {}


class Selecting(Shown):
    def select(self, round):
        better = [n for n, found in self.latest.items() if found["own_accuracy"] > 0.5]
        return better or [0, 1]


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (Shown, ""),
        (Weighing, "none: numbers of samples reach the method without noise"),
        (Labelling, "none: labels reach the method without noise"),
        (Keeping, "none: what the method does depends on measurements of private data"),
        (Selecting, "none: losses or accuracies reach the method without noise"),
    ],
)
def test_a_method_sees_the_average_alone_or_there_is_none(method, why, small, tmp_path):
    registry.register("strategies", "seeing")(method)
    keys = ("strategy.name=seeing", *PRIVATE, *QUICK, "rounds=2", "evaluate_every=1")
    experiment = small(*keys)
    found = against_others(run(experiment, tmp_path / "run").releases, experiment)
    assert found.why == why
    assert (found.epsilon is None) == bool(why)


def test_a_student_that_diverges_changes_neither_noise_nor_guarantee(small, tmp_path, monkeypatch):
    """Its parameters cannot be used; all others get the same noise, and the same shares."""
    perform = Worker.perform
    sick = []

    def diverging(self, assignment):
        reply = perform(self, assignment)
        if assignment.client in sick and assignment.phase == "learn":
            for value in reply.values["parameters"].values():
                value.fill_(math.nan)
        return reply

    monkeypatch.setattr(Worker, "perform", diverging)
    still = ("training.local_epochs=0", "training.min_steps=0", "engine.cohort=off", "rounds=1")
    experiment = small("strategy.name=fedavg", *PRIVATE, *still, "engine.name=inline")
    well = run(experiment, tmp_path / "well")
    sick.append(1)
    ill = run(experiment, tmp_path / "ill")
    assert [entry["client"] for entry in ill.rounds[0]["left_out"]] == [1]
    assert ill.rounds[0]["common_loss_mean"] == well.rounds[0]["common_loss_mean"]
    one, other = (against_others(done.releases, experiment) for done in (well, ill))
    assert one.epsilon == other.epsilon > 0


def test_a_round_in_which_nobody_answers_has_no_noise_and_leaves_none(small, tmp_path, monkeypatch):
    perform = Worker.perform

    def failing(self, assignment):
        if assignment.round == 2:
            raise ValueError("it raised")
        return perform(self, assignment)

    monkeypatch.setattr(Worker, "perform", failing)
    keys = ("rounds=3", "on_empty_round=skip", "engine.name=inline")
    experiment = small("strategy.name=fedavg", *PRIVATE, *QUICK, *keys)
    found = against_others(run(experiment, tmp_path / "run").releases, experiment)
    assert found.epsilon is None
    assert found.why.startswith("none: in round 2 client 0 failed")


def test_averaging_that_is_none_is_one_line(small, tmp_path):
    class Wrong(FedAvg):
        def averaging(self, round):
            return 4.0

    registry.register("strategies", "wrong")(Wrong)
    with pytest.raises(FedkdError, match=r"averaging\(round=1\): returned 4.0; allowed"):
        run(small("strategy.name=wrong", *QUICK), tmp_path / "run")
