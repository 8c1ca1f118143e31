"""What observers are told, and what TensorBoard shows of it."""

import importlib.util
import math

import pytest
from lines import Killed, KilledAfter

from fedkd import FedkdError, Observer, Run, run
from fedkd.observers import Observers, TensorBoard, scalars
from fedkd.simulations import cli

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard"
)


class Diary(Observer):
    def __init__(self):
        self.told = []

    def started(self, *what):
        self.told.append(("started", *what[1:3]))

    def clients_done(self, *what):
        self.told.append(("clients_done", *what))

    def round_done(self, line):
        self.told.append(("round_done", line["round"]))

    def warned(self, message):
        self.told.append(("warned", message))


def read(folder):
    """Tag -> step -> value of all events in ``folder``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert len(set(steps)) == len(steps), f"{tag} has a step twice"
        found[tag] = {event.step: event.value for event in events.Scalars(tag)}
    return found


def test_several_observers_are_told_the_same(small):
    first, second = Diary(), Diary()
    both = Observers(first, second)
    run(small("strategy.name=uniform"), observer=both)
    both.warned("beta is large")
    assert first.told == second.told
    assert {what for what, *_ in first.told} == {"started", "clients_done", "round_done", "warned"}
    assert [round for what, round, *_ in first.told if what == "round_done"] == [1, 2]


def test_scalars_are_the_finite_numbers_of_a_line_by_part():
    line = {
        "round": 3,
        "own_accuracy_mean": 0.5,
        "local": {"own_accuracy_mean": 0.25},
        "strategy": {"weights": [[1.0]], "contributors": 2, "cut": "fc1", "loss": math.nan},
        "bytes_up": 7,
        "train_loss_mean": None,
        "participants": [0, 1],
        "left_out": [{"client": 2}],
    }
    assert scalars(line) == {
        "fused/own_accuracy_mean": 0.5,
        "local/own_accuracy_mean": 0.25,
        "strategy/contributors": 2.0,
        "round/bytes_up": 7.0,
        "round/participants": 2.0,
        "round/left_out": 1.0,
    }


@needs_tensorboard
def test_tensorboard_holds_the_numbers_of_every_round(small, tmp_path):
    done = run(small("strategy.beta=1"), tmp_path / "mine", observer=TensorBoard(tmp_path / "tb"))
    shown = read(tmp_path / "tb" / "mine")
    wanted = {line["round"]: scalars(line) for line in done.rounds}
    assert len(wanted) == 2
    for round, numbers in wanted.items():
        assert {
            "local/common_accuracy_mean",
            "fused/own_loss_mean",
            "strategy/contributors",
        } <= set(numbers)
        for tag, value in numbers.items():
            assert shown[tag][round] == pytest.approx(value, rel=1e-6)
    assert set(shown) == {tag for numbers in wanted.values() for tag in numbers}


@needs_tensorboard
def test_a_resumed_run_shows_each_round_once(small, tmp_path):
    experiment = small("rounds=4", "checkpoint_every=2")
    with pytest.raises(Killed):
        run(experiment, tmp_path / "mine", observer=Observers(TensorBoard("tb"), KilledAfter(3)))
    assert list(read("tb/mine")["fused/own_accuracy_mean"]) == [1, 2, 3]
    done = run(experiment, tmp_path / "mine", resume=True, observer=TensorBoard("tb"))
    accuracies = {line["round"]: line["own_accuracy_mean"] for line in done.rounds}
    assert list(accuracies) == [1, 2, 3, 4]
    assert read("tb/mine")["fused/own_accuracy_mean"] == pytest.approx(accuracies)


def test_without_the_package_there_is_a_line_that_says_what_to_install(
    small, monkeypatch, capsys, tmp_path
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    with pytest.raises(FedkdError, match="pip install tensorboard"):
        TensorBoard(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "quickstart", "--tensorboard", "tb", "--out", "mine"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert "fedkd[tensorboard]" in err
    assert not (tmp_path / "mine").exists()


@needs_tensorboard
def test_the_command_line_shows_a_run_on_the_screen_and_in_tensorboard(small, capsys, tmp_path):
    (tmp_path / "x.toml").write_text(small().to_toml())
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "x.toml", "--tensorboard", "tb", "--out", "mine"])
    assert not ended.value.code
    assert "round 2/2" in capsys.readouterr().err
    steps = read("tb/mine")["fused/own_accuracy_mean"]
    assert list(steps) == [line["round"] for line in Run.open("mine").rounds]
