"""Who is late: who is still at work when its worker is asked after the time is over, and no other.

A made-up engine says when a worker did what, when that is heard, and what time it is by then.
"""

from types import SimpleNamespace

import pytest

from fedkd.engine import pool
from fedkd.engine.payload import Payload
from fedkd.engine.pool import Done, Pool, Progress
from fedkd.work import Assignment, Predict, Reply

LIMIT = 5.0
ENDED = "did not answer within engine.timeout = 5.0 s"


class Scripted(Pool):
    """Tells what is in ``script``: for each look the time after it, up to when it knows, events.

    What is beyond the script is that workers do all that they still have to do.
    """

    name = "scripted"

    def __init__(self, experiment, shares, monkeypatch, script):
        super().__init__(experiment, shares, self._warn)
        self.script, self.now, self.known = list(script), 0.0, 0.0
        self.warnings, self.cares = [], {}
        self.sent = {}
        monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: self.now))

    def _warn(self, warning):
        self.warnings.append(warning)

    def close(self):
        pass

    def _start(self, worker):
        pass

    def _restore(self, worker, states):
        pass

    def _place(self, payload):
        pass

    def _kill(self, worker):
        del self.sent[worker]

    def _send(self, worker, frame, care):
        self.sent[worker], self.cares[worker] = care, care

    def _known_until(self, worker):
        return self.known

    def _events(self, workers, seconds):
        if self.script:
            self.now, self.known, events = self.script.pop(0)
            return events
        return [(worker, self.does_all(worker)) for worker in sorted(workers)]

    def does_all(self, worker):
        left = [c for c in self.shares[worker] if c not in self.sent[worker].left_out]
        return Done(Payload().frame(([Reply(client) for client in left], {})), None)


@pytest.fixture
def performed(small, monkeypatch):
    """A function: the engine after a phase of a script, and who failed in it for what reason."""

    def perform(*script, shares=([0, 1, 2],)):
        host = Scripted(small(f"engine.timeout={LIMIT}"), shares, monkeypatch, script)
        assignments = [Assignment(c, 1, "tell", (Predict(),)) for share in shares for c in share]
        replies = host.perform(assignments, lambda: None)
        return host, {reply.client: reply.failure for reply in replies if reply.failure}

    return perform


def at_work(*clients, worker=0):
    return worker, Progress(0, clients)


def test_who_is_at_work_when_asked_after_the_limit_is_late(performed):
    host, failed = performed((1.0, 0.9, [at_work(0)]), (6.2, 6.1, [at_work(0)]))
    assert failed == {0: ENDED}
    assert len(host.warnings) == 1


def test_what_was_true_before_the_limit_and_heard_after_it_accuses_nobody(performed):
    """As where this side was kept from asking, or its question from being answered."""
    _, failed = performed((1.0, 0.9, [at_work(0)]), (60.0, 1.1, [at_work(0)]))
    assert failed == {}


def test_the_clock_of_a_client_begins_when_its_worker_says_so(performed):
    """Its worker's start and the time in which nothing was heard are not its own."""
    _, failed = performed(
        (20.0, 19.9, []),
        (40.0, 39.9, [at_work()]),
        (44.0, 43.9, [at_work(0)]),
        (48.9, 48.8, [at_work(0)]),
    )
    assert failed == {}


def test_a_silent_worker_is_started_again_and_nobody_is_accused(performed):
    """It stands still at the work of somebody of whom it could not tell any more."""
    silent = LIMIT + pool.HEARD_WITHIN
    host, failed = performed((1.0, 0.9, [at_work(0)]), (1.1 + silent, 1.1, []))
    assert failed == {}
    assert host.cares[0] == pool.Care()
    assert host.warnings == [
        "worker 0 was lost (no answer within engine.timeout = 5.0 s); it is started again and "
        "does its work anew"
    ]


def test_who_waits_to_be_heard_while_another_workers_replies_are_taken_in_is_not_late(performed):
    """This side was busy past the limit: what the other worker did since is heard before."""
    _, failed = performed(
        (1.0, 0.9, [at_work(0), at_work(2, worker=1)]),
        (30.0, 1.2, [at_work(1)]),
        (30.1, 30.0, [at_work(3, worker=1)]),
        shares=([0, 1], [2, 3]),
    )
    assert failed == {}


def test_a_cohort_has_the_time_of_all_its_clients(performed):
    host, failed = performed((1.0, 0.9, [at_work(0, 1, 2)]), (16.0, 15.9, []), (16.3, 16.2, []))
    assert failed == {}
    assert host.cares[0].alone == {0, 1, 2}
