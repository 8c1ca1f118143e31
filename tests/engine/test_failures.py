"""What becomes of a client whose work fails: it alone is left out, and the record says why."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mishaps
import pytest
import torch
from flwr.app import Context, RecordDict
from lines import ended, measured

from fedkd import FedkdError, Observer, Run, run
from fedkd.client import client_app
from fedkd.codec import Codec, decode
from fedkd.engine.inline import InlineGrid
from fedkd.engine.procs import Procs
from fedkd.engine.worker import Worker
from fedkd.interrupt import interrupts_held_back
from fedkd.work import Assignment, Evaluate, Fit, Hold, Predict, Share, Soft

pytestmark = pytest.mark.usefixtures("_mishaps")
CLIENTS = 4
ALONE = "engine.cohort=off"
TOGETHER = "engine.cohort=on"


def line_of(function):
    """``mishaps.py:12``, where a function of that module raises: in its last line."""
    code = function.__code__
    return f"mishaps.py:{max(line for *_, line in code.co_lines() if line)}"


def work(objective, *failing, trial=(), before=(), clients=CLIENTS):
    """Training with soft labels on everybody, whose objective goes wrong at some clients."""
    found = []
    for client in range(clients):
        targets = torch.full((80, 10), 0.1)
        if client in failing:
            targets[:] = torch.eye(10)[-1]
        distil = Fit("transfer", (Soft(targets, objective=objective),), key="distil_loss")
        steps = (*before, Fit(), distil, Predict(), Share())
        found.append(Assignment(client, 1, "learn", steps, trial))
    return found


def same(one, other):
    """Whether replies hold the same bits, timings aside."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        keys = [key for key in one if key != "seconds"]
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in keys)
    return one == other


def agree(replies, others):
    by_client = {reply.client: reply for reply in others}
    for reply in replies:
        other = by_client[reply.client]
        assert not reply.failure
        assert same(reply.metrics, other.metrics), reply.client
        assert same(reply.values, other.values), reply.client


@pytest.fixture
def healthy(small):
    """A function: replies of clients none of whom fails, each of which works by itself."""

    def replies(*overrides, **changes):
        worker = Worker(small(*overrides))
        return [worker.perform(assignment) for assignment in work("raises", **changes)]

    return replies


# --- exceptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", [ALONE, TOGETHER])
@pytest.mark.parametrize("act", ["raises", "raises_unpicklable", "recurses", "leaves"])
def test_a_client_whose_code_raises_is_told_with_step_and_place(act, cohort, small, healthy):
    worker, counts = Worker(small(cohort)), []
    replies = worker.perform_all(work(act, 2), counts.append)
    said = replies.pop(2)
    assert not said.error
    kind = {
        "raises": "ValueError: no such thing [31m ",
        "raises_unpicklable": "Unpicklable: its message cannot be shown ",
        "recurses": "RecursionError: maximum recursion depth exceeded",
        "leaves": "SystemExit: 3 ",
    }[act]
    assert said.failure.startswith(kind)
    assert said.failure.endswith(f"({line_of(getattr(mishaps, act))}) at Fit")
    assert counts[-1] == CLIENTS
    agree(replies, healthy(cohort))


@pytest.mark.parametrize("cohort", [ALONE, TOGETHER])
def test_a_client_that_fails_is_as_it_was_before_the_phase(cohort, small):
    """Also where it fails after its students were trained and kept, in a trial."""
    worker = Worker(small(cohort))
    first = [Assignment(client, 1, "learn", (Hold("old"), Fit())) for client in range(CLIENTS)]
    worker.perform_all(first, lambda done: None)
    before = {name: dict(tensors) for name, tensors in worker.states[1].items()}
    targets = torch.eye(10)[-1].expand(80, 10)
    fatal = Fit("transfer", (Soft(targets, objective="raises"),))
    steps = (Hold("new"), Fit(), Fit(student="old"), Fit(student="new"))
    tests = (Evaluate("own", "own"),)
    second = [
        Assignment(client, 2, "learn", steps, (fatal,) if client == 1 else tests)
        for client in range(CLIENTS)
    ]
    replies = worker.perform_all(second, lambda done: None)
    assert [bool(reply.failure) for reply in replies] == [False, True, False, False]
    assert same(worker.states[1], before)
    assert list(worker.states[0]) == ["own", "old", "new"]
    other = Worker(small(cohort))
    other.perform_all(first, lambda done: None)
    others = [other.perform(assignment) for assignment in second if assignment.client != 1]
    agree([reply for reply in replies if not reply.failure], others)


