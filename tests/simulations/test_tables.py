"""Tables of suites: known answers, planted bests and ties, and what each format says."""

import csv
import io
import re

import numpy as np
import pytest
from pandas import DataFrame, concat

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.results import Run
from simulations import tables
from simulations.tables import Entry, table

SEEDS = range(5)
NOISE = np.array([0.3, -0.2, 0.1, -0.4, 0.2]) / 100
"""Of seeds: it is the same for all methods, so that pairs differ by less than values do."""


def frame(means, alpha=0.1, value="own_accuracy_mean", own=0.0, seeds=SEEDS):
    """Runs of methods with these means; ``own`` times a noise that methods do not share."""
    generator = np.random.default_rng(0)
    rows = [
        {"method": method, "data.alpha": alpha, "seed": seed}
        | {value: mean + NOISE[seed] + own * generator.standard_normal()}
        for method, mean in means.items()
        for seed in seeds
    ]
    return DataFrame(rows)


def marks(found):
    return {
        name: [("best" if e.best else "tie" if e.tie else "") for e in entries]
        for name, entries in zip(found.rows, found.cells, strict=True)
    }


def test_an_entry_is_mean_and_deviation_over_seeds_in_percent():
    rows = [{"m": "a", "seed": s, "own_accuracy_mean": x} for s, x in enumerate((0.5, 0.6, 0.7))]
    found = table(DataFrame(rows), "m", (), "own_accuracy_mean")
    entry = found.cells[0][0]
    assert (entry.text, entry.seeds) == ("60.0 ± 10.0", 3)
    assert (entry.low, entry.mean, entry.high) == pytest.approx((50, 60, 70))
    assert (found.corner, found.rows, found.columns) == ("m", ("a",), ("own_accuracy_mean",))


def test_rows_and_columns_are_in_the_order_of_the_frame_and_may_be_combinations():
    data = concat([frame({"b": 0.5, "a": 0.6}, 10.0), frame({"b": 0.4, "c": 0.3}, 0.1)])
    found = table(data, "method", "data.alpha", "own_accuracy_mean")
    assert (found.rows, found.columns) == (("b", "a", "c"), ("10", "0.1"))
    assert [[entry is None for entry in row] for row in found.cells] == [
        *([False, False], [False, True], [True, False])
    ]
    both = table(data, ["method", "data.alpha"], [], "own_accuracy_mean")
    assert both.rows == ("b, 10", "a, 10", "b, 0.1", "c, 0.1")


def test_a_planted_best_is_found_where_the_noise_of_seeds_hides_it():
    # Seeds move all methods by more than methods differ by: only pairs can tell.
    found = table(frame({"a": 0.800, "b": 0.801}, own=1e-5), "method", (), "own_accuracy_mean")
    assert found.cells[0][0].high > found.cells[1][0].low
    assert marks(found) == {"a": [""], "b": ["best"]}


def test_what_cannot_be_told_from_the_best_is_a_tie():
    found = table(
        frame({"a": 0.80, "b": 0.8001, "c": 0.60}, own=0.01), "method", (), "own_accuracy_mean"
    )
    assert sorted(mark for (mark,) in marks(found).values()) == ["", "best", "tie"]
    assert marks(found)["c"] == [""]


def test_identical_runs_tie():
    assert marks(table(frame({"a": 0.5, "b": 0.5}), "method", (), "own_accuracy_mean")) == {
        "a": ["best"],
        "b": ["tie"],
    }


def test_less_is_best_where_it_is_asked_for():
    data = frame({"a": 0.5, "b": 0.7}, own=1e-3)
    assert marks(table(data, "method", (), "own_accuracy_mean", best="min"))["a"] == ["best"]
    assert marks(table(data, "method", (), "own_accuracy_mean", best=None)) == {
        "a": [""],
        "b": [""],
    }


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        *(("own_accuracy_mean", "max"), ("common_accuracy_worst10", "max")),
        *(("own_accuracy_std", "min"), ("own_loss_mean", "min"), ("own_ece_mean_local", "min")),
        *(("common_perplexity_mean", "min"), ("bytes_up", "min"), ("own_accuracy_jain", "max")),
    ],
)
def test_what_is_better_is_known_by_the_name_of_a_value(value, wanted):
    assert tables.direction(value) == wanted


def test_holms_correction_counts_the_methods_of_a_column():
    # b is worse by a p of 0.03; with many others as close, Holm's method lets it pass.
    differences = np.array([2.0, -0.3, 1.5, 1.0, 1.4]) / 100
    best = 0.8 + NOISE
    rows = [{"m": "a", "seed": s, "own_accuracy_mean": x} for s, x in enumerate(best)]

    def others(count):
        return [
            {"m": f"b{n}", "seed": s, "own_accuracy_mean": x}
            for n in range(count)
            for s, x in enumerate(best - differences)
        ]

    one = table(DataFrame(rows + others(1)), "m", (), "own_accuracy_mean")
    many = table(DataFrame(rows + others(4)), "m", (), "own_accuracy_mean")
    assert marks(one)["b0"] == [""]
    assert marks(many)["b0"] == ["tie"]


