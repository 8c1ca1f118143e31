"""One experiment, the same numbers wherever its workers are, and whatever becomes of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import texts
from lines import Killed, KilledAfter, ended, measured

from fedkd import FedkdError, Observer, Run, checkpoint, run
from fedkd.engine import plan, pool
from fedkd.engine.procs import Procs
from fedkd.engine.worker import Worker
from fedkd.interrupt import Interrupted
from fedkd.work import Assignment, Evaluate, Fit, Predict

LINUX = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
MIXED = "student.models=['mlp', 'cnn2']"
RELEASED = ("release.clip=5", "release.mechanism=gaussian", "release.scale=0.05")
ALONE = "engine.cohort=off"
EXPERIMENTS = {
    "knfu": ("strategy.name=knfu", MIXED, "participation=0.75", *RELEASED, ALONE),
    "fedavg": ("strategy.name=fedavg", "participation=0.5", "data.clients=6", ALONE),
    "fedd2s": ("strategy.name=fedd2s", "student.models=['cnn2']", ALONE),
    "fml": ("strategy.name=fml", "strategy.shared_model=mlp", MIXED, ALONE),
}


def children(of=None, word="fedkd.engine.child"):
    """Process ids of the children of a process, this one unless given, with a command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_text()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it has just ended
            continue
        if parent == (of or os.getpid()) and word in line:
            found.append(int(process.name))
    return found


class Killer(Observer):
    """Kills workers when the first client of a round has replied."""

    def __init__(self, kill, round=2):
        self.kill, self.at, self.lost, self.counts = kill, round, [], []

    def clients_done(self, round, done, total, phase):
        self.counts.append((round, phase, done, total))
        if round == self.at and (phase, done) == ("learn", 1):
            self.kill()

    def warned(self, message):
        if "was lost" in message:
            self.lost.append(message)


def kill_children():
    for process in children():
        os.kill(process, signal.SIGKILL)


def everything(done):
    return measured(done), done.releases, done.exposures, done.partition


@pytest.mark.slow
@LINUX
def test_killed_workers_change_no_number_of_a_run_that_began_elsewhere(small, tmp_path):
    """Begun inline and killed, resumed in worker processes, which are killed in mid-round."""
    overrides = (*EXPERIMENTS["knfu"], "rounds=4", "checkpoint_every=1")
    experiment = small(*overrides, "engine.name=procs", "engine.workers=2")
    whole = run(small(*overrides), tmp_path / "inline")
    with pytest.raises(Killed):
        run(small(*overrides), tmp_path / "procs", observer=KilledAfter(2))
    killer = Killer(kill_children, round=3)
    moved = run(experiment, tmp_path / "procs", resume=True, observer=killer)
    assert everything(moved) == everything(whole)
    assert [message[:8] for message in sorted(killer.lost)] == ["worker 0", "worker 1"]
    assert all("SIGKILL" in message for message in killer.lost)
    learnt = [count for count in killer.counts if count[:2] == (3, "learn")]
    assert learnt == [(3, "learn", done, 3) for done in (1, 2, 3)]
    assert children() == []


@LINUX
def test_a_worker_lost_again_and_again_is_one_line(small):
    experiment = small("engine.name=procs")

    def start(worker):
        Procs._start(host, worker)
        while not children():  # it has another name until it has begun
            pass
        kill_children()

    with Procs(experiment, [[0, 1, 2, 3]]) as host:
        host._start = start
        kill_children()
        work = [Assignment(0, 1, "learn", (Fit(),))]
        with pytest.raises(FedkdError, match=r"lost 3 times.*SIGKILL.*engine\.workers = 1"):
            host.perform(work, lambda: None)
    assert children() == []


@LINUX
def test_what_a_person_did_wrong_in_a_worker_is_one_line(small):
    work = [Assignment(0, 1, "learn", (Fit(),))]
    said = pytest.raises(FedkdError, match=r"engine\.device = 'tpu9' is not here")
    with Procs(small("engine.device=tpu9"), [[0, 1, 2, 3]]) as host, said:
        host.perform(work, lambda: None)
    assert children() == []


