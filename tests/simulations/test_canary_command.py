"""``fedkd canary``: its arms, how they are run, and the table that is made of them."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import texts

from fedkd import lock
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.exposures import NULL_MEAN, interval
from fedkd.lab.bounds import audited_epsilon, audited_epsilon_from_exposure
from fedkd.privacy.epsilons import gaussian_epsilon
from fedkd.privacy.releases import Release
from fedkd.results import PLACES, Run
from fedkd.simulations import arms, canary, jobs, leakage
from fedkd.simulations.shipped import experiment_text

NULL = NULL_MEAN
BITS = 8.0
"""Size of the space that made-up secrets are from."""


def shipped(name, *overrides):
    return Experiment.from_toml(experiment_text(name), overrides)


def of_method(name, *overrides):
    """The shipped images with another method, and none of swing's options."""
    tables = shipped("swing-mnist", *overrides).model_dump(mode="json", exclude_none=True)
    return Experiment.from_dict(tables | {"strategy": {"name": name}})


def differing(one, other, prefix=""):
    """Keys that two tables do not have alike, as ``table.key``."""
    found = set()
    for key in one.keys() | other.keys():
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differing(a, b, f"{prefix}{key}.")
        elif a != b:
            found.add(prefix + key)
    return found


# --- arms ---------------------------------------------------------------------------------------

OF_SWING = (
    *("fedavg", "clean", "fkd", "fkd-2", "fkd-4", "fkd-10", "fkd-20"),
    *("swing", "noise", "swing-noise", "shuffled", "oracle", "constant", "mixing"),
    *("same", "same-squared", "argmax", "sample", "top-k", "dp-sgd"),
)
IN_SWING = {"same", "same-squared"}
"""Arms that take an option that no other method has."""


@pytest.mark.parametrize("name", ["swing", "swing-shakespeare"])
def test_a_text_experiment_has_every_arm(name):
    found, unfit = arms.arms(shipped(name))
    assert tuple(found) == OF_SWING
    assert not unfit


def test_images_have_every_arm_but_the_one_of_public_candidates():
    found, unfit = arms.arms(shipped("swing-mnist"))
    assert tuple(found) == tuple(name for name in OF_SWING if name != "top-k")
    assert not unfit


def test_another_method_has_the_arms_that_need_no_option_of_swing():
    found, unfit = arms.arms(of_method("knfu"))
    assert set(found) == {*OF_SWING} - IN_SWING - {"top-k"}
    assert not unfit


@pytest.mark.parametrize("name", ["uniform", "dsfl", "fedmd"])
def test_a_method_whose_labels_have_no_temperature_has_no_arms_of_it(name):
    found, _ = arms.arms(of_method(name))
    assert "fkd" in found
    assert not [arm for arm in found if arm.startswith("fkd-")]


def test_the_methods_own_temperature_is_the_plain_arm():
    found, _ = arms.arms(shipped("swing", "strategy.tau=4"))
    assert [arm for arm in found if arm.startswith("fkd")] == [
        *("fkd", "fkd-1", "fkd-2", "fkd-10", "fkd-20")
    ]


@pytest.mark.parametrize(
    ("overrides", "arm", "why"),
    [
        (["student.norm=batch"], "dp-sgd", "student.norm = 'batch'"),
        (["student.models=['cnn2', 'mlp']"], "fedavg", "student.models = "),
    ],
)
def test_an_arm_that_cannot_work_is_left_out_and_says_why(overrides, arm, why):
    found, unfit = arms.arms(of_method("knfu", *overrides))
    assert arm not in found
    assert list(unfit) == [arm]
    assert why in unfit[arm]
    with pytest.raises(FedkdError, match=f"--arms '{arm}' does not fit: {re.escape(why)}"):
        arms.chosen(found, unfit, ["fkd", arm])


def test_without_a_release_of_its_own_arms_take_sensible_ones():
    experiment = shipped("swing-mnist")
    bare = experiment.model_copy(update={"release": type(experiment.release)()})
    found, _ = arms.arms(bare)
    assert found["swing"].changes["release"] == {"tau_max": 20.0}
    noisy = {"mechanism": "gaussian", "scale": 0.05}
    assert found["noise"].changes["release"] == noisy
    assert found["swing-noise"].changes["release"] == {"tau_max": 20.0, **noisy}
    assert "own" not in found
    assert arms.varied(bare, found["fkd"], 0).digest() == bare.digest()


