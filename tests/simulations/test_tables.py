"""Tables of suites: known answers, what is best, what is told worse, what each format says."""

import csv
import io
import re

import numpy as np
import pytest
from lines import forget_files
from pandas import DataFrame, concat

from fedkd.caveats import FEW_ROUNDS, LEFT_OUT, LOCAL_TRAINING, Caveat
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.results import Run
from fedkd.simulations import table_formats
from fedkd.simulations.captions import direction
from fedkd.simulations.suite import read, run_suite
from fedkd.simulations.tables import Entry, Table, table
from fedkd.statistics import interval

VALUE = "own_accuracy_mean"
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
        name: [("best" if e.best else "worse" if e.worse else "") for e in entries]
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
    assert marks(found) == {"a": ["worse"], "b": ["best"]}


def test_what_is_told_to_be_worse_is_marked_and_what_is_not_told_apart_is_not():
    found = table(
        frame({"a": 0.80, "b": 0.8001, "c": 0.60}, own=0.01), "method", (), "own_accuracy_mean"
    )
    assert sorted(mark for (mark,) in marks(found).values()) == ["", "best", "worse"]
    assert marks(found)["c"] == ["worse"]


def three_seeds(method, values):
    return [
        {"method": method, "seed": seed, "own_accuracy_mean": x / 100}
        for seed, x in enumerate(values)
    ]


LOW, HIGH = (62.1, 37.0, 42.5), (89.2, 84.2, 86.7)
"""47.2 ± 13.2 and 86.7 ± 2.5."""


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv"])
@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_three_seeds_forty_points_apart_are_no_tie(form, test):
    data = DataFrame([*three_seeds("low", LOW), *three_seeds("high", HIGH)])
    found = table(data, "method", (), "own_accuracy_mean", test=test)
    # Differences are 27.1, 47.2 and 44.2: t = 6.32 with two degrees of freedom.
    assert marks(found) == {"low": ["worse" if test == "t" else ""], "high": ["best"]}
    written = getattr(table_formats, form)(found)
    for tie in ("≈", "~", "approx", "underline", "tie,"):
        assert tie not in written
    assert "p ≥" not in written


def test_forty_points_that_three_seeds_cannot_tell_are_left_unmarked_and_the_caption_says_why():
    noise = np.array([0.5, -0.4, -0.2])
    near = [x for n in range(3) for x in three_seeds(f"near{n}", HIGH + np.roll(noise, n))]
    data = DataFrame([*three_seeds("low", LOW), *three_seeds("high", HIGH), *near])
    found = table(data, "method", (), "own_accuracy_mean")
    assert marks(found) == {"low": [""], "high": ["best"]} | {f"near{n}": [""] for n in range(3)}
    assert "No ↓ is no tie" in found.caption
    entry = found.cells[0][0]
    assert entry.p == pytest.approx(4 * 0.0241, rel=0.01)


def test_the_caption_says_what_difference_the_seeds_could_tell():
    data = DataFrame([*three_seeds("low", LOW), *three_seeds("high", HIGH)])
    caption = table(data, "method", (), "own_accuracy_mean").caption
    # The quantile 4.303 of two degrees of freedom times the standard error, 6.25.
    assert "a difference below 26.9 points would not be told" in caption
    assert "3 seeds" in caption


def test_wilcoxon_with_few_seeds_says_how_many_could_tell_anything():
    data = frame({"a": 0.5, "b": 0.9}, own=1e-4)
    found = table(data, "method", (), "own_accuracy_mean", test="wilcoxon")
    assert marks(found) == {"a": [""], "b": ["best"]}
    assert "Too few seeds to tell anything apart" in found.caption
    assert "needs 6 in common" in found.caption
    six = frame({"a": 0.5, "b": 0.9, "c": 0.4}, own=1e-4, seeds=range(5))
    caption = table(six, "method", (), "own_accuracy_mean", test="wilcoxon").caption
    assert "needs 7 in common" in caption


def test_identical_runs_are_not_told_apart():
    assert marks(table(frame({"a": 0.5, "b": 0.5}), "method", (), "own_accuracy_mean")) == {
        "a": ["best"],
        "b": [""],
    }


