"""Optimisers that go on where they were."""

import pytest
import torch
from lines import Killed, KilledAfter, measured

from fedkd import FedkdError, run
from fedkd.effects import without_effect
from fedkd.engine.worker import Worker
from fedkd.records import OPTIMISER
from fedkd.work import Assignment, CrossEntropy, Fit, Hold, Load, Peer, Proximal, Soft

KEEP = "training.keep_optimiser=true"
WHOLE = "training.batch_size=1000"
"""A step a pass: all clients take as many, and no order matters."""
OPTIMISERS = {
    "adam": ["training.optimiser=adam"],
    "adamw": ["training.optimiser=adamw", "training.weight_decay=0.1"],
    "adam with decay": ["training.optimiser=adam", "training.weight_decay=0.1"],
    "momentum": ["training.optimiser=sgd", "training.momentum=0.9", "training.lr=0.05"],
}
optimisers = pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
cohorts = pytest.mark.parametrize("cohort", ["on", "off"])


def assigned(client, *steps, trial=(), round=1):
    return Assignment(client, round, "learn", steps, trial)


def student(worker, client=0, name="own"):
    return {key: tensor.clone() for key, tensor in worker.parameters(client, name).items()}


def same(one, other, **tolerance):
    torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


@optimisers
@cohorts
def test_two_fits_are_one_that_is_twice_as_long(small, optimiser, cohort):
    given = [WHOLE, *optimiser, f"engine.cohort={cohort}"]
    afresh, kept = Worker(small(*given)), Worker(small(*given, KEEP))
    clients = range(4)
    for epochs, worker in ((4, afresh), (2, kept), (2, kept)):
        worker.perform_all([assigned(n, Fit(epochs=epochs)) for n in clients], lambda done: None)
    for client in clients:
        same(student(kept, client), student(afresh, client), rtol=1e-5, atol=1e-6)
    again = Worker(small(*given))
    for _ in range(2):
        again.perform_all([assigned(n, Fit(epochs=2)) for n in clients], lambda done: None)
    gap = max((student(again)[k] - t).abs().max() for k, t in student(kept).items())
    assert gap > 1e-4


@optimisers
def test_a_cohort_whose_clients_have_taken_unlike_numbers_of_steps_is_a_loop(small, optimiser):
    """Adam corrects its moments by each client's own steps."""
    found = []
    for cohort in ("off", "on"):
        worker = Worker(small(*optimiser, KEEP, "data.sizes=natural", f"engine.cohort={cohort}"))
        part = Fit(epochs=0.7, part=("fc1",))
        for steps, clients in (([part], [0, 2]), ([Fit()], [0, 1, 2, 3]), ([Fit()], [1, 2, 3])):
            replies = worker.perform_all([assigned(n, *steps) for n in clients], lambda done: None)
            assert not any(reply.error or reply.failure for reply in replies)
        found.append(worker.states)
    assert found[0][1].keys() == found[1][1].keys() >= {f"{OPTIMISER}own private"}
    for client in range(4):
        same(found[1][client]["own"], found[0][client]["own"], rtol=1e-3, atol=1e-3)
        name = f"{OPTIMISER}own private"
        for key, tensor in found[0][client][name].items():
            same(found[1][client][name][key], tensor, rtol=1e-3, atol=1e-3)


def test_each_student_and_each_of_private_and_transfer_has_its_own(small):
    worker = Worker(small(KEEP, WHOLE))
    targets = torch.full((80, 10), 0.1)
    peer = Peer("meme", (CrossEntropy(),), "meme_loss")
    worker.perform(
        assigned(
            0, Hold("meme", ""), Fit(together=(peer,)), Fit("transfer", (Soft(targets),), epochs=3)
        )
    )
    kept = {key: held for key, held in worker.states[0].items() if key.startswith(OPTIMISER)}
    names = {f"{OPTIMISER}{which}" for which in ("own private", "meme private", "own transfer")}
    assert kept.keys() == names
    assert all(len(held) == 3 * len(student(worker)) for held in kept.values())
    steps = {
        key: {float(t) for n, t in held.items() if n[:5] == "step "} for key, held in kept.items()
    }
    assert steps == {
        f"{OPTIMISER}own private": {2.0},
        f"{OPTIMISER}meme private": {2.0},
        f"{OPTIMISER}own transfer": {3.0},
    }


@cohorts
def test_a_part_that_does_not_learn_is_kept_as_it_was(small, cohort):
    worker = Worker(small(KEEP, WHOLE, f"engine.cohort={cohort}"))
    both = [0, 1]
    worker.perform_all([assigned(n, Fit(epochs=2)) for n in both], lambda done: None)
    head = Fit(epochs=1, part=("head",))
    worker.perform_all([assigned(n, head) for n in both], lambda done: None)
    kept = worker.states[0][f"{OPTIMISER}own private"]
    steps = {name: float(tensor) for name, tensor in kept.items() if name.startswith("step ")}
    assert {steps[name] for name in steps if "head" in name} == {3.0}
    assert {steps[name] for name in steps if "head" not in name} == {2.0}


