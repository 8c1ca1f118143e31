"""Which runs a figure shows: found in folders, gathered into panels, lines and intervals."""

import json
import math

import numpy as np
import pytest

from fedkd import run
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.plots import curves, pareto
from fedkd.plots.gather import apart, final, find, lines, one, over_seeds, panels, said_of_seeds
from fedkd.results import Run
from fedkd.simulations import cli


def fake_run(folder, *overrides, ended=True, **summary):
    """A run's folder of an experiment with these keys."""
    experiment = Experiment.from_toml("", overrides)
    run = Run.at(experiment, folder).begin(experiment)
    if ended:
        run.write_summary({"own_accuracy_mean": 0.5, **summary})
    return run


def several(root, *keys):
    return [fake_run(root / str(n), *some) for n, some in enumerate(keys)]


def test_a_runs_own_folder_is_that_run_finished_or_not(tmp_path):
    fake_run(tmp_path / "a", ended=False)
    assert [run.folder for run in find([tmp_path / "a"])] == [tmp_path / "a"]


def test_a_folder_of_runs_is_the_finished_ones_below_it_at_any_depth(tmp_path):
    fake_run(tmp_path / "b" / "c")
    fake_run(tmp_path / "a")
    fake_run(tmp_path / "d", ended=False)
    found = [run.folder.relative_to(tmp_path).as_posix() for run in find([tmp_path])]
    assert found == ["a", "b/c"]


def test_a_run_that_is_named_twice_is_there_once(tmp_path):
    fake_run(tmp_path / "a")
    assert len(find([tmp_path, tmp_path / "a", tmp_path / "." / "a"])) == 1


def test_of_a_suite_only_its_cells_count_in_their_order(tmp_path):
    for name in ("old", "one", "two", "begun"):
        fake_run(tmp_path / name, ended=name != "begun")
    cells = [{"folder": name} for name in ("two", "one", "begun", "missing")]
    (tmp_path / "suite.json").write_text(json.dumps({"cells": cells}))
    assert [run.folder.name for run in find([tmp_path])] == ["two", "one"]


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": [{}]}'])
def test_a_suite_that_cannot_be_read_is_one_line(tmp_path, text):
    (tmp_path / "suite.json").write_text(text)
    with pytest.raises(FedkdError, match=r"suite\.json cannot be read"):
        find([tmp_path])


def test_no_run_is_one_line_at_the_command_line(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["plot", "curves", str(folder)])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert str(folder) in said


def test_one_run_is_it_and_several_are_refused(tmp_path):
    run = fake_run(tmp_path / "a")
    assert one([run], "cuts") is run
    with pytest.raises(FedkdError, match="cuts shows one run and 2 were given"):
        one([run, run], "cuts")


def test_data_that_vary_within_a_method_are_panels_in_rising_order(tmp_path):
    keys = [[f"data.alpha={alpha}", f"seed={seed}"] for alpha in (100, 0.5, 3) for seed in (0, 1)]
    parts, along = panels(several(tmp_path, *keys))
    assert [part.title for part in parts] == ["alpha = 0.5", "alpha = 3", "alpha = 100"]
    assert [len(part.runs) for part in parts] == [2, 2, 2]
    assert along == ("data.alpha",)


def test_runs_on_the_same_data_are_one_panel_without_a_title(tmp_path):
    methods = [[f"strategy.name={name}"] for name in ("knfu", "local")]
    (part,), along = panels(several(tmp_path, *methods))
    assert (part.title, along) == ("", ())


def test_the_figures_own_key_makes_no_panels(tmp_path):
    parts, along = panels(several(tmp_path, ["data.alpha=1"], ["data.alpha=2"]), "data.alpha")
    assert (len(parts), along) == (1, ())


