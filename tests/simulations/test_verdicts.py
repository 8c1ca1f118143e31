"""The rules of verdicts on results that were made up, so that what is true is known."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedkd import Run, frames
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.simulations import claim as claim_file
from fedkd.simulations import verdicts
from fedkd.simulations.claim import Claim, claims, read
from fedkd.simulations.verdicts import judge

SEEDS = range(5)


def claim(rule="better", margin=0.0, others=("b",), **changes):
    """A claim that method a is better, or the like, than others in own accuracy."""
    keys = {"value", "lower", "relative", "target"} & changes.keys()
    test = {"value": "own_accuracy_mean", "rule": rule, "margin": margin}
    test |= {key: changes.pop(key) for key in keys}
    compare = {"axis": "method", "of": "a", "with": tuple(others)}
    if rule in ("trend", "interior"):
        compare = {"axis": "method"}
    given = {"statement": "s", "source": "t", "suite": "u", "compare": compare, "tests": [test]}
    return Claim.model_validate({"name": "made-up", **given, **changes})


def frame(means, spread=0.01, seeds=SEEDS, key=0, **columns):
    """A run a method and seed: a mean, what the seed adds for all, and noise of its own."""
    random = np.random.default_rng(key)
    shared = random.normal(scale=0.1, size=len(seeds))
    noise = spread * random.normal(size=(len(means), len(seeds)))
    values = np.array(list(means.values()))[:, None] + shared + noise
    methods = [method for method in means for _ in seeds]
    data = {"method": methods, "seed": [*seeds] * len(means), "own_accuracy_mean": values.ravel()}
    return pd.DataFrame(data | {name: [value] * len(methods) for name, value in columns.items()})


def said(of, runs):
    """The verdict over all cells."""
    return judge(of, runs)[-1].verdict


def test_a_planted_effect_is_found_though_seeds_differ_more():
    runs = frame({"a": 0.75, "b": 0.70})
    first, overall = judge(claim(), runs)
    assert (first.verdict, overall.verdict) == ("supported", "supported")
    # In points, for the claim, and the interval holds what was planted.
    assert first.unit == "points"
    assert first.effect.low < 5 < first.effect.high
    assert (first.seeds, first.detail) == (5, "against b")
    assert first.where_text == "own accuracy, fused"
    assert first.effect_text.endswith("points")


def test_a_planted_effect_against_the_claim_refutes_it():
    runs = frame({"a": 0.70, "b": 0.75})
    assert said(claim(), runs) == "not supported"
    assert said(claim("not worse", 0.005), runs) == "not supported"


def test_no_effect_is_undecided_and_never_better():
    runs = frame({"a": 0.7, "b": 0.7})
    assert said(claim(), runs) == "undecided"
    # The same numbers to the last digit are no support either.
    assert said(claim(), frame({"a": 0.7, "b": 0.7}, spread=0)) == "undecided"


def test_an_effect_below_the_margin_is_not_better():
    assert said(claim(margin=0.02), frame({"a": 0.71, "b": 0.70}, spread=0.001)) == "not supported"


def test_a_little_worse_is_not_worse_within_the_margin():
    runs = frame({"a": 0.698, "b": 0.70}, spread=0.0005)
    assert said(claim("not worse", 0.005), runs) == "supported"
    assert said(claim("better"), runs) == "not supported"
    assert said(claim("not worse", 0.0005), runs) == "not supported"


def test_level_is_found_refused_and_left_open():
    rule = claim("level", 0.01)
    assert said(rule, frame({"a": 0.700, "b": 0.701}, spread=0.001)) == "supported"
    assert said(rule, frame({"a": 0.73, "b": 0.70}, spread=0.001)) == "not supported"
    assert said(rule, frame({"a": 0.67, "b": 0.70}, spread=0.001)) == "not supported"
    # Few noisy seeds that cannot tell are not the same as level.
    assert said(rule, frame({"a": 0.70, "b": 0.70}, spread=0.05)) == "undecided"


def test_where_less_is_better_effects_are_turned():
    runs = frame({"a": 0.10, "b": 0.15}, spread=0.001)
    found = judge(claim(lower=True), runs)[0]
    assert found.verdict == "supported"
    assert found.effect.mean == pytest.approx(5, abs=0.2)


def test_a_relative_difference_is_a_share_of_the_other():
    runs = frame({"a": 1.0, "b": 2.0}, spread=0)
    found = judge(claim(relative=True), runs)[0]
    shared = runs[runs.method == "b"].own_accuracy_mean
    assert found.effect.mean == pytest.approx(float((-100 / shared).mean()))
    assert found.unit == "%"


def test_too_few_seeds_decide_nothing_and_it_says_so():
    runs = frame({"a": 0.9, "b": 0.1}, seeds=range(4))
    found = judge(claim(), runs)[0]
    assert found.verdict == "undecided"
    assert "4 of 5 seeds" in found.detail
    assert found.effect.low > 0
    one = judge(claim(), frame({"a": 0.9, "b": 0.1}, seeds=[0]))[0]
    assert (one.verdict, one.effect_text) == ("undecided", one.effect_text)
    assert math.isnan(one.effect.low)


def test_a_seed_that_one_method_lacks_is_left_out_and_named():
    runs = frame({"a": 0.75, "b": 0.70}, seeds=range(6))
    lacking = runs[(runs.method != "b") | (runs.seed != 2)]
    found = judge(claim(), lacking)[0]
    assert (found.verdict, found.seeds) == ("supported", 5)
    assert "seed 2 of b is missing" in found.detail
    # The pairs are those of the other seeds, not of the rows' order.
    both = runs[runs.seed != 2]
    assert found.effect == judge(claim(), both)[0].effect


def test_a_seed_without_a_number_does_not_count():
    runs = frame({"a": 0.75, "b": 0.70})
    runs.loc[(runs.method == "b") & (runs.seed == 1), "own_accuracy_mean"] = math.nan
    found = judge(claim(), runs)[0]
    assert (found.verdict, found.seeds) == ("undecided", 4)
    assert "b, seed 1 has no finite own_accuracy_mean" in found.detail


def test_the_order_of_runs_changes_nothing():
    runs = frame({"a": 0.72, "b": 0.71, "c": 0.70}, seeds=range(7))
    shuffled = runs.sample(frac=1, random_state=0)
    for rule in ("better", "not worse", "level"):
        of = claim(rule, 0.01, ("b", "c"))
        assert judge(of, runs) == judge(of, shuffled)


def test_what_no_run_was_made_of_is_not_run():
    found = judge(claim(others=("b", "c")), frame({"a": 0.75, "b": 0.70}))
    assert [one.verdict for one in found] == ["not run", "not run"]
    assert found[0].detail == "no run of c"
    assert found[0].effect is None


def test_the_weakest_comparison_decides_and_is_named():
    runs = frame({"a": 0.75, "b": 0.60, "c": 0.74}, spread=0.001)
    found = judge(claim(others=("b", "c")), runs)[0]
    assert (found.verdict, found.detail) == ("supported", "against c")
    worse = frame({"a": 0.75, "b": 0.60, "c": 0.80}, spread=0.001)
    found = judge(claim(others=("b", "c")), worse)[0]
    assert (found.verdict, found.detail) == ("not supported", "against c")


def test_more_comparisons_widen_each_interval():
    runs = frame({"a": 0.75, "b": 0.70, "c": 0.70})
    alone = judge(claim(), runs)[0].effect
    both = judge(claim(others=("b", "c")), runs)[0]
    width = {"b": alone.high - alone.low}
    assert both.detail == "against c" or both.effect.high - both.effect.low > width["b"]
    assert judge(claim(others=("b", "b")), runs)[0].effect.low < alone.low


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "margin", "others"),
    [("better", 0.0, "b"), ("better", 0.0, "bcde"), ("not worse", 0.02, "b"), ("level", 0.02, "b")],
)
def test_noise_alone_is_supported_no_more_often_than_it_may_be(rule, margin, others):
    # At the very edge of what is claimed: no difference, or one as large as the margin.
    of = claim(rule, margin, tuple(others))
    means = {"a": 0.7} | dict.fromkeys(others, 0.7 + margin)
    found = [said(of, frame(means, key=key)) for key in range(1000)]
    assert found.count("supported") / 1000 <= 0.05
    # Nor is it refuted more often, however many it is compared with.
    assert found.count("not supported") / 1000 <= 0.05
    assert found.count("undecided") > 900


# --- cells ------------------------------------------------------------------------------------


def by_alpha(effects):
    """Runs of a and b with a difference for each alpha."""
    return pd.concat(
        [frame({"a": 0.7 + by, "b": 0.7}, **{"data.alpha": alpha}) for alpha, by in effects.items()]
    )


def test_a_verdict_a_cell_and_one_over_all():
    of = claim(within=("data.alpha",))
    found = judge(of, by_alpha({0.1: 0.1, 1.0: 0.1}))
    assert [one.where.get("data.alpha") for one in found] == [0.1, 1.0, None]
    assert [one.verdict for one in found] == ["supported"] * 3
    found = judge(of, by_alpha({0.1: 0.1, 1.0: 0.0}))
    assert [one.verdict for one in found] == ["supported", "undecided", "undecided"]
    found = judge(of, by_alpha({0.1: 0.1, 1.0: 0.0, 10.0: -0.1}))
    assert found[-1].verdict == "not supported"
    assert found[-1].detail == "1 supported, 1 not supported, 1 undecided"
    assert found[-1].where_text == "overall"


def test_only_some_labels_or_the_first_or_last_of_an_axis():
    runs = by_alpha({0.1: 0.1, 1.0: 0.0, 10.0: -0.1})
    assert said(claim(only={"data.alpha": (0.1,)}), runs) == "supported"
    first, last = (judge(claim(only={"data.alpha": which}), runs) for which in ("first", "last"))
    assert (first[0].where["data.alpha"], first[0].verdict) == (0.1, "supported")
    assert (last[0].where["data.alpha"], last[0].verdict) == (10.0, "not supported")


def test_an_axis_that_tells_runs_apart_must_be_named():
    with pytest.raises(FedkdError, match=r"several runs of method = a, seed 0"):
        judge(claim(), by_alpha({0.1: 0.1, 1.0: 0.1}))
    with pytest.raises(FedkdError, match=r"no axis 'data\.alhpa' \(did you mean 'data\.alpha'\?\)"):
        judge(claim(within=("data.alhpa",)), by_alpha({0.1: 0.1}))
    with pytest.raises(FedkdError, match="'own_acuracy' is not a column"):
        judge(claim(value="own_acuracy"), frame({"a": 1, "b": 1}, folder="none"))


def test_a_vacuous_cell_is_named_and_does_not_decide():
    rule = {"value": "contributors", "of": "a", "at_most": 1.1, "because": "a is b there"}
    of = claim(within=("data.alpha",), vacuous=rule)
    runs = by_alpha({0.1: 0.1, 1.0: 0.1})
    runs["contributors"] = np.where(runs["data.alpha"] == 0.1, 1.05, 4.0)
    found = judge(of, runs)
    assert [one.verdict for one in found] == ["vacuous", "supported", "supported"]
    assert "a is b there (contributors of a: 1.05, at most 1.1)" in found[0].detail
    assert "vacuous at data.alpha = 0.1" in found[-1].detail
    runs["contributors"] = 1.0
    assert said(of, runs) == "vacuous"


def test_several_tests_must_all_hold():
    runs = frame({"a": 0.75, "b": 0.70})
    runs["common_accuracy_mean"] = 1 - runs["own_accuracy_mean"]
    both = claim().model_copy(
        update={
            "tests": (
                *claim().tests,
                claim(value="common_accuracy_mean").tests[0],
            )
        }
    )
    found = judge(both, runs)
    assert [one.verdict for one in found] == ["supported", "not supported", "not supported"]
    assert found[1].where == {"measured": "common accuracy, fused"}


# --- axes -------------------------------------------------------------------------------------


def along(values, **settings):
    """Runs of labels of an axis; the fixtures' axis is called method."""
    return frame(dict(values), **settings)