def test_five_seeds_are_too_few_for_wilcoxon_to_tell_anything():
    data = frame({"a": 0.5, "b": 0.9}, own=1e-4)
    assert marks(table(data, "method", (), "own_accuracy_mean", test="wilcoxon"))["a"] == ["tie"]
    assert marks(table(data, "method", (), "own_accuracy_mean"))["a"] == [""]


def test_pairs_are_seeds_and_not_places_in_the_frame():
    data = frame({"a": 0.800, "b": 0.801}, own=1e-5)
    shuffled = data.sample(frac=1, random_state=1)
    found = [table(d, "method", (), "own_accuracy_mean") for d in (data, shuffled)]
    assert marks(found[0]) == {"a": [""], "b": ["best"]}
    assert dict(sorted(marks(found[1]).items())) == marks(found[0])


def test_only_seeds_that_both_have_are_paired():
    data = concat([frame({"a": 0.801}, own=1e-5), frame({"b": 0.8}, own=1e-5, seeds=range(1, 4))])
    found = table(data, "method", (), "own_accuracy_mean")
    assert marks(found) == {"a": ["best"], "b": [""]}
    assert [row[0].text.split(" (")[1] for row in found.cells] == ["n = 5)", "n = 3)"]
    assert "n = " not in table(frame({"a": 1, "b": 2}), "method", (), "own_accuracy_mean").caption


def test_one_seed_has_neither_spread_nor_ties():
    found = table(frame({"a": 0.5, "b": 0.4}, seeds=[0]), "method", (), "own_accuracy_mean")
    assert [row[0].text for row in found.cells] == ["50.3", "40.3"]
    assert marks(found) == {"a": ["best"], "b": [""]}
    assert found.caption == "own_accuracy_mean in %: 1 seed."


def test_the_caption_says_how_many_seeds_if_all_have_as_many():
    caption = table(frame({"a": 0.5, "b": 0.4}), "method", (), "own_accuracy_mean").caption
    assert "mean ± standard deviation over 5 seeds" in caption
    assert "paired t test over seeds (Holm, p ≥ 0.05)" in caption


def test_a_bootstrap_interval_holds_the_mean():
    data = frame({"a": 0.5}, own=0.01)
    entry = table(data, "method", (), "own_accuracy_mean", spread="bootstrap").cells[0][0]
    assert entry.low < entry.mean < entry.high
    assert re.fullmatch(r"\d\d\.\d \[\d\d\.\d, \d\d\.\d\]", entry.text)


def test_what_diverged_does_not_count():
    data = frame({"a": 0.5, "b": 0.4})
    data.loc[data.method == "b", "own_accuracy_mean"] = np.nan
    data.loc[0, "own_accuracy_mean"] = np.nan
    found = table(data, "method", (), "own_accuracy_mean")
    assert found.cells[0][0].seeds == 4
    assert found.cells[1][0].text == "-"
    assert marks(found) == {"a": [""], "b": [""]}


def test_bytes_are_in_mb():
    found = table(frame({"a": 2.5e6}, value="bytes_up"), "method", (), "bytes_up")
    assert found.cells[0][0].text == "2.50 ± 0.00"
    assert found.unit == "MB"


def test_two_runs_of_one_seed_are_refused():
    data = concat([frame({"a": 0.5}, 0.1), frame({"a": 0.5}, 10)])
    with pytest.raises(FedkdError, match="several runs are of a and seed 0"):
        table(data, "method", (), "own_accuracy_mean")


def test_a_name_that_is_no_column_and_a_value_that_is_no_number_are_one_line():
    data = frame({"a": 0.5})
    with pytest.raises(FedkdError, match=r"'own_acuracy_mean' is not a column \(did you mean"):
        table(data, "method", (), "own_acuracy_mean")
    with pytest.raises(FedkdError, match="method = 'a' is not a number"):
        table(data, "data.alpha", (), "method")


# --- formats ------------------------------------------------------------------------------------


@pytest.fixture
def known():
    return tables.Table(
        corner="method",
        columns=("0.1", "1_0"),
        rows=("a & b", "c_d"),
        cells=(
            (Entry("60.0 ± 1.0", 60, 59, 61, 3, best=True), None),
            (Entry("59.9 ± 1.0", 59.9, 58.9, 60.9, 3, tie=True), Entry("1.0", 1, 0, 2, 3)),
        ),
        value="own_accuracy_mean",
        unit="%",
        caption="own_accuracy_mean in %: p ≥ 0.05.",
    )


def test_text_lines_up_and_marks(known):
    lines = tables.text(known).splitlines()
    assert lines[1:3] == ["a & b   60.0 ± 1.0 *    -", "c_d     59.9 ± 1.0 ~  1.0"]
    assert lines[-1].endswith("* best, ~ tie.")


