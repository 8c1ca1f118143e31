"""What is read back from a run's folder: as it was written, or a line that names the file."""

import errno
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from fedkd import FedkdError, Run, load_runs
from fedkd import folder as disk
from fedkd.errors import FedkdWarning
from fedkd.experiment import Experiment
from fedkd.plots.gather import find
from fedkd.results import readable

ROUNDS = 4
LINES = ("rounds", "clients", "releases", "exposures", "warnings")
WHOLE = ("summary", "partition", "canaries", "environment", "audit")


def made_up(folder, ended=True, seed=0):
    """A run's folder with every file there is, of four rounds of two clients."""
    experiment = Experiment.from_dict({"rounds": ROUNDS, "seed": seed, "canary": {"secrets": 1}})
    run = Run.at(experiment, folder).begin(experiment)
    run.write_data_fingerprint("0" * 32)
    run.write_partition(["a", "b"], np.array([[3, 1], [2, 2]]), [1, 1], ["cnn2", "cnn2"])
    run.write_canaries({"log2_space": 10.0, "public": "none"})
    for round in range(1, ROUNDS + 1):
        line = {"round": round, "bytes_up": 10, "bytes_down": 20, "left_out": [], "seconds": 0.5}
        line |= {"own_accuracy_mean": round / 10, "local": {"own_accuracy_mean": round / 20}}
        both = [{"round": round, "client": client} for client in (0, 1)]
        run.append_round(
            line,
            [one | {"stage": "fused", "own_accuracy": 0.5} for one in both],
            [one | {"step": "Predict", "key": "soft_labels", "items": 7} for one in both],
            [
                {"round": round, "place": "student", "observer": None, "secret": secret}
                | {"repeats": 1, "holders": [0], "exposure": 1.5}
                for secret in (0, 1)
            ],
        )
        run.warn(f"something about round {round}", round)
    if ended:
        sizes = {"rounds": ROUNDS, "bytes_up": 40, "bytes_down": 80, "seconds": 2.0}
        run.write_summary({"own_accuracy_mean": 0.4, **sizes})
        run.write_audit({"formal": {"epsilon": None}})
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "run"
    return made_up(folder).folder


@pytest.fixture
def copied(whole, tmp_path):
    return Run(shutil.copytree(whole, tmp_path / "run"))


def everything(run):
    """All that is read of a run."""
    run.check()
    lines = (run.rounds, run.clients, run.releases, run.exposures, run.warnings)
    return lines, run.summary, run.partition, run.canaries, run.audit, run.experiment


def test_what_was_written_is_what_is_read(whole):
    lines, *_ = everything(Run(whole))
    assert [len(found) for found in lines] == [4, 8, 8, 8, 4]


# --- damaged files --------------------------------------------------------------------------


def line_of(content, number):
    return content.splitlines(True)[number - 1]


def without(content, number):
    lines = content.splitlines(True)
    return b"".join(lines[: number - 1] + lines[number:])


def instead(content, number, line):
    lines = content.splitlines(True)
    return b"".join([*lines[: number - 1], line, *lines[number:]])


