"""The rule's constants, measured on a machine and read again."""

import json

import pytest

from fedkd import FedkdError
from fedkd.engine import rule, tune
from fedkd.simulations.cli import main


@pytest.fixture(autouse=True)
def _kept(tmp_path, monkeypatch):
    """What is measured is written for one test alone."""
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "BATCHES", (2, 4))
    monkeypatch.setattr(tune, "REPEATS", 1)
    rule.limits.cache_clear()
    yield
    rule.limits.cache_clear()


def test_limits_are_the_shipped_ones_until_they_are_measured():
    assert rule.limits() == rule.LIMITS


@pytest.mark.slow
def test_every_kind_and_work_is_measured_at_every_batch(monkeypatch):
    monkeypatch.setattr(tune, "SLOWEST", float("inf"))
    told = []
    found = tune.measure(told=lambda *what: told.append(what[:3]))
    assert told == [
        (kind, what, batch)
        for kind in ("dense", "other")
        for what in ("fit", "forward")
        for batch in (2, 4)
    ]
    assert found.keys() == {"cpu"}
    assert all(limit in (0, 2, 4) for kind in found["cpu"].values() for limit in kind.values())


@pytest.mark.parametrize(("together", "limit"), [((1, 1), 4), ((1, 3), 2), ((3, 1), 0)])
def test_the_limit_is_the_largest_batch_up_to_which_cohorts_are_faster(
    together, limit, monkeypatch
):
    monkeypatch.setattr(tune, "SLOWEST", float("inf"))
    times = dict(zip((2, 4), together, strict=True))

    def seconds(host, what, batch):
        return 2.0 if host.experiment.engine.cohort == "off" else float(times[batch])

    monkeypatch.setattr(tune, "seconds", seconds)
    assert {x for kind in tune.measure()["cpu"].values() for x in kind.values()} == {limit}


def test_what_is_written_is_what_runs_go_by():
    limits = {"cpu": {kind: {"fit": 7, "forward": 9} for kind in ("dense", "other")}}
    tune.write(limits)
    assert rule.limits()["cpu"] == limits["cpu"]
    assert rule.limits()["cuda"] == rule.LIMITS["cuda"]


@pytest.mark.parametrize("text", ["{", "[]", '{"cuda": {"dense": {"fit": "x"}}}'])
def test_a_broken_file_is_one_line_that_says_what_mends_it(text, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "seconds", lambda *_: 1.0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / rule.TUNED).write_text(text)
    with pytest.raises(FedkdError, match="run fedkd tune again"):
        rule.limits()
    with pytest.raises(SystemExit) as ended:
        main(["tune"])
    assert not ended.value.code
    assert rule.limits()["cuda"] == rule.LIMITS["cuda"]


def test_the_command_prints_and_writes(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "seconds", lambda *_: 1.0)
    with pytest.raises(SystemExit) as ended:
        main(["tune"])
    assert not ended.value.code
    assert "cpu, dense: cohorts up to" in capsys.readouterr().out
    assert json.loads((tmp_path / "cache" / rule.TUNED).read_text())["cpu"]["other"]


def test_a_device_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["tune", "--device", "cuda:77"])
    assert ended.value.code == 2
    assert "engine.device = 'cuda:77' is not here" in capsys.readouterr().err
