"""Suites: the grid, what runs and what does not run again, and one frame of it all."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
from lines import SMALL, Killed, KilledAfter, measured

from fedkd import checkpoint, lock, registry
from fedkd.engine import plan
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.observers import Observer
from fedkd.results import CHECKPOINT, Run
from fedkd.run import run as simulate
from fedkd.simulations import audit, cli, jobs, suite, suite_screen
from fedkd.simulations.cells import chosen
from fedkd.simulations.suite import read, run_suite

ROOT = Path(cli.__file__).parent.parent
GRID = """
# Two methods on a small one.
experiment = "small.toml"
skip = [{method = "local", "data.alpha" = 10}]

[set]
"training.local_epochs" = 1
data.clients = 3

[axes]
"data.alpha" = [0.1, 10]
seed = [0, 1]

[axes.method]
knfu = {"strategy.name" = "knfu", "strategy.beta" = 3.0}
"left, alone" = {strategy.name = "local"}
local = {"strategy.name" = "local", "training.local_epochs" = 2}

[quick.set]
rounds = 1

[full.axes]
"data.alpha" = [0.5]
seed = [0, 1, 2]
"""


@pytest.fixture
def grid(tmp_path):
    """A function that writes a suite's file, with replacements, and gives its path."""

    def write(*changes, name="grid.toml"):
        text = GRID
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "small.toml").write_text(SMALL)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def counted(monkeypatch):
    """Names and seeds of what is run, for suites whose runs go one at a time."""
    seen = []

    def run(experiment, folder, resume):
        seen.append((experiment.name, experiment.seed))
        return simulate(experiment, folder, resume=resume)

    monkeypatch.setattr(jobs, "run", run)
    return seen


# --- the grid -----------------------------------------------------------------------------------


def test_every_combination_is_a_cell_but_those_that_are_skipped(grid):
    found = read(grid())
    assert found.axes == {
        "data.alpha": (0.1, 10),
        "method": ("knfu", "left, alone", "local"),
        "seed": (0, 1),
    }
    labels = [tuple(cell.labels.values()) for cell in found.cells]
    assert len(labels) == len(set(labels)) == 2 * 3 * 2 - 2
    assert (10, "local", 0) not in labels
    assert labels[0] == (0.1, "knfu", 0)


def test_seeds_are_the_axis_that_changes_fastest(grid):
    assert [cell.labels["seed"] for cell in read(grid()).cells[:4]] == [0, 1, 0, 1]


def test_a_cell_has_the_keys_of_the_base_the_suite_the_scale_and_its_labels(grid):
    cell = next(c for c in read(grid()).cells if c.labels["method"] == "local")
    experiment = cell.experiment
    assert experiment.student.models == ("mlp",)
    assert (experiment.data.clients, experiment.data.alpha, experiment.rounds) == (3, 0.1, 1)
    assert experiment.training.local_epochs == 2
    assert experiment.name == "alpha0.1-local"


def test_another_method_leaves_the_options_of_the_one_before_behind(grid):
    (old, new) = '"training.local_epochs" = 1', '"strategy.beta" = 2.0'
    cells = read(grid((old, new))).cells
    options = {cell.labels["method"]: cell.experiment.strategy.options for cell in cells}
    assert options == {"knfu": {"beta": 3.0}, "left, alone": {}, "local": {}}


def test_a_scale_replaces_axes_whole(grid):
    found = read(grid(), "full")
    assert found.axes["data.alpha"] == (0.5,)
    assert found.axes["seed"] == (0, 1, 2)
    assert found.cells[0].experiment.rounds == 2
    assert found.folder == Path("runs/grid-full")


def test_keys_of_some_cells_alone_are_set_there(grid):
    """As noise that gives one epsilon with one method, and another with the next."""
    old = "[quick.set]"
    new = """[[cells]]
at = {method = "knfu", "data.alpha" = 10}
set = {"strategy.beta" = 7.0}

[[cells]]
at = {"data.alpha" = [10, 0.1], seed = 1}
set = {training = {lr = 0.5}}

[quick.set]"""
    for cell in read(grid((old, new))).cells:
        labels, experiment = cell.labels, cell.experiment
        if labels["method"] == "knfu":
            beta = 7.0 if labels["data.alpha"] == 10 else 3.0
            assert experiment.strategy.options["beta"] == beta
        assert (experiment.training.lr == 0.5) == (labels["seed"] == 1)


