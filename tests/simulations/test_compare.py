"""The table of runs: known answers."""

import pytest

from fedkd.caveats import LOCAL_TRAINING
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.results import Run
from fedkd.simulations import cli
from fedkd.simulations.compare import table


def finished(folder, method="knfu", seed=0, own=(0.5, 0.6), **summary):
    """A finished run that moves 1 MB a round and had these mean own accuracies."""
    experiment = Experiment.from_dict({"seed": seed, "strategy": {"name": method}})
    run = Run.at(experiment, folder).begin(experiment)
    for round, accuracy in enumerate(own, 1):
        line = {"round": round, "bytes_up": 750_000, "bytes_down": 250_000}
        run.append_round(line | {"own_accuracy_mean": accuracy}, [])
    found = {"own_accuracy_mean": own[-1], "own_accuracy_std": 0.1, "own_accuracy_worst10": 0.3}
    sizes = {"bytes_up": 750_000 * len(own), "bytes_down": 250_000 * len(own), "seconds": 2.0}
    run.write_summary(found | sizes | summary)
    return run


def rows(text):
    """The cells of every row under their column's head."""
    heads, _, *lines = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.split("\n")
        if line.startswith("|")
    )
    return [dict(zip(heads, line, strict=True)) for line in lines]


def test_runs_that_differ_in_their_seed_are_one_row_mean_and_deviation(tmp_path):
    runs = [finished(tmp_path / f"{seed}", seed=seed, own=[0.5 + seed / 10]) for seed in range(3)]
    (row,) = rows(table(runs))
    assert (row["run"], row["seeds"], row["own, fused"]) == ("knfu", "3", "60.0 ± 10.0")


def test_own_std_is_the_deviation_over_clients(tmp_path):
    runs = [
        finished(tmp_path / f"{n}", seed=n, own_accuracy_std=s) for n, s in ((0, 0.1), (1, 0.2))
    ]
    assert rows(table(runs[:1]))[0]["own std"] == "10.0"
    assert rows(table(runs))[0]["own std"] == "15.0 ± 7.1"


def test_jains_index_is_a_column_only_if_a_run_has_it(tmp_path):
    without = finished(tmp_path / "a")
    fair = finished(tmp_path / "b", "local", own_accuracy_jain=0.98765)
    assert "own Jain" not in rows(table([without]))[0]
    assert [row["own Jain"] for row in rows(table([without, fair]))] == ["-", "0.988"]


def test_without_a_target_there_are_no_columns_for_it(tmp_path):
    assert " to " not in table([finished(tmp_path)])


def test_a_target_adds_the_rounds_and_mb_to_it(tmp_path):
    (row,) = rows(table([finished(tmp_path, own=[0.3, 0.59, 0.6, 0.7])], 60))
    assert (row["rounds to 60 %"], row["MB to 60 %"]) == ("3", "3.00")


def test_to_a_target_is_a_mean_over_seeds(tmp_path):
    runs = [
        finished(tmp_path / "a", own=[0.7, 0.7]),
        finished(tmp_path / "b", seed=1, own=[0, 0.7]),
    ]
    (row,) = rows(table(runs, 62.5))
    assert (row["rounds to 62.5 %"], row["MB to 62.5 %"]) == ("1.5", "1.50")


def test_where_not_all_seeds_reach_the_target_it_says_how_many_did(tmp_path):
    ends = (0.7, 0.5, 0.8)
    runs = [finished(tmp_path / f"{n}", seed=n, own=[0.1, end]) for n, end in enumerate(ends)]
    (row,) = rows(table(runs, 60))
    assert (row["rounds to 60 %"], row["MB to 60 %"]) == ("2 (2 of 3)", "2.00 (2 of 3)")


def test_a_target_that_was_never_reached_is_a_dash(tmp_path):
    (row,) = rows(table([finished(tmp_path)], 90))
    assert (row["rounds to 90 %"], row["MB to 90 %"]) == ("-", "-")


def test_the_table_lines_up_as_plain_text(tmp_path):
    runs = [finished(tmp_path / "a"), finished(tmp_path / "b", "a_method_with_a_long_name")]
    lines = table(runs, 60).split("\n\n")[0].split("\n")
    bars = [[place for place, sign in enumerate(line) if sign == "|"] for line in lines]
    assert all(places == bars[0] for places in bars)


def test_what_runs_warn_of_stands_under_the_table_and_marks_its_rows(tmp_path):
    runs = [finished(tmp_path / f"{n}", seed=n) for n in range(3)]
    runs[1].warn("it is local training", 3, LOCAL_TRAINING)
    text = table([*runs, finished(tmp_path / "b", "fedmd")])
    assert [row["run"] for row in rows(text)] == ["knfu †", "fedmd"]
    assert "- † knfu (1 of 3 runs): it is local training\n" in text
    assert "10 clients, 10 rounds" in text


def test_a_run_and_its_copy_do_not_count_as_two_seeds(tmp_path):
    runs = [finished(tmp_path / name) for name in "ab"]
    with pytest.raises(FedkdError, match=r"a and .*b are one experiment with one seed, 0"):
        table(runs)


def test_a_name_that_is_markdown_is_shown_as_it_is(tmp_path):
    run = finished(tmp_path / "a", "my|<b>`*x*")
    assert r"my\|&lt;b&gt;\`\*x\*" in table([run])


def test_a_run_that_has_not_finished_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match="has not finished"):
        table([Run.at(Experiment(), tmp_path).begin(Experiment())])


def test_the_command_takes_a_target_in_percent(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", str(finished(tmp_path / "a").folder), "--target", "55"])
    assert not ended.value.code
    assert rows(capsys.readouterr().out.strip())[0]["rounds to 55 %"] == "2"


@pytest.mark.parametrize("target", ["0.6", "101", "high"])
def test_a_target_that_is_no_percentage_is_one_line(tmp_path, capsys, target):
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", str(finished(tmp_path / "a").folder), "--target", target])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert "--target" in err