@pytest.fixture
def underway(tmp_path, small):
    """The command line at work on a long run, past its first rounds, and its workers."""
    keys = ("rounds=1000", "checkpoint_every=400", "strategy.name=local", "engine.name=procs")
    (tmp_path / "long.toml").write_text(small(*keys, "engine.workers=2").to_toml())
    code = "from fedkd.simulations.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "long.toml", "--out", "out"]
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert "procs: 2 workers, clients 2+2" in process.stderr.readline()
        assert "round 50/1000" in process.stderr.readline()
        yield process, children(process.pid)
        process.kill()


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_readable_folder_and_no_process(underway, tmp_path, number):
    process, workers = underway
    assert len(workers) == 2
    process.send_signal(number)
    out, error = process.communicate()
    assert process.returncode == 128 + number
    assert "the folder is readable; go on with --resume" in error
    assert "Traceback" not in error
    assert out.strip() == "out"
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    run = Run.open(tmp_path / "out")
    run.check()
    assert checkpoint.files(run.folder)[0].name.startswith(f"round-{len(run.rounds)}-")
    assert not list(run.folder.rglob(".*"))


@LINUX
@pytest.mark.slow
def test_workers_end_with_the_process_that_began_them_however_it_ends(underway):
    process, workers = underway
    process.kill()
    assert all(map(ended, workers))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_worker_processes_agree_bit_for_bit_whatever_their_number(name, workers, small, tmp_path):
    inline = run(small(*EXPERIMENTS[name], "rounds=3"), tmp_path / "inline")
    engine = ("engine.name=procs", f"engine.workers={workers}")
    procs = run(small(*EXPERIMENTS[name], "rounds=3", *engine), tmp_path / "procs")
    assert everything(procs) == everything(inline)


@pytest.mark.slow
def test_replies_in_many_pieces_are_the_same(small, tmp_path, monkeypatch):
    inline = run(small(*EXPERIMENTS["fml"], "rounds=3"), tmp_path / "inline")
    monkeypatch.setattr(pool, "PIECE", 1)
    killer = Killer(kill_children, round=2)
    engine = ("engine.name=procs", "engine.workers=2")
    done = run(small(*EXPERIMENTS["fml"], "rounds=3", *engine), tmp_path / "x", observer=killer)
    assert everything(done) == everything(inline)
    assert len(killer.lost) == 2
    learnt = [count for count in killer.counts if count[:2] == (3, "learn")]
    assert learnt == [(3, "learn", count, 4) for count in (1, 2, 3, 4)]


@pytest.mark.slow
def test_cohorts_in_worker_processes_agree_to_a_tolerance_and_survive_a_kill(small, tmp_path):
    """Other clients are together there: what they are may differ in its last digits."""
    overrides = ("strategy.name=knfu", "rounds=3", "engine.cohort=on")
    inline = run(small(*overrides), tmp_path / "inline")
    elsewhere = small(*overrides, "engine.name=procs", "engine.workers=2")
    procs = run(elsewhere, tmp_path / "procs")
    for one, other in zip(inline.rounds, procs.rounds, strict=True):
        assert other["cohort"] == one["cohort"]
        assert other["own_loss_mean"] == pytest.approx(one["own_loss_mean"], rel=1e-3)
        assert other["own_accuracy_mean"] == pytest.approx(one["own_accuracy_mean"], abs=0.02)
    killer = Killer(kill_children, round=2)
    killed = run(elsewhere, tmp_path / "killed", observer=killer)
    assert len(killer.lost) == 2
    assert everything(killed) == everything(procs)


@pytest.mark.slow
def test_a_run_killed_in_worker_processes_goes_on_anywhere(small, tmp_path):
    overrides = (*EXPERIMENTS["fml"], "rounds=4", "checkpoint_every=2")
    whole = run(small(*overrides), tmp_path / "whole")
    with pytest.raises(Killed):
        run(small(*overrides, "engine.name=procs"), tmp_path / "run", observer=KilledAfter(3))
    assert everything(run(small(*overrides), tmp_path / "run", resume=True)) == everything(whole)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["procs", "ray"])