def test_clients_of_a_cohort_that_fails_once_they_were_kept_are_trained_once(small):
    """In the trial of one of them, by a mistake: the others begin again from what they were."""
    assignments = [
        Assignment(client, 1, "learn", (Fit(), Share()), (Fit("transfer", (Soft(targets),)),))
        for client in range(CLIENTS)
        for targets in [torch.full((80 if client else 79, 10), 0.1)]
    ]
    replies = Worker(small(TOGETHER)).perform_all(assignments, lambda done: None)
    assert "79 targets" in replies[0].error
    worker = Worker(small(TOGETHER))
    agree(replies[1:], [worker.perform(assignment) for assignment in assignments[1:]])


def interrupt():
    raise KeyboardInterrupt


def test_ctrl_c_while_a_client_works_is_no_failure_and_leaves_the_client_as_it_was(
    small, monkeypatch
):
    worker = Worker(small(ALONE))
    worker.perform_all([Assignment(0, 1, "learn", (Fit(),))], lambda done: None)
    before = {name: dict(tensors) for name, tensors in worker.states[0].items()}
    monkeypatch.setattr(mishaps.objectives["raises"], "act", interrupt)
    with pytest.raises(KeyboardInterrupt):
        worker.perform_all(work("raises", 0), lambda done: None)
    assert same(worker.states[0], before)


# --- whole runs -----------------------------------------------------------------------------------


class Mends(Observer):
    """Has an act go wrong in rounds after some round alone."""

    def __init__(self, monkeypatch, act, after):
        self.patch, self.act, self.after = monkeypatch, act, after

    def _set(self, act):
        self.patch.setattr(mishaps.students[self.act], "act", act)

    def started(self, run, first_round, rounds, plan):
        self._set(lambda: None)

    def round_done(self, line):
        self._set(getattr(mishaps, self.act) if line["round"] >= self.after else lambda: None)


def of_others(done, client):
    """Lines of the clients that did not fail, without timings."""
    return [line for line in measured(done)[1] if line["client"] != client]


@pytest.mark.parametrize("act", ["raises", "raises_answering"])
def test_a_run_goes_on_without_the_client_and_records_why(act, small, tmp_path):
    """The others' numbers are those of a run in which it does not fail."""
    models = f"student.models=['mlp', 'mlp', '{act}', 'mlp']"
    done = run(small("strategy.name=local", models, "engine.name=inline", ALONE), tmp_path / "run")
    whole = run(small("strategy.name=local", "engine.name=inline", ALONE), tmp_path / "whole")
    step = "Fit" if act == "raises" else "Evaluate"
    place = line_of(mishaps.raises)
    for line in done.rounds:
        assert {entry["client"] for entry in line["left_out"]} == {2}
        reason = f"ValueError: no such thing [31m ({place}) at {step}"
        assert line["left_out"][0]["reason"] == reason
        assert line["participants"] == [0, 1, 3]
    assert of_others(done, 2) == of_others(whole, 2)
    assert not any(line["client"] == 2 for line in done.clients if "train_loss" in line)


def test_a_failure_that_stops_a_run_is_one_line_and_the_run_goes_on_once_it_is_mended(
    small, tmp_path, monkeypatch
):
    models = "student.models=['mlp', 'mlp', 'raises', 'mlp']"
    changes = (models, "engine.failures=stop", "checkpoint_every=1", "rounds=3", ALONE)
    experiment = small("strategy.name=knfu", "engine.name=inline", *changes)
    monkeypatch.setattr(mishaps.students["raises"], "act", lambda: None)
    whole = run(experiment, tmp_path / "whole")
    with pytest.raises(FedkdError, match=r"^client 2: ValueError: .* at Fit$"):
        run(experiment, tmp_path / "run", observer=Mends(monkeypatch, "raises", after=1))
    assert len(Run.open(tmp_path / "run").rounds) == 1
    monkeypatch.setattr(mishaps.students["raises"], "act", lambda: None)
    assert measured(run(experiment, tmp_path / "run", resume=True)) == measured(whole)