def test_keys_of_cells_on_an_axis_that_is_not_there_are_one_line(grid):
    new = "[[cells]]\nat = {colour = 1}\nset = {rounds = 3}\n\n[quick.set]"
    with pytest.raises(FedkdError, match=r"cells\.at: 'colour' is not an axis"):
        read(grid(("[quick.set]", new)))


def test_a_suite_that_is_to_be_audited_audits_each_run_once(grid, monkeypatch):
    seen = []

    def audited(run, shadows):
        seen.append((run.experiment.name, run.experiment.seed, shadows))
        run.write_audit({"formal": {"epsilon": None}, "attacks": {"findings": []}})

    monkeypatch.setattr(audit, "audited", audited)
    only = ["method=knfu", "data.alpha=10"]
    run_suite(read(grid()), 1, only)
    assert not seen
    audits = read(grid(("[quick.set]", "[audit]\nshadows = 5\n\n[quick.set]")))
    ran = run_suite(audits, 1, only).ran
    assert [cell.done for cell in ran] == [True, True]
    assert seen == [("alpha10-knfu", seed, 5) for seed in (0, 1)]
    assert not run_suite(read("runs/grid-quick"), 1, only).ran
    assert len(seen) == 2
    # As fedkd audit --shadows 0 leaves it: nothing was attacked.
    Run(ran[0].folder).write_audit({"formal": {"epsilon": None}})
    assert run_suite(read("runs/grid-quick"), 1, only).ran == ran[:1]
    assert len(seen) == 3


def test_too_few_shadows_of_a_suite_are_one_line(grid):
    with pytest.raises(FedkdError, match=r"audit\.shadows = 2 is too few"):
        read(grid(("[quick.set]", "[audit]\nshadows = 2\n\n[quick.set]")))


def test_runs_are_called_by_their_labels_and_digest(grid):
    for cell in read(grid()).cells:
        assert cell.folder.name.endswith(f"seed{cell.labels['seed']}-{cell.experiment.digest()}")
    assert len({cell.folder for cell in read(grid()).cells}) == 10


def test_cells_that_are_the_same_experiment_share_a_run(grid, counted):
    file = grid(('"training.local_epochs" = 2', '"training.local_epochs" = 1'))
    found = read(file)
    alone = [c for c in found.cells if c.labels["data.alpha"] == 0.1 and c.labels["seed"] == 0]
    assert alone[1].folder == alone[2].folder != alone[0].folder
    run_suite(found, 1, ["data.alpha=0.1", "seed=0"])
    assert len(counted) == 2
    assert sorted(suite.frame(read(file)).method) == ["knfu", "left, alone", "local"]


