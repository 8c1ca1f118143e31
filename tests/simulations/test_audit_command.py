"""``fedkd audit``: what it prints and writes."""

import json
import math
import re
from functools import partial

import pytest

from fedkd import run as simulate
from fedkd.experiment import Experiment
from fedkd.lab import attack as lab
from fedkd.lab import gradients
from fedkd.lab.bounds import audited_epsilon_from_exposure
from fedkd.lab.gradients import Bound, GradientAudit, audit_gradients
from fedkd.privacy.accounting import NEIGHBOURS
from fedkd.privacy.epsilons import gaussian_epsilon
from fedkd.privacy.guarantees import profiles
from fedkd.privacy.releases import Release
from fedkd.results import Run


@pytest.fixture
def finished(tmp_path):
    """A function that makes up a finished run in the folder ``mine``."""

    def make(releases, exposures=None, ended=True, noise_multiplier=0.0, **canary):
        planted = {"secrets": 1, "repeats": [1, 8], **canary} if exposures else {}
        dp = {"noise_multiplier": noise_multiplier}
        experiment = Experiment.from_dict({"canary": planted, "training": {"dp": dp}})
        run = Run.at(experiment, tmp_path / "mine").begin(experiment)
        lines = [
            {"round": 1, "place": place, "observer": None, "secret": 100 * level + n}
            | {"repeats": level, "holders": [n % 4], "exposure": bits}
            for (place, level), values in (exposures or {}).items()
            for n, bits in enumerate(values)
        ]
        run.append_round({"round": 1}, releases=releases, exposures=lines)
        if exposures:
            run.write_canaries({"log2_space": 10.0, "public": experiment.canary.public})
        if ended:
            run.write_summary({"own_accuracy_mean": 0.5})
        return run

    return make


def release(**more):
    line = Release(round=1, client=0, step="Predict", key="soft_labels", items=5)
    return line.to_dict() | more


PRIVATE = {"dp_training": [[0.25, 4]]}
NOISY = {"mechanism": "gaussian", "scale": 1.0, "rho": 0.5, "nominal": 0.7}


def test_the_ledger_alone_needs_neither_data_nor_an_attack(fedkd, finished, monkeypatch):
    run = finished([release(**NOISY), release(**NOISY, round=2, fresh=False)])
    monkeypatch.setattr(lab, "attack", None)
    code, out, err = fedkd("audit", "mine", "--shadows", "0", "--data-dir", "nowhere")
    assert (code, err) == (0, "")
    epsilon = gaussian_epsilon(1.0, 1e-5)
    assert out.splitlines() == [
        "ledger: 2 releases, 1 of them new answers",
        f"formal ε: {epsilon:.3g} (delta 1e-05, client); adversary: a server that sees every "
        "answer of every client",
        f"neighbours: {NEIGHBOURS['client']}",
        "profile: " + profiles(run.releases, run.experiment)[0].text(),
        "nominal ε of one token or item, not a guarantee: 0.7 (client; adversary: a server that "
        "sees that answer alone)",
        "of the run: ended after 1 of 10 rounds",
        "mine",
    ]
    assert set(run.audit) == {"formal", "guarantees", "profiles"}
    assert run.audit["formal"]["epsilon"] == pytest.approx(epsilon)
    assert run.audit["formal"]["unit"] == "client"