def test_a_text_run_with_canaries_and_noise_agrees_in_its_ledger_and_exposures(engine, tmp_path):
    (tmp_path / "texts").mkdir()
    table = texts.experiment(tmp_path / "texts", "strategy.name=swing", "rounds=2")
    inline = run(table, tmp_path / "inline")
    update = {"engine": table.engine.model_copy(update={"name": engine, "workers": 2})}
    assert everything(run(table.model_copy(update=update), tmp_path / engine)) == everything(inline)
    assert inline.exposures


# --- Ray ------------------------------------------------------------------------------------


def ray_processes():
    """Process ids of this user's Ray processes."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_text()
        except OSError:
            continue
        if any(word in line for word in ("raylet", "gcs_server", "ray::", "/ray/")):
            found.add(int(process.name))
    return found


@LINUX
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_ray_agrees_bit_for_bit_and_leaves_no_process(name, small, tmp_path):
    before = ray_processes()
    inline = run(small(*EXPERIMENTS[name], "rounds=3"), tmp_path / "inline")
    engine = ("engine.name=ray", "engine.workers=2")
    actors = run(small(*EXPERIMENTS[name], "rounds=3", *engine), tmp_path / "ray")
    assert everything(actors) == everything(inline)
    assert all(map(ended, ray_processes() - before))


@LINUX
@pytest.mark.slow
def test_a_killed_actor_changes_no_number(small, tmp_path):
    overrides = ("strategy.name=knfu", "rounds=4", "training.local_epochs=40", ALONE)
    inline = run(small(*overrides), tmp_path / "inline")

    def kill():
        for process in Path("/proc").glob("[0-9]*"):
            try:
                mine = (process / "cmdline").read_text().startswith("ray::_Actor")
            except OSError:
                continue
            if mine:
                os.kill(int(process.name), signal.SIGKILL)

    killer = Killer(kill)
    engine = ("engine.name=ray", "engine.workers=2")
    actors = run(small(*overrides, *engine), tmp_path / "ray", observer=killer)
    assert everything(actors) == everything(inline)
    assert len(killer.lost) == 2


@LINUX
@pytest.mark.slow
@pytest.mark.alone
def test_sigterm_ends_a_run_on_ray_as_ctrl_c_does(small, tmp_path):
    class Signals(Observer):
        def round_done(self, line):
            if line["round"] == 2:
                signal.raise_signal(signal.SIGTERM)

    before = ray_processes()
    keys = ("rounds=4", "checkpoint_every=100", "engine.cohort=off")
    with pytest.raises(Interrupted):
        run(
            small(*keys, "engine.name=ray", "engine.workers=2"),
            tmp_path / "run",
            observer=Signals(),
        )
    assert all(map(ended, ray_processes() - before))
    whole = run(small(*keys), tmp_path / "whole")
    resumed = run(small(*keys), tmp_path / "run", resume=True)
    assert everything(resumed) == everything(whole)


@LINUX
@pytest.mark.slow
def test_ray_is_shut_down_when_a_run_fails(small, tmp_path):
    before = ray_processes()
    with pytest.raises(Killed):
        run(small("engine.name=ray"), tmp_path / "run", observer=KilledAfter(1))
    assert all(map(ended, ray_processes() - before))
    with pytest.raises(FedkdError, match=r"engine\.gpus_per_worker = 1 is too much for 2 workers"):
        run(
            small("engine.name=ray", "engine.workers=2", "engine.gpus_per_worker=1"),
            tmp_path / "none",
        )
    assert all(map(ended, ray_processes() - before))


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(small, tmp_path):
    experiment = small("engine.name=ray", "engine.address=127.0.0.1:1")
    with pytest.raises(FedkdError, match=r"engine\.address = '127\.0\.0\.1:1': no Ray there"):
        run(experiment, tmp_path / "run")


# --- what a host is -------------------------------------------------------------------------


def test_a_plan_says_what_runs_where(small):
    with plan.host(Worker(small()), print) as host:
        assert host.plan == "inline: 4 clients in this process, cpu, 1 torch thread"


def test_replies_come_in_the_order_of_assignments(small):
    with plan.host(Worker(small()), print) as host:
        work = [Assignment(n, 1, "learn", (Predict(), Evaluate("own", "own"))) for n in (3, 0, 2)]
        told = []
        replies = host.perform(work, lambda: told.append(len(told)))
    assert [reply.client for reply in replies] == [3, 0, 2]
    assert told == [0, 1, 2]
