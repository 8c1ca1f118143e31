"""What a person sees on the command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lines import SMALL

from fedkd import registry
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.results import CHECKPOINT, Run
from fedkd.simulations import cli
from fedkd.simulations.commands import list as listing
from fedkd.simulations.commands import plot
from fedkd.simulations.commands import run as command

ROOT = Path(cli.__file__).parent.parent
SLOW = ("torch", "torchvision", "matplotlib", "flwr", "sklearn", "ray", "numpy", "scipy")
UNUSED = (
    *("torch._dynamo", "torchvision", "flwr_datasets", "sklearn", "scipy", "opacus"),
    *("dp_accounting", "matplotlib", "ray"),
)
HELP = (
    *("--help", "run --help", "list --help", "plot --help"),
    *("plot curves --help", "plot partition --help", "plot fairness --help", "plot cuts --help"),
    *("compare --help", "canary --help", "audit --help", "report --help"),
    *("plot exposure --help", "plot tradeoff --help", "suite --help", "table --help"),
)
BAD = {
    "rum": "rum",
    "run": "EXPERIMENT",
    "run x.toml --colour": "--colour",
    "run x.toml --seed a": "'a' is not a valid integer",
    "run x.toml --seed=-1": "seed = -1",
    "run x.toml --set rounds": "key=value",
    "run x.toml --set roundz=3": "did you mean 'rounds'?",
    "run x.toml --set rounds=0": "rounds = 0",
    "run x.toml --engine inlin": "engine.name = 'inlin'",
    "run x.toml --set strategy.name=knfo": "did you mean 'knfu'?",
    "run x.toml --set data.dataset=nothing": "data.dataset = 'nothing'",
    "run x.toml --set student.models=['nothing']": "student.models = 'nothing'",
    "run bad.toml": "not valid TOML",
    "run nowhere.toml": "neither a file nor",
    "run quickstrat": "did you mean 'quickstart'?",
    "list strategy": "did you mean 'strategies'?",
    "canary": "EXPERIMENT",
    "canary swnig": "did you mean 'swing'?",
    "canary x.toml": "canary.secrets = 0",
    "canary swing --seeds 0,a": "--seeds '0,a'",
    "canary swing --seeds=-1": "seed = -1",
    "canary swing --repeats 3": "--repeats 3 is not known; known: 1, 4, 16, 64",
    "canary swing --jobs 0": "0 is not in the range",
    "canary swing --set strategy.name=swign": "did you mean 'swing'?",
    "suite": "SUITE",
    "suite nowhere": "suite 'nowhere' is neither a file",
    "suite knfu-beta --jobs 0": "0 is not in the range",
    "suite knfu-beta --set roundz=3": "did you mean 'rounds'?",
    "table": "SUITE",
    "table knfu-beta --format pdf": "--format 'pdf' is not allowed",
    "audit": "RUN",
    "audit nowhere": "nowhere is not a run's folder",
    "audit nowhere --shadows=-1": "-1 is not in the range",
    "report": "SUITE",
    "report nowhere": "suite 'nowhere' is neither a file",
    "report knfu-heterogenety": "did you mean 'knfu-heterogeneity'?",
    "report knfu-heterogeneity --scale huge": "--scale 'huge'",
    "plot tradeoff nowhere --repeats a": "'a' is not a valid integer",
}


def line_of(round, **more):
    accuracies = {"own_accuracy_mean": 0.9, "own_accuracy_std": 0.05, "own_accuracy_worst10": 0.8}
    accuracies["common_accuracy_mean"] = 0.6
    line = {
        "round": round,
        "left_out": [],
        "bytes_up": 400_000,
        "bytes_down": 400_000,
        "seconds": 1.0,
    }
    return (
        line
        | accuracies
        | {"local": {name: v - 0.1 * (v > 0.5) for name, v in accuracies.items()}}
        | more
    )


class Simulation:
    """Stands for ``fedkd.run.run``: writes rounds without training anything."""

    def __init__(self):
        self.each = lambda round, run, observer: {}
        self.experiment, self.asked = None, {}

    def __call__(self, experiment, folder=None, *, resume=False, fresh=False, observer=None):
        self.experiment, self.asked = experiment, {"folder": folder, "resume": resume}
        run = Run.at(experiment, folder).begin(experiment)
        observer.started(run, 1, experiment.rounds, "inline: 10 clients, cpu")
        for round in range(1, experiment.rounds + 1):
            for phase in ("learn", "receive"):
                observer.clients_done(round, 10, 10, phase)
            line = line_of(round) | self.each(round, run, observer)
            run.append_round(line, [{"round": round, "client": 0, "stage": "fused"}])
            observer.round_done(line)
        sizes = dict.fromkeys(("bytes_up", "bytes_down"), 400000 * experiment.rounds)
        run.write_summary({"strategy": "knfu", "seconds": 21.0, **sizes})
        return run


@pytest.fixture
def simulation(monkeypatch):
    fake = Simulation()
    monkeypatch.setattr(command, "simulate", fake)
    return fake


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    (tmp_path / "x.toml").write_text('name = "x"\nrounds = 3\n')
    (tmp_path / "bad.toml").write_text("rounds = = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


# --- help and wrong input -----------------------------------------------------------------------


def test_help_and_wrong_input_import_nothing_slow():
    script = f"""
