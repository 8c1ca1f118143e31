"""What a run's numbers do not say by themselves: read off its folder, gathered over runs."""

import json

import numpy as np
import pytest
from lines import Killed, KilledAfter

from fedkd import run as simulate
from fedkd.caveats import (
    ANOTHER_METHOD,
    ENDED_EARLY,
    FEW_ROUNDS,
    LEFT_OUT,
    LOCAL_TRAINING,
    NOT_CONVERGED,
    UNFINISHED,
    UNIFORM_FUSION,
    Caveat,
    caveats,
    gathered,
    rising,
    span,
)
from fedkd.experiment import Experiment
from fedkd.results import Run


def made(folder, accuracies=(), left_out=(), ended=True, **keys):
    """A run with these accuracies after local training and after fusion, a round each."""
    rounds = keys.pop("rounds", max(len(accuracies), 1))
    experiment = Experiment.from_dict({"rounds": rounds, "data": {"clients": 4}} | keys)
    run = Run.at(experiment, folder).begin(experiment)
    for number, accuracy in enumerate(accuracies, 1):
        gone = [
            {"client": client, "step": "Fit", "reason": why}
            for client, round, why in left_out
            if round == number
        ]
        run.append_round(
            {
                "round": number,
                "left_out": gone,
                "participants": [
                    n for n in range(4) if n not in {entry["client"] for entry in gone}
                ],
                "own_accuracy_mean": accuracy,
                "local": {"own_accuracy_mean": accuracy},
            }
        )
    if ended:
        run.write_summary({"own_accuracy_mean": 0.5})
    return run


def rewrite(run, lines):
    """Put other rounds into a run, as one from before its summary said what was written."""
    text, summary = "".join(json.dumps(line) + "\n" for line in lines), run.summary
    (run.folder / "rounds.jsonl").write_text(text)
    whole = summary | {"rounds": len(lines)}
    (run.folder / "summary.json").write_text(json.dumps(whole))


def kinds(run):
    return [caveat.kind for caveat in caveats(run)]


FLAT = (0.5, 0.51, 0.5, 0.51, 0.5, 0.51, 0.5, 0.51)


def test_a_run_without_anything_to_know_has_no_caveats(tmp_path):
    assert caveats(made(tmp_path, FLAT)) == []


def test_what_a_run_recorded_comes_with_it(tmp_path):
    run = made(tmp_path, FLAT)
    run.warn("the common test set has 3 samples, not 1000")
    assert [str(caveat) for caveat in caveats(run)] == run.warnings


def test_a_warning_about_another_method_is_of_a_kind_of_its_own_and_comes_first(tmp_path):
    run = made(tmp_path, FLAT)
    run.warn("alpha cannot be met")
    assert run.warn("it is local training", 3, LOCAL_TRAINING)
    assert not run.warn("it is local training", 4, LOCAL_TRAINING)
    assert kinds(run)[0] == LOCAL_TRAINING
    assert run.warning_lines[1] == {
        "round": 3,
        "message": "it is local training",
        "about": LOCAL_TRAINING,
    }


def test_warnings_of_runs_from_before_they_had_a_file_are_found_in_their_lines(tmp_path):
    run = made(tmp_path)
    line = {"round": 1, "warnings": ["lower beta = 10"], "local": {}}
    rewrite(run, [line])
    assert "lower beta = 10" in [str(caveat) for caveat in caveats(run)]


DISTIL = ["fedmd", "knfu", "ktpfl", "scarlet", "selectivefd", "uniform"]


@pytest.mark.parametrize(("beta", "kind"), [("1e6", LOCAL_TRAINING), ("1e-6", UNIFORM_FUSION)])
def test_a_method_that_comes_to_another_says_so_in_its_runs(small, tmp_path, beta, kind):
    keys = ("strategy.name=knfu", f"strategy.beta={beta}", "rounds=3", "data.alpha=0.5")
    found = simulate(small(*keys), tmp_path / "run")
    assert kind in ANOTHER_METHOD
    assert kinds(found)[0] == kind
    assert kind not in kinds(simulate(small("strategy.name=local", *keys[2:]), tmp_path / "local"))


@pytest.mark.parametrize(
    "keys",
    [
        *[(f"strategy.name={name}", "strategy.distill_epochs=0") for name in DISTIL],
        ("strategy.name=fedd2s", "strategy.warm_up=2"),
    ],
    ids=lambda keys: keys[0],
)
def test_a_method_that_teaches_nobody_is_local_training_and_says_so(small, tmp_path, keys):
    found = simulate(small(*keys), tmp_path / "run")
    local = simulate(small("strategy.name=local"), tmp_path / "local")
    assert kinds(found)[0] == LOCAL_TRAINING
    accuracy = [run.rounds[-1]["own_accuracy_mean"] for run in (found, local)]
    assert accuracy[0] == accuracy[1]


@pytest.mark.parametrize("name", ["cfd", "dsfl"])
def test_where_the_servers_student_is_scored_the_clients_are_not_the_method(small, tmp_path, name):
    found = simulate(small(f"strategy.name={name}", "strategy.distill_epochs=0"), tmp_path / "run")
    assert LOCAL_TRAINING not in kinds(found)
    assert any("no client learns" in str(caveat) for caveat in caveats(found))