OF_LINES = {
    "a line is missing": lambda c: without(c, 2),
    "the first line is missing": lambda c: without(c, 1),
    "the last line is missing": lambda c: without(c, len(c.splitlines())),
    "a line is there twice": lambda c: instead(c, 2, 2 * line_of(c, 2)),
    "the last line is there twice": lambda c: c + c.splitlines(True)[-1],
    "lines have changed places": lambda c: without(c, 1) + line_of(c, 1),
    "it is empty": lambda c: b"",
    "it is halved": lambda c: b"".join(c.splitlines(True)[: len(c.splitlines()) // 2]),
    "its last line is cut off": lambda c: c[:-9],
    "a line is half": lambda c: instead(c, 2, line_of(c, 2)[:9] + b"\n"),
    "a line is blank": lambda c: instead(c, 2, b"\n"),
    "a line is a list": lambda c: instead(c, 2, b"[2]\n"),
    "a line is an empty table": lambda c: instead(c, 2, b"{}\n"),
    "a line is zeros": lambda c: instead(c, 2, bytes(40) + b"\n"),
    "a line is not UTF-8": lambda c: instead(c, 2, line_of(c, 2).replace(b'"', b"\xff", 1)),
    "a line holds NaN": lambda c: instead(c, 2, line_of(c, 2).replace(b": ", b": NaN, 1: ", 1)),
    "a line holds a number of thousands of digits": lambda c: instead(
        c, 2, line_of(c, 2)[:-2] + b', "x": ' + b"9" * 5000 + b"}\n"
    ),
    "a line is nested too deep": lambda c: instead(c, 2, b"[" * 100_000 + b"\n"),
    "round is text": lambda c: re.sub(rb'"round": 2', b'"round": "2"', c),
    "round is not whole": lambda c: re.sub(rb'"round": 2', b'"round": 2.5', c),
    "round is truth": lambda c: re.sub(rb'"round": 1', b'"round": true', c),
    "round is negative": lambda c: re.sub(rb'"round": 2', b'"round": -2', c),
    "round is beyond": lambda c: re.sub(rb'"round": 4', b'"round": 9', c),
    "a round is another": lambda c: re.sub(rb'"round": 3', b'"round": 2', c),
    "a digit is another": lambda c: re.sub(rb"([0-9])\D*\n", lambda m: m[0].replace(m[1], b"8"), c),
    "other lines come after": lambda c: c + b'{"round": 5}\n',
}


@pytest.mark.parametrize("how", OF_LINES)
@pytest.mark.parametrize("name", LINES)
def test_a_damaged_file_of_lines_is_one_line_that_names_it(name, how, copied):
    file = copied.folder / f"{name}.jsonl"
    damaged = OF_LINES[how](file.read_bytes())
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    for read in (copied.check, lambda: getattr(copied, name)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FedkdWarning)
            with pytest.raises(FedkdError) as failure:
                read()
        message = str(failure.value)
        assert message.startswith(str(file))
        assert "\n" not in message
        # A digit that is another is still a line that a run could have written.
        assert re.search(r"jsonl, line \d", message) or "not what the run has written" in message


OF_TABLES = {
    "it is empty": lambda c: b"",
    "it is an empty table": lambda c: b"{}",
    "it is half": lambda c: c[: len(c) // 2],
    "it is a list": lambda c: b"[" + c + b"]",
    "it is zeros": lambda c: bytes(len(c)),
    "it is not UTF-8": lambda c: c.replace(b'"', b"\xff", 1),
    "it holds NaN": lambda c: c.replace(b": ", b": NaN, 1: ", 1),
    "it is nested too deep": lambda c: b'{"a":' * 100_000,
    "it is text": lambda c: b'"what"',
    "it is two": lambda c: 2 * c,
}


@pytest.mark.parametrize("how", OF_TABLES)
@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_table_is_one_line_that_names_it(name, how, copied):
    file = copied.folder / f"{name}.json"
    file.write_bytes(OF_TABLES[how](file.read_bytes()))
    for read in (copied.check, lambda: getattr(copied, name)):
        with pytest.raises(FedkdError) as failure:
            read()
        assert str(failure.value).startswith(str(file))
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("summary.json", "0.4", "0.9"),
        ("summary.json", '"bytes_up": 40', '"bytes_up": 41'),
        ("summary.json", '"bytes_up": 40', '"bytes_up": "40"'),
        ("summary.json", '"own_accuracy_mean": 0.4', '"own_accuracy_mean": "high"'),
        ("partition.json", "[3, 1]", "[1, 3]"),
        ("partition.json", "[3, 1]", "[3]"),
        ("canaries.json", "10.0", "20.0"),
        ("experiment.toml", "alpha = 0.5", "alpha = 0.1"),
        ("experiment.toml", "alpha = 0.5", "alpha = "),
        ("experiment.toml", "alpha = 0.5", 'alpha = "0.5"'),
        ("environment.json", '"packages": {', '"packages": {"x": 1, '),
    ],
)
def test_another_value_in_a_file_is_one_line_that_names_it(name, old, new, copied):
    file = copied.folder / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(FedkdError, match=re.escape(str(file))) as failure:
        everything(copied)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["rounds.jsonl", "releases.jsonl", "partition.json"])