def test_less_is_best_where_it_is_asked_for():
    data = frame({"a": 0.5, "b": 0.7}, own=1e-3)
    found = table(data, "method", (), "own_accuracy_mean", best="min")
    assert marks(found) == {"a": ["best"], "b": ["worse"]}
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
        *(("record.contributors", None), ("record.loss", None)),
    ],
)
def test_what_is_better_is_known_by_the_name_of_a_value(value, wanted):
    assert direction(value) == wanted


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
    assert marks(one)["b0"] == ["worse"]
    assert marks(many)["b0"] == [""]


def test_pairs_are_seeds_and_not_places_in_the_frame():
    data = frame({"a": 0.800, "b": 0.801}, own=1e-5)
    shuffled = data.sample(frac=1, random_state=1)
    found = [table(d, "method", (), "own_accuracy_mean") for d in (data, shuffled)]
    assert marks(found[0]) == {"a": ["worse"], "b": ["best"]}
    assert dict(sorted(marks(found[1]).items())) == marks(found[0])


def test_only_seeds_that_both_have_are_paired():
    data = concat([frame({"a": 0.801}, own=1e-5), frame({"b": 0.8}, own=1e-5, seeds=range(1, 4))])
    found = table(data, "method", (), "own_accuracy_mean")
    assert marks(found) == {"a": ["best"], "b": ["worse"]}
    assert [row[0].text.split(" (")[1] for row in found.cells] == ["n = 5)", "n = 3)"]
    assert "n = " not in table(frame({"a": 1, "b": 2}), "method", (), "own_accuracy_mean").caption


def test_one_seed_has_no_spread_and_tells_nothing_apart():
    found = table(frame({"a": 0.5, "b": 0.4}, seeds=[0]), "method", (), "own_accuracy_mean")
    assert [row[0].text for row in found.cells] == ["50.3", "40.3"]
    assert marks(found) == {"a": ["best"], "b": [""]}
    assert "; 1 seed." in found.caption
    assert "a paired t test needs 2 in common" in found.caption


def test_the_caption_says_value_unit_stage_test_set_clients_rounds_and_seeds():
    data = frame({"a": 0.5, "b": 0.4}).assign(
        **{"data.clients": 10, "rounds": 5, "data.dataset": "digits"}
    )
    caption = table(data, "method", "data.alpha", "own_accuracy_mean").caption
    assert caption.startswith(
        "Test accuracy on clients' own test sets, mean over clients, after fusion, in %, by "
        "data.alpha; digits, 10 clients, 5 rounds, 5 seeds. Mean ± standard deviation over seeds."
    )
    data = data.rename(columns={"own_accuracy_mean": "common_accuracy_worst10_local"})
    caption = table(data, "method", (), "common_accuracy_worst10_local").caption
    for part in ("on the common test set", "worst 10 %", "after local training"):
        assert part in caption


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
    with pytest.raises(FedkdError, match="own_accuracy_mean has no finite number in these runs"):
        table(data[data.method == "b"], "method", (), "own_accuracy_mean")
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


@pytest.mark.parametrize("key", ["training.lr", "rounds", "strategy.beta"])
def test_runs_that_differ_in_more_than_their_seed_are_no_seeds(key):
    data = frame({"a": 0.5, "b": 0.4})
    data[key] = [0.1] * (len(data) - 1) + [0.2]
    with pytest.raises(FedkdError, match=rf"runs of b differ in {key} \(0.1 and 0.2\), and are no"):
        table(data, "method", (), "own_accuracy_mean")
    assert len(table(data, ("method", key), (), "own_accuracy_mean").rows) == 3
    for free in ("name", "engine.threads", "data.data_dir"):
        table(data.rename(columns={key: free}), "method", (), "own_accuracy_mean")


def test_differences_that_are_all_the_same_are_not_told():
    """Of two seeds on test sets of ten samples they often are."""
    data = frame({"a": 0.5, "b": 0.4})
    noise = data.own_accuracy_mean[data.method == "a"].to_numpy() - 0.5
    data.loc[data.method == "b", "own_accuracy_mean"] = 0.4 + noise
    assert marks(table(data, "method", (), "own_accuracy_mean"))["b"] == [""]
    differences = table(data, "method", (), "own_accuracy_mean", differences=True)
    assert differences.cells[1][0].text == "-10.0"