def test_what_goes_with_the_data_set_is_told_by_its_name_and_parts_no_line(tmp_path):
    digits = ["data.dataset=digits", "rounds=5", "data.samples_per_client=80"]
    mnist = ["data.dataset=mnist", "rounds=9", "data.samples_per_client=600", "training.lr=0.1"]
    runs = several(
        tmp_path,
        *(
            [*data, f"strategy.name={name}"]
            for data in (digits, mnist)
            for name in ("knfu", "local")
        ),
    )
    parts, along = panels(runs)
    assert [part.title for part in parts] == ["digits", "mnist"]
    assert {"data.samples_per_client", "training.lr", "rounds"} < set(along)
    assert [(line.label, len(line.runs)) for line in lines(runs, along)] == [
        ("knfu", 2),
        ("local", 2),
    ]


def test_a_key_that_varies_on_the_same_data_tells_lines_apart(tmp_path):
    runs = several(tmp_path, ["participation=0.5"], ["participation=1"])
    parts, along = panels(runs)
    assert (len(parts), along) == (1, ())
    assert [line.label for line in lines(runs)] == [
        "knfu, participation = 0.5",
        "knfu, participation = 1",
    ]


def test_what_a_method_always_has_is_not_in_its_name(tmp_path):
    runs = several(
        tmp_path, ["training.local_epochs=1"], ["strategy.name=local", "training.local_epochs=2"]
    )
    assert [line.label for line in lines(runs)] == ["knfu", "local"]


def test_data_that_differ_between_methods_are_always_told(tmp_path):
    runs = several(tmp_path, ["data.alpha=1"], ["strategy.name=local", "data.alpha=2"])
    assert [line.label for line in lines(runs)] == ["knfu, alpha = 1", "local, alpha = 2"]


def test_without_panels_lines_are_named_by_method_and_data(tmp_path):
    runs = several(tmp_path, ["data.alpha=1"], ["data.alpha=2"])
    found = apart(runs)
    assert [line.label for line in found] == ["knfu, alpha = 1", "knfu, alpha = 2"]
    assert len({line.style["marker"] for line in found}) == 2


def test_more_panels_than_fit_are_one_line(tmp_path):
    runs = several(tmp_path, *([f"data.alpha={n}"] for n in range(1, 14)))
    with pytest.raises(FedkdError, match="13 kinds of data do not fit into one figure"):
        panels(runs)


def test_an_interval_over_seeds_is_students_from_three_on(tmp_path):
    mean, low, high = over_seeds([1.0, 2.0, 3.0])
    half = 4.302653 / np.sqrt(3)  # t of two degrees of freedom, a standard deviation of 1
    assert (mean, low, high) == pytest.approx((2, 2 - half, 2 + half), rel=1e-6)


def test_of_two_seeds_it_is_the_range_and_of_one_there_is_none():
    assert over_seeds([3.0, 1.0]) == (2, 1, 3)
    mean, low, high = over_seeds([3.0])
    assert mean == 3
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({1}, ""),
        ({2}, "range over 2 seeds"),
        ({1, 5}, "95 % interval over 5 seeds"),
        ({2, 5}, "95 % interval over 2 to 5 seeds (of two: the range)"),
    ],
)
def test_a_figure_says_what_its_bars_are(counts, said):
    assert said_of_seeds(counts) == said


def test_the_end_of_a_run_is_read_after_either_stage(tmp_path):
    run = fake_run(tmp_path / "a", own_accuracy_mean_local=0.25)
    assert final(run, "own_accuracy") == 0.5
    assert final(run, "own_accuracy", "local") == 0.25
    assert math.isnan(final(run, "common_accuracy"))
    with pytest.raises(FedkdError, match="has not ended"):
        final(fake_run(tmp_path / "b", ended=False), "own_accuracy")


def test_the_headline_is_drawn_at_the_stage_that_each_paper_scores(small, tmp_path):
    for name, column in (("fedmd", "own_accuracy_mean_local"), ("knfu", "own_accuracy_mean")):
        done = run(small(f"strategy.name={name}", "rounds=1"), tmp_path / name)
        assert final(done, "headline_accuracy") == done.summary[column]
        (line,) = curves.draw([done], "headline_accuracy").axes[0].lines
        assert line.get_ydata() == pytest.approx([100 * done.summary[column]])
        assert pareto.draw([done], "headline_accuracy").axes
