"""Runs as data frames: what is in which column."""

import subprocess
import sys
from pathlib import Path

import pytest

import fedkd
from fedkd import FedkdError, load_rounds, load_runs
from fedkd.labels import flat
from fedkd.results import Run
from fedkd.run import run


@pytest.fixture
def runs(small, tmp_path):
    """Two finished runs, of which one is in a folder in a folder, and one that was begun."""
    for seed, place in ((0, "a"), (1, "b/c")):
        run(small(f"seed={seed}", "student.models=['mlp','cnn2']"), tmp_path / place)
    begun = small("strategy.name=local")
    Run.at(begun, tmp_path / "d").begin(begun)
    return tmp_path


def test_a_row_is_a_run_wherever_it_lies(runs):
    frame = load_runs(runs)
    assert list(frame.folder) == [str(runs / place) for place in ("a", "b/c", "d")]
    assert list(frame.finished) == [True, True, False]
    assert list(load_runs(str(runs / "b")).seed) == [1]
    assert list(load_runs(runs / "a").seed) == [0]


def test_columns_are_every_key_and_every_entry_of_the_summary(runs):
    frame = load_runs(runs)
    one = Run(runs / "a")
    keys = set(flat(one.experiment.model_dump(mode="json")))
    assert keys | set(one.summary) | {"folder", "finished"} <= set(frame.columns)
    assert not frame.columns.duplicated().any()
    assert list(frame["student.models"]) == ["mlp+cnn2", "mlp+cnn2", "mlp"]
    assert list(frame["strategy.name"]) == ["knfu", "knfu", "local"]
    assert frame.own_accuracy_mean[0] == one.summary["own_accuracy_mean"]
    assert frame.own_accuracy_mean_local[0] == one.summary["own_accuracy_mean_local"]
    assert frame.bytes_up[0] == one.summary["bytes_up"]


def test_what_a_run_does_not_have_is_missing(runs):
    frame = load_runs(runs)
    assert frame.own_accuracy_mean.isna().tolist() == [False, False, True]
    assert frame.own_accuracy_mean.dtype == float


def test_a_round_is_a_row_of_its_run(runs):
    frame = load_rounds(runs)
    assert list(frame["round"]) == [1, 2, 1, 2]
    assert list(frame.seed) == [0, 0, 1, 1]
    line = Run(runs / "a").rounds[1]
    assert frame.own_accuracy_mean[1] == line["own_accuracy_mean"]
    assert frame.own_accuracy_mean_local[1] == line["local"]["own_accuracy_mean"]
    assert frame["record.contributors"][1] == line["strategy"]["contributors"]
    assert not frame.columns.duplicated().any()


def test_what_a_strategy_recorded_is_a_column_with_its_last_value(runs):
    frame, rounds = load_runs(runs), load_rounds(runs)
    recorded = {name for name in frame.columns if name.startswith("record.")}
    assert recorded == {name for name in rounds.columns if name.startswith("record.")}
    line = Run(runs / "a").rounds[-1]["strategy"]
    assert "weights" in line
    assert recorded == {f"record.{name}" for name in line if name != "weights"}
    assert frame["record.contributors"][0] == line["contributors"]
    assert frame["record.contributors"].isna().tolist() == [False, False, True]


def test_what_a_run_warns_of_is_in_its_row(runs):
    Run(runs / "b/c").warn("the common test set has 3 samples")
    frame = load_runs(runs)
    texts = [[caveat.text for caveat in some] for some in frame.warnings]
    assert "the common test set has 3 samples" in texts[1]
    assert texts[2] == ["has not ended: 0 of 2 rounds"]
    assert texts[0][-1] == "2 measured rounds: too few to tell whether training had converged"


def test_a_folder_without_runs_is_an_empty_frame(tmp_path):
    assert len(load_runs(tmp_path)) == len(load_rounds(tmp_path)) == 0


def test_a_folder_that_is_not_there_and_an_experiment_that_is_none_are_one_line(tmp_path):
    with pytest.raises(FedkdError, match="nowhere is not a folder of runs"):
        load_runs(tmp_path / "nowhere")
    (tmp_path / "experiment.toml").write_text("rounds = []")
    with pytest.raises(FedkdError, match=r"experiment\.toml cannot be read: rounds = \[\] is not"):
        load_runs(tmp_path)


def test_pandas_is_imported_when_it_is_asked_for():
    code = "import fedkd, sys; assert 'pandas' not in sys.modules; fedkd.load_runs"
    root = str(Path(fedkd.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    with pytest.raises(AttributeError, match="no attribute 'load_run'"):
        fedkd.load_run  # noqa: B018