import sys
from fedkd.simulations.cli import main
for words in {[*HELP, *BAD]!r}:
    try:
        main(words.split())
    except SystemExit as end:
        loaded = [name for name in {SLOW!r} if name in sys.modules]
        assert not loaded, (words, loaded)
        assert (end.code or 0) == (0 if "--help" in words else 2), (words, end.code)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert said.returncode == 0, said.stderr


def test_a_run_imports_nothing_that_it_does_not_use(fedkd, tmp_path):
    """Where its data and partition are remembered; torch's compiler is never used."""
    words = ["run", "quickstart", "--set", "rounds=1", "--set", "student.models=['mlp']"]
    fedkd(*words)
    script = f"""
import sys
from fedkd.simulations.cli import main
try:
    main({words!r})
except SystemExit as end:
    assert not end.code
print([name for name in {UNUSED!r} if name in sys.modules], file=sys.stderr)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert said.stderr.splitlines()[-1] == "[]", said.stderr


@pytest.mark.parametrize("words", HELP)
def test_every_help_has_examples(fedkd, words):
    code, out, _ = fedkd(*words.split())
    assert code == 0
    assert "fedkd" in out.split("Examples")[1]
    assert "[bold]" not in out
    assert "()" not in out  # words in brackets are markup


def test_no_command_shows_the_help(fedkd):
    assert fedkd() == fedkd("--help")


@pytest.mark.parametrize("words", BAD)
def test_wrong_input_is_one_line_that_names_it(fedkd, words):
    code, out, err = fedkd(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("fedkd: ")
    assert err.count("\n") == 1
    assert BAD[words] in err


def test_wrong_input_found_by_the_run_is_one_line(fedkd, simulation):
    def refuse(round, run, observer):
        raise FedkdError("data.alpha = 0.001\nleaves a client empty")

    simulation.each = refuse
    code, out, err = fedkd("run", "x.toml", "--quiet")
    assert (code, out) == (2, "")
    assert err == "fedkd: data.alpha = 0.001 leaves a client empty\n"


def failing(error):
    def fail(round, run, observer):
        raise error

    return fail


def test_what_nobody_expected_is_one_line_with_its_place(fedkd, simulation):
    simulation.each = failing(ZeroDivisionError("two\nlines"))
    code, out, err = fedkd("run", "x.toml", "--quiet")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("fedkd: unexpected error: ZeroDivisionError: two lines (test_cli.py:")
    assert "--debug" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [(ZeroDivisionError(), 1), (FedkdError("a = 1"), 2), (OSError(28, "full"), 2)],
)
def test_debug_shows_the_traceback_before_the_line(fedkd, simulation, monkeypatch, error, code):
    monkeypatch.delenv("FEDKD_DEBUG", raising=False)
    simulation.each = failing(error)
    for words, debug in (((), ""), ((), "0"), ((), "1"), (("--debug",), "")):
        monkeypatch.setenv("FEDKD_DEBUG", debug)
        ended, _, err = fedkd(*words, "run", "x.toml", "--quiet")
        asked = bool(words) or debug == "1"
        assert ended == code
        assert err.splitlines()[-1].startswith("fedkd: ")
        assert ("Traceback" in err and "in fail" in err) == asked
        assert asked or err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "runs/x"), "No space left on device: 'runs/x'"),
        (PermissionError(13, "Permission denied", "runs"), "Permission denied: 'runs'"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "out of memory: MemoryError (test_cli.py:"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to\nallocate 9"),
            "out of memory: RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"),
            "out of memory: RuntimeError",
        ),
    ],
)
def test_what_the_machine_has_not_is_one_line_and_no_bug(fedkd, simulation, error, line):
    simulation.each = failing(error)
    code, out, err = fedkd("run", "x.toml", "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"fedkd: {line}")


def test_control_characters_of_input_do_not_reach_the_terminal(fedkd):
    code, _, err = fedkd("run", "a\x1b[2Jb\x07")
    assert code == 2
    assert err.count("\n") == 1
    assert not {"\x1b", "\x07"} & {*err}
    assert fedkd("run", "x.toml", "--set", "data.partition=\x1b[2J")[2].isascii()


@pytest.mark.parametrize(
    "words",
    [
        ("run", "x.toml", "--out", ""),
        ("run", "x.toml", "--data-dir", ""),
        ("run", "x.toml", "--tensorboard", ""),
        ("run", ""),
        ("run", "."),
        ("run", "/dev/null"),
        ("run", "~nobody-of-this-name/x.toml"),
        ("run", "x" * 5000),
        ("run", "x\0y"),
        ("run", "x.toml", "--out", "x.toml"),
        ("run", "x.toml", "--seed", "9" * 5000),
        ("run", "x.toml", "--set", "data.dataset="),
        ("run", "x.toml", "--set", "student.models="),
        ("run", "x.toml", "--set", "strategy.name="),
        ("run", "x.toml", "--set", ""),
        ("compare", ""),
        ("compare", "."),
        ("compare", "x" * 5000),
        ("compare", "x", "--target", "nan"),
        ("audit", ""),
        ("audit", "x.toml"),
        ("audit", ".", "--shadows", "1000000000"),
        ("canary", "swing", "--arms", ""),
        ("canary", "swing", "--arms", "nope"),
        ("canary", "swing", "--seeds", ","),
        ("canary", "swing", "--seeds", "9" * 5000),
        ("canary", "swing", "--jobs", "1000000"),
        ("suite", ""),
        ("suite", "."),
        ("suite", "x.toml"),
        ("suite", "bad.toml"),
        ("table", ""),
        ("table", "."),
        ("report", ""),
        ("report", "x.toml"),
        ("claims", "nope"),
        ("claims", ""),
        ("claims", "."),
        ("claims", "nope.toml"),
        ("claims", "x.toml"),
        ("claims", "--format", "pdf"),
        ("list", ""),
        ("list", "nope"),
        ("tune", "--threads", "100000"),
        ("plot", "curves", ""),
        ("plot", "curves", "x.toml"),
        ("plot", "curves", "x", "--metric", "nope"),
        ("plot", "alpha", "x", "--stage", "nope"),
        ("plot", "nope", "x"),
        ("--nope",),
    ],
)
def test_no_word_on_the_command_line_ends_in_a_traceback(fedkd, words):
    code, out, err = fedkd(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fedkd: ")


def test_a_folder_of_the_name_of_a_shipped_experiment_is_not_in_its_way(fedkd, simulation):
    Path("quickstart").mkdir()
    assert fedkd("run", "quickstart", "--quiet")[0] == 0
    run = fedkd("run", "quickstart", "--quiet")[1].strip()
    assert f"is a run's folder; its experiment is {run}/experiment.toml" in fedkd("run", run)[2]


def test_a_file_with_a_byte_order_mark_runs(fedkd, simulation):
    Path("bom.toml").write_bytes(b'\xef\xbb\xbfname = "bom"\r\nrounds = 2\r\n')
    assert fedkd("run", "bom.toml", "--quiet")[0] == 0
    assert (simulation.experiment.name, simulation.experiment.rounds) == ("bom", 2)


def test_a_file_that_is_no_text_is_named(fedkd):
    for file, content in (("utf-16.toml", "rounds = 3".encode("utf-16")), ("png.toml", b"\x89PNG")):
        Path(file).write_bytes(content)
        code, _, err = fedkd("run", file)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"fedkd: experiment '{file}' cannot be read: ")


def test_version(fedkd):
    assert fedkd("--version")[1].startswith("fedkd ")


# --- run ----------------------------------------------------------------------------------------


def test_the_last_line_of_stdout_is_the_folder(fedkd, simulation):
    code, out, _ = fedkd("run", "x.toml", "--out", "runs/mine")
    assert code == 0
    assert out.splitlines()[-1] == "runs/mine"
    assert Run.open("runs/mine").rounds


def test_quiet_prints_the_folder_and_nothing_else(fedkd, simulation):
    simulation.each = lambda round, run, observer: observer.warned("beta is large") or {}
    assert fedkd("run", "x.toml", "--out", "mine", "--quiet") == (0, "mine\n", "")


def test_the_table_shows_both_stages_sizes_and_time(fedkd, simulation):
    _, out, _ = fedkd("run", "x.toml")
    local, fused = (
        next(line for line in out.splitlines() if name in line) for name in ("after l", "after f")
    )
    assert all(number in local for number in ("80.0 ± 5.0 %", "70.0 %", "50.0 %"))
    assert all(number in fused for number in ("90.0 ± 5.0 %", "80.0 %", "60.0 %"))
    assert "3 rounds, 21.0 s, 1.2 MB up, 1.2 MB down" in out


@pytest.mark.parametrize("columns", ["20", "40"])
def test_a_narrow_terminal_still_ends_with_the_folder(fedkd, simulation, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    folder = "a-folder-whose-name-is-longer-than-the-terminal-is-wide"
    assert fedkd("run", "x.toml", "--out", folder)[1].splitlines()[-1] == folder


def test_flags_are_overrides_and_win_over_set(fedkd, simulation):
    words = ["--set", "seed=1", "--set", "strategy.beta=3", "--seed", "7", "--data-dir", "2024"]
    fedkd("run", "x.toml", "--engine", "inline", "--resume", "--out", "mine", *words)
    experiment = simulation.experiment
    assert (experiment.seed, experiment.strategy.options) == (7, {"beta": 3})
    assert (experiment.data.data_dir, experiment.engine.name) == ("2024", "inline")
    assert simulation.asked == {"folder": Path("mine"), "resume": True}


def test_a_shipped_experiment_is_found_by_name_from_anywhere(fedkd, simulation):
    assert fedkd("run", "quickstart")[0] == 0
    assert simulation.experiment.name == "quickstart"


def test_a_log_gets_some_twenty_lines_however_many_rounds(fedkd, simulation):
    _, _, err = fedkd("run", "x.toml", "--set", "rounds=199")
    lines = [line for line in err.splitlines() if line.startswith("round ")]
    assert len(lines) == 20
    assert lines[-1] == "round 199/199, own 90.0 %, common 60.0 %, 1.0 s"
    assert "\x1b" not in err


def test_a_round_that_was_not_measured_needs_no_accuracy(fedkd, simulation, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "line_of", lambda round: {"round": round})
    code, out, err = fedkd("run", "x.toml", "--out", "mine")
    assert (code, out.splitlines()[-1]) == (0, "mine")
    assert "round 3/3" in err


def test_a_warning_is_shown_once(fedkd, simulation):
    simulation.each = lambda round, run, observer: observer.warned("beta [=3] is large") or {}
    assert fedkd("run", "x.toml")[2].count("warning: beta [=3] is large") == 1


def test_a_client_left_out_is_shown_once_and_counted_at_the_end(fedkd, simulation):
    entry = {"client": 4, "step": "Predict", "reason": "soft labels hold NaN (row 17)"}
    simulation.each = lambda round, run, observer: {"left_out": [entry]} if round > 1 else {}
    _, out, err = fedkd("run", "x.toml")
    assert err.count("client 4 left out at Predict: soft labels hold NaN (row 17)") == 1
    assert "client 4 left out of 2 of 3 rounds" in out


def test_usage_reports_are_off_unless_the_user_has_set_them(fedkd, monkeypatch):
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    fedkd("--version")
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


# --- the same command again ---------------------------------------------------------------------


def test_a_finished_run_is_shown_again_and_run_again_where_that_is_said(fedkd, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    words = ["run", "small.toml", "--out", "mine", "--set", "strategy.name=local"]
    code, first, err = fedkd(*words)
    assert (code, err.count("round 1/2")) == (0, 1)
    code, again, err = fedkd(*words)
    assert (code, again) == (0, first)
    assert err == "mine has finished before: nothing is run; --fresh runs it again\n"
    assert fedkd(*words, "--quiet") == (0, "mine\n", "")
    code, fresh, err = fedkd(*words, "--fresh")
    assert (code, err.count("round 1/2")) == (0, 1)
    assert fresh.splitlines()[:5] == first.splitlines()[:5]


def test_a_run_that_has_not_finished_asks_how_to_go_on(fedkd, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    experiment = Experiment.from_toml(SMALL)
    Run.at(experiment, Path("mine")).begin(experiment).append_round({"round": 1})
    code, out, err = fedkd("run", "small.toml", "--out", "mine")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "mine holds 1 of 2 rounds" in err
    assert "go on with --resume, or begin anew with --fresh" in err
    assert Run(Path("mine")).rounds == [{"round": 1}]


# --- Ctrl-C -------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [True, False])
def test_ctrl_c_leaves_a_readable_folder_and_says_how_to_go_on(fedkd, simulation, checkpoint):
    def interrupt(round, run, observer):
        if checkpoint:
            (run.folder / CHECKPOINT).mkdir(exist_ok=True)
        if round == 3:
            raise KeyboardInterrupt
        return {}

    simulation.each = interrupt
    code, out, err = fedkd("run", "x.toml", "--out", "mine", "--quiet")
    assert (code, out) == (130, "mine\n")
    on = "; go on with --resume" if checkpoint else ""
    assert err == f"fedkd: interrupted after round 2; the folder is readable{on}\n"
    assert [line["round"] for line in Run.open("mine").rounds] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_as_ctrl_c_with_its_own_exit_code(fedkd, simulation, number):
    def interrupt(round, run, observer):
        if round == 3:
            signal.raise_signal(number)
        return {}

    simulation.each = interrupt
    code, out, err = fedkd("run", "x.toml", "--out", "mine", "--quiet")
    assert (code, out) == (128 + number, "mine\n")
    assert err == "fedkd: interrupted after round 2; the folder is readable\n"


def test_ctrl_c_before_there_is_a_folder(fedkd, monkeypatch):
    def interrupt(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "simulate", interrupt)
    assert fedkd("run", "x.toml") == (130, "", "fedkd: interrupted before the first round\n")


def test_ctrl_c_is_one_line_in_every_command(fedkd, monkeypatch):
    def interrupt(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "_described", interrupt)
    monkeypatch.setattr(command.Run, "open", interrupt)
    monkeypatch.setattr(plot, "_draw", interrupt)
    monkeypatch.setattr("fedkd.simulations.suite.read", interrupt)
    for words in ("list strategies", "plot curves x", "report x", "audit x"):
        code, out, err = fedkd(*words.split())
        assert (code, out, err.count("\n")) == (130, "", 1)
        assert err.startswith("fedkd: interrupted")


# --- where nobody reads, or not everything can be written -------------------------------------


def shell(script, **more):
    environment = {"PYTHONPATH": str(ROOT), "FEDKD": f"{sys.executable} -m fedkd.simulations.cli"}
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=os.environ | environment | more
    )


def test_nobody_reading_the_output_is_no_error():
    ended = shell("($FEDKD list experiments; echo $? >&2) | true")
    assert ended.stderr == "141\n"


def test_a_full_disk_under_the_output_is_one_line():
    ended = shell("$FEDKD list experiments > /dev/full; echo $?")
    assert (ended.stderr, ended.stdout) == ("fedkd: No space left on device\n", "2\n")


def test_closed_outputs_are_no_error():
    ended = shell("$FEDKD list experiments >&-; echo $?; $FEDKD list nope 2>&-; echo $?")
    assert (ended.stderr, ended.stdout) == ("", "0\n2\n")


def test_an_output_without_the_letters_still_gets_the_numbers():
    script = "from simulations import cli; from fedkd.simulations.commands import list as listing"
    script += "; listing._described = lambda kind: {'\u00b1': ''}"
    ended = shell(
        f"{sys.executable} -c \"{script}; cli.main(['list', 'experiments'])\"",
        PYTHONIOENCODING="ascii",
    )
    assert (ended.stdout, ended.returncode) == ("\\xb1\n", 0)


# --- list ---------------------------------------------------------------------------------------


def test_objectives_are_listed_with_what_they_need_and_their_options(fedkd):
    lines = dict(line.split(None, 1) for line in fedkd("list", "objectives")[1].splitlines())
    assert lines["not_true"].endswith("(needs labels)")
    assert lines["dkd"].endswith("(needs labels, progress; alpha = 1.0; beta = 8.0; warmup = 0.0)")
    assert "(needs" not in lines["forward_kl"]


@pytest.mark.parametrize("kind", listing.KINDS)
def test_list_prints_every_name_with_a_line(fedkd, kind):
    if kind == "experiments":
        names = sorted(file.stem for file in (ROOT / "simulations").glob("*.toml"))
    elif kind in ("suites", "claims"):
        names = [file.stem for file in sorted((ROOT / "simulations" / kind).glob("*.toml"))]
    else:
        names = registry.names(kind)
    code, out, _ = fedkd("list", kind)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == names
    assert all(len(line.split()) > 1 for line in out.splitlines())


# --- plot ---------------------------------------------------------------------------------------


def test_plot_writes_png_and_pdf_and_prints_their_paths(fedkd, simulation, tmp_path):
    fedkd("run", "x.toml", "--out", "mine")
    Run(tmp_path / "mine").write_partition(
        ["a", "b"], np.array([[3, 0], [1, 2]]), [1, 1], ["cnn2", "cnn2"]
    )
    for words, stem in (
        (["curves", "mine"], "mine/plots/curves"),
        (["curves", "mine", "--metric", "common_accuracy", "--out", "new/common"], "new/common"),
        (["partition", "mine"], "mine/plots/partition"),
    ):
        code, out, _ = fedkd("plot", *words)
        assert (code, out.splitlines()) == (0, [f"{stem}.png", f"{stem}.pdf"])
        assert all(Path(file).stat().st_size > 1000 for file in out.splitlines())


@pytest.mark.parametrize("figure", ["curves", "partition", "exposure", "tradeoff"])
def test_plot_of_what_is_not_a_run_is_one_line(fedkd, figure):
    code, out, err = fedkd("plot", figure, "nowhere")
    assert (code, out) == (2, "")
    assert err == "fedkd: nowhere is not a run's folder and holds no finished run\n"


def test_plot_of_a_run_without_rounds_is_one_line(fedkd, tmp_path):
    Run.at(Experiment(), tmp_path / "empty").begin(Experiment())
    for figure in ("curves", "partition"):
        code, _, err = fedkd("plot", figure, "empty")
        assert (code, err.count("\n")) == (2, 1)
        assert "empty has no" in err