def test_an_inner_best_is_found_refuted_and_left_open():
    of = claim("interior")
    peak = along({5: 0.70, 10: 0.76, 20: 0.74, "never": 0.70})
    found = judge(of, peak)[0]
    assert found.verdict == "supported"
    assert found.detail.startswith("10 against")
    rising = along({5: 0.60, 10: 0.65, 20: 0.70, "never": 0.75})
    found = judge(of, rising)[0]
    assert (found.verdict, found.detail) == ("not supported", "20 against never")
    assert said(of, along(dict.fromkeys([5, 10, 20, "never"], 0.7))) == "undecided"
    assert said(of, along({5: 0.7, 10: 0.8})) == "not run"


@pytest.mark.slow
def test_the_best_inner_label_of_noise_is_no_finding():
    of = claim("interior")
    labels = [1, 2, 5, 10, 20, "never"]
    found = [said(of, along(dict.fromkeys(labels, 0.7), key=key)) for key in range(1000)]
    assert found.count("supported") / 1000 <= 0.05
    assert found.count("not supported") / 1000 <= 0.05


def test_a_trend_is_the_slope_a_doubling():
    of = claim("trend")
    rising = along({0.25: 0.70, 0.5: 0.72, 1.0: 0.74}, spread=0.001)
    found = judge(of, rising)[0]
    assert found.verdict == "supported"
    assert found.effect.mean == pytest.approx(2, abs=0.2)
    assert found.detail == "a doubling of 0.25 to 1.0"
    assert said(of, along({0.25: 0.74, 0.5: 0.72, 1.0: 0.70}, spread=0.001)) == "not supported"
    assert said(of, along({0.25: 0.7, 0.5: 0.7, 1.0: 0.7})) == "undecided"


