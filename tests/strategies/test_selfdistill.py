"""Laws of self-distillation."""

import pytest
import torch
from lines import measured

from fedkd import run
from fedkd.engine.worker import Worker
from fedkd.strategies.base import Replies
from fedkd.work import Assignment


def test_without_weight_it_is_local_training_to_the_bit_and_says_so(small, tmp_path):
    none = run(small("strategy.name=selfdistill", "strategy.weight=0"), tmp_path / "none")
    local = run(small("strategy.name=local"), tmp_path / "local")
    (warned,) = none.rounds[0]["warnings"]
    assert "equals local training" in warned
    plain = [{k: v for k, v in line.items() if k != "warnings"} for line in measured(none)[0]]
    assert plain == measured(local)[0]


def test_the_first_generation_is_local_training_and_nothing_is_sent(small, tmp_path):
    taught = run(small("strategy.name=selfdistill"), tmp_path / "taught")
    local = run(small("strategy.name=local"), tmp_path / "local")
    first, second = taught.rounds
    assert first["local"] == local.rounds[0]["local"]
    assert second["local"] != local.rounds[1]["local"]
    assert (taught.summary["bytes_up"], taught.summary["bytes_down"]) == (0, 0)


@pytest.mark.parametrize("restart", ["true", "false"])
def test_a_heavy_teacher_is_what_a_student_stays_at_or_comes_to(restart, made):
    options = ("strategy.weight=1e4", f"strategy.restart={restart}", "training.lr=1e-5")
    strategy = made("selfdistill", *options)
    worker = Worker(strategy.experiment)

    def do(round):
        before = {name: value.clone() for name, value in worker.state(0)["own"].items()}
        steps = tuple(strategy.learn(round, 0))
        strategy.fuse(round, Replies([worker.perform(Assignment(0, round, "learn", steps))]))
        return before, worker.state(0)

    do(1)
    teacher, after = do(2)
    apart = max(float((after["own"][name] - teacher[name]).abs().max()) for name in teacher)
    if restart == "false":
        assert apart < 1e-2
        return
    assert all(torch.equal(after["before"][name], value) for name, value in teacher.items())
    begun = [float((after["own"][name] - w).abs().max()) for name, w in after["first"].items()]
    assert 0 < max(begun) < 1e-2 < apart
