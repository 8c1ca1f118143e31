"""A run that is told to end ends once, and writes what it has, however often it is told."""

import signal
from pathlib import Path

import pytest
from lines import measured

from fedkd import Observer, run, serving
from fedkd.checkpoint import files
from fedkd.interrupt import Interrupted, exit_code, interruptible

TERMINAL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("second", TERMINAL)
@pytest.mark.parametrize("first", TERMINAL)
def test_a_second_signal_does_not_end_what_the_first_one_made_the_run_write(first, second):
    before = [signal.getsignal(number) for number in TERMINAL]
    written = []

    def told_twice():
        try:
            signal.raise_signal(first)
        finally:
            signal.raise_signal(second)
            written.append("checkpoint")

    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        told_twice()
    assert written == ["checkpoint"]
    assert exit_code(caught.value) == 128 + first
    assert [signal.getsignal(number) for number in TERMINAL] == before


def test_a_signal_counts_again_where_the_first_one_was_lost(monkeypatch):
    """An exception that a library swallows must not make a run that cannot be ended."""
    now = [100.0]
    monkeypatch.setattr("fedkd.interrupt.time.monotonic", lambda: now[0])
    with interruptible():
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        for later in (0, 4, 9):  # each of which a window of its own would make the next ignored
            now[0] = 100.0 + later
            signal.raise_signal(signal.SIGTERM)
        now[0] = 111.0
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("second", TERMINAL)
def test_a_run_that_is_told_twice_has_its_checkpoint(small, monkeypatch, second):
    """The second signal comes on the way from the first one to the checkpoint."""
    keeping = serving._Keeping
    leave = keeping.__exit__

    def leave_disturbed(self, *error):
        signal.raise_signal(second)
        return leave(self, *error)

    class Ending(Observer):
        def round_done(self, line):
            if line["round"] == 2:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(keeping, "__exit__", leave_disturbed)
    experiment = small("rounds=4", "checkpoint_every=3")
    with pytest.raises(Interrupted):
        run(experiment, "there", observer=Ending())
    (kept,) = files(Path("there"))
    assert kept.name.startswith("round-2-")
    monkeypatch.setattr(keeping, "__exit__", leave)
    resumed, whole = run(experiment, "there", resume=True), run(experiment, "whole")
    assert measured(resumed) == measured(whole)