def test_a_name_that_is_no_column_and_a_value_that_is_no_number_are_one_line():
    data = frame({"a": 0.5})
    with pytest.raises(FedkdError, match=r"'own_acuracy_mean' is not a column \(did you mean"):
        table(data, "method", (), "own_acuracy_mean")
    with pytest.raises(FedkdError, match="method = 'a' is not a number"):
        table(data, "data.alpha", (), "method")


# --- what runs warn of --------------------------------------------------------------------------

LOCAL = Caveat(LOCAL_TRAINING, "it leaves clients to themselves")
GONE = Caveat(LEFT_OUT, "client 3 left out")


def warned(means, warnings, seeds=SEEDS):
    """Runs of methods with these means; ``warnings`` by method and seed."""
    data = frame(means, own=1e-3, seeds=seeds)
    keys = zip(data.method, data.seed)
    return data.assign(warnings=[tuple(warnings.get(key, ())) for key in keys])


def test_a_method_that_was_local_training_is_never_the_best():
    data = warned({"a": 0.9, "b": 0.8, "c": 0.7}, {("a", 0): [LOCAL]})
    found = table(data, "method", (), "own_accuracy_mean")
    assert marks(found) == {"a": [""], "b": ["best"], "c": ["worse"]}
    assert [entry.marks for (entry,) in found.cells] == ["†", "", ""]
    (note,) = found.notes
    assert note.startswith("† a (1 of 5 runs): it leaves clients to themselves")
    assert "**" not in next(
        x for x in table_formats.markdown(found).splitlines() if x.startswith("| a ")
    )
    assert r"\textbf" not in next(
        x for x in table_formats.latex(found).splitlines() if x.strip().startswith("a &")
    )


def test_where_every_method_was_another_none_is_the_best():
    keys = {(method, seed): [LOCAL] for method in "ab" for seed in SEEDS}
    found = table(warned({"a": 0.9, "b": 0.8}, keys), "method", (), "own_accuracy_mean")
    assert marks(found) == {"a": [""], "b": [""]}
    assert found.notes[0].startswith("† all 10 runs: it leaves")


def test_warnings_are_gathered_by_kind_with_the_entries_they_concern():
    data = warned(
        {"a": 0.9, "b": 0.8},
        {("a", 0): [GONE], ("b", 0): [GONE, LOCAL], ("b", 1): [Caveat(LEFT_OUT, "client 4 gone")]},
    )
    found = table(data, "method", "data.alpha", "own_accuracy_mean")
    assert found.notes == (
        "† b, alpha 0.1 (1 of 5 runs): it leaves clients to themselves (does not count as best)",
        "‡ a, alpha 0.1 (1 of 5 runs); b, alpha 0.1 (2 of 5 runs): e.g. client 3 left out",
    )
    assert [entry.marks for (entry,) in found.cells] == ["‡", "†‡"]
    rows = list(csv.DictReader(io.StringIO(table_formats.csv(found))))
    assert rows[0]["warnings"] == "1 of 5 runs: client 3 left out"


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv"])
def test_every_format_says_what_runs_warn_of(form):
    found = table(warned({"a": 0.9}, {("a", 2): [GONE]}), "method", (), "own_accuracy_mean")
    assert "client 3 left out" in getattr(table_formats, form)(found)


def test_what_says_nothing_of_one_entry_has_no_mark():
    few = Caveat(FEW_ROUNDS, "5 measured rounds: too few")
    data = warned({"a": 0.9}, {("a", seed): [few] for seed in SEEDS})
    found = table(data, "method", (), "own_accuracy_mean")
    assert found.notes == ("all 5 runs: 5 measured rounds: too few",)
    assert found.cells[0][0].marks == ""


# --- differences --------------------------------------------------------------------------------


def test_differences_are_to_the_best_with_paired_intervals():
    data = DataFrame([*three_seeds("low", LOW), *three_seeds("high", HIGH)])
    found = table(data, "method", (), "own_accuracy_mean", differences=True)
    low, high = (entry for (entry,) in found.cells)
    # The mean of -27.1, -47.2 and -44.2, and 4.303 standard errors of 6.26.
    assert (low.mean, low.low, low.high) == pytest.approx((-39.5, -66.4, -12.6), abs=0.05)
    assert low.text == "-39.5 [-66.4, -12.6]"
    assert (high.text, high.mean) == ("ref. 86.7 ± 2.5", 0.0)
    assert (found.unit, found.reference) == ("points", "the best of the column")
    assert "Difference to the best of the column" in found.caption
    assert "difference to the best of the column" in table_formats.csv(found)