def test_arms_are_what_the_canary_command_calls_so(tmp_path):
    (tmp_path / "arms.toml").write_text(
        'experiment = "swing"\n[axes]\narm = ["fkd", "swing-noise"]\n"release.scale" = [0.01, 0.1]'
    )
    cells = read(tmp_path / "arms.toml").cells
    assert {cell.experiment.release.scale for cell in cells if cell.labels["arm"] == "fkd"} == {0}
    noisy = [cell for cell in cells if cell.labels["arm"] == "swing-noise"]
    assert [cell.experiment.release.scale for cell in noisy] == [0.01, 0.1]
    assert noisy[0].experiment.release.tau_max == 20
    assert all(cell.experiment.engine.remember for cell in cells)
    assert len({cell.folder for cell in cells}) == 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[quick.set]\nrounds = 1", "[quick.set]\nroundz = 1", "roundz is not a known key"),
        ('"data.alpha" = [0.1, 10]', '"data.alpha" = [0, 1]', "data.alpha = 0 is not allowed"),
        ('"data.alpha" = [0.1, 10]', "data.alpha = [1]", "axes.data.alpha = [1] is not allowed"),
        ("seed = [0, 1]\n", "seed = [0, 0]\n", "axes.seed = [0, 0] is not allowed"),
        ("seed = [0, 1]\n", "seed = 3\n", "axes.seed = 3 is not allowed: a list of values"),
        ("[quick.set]", "[quik.set]", "quik is not a known key (did you mean 'quick'?)"),
        ('skip = [{method = "local"', 'skip = [{methd = "x"', "'methd' is not an axis (did"),
        ('experiment = "small.toml"', 'experiment = "smal"', "experiment 'smal' is neither"),
        ("seed = [0, 1]\n", "seed = [\n", "is not valid TOML"),
        ("seed = [0, 1]\n", 'arm = ["fkd", "swang"]\n', "arm = 'swang' is not known (did you"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(grid, fedkd, old, new, said):
    code, out, err = fedkd("suite", grid((old, new)))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "grid.toml" in err
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scale", "slow"], "--scale 'slow' is not allowed: quick or full"),
        (["--only", "methd=knfu"], "'methd' is not an axis (did you mean 'method'?)"),
        (["--only", "method=knfo"], "--only method=knfo is not a label (did you mean 'knfu'?)"),
        (["--only", "method"], "--only 'method' is not of the form AXIS=LABEL"),
        (["--set", "seed=3"], "--set seed is not allowed, as it is an axis"),
        (["--set", "rounds"], "key=value"),
        (["--set", "strategy.beta=3"], "strategy.beta is not a known key"),
        (["--set", "strategy.name=knfo"], "strategy.name = 'knfo' is not known"),
        (["--set", "data.dataset=digit"], "data.dataset = 'digit' is not known"),
        (["--set", "student.models=['ml']"], "student.models = 'ml' is not known"),
    ],
)
def test_wrong_words_are_one_line_before_anything_runs(grid, fedkd, counted, words, said):
    code, out, err = fedkd("suite", grid(), *words)
    assert (code, out, err.count("\n"), counted) == (2, "", 1, [])
    assert said in err


def test_a_suite_that_is_not_there_names_the_shipped_ones(fedkd):
    code, _, err = fedkd("suite", "knfu-heterogenity")
    assert code == 2
    assert "did you mean 'knfu-heterogeneity'?" in err


def test_conditions_leave_cells_that_meet_all_of_them(grid):
    found = read(grid())

    def left(*conditions):
        return [tuple(cell.labels.values()) for cell in chosen(found, conditions)]

    assert left("seed=1", "data.alpha=10.0") == [(10, "knfu", 1), (10, "left, alone", 1)]
    assert left("method=left, alone", "seed=0") == [(0.1, "left, alone", 0), (10, "left, alone", 0)]
    assert len(left("method=knfu,local")) == 6
    assert left("method=knfu", "method=local") == []


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize("name", list(suite.suites()))
def test_shipped_suites_can_be_run_as_far_as_is_known_without_data(name, scale, monkeypatch):
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    found = read(name, scale)
    suite.check(found, found.cells)
    assert found.about
    assert len(found.axes["seed"]) >= 5
    embedded = {"digits", "pydoc"}
    there = [cell for cell in found.cells if not cell.missing]
    assert {cell.experiment.data.dataset for cell in there} <= embedded
    assert there, "some of every suite runs on a fresh machine"


# --- running ------------------------------------------------------------------------------------


def test_finished_runs_are_not_repeated(grid, counted):
    file = grid()
    first = run_suite(read(file), 1)
    assert (len(first.ran), len(first.there), len(counted)) == (10, 0, 10)
    again = run_suite(read(file), 1)
    assert (len(again.ran), len(again.there), len(counted)) == (0, 10, 10)


def test_a_changed_suite_repeats_only_what_has_changed(grid, counted):
    run_suite(read(grid()), 1)
    counted.clear()
    more = grid(
        ('"training.local_epochs" = 2', '"training.local_epochs" = 3'),
        ("knfu =", '"as ever" ='),
        ("seed = [0, 1]\n", "seed = [0, 1]\nparticipation = [1.0]\n"),
    )
    run_suite(read(more), 1)
    assert len(counted) == 2
    assert all(name.startswith("alpha0.1") and "local" in name for name, _ in counted)


def test_the_folder_of_a_suite_is_the_suite(grid):
    found = read(grid(), out=Path("mine"))
    run_suite(found, 1, ["data.alpha=0.1", "seed=0"])
    opened = read("mine")
    assert (opened.name, opened.about, opened.axes) == (found.name, found.about, found.axes)
    assert [c.labels for c in opened.cells] == [c.labels for c in found.cells]
    pairs = zip(opened.cells, found.cells, strict=True)
    assert all(a.experiment.digest() == b.experiment.digest() for a, b in pairs)
    assert suite.frame(opened).equals(suite.frame(read(grid(), out=Path("mine"))))