@cohorts
def test_what_is_undone_leaves_it_as_it_was(small, cohort):
    worker = Worker(small(KEEP, f"engine.cohort={cohort}"))
    both = [0, 1]
    worker.perform_all([assigned(n, Fit()) for n in both], lambda done: None)
    before = {n: worker.states[n][f"{OPTIMISER}own private"] for n in both}
    worker.perform_all([assigned(n, trial=(Fit(),), round=2) for n in both], lambda done: None)
    with pytest.raises(FedkdError):
        worker.perform(assigned(0, Fit(), Load({"none": torch.zeros(1)}), round=3))
    for client in both:
        after = worker.states[client][f"{OPTIMISER}own private"]
        assert after.keys() == before[client].keys()
        assert all(torch.equal(after[key], before[client][key]) for key in after)


@cohorts
def test_an_optimiser_that_has_diverged_starts_afresh(small, cohort):
    worker = Worker(small(KEEP, f"engine.cohort={cohort}"))
    broken = {name: torch.full_like(t, torch.nan) for name, t in worker.state(0)["own"].items()}
    whole = student(worker)
    first = [assigned(0, Load(broken), Fit()), assigned(1, Load(whole), Fit())]
    worker.perform_all(first, lambda done: None)
    assert f"{OPTIMISER}own private" not in worker.states[0]
    assert f"{OPTIMISER}own private" in worker.states[1]
    worker.perform_all([assigned(n, Load(whole), Fit(), round=2) for n in (0, 1)], lambda d: None)
    assert all(bool(tensor.isfinite().all()) for tensor in student(worker).values())


def test_parameters_that_are_given_do_not_change_what_is_kept(small):
    """As clients of FedAvg have it that keep their moments."""
    worker = Worker(small(KEEP, WHOLE))
    worker.perform(assigned(0, Fit(epochs=1)))
    moment = worker.states[0][f"{OPTIMISER}own private"]["exp_avg head.weight"]
    assert moment.abs().max() > 0
    start = {name: torch.zeros_like(tensor) for name, tensor in student(worker).items()}
    worker.perform(assigned(0, Load(start), Fit(terms=(Proximal(0.0),), epochs=1), round=2))
    after = worker.states[0][f"{OPTIMISER}own private"]["exp_avg head.weight"]
    same(after, 0.9 * moment, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "cohort"), [("fedavg", "on"), ("fedrep", "off"), ("fml", "on")])
def test_a_run_that_goes_on_has_the_same_numbers(small, name, cohort):
    given = [f"strategy.name={name}", KEEP, f"engine.cohort={cohort}", "rounds=3"]
    experiment = small(*given, "participation=0.75", "checkpoint_every=1")
    whole = run(experiment, "whole")
    with pytest.raises(Killed):
        run(experiment, "cut", observer=KilledAfter(2))
    assert measured(run(experiment, "cut", resume=True)) == measured(whole)
    afresh = small(*(each for each in given if each != KEEP), "participation=0.75")
    assert measured(run(afresh, "afresh")) != measured(whole)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["procs", "ray", "flower"])
def test_every_engine_keeps_it(small, engine):
    given = ["strategy.name=fml", KEEP, "engine.cohort=off", "participation=0.75", "rounds=3"]
    there = run(small(*given, f"engine.name={engine}", "engine.workers=2"), engine)
    assert measured(there) == measured(run(small(*given), "inline"))


def test_it_does_not_travel(small):
    afresh, kept = (run(small(*more), name) for name, more in (("a", []), ("k", [KEEP])))
    for way in ("bytes_up", "bytes_down"):
        assert [line[way] for line in afresh.rounds] == [line[way] for line in kept.rounds]


def test_dpsgd_goes_on_from_noisy_moments(small):
    """Without noise to speak of and with a bound that nobody reaches it is plain training."""
    private = ["training.dp.noise_multiplier=1e-9", "training.dp.max_grad_norm=1e3"]
    given = [KEEP, WHOLE, *OPTIMISERS["momentum"]]
    plain, dp = Worker(small(*given)), Worker(small(*given, *private))
    for round in (1, 2):
        for worker in (plain, dp):
            worker.perform(assigned(0, Fit(epochs=2), round=round))
    same(student(dp), student(plain), rtol=1e-3, atol=1e-3)
    kept = [worker.states[0][f"{OPTIMISER}own private"] for worker in (plain, dp)]
    assert kept[0].keys() == kept[1].keys()


def test_nothing_is_remembered_of_training_that_goes_on(small):
    given = ["strategy.name=local", KEEP, "engine.cohort=off"]
    plain = run(small(*given), "plain")
    for again in ("once", "twice"):
        remembered = small(*given, "engine.remember=true")
        assert measured(run(remembered, again)) == measured(plain)


def test_plain_gradient_descent_keeps_nothing(small):
    plain = small(KEEP, "training.optimiser=sgd")
    assert any("training.keep_optimiser" in line for line in without_effect(plain))
    for more in ("training.momentum=0.5", "distill.optimiser=adam"):
        assert not any(
            "keep_optimiser" in line
            for line in without_effect(small(KEEP, "training.optimiser=sgd", more))
        )
    worker = Worker(plain)
    worker.perform(assigned(0, Fit()))
    assert worker.states[0].keys() == {"own"}