def test_differences_may_be_to_any_row():
    data = frame({"a": 0.9, "b": 0.8, "c": 0.7}, own=1e-4)
    found = table(data, "method", (), "own_accuracy_mean", differences="b")
    a, b, c = (entry for (entry,) in found.cells)
    assert (a.mean, c.mean) == pytest.approx((10, -10), abs=0.1)
    assert b.text.startswith("ref. 80.")
    assert (a.worse, c.worse) == (False, True)
    assert "worse than b" in found.caption
    with pytest.raises(FedkdError, match=r"--differences 'bb' is not a row .*; rows: a, b, c"):
        table(data, "method", (), "own_accuracy_mean", differences="bb")
    with pytest.raises(FedkdError, match="say which"):
        table(data, "method", (), "own_accuracy_mean", differences=True, best=None)


def test_differences_use_the_seeds_that_both_have():
    a, b, c = (
        frame({name: 0.5}, seeds=seeds) for name, seeds in zip("abc", ([1, 2, 3], [2, 3], [4]))
    )
    found = table(concat([a, b, c]), "method", (), "own_accuracy_mean", differences="a")
    assert [entry.text for (entry,) in found.cells][1:] == ["+0.0 [+0.0, +0.0] (n = 2)", "-"]


# --- labels of somebody else ----------------------------------------------------------------------

NASTY = (
    *('=cmd|" /C calc"!A0', "+1+1", "-2+3", "@SUM(1)", "\t=1", "a\nb", 'x"y', "\x1b[31mred\x1b[0m"),
    *("a|b", "`rm`", "<script>", "$x_1^2$", "100 % & ~", "[x](y)", "\u202eabc", ""),
)


def nasty():
    return table(frame(dict.fromkeys(NASTY, 0.5)), "method", "data.alpha", "own_accuracy_mean")


def test_csv_has_no_formulas_and_one_line_an_entry():
    text = table_formats.csv(nasty())
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(NASTY) == text.count("\n")
    for row in rows:
        assert not row["row"].lstrip().startswith(("=", "+", "-", "@"))
        assert float(row["mean"])
    numbers = table(frame({-1.5: 0.5, 2.0: 0.4}), "method", (), "own_accuracy_mean")
    assert table_formats.csv(numbers).splitlines()[1].startswith("-1.5,")


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv"])
def test_no_format_lets_a_control_code_through_or_breaks_a_line(form):
    written = getattr(table_formats, form)(nasty())
    assert all(sign == "\n" or sign.isprintable() for sign in written)
    written.encode("utf-8")
    safe = getattr(table_formats, form)(
        table(frame({str(n): 0.5 for n in range(len(NASTY))}), "method", "data.alpha", VALUE)
    )
    assert written.count("\n") == safe.count("\n")


def test_markdown_of_somebody_elses_labels_is_one_table():
    lines = table_formats.markdown(nasty()).splitlines()[: len(NASTY) + 2]
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
        assert "<script" not in line
        assert not re.search(r"(?<!\\)[`\[]", line)


def test_labels_that_look_the_same_are_told_apart():
    found = table(frame({0.12345678: 0.5, 0.12345679: 0.4}), "method", (), VALUE)
    assert found.rows == ("0.12345678", "0.12345679")
    mixed = table(frame({1: 0.5, "1": 0.4}), "method", (), VALUE)
    assert mixed.rows == ("1", "'1'")


def test_a_label_that_is_missing_is_one_row():
    data = frame({"a": 0.5, "b": 0.4})
    data["arm"] = np.nan
    found = table(data, ["arm", "method"], (), VALUE)
    assert found.rows == ("-, a", "-, b")


# --- formats ------------------------------------------------------------------------------------