def test_if_every_client_fails_the_run_ends_with_the_reason(small, tmp_path):
    experiment = small("student.models=['raises']", "engine.name=inline")
    with pytest.raises(
        FedkdError, match=r"round 1: every client's .*client 0: ValueError: no such"
    ):
        run(experiment, tmp_path / "run")


def test_a_client_app_answers_with_the_failure_and_keeps_what_the_client_was(small):
    worker, identity = Worker(small(ALONE)), {"partition-id": 2}
    app = client_app(lambda context: worker)
    context = Context(0, 0, identity, RecordDict(), {})
    grid = InlineGrid(worker)

    def answer(assignment):
        message = grid.create_message(Codec().encode(assignment), "train", 2, "1")
        return decode(app(message, context).content)

    assert not answer(Assignment(2, 1, "learn", (Fit(),))).failure
    before = dict(context.state["own"])
    reply = answer(work("raises", 2)[2])
    assert reply.failure == f"ValueError: no such thing [31m ({line_of(mishaps.raises)}) at Fit"
    assert dict(context.state["own"]) == before


# --- workers that are lost, or do not answer ------------------------------------------------------

LINUX = pytest.mark.skipif(not Path("/proc").is_dir(), reason="worker processes of a POSIX system")
ENGINES = [
    pytest.param("procs", marks=LINUX),
    pytest.param("ray", marks=[LINUX, pytest.mark.slow]),
]


def elsewhere(engine, experiment, shares, warnings):
    """Workers of an engine, in other processes."""
    if engine == "procs":
        return Procs(experiment, shares, warnings.append)
    from fedkd.engine.ray import Actors

    return Actors(experiment, shares, warnings.append)


@pytest.mark.slow
@LINUX
def test_a_client_that_costs_its_worker_twice_is_left_out_and_no_other(small, healthy):
    warnings, counts = [], []
    with elsewhere("procs", small(ALONE), [range(CLIENTS)], warnings) as host:
        replies = host.perform(work("segfaults", 2), lambda: counts.append(len(counts)))
    assert replies.pop(2).failure == "its worker was lost at its work (killed by SIGSEGV)"
    agree(replies, healthy(ALONE))
    assert counts == [0, 1, 2, 3]
    begin = "worker 0 was lost (killed by SIGSEGV) at the work of client 2; it is started again and"
    assert warnings == [f"{begin} does its work anew", f"{begin} does the others' work anew"]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("act", ["exits", "segfaults"])
def test_who_was_found_out_costs_one_loss_in_the_next_phase(act, engine, small, healthy):
    warnings = []
    with elsewhere(engine, small(ALONE), [[0, 2], [1, 3]], warnings) as host:
        assignments = work(act, 2)
        assignments[1] = work("raises", 1)[1]
        replies = host.perform(assignments, lambda: None)
        losses = len(warnings)
        again = host.perform(assignments, lambda: None)
    for found in (replies, again):
        assert found[2].failure.startswith("its worker was lost at its work (")
        assert "ValueError: no such thing" in found[1].failure
    agree([replies[0], replies[3]], healthy(ALONE))
    assert all(warning.startswith("worker 0 was lost") for warning in warnings)
    assert losses == {"procs": 2, "ray": 3}[engine]  # the first is not known to be its
    assert len(warnings) == losses + 1


@LINUX
@pytest.mark.slow
def test_a_worker_that_is_gone_is_missed_though_what_it_began_lives_on(small, healthy):
    with elsewhere("procs", small(ALONE), [range(CLIENTS)], []) as host:
        replies = host.perform(work("begins_another_and_exits", 2), lambda: None)
    assert replies.pop(2).failure.endswith("(it ended with code 1)")
    agree(replies, healthy(ALONE))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_of_a_cohort_that_costs_its_worker_one_client_is_found_out(engine, small, healthy):
    warnings = []
    with elsewhere(engine, small(TOGETHER), [range(CLIENTS)], warnings) as host:
        replies = host.perform(work("segfaults", 1), lambda: None)
    assert replies.pop(1).failure.startswith("its worker was lost at its work (")
    agree(replies, healthy(TOGETHER))
    assert "at the work of clients 0, 1, 2, 3" in warnings[-2]
    assert warnings[-2].endswith("does its work anew, theirs one by one")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("act", "cohort"), [("hangs", ALONE), ("stops", ALONE), ("stops", TOGETHER)]
)
def test_a_client_that_does_not_answer_in_time_is_left_out_and_no_other(
    act, cohort, engine, small, healthy
):
    """It comes after one that answers, and one that answers comes after it."""
    warnings, seconds = [], {"procs": 2, "ray": 5}[engine]
    experiment = small(cohort, f"engine.timeout={seconds}")
    with elsewhere(engine, experiment, [range(3)], warnings) as host:
        replies = host.perform(work(act, 1, clients=3), lambda: None)
        again = host.perform(work(act, clients=3), lambda: None)
    assert replies.pop(1).failure == f"did not answer within engine.timeout = {seconds}.0 s"
    agree(replies, healthy(cohort, clients=3))
    assert not any(reply.failure for reply in again)
    losses = 1 if cohort == ALONE else 2
    # An actor that stands still for the first time cannot say at whose work.
    assert len(warnings) in ([losses] if engine == "procs" else [losses, losses + 1])


