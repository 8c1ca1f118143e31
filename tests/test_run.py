"""A run's folder, resuming, and what goes wrong on the way."""

import errno
import importlib
import json
import os
import re
import shutil
import signal
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from lines import SMALL, Killed, KilledAfter, Told, measured, sampled
from torch import nn

from fedkd import Experiment, FedkdError, Observer, Run, checkpoint, interrupt, registry, run
from fedkd.engine.worker import Worker
from fedkd.errors import CheckpointError, FedkdWarning
from fedkd.interrupt import Interrupted
from fedkd.training import fit_together


@pytest.mark.parametrize("name", sampled(registry.names("strategies"), "fedgkt", "fml", "knfu"))
@pytest.mark.parametrize("how", ["killed after round 3", "interrupted at the end of round 3"])
def test_a_run_that_was_ended_ends_with_the_numbers_it_would_have_had(
    name, how, small, tmp_path, monkeypatch
):
    """A kill leaves what there was after round 2; Ctrl-C writes what there was after round 2."""
    every = f"checkpoint_every={2 if how.startswith('killed') else 100}"
    experiment = small(f"strategy.name={name}", "rounds=4", every, "participation=0.5")
    whole = measured(run(experiment, tmp_path / "whole"))
    if how.startswith("killed"):
        with pytest.raises(Killed):
            run(experiment, tmp_path / "run", observer=KilledAfter(3))
    else:
        append = Run.append_round

        def interrupted(self, line, **details):
            if line["round"] == 3:  # clients and server have done all of its work
                raise KeyboardInterrupt
            append(self, line, **details)

        monkeypatch.setattr(Run, "append_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, tmp_path / "run")
        monkeypatch.setattr(Run, "append_round", append)
    ended = Run.open(tmp_path / "run")
    assert ended.summary is None
    assert len(ended.rounds) == (3 if how.startswith("killed") else 2)
    told = Told()
    resumed = run(experiment, tmp_path / "run", resume=True, observer=told)
    assert told.first == 3
    assert measured(resumed) == whole
    assert resumed.releases == Run(tmp_path / "whole").releases
    assert resumed.summary["rounds"] == 4
    resumed.check()
    assert not (tmp_path / "run" / "checkpoint").exists()


# --- the same command again ---------------------------------------------------------------------


@pytest.fixture
def short(small):
    """A run of a fraction of a second."""
    keys = ("strategy.name=uniform", "rounds=4", "checkpoint_every=1", "training.local_epochs=0.5")
    return lambda *more: small(*keys, *more)


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def killed(short, tmp_path):
    """The folder of a run that was killed after round 3, with checkpoints of rounds 2 and 3."""
    with pytest.raises(Killed):
        run(short(), tmp_path / "run", observer=KilledAfter(3))
    return tmp_path / "run"


@pytest.fixture
def numbers(short, tmp_path):
    """What the run would have had."""
    return measured(run(short(), tmp_path / "whole"))


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_given_back_as_it_is(short, tmp_path, resume):
    run(short(), tmp_path / "run")
    before, told = contents(tmp_path / "run"), Told()
    again = run(short(), tmp_path / "run", resume=resume, observer=told)
    assert again.summary is not None
    assert (told.finished, told.first, told.warnings) == (True, None, [])
    assert contents(tmp_path / "run") == before


def test_a_finished_run_is_run_again_where_that_is_said(short, tmp_path):
    first = run(short(), tmp_path / "run")
    numbers, before = measured(first), contents(first.folder)["summary.json"]
    again = run(short(), tmp_path / "run", fresh=True)
    assert measured(again) == numbers
    assert contents(again.folder)["summary.json"] != before  # it has taken another time


def test_a_run_that_has_not_finished_is_not_begun_anew_unless_that_is_said(short, killed, numbers):
    before = contents(killed)
    line = r"run holds 3 of 4 rounds of this experiment; go on with --resume, or begin anew"
    with pytest.raises(FedkdError, match=line):
        run(short(), killed)
    with pytest.raises(FedkdError, match="--resume and --fresh are not allowed together"):
        run(short(), killed, resume=True, fresh=True)
    assert contents(killed) == before
    told = Told()
    assert measured(run(short(), killed, fresh=True, observer=told)) == numbers
    assert told.first == 1


def test_a_run_that_has_no_round_yet_begins(short, tmp_path):
    for _ in range(2):
        with pytest.raises(FedkdError, match="round 1: every client's reply was left out"):
            run(short("training.optimiser=sgd", "training.lr=1e30"), tmp_path / "run")


@pytest.mark.parametrize("begun", [False, True])
def test_where_there_is_no_checkpoint_resuming_begins_at_round_1_and_says_so(
    short, numbers, tmp_path, begun
):
    if begun:
        with pytest.raises(Killed):
            run(short("checkpoint_every=0"), tmp_path / "run", observer=KilledAfter(2))
    told = Told()
    done = run(short("checkpoint_every=0"), tmp_path / "run", resume=True, observer=told)
    assert measured(done) == numbers
    assert told.warnings == [
        f"{tmp_path / 'run'} holds no checkpoint to go on from: the run begins at round 1"
    ]


@pytest.mark.parametrize("ended", [False, True])
def test_other_data_under_the_same_name_are_refused(short, tmp_path, ended):
    images = np.random.default_rng(0).integers(0, 255, (800, 4, 4), np.uint8)
    np.savez("mine.npz", x=images, y=np.arange(800) % 4)
    experiment = short("data.dataset=npz:mine.npz")
    if ended:
        run(experiment, tmp_path / "run")
    else:
        with pytest.raises(Killed):
            run(experiment, tmp_path / "run", observer=KilledAfter(2))
    before = contents(tmp_path / "run")
    images[7, 3, 3] += 1
    np.savez("mine.npz", x=images, y=np.arange(800) % 4)
    with pytest.raises(FedkdError, match=r"the data of .*run are not what they were") as failure:
        run(experiment, tmp_path / "run", resume=True)
    assert "\n" not in str(failure.value)
    assert contents(tmp_path / "run") == before


def test_another_version_is_said_with_the_numbers(short, killed):
    environment = json.loads((killed / "environment.json").read_text())
    environment["packages"] |= {"torch": "1.0", "numpy": "1.0"}
    (killed / "environment.json").write_text(json.dumps(environment))
    told = Told()
    done = run(short(), killed, resume=True, observer=told)
    assert done.warnings == told.warnings
    said = r"from round 4 on this run was made by another version, .*: torch \S+ \(it was 1.0\), nu"
    assert re.match(said, done.warnings[0])
    told = Told()
    run(short(), killed, observer=told)
    assert told.finished
    assert "torch" in told.warnings[0]


METHOD = """
from fedkd.strategies.uniform import Uniform

class Mine(Uniform):
    "Mine."
"""


def test_numbers_of_another_source_of_a_method_are_not_given_back(short, tmp_path, monkeypatch):
    (tmp_path / "mine_method.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    registry.register("strategies", "mine")(importlib.import_module("mine_method").Mine)
    experiment = short("strategy.name=mine")
    for _ in range(2):
        run(experiment, tmp_path / "run")
    (tmp_path / "mine_method.py").write_text(METHOD + "    rho = 3\n")
    with pytest.raises(FedkdError, match="the source of mine is not what it was") as failure:
        run(experiment, tmp_path / "run")
    assert "\n" not in str(failure.value)
    assert run(experiment, tmp_path / "run", resume=True).summary


# --- checkpoints --------------------------------------------------------------------------------


def checkpoints(folder):
    """The checkpoints of a run, the newest first."""
    return sorted((folder / "checkpoint").glob("round-*.pt"), reverse=True)


def forged(file, change):
    """Change what a checkpoint holds, and give it the name of a whole one."""
    saved = torch.load(file, weights_only=True)
    change(saved)
    torch.save(saved, file)
    name = f"round-{file.name.split('-')[1]}-{checkpoint.digest(file)}.pt"
    return file.rename(file.with_name(name))


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other(**entries):
    return lambda file: forged(file, lambda saved: saved.update(entries))


def of_client(change):
    return lambda file: forged(file, lambda saved: change(saved["states"]))


def named(change):
    return lambda file: file.rename(file.with_name(change(file.name)))


DAMAGES = {
    "a bit is another": flipped,
    "it is cut off": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "it is empty": lambda file: file.write_bytes(b""),
    "it is text": lambda file: file.write_bytes(b"not a checkpoint"),
    "its name is another": named(lambda name: f"round-3-{32 * '0'}.pt"),
    "its name is of an earlier version": named(lambda name: "state.pt"),
    "its name is of another round": named(lambda name: name.replace("round-3", "round-4")),
    "round = 99": other(round=99),
    "round is text": other(round="3"),
    "seconds are not a number": other(seconds=float("nan")),
    "it is of another experiment": other(experiment="0" * 32),
    "strategy is a list": other(strategy=[]),
    "states is a list": other(states=[]),
    "files is empty": other(files={}),
    "an entry is missing": lambda file: forged(file, lambda saved: saved.pop("seconds")),
    "a client is none": of_client(lambda states: states.update({9: states[0]})),
    "a client is text": of_client(lambda states: states.update({"1": states.pop(1)})),
    "a student is missing": of_client(lambda states: states[0].clear()),
    "a student is a list": of_client(lambda states: states[0].update(own=[])),
    "a student is not known": of_client(lambda states: states[0].update({"x:nothing": {}})),
    "a tensor is missing": of_client(lambda states: states[0]["own"].popitem()),
    "a tensor has another shape": of_client(
        lambda states: states[0]["own"].update({"head.bias": torch.zeros(3)})
    ),
    "a tensor has another type": of_client(
        lambda states: states[0]["own"].update({"head.bias": torch.zeros(10, dtype=torch.float64)})
    ),
}


@pytest.fixture(scope="module")
def ended_twice(tmp_path_factory):
    """A run that was killed after round 3, and the same one whole, to be copied."""
    place = tmp_path_factory.mktemp("ended")
    keys = ("strategy.name=uniform", "rounds=4", "checkpoint_every=1", "training.local_epochs=0.5")
    experiment = Experiment.from_toml(SMALL, keys)
    with pytest.raises(Killed):
        run(experiment, place / "run", observer=KilledAfter(3))
    return place / "run", measured(run(experiment, place / "whole"))


@pytest.mark.parametrize("how", DAMAGES)
def test_where_a_checkpoint_is_damaged_the_one_before_is_used(how, short, ended_twice, tmp_path):
    folder = shutil.copytree(ended_twice[0], tmp_path / "run")
    DAMAGES[how](checkpoints(folder)[0])
    told = Told()
    done = run(short(), folder, resume=True, observer=told)
    assert told.first == 3
    (said,) = told.warnings
    assert re.match(r"the checkpoint \S+ cannot be read: .*; it is kept as unreadable-", said)
    assert measured(done) == ended_twice[1]
    (kept,) = (folder / "checkpoint").iterdir()
    assert kept.name in said


def test_a_checkpoint_that_does_not_fit_the_method_is_one_line(short, killed, monkeypatch):
    def restore(self, state):
        raise KeyError("target")

    monkeypatch.setattr(registry.load("strategies", "uniform"), "restore", restore)
    said = "checkpoint of round 3 .* does not fit strategy.name = 'uniform'"
    with pytest.raises(CheckpointError, match=said) as failure:
        run(short(), killed, resume=True)
    assert "\n" not in str(failure.value)
    assert len(Run(killed).rounds) == 3


def test_a_tensor_that_two_names_have_is_one_in_a_checkpoint(short, tmp_path, monkeypatch):
    fuse = registry.load("strategies", "uniform").fuse

    def twice(self, round, replies):
        fuse(self, round, replies)
        self.made = torch.ones(2) * 2
        self.same = self.made

    monkeypatch.setattr(registry.load("strategies", "uniform"), "fuse", twice)
    with pytest.raises(Killed):
        run(short(), tmp_path / "run", observer=KilledAfter(3))
    state = torch.load(checkpoints(tmp_path / "run")[0], weights_only=True)["strategy"]
    assert state["made"].tolist() == [2, 2]
    assert state["made"].data_ptr() == state["same"].data_ptr()


def test_where_no_checkpoint_can_be_read_nothing_is_lost(short, killed, numbers):
    for file in checkpoints(killed):
        flipped(file)
    before = contents(killed)
    said = r"--resume: the checkpoint .* cannot be read"
    with pytest.raises(CheckpointError, match=said) as failure:
        run(short(), killed, resume=True)
    assert "\n" not in str(failure.value)
    assert contents(killed) == before
    assert measured(run(short(), killed, fresh=True)) == numbers
    kept = [file.name.partition("round")[0] for file in (killed / "checkpoint").iterdir()]
    assert kept == ["unreadable-"] * 2


def test_a_checkpoint_must_not_run_code(short, killed):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (Path("harm"),)

    for file in checkpoints(killed):
        saved = torch.load(file, weights_only=True)
        torch.save(saved | {"strategy": Harmful()}, file)
        file.rename(file.with_name(f"{file.name[:8]}{checkpoint.digest(file)}.pt"))
    Path("harm").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="cannot be unpacked"):
        run(short(), killed, resume=True)
    assert not Path("harm").exists()


def test_earlier_checkpoints_are_kept_until_the_next_is_there(short, tmp_path, monkeypatch):
    really = torch.save

    def fails_in_round_3(saved, file):
        if saved["round"] == 3:
            file.write(b"half")
            raise MemoryError
        really(saved, file)

    monkeypatch.setattr(torch, "save", fails_in_round_3)
    with pytest.raises(MemoryError):
        run(short(), tmp_path / "run")
    left = sorted(path.name.split("-")[1] for path in (tmp_path / "run" / "checkpoint").iterdir())
    assert left == ["1", "2"]


# --- files that do not go with the checkpoint ---------------------------------------------------

OF_LINES = {
    "a line is missing": lambda lines: lines[:1] + lines[2:],
    "a line is there twice": lambda lines: lines[:2] + lines[1:],
    "it is empty": lambda lines: [],
    "it is halved": lambda lines: lines[: len(lines) // 3],
    "a line is half": lambda lines: [lines[0], lines[1][:9] + b"\n", *lines[2:]],
    "a digit is another": lambda lines: [lines[0].replace(b"1", b"2"), *lines[1:]],
}


@pytest.mark.parametrize("how", OF_LINES)
@pytest.mark.parametrize("name", ["rounds", "clients", "releases"])
def test_a_run_does_not_go_on_from_files_that_are_not_as_they_were(
    name, how, short, ended_twice, tmp_path
):
    folder = shutil.copytree(ended_twice[0], tmp_path / "run")
    file = folder / f"{name}.jsonl"
    file.write_bytes(b"".join(OF_LINES[how](file.read_bytes().splitlines(True))))
    before = contents(folder)
    with pytest.raises(FedkdError, match=re.escape(str(file))) as failure:
        run(short(), folder, resume=True)
    assert "\n" not in str(failure.value)
    assert re.search(r"line \d|not what the run has written", str(failure.value))
    assert contents(folder) == before


def test_what_came_after_the_checkpoint_may_be_as_it_will(short, tmp_path, numbers):
    experiment = short("checkpoint_every=2")
    with pytest.raises(Killed):
        run(experiment, tmp_path / "run", observer=KilledAfter(3))
    for name in ("rounds", "clients", "releases"):
        with (tmp_path / "run" / f"{name}.jsonl").open("r+b") as file:
            file.seek(-30, 2)
            file.write(bytes(20))
            file.truncate()
    (tmp_path / "run" / ".summary.json.new").write_text("{")
    (tmp_path / "run" / ".lock").write_text("{")
    with pytest.warns(FedkdWarning, match=r"rounds\.jsonl, line 3 was cut off and is left out"):
        done = run(experiment, tmp_path / "run", resume=True)
    assert measured(done) == numbers
    assert not [file for file in done.folder.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_that_was_edited_is_not_given_back(short, tmp_path, resume):
    done = run(short(), tmp_path / "run")
    file = done.folder / "rounds.jsonl"
    file.write_text(file.read_text().replace('"round": 2', '"round": 2, "mine": 1', 1))
    with pytest.raises(FedkdError, match=r"rounds\.jsonl is not what the run has written"):
        run(short(), tmp_path / "run", resume=resume)


# --- disks that are full, signals ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writes", "error"),
    [*[(writes, errno.ENOSPC) for writes in (0, 3, 9, 14, 20, 26)], (9, errno.EROFS)],
)
def test_a_disk_that_is_full_or_read_only_is_one_line_and_the_run_goes_on_later(
    short, numbers, tmp_path, monkeypatch, writes, error
):
    fsync, left = os.fsync, [writes]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(error, os.strerror(error))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    said = f"cannot be written: {os.strerror(error)}"
    with pytest.raises(FedkdError, match=said) as failure:
        run(short(), tmp_path / "run")
    assert "\n" not in str(failure.value)
    monkeypatch.setattr(os, "fsync", fsync)
    if (tmp_path / "run" / "experiment.toml").exists():
        Run(tmp_path / "run").check()
        assert not list((tmp_path / "run").rglob(".*"))
    done = run(short(), tmp_path / "run", resume=True)
    assert measured(done) == numbers
    done.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_as_ctrl_c(short, numbers, tmp_path, number):
    class Signals(Observer):
        def round_done(self, line):
            if line["round"] == 2:
                signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as ended:
        run(short("checkpoint_every=100"), tmp_path / "run", observer=Signals())
    assert interrupt.exit_code(ended.value) == 128 + number
    assert signal.getsignal(number) is before
    told = Told()
    resumed = run(short("checkpoint_every=100"), tmp_path / "run", resume=True, observer=told)
    assert told.first == 3
    assert measured(resumed) == numbers


def test_ctrl_c_twice_leaves_nothing_half_written(short, tmp_path, monkeypatch):
    def interrupted(saved, file):
        file.write(b"half")
        raise KeyboardInterrupt

    class Interrupts(Observer):
        def round_done(self, line):
            if line["round"] == 2:
                monkeypatch.setattr(torch, "save", interrupted)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(short(), tmp_path / "run", observer=Interrupts())
    assert sorted(path.name[:8] for path in (tmp_path / "run" / "checkpoint").iterdir()) == [
        *("round-1-", "round-2-")
    ]
    with pytest.raises(KeyboardInterrupt):
        run(short("checkpoint_every=100"), tmp_path / "other", observer=Interrupts())
    assert not (tmp_path / "other" / "checkpoint").exists()
    assert len(Run(tmp_path / "other").rounds) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("every", [1, 100])
def test_a_second_signal_while_the_checkpoint_is_written_waits_for_it(
    number, every, short, numbers, tmp_path, monkeypatch
):
    """Of a batch system that tells all processes, and of the process that started this one."""
    save = torch.save

    def interrupted(saved, file):
        signal.raise_signal(number)
        save(saved, file)

    class Signals(Observer):
        def round_done(self, line):
            if line["round"] == 2:
                monkeypatch.setattr(torch, "save", interrupted)
                signal.raise_signal(number)

    experiment = short(f"checkpoint_every={every}")
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "run", observer=Signals())
    monkeypatch.setattr(torch, "save", save)
    rounds = len(Run(tmp_path / "run").rounds)
    assert checkpoint.files(tmp_path / "run")[0].name.startswith(f"round-{rounds}-")
    assert measured(run(experiment, tmp_path / "run", resume=True)) == numbers


def test_a_signal_while_a_round_is_written_waits_for_its_state(
    short, numbers, tmp_path, monkeypatch
):
    append = Run.append_round

    def interrupted(self, line, **details):
        append(self, line, **details)
        if line["round"] == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Run, "append_round", interrupted)
    with pytest.raises(Interrupted):
        run(short("checkpoint_every=100"), tmp_path / "run")
    assert [file.name[:8] for file in checkpoint.files(tmp_path / "run")] == ["round-1-"]
    told = Told()
    resumed = run(short("checkpoint_every=100"), tmp_path / "run", resume=True, observer=told)
    assert told.first == 2
    assert measured(resumed) == numbers