def test_a_resumed_run_says_once_what_it_warned_of_before(small, tmp_path):
    experiment = small("strategy.beta=1e6", "strategy.name=knfu", "rounds=5", "checkpoint_every=1")
    with pytest.raises(Killed):
        simulate(experiment, tmp_path / "run", observer=KilledAfter(4))
    found = simulate(experiment, tmp_path / "run", resume=True)
    assert [line["about"] for line in found.warning_lines] == [LOCAL_TRAINING]


def test_clients_that_were_left_out_are_named_with_rounds_and_the_first_reason(tmp_path):
    gone = [(2, 3, "loss is nan"), (0, 3, "no reply"), (2, 5, "again")]
    (caveat,) = [c for c in caveats(made(tmp_path, FLAT, gone)) if c.kind == LEFT_OUT]
    assert caveat.text == (
        "clients 0, 2 left out in 2 of 8 rounds, 2 of 4 took part at the fewest; first in round 3: "
        "client 2, Fit, loss is nan"
    )


def test_a_run_that_has_not_ended_or_ended_early_says_after_which_round(tmp_path):
    begun = made(tmp_path / "a", FLAT, ended=False, rounds=20)
    assert "has not ended: 8 of 20 rounds" in [str(c) for c in caveats(begun)]
    assert kinds(begun) == [UNFINISHED]
    assert kinds(made(tmp_path / "b", FLAT, rounds=20)) == [ENDED_EARLY]
    assert kinds(made(tmp_path / "c", ended=False)) == [UNFINISHED]


# --- convergence --------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [8, 12, 40])
def test_a_steady_rise_is_not_converged_whatever_the_number_of_rounds(tmp_path, rounds):
    run = made(tmp_path, np.linspace(0.2, 0.8, rounds))
    assert kinds(run) == [NOT_CONVERGED]
    assert "after local training rose from" in caveats(run)[0].text


def test_what_levels_off_has_converged(tmp_path):
    assert kinds(made(tmp_path, 0.8 - 0.5 * 0.6 ** np.arange(20))) == []


def test_noise_around_a_level_is_seldom_taken_for_a_rise():
    generator = np.random.default_rng(0)
    series = 0.6 + 0.03 * generator.standard_normal((2000, 24))
    assert sum(rising(list(values)) is not None for values in series) < 0.06 * len(series)


def test_a_rise_of_less_than_a_point_does_not_count():
    assert rising(list(np.linspace(0.6, 0.63, 40))) is None


def test_with_few_rounds_nothing_is_said_of_convergence_but_that(tmp_path):
    run = made(tmp_path, np.linspace(0.2, 0.8, 7))
    assert kinds(run) == [FEW_ROUNDS]
    assert caveats(run)[0].text.startswith("7 measured rounds: too few to tell")


def test_accuracies_after_fusion_count_where_those_after_training_are_flat(tmp_path):
    run = made(tmp_path, np.linspace(0.2, 0.8, 12))
    lines = [line | {"local": {"own_accuracy_mean": 0.5}} for line in run.rounds]
    rewrite(run, lines)
    assert "after fusion rose from" in caveats(run)[0].text


# --- gathered -----------------------------------------------------------------------------------


def test_caveats_of_a_kind_are_one_note_that_names_whom_it_concerns():
    gone, few = Caveat(LEFT_OUT, "client 3"), Caveat(FEW_ROUNDS, "5 rounds")
    runs = [("knfu", [gone, few]), ("knfu", [few]), ("local", [few]), ("local", [few])]
    first, last = gathered(runs)
    assert first.text == first.brief == "knfu (1 of 2 runs): client 3"
    assert last.text == "all 4 runs: 5 rounds"


def test_texts_that_differ_are_shown_by_one_of_them():
    runs = [("a", [Caveat(LEFT_OUT, "client 3")]), ("b", [Caveat(LEFT_OUT, "client 4")])]
    assert gathered(runs)[0].text == "all 2 runs: e.g. client 3"


def test_many_names_are_counted():
    runs = [(str(n), [Caveat(LEFT_OUT, "gone")]) for n in range(5)] + [("5", [])]
    assert gathered(runs)[0].text == "5 of 6 runs (0; 1; 2; and 2 more): gone"
    assert gathered(runs)[0].brief == "5 of 6 runs: gone"


def test_warnings_that_differ_in_their_numbers_are_one_kind(tmp_path):
    for seed, size in enumerate((3, 14, 0.5)):
        made(tmp_path / str(seed), FLAT, seed=seed).warn(f"{size} samples, not 1,000 (1e-05)")
    found = [("a", caveats(Run(tmp_path / str(seed)))) for seed in range(3)]
    (note,) = gathered(found)
    assert note.text == "all 3 runs: e.g. 3 samples, not 1,000 (1e-05)"


def test_counts_are_said_with_their_noun():
    assert span([5, 5.0], "round") == "5 rounds"
    assert span([1], "client") == "1 client"
    assert span([10, 4, 6], "client") == "4 to 10 clients"
    assert span([], "client") == ""