@LINUX
@pytest.mark.slow
@pytest.mark.alone
def test_a_worker_that_stands_still_between_phases_is_started_again(small, healthy):
    warnings = []
    with elsewhere("procs", small(ALONE, "engine.timeout=2"), [range(CLIENTS)], warnings) as host:
        first = [Assignment(client, 1, "learn", (Predict(),)) for client in range(CLIENTS)]
        host.perform(first, lambda: None)
        os.kill(host.processes[0], signal.SIGSTOP)
        agree(host.perform(work("raises"), lambda: None), healthy(ALONE))
    assert len(warnings) == 1


@LINUX
def test_what_goes_wrong_only_where_a_worker_starts_is_one_line_with_its_place(small):
    experiment = small("student.models=['only_elsewhere']")
    said = rf"worker 0 of engine\.name = 'procs': .*no such thing.*{line_of(mishaps.raises)}"
    with Procs(experiment, [range(CLIENTS)]) as host, pytest.raises(FedkdError, match=said) as why:
        host.perform(work("raises"), lambda: None)
    assert "only_elsewhere" in str(why.value.__cause__)
    assert "\n" not in str(why.value)


@pytest.mark.slow
def test_a_client_that_fails_on_flower_is_left_out_as_in_this_process(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry or os.getcwd() for entry in sys.path))
    experiment = ("strategy.name=local", "student.models=['mlp', 'leaves']", ALONE)
    inline = run(small(*experiment, "engine.name=inline"), tmp_path / "inline")
    flower = run(small(*experiment, "engine.name=flower"), tmp_path / "flower")
    assert measured(flower) == measured(inline)
    assert [entry["client"] for entry in flower.rounds[1]["left_out"]] == [1, 3]
    assert "SystemExit: 3" in flower.rounds[1]["left_out"][0]["reason"]


@LINUX
@pytest.mark.slow
def test_what_ends_all_processes_of_a_job_is_for_the_one_that_began_them(small, healthy):
    warnings = []
    with elsewhere("procs", small(ALONE), [range(CLIENTS)], warnings) as host:
        first = [Assignment(client, 1, "learn", (Predict(),)) for client in range(CLIENTS)]
        host.perform(first, lambda: None)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(host.processes[0], number)
        agree(host.perform(work("raises"), lambda: None), healthy(ALONE))
    assert not warnings


@LINUX
def test_a_worker_that_cannot_be_started_is_one_line(small, monkeypatch):
    def refuse(*arguments, **keywords):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    said = (
        r"^engine\.name = 'procs': worker 0 of 1 cannot be started \(Cannot allocate memory\); low"
    )
    with pytest.raises(FedkdError, match=said):
        Procs(small(), [range(CLIENTS)])


# --- nothing is left ------------------------------------------------------------------------------


def test_ctrl_c_and_sigterm_wait_for_what_is_half_started():
    def stop(number, frame):
        raise KeyboardInterrupt

    done = []

    def start(number):
        with interrupts_held_back():
            signal.raise_signal(number)
            done.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            with pytest.raises(KeyboardInterrupt):
                start(number)
            assert signal.getsignal(number) is stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done == list(before)


@LINUX
@pytest.mark.slow
def test_a_temporary_folder_is_gone_after_its_maker_was_killed():
    code = "import os; from fedkd.engine.temporary import TemporaryFolder as T; t = T('fedkd-'); "
    code += "print(t.path, t._sweeper.pid, flush=True); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    path, sweeper = done.stdout.split()
    assert ended(int(sweeper))
    assert not Path(path).exists()