# --- what is read off run folders -------------------------------------------------------------


def run_folder(folder, seed, rounds=({"round": 1},), exposures=(), summary=None):
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text(Experiment.from_dict({"seed": seed}).to_toml())
    for name, lines in (("rounds", rounds), ("exposures", exposures)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = {"rounds": len(rounds)} | (summary or {})
    (folder / "summary.json").write_text(json.dumps(ended))
    return str(folder)


def learning(tmp_path, curves):
    """Runs with an own accuracy a round."""
    rows = []
    for method, curve in curves.items():
        for seed in SEEDS:
            # A seed reaches a little more, at the same rounds.
            accuracies = [value + 0.001 * seed for value in curve]
            rounds = [
                {"round": n + 1, "own_accuracy_mean": value, "bytes_up": 0, "bytes_down": 0}
                | {"strategy": {"contributors": 1.0 + n}}
                for n, value in enumerate(accuracies)
            ]
            folder = run_folder(tmp_path / f"{method}-{seed}", seed, rounds)
            rows.append({"method": method, "seed": seed, "folder": folder})
            rows[-1]["own_accuracy_mean"] = accuracies[-1]
    return pd.DataFrame(rows)


def test_rounds_are_counted_to_what_another_ends_with(tmp_path):
    curves = {"a": [0.6, 0.8, 0.8], "b": [0.4, 0.5, 0.6], "c": [0.1, 0.2, 0.3]}
    runs = learning(tmp_path, curves)
    of = claim(value="rounds_to_target", target="b", lower=True, others=("b", "c"))
    found = judge(of, runs)[0]
    # b's 0.6 is reached by a in round 1, by b in round 3, by c never: one more than it has.
    assert (found.effect.mean, found.unit) == (2.0, "rounds")
    # Seeds that are all the same do not say how far others would be.
    assert found.verdict == "undecided"
    alone = judge(claim(value="rounds_to_target", target="b", lower=True, others=("c",)), runs)[0]
    assert alone.effect.mean == 3.0


def both_stages(fused, local):
    """Runs whose accuracies after fusion and after local training have the means given."""
    runs = frame(fused)
    return runs.assign(own_accuracy_mean_local=frame(local, key=1)["own_accuracy_mean"])


def test_beside_a_verdict_stands_that_of_the_same_rule_at_the_other_stage():
    runs = both_stages({"a": 0.75, "b": 0.70}, {"a": 0.70, "b": 0.75})
    one, overall = judge(claim(), runs)
    assert (one.verdict, one.other.verdict, one.differs) == ("supported", "not supported", True)
    assert one.effect.low > 0 > one.other.effect.high
    assert one.other_text == f"not supported: {one.other.effect_text}"
    assert one.other.where_text == "own accuracy, local"
    assert (overall.verdict, overall.other.verdict) == ("supported", "not supported")
    # Each stage's verdict is what a claim about that stage alone would get.
    local, _ = judge(claim(value="own_accuracy_mean_local"), runs)
    assert (local.verdict, local.effect) == (one.other.verdict, one.other.effect)
    assert (local.other.verdict, local.other.effect) == (one.verdict, one.effect)


def test_the_other_stage_changes_no_verdict():
    both = both_stages({"a": 0.75, "b": 0.70}, {"a": 0.70, "b": 0.75})
    alone = both.drop(columns="own_accuracy_mean_local")
    for beside, before in zip(judge(claim(), both), judge(claim(), alone), strict=True):
        assert before.other is None
        assert dataclasses.replace(beside, other=None) == before


def test_what_papers_score_is_judged_against_the_stage_that_they_do_not():
    runs = frame({"a": 0.75, "b": 0.70}).rename(columns={"own_accuracy_mean": "headline_accuracy"})
    other = frame({"a": 0.7, "b": 0.7})["own_accuracy_mean"]
    one, _ = judge(claim(value="headline_accuracy"), runs.assign(other_stage_accuracy=other))
    assert (one.verdict, one.other.verdict) == ("supported", "undecided")


@pytest.mark.parametrize("value", ["bytes_up", "own_nearest_accuracy_mean"])
def test_what_has_no_other_stage_is_judged_once(value):
    runs = frame({"a": 0.75, "b": 0.70}).rename(columns={"own_accuracy_mean": value})
    assert [one.other for one in judge(claim(value=value), runs)] == [None, None]


def test_a_test_without_another_stage_counts_at_the_other_stage_as_it_is():
    tests = [
        {"value": "own_accuracy_mean", "rule": "better"},
        {"value": "bytes_up", "rule": "better", "lower": True},
    ]
    runs = both_stages({"a": 0.75, "b": 0.70}, {"a": 0.75, "b": 0.70})
    for bytes_up, said in (({"a": 1, "b": 2}, "supported"), ({"a": 2, "b": 1}, "not supported")):
        sent = frame(bytes_up, key=2)["own_accuracy_mean"]
        overall = judge(claim(tests=tests), runs.assign(bytes_up=sent))[-1]
        assert (overall.verdict, overall.other.verdict) == (said, said)


def test_rounds_to_a_target_are_counted_at_the_stage_that_is_judged(tmp_path):
    runs = learning(tmp_path, {"a": [0.6, 0.8, 0.8], "b": [0.4, 0.5, 0.6]})
    for folder in runs["folder"]:
        file = Path(folder) / "rounds.jsonl"
        rounds = [json.loads(line) for line in file.read_text().splitlines()]
        # After local training a is as slow as b after fusion, and b slower.
        late = [0.4, 0.5, 0.6] if "/a-" in folder else [0.2, 0.3, 0.6]
        for line, accuracy in zip(rounds, late, strict=True):
            line["local"] = {"own_accuracy_mean": accuracy}
        file.write_text("".join(json.dumps(line) + "\n" for line in rounds))
    runs["own_accuracy_mean_local"] = [0.6] * len(runs)
    one, _ = judge(claim(value="rounds_to_target", target="b", lower=True), runs)
    assert (one.effect.mean, one.other.effect.mean) == (2.0, 0.0)
    assert (one.other.unit, one.other.where_text) == ("rounds", "rounds to target, local")


def test_what_a_strategy_records_is_averaged_over_rounds(tmp_path):
    runs = learning(tmp_path, {"a": [0.5, 0.6, 0.7], "b": [0.5, 0.6, 0.7]})
    rule = {"value": "record.contributors", "of": "a", "at_most": 2.0, "because": "few"}
    assert "contributors of a: 2.00" in judge(claim(vacuous=rule), runs)[0].detail


def leaking(tmp_path, bits, perplexity=(100.0, 100.0), spread=0.3):
    """Runs whose students hold five secrets, a by bits[0] on average and b by bits[1]."""
    random, rows = np.random.default_rng(0), []
    top = max(Experiment.from_dict({}).canary.repeats)
    for method, mean, worth in zip("ab", bits, perplexity):
        for seed in SEEDS:
            lines = [
                {"round": 1, "place": "student", "secret": n, "repeats": repeats, "holders": [0]}
                | {"exposure": (mean if repeats == top else 1.4) + spread * random.normal()}
                for n, repeats in enumerate([top] * 5 + [1] * 5)
            ]
            folder = run_folder(
                tmp_path / f"{method}-{seed}",
                seed,
                exposures=lines,
                summary={"common_perplexity_mean": worth + random.normal()},
            )
            rows.append(frames.row(Run(Path(folder))) | {"method": method})
    return frames.frame(rows)


def test_a_large_reduction_is_supported_a_small_one_is_not(tmp_path):
    of = claim("reduction", 0.8, value="exposure_student")
    found = judge(of, leaking(tmp_path / "large", (2.0, 9.0)))[0]
    assert (found.verdict, found.unit) == ("supported", "%")
    assert found.effect.mean == pytest.approx(100 * (1 - 0.56 / 7.56), abs=3)
    assert judge(of, leaking(tmp_path / "small", (5.0, 9.0)))[0].verdict == "not supported"
    assert judge(of, leaking(tmp_path / "wide", (2.8, 9.0), spread=4.0))[0].verdict == "undecided"


def test_where_nothing_leaks_a_reduction_is_vacuous(tmp_path):
    found = judge(
        claim("reduction", 0.8, value="exposure_student"), leaking(tmp_path, (1.4, 1.5), spread=1.0)
    )
    assert [one.verdict for one in found] == ["vacuous", "vacuous"]
    assert "leaks nothing" in found[0].detail


def test_a_perplexity_within_five_percent_is_not_worse(tmp_path):
    of = claim("not worse", 0.05, value="utility", relative=True)
    found = judge(of, leaking(tmp_path / "near", (2, 9), (102.0, 100.0)))[0]
    assert found.verdict == "supported"
    assert found.effect.mean == pytest.approx(-2, abs=1)
    far = judge(of, leaking(tmp_path / "far", (2, 9), (115.0, 100.0)))[0]
    assert far.verdict == "not supported"


def test_exposure_in_bits_is_that_of_the_most_repeated_secrets(tmp_path):
    found = judge(claim(value="exposure_student", lower=True), leaking(tmp_path, (2.0, 9.0)))[0]
    assert (found.verdict, found.unit) == ("supported", "bits")
    assert found.effect.mean == pytest.approx(7, abs=0.3)


# --- the files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", claims())
def test_every_shipped_claim_is_whole(name):
    one = claims()[name]
    assert one.statement.endswith(".")
    assert "arXiv" in one.source
    assert one.figure.startswith("fedkd plot ")
    assert "{folder}" in one.figure


@pytest.mark.parametrize("name", [name for name in claims() if name.startswith("swing-")])
def test_verdicts_of_swing_say_that_they_speak_of_the_student(name):
    """A server that sees the labels can take their temperature back."""
    one = claims()[name]
    last = verdicts.overall(one, [verdicts.Verdict(name, {"data": "d"}, "supported", None, 5, "")])
    assert last.detail == (
        "1 supported. Of the student alone: a server that sees the labels loses nothing"
    )


@pytest.mark.parametrize("name", ["swing-budget", "swing-reduction", "swing-targeting"])
def test_less_exposure_counts_only_at_a_like_utility(name):
    tests = {test.value: test for test in claims()[name].tests}
    assert (tests["utility"].rule, tests["utility"].margin, tests["utility"].relative) == (
        *("not worse", 0.05, True),
    )


def test_claims_are_chosen_by_name_method_or_file(tmp_path):
    known = claims()
    name = next(iter(known))
    assert list(claim_file.chosen([name])) == [name]
    assert set(claim_file.chosen([])) == set(known)
    method = name.split("-")[0]
    assert set(claim_file.chosen([method])) == {n for n in known if n.startswith(f"{method}-")}
    file = tmp_path / "mine.toml"
    file.write_text((claim_file.FOLDER / f"{name}.toml").read_text())
    assert list(claim_file.chosen([str(file)])) == ["mine"]
    with pytest.raises(FedkdError, match=r"claim 'knfu-beter' is not known"):
        claim_file.chosen(["knfu-beter"])


def test_a_wrong_claim_is_one_line(tmp_path):
    file = tmp_path / "mine.toml"
    text = """
statement = "s."
source = "t"
suite = "u"
[compare]
axis = "method"
of = "a"
with = ["b"]
[[tests]]
value = "v"
"""
    for rule, wrong in (
        ('rule = "beter"', "claim mine: tests"),
        ('rule = "trend"', "leave of and with out"),
        ('rule = "reduction"', "value = 'exposure_student'"),
        ('rule = "better"\ntarget = "b"', "goes with rounds_to_target"),
        ('rule = "better"\nmargn = 0.1', "margn"),
    ):
        file.write_text(text + rule)
        with pytest.raises(FedkdError, match=wrong) as error:
            read(file)
        assert "\n" not in str(error.value)