def test_the_experiments_own_release_is_always_an_arm():
    swing = shipped("swing")
    found, _ = arms.arms(swing)
    assert arms.varied(swing, found["swing-noise"], swing.seed).digest() == swing.digest()
    for override in ("release.mix=0.1", "release.cache=false"):
        mine = shipped("swing", override)
        found, _ = arms.arms(mine)
        assert list(found)[-1] == "own"
        assert arms.varied(mine, found["own"], mine.seed).digest() == mine.digest()


def test_temperature_and_noise_arms_keep_the_experiments_clip_and_candidates():
    found, _ = arms.arms(shipped("swing", "release.clip=8", "release.candidates=30"))
    for arm in ("swing", "noise", "swing-noise", "shuffled", "oracle", "constant", "mixing"):
        release = found[arm].changes["release"]
        assert (release["clip"], release["candidates"]) == (8, 30)
    assert found["top-k"].changes["release"]["candidates"] == 30
    assert found["sample"].changes["release"]["clip"] == 8


def test_an_arm_is_the_experiment_and_its_changes():
    experiment = shipped("swing")
    found, _ = arms.arms(experiment)
    before = experiment.model_dump(mode="json") | {"name": "another"}
    wanted = {
        "fkd": {"release.tau_max", "release.mechanism", "release.scale"},
        "fkd-4": {"release.tau_max", "release.mechanism", "release.scale", "strategy.tau"},
        "clean": {"release.tau_max", "release.mechanism", "release.scale", "canary.control"},
        "swing": {"release.mechanism", "release.scale"},
        "noise": {"release.tau_max"},
        "swing-noise": set(),
        "shuffled": {"release.mechanism", "release.scale", "release.scores"},
        "oracle": {"release.mechanism", "release.scale", "release.scores"},
        "constant": {"release.mechanism", "release.scale", "release.scores"},
        "mixing": {"release.mechanism", "release.scale", "release.mix_with"},
        "same": {"release.mechanism", "release.scale", "strategy.student_temperature"},
    }
    for arm, keys in wanted.items():
        varied = arms.varied(experiment, found[arm], 7)
        changed = differing(before, varied.model_dump(mode="json"))
        assert changed == keys | {"name", "seed", "engine.remember"}, arm
        assert (varied.name, varied.seed, varied.engine.remember) == (arm, 7, True)


def test_averaging_spreads_the_epochs_of_one_round_over_several():
    one = shipped("swing")
    averaged = arms.varied(one, arms.arms(one)[0]["fedavg"], 0)
    assert averaged.rounds > 1
    assert averaged.rounds * averaged.training.local_epochs == one.training.local_epochs
    assert averaged.strategy.options == {}
    several = shipped("swing", "rounds=3")
    averaged = arms.varied(several, arms.arms(several)[0]["fedavg"], 0)
    assert (averaged.rounds, averaged.training) == (3, several.training)


def test_arms_are_chosen_in_the_order_of_the_table():
    found, unfit = arms.arms(shipped("swing"))
    chosen = arms.chosen(found, unfit, ["noise", "fkd", "noise"])
    assert [arm.name for arm in chosen] == ["fkd", "noise"]
    assert [arm.name for arm in arms.chosen(found, unfit, None)] == list(found)


# --- running them -------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """A file with a tiny experiment on text, whose runs take a fraction of a second."""
    (tmp_path / "texts").mkdir()
    overrides = ("rounds=1", "strategy.name=swing", "strategy.tau=1", "public.epochs=1")
    experiment = texts.experiment(tmp_path / "texts", *overrides)
    (tmp_path / "tiny.toml").write_text(experiment.to_toml())
    return experiment


ARMS = ("canary", "tiny.toml", "--arms", "clean,fkd,swing", "--jobs", "1", "--out", "all")


@pytest.mark.slow
def test_every_arm_of_a_tiny_experiment_runs(fedkd, tiny, tmp_path):
    code, out, err = fedkd("canary", "tiny.toml", "--jobs", "1", "--out", "all")
    assert code == 0, err
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert tuple(rows[2:]) == OF_SWING
    found = json.loads((tmp_path / "all" / "table.json").read_text())
    assert [(row["arm"], row["repeats"]) for row in found] == [
        (arm, level) for level in (1, 4) for arm in OF_SWING
    ]
    for row in found:
        averaged = row["arm"] == "fedavg"
        assert set(row["exposure"]) == ({"teacher", "student"} if averaged else {*PLACES})
        assert row["formal"].startswith("none") == (
            row["arm"] not in ("noise", "swing-noise", "sample", "dp-sgd")
        )
    text = (tmp_path / "all" / "table.md").read_text()
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == [
        "# Canaries in tiny",
        "## Secrets repeated 1 time",
        "## Secrets repeated 4 times",
        "## Arms",
    ]
    assert "NaN" not in (tmp_path / "all" / "table.json").read_text()