def test_half_a_ledger_guarantees_nothing_and_is_one_line(fedkd, small, tmp_path):
    keys = ("release.mechanism=gaussian", "release.scale=1", "release.clip=4")
    run = simulate(small("strategy.name=uniform", *keys), tmp_path / "mine")
    file = run.folder / "releases.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 2]))
    code, out, err = fedkd("audit", "mine", "--shadows", "0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "releases.jsonl" in err


def test_every_adversary_has_a_line_of_its_own(fedkd, small, tmp_path):
    keys = ("strategy.name=fedavg", "strategy.clipping_norm=1", "strategy.noise_multiplier=4")
    quick = ("rounds=2", "participation=0.5", "training.local_epochs=0.1")
    run = simulate(small(*keys, *quick), tmp_path / "mine")
    _, out, _ = fedkd("audit", "mine", "--shadows", "0")
    server, others = run.audit["guarantees"]
    assert (server["epsilon"], server) == (None, run.audit["formal"])
    twice = gaussian_epsilon(2 * math.sqrt(2 * others["rho"]), 1e-5)
    (profile,) = profiles(run.releases, run.experiment)
    assert out.splitlines()[1:6] == [
        "formal ε: none: parameters leave the client without noise; adversary: a server that sees "
        "every answer of every client",
        f"formal ε: {others['epsilon']:.3g} (delta 1e-05, client; replace-one: {twice:.3g}); "
        "adversary: other clients, and whoever has the final model; the server is trusted",
        "neighbours: zero-out client (its change counts as 0 in one of two), who takes part public",
        f"profile: {profile.text()}",
        f"that is without amplification, as everybody knows who takes part; ε would be "
        f"{others['sampled']:.3g} if participants were secret and drawn by Poisson sampling at "
        "rate 0.5, which they are not here",
    ]


def test_a_broken_rule_is_named_in_the_place_of_an_epsilon(fedkd, finished):
    run = finished([release()])
    _, out, _ = fedkd("audit", "mine", "--shadows", "0")
    assert "formal ε: none: labels are released without noise; adversary" in out
    assert "not a guarantee: -" in out
    assert run.audit["formal"]["epsilon"] is None


def test_exposures_are_told_by_place_and_repeats_and_the_highest_level_proves(fedkd, finished):
    bits = {
        ("teacher", 1): [1.0, 3.0],
        ("teacher", 8): [10.0] * 30,
        ("released", 1): [2.0, 2.0],
        ("released", 8): [10.0] * 30,
        ("student", 8): [4.0, math.nan],
    }
    run = finished([release()], bits)
    _, out, _ = fedkd("audit", "mine", "--shadows", "0")
    said = [line for line in out.splitlines() if "exposure" in line and "|" not in line]
    proved = audited_epsilon_from_exposure([10.0] * 30, 10.0, 1e-5, 0.975)
    assert said == [
        "exposure in bits by repeats, null 1.44, teacher: 2.00 at 1, 10.00 at 8",
        "exposure in bits by repeats, null not known, released: 2.00 at 1, 10.00 at 8",
        "exposure in bits by repeats, null 1.44, student: 4.00 at 8",
        "audited by exposure is a client: a secret is 8 of its records, and may move others; "
        "adversary: released: a server that sees the labels; student: whoever has the student",
    ]
    rows = [line.split("|")[1:3] + line.split("|")[5:7] for line in out.splitlines() if "|" in line]
    assert [[cell.strip() for cell in row] for row in rows[2:]] == [
        ["released, 8 repeats", "secrets: exposure", f"{proved:.2f} (client)", "none"],
        ["student, 8 repeats", "secrets: exposure", "0.00 (client)", "none"],
    ]
    assert set(run.audit["exposure"]) == {"teacher", "released", "student"}
    assert run.audit["exposure"]["released"]["1"]["mean"] == 2
    assert run.audit["exposure"]["student"]["8"] == {"mean": 4, "low": None, "high": None, "n": 1}
    first = run.audit["secrets"][0]
    assert (first["place"], first["exposure"], first["rank"]) == ("teacher", 10.0, 1)
    assert [one["rank"] for one in run.audit["secrets"] if one["exposure"] == 4.0] == [64]
    assert run.audit["audited"] == {"released": pytest.approx(proved), "student": 0}


def test_one_run_with_shown_secrets_proves_nothing(fedkd, finished):
    run = finished([release()], {("released", 8): [10.0] * 30}, public="exact")
    _, out, _ = fedkd("audit", "mine", "--shadows", "0")
    assert "audited" not in out
    assert "|" not in out
    assert run.audit["audited"] == {}


def test_attacks_on_a_real_run_are_printed_and_written(fedkd, small, tmp_path):
    quick = ("rounds=1", "strategy.name=fedavg", "data.clients=2", "training.local_epochs=1")
    run = simulate(small(*quick), tmp_path / "mine")
    before = {file.name: file.read_bytes() for file in run.folder.iterdir() if file.is_file()}
    code, out, err = fedkd("audit", "mine", "--shadows", "4")
    assert code == 0
    assert err.splitlines() == [f"shadow {n}/4" for n in range(1, 5)]
    lines = out.splitlines()
    assert lines[0] == "ledger: 2 releases, 2 of them new answers"
    assert "formal ε: none: parameters leave the client without noise" in lines[1]
    assert lines[3].startswith(
        "label distributions from parameters (Share parameters, last round): L1 error 0."
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert rows[0] == ["place", "attack", "AUC", "TPR at FPR", "audited ε ≥", "formal ε"]
    assert [row[0] for row in rows[2:]] == ["Share parameters, last round"] * 2
    member, label = rows[2:]
    assert member[1].startswith("membership: confidence, LiRA o")
    assert re.fullmatch(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", member[2])
    # 120 records, half in each of four shadows: too few false positives for a rate at 1 %.
    assert re.fullmatch(r"[\d.]+ % \[[\d., ]+\] at 10 %", member[3])
    assert re.fullmatch(r"\d\.\d\d \(record\)", member[4])
    assert member[5] == "none"
    assert label[1] == "label distribution: read from parameters"
    assert label[3:5] == ["-", "-"]
    assert "4 shadows, 120 records" in lines[-3]
    assert "hold together for 3 attacks" in lines[-3]
    assert lines[-2].startswith("of the run: 1 measured round: too few to tell")
    assert lines[-1] == "mine"
    found = json.loads((run.folder / "audit.json").read_text())
    assert set(found) == {"formal", "guarantees", "profiles", "attacks"}
    assert found["attacks"]["shadows"] == 4
    assert len(found["attacks"]["findings"]) == 3
    first = found["attacks"]["findings"][0]
    assert set(first["tpr"]) == {"0.1"}
    assert set(first["refused"]) == {"0.001", "0.01"}
    assert found["attacks"]["labels"][0]["how"] == "parameters"
    after = {file.name: file.read_bytes() for file in run.folder.iterdir() if file.is_file()}
    assert after.keys() - before.keys() == {"audit.json"}
    assert all(after[name] == content for name, content in before.items())


def test_what_is_not_attacked_is_said(fedkd, small, tmp_path):
    quick = ("rounds=1", "strategy.name=local", "data.clients=2", "training.local_epochs=1")
    simulate(small(*quick), tmp_path / "mine")
    _, out, _ = fedkd("audit", "mine", "--shadows", "4")
    assert "ledger: 0 releases" in out
    assert "formal ε: 0 (delta 1e-05, client)" in out
    assert "no client sends anything: nothing to attack" in out
    assert Run.open("mine").audit["attacks"]["findings"] == []


def test_gradient_canaries_are_a_line_a_row_and_an_entry(fedkd, finished, monkeypatch):
    run = finished([release(**PRIVATE)], noise_multiplier=2.0)
    monkeypatch.setattr(gradients, "audit_gradients", partial(audit_gradients, canaries=1))
    monkeypatch.setattr(gradients, "noise_at_most", lambda phases, bounds: 3.0)
    code, out, err = fedkd("audit", "mine", "--shadows", "0", "--gradient-canaries")
    assert (code, err) == (0, "")
    found = run.audit["gradient_canaries"]
    proved, formal = found["bounds"][0]["epsilon"], run.audit["formal"]["epsilon"]
    assert found["bounds"][0]["formal"] == formal
    said = [line for line in out.splitlines() if "canaries" in line or "multiplier" in line]
    assert said[0].startswith(
        "gradient canaries: client 0, 4 noisy steps at sampling rate 0.25; 512 "
        f"canaries, {found['inside']} of them in, in 2 fits; audited ε ≥ {proved:.2f} of at most "
    )
    assert f"formal ε {formal:.3g} (delta 1e-05, zero-out record)" in said[0]
    assert said[1].startswith(
        "if all but the size of Gaussian noise is as in the ledger: noise multiplier ≤ 3 and ε ≥ "
    )
    row = [cell.strip() for cell in said[2].split("|")[1:-1]]
    assert row[:4] == ["each noisy step (white box)", "gradient canaries", "-", "-"]
    assert row[4] == f"{proved:.2f} (record, zero-out)"
    assert row[5] == f"{formal:.3g} (delta 1e-05, record; all noisy steps)"
    assert "WARNING" not in out


def test_more_than_the_formal_epsilon_is_said_loudly(fedkd, finished, monkeypatch):
    def refuting(run):
        bounds = [Bound(1e-5, 3.0, 2.5), Bound(0.1, 1.0, 2.0), Bound(0.3, 0.5, 0.25)]
        counts = {"steps": 4, "canaries": 512, "inside": 256, "fits": 2, "client": 1}
        return GradientAudit(
            place="each noisy step (white box)",
            attack="spread over steps",
            noise_multiplier=2.0,
            rate=0.25,
            bounds=bounds,
            largest=5.0,
            noise_at_most=None,
            epsilon_as_sampled_gaussian=None,
            **counts,
        )

    finished([release(**PRIVATE)], noise_multiplier=2.0)
    monkeypatch.setattr(gradients, "audit_gradients", refuting)
    code, out, _ = fedkd("audit", "mine", "--shadows", "0", "--gradient-canaries")
    assert code == 0
    (warning,) = [line for line in out.splitlines() if line.startswith("WARNING")]
    assert warning == (
        "WARNING: more is proved than the formal ε allows: ε ≥ 3 at delta 1e-05 (formal 2.5), "
        "ε ≥ 0.5 at delta 0.3 (formal 0.25). Noise, clipping or sampling of DP-SGD is not what the "
        "ledger says, but for a chance of 5 %"
    )


def test_gradient_canaries_without_dp_sgd_are_one_line_before_anything_is_printed(fedkd, finished):
    run = finished([release()])
    code, out, err = fedkd("audit", "mine", "--shadows", "0", "--gradient-canaries")
    assert (code, out) == (2, "")
    assert err == (
        "fedkd: --gradient-canaries audits DP-SGD, and mine has training.dp.noise_multiplier = 0; "
        "allowed: above 0\n"
    )
    assert run.audit is None


def test_an_unfinished_run_is_one_line(fedkd, finished):
    finished([release()], ended=False)
    assert fedkd("audit", "mine") == (
        *(2, "", "fedkd: mine has not ended: an audit needs a finished run\n"),
    )


def test_too_few_shadows_are_one_line_before_anything_is_printed(fedkd, finished):
    run = finished([release()])
    code, out, err = fedkd("audit", "mine", "--shadows", "3")
    assert (code, out) == (2, "")
    assert err.startswith("fedkd: --shadows 3 is too few: a likelihood ratio needs at least 4")
    assert err.count("\n") == 1
    assert run.audit is None


def test_data_that_are_not_there_are_one_line(fedkd, tmp_path):
    experiment = Experiment.from_toml("[data]\ndataset = 'npz:away.npz'")
    run = Run.at(experiment, tmp_path / "mine").begin(experiment)
    run.append_round({"round": 1}, releases=[release()])
    run.write_summary({"own_accuracy_mean": 0.5})
    code, _, err = fedkd("audit", "mine")
    assert code == 2
    assert err.startswith("fedkd: ")
    assert "away.npz" in err
    assert err.count("\n") == 1
    assert run.audit is None


def test_ctrl_c_writes_nothing(fedkd, finished, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    run = finished([release()])
    monkeypatch.setattr(lab, "attack", interrupt)
    code, _, err = fedkd("audit", "mine")
    assert (code, err) == (130, "fedkd: interrupted; nothing was written\n")
    assert run.audit is None
