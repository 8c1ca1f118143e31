"""The step Count: how many samples of each class a client has, which it sends without noise."""

import pytest
import texts
import torch

from fedkd import FedkdError, registry, run
from fedkd.engine.worker import Worker
from fedkd.privacy.guarantees import guarantee
from fedkd.strategies.base import KnowledgeStrategy
from fedkd.work import Assignment, Count, Fit, Rows, Samples


def method(*steps):
    @registry.register("strategies", "counts")
    class Counts(KnowledgeStrategy):
        def learn(self, round, client):
            return [Fit(), *steps]

        def fuse(self, round, replies):
            self.counts = replies.stack("label_counts")

    return Counts


def do(worker, *steps, client=0):
    return worker.perform(Assignment(client, 1, "learn", steps))


def test_counts_are_those_of_the_labels(small):
    worker = Worker(small())
    counts = do(worker, Count()).values["label_counts"]
    assert torch.equal(counts, worker.data.label_counts()[0])
    sent = Samples(torch.zeros(3, 1, 8, 8), torch.tensor([7, 2, 7]))
    assert do(worker, Count(sent, "c")).values["c"].tolist() == [0, 0, 1, 0, 0, 0, 0, 2, 0, 0]
    rows = Rows("private", torch.tensor([4, 1]))
    assert int(do(worker, Count(rows)).values["label_counts"].sum()) == 2


def test_of_text_tokens_that_are_to_be_said_are_counted(tmp_path):
    worker = Worker(texts.small(tmp_path / "texts"))
    counts = do(worker, Count()).values["label_counts"]
    assert int(counts.sum()) == int((worker.samples(0, "private").labels >= 0).sum())


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_they_count_in_bytes_and_stand_in_the_ledger(cohort, small, tmp_path):
    method(Count())
    experiment = small("strategy.name=counts", "rounds=1", f"engine.cohort={cohort}")
    done = run(experiment, tmp_path / "run")
    assert done.rounds[0]["bytes_up"] == 4 * 10 * 8
    lines = [(e["client"], e["step"], e["on"], e["items"]) for e in done.releases]
    assert lines == [(n, "Count", "private", 10) for n in range(4)]
    found = guarantee(done.releases, experiment)
    assert (found.epsilon, found.why) == (None, "none: label counts leave the client without noise")


def test_dp_sgd_does_not_cover_them(small, tmp_path):
    method(Count())
    private = ("training.dp.noise_multiplier=1", "rounds=1")
    experiment = small("strategy.name=counts", *private)
    found = guarantee(run(experiment, tmp_path / "run").releases, experiment)
    assert found.why == "none: answers about private samples leave the client"


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (Count("transfer"), "Count: the samples of 'transfer' have no labels"),
        (Count("privat"), "Count: on = 'privat' is not known"),
        (Count(key=""), "Count: key = '' is not allowed"),
    ],
)
def test_what_has_no_counts_is_refused_in_one_line(step, line, small, tmp_path):
    method(step)
    with pytest.raises(FedkdError, match=line):
        run(small("strategy.name=counts"), tmp_path / "run")


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (torch.tensor([60] + [0] * 8), "shape"),
        (torch.tensor([59] + [0] * 9), "the counts add up to 59, and there are 60 samples"),
        (torch.tensor([61, -1] + [0] * 8), "-1, which is negative"),
        (torch.ones(10), "is float32 where int64 was asked"),
    ],
)
def test_counts_that_are_none_leave_their_client_out(counts, reason, small, tmp_path, monkeypatch):
    method(Count())
    plain = Worker.perform_all

    def faulty(self, *args, **how):
        replies = plain(self, *args, **how)
        for reply in replies:
            if reply.client == 2 and "label_counts" in reply.values:
                reply.values["label_counts"] = counts
        return replies

    monkeypatch.setattr(Worker, "perform_all", faulty)
    done = run(small("strategy.name=counts", "rounds=1"), tmp_path / "run")
    (entry,) = done.rounds[0]["left_out"]
    assert (entry["client"], entry["step"]) == (2, "Count")
    assert reason in entry["reason"]