def test_a_finished_run_is_not_done_again(fedkd, tiny, monkeypatch):
    first = fedkd(*ARMS)

    def never(*given, **named):
        raise AssertionError

    monkeypatch.setattr(jobs, "run", never)
    again = fedkd(*ARMS)
    assert again[2].count("there already") == 3

    def table(out):
        return [line for line in out.splitlines() if line.startswith("|")]

    assert table(first[1]) == table(again[1])
    assert len(table(first[1])) == 5


def test_seeds_are_gathered_and_those_there_already_are_kept(fedkd, tiny):
    fedkd(*ARMS)
    code, out, err = fedkd(*ARMS, "--seeds", "0,1")
    assert code == 0
    assert err.count("there already") == 3
    assert err.count("seed 1: ") == 3
    assert "2 seeds" in out


def test_an_arm_that_fails_does_not_stop_the_others(fedkd, tiny, monkeypatch, tmp_path):
    really = jobs.run

    def fail(experiment, folder, resume):
        if experiment.name == "fkd":
            raise FedkdError("teachers of\nthis arm diverged")
        return really(experiment, folder, resume=resume)

    monkeypatch.setattr(jobs, "run", fail)
    code, out, err = fedkd(*ARMS)
    assert code == 2
    assert [line.split()[1] for line in out.splitlines() if line.startswith("|")][2:] == [
        *("clean", "swing")
    ]
    assert "2/3 fkd, seed 0: failed" in err
    assert err.splitlines()[-1] == "fedkd: fkd, seed 0: teachers of this arm diverged"
    rows = json.loads((tmp_path / "all" / "table.json").read_text())
    assert {row["arm"] for row in rows} == {"clean", "swing"}
    monkeypatch.setattr(jobs, "run", really)
    assert fedkd(*ARMS)[2].count("there already") == 2


def test_one_reason_for_many_failures_is_told_once():
    failed = {"a, seed 0": "no data", "b, seed 0": "too large", "c, seed 0": "no data"}
    assert canary.grouped(failed) == "a, seed 0 and 1 more: no data; b, seed 0: too large"


def test_a_folder_of_another_experiment_is_refused_before_anything_runs(fedkd, tiny, monkeypatch):
    fedkd(*ARMS)
    monkeypatch.setattr(jobs, "run", None)
    code, out, err = fedkd(*ARMS, "--set", "training.local_epochs=3")
    assert (code, out) == (2, "")
    assert "already holds another experiment" in err
    assert err.count("\n") == 1


def test_a_study_has_one_writer_and_writes_nothing_outside_its_folder(
    fedkd, tiny, monkeypatch, tmp_path
):
    monkeypatch.setattr(jobs, "run", None)
    with lock.held(Path("all")):
        code, out, err = fedkd(*ARMS)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"all is being written to by process {os.getpid()} on " in err
    (tmp_path / "outside").mkdir()
    Path("all").mkdir()
    Path("all/fkd").symlink_to(tmp_path / "outside")
    code, out, err = fedkd(*ARMS)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "all/fkd/seed-0 is not inside all: nothing is written there" in err
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_finished_run_that_is_damaged_is_named_and_the_others_are_shown(fedkd, tiny):
    fedkd(*ARMS)
    file = Path("all/swing/seed-0/exposures.jsonl")
    file.write_bytes(file.read_bytes()[:-50])
    code, out, err = fedkd(*ARMS)
    assert code == 2
    assert [line.split()[1] for line in out.splitlines() if line.startswith("|")][2:] == [
        *("clean", "fkd")
    ]
    assert err.splitlines()[-1].startswith(f"fedkd: swing, seed 0: {file}, line ")


def test_ctrl_c_keeps_what_is_finished(fedkd, tiny, monkeypatch):
    really = jobs.run

    def interrupt(experiment, folder, resume):
        if experiment.name == "fkd":
            raise KeyboardInterrupt
        return really(experiment, folder, resume=resume)

    monkeypatch.setattr(jobs, "run", interrupt)
    code, out, err = fedkd(*ARMS)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("fedkd: interrupted; the same command goes on")
    monkeypatch.setattr(jobs, "run", really)
    assert fedkd(*ARMS)[2].count("there already") == 1