def test_a_file_that_is_gone_is_named(name, copied):
    (copied.folder / name).unlink()
    with pytest.raises(FedkdError, match=re.escape(name)):
        copied.check()


def test_line_ends_of_another_system_change_nothing(whole, copied):
    for file in copied.folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert everything(copied) == everything(Run(whole))


# --- a run that goes on, or was killed ----------------------------------------------------------


def test_a_last_line_that_was_cut_off_is_left_out_and_said(tmp_path):
    run = made_up(tmp_path / "run", ended=False)
    file = run.folder / "rounds.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.warns(FedkdWarning, match=r"rounds\.jsonl, line 4 was cut off"):
        assert [line["round"] for line in run.rounds] == [1, 2, 3]


def test_a_last_line_is_whole_without_its_line_end(tmp_path, whole, copied):
    for run in (made_up(tmp_path / "begun", ended=False), copied):
        file = run.folder / "rounds.jsonl"
        file.write_bytes(file.read_bytes().rstrip())
        assert run.rounds == Run(whole).rounds


def test_what_was_written_of_a_round_that_did_not_end_does_not_count(tmp_path):
    run = made_up(tmp_path / "run", ended=False)
    file = run.folder / "rounds.jsonl"
    file.write_bytes(without(file.read_bytes(), ROUNDS))
    run.check()
    assert {line["round"] for line in run.clients} == {1, 2, 3}
    assert len(run.releases) == len(run.exposures) == 6
    file.write_bytes(without(file.read_bytes(), ROUNDS - 1))
    with pytest.raises(FedkdError, match=r"clients\.jsonl, line 7: round 4 is not in"):
        run.check()


# --- other versions -----------------------------------------------------------------------------


def of_an_earlier_version(run):
    """As versions wrote it that did not say how much they had written, nor of warnings."""
    summary = json.loads((run.folder / "summary.json").read_text())
    summary.pop("files")
    (run.folder / "summary.json").write_text(json.dumps(summary))
    for name in ("warnings.jsonl", "audit.json", "canaries.json", "environment.json"):
        (run.folder / name).unlink()
    return run


def test_a_run_of_an_earlier_version_is_read_as_far_as_it_goes(copied):
    run = of_an_earlier_version(copied)
    run.check()
    assert (len(run.rounds), run.warnings, run.environment) == (ROUNDS, [], {})
    file = run.folder / "rounds.jsonl"
    file.write_bytes(without(file.read_bytes(), ROUNDS))
    with pytest.raises(FedkdError, match=r"rounds\.jsonl, line 4: the run had 4 rounds"):
        run.check()


def test_keys_of_another_version_are_passed_over_with_a_word_and_never_written_to(copied):
    of_an_earlier_version(copied)
    file, experiment = copied.folder / "experiment.toml", copied.experiment
    file.write_text("old_key = 1\n" + file.read_text() + "\n[data.older]\nkey = 2\n")
    with pytest.warns(FedkdWarning, match=r"old_key, data\.older is passed over"):
        assert Run(copied.folder).experiment == experiment
    with pytest.raises(FedkdError, match="an experiment of another version of fedkd, with the key"):
        Run.at(experiment, copied.folder)