def test_markdown_has_the_best_in_bold(known):
    lines = tables.markdown(known).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["a & b", "**60.0 ± 1.0**", "-"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["c_d", "≈ 59.9 ± 1.0", "1.0"]
    assert len({len(line) for line in lines[:4]}) == 1


def test_csv_has_a_line_an_entry(known):
    rows = list(csv.DictReader(io.StringIO(tables.csv(known))))
    assert [(row["row"], row["column"]) for row in rows] == [
        *(("a & b", "0.1"), ("c_d", "0.1"), ("c_d", "1_0"))
    ]
    assert (rows[0]["mean"], rows[0]["best"], rows[1]["tie"]) == ("60", "1", "1")
    assert rows[0]["unit"] == "%"


def test_latex_is_a_table_of_booktabs(known):
    lines = [line.strip() for line in tables.latex(known).splitlines()]
    assert lines[0] == r"\begin{table}"
    assert lines[-1] == r"\end{table}"
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert lines.count(rule) == 1
    assert r"\begin{tabular}{lrr}" in lines
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert body == [
        r"a \& b & \textbf{60.0 $\pm$ 1.0} & -- \\",
        r"c\_d & \underline{59.9 $\pm$ 1.0} & 1.0 \\",
    ]
    for line in lines:
        assert line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}")
        assert line.count("$") % 2 == 0
    assert all(ord(sign) < 128 for sign in tables.latex(known))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("50 %", r"50 \%"),
        ("a_b & c#d$", r"a\_b \& c\#d\$"),
        ("{x}", r"\{x\}"),
        ("a\\b", r"a\textbackslash{}b"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
        ("1 ± 2 ≥ 3 < 4 > 5", r"1 $\pm$ 2 $\ge$ 3 $<$ 4 $>$ 5"),
    ],
)
def test_latex_escapes(text, written):
    assert tables.escaped(text) == written


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    """A suite's file, of which the runs are made up: knfu 0.7, local 0.6, at two alphas."""
    from simulations.suite import read, run_suite

    file = tmp_path / "made.toml"
    file.write_text(
        'experiment = "quickstart"\n[axes]\n"data.alpha" = [0.1, 10]\nseed = [0, 1, 2]\n'
        '[axes.method]\nknfu = {}\nlocal = {"strategy.name" = "local"}\n'
    )
    for cell in read(file).cells:
        run = Run.at(cell.experiment, cell.folder).begin(cell.experiment)
        own = {"knfu": 0.7, "local": 0.6}[cell.labels["method"]] + NOISE[cell.labels["seed"]]
        run.write_summary({"own_accuracy_mean": own, "strategy": "x", "seconds": 1.0})
    assert not run_suite(read(file)).ran
    return str(file)


def test_the_command_takes_a_suite_or_its_folder(runs, fedkd):
    code, out, _ = fedkd("table", runs, "--columns", "data.alpha")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["method", "knfu", "local"]
    assert out.count("70.1 ± 0.3 *") == 2
    assert fedkd("table", "runs/made-quick", "--columns", "data.alpha")[1] == out


def test_the_command_takes_any_folder_of_runs(runs, fedkd, tmp_path):
    for file in (tmp_path / "runs/made-quick").glob("*.json"):
        file.unlink()
    code, out, _ = fedkd("table", "runs", "--columns", "data.alpha")
    assert code == 0
    assert out.splitlines()[0].split() == ["strategy.name", "0.1", "10"]
    assert "several runs are of knfu and seed 0" in fedkd("table", "runs")[2]


def test_an_axis_that_is_neither_named_nor_fixed_is_one_line(runs, fedkd):
    code, out, err = fedkd("table", runs)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "data.alpha has 2 labels: name it in --rows or --columns, or fix it by --where" in err
    assert fedkd("table", runs, "--where", "data.alpha=10.0")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "pdf"], "--format 'pdf' is not allowed: text, csv, markdown, latex"),
        (["--spread", "sd"], "--spread 'sd' is not allowed: std, bootstrap"),
        (["--test", "z"], "--test 'z' is not allowed: t, wilcoxon"),
        (["--best", "most"], "--best 'most' is not allowed: max, min, none"),
        (["--rows", "methods"], "'methods' is not an axis (did you mean 'method'?)"),
        (["--where", "data.alpha=3"], "--where data.alpha=3 is not a label"),
        (["--where", "data.alpha=10", "--value", "accuracy"], "'accuracy' is not a column"),
        (["--scale", "full"], "has no finished run; fedkd suite"),
    ],
)
def test_wrong_words_are_one_line(runs, fedkd, words, said):
    code, out, err = fedkd("table", runs, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_all_formats_are_printed(runs, fedkd):
    for form, sign in (("csv", "row,column"), ("markdown", "| ---"), ("latex", "\\toprule")):
        code, out, _ = fedkd("table", runs, "--columns", "data.alpha", "--format", form)
        assert code == 0
        assert sign in out


def test_a_run_that_is_not_of_the_suite_any_more_is_not_in_the_table(runs, fedkd, tmp_path):
    other = Experiment.from_dict({"name": "other"})
    run = Run.at(other, tmp_path / "runs/made-quick/other").begin(other)
    run.write_summary({"own_accuracy_mean": 1.0})
    assert "100.0" not in fedkd("table", runs, "--columns", "data.alpha")[1]