def test_the_frame_has_a_row_a_finished_cell_with_labels_and_numbers(grid):
    file = grid()
    assert list(suite.frame(read(file)).columns) == ["data.alpha", "method", "seed"]
    run_suite(read(file), 1, ["seed=1"])
    frame = suite.frame(read(file))
    assert list(frame.columns[:3]) == ["data.alpha", "method", "seed"]
    assert list(frame.seed) == [1] * 5
    assert set(frame.method) == {"knfu", "left, alone", "local"}
    assert frame.own_accuracy_mean.between(0, 1).all()
    assert not frame.columns.duplicated().any()


def test_a_dry_run_runs_nothing_and_says_what_is_there(grid, fedkd, counted):
    file = grid()
    run_suite(read(file), 1, ["method=knfu", "seed=0"])
    counted.clear()
    code, out, err = fedkd("suite", file, "--dry-run", "--only", "method=knfu")
    assert (code, err, counted) == (0, "", [])
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["there", "to", "there", "to"]
    assert lines[-1] == "4 cells: 2 there, 2 to run"


def test_a_dry_run_leaves_no_folder(grid, fedkd):
    fedkd("suite", grid(), "--dry-run")
    assert not Path("runs").exists()


def test_a_cell_that_fails_does_not_stop_the_others(grid, fedkd, monkeypatch):
    def run(experiment, folder, resume):
        if experiment.name == "alpha0.1-knfu" and experiment.seed == 0:
            raise FedkdError("it\ndiverged")
        if experiment.name == "alpha10-knfu" and experiment.seed == 1:
            raise ZeroDivisionError("by nought")
        return simulate(experiment, folder, resume=resume)

    monkeypatch.setattr(jobs, "run", run)
    file = grid()
    code, out, err = fedkd("suite", file, "--jobs", "1")
    assert (code, out) == (1, "runs/grid-quick\n")
    assert "8 ran, 2 failed" in err
    assert "failed: data.alpha 0.1, knfu, seed 0: it diverged" in err
    assert "failed: data.alpha 10, knfu, seed 1: ZeroDivisionError: by nought (test_suite" in err
    monkeypatch.setattr(jobs, "run", simulate)
    code, _, err = fedkd("suite", file, "--jobs", "1")
    assert code == 0
    assert "2 ran, 8 there already" in err


def test_a_cell_without_its_data_is_skipped_with_a_line(grid, fedkd, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path))
    old = "[quick.set]"
    file = grid((old, f'[axes.data]\ndigits = {{}}\nmnist = {{data.dataset = "mnist"}}\n{old}'))
    code, _, err = fedkd(
        "suite", file, "--jobs", "1", "--only", "data.alpha=10", "--only", "seed=0"
    )
    assert code == 0
    assert "2 ran, 2 skipped" in err
    assert err.count("data set 'mnist' is not at") == 1
    assert "skipped 2 cells" in err
    _, out, _ = fedkd("suite", file, "--dry-run", "--only", "data=mnist")
    assert out.count("no data ") == 10


def test_own_data_that_is_not_there_is_skipped_too(grid):
    cells = read(grid(), overrides=["data.dataset=npz:nowhere.npz"]).cells
    assert all("there is no such file" in cell.missing for cell in cells)


def test_a_log_has_a_line_for_every_cell(grid, fedkd):
    code, _, err = fedkd("suite", grid(), "--jobs", "1", "--only", "method=knfu")
    assert code == 0
    lines = [line for line in err.splitlines() if line[0].isdigit() and "/4 " in line]
    assert [line.split(":")[0] for line in lines] == [
        "1/4 data.alpha 0.1, knfu, seed 0",
        "2/4 data.alpha 0.1, knfu, seed 1",
        "3/4 data.alpha 10, knfu, seed 0",
        "4/4 data.alpha 10, knfu, seed 1",
    ]