IMAGE = [[[0.0, 0.5], [1.0, 0.5]]]
SHOWN = {"place": "Share", "attack": "a", "originals": [IMAGE], "reconstructions": [IMAGE]}
SHOWN |= dict.fromkeys(("psnr", "psnr_guess", "ssim", "ssim_guess"), 1.0)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (3, r"reconstructions"),
        ([{"place": 1}], r"reconstructions\.0\.place"),
        ([SHOWN | {"originals": []}], r"reconstructions\.0\.originals"),
        ([SHOWN | {"originals": [[[0.5]]]}], r"reconstructions\.0\.originals"),
        ([SHOWN | {"originals": [[[["x"]]]]}], r"reconstructions\.0\.originals"),
        ([SHOWN | {"originals": [[[[0.5], [0.5, 1.0]]]]}], r"reconstructions\.0 .*one size"),
        ([SHOWN | {"originals": [[[[]]]]}], r"reconstructions\.0 .*one size"),
        ([SHOWN | {"reconstructions": [2 * IMAGE]}], r"reconstructions\.0 .*one or three channels"),
    ],
)
def test_an_audit_whose_images_are_none_is_one_line(found, line, tmp_path, fedkd):
    run = made_up(tmp_path / "run")
    run.write_audit({"formal": {"epsilon": None}, "reconstructions": [SHOWN]})
    assert fedkd("plot", "reconstruction", str(run.folder))[0] == 0
    run.write_audit({"formal": {"epsilon": None}, "reconstructions": found})
    code, out, err = fedkd("plot", "reconstruction", str(run.folder))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(rf"audit\.json.*{line}", err)


BOUND = {"delta": 1e-5, "epsilon": 1.0, "formal": 2.0}
GRADIENTS = {"place": "each step", "client": 0, "noise_multiplier": 1.0, "rate": 0.5, "steps": 4}
GRADIENTS |= {"canaries": 512, "bounds": [BOUND], "noise_at_most": 2.0}
GRADIENTS |= {"epsilon_as_sampled_gaussian": None}


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (3, r"gradient_canaries"),
        (GRADIENTS | {"client": -1}, r"gradient_canaries\.client"),
        (GRADIENTS | {"bounds": []}, r"gradient_canaries\.bounds"),
        (
            GRADIENTS | {"bounds": [BOUND | {"formal": "8"}]},
            r"gradient_canaries\.bounds\.0\.formal",
        ),
        (GRADIENTS | {"noise_at_most": "much"}, r"gradient_canaries\.noise_at_most"),
        (GRADIENTS | {"noise_multiplier": 0.0}, r"gradient_canaries\.noise_multiplier"),
    ],
)
def test_an_audit_by_gradient_canaries_that_is_none_is_one_line(found, line, tmp_path):
    run = made_up(tmp_path / "run")
    run.write_audit({"formal": {"epsilon": None}, "gradient_canaries": GRADIENTS})
    assert run.audit["gradient_canaries"] == GRADIENTS
    run.write_audit({"formal": {"epsilon": None}, "gradient_canaries": found})
    with pytest.raises(FedkdError, match=rf"audit\.json.*{line}"):
        _ = run.audit


# --- one bad run among many ---------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    for seed in range(4):
        made_up(tmp_path / "runs" / f"{seed}", seed=seed)
    (tmp_path / "runs" / "1" / "summary.json").write_text('{"rounds": ')
    (tmp_path / "runs" / "2" / "experiment.toml").write_text("seed = [")
    return tmp_path / "runs"


def test_bad_runs_among_others_are_named_and_the_others_shown(many, fedkd):
    with pytest.warns(FedkdWarning) as said:
        frame = load_runs(many)
    assert list(frame.seed) == [0, 3]
    assert [re.search(r"runs/(\d/\S+) ", str(one.message))[1] for one in said] == [
        *("1/summary.json", "2/experiment.toml")
    ]
    with pytest.warns(FedkdWarning, match=r"2/experiment\.toml"):
        assert [run.folder.name for run in find([many])] == ["0", "3"]
    folders = [str(many / name) for name in "0123"]
    for words in (["compare", *folders], ["table", str(many), "--rows", "seed"]):
        code, out, err = fedkd(*words)
        assert (code, err.count("\n")) == (0, 2)
        assert err.count("fedkd: warning: left out: ") == 2
        assert "40.0" in out


