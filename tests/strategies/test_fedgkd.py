"""Known answers of FedGKD."""

import pytest
import torch
from lines import measured

from fedkd import run
from fedkd.strategies.base import Replies
from fedkd.work import Hold, Reply, Soft

ONE_STEP = (
    *("training.optimiser=sgd", "training.lr=0.5", "training.local_epochs=1"),
    *("training.batch_size=1000", "rounds=3", "evaluate_every=3"),
)


def last_loss(done):
    return done.rounds[-1]["own_loss_mean"]


def test_without_weight_it_is_fedavg_to_the_bit(small, tmp_path):
    weightless = run(small("strategy.name=fedgkd", "strategy.gamma=0"), tmp_path / "fedgkd")
    fedavg = run(small("strategy.name=fedavg"), tmp_path / "fedavg")
    assert measured(weightless) == measured(fedavg)


@pytest.mark.parametrize(("buffer", "alike"), [(1, True), (5, False)])
def test_a_teacher_from_which_one_starts_has_no_slope_in_the_first_step(
    buffer, alike, small, tmp_path
):
    """Of one step a round, the divergence from the last global student changes nothing."""
    keys = ("strategy.gamma=20", f"strategy.buffer={buffer}", *ONE_STEP)
    taught = run(small("strategy.name=fedgkd", *keys), tmp_path / "fedgkd")
    fedavg = run(small("strategy.name=fedavg", *ONE_STEP), tmp_path / "fedavg")
    assert (last_loss(taught) == pytest.approx(last_loss(fedavg), rel=1e-5)) == alike


def test_the_teacher_is_the_mean_of_the_last_global_students(made):
    strategy = made("fedgkd", "strategy.buffer=3", "strategy.gamma=0.6")
    for round, value in enumerate([1.0, 4.0, 7.0, 10.0], start=1):
        sent = {name: torch.full_like(w, value) for name, w in strategy.parameters.items()}
        strategy.fuse(round, Replies([Reply(0, 10, {"parameters": sent})]))
    assert all((w == 7.0).all() for w in strategy.teacher.values())
    load, hold, taught, fit, _ = strategy.learn(5, 2)
    assert all((w == 10.0).all() for w in load.parameters.values())
    assert hold == Hold("teacher")
    assert (taught.parameters, taught.student) == (strategy.teacher, "teacher")
    assert fit.terms[1] == Soft("teacher", weight=0.3)


@pytest.mark.parametrize(("buffer", "down"), [(1, [1, 1, 1]), (2, [1, 2, 2])])
def test_a_teacher_that_is_the_global_student_is_sent_once(buffer, down, small, tmp_path):
    keys = ("rounds=3", f"strategy.buffer={buffer}", "training.local_epochs=0.1")
    done = run(small("strategy.name=fedgkd", *keys), tmp_path / "run")
    student = done.rounds[0]["bytes_up"]
    assert [line["bytes_down"] / student for line in done.rounds] == down