def test_ctrl_c_says_that_the_same_command_goes_on(grid, fedkd, monkeypatch):
    def run(experiment, folder, resume):
        if experiment.seed == 1:
            raise KeyboardInterrupt
        return simulate(experiment, folder, resume=resume)

    monkeypatch.setattr(jobs, "run", run)
    file = grid()
    code, out, err = fedkd("suite", file, "--jobs", "1", "--only", "method=knfu")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("fedkd: interrupted; the same command goes on")
    monkeypatch.setattr(jobs, "run", simulate)
    assert "there already" in fedkd("suite", file, "--jobs", "1", "--only", "method=knfu")[2]


def test_a_run_half_done_goes_on_from_its_checkpoint(grid, monkeypatch):
    class Killed(Observer):
        def round_done(self, line):
            if line["round"] == 2:
                raise KeyboardInterrupt

    words = {"overrides": ["rounds=3", "checkpoint_every=1"]}
    only = ["method=knfu", "seed=0", "data.alpha=10"]
    (cell,) = chosen(read(grid(), **words), only)
    with pytest.raises(KeyboardInterrupt):
        simulate(cell.experiment, cell.folder, observer=Killed())
    assert (cell.folder / CHECKPOINT).is_dir()
    began = []

    def run(experiment, folder, resume):
        began.append(resume)
        return simulate(experiment, folder, resume=resume)

    monkeypatch.setattr(jobs, "run", run)
    run_suite(read(grid(), **words), 1, only)
    whole = simulate(cell.experiment, Path("whole"))
    assert began == [True]
    names = ("own_accuracy_mean", "bytes_up", "own_loss_mean")
    resumed = Run(cell.folder).summary
    assert {n: resumed[n] for n in names} == {n: whole.summary[n] for n in names}


@pytest.mark.parametrize("left", [".experiment.toml.new", f"{CHECKPOINT}/state.pt"])
def test_a_folder_that_a_kill_left_half_made_is_no_obstacle(grid, left):
    only = ["method=knfu", "seed=0", "data.alpha=10"]
    (cell,) = chosen(read(grid()), only)
    if left.startswith(CHECKPOINT):
        Run.at(cell.experiment, cell.folder).begin(cell.experiment)
    (cell.folder / left).parent.mkdir(parents=True)
    (cell.folder / left).write_text("half")
    outcome = run_suite(read(grid()), 1, only)
    assert not outcome.failed
    assert Run(cell.folder).summary


# --- jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cores", [1, 2, 8])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("engine", ["auto", "inline", "procs"])
@pytest.mark.parametrize("workers", [None, 2])
def test_jobs_never_take_more_cores_than_there_are(monkeypatch, cores, threads, engine, workers):
    monkeypatch.setattr(plan, "cores", lambda: cores)
    table = {"name": engine, "threads": threads, "workers": workers}
    table = {key: value for key, value in table.items() if value is not None}
    experiment = Experiment.from_dict({"engine": table})
    many = jobs.most([Experiment(), experiment])
    each = threads * (plan.workers(experiment) if engine == "procs" else 1)
    assert many == 1 or many * each <= cores
    assert (many + 1) * each > cores


def test_runs_on_a_gpu_go_one_at_a_time():
    assert jobs.most([Experiment.from_dict({"engine": {"device": "cuda"}})]) == 1


def test_side_by_side_an_engine_that_is_not_named_is_inline(small, tmp_path):
    for name, wanted in (("auto", "inline"), ("procs", "procs")):
        task = jobs._inside(jobs.Job(small(f"engine.name={name}"), tmp_path))
        assert task.experiment.engine.name == wanted
    limited = jobs._inside(jobs.Job(small("engine.timeout=9"), tmp_path)).experiment.engine
    assert (limited.name, limited.workers) == ("procs", 1)


def test_what_only_this_process_knows_runs_in_it(grid, counted):
    registry.register("strategies", "mine")(registry.load("strategies", "local"))
    outcome = run_suite(read(grid(), overrides=["strategy.name=mine"]), 2, ["data.alpha=0.1"])
    assert not outcome.failed
    assert len(counted) == len(outcome.ran) > 1


def test_time_left_is_told_by_cells_of_the_same_method(grid):
    cells = read(grid()).cells
    knfu, local = (
        [cell for cell in cells if cell.labels["method"] == name] for name in ("knfu", "local")
    )
    clock = suite_screen.Clock([], 2)
    assert clock.left(knfu, {}) is None
    clock.add(knfu[0], 10.0)
    assert clock.left(local[:1], {}) == 5.0  # nothing closer is known
    clock.add(local[0], 2.0)
    assert clock.left([knfu[1], local[1]], {}) == 6.0
    assert clock.left([knfu[1], local[1]], {knfu[1].folder: 4.0, local[1].folder: 9.0}) == 3.0