@pytest.mark.slow
def test_runs_at_the_same_time_give_the_same_table(fedkd, tiny, tmp_path):
    for many in ("1", "2"):
        words = ("--arms", "clean,fkd,swing-noise", "--seeds", "0,1", "--out", f"jobs{many}")
        code, _, err = fedkd("canary", "tiny.toml", *words, "--jobs", many)
        assert code == 0, err
    one, two = ((tmp_path / f"jobs{many}" / "table.json").read_text() for many in (1, 2))
    assert one == two


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arms", "swinge"], "--arms 'swinge' is not known (did you mean 'swing'?)"),
        (["--set", "canary.control=true"], "canary.control = true is not allowed"),
        (["--set", "release.mechanism=none"], "release.scale = 0.01 has no effect"),
        (["--set", "data.dataset=text:nowhere"], "nowhere"),
        (["--set", "canary.template=my id"], "canary.template = 'my id' is not allowed"),
    ],
)
def test_what_no_arm_could_run_with_is_one_line(fedkd, tiny, words, said):
    code, out, err = fedkd("canary", "tiny.toml", *words)
    assert (code, out) == (2, "")
    assert err.startswith("fedkd: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("method", ["local", "fedavg", "fedproto"])
def test_a_method_that_sends_no_soft_labels_is_one_line(method):
    experiment = Experiment.from_dict({"strategy": {"name": method}, "canary": {"secrets": 1}})
    with pytest.raises(FedkdError, match=f"strategy.name = '{method}' is not allowed"):
        canary.main(experiment, None, [0], None, 1, None)


# --- the table ----------------------------------------------------------------------------------


def released(client=0, **more):
    line = Release(round=1, client=client, step="Predict", key="soft_labels", items=5)
    return line.to_dict() | more


def made_up(folder, arm, bits, *, seed=0, perplexity=100.0, releases=None, tables=None, **planted):
    """A finished run: exposures by place, secrets in turn with four clients, at 16 repeats."""
    experiment = Experiment.from_dict(
        {"name": arm, "seed": seed, "strategy": {"name": "swing"}}
        | (tables or {})
        | {"canary": {"secrets": 1, "repeats": [4, 16], **planted}}
    )
    run = Run.at(experiment, folder / arm / f"seed-{seed}").begin(experiment)
    lines = [
        {"round": 1, "place": place, "observer": None, "secret": n, "repeats": 16}
        | {"holders": [n % 4], "exposure": value}
        for place, values in bits.items()
        for n, value in enumerate(values)
    ]
    run.append_round({"round": 1}, releases=releases or [released()], exposures=lines)
    run.write_canaries({"log2_space": BITS, "public": experiment.canary.public})
    summary = {} if perplexity is None else {"common_perplexity_mean": perplexity}
    run.write_summary(summary)
    return run


def rows_of(*runs, repeats=16):
    groups = {}
    for run in runs:
        groups.setdefault(run.experiment.name, []).append(run)
    return {row.arm: row for row in leakage.table(groups, {"fkd": "plain"}, repeats)}


def cells(rows):
    """The cells of the Markdown table by arm, and then by their column's head."""
    lines = [line for line in leakage.markdown(rows).splitlines() if line.startswith("|")]
    heads, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {line[0]: dict(zip(heads, line, strict=True)) for line in body}


STEADY = (5.0, 6.0, 7.0, 8.0) * 2
"""Eight secrets, two a client."""


def test_means_and_intervals_are_over_secrets_by_the_model_that_they_share(tmp_path):
    bits = {"teacher": STEADY, "student": STEADY}
    row = rows_of(made_up(tmp_path, "fkd", bits))["fkd"]
    assert (row.arm, row.what, row.seeds, row.repeats) == ("fkd", "plain", 1, 16)
    clients = [f"0 {n % 4}" for n in range(8)]
    assert row.exposure["teacher"] == interval(STEADY, clients)
    assert row.exposure["student"] == interval(STEADY, ["0"] * 8)
    assert row.exposure["student"].mean == 6.5
    assert set(row.exposure) == set(bits)


def test_reduction_is_the_share_of_the_plain_arms_excess_that_is_gone(tmp_path):
    plain = made_up(tmp_path, "fkd", {"student": [NULL + x for x in (3.9, 4.0, 4.1)]})
    safer = made_up(tmp_path, "swing", {"student": [NULL + x for x in (0.9, 1.0, 1.1)]})
    found = rows_of(plain, safer)
    assert found["fkd"].reduction is None
    assert found["swing"].reduction.mean == pytest.approx(0.75)
    assert found["swing"].reduction.low < 0.75 < found["swing"].reduction.high
    assert cells(list(found.values()))["swing"]["reduction"].startswith("75 % [")
    assert rows_of(safer)["swing"].reduction is None


def test_nothing_is_reduced_where_plain_labels_leak_nothing(tmp_path):
    plain = made_up(tmp_path, "fkd", {"student": [0.1, 3.0, 1.5]})
    other = made_up(tmp_path, "swing", {"student": [0.3, 2.0, 1.0]})
    found = rows_of(plain, other)
    assert math.isinf(found["swing"].reduction.low)
    assert cells(list(found.values()))["swing"]["reduction"] == "-"


def test_utility_is_a_mean_over_seeds(tmp_path):
    runs = [
        made_up(tmp_path, "fkd", {"student": STEADY}, seed=seed, perplexity=90.0 + 10 * seed)
        for seed in range(3)
    ]
    row = rows_of(*runs)["fkd"]
    assert (row.seeds, row.utility_name) == (3, "perplexity")
    assert row.utility == interval([90.0, 100.0, 110.0])
    assert cells([row])["fkd"]["perplexity"] == "100.0 [75.2, 124.8]"
    alone = rows_of(runs[0])["fkd"]
    assert cells([alone])["fkd"]["perplexity"] == "90.0"


def test_an_arm_with_fewer_seeds_is_named(tmp_path):
    many = [made_up(tmp_path, "fkd", {"student": STEADY}, seed=seed) for seed in range(3)]
    few = made_up(tmp_path, "swing", {"student": STEADY})
    assert "3 seeds (swing: 1); mean" in leakage.markdown(list(rows_of(*many, few).values()))
    assert "3 seeds; mean" in leakage.markdown(list(rows_of(*many).values()))


def test_a_run_without_a_measured_utility_still_has_a_row(tmp_path):
    row = rows_of(made_up(tmp_path, "fkd", {"student": STEADY}, perplexity=None))["fkd"]
    assert math.isnan(row.utility.mean)
    assert cells([row])["fkd"]["accuracy"] == "-"


def test_formal_and_nominal_are_those_of_the_worst_seed(tmp_path):
    def cost(rho):
        return [released(mechanism="gaussian", scale=1.0, rho=rho, nominal=7 * rho)]

    runs = [
        made_up(tmp_path, "noise", {"student": STEADY}, seed=seed, releases=cost(rho))
        for seed, rho in enumerate((0.5, 2.0, 1.0))
    ]
    row = rows_of(*runs)["noise"]
    assert row.formal == f"{gaussian_epsilon(2.0, 1e-5):.3g} (delta 1e-05, client)"
    assert row.nominal == 14
    broken = made_up(tmp_path, "noise", {"student": STEADY}, seed=3)
    row = rows_of(*runs, broken)["noise"]
    assert row.formal == "none: labels are released without noise"


@pytest.mark.parametrize("public", ["none", "prefix"])
def test_exposure_alone_proves_an_epsilon_where_the_transfer_set_has_no_secrets(tmp_path, public):
    bits = {"teacher": [BITS] * 40, "released": [BITS] * 40, "student": [2.0] * 40}
    row = rows_of(made_up(tmp_path, "fkd", bits, public=public))["fkd"]
    wanted = audited_epsilon_from_exposure([BITS] * 40, BITS, 1e-5, 1 - 0.05 / 2)
    assert row.audited == wanted > 3


def test_where_the_transfer_set_has_the_secrets_only_the_clean_arm_gives_a_bound(tmp_path):
    high, low = [6.0 + n / 100 for n in range(40)], [n / 20 for n in range(40)]
    plain = made_up(tmp_path, "fkd", {"released": high, "student": high}, public="exact")
    control = {"released": low, "student": low}
    clean = made_up(tmp_path, "clean", control, public="exact", control=True)
    assert rows_of(plain)["fkd"].audited is None
    assert cells(list(rows_of(plain).values()))["fkd"]["audited ε ≥"] == "-"
    found = rows_of(plain, clean)
    assert found["fkd"].audited == audited_epsilon(high, low, 1e-5) > 0.5
    assert found["clean"].audited is None


LOW, HIGH = [n / 20 for n in range(40)], [6.0 + n / 100 for n in range(40)]


def test_only_the_same_release_with_nothing_planted_is_a_control(tmp_path):
    """Plain labels say nothing of what an arm's own release would show if nobody had secrets."""
    tables = {"release": {"tau_max": 20}}
    bits = {"released": HIGH, "fused": HIGH, "student": HIGH}
    swing = made_up(tmp_path, "swing", bits, public="exact", tables=tables)
    low = {"released": LOW, "fused": LOW, "student": LOW}
    plain = made_up(tmp_path, "clean", low, public="exact", control=True)
    twin = made_up(tmp_path, "clean-swing", low, public="exact", control=True, tables=tables)
    alone, other, own = (rows_of(swing, *more)["swing"] for more in ([], [plain], [twin]))
    for row in (alone, other):
        assert (row.audited, row.excess) == (None, {})
    assert own.audited == audited_epsilon(HIGH, LOW, 1e-5)
    assert set(own.excess) == {"released", "fused"}
    assert own.excess["released"].mean == pytest.approx(np.mean(HIGH) - np.mean(LOW))
    assert rows_of(swing, twin)["clean-swing"].excess == {}
    table = cells(list(rows_of(swing, twin).values()))
    assert table["swing"]["excess, released"].startswith("5.22 [")
    assert table["clean-swing"]["excess, released"] == "-"
    assert "excess, released" not in cells([other])["swing"]


def test_any_arm_has_a_twin_with_nothing_planted():
    experiment = shipped("swing")
    known, unfit = arms.arms(experiment)
    (twin,) = arms.chosen(known, unfit, ["clean-swing"])
    planted, none = (arms.varied(experiment, arm, 3) for arm in (known["swing"], twin))
    both = (planted.model_dump(mode="json"), none.model_dump(mode="json"))
    assert differing(*both) == {"name", "canary.control"}
    assert {arm.name for arm in arms.chosen(known, unfit, None)} == set(known)
    with pytest.raises(FedkdError, match="--arms 'clean-clean' is not known"):
        arms.chosen(known, unfit, ["clean-clean"])


def test_findings_say_when_teachers_have_memorised_nothing(tmp_path):
    nothing = {"teacher": [0.5, 1.5, 2.5, 1.4], "student": [6.0] * 4}
    (said,) = leakage.findings([rows_of(made_up(tmp_path, "fkd", nothing))["fkd"]])
    assert said.startswith("Not a result: at 16 repeats plain teachers have memorised nothing")


def test_findings_say_when_the_student_leaks_nothing(tmp_path):
    bits = {"teacher": STEADY, "student": [0.5, 1.5, 2.5, 1.4]}
    (said,) = leakage.findings([rows_of(made_up(tmp_path, "fkd", bits))["fkd"]])
    assert said.startswith("At 16 repeats plain distillation leaks nothing")


def test_one_secret_tells_nothing_from_chance(tmp_path):
    row = rows_of(made_up(tmp_path, "fkd", {"teacher": [8.0], "student": [8.0]}))["fkd"]
    assert math.isnan(row.exposure["teacher"].low)
    assert leakage.findings([row])[0].startswith("Not a result")


def test_there_is_nothing_to_say_where_plain_labels_leak(tmp_path):
    bits = {"teacher": STEADY, "student": STEADY}
    assert leakage.findings([rows_of(made_up(tmp_path, "fkd", bits))["fkd"]]) == []
    (said,) = leakage.findings([rows_of(made_up(tmp_path, "swing", bits))["swing"]])
    assert said.startswith("No reduction: the arm fkd")


def test_a_student_that_diverged_is_a_dash(tmp_path):
    diverged = {"teacher": STEADY, "student": [math.nan] * 8}
    runs = [made_up(tmp_path, "fkd", {"student": STEADY}), made_up(tmp_path, "swing", diverged)]
    found = rows_of(*runs)
    row = cells(list(found.values()))["swing"]
    assert (row["exposure, student"], row["reduction"]) == ("-", "-")


def test_every_number_has_its_column(tmp_path):
    row = rows_of(made_up(tmp_path, "fkd", {"teacher": [4.0], "released": [3.0, 5.0]}))["fkd"]
    found = cells([row])["fkd"]
    assert list(found) == [
        *("arm", "perplexity", "exposure, teacher", "exposure, released", "exposure, fused"),
        *("exposure, student", "reduction", "formal ε", "nominal ε", "audited ε ≥"),
    ]
    assert found["exposure, teacher"] == "4.00"
    assert re.fullmatch(r"4\.00 \[-\d+\.\d\d, \d+\.\d\d\]", found["exposure, released"])
    assert found["exposure, fused"] == found["nominal ε"] == "-"
