"""Loyalty and bins of confidence as runs record them: measurements that change nothing."""

import pytest
import torch
from lines import Killed, KilledAfter, measured

from fedkd import FedkdError, run
from fedkd.distillation.calibration import calibration_error, reliability_bins
from fedkd.plots import loyalty, reliability
from fedkd.training.loyalty import LOYALTIES, comparison, spaced
from fedkd.work import CrossEntropy, Samples, Soft

SERVER = [name.replace("loyalty_", "loyalty_server_") for name in LOYALTIES]


def loyal(run):
    return [
        {name: value for name, value in line.items() if name.startswith("loyalty_")}
        for line in run.rounds
    ]


def without(run):
    """The run's lines as they would be without loyalties."""
    return [
        [{k: v for k, v in line.items() if not k.startswith("loyalty_")} for line in lines]
        for lines in measured(run)
    ]


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_to_measure_loyalty_changes_no_other_number(cohort, small, tmp_path):
    keys = ["strategy.name=dsfl", f"engine.cohort={cohort}"]
    on = run(small(*keys), tmp_path / "on")
    off = run(small(*keys, "measure.loyalty=0"), tmp_path / "off")
    assert without(on) == without(off)
    assert on.releases == off.releases
    assert on.reliability == off.reliability
    assert all(set(found) == {*LOYALTIES, *SERVER} for found in loyal(on))
    assert loyal(off) == [{}, {}]
    assert {name: on.summary[name] for name in LOYALTIES} == {
        name: on.rounds[-1][name] for name in LOYALTIES
    }
    assert LOYALTIES[0] in on.clients[-1]


def test_cohorts_are_as_loyal_as_clients_alone(small, tmp_path):
    one = run(small("strategy.name=fedmd", "engine.cohort=on"), tmp_path / "on")
    other = run(small("strategy.name=fedmd", "engine.cohort=off"), tmp_path / "off")
    for first, second in zip(loyal(one), loyal(other), strict=True):
        assert first == pytest.approx(second, abs=1e-3)
    assert one.reliability.keys() == {"own", "common"}


def test_a_killed_run_ends_with_the_same_loyalties_and_bins(small, tmp_path):
    keys = ["strategy.name=dsfl", "participation=0.5", "rounds=3", "checkpoint_every=1"]
    whole = run(small(*keys), tmp_path / "whole")
    with pytest.raises(Killed):
        run(small(*keys), tmp_path / "killed", observer=KilledAfter(2))
    again = run(small(*keys), tmp_path / "killed", resume=True)
    assert measured(again) == measured(whole)
    assert again.reliability == whole.reliability


def test_methods_that_do_not_distil_and_rounds_that_are_not_measured_have_none(small, tmp_path):
    assert loyal(run(small("strategy.name=fedavg"), tmp_path / "avg")) == [{}, {}]
    some = run(small("strategy.name=fedmd", "evaluate_every=2"), tmp_path / "some")
    assert [bool(found) for found in loyal(some)] == [False, True]


def test_bins_hold_every_test_sample_once_and_give_the_calibration_error(small, tmp_path):
    done = run(small("strategy.name=local"), tmp_path / "run")
    sizes = sum(client["own_test"] for client in done.partition["clients"])
    for stage in ("local", "fused"):
        assert sum(done.reliability["own"][stage]["count"]) == sizes
    common = done.reliability["common"]["fused"]
    hits = [c * a for c, a in zip(common["count"], common["accuracy"]) if c]
    mean = done.summary["common_accuracy_mean"]
    assert sum(hits) / sum(common["count"]) == pytest.approx(mean)
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(80, generator=generator)
    right = torch.rand(80, generator=generator) < 0.5
    count, sure, hit = reliability_bins(confidence, right).T
    assert count.sum() == 80
    expected = calibration_error(confidence, right).item()
    assert ((sure - hit).abs().sum() / 80).item() == pytest.approx(expected)


def test_figures_of_runs_without_these_numbers_are_one_line(small, tmp_path):
    done = run(small("strategy.name=local"), tmp_path / "run")
    with pytest.raises(FedkdError, match="no round that records loyalty_label_after"):
        loyalty.draw([done])
    (done.folder / "summary.json").unlink()
    (done.folder / "reliability.json").unlink()
    with pytest.raises(FedkdError, match=r"has no reliability\.json"):
        reliability.draw([done])


def test_figures_have_a_panel_a_measure_and_a_set_of_tests(small, tmp_path):
    keys = ("strategy.name=fedmd",)
    runs = [run(small(*keys, f"seed={seed}"), tmp_path / str(seed)) for seed in (0, 1)]
    titles = [panel.get_title(loc="left") for panel in loyalty.draw(runs).axes]
    assert titles == ["label loyalty", "probability loyalty"]
    own, common = reliability.draw(runs).axes
    assert own.get_title(loc="left").startswith("fedmd, own tests")
    assert common.get_xlabel() == "Confidence (%)"


def test_rows_without_a_target_or_a_weight_are_not_compared():
    samples = Samples(torch.zeros(6, 2))
    targets = torch.full((6, 3), 1 / 3)
    targets[1] = torch.nan
    weights = torch.tensor([1.0, 1, 1, 0, 1, 1])
    found = comparison(Soft(targets, row_weights=weights), samples, 100)
    assert found.index.tolist() == [0, 2, 4, 5]
    assert comparison(Soft(targets, row_weights=weights), samples, 2).index.tolist() == [0, 4]
    for term in (
        CrossEntropy(),
        Soft("other"),
        Soft(targets, per="class"),
        Soft(targets, weight=0),
    ):
        assert comparison(term, samples, 100) is None
    assert comparison(Soft(targets), samples, 0) is None
    assert spaced(10, 5).tolist() == [0, 2, 4, 6, 8]


def test_targets_that_are_logits_are_compared_by_their_softmax():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    term = Soft(logits, objective="mse_logits", temperature=3.0)
    found = comparison(term, Samples(torch.zeros(5, 2)), 100)
    assert found.loyalty(logits) == pytest.approx((1, 1), abs=1e-6)