@pytest.mark.slow
def test_a_killed_process_takes_its_run_alone(small, tmp_path):
    tasks = [
        jobs.Job(small(f"seed={seed}", "rounds=2000"), tmp_path / f"{seed}") for seed in (0, 1)
    ]
    tasks += [jobs.Job(small(f"seed={seed}"), tmp_path / f"{seed}") for seed in (2, 3)]
    before = children()
    found = {}
    began = []
    runs = jobs.outcomes(tasks, 2, began.append)

    def kill_the_long_ones():
        for seed in (0, 1):
            while not (tmp_path / f"{seed}" / "rounds.jsonl").exists():
                time.sleep(0.05)
        for process in children() - before:
            os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=kill_the_long_ones)
    thread.start()
    for index, _, why in runs:
        found[index] = why
    thread.join()
    assert found[0] == found[1] == jobs.KILLED
    assert found[2] == found[3] == ""
    assert sorted(began) == [0, 1, 2, 3]


def children():
    """Processes of this one that run a suite's jobs."""
    return {child.pid for child in active_children()}


def command(file, *words):
    """``fedkd suite`` in a process group of its own."""
    code = "from fedkd.simulations.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "suite", file, "--jobs", "2", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_suite_killed_at_random_moments_ends_with_the_same_table(grid, fedkd):
    file = grid(("rounds = 1", "rounds = 6\ncheckpoint_every = 1"))
    generator = random.Random(int.from_bytes(os.urandom(4)))

    def rounds():
        texts = map(text_of, Path("killed").glob("*/rounds.jsonl"))
        return sum(text.count("\n") for text in texts)

    def text_of(file):
        try:
            return file.read_text()
        except FileNotFoundError:  # a run that begins again has just taken it away
            return ""

    # Four times about six of the sixty rounds that there are: the suite is at work whenever it is
    # killed.
    for _ in range(4):
        process = command(file, "--out", "killed")
        end = rounds() + generator.randint(1, 6)
        while process.poll() is None and rounds() < end:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    last = command(file, "--out", "killed")
    _, err = last.communicate()
    assert last.returncode == 0, err
    whole = command(file, "--out", "whole")
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    words = ("--columns", "data.alpha", "--where", "method=knfu,local")
    for value in ("own_accuracy_mean", "own_loss_mean", "bytes_up"):
        tables = [
            fedkd("table", folder, *words, "--value", value, "--format", "csv")[1]
            for folder in ("killed", "whole")
        ]
        assert tables[0] == tables[1]
        assert tables[0].count("\n") >= 3


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["one", "all"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_process_and_goes_on(grid, number, whom):
    """A batch system's signal goes to all processes, or to the first alone."""
    file = grid(("rounds = 1", "rounds = 300\ncheckpoint_every = 200"))
    process = command(file, "--only", "method=knfu", "--jobs", "2")
    while sum("\n" in path.read_text() for path in Path("runs").glob("*/*/rounds.jsonl")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, number) if whom == "all" else process.send_signal(number)
    out, err = process.communicate()  # until nobody holds its end of the pipes any more
    assert (process.returncode, out) == (128 + number, "")
    assert err.splitlines()[-1].startswith("fedkd: interrupted; the same command goes on")
    assert "Traceback" not in err
    begun = [Run(file.parent) for file in Path("runs").glob("*/*/rounds.jsonl")]
    for run in begun:
        run.check()
        assert checkpoint.files(run.folder)[0].name.startswith(f"round-{len(run.rounds)}-")
    assert not [file for file in Path("runs").rglob(".*") if file.name != ".lock"]


def test_suite_json_says_what_there_is(grid):
    run_suite(read(grid()), 1, ["method=knfu", "data.alpha=10"])
    stored = json.loads(Path("runs/grid-quick/suite.json").read_text())
    assert (stored["name"], stored["scale"]) == ("grid", "quick")
    assert stored["about"] == "Two methods on a small one."
    assert len(stored["cells"]) == 10
    folders = {one["folder"] for one in stored["cells"]}
    there = {path.name for path in Path("runs/grid-quick").iterdir() if path.is_dir()}
    assert len(there) == 2
    assert there < folders


def test_what_was_set_is_kept_with_the_suite_and_not_set_again(grid):
    run_suite(read(grid(), overrides=["rounds=1"]), 1, ["method=knfu", "data.alpha=10"])
    again = read("runs/grid-quick")
    assert again.overrides == ("rounds=1",)
    assert all(cell.experiment.rounds == 1 for cell in again.cells)
    with pytest.raises(FedkdError, match="--set rounds=2 is not allowed for the folder of a suite"):
        read("runs/grid-quick", overrides=["rounds=2"])


# --- folders that are not as they should be -----------------------------------------------------


def contents(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def stored(grid):
    """The ``suite.json`` of a suite of which nothing was run, and a function that changes it."""
    suite.run_suite(read(grid(), out=Path("mine")), 1, ["seed=0", "method=local"])
    file = Path("mine/suite.json")

    def change(act):
        tables = json.loads(file.read_text())
        act(tables)
        file.write_text(json.dumps(tables))
        return file

    return change


@pytest.mark.parametrize(
    "name", ["../../outside", "/tmp/outside", "inner/deeper", "..", ".", "", "x\0y", "a\\b"]
)
@pytest.mark.parametrize("where", ["cells", "failed"])
def test_nothing_is_written_outside_a_suites_folder(stored, fedkd, counted, where, name):
    def change(tables):
        if where == "cells":
            tables["cells"][1]["folder"] = name
        else:
            tables["failed"] = {name: "why"}

    stored(change)
    before = contents(Path())
    code, out, err = fedkd("suite", "mine", "--jobs", "1")
    assert (code, out, err.count("\n"), counted) == (2, "", 1, [])
    assert "mine/suite.json: folder = " in err
    assert contents(Path()) == before


def test_a_link_out_of_a_suites_folder_is_refused(stored, grid, fedkd, counted, tmp_path):
    cell = next(cell for cell in read("mine").cells if not cell.finished)
    (tmp_path / "outside").mkdir()
    cell.folder.symlink_to(tmp_path / "outside")
    for words in (["mine"], [grid(), "--out", "mine"]):
        code, out, err = fedkd("suite", *words, "--jobs", "1")
        assert (code, out, err.count("\n"), counted) == (2, "", 1, [])
        assert f"{cell.folder} is not inside mine: nothing is written there" in err
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.clear(), "name"),
        (lambda t: t.update(name=3), "name = 3"),
        (lambda t: t.update(axes=[]), "axes = []"),
        (lambda t: t.update(unknown=1), "unknown = 1"),
        (lambda t: t["cells"][0].pop("folder"), "cells.0.folder"),
        (lambda t: t["cells"][0].update(folder=3), "cells.0.folder = 3"),
        (lambda t: t["cells"][0].update(experiment=[]), "cells.0.experiment = []"),
        (lambda t: t["cells"][0]["experiment"].update(rounds=0), "rounds = 0"),
        (lambda t: t["cells"][0]["labels"].update(method="none"), "method = 'none'"),
        (lambda t: t["cells"][0]["labels"].pop("method"), "has not a label of each axis"),
        (lambda t: t.update(failed=["a"]), "failed = ['a']"),
    ],
)
def test_a_suites_json_that_is_not_as_it_should_be_is_one_line(stored, fedkd, change, said):
    file = stored(change)
    for command in ("suite", "table", "report"):
        code, out, err = fedkd(command, "mine")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{file} cannot be read: " in err
        assert said in err


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\0", "[" * 100_000])
def test_a_suites_json_that_is_none_is_one_line(stored, fedkd, text):
    file = stored(lambda tables: None)
    file.write_text(text)
    code, out, err = fedkd("suite", "mine")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{file} cannot be read: " in err


def test_a_suite_that_is_being_run_is_not_run_again_meanwhile(stored, fedkd, counted):
    before = contents(Path())
    with lock.held(Path("mine")):
        code, out, err = fedkd("suite", "mine", "--jobs", "1")
        assert (code, out, err.count("\n"), counted) == (2, "", 1, [])
        assert f"mine is being written to by process {os.getpid()} on " in err
        assert fedkd("suite", "mine", "--dry-run")[0] == 0
    assert contents(Path()) == before


def test_a_suite_in_a_runs_folder_is_refused(grid, fedkd, counted):
    Run.at(Experiment(), Path("mine")).begin(Experiment())
    code, _, err = fedkd("suite", grid(), "--out", "mine", "--jobs", "1")
    assert (code, err.count("\n"), counted) == (2, 1, [])
    assert "lies in the folder of a run" in err


def test_a_cell_that_fails_again_keeps_what_it_has_done(grid, monkeypatch):
    words = {"overrides": ["rounds=4", "checkpoint_every=2"]}
    only = ["method=knfu", "seed=0", "data.alpha=10"]
    append, begun, mended = Run.append_round, [], []

    def fails(self, line, **details):
        begun.append(line["round"])
        if line["round"] == 4 and not mended:
            raise FedkdError("lower engine.workers")
        append(self, line, **details)

    monkeypatch.setattr(Run, "append_round", fails)
    for _ in range(2):
        ((cell, why),) = run_suite(read(grid(), **words), 1, only).failed
        assert why == "lower engine.workers"
        assert len(Run(cell.folder).rounds) == 3
    mended.append(True)
    assert run_suite(read(grid(), **words), 1, only).ran
    assert begun == [1, 2, 3, 4, 4, 4]
    whole = simulate(cell.experiment, Path("whole"))
    assert measured(Run(cell.folder)) == measured(whole)


def test_checkpoints_that_cannot_be_read_are_set_aside_and_the_run_begins_anew(grid):
    only = ["method=knfu", "seed=0", "data.alpha=10"]
    suite_ = read(grid(), overrides=["rounds=3", "checkpoint_every=1"])
    (cell,) = chosen(suite_, only)
    with pytest.raises(Killed):
        simulate(cell.experiment, cell.folder, observer=KilledAfter(2))
    damaged = {file.name: file.write_bytes(b"half") for file in checkpoint.files(cell.folder)}
    assert run_suite(suite_, 1, only).ran
    kept = {file.name: file.read_bytes() for file in (cell.folder / CHECKPOINT).iterdir()}
    assert kept == {f"unreadable-{name}": b"half" for name in damaged}
    assert len(Run(cell.folder).rounds) == 3


def test_a_finished_run_that_is_damaged_is_named_and_the_others_are_shown(grid, fedkd, counted):
    file = grid()
    only = ["--only", "data.alpha=0.1", "--jobs", "1"]
    fedkd("suite", file, *only)
    cells = chosen(read(file), ["data.alpha=0.1"])
    rounds = cells[0].folder / "rounds.jsonl"
    rounds.write_bytes(b"")
    cells[1].folder.rename("aside")
    cells[2].folder.rename(cells[1].folder)  # another run under its name
    Path("aside").rename(cells[2].folder)
    counted.clear()
    before = contents(Path())
    code, _, err = fedkd("suite", file, *only)
    assert (code, counted) == (1, [])
    assert "3 there already, 3 failed" in err
    assert f"failed: {cells[0].title}: {rounds}, line 1: the run has written 1 lines" in err
    assert err.count("warning: left out: ") == 3
    assert err.count("holds another experiment than its suite says") == 4
    assert {f: c for f, c in contents(Path()).items() if f.name != "suite.json"} == {
        f: c for f, c in before.items() if f.name != "suite.json"
    }
    for words in (
        ["table", file, "--rows", "method", "--columns", "data.alpha"],
        ["plot", "curves", "runs/grid-quick"],
    ):
        code, out, err = fedkd(*words)
        assert (code, bool(out)) == (0, True)
        assert str(rounds) in err
    assert len(suite.frame(read(file))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["summary.json", "environment.json", "experiment.toml"])
def test_a_report_is_written_of_the_runs_that_can_be_read(grid, fedkd, name):
    file = grid()
    run_suite(read(file), 1, ["seed=0"])
    cell = next(cell for cell in read(file).cells if cell.finished)
    (cell.folder / name).write_text("{")
    code, out, err = fedkd("report", "runs/grid-quick")
    assert (code, err.count("\n")) == (0, 1)
    assert f"fedkd: warning: left out: {cell.folder / name}" in err
    assert str(cell.folder / name) in Path(out.strip()).read_text()
