"""Learning rates that go with the rounds."""

import pytest
from lines import measured

from fedkd import run
from fedkd.training_tables import TrainingTable


def rates(rounds, **settings):
    table = TrainingTable(**settings)
    return [table.rate(round, rounds) for round in range(1, rounds + 1)]


def test_the_rates_have_known_values():
    assert rates(3) == [1, 1, 1]
    assert rates(4, schedule="cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    stepping = {"schedule": "step", "schedule_rounds": 2, "schedule_factor": 0.5}
    assert rates(5, **stepping) == [1, 1, 0.5, 0.5, 0.25]
    assert rates(4, warmup_rounds=3) == [0.25, 0.5, 0.75, 1]
    assert rates(3, warmup_rounds=1, **stepping) == [0.5, 1, 0.5]


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_a_round_trains_with_its_own_rate(small, cohort):
    """A step of one half in round 2 is half the rate there, and what was before is as it was."""
    few = ["strategy.name=local", "rounds=2", f"engine.cohort={cohort}", "checkpoint_every=1"]
    stepping = ["training.schedule=step", "training.schedule_rounds=1"]
    whole = run(small(*few), "whole")
    halved = run(small(*few, *stepping, "training.schedule_factor=0.5"), "halved")
    same = run(small(*few, *stepping, "training.schedule_factor=1"), "same")
    assert measured(same) == measured(whole)
    assert measured(halved)[0][0] == measured(whole)[0][0]
    assert measured(halved)[0][1] != measured(whole)[0][1]
    warm = run(small(*few, "training.warmup_rounds=1"), "warm")
    half = run(small(*few, "training.lr=0.0005"), "half")
    assert warm.experiment.training.lr == 0.001
    assert measured(warm)[0][0] == measured(half)[0][0]


def test_distilling_goes_by_the_schedule_too(small):
    experiment = small("rounds=4", "training.schedule=cosine", "distill.lr=0.02")
    assert experiment.training_on("private", 3).lr == pytest.approx(0.0005)
    assert experiment.training_on("transfer", 3).lr == pytest.approx(0.01)


def test_what_is_remembered_knows_the_rate(small):
    """Two schedules may agree on a seed, a round and all of ``[training]``, and not on the rate."""
    few = ["strategy.name=local", "engine.cohort=off", "training.schedule=cosine"]
    for rounds in (2, 3):
        plain = run(small(*few, f"rounds={rounds}"), f"plain{rounds}")
        again = small(*few, f"rounds={rounds}", "engine.remember=true")
        remembered = run(again, f"remembered{rounds}")
        assert measured(remembered) == measured(plain)


@pytest.mark.parametrize("cohort", ["on", "off"])
@pytest.mark.parametrize("name", ["fedavg-ft", "fedbabu"])
def test_students_are_tuned_for_a_test_at_the_full_rate(small, name, cohort):
    """Else the last round, by which methods are compared, would hardly tune them."""
    few = [f"strategy.name={name}", "rounds=2", f"engine.cohort={cohort}"]
    stepping = ["training.schedule=step", "training.schedule_rounds=1"]
    # In round 2 the global student hardly moves: what is tested is what was tested in round 1.
    first, second = run(small(*few, *stepping, "training.schedule_factor=1e-9"), "late").rounds
    untuned = run(small(*few, "strategy.finetune_epochs=0"), "untuned").rounds[0]
    tuning = untuned["own_loss_mean"] - first["own_loss_mean"]
    assert tuning > 0
    assert untuned["own_loss_mean"] - second["own_loss_mean"] > 0.5 * tuning
