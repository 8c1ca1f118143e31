"""DS-FL whose server splits classes by its student's features."""

import pytest
import torch
from lines import Killed, KilledAfter, measured

from fedkd import FedkdError, run
from fedkd.distillation.objectives import cross_entropy, made
from fedkd.distillation.pseudo_classes import PseudoClasses
from fedkd.engine.worker import Worker
from fedkd.records import AUXILIARY
from fedkd.work import Assignment, Fit, Soft

PARTS = ["strategy.name=dsfl", "strategy.pseudo_classes=3"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_without_its_head_it_is_cross_entropy_with_the_sums(tau):
    logits, whole, beside = draw(6, 4), draw(6, 12, seed=1).softmax(1), draw(6, 12, seed=2)
    sums = whole.view(6, 4, 3).sum(2)
    found = PseudoClasses(parts=3, alpha=0.0)(logits, whole, tau, auxiliary=beside)
    torch.testing.assert_close(found, cross_entropy(logits, sums, tau))
    found = PseudoClasses(parts=3, alpha=0.5)(logits, whole, tau, auxiliary=beside) - found
    torch.testing.assert_close(found, 0.5 * cross_entropy(beside, whole, tau))


def test_its_head_is_as_wide_as_its_targets(small):
    assert made({"name": "pseudo_classes", "parts": 3}).columns(10) == 30
    worker = Worker(small())
    targets = torch.full((80, 30), 1 / 30)
    terms = (Soft(targets, {"name": "pseudo_classes", "parts": 3}),)
    worker.perform(Assignment(0, 1, "receive", (Fit("transfer", terms),)))
    ((_, head),) = [each for each in worker.states[0].items() if each[0].startswith(AUXILIARY)]
    assert head["weight"].shape[0] == 30


def test_what_travels_is_the_parts(small):
    """Three times the soft labels of DS-FL go down, and as much up."""
    plain, parts = run(small("strategy.name=dsfl"), "plain"), run(small(*PARTS), "parts")
    for one, other in zip(plain.rounds, parts.rounds, strict=True):
        assert one["bytes_up"] == other["bytes_up"]
        assert 2.5 < other["bytes_down"] / one["bytes_down"] < 3.1
    assert measured(plain) != measured(parts)


def test_a_run_that_goes_on_has_the_same_numbers(small):
    experiment = small(*PARTS, "rounds=3", "checkpoint_every=1", "participation=0.75")
    whole = run(experiment, "whole")
    with pytest.raises(Killed):
        run(experiment, "cut", observer=KilledAfter(2))
    assert measured(run(experiment, "cut", resume=True)) == measured(whole)


@pytest.mark.slow
def test_engines_agree(small):
    given = [*PARTS, "participation=0.75", "rounds=3", "training.keep_optimiser=true"]
    given += ["engine.cohort=off"]
    procs = run(small(*given, "engine.name=procs", "engine.workers=2"), "procs")
    assert measured(procs) == measured(run(small(*given, "engine.name=inline"), "inline"))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy.pseudo_classes=1000"], "features; at most as many parts"),
        (["strategy.name=fedntd", 'strategy.objective="pseudo_classes"'], "pseudo_classes"),
    ],
)
def test_what_it_cannot_is_one_line(small, overrides, line):
    base = PARTS if "strategy.name" not in overrides[0] else []
    with pytest.raises(FedkdError, match=line) as error:
        run(small(*base, *overrides), "wrong")
    assert "\n" not in str(error.value)