@pytest.fixture
def known():
    return Table(
        corner="method",
        columns=("0.1", "1_0"),
        rows=("a & b", "c_d"),
        cells=(
            (Entry("60.0 ± 1.0", 60, 59, 61, 3, best=True), None),
            (
                Entry("59.9 ± 1.0", 59.9, 58.9, 60.9, 3, worse=True, p=0.012, marks="†"),
                Entry("1.0", 1, 0, 2, 3, warnings=("1 of 3 runs: oh",)),
            ),
        ),
        value="own_accuracy_mean",
        unit="%",
        caption="own_accuracy_mean in %: p < 0.05.",
        notes=("† c_d (1 of 3 runs): 10 % ≥ x & <b>",),
    )


def test_text_lines_up_and_marks(known):
    lines = table_formats.text(known).splitlines()
    assert lines[1:3] == ["a & b   60.0 ± 1.0 *     -", "c_d     59.9 ± 1.0 ↓†  1.0"]
    assert lines[-2].endswith("*: best.")
    assert lines[-1] == known.notes[0]


def test_markdown_has_the_best_in_bold(known):
    lines = table_formats.markdown(known).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["a & b", "**60.0 ± 1.0**", "-"]
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells == ["c_d", "59.9 ± 1.0 ↓ †", "1.0"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[-1] == "- † c_d (1 of 3 runs): 10 % ≥ x & &lt;b&gt;"


def test_csv_has_a_line_an_entry(known):
    rows = list(csv.DictReader(io.StringIO(table_formats.csv(known))))
    assert [(row["row"], row["column"]) for row in rows] == [
        *(("a & b", "0.1"), ("c_d", "0.1"), ("c_d", "1_0"))
    ]
    assert (rows[0]["mean"], rows[0]["best"], rows[1]["worse"]) == ("60", "1", "1")
    assert [row["p"] for row in rows] == ["", "0.012", ""]
    assert [row["warnings"] for row in rows] == ["", "", "1 of 3 runs: oh"]
    assert rows[0]["unit"] == "%"


def test_latex_is_a_table_of_booktabs(known):
    lines = [line.strip() for line in table_formats.latex(known).splitlines()]
    assert lines[0] == r"\begin{table}"
    assert lines[-1] == r"\end{table}"
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert lines.count(rule) == 1
    assert r"\begin{tabular}{lrr}" in lines
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert body == [
        r"a \& b & \textbf{60.0 $\pm$ 1.0} & -- \\",
        r"c\_d & 59.9 $\pm$ 1.0 $\downarrow$\textsuperscript{\dag{}} & 1.0 \\",
    ]
    (note,) = [line for line in lines if "footnotesize" in line]
    assert note.endswith(r"\dag{} c\_d (1 of 3 runs): 10 \% $\ge$ x \& $<$b$>$\par}")
    for line in lines:
        assert line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}")
        assert line.count("$") % 2 == 0
    assert all(ord(sign) < 128 for sign in table_formats.latex(known))


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    """A suite's file, of which the runs are made up: knfu 0.7, local 0.6, at two alphas."""
    file = tmp_path / "made.toml"
    file.write_text(
        'experiment = "quickstart"\n[axes]\n"data.alpha" = [0.1, 10]\nseed = [0, 1, 2]\n'
        '[axes.method]\nknfu = {}\nlocal = {"strategy.name" = "local"}\n'
    )
    for cell in read(file).cells:
        run = Run.at(cell.experiment, cell.folder).begin(cell.experiment)
        mean, scale = {"knfu": (0.7, 1), "local": (0.6, 0.9)}[cell.labels["method"]]
        own = mean + scale * NOISE[cell.labels["seed"]]
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
        (
            ["--columns", "data.alpha", "--value", "accuracies"],
            "--value accuracies has columns of its own: leave --columns out",
        ),
        (["--scale", "full"], "has no finished run; fedkd suite"),
    ],
)
def test_wrong_words_are_one_line(runs, fedkd, words, said):
    code, out, err = fedkd("table", runs, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_accuracies_are_printed_side_by_side(runs, fedkd):
    words = ("--value", "accuracies", "--where", "data.alpha=10")
    code, out, _ = fedkd("table", runs, *words)
    assert code == 0
    assert re.search(r"^method +as the paper scores it +own, fused", out)
    assert out.count("70.1 ± 0.3 *") == 2
    assert fedkd("table", runs, *words, "--format", "csv")[1].count(",accuracies,%,") == 4


def test_all_formats_are_printed(runs, fedkd):
    for form, sign in (("csv", "row,column"), ("markdown", "| ---"), ("latex", "\\toprule")):
        code, out, _ = fedkd("table", runs, "--columns", "data.alpha", "--format", form)
        assert code == 0
        assert sign in out


def test_differences_are_to_the_best_unless_a_row_is_named(runs, fedkd):
    words = ("table", runs, "--columns", "data.alpha", "--differences")
    for end in ((), ("--format", "text")):
        code, out, _ = fedkd(*words, *end)
        assert code == 0
        assert out.count("ref. 70.1 ± 0.3 *") == out.count("-10.0 [-10.1, -9.9]") == 2
    assert fedkd(*words, "local")[1].count("+10.0 [+9.9, +10.1]") == 2
    code, _, err = fedkd(*words, "lokal")
    assert (code, err.count("\n")) == (2, 1)
    assert "--differences 'lokal' is not a row (did you mean 'local'?); rows: knfu, local" in err


def test_what_a_run_warns_of_stands_under_the_commands_table(runs, fedkd):
    first = next(cell for cell in read(runs).cells if cell.labels["method"] == "knfu")
    Run(first.folder).warn("leaves clients to themselves", 3, LOCAL_TRAINING)
    for form in ("text", "markdown", "latex", "csv"):
        out = fedkd("table", runs, "--columns", "data.alpha", "--format", form)[1]
        assert "leaves clients to themselves" in out
    out = fedkd("table", runs, "--columns", "data.alpha")[1]
    knfu, local = out.splitlines()[1:3]
    assert (knfu.count("*"), local.count("*")) == (1, 1)
    assert "70.1 ± 0.3 †" in knfu
    assert "† knfu, alpha 0.1 (1 of 3 runs): leaves clients to themselves (does not count" in out


def test_what_a_strategy_recorded_can_be_shown(runs, fedkd, tmp_path):
    for folder in tmp_path.glob("runs/made-quick/*/"):
        for round in (1, 2):
            recorded = {"contributors": 3.0 * round, "weights": [[1.0]]}
            Run(folder).append_round({"round": round, "strategy": recorded, "local": {}})
        forget_files(folder)
    words = ("table", runs, "--columns", "data.alpha", "--value")
    code, out, err = fedkd(*words, "record.contributors")
    assert not code, err
    assert out.count("6.000 ± 0.000") == 4
    assert "*" not in out
    assert "as last recorded by the strategy" in out
    assert "'record.weights' is not a column" in fedkd(*words, "record.weights")[2]


def test_a_run_that_is_not_of_the_suite_any_more_is_not_in_the_table(runs, fedkd, tmp_path):
    other = Experiment.from_dict({"name": "other"})
    run = Run.at(other, tmp_path / "runs/made-quick/other").begin(other)
    run.write_summary({"own_accuracy_mean": 1.0})
    assert "100.0" not in fedkd("table", runs, "--columns", "data.alpha")[1]


# --- rankings -------------------------------------------------------------------------------------


def test_a_rankings_intervals_hold_at_once_and_the_best_row_comes_first():
    data = frame({"b": 0.5, "a": 0.6, "c": 0.7}, own=0.01)
    found = table(data, "method", (), VALUE, differences="b", ranked=True)
    assert found.rows == ("c", "a", "b")
    by = {name: data[data.method == name][VALUE].to_numpy() for name in "abc"}
    for name, (entry,) in zip("ca", found.cells, strict=False):
        expected = interval(100 * (by[name] - by["b"]), 1 - 0.05 / 2)
        assert (entry.low, entry.high) == pytest.approx((expected.low, expected.high))
    assert "at once (Bonferroni)" in found.caption
    assert "the best first" in found.caption


def test_where_less_is_better_the_smallest_comes_first():
    data = frame({"b": 0.5, "a": 0.6, "c": 0.4}, own=0.01)
    found = table(data, "method", (), VALUE, differences="b", ranked=True, best="min")
    assert found.rows == ("c", "b", "a")


def test_a_ranking_is_of_differences():
    with pytest.raises(FedkdError, match="a ranking is of differences"):
        table(frame({"b": 0.5, "a": 0.6}), "method", (), VALUE, ranked=True)
