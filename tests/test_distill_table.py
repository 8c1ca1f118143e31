"""``[distill]``: clients train on the transfer set by settings of its own."""

import pytest
import torch
from lines import measured

from fedkd import run
from fedkd.data.federated import load
from fedkd.engine.worker import Worker
from fedkd.privacy.ledger import Ledger
from fedkd.privacy.public import Public
from fedkd.registry import register
from fedkd.shapes import Shapes, Sizes
from fedkd.strategies.uniform import Uniform
from fedkd.work import Assignment, CrossEntropy, Fit, Rows, Soft


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_what_training_says_too_changes_nothing(small, cohort):
    few = ["strategy.name=fedmd", f"engine.cohort={cohort}"]
    plain = run(small(*few), "plain")
    training = plain.experiment.training
    same = [
        f"distill.lr={training.lr}",
        f"distill.batch_size={training.batch_size}",
        f"distill.optimiser={training.optimiser}",
    ]
    assert measured(run(small(*few, *same), "same")) == measured(plain)


@pytest.mark.parametrize("cohort", ["on", "off"])
@pytest.mark.parametrize(
    "setting", ["distill.lr=0.05", "distill.batch_size=7", "distill.optimiser=sgd"]
)
def test_private_training_stays_as_it_is(small, setting, cohort):
    few = ["strategy.name=fedmd", "rounds=1", f"engine.cohort={cohort}"]
    plain, changed = (run(small(*few, *more), f"run{len(more)}") for more in ([], [setting]))
    before, after = plain.rounds[0], changed.rounds[0]
    assert before["local"] == after["local"]
    assert before["own_loss_mean"] != after["own_loss_mean"]


def test_it_is_of_the_transfer_set_and_of_rows_of_it(small):
    experiment = small("distill.lr=0.05", "training.lr=0.001")
    assert experiment.training_on("transfer").lr == 0.05
    assert experiment.training_on("private").lr == 0.001
    rows = [Rows(source, torch.arange(3)) for source in ("transfer", "private")]
    assert [experiment.training_on(some).lr for some in rows] == [0.05, 0.001]


@pytest.mark.parametrize("setting", ["distill.batch_size=8", "training.batch_size=16"])
def test_the_ledger_plans_the_draws_that_are_made(small, setting):
    """What a lost client would have drawn, of private samples in a fit on the transfer set."""
    experiment = small("training.dp.noise_multiplier=1", "strategy.name=uniform", setting)
    data = load(experiment)
    ledger = Ledger(
        experiment, Public(data.transfer()), Shapes(experiment, data.task, Sizes.of(data))
    )
    step = Fit("transfer", (CrossEntropy(on="private"),), epochs=1, min_steps=0)
    metrics = Worker(experiment).perform(Assignment(0, 1, "learn", (step,))).metrics
    drawn = metrics["dp_sample_rate"], metrics["dp_steps"]
    assert ledger._planned(step, 0) == drawn


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_a_method_that_distils_with_a_rate_of_its_own_keeps_it(small, cohort):
    @register("strategies", "mine")
    class Mine(Uniform):
        def receive(self, round, client):
            (term,) = self.distil(Soft(self.fused)).terms
            return [Fit("transfer", (term,), epochs=1, min_steps=0, lr=0.002)]

    few = ["strategy.name=mine", "rounds=2", f"engine.cohort={cohort}"]
    plain = run(small(*few), "plain")
    scheduled = ["training.schedule=step", "training.schedule_rounds=1"]
    for number, more in enumerate((["distill.lr=0.5"], [*scheduled, "distill.lr=0.5"])):
        done = run(small(*few, *more), f"run{number}")
        assert measured(done)[0][0] == measured(plain)[0][0]
    private = [*few, "training.local_epochs=0"]
    alone, both = run(small(*private), "alone"), run(small(*private, *scheduled), "both")
    assert measured(alone) == measured(both)