@pytest.mark.parametrize("name", ["summary.json", "rounds.jsonl", "experiment.toml"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name, many, fedkd):
    (many / "0" / name).unlink(missing_ok=True)
    os.mkfifo(many / "0" / name)
    with pytest.raises(FedkdError, match=r"not a regular file|is not a run"):
        Run.open(many / "0").check()
    code, out, err = fedkd("table", str(many), "--rows", "seed")
    assert code == 0
    assert "40.0" in out
    assert f"{name} cannot be read: it is not a regular file" in err


@pytest.mark.parametrize("command", ["compare", "table", "audit", "plot curves"])
@pytest.mark.parametrize("name", ["1", "2"])
def test_a_bad_run_that_is_named_alone_is_one_line(command, name, many, fedkd):
    code, out, err = fedkd(*command.split(), str(many / name))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(many / name) in err


def test_where_none_can_be_read_the_first_reason_is_given(many):
    with pytest.warns(FedkdWarning), pytest.raises(FedkdError, match=r"1/summary\.json"):
        readable([Run(many / "1"), Run(many / "2")], named=True)


# --- what cannot be written ---------------------------------------------------------------------


class Full:
    """A disk that takes so many more writes of whole files and of lines, and then is full."""

    def __init__(self, monkeypatch, writes):
        self.left = writes
        self._fsync = disk.os.fsync
        monkeypatch.setattr(disk.os, "fsync", self.fsync)

    def fsync(self, handle):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._fsync(handle)


@pytest.mark.parametrize("writes", range(4))
def test_a_round_is_written_whole_or_not_at_all(tmp_path, monkeypatch, writes):
    run = made_up(tmp_path / "run", ended=False)
    before = {file.name: file.read_bytes() for file in run.folder.iterdir()}
    Full(monkeypatch, writes)
    client = {"round": 5, "client": 0, "stage": "fused"}
    exposure = {"round": 5, "place": "student", "observer": None, "secret": 0} | {
        "repeats": 1, "holders": [0], "exposure": 1.0
    }  # fmt: skip
    release = {"round": 5, "client": 0, "step": "Share", "key": "parameters", "items": 1}
    with pytest.raises(FedkdError, match=r"jsonl cannot be written: No space left on device"):
        run.append_round({"round": 5}, [client], [release], [exposure])
    assert {file.name: file.read_bytes() for file in run.folder.iterdir()} == before
    monkeypatch.undo()
    run.append_round({"round": 5}, [client], [release], [exposure])
    assert (len(run.rounds), len(run.releases)) == (5, 9)


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(copied, monkeypatch):
    before = (copied.folder / "summary.json").read_bytes()
    Full(monkeypatch, 0)
    with pytest.raises(FedkdError, match=r"summary\.json cannot be written: No space left"):
        copied.write_summary({"own_accuracy_mean": 1.0})
    assert (copied.folder / "summary.json").read_bytes() == before
    assert not [file for file in copied.folder.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("file", "is a file"),
        ("file/run", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("deep/" + "x" * 300, "File name too long"),
        ("/proc/run", "/proc/run cannot be written"),
    ],
)
def test_a_folder_that_cannot_be_made_is_one_line(out, why, fedkd, tmp_path):
    (tmp_path / "file").write_text("")
    code, printed, err = fedkd("run", "quickstart", "--out", out)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert why in err
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_folder_in_a_runs_own_is_refused(copied, fedkd):
    before = sorted(copied.folder.iterdir())
    for name in ("checkpoint", "inner/deeper"):
        code, _, err = fedkd("run", "quickstart", "--out", str(copied.folder / name))
        assert (code, err.count("\n")) == (2, 1)
        assert f"lies in the folder of a run, {copied.folder}" in err
    assert sorted(copied.folder.iterdir()) == before