def test_a_signal_that_is_ignored_stays_so(short, tmp_path):
    class Signals(Observer):
        def round_done(self, line):
            signal.raise_signal(signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        assert run(short(), tmp_path / "run", observer=Signals()).summary
    finally:
        signal.signal(signal.SIGHUP, before)


# --- folders ------------------------------------------------------------------------------------


def test_another_experiment_is_never_overwritten(small, tmp_path):
    run(small(), tmp_path / "run")
    with pytest.raises(FedkdError, match="already holds another experiment"):
        run(small("seed=1"), tmp_path / "run")
    assert Run.open(tmp_path / "run").experiment.seed == 0


def test_a_folder_of_other_things_is_never_written_to(small, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(FedkdError, match="is not a run's folder"):
        run(small(), tmp_path / "thesis")
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_the_folder_has_all_that_a_figure_needs(small, tmp_path):
    done = run(small(), tmp_path / "run")
    assert {file.name for file in done.folder.iterdir()} == {
        "experiment.toml",
        "environment.json",
        "partition.json",
        "reliability.json",
        "rounds.jsonl",
        "clients.jsonl",
        "releases.jsonl",
        "summary.json",
    }
    assert done.experiment == small()
    assert {
        "own_accuracy_mean",
        "own_accuracy_std",
        "own_accuracy_worst10",
        "common_accuracy_mean",
        "rounds",
        "bytes_up",
        "bytes_down",
        "seconds",
    } <= done.summary.keys()
    environment = json.loads((done.folder / "environment.json").read_text())
    assert {"torch", "flwr", "numpy"} <= environment["packages"].keys()
    counts = torch.tensor([client["labels"] for client in done.partition["clients"]])
    assert counts.sum(1).tolist() == [60, 60, 60, 60]


def test_a_line_that_was_cut_off_does_not_spoil_the_folder(small, tmp_path):
    done = run(small(), tmp_path / "run")
    with (done.folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "own_acc')
    with pytest.warns(FedkdWarning, match="line 3 was cut off"):
        assert [line["round"] for line in done.rounds] == [1, 2]


def test_client_numbers_average_to_the_line(small, tmp_path):
    done = run(small(), tmp_path / "run")
    for line in done.rounds:
        own = [
            entry["own_accuracy"]
            for entry in done.clients
            if entry["round"] == line["round"] and entry["stage"] == "fused"
        ]
        assert len(own) == 4
        assert line["own_accuracy_mean"] == pytest.approx(sum(own) / 4)


# --- clients that go wrong ------------------------------------------------------------------


class Sick(nn.Module):
    """A head whose output is not a number."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.linear(x) * float("nan")


@pytest.fixture
def sick_student():
    @registry.register("students", "sick")
    def sick(shape, classes, norm, width):
        return nn.Sequential(
            OrderedDict(flat=nn.Flatten(), head=Sick(torch.Size(shape).numel(), classes))
        )

    sick.__doc__ = "A student whose logits are NaN."


@pytest.mark.usefixtures("sick_student")
@pytest.mark.parametrize("name", ["knfu", "uniform", "dsfl", "fedmd"])
def test_a_client_that_returns_nan_is_left_out_and_recorded(name, small, tmp_path):
    experiment = small(f"strategy.name={name}", "student.models=['mlp', 'sick', 'mlp', 'mlp']")
    done = run(experiment, tmp_path / "run")
    for line in done.rounds:
        assert line["participants"] == [0, 2, 3]
        (entry,) = line["left_out"]
        assert (entry["client"], entry["step"]) == (1, "Fit")
        assert "nan" in entry["reason"]
    assert done.summary["left_out"] == 2
    # Three healthy clients learned: what is not a number reached no mean.
    assert done.rounds[-1]["own_loss_mean"] < 100
    healthy = [c["own_accuracy"] for c in done.clients if c["client"] != 1 and c["round"] == 2]
    assert min(healthy) > 0.2


@pytest.mark.usefixtures("sick_student")
def test_a_round_without_one_fit_reply_ends_the_run_in_one_line(small, tmp_path):
    with pytest.raises(FedkdError, match=r"round 1: every client's reply was left out \(client 0"):
        run(small("student.models=['sick']"), tmp_path / "run")
    assert Run.open(tmp_path / "run").rounds == []


def test_rows_that_are_not_probabilities_are_left_out(small, tmp_path, monkeypatch):
    perform = Worker.perform

    def lie(self, assignment):
        reply = perform(self, assignment)
        if assignment.client == 2 and "soft_labels" in reply.values:
            reply.values["soft_labels"][7] *= 2
        return reply

    monkeypatch.setattr(Worker, "perform", lie)
    done = run(small("strategy.name=knfu", "engine.cohort=off"), tmp_path / "run")
    assert [e["client"] for e in done.rounds[0]["left_out"]] == [2]
    assert "row 7" in done.rounds[0]["left_out"][0]["reason"]
    assert len(done.rounds[0]["strategy"]["weights"]) == 3


def test_parameters_that_are_not_finite_are_left_out(small, tmp_path):
    done = run(
        small("strategy.name=fedavg", "training.optimiser=sgd", "training.lr=1"), tmp_path / "ok"
    )
    assert done.rounds[0]["left_out"] == []
    with pytest.raises(FedkdError, match="every client's reply was left out"):
        run(
            small("strategy.name=fedavg", "training.optimiser=sgd", "training.lr=1e30"),
            tmp_path / "run",
        )


# --- wrong input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("strategy.name=knfuu", r"strategy\.name = 'knfuu' is not known \(did you mean 'knfu'\?\)"),
        ("student.models=['cnn4']", r"student\.models = 'cnn4' is not known \(did you mean 'cnn"),
        ("data.dataset=digit", r"data\.dataset = 'digit' is not known \(did you mean 'digits'\?\)"),
        ("data.partition=dirichlett", r"data\.partition = 'dirichlett'"),
        ("data.clients=5000", r"data\.clients = 5000"),
        ("data.transfer.size=5000", r"data\.transfer\.size = 5000"),
        ("strategy.beta=-1", r"strategy\.beta = -1 is not allowed"),
        ("strategy.objective=mse_logits", r"strategy\.objective = 'mse_logits' is not allowed"),
        ("strategy.objective=kll", r"strategy\.objective = 'kll' is not known"),
        ("engine.device=tpu9", r"engine\.device = 'tpu9' is not here"),
        ("engine.device=meta", r"engine\.device = 'meta' is not here"),
        ("engine.device=", r"engine\.device = '' is not here"),
        ("engine.threads=512", r"engine\.threads = 512 is too many for \d+ cores"),
        ("student.width=100 student.models=cnn3", r"student\.width = 100 is too large: .* GB"),
        ("student.models=['resnet18'] student.norm=group data.dataset=npz:tiny.npz", r"4x4|4 x 4"),
        ("student.models=['cnn3'] data.dataset=npz:tiny.npz", r"cnn3.*8"),
        ("student.models=['resnet18']", r"norm"),
    ],
)
def test_wrong_input_is_one_line_before_anything_runs(override, line, small, tmp_path):
    np.savez("tiny.npz", x=np.zeros((400, 4, 4), np.uint8), y=np.arange(400) % 10)
    experiment = small("data.samples_per_client=20", *override.split())
    with pytest.raises(FedkdError, match=line) as failure:
        run(experiment, tmp_path / "run")
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_a_share_of_clients_that_is_almost_none_is_one_client(small, tmp_path):
    experiment = small("participation=1e-300", "rounds=1", "strategy.name=fedavg")
    assert len(run(experiment, tmp_path / "run").rounds[0]["participants"]) == 1


def test_fit_is_the_loop_that_runs_learn(small, monkeypatch, tmp_path):
    """The worker has no loop of its own, and a cohort's steps are that loop's too."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return fit_together(*args, **kwargs)

    monkeypatch.setattr("fedkd.engine.session.fit_together", counting)
    run(small("strategy.name=local", "rounds=3", "engine.cohort=off"), tmp_path / "run")
    assert len(calls) == 3 * 4
