"""One writer a folder: the lock names its process, ends with it, and nothing of it is left."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest

from fedkd import FedkdError, Observer, lock, run
from fedkd.errors import FedkdWarning

HOLD = "import sys; from pathlib import Path; from fedkd import lock\n"
HOLD += "with lock.held(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"


def is_free(folder):
    try:
        with lock.held(folder):
            return True
    except FedkdError:
        return False


def elsewhere(folder, **options):
    """A process that holds the lock of ``folder`` until its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, **options)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    said = rf"is being written to by process {os.getpid()} on \S+ since 20\S+ \S+; wait until"
    with lock.held(tmp_path), pytest.raises(FedkdError, match=said), lock.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    assert is_free(tmp_path)


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with lock.held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / lock.LOCK).is_file()
    assert list(tmp_path.iterdir()) == []
    with lock.held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    with elsewhere(tmp_path) as process:
        with pytest.raises(FedkdError, match=f"process {process.pid} on"), lock.held(tmp_path):
            pass
        process.kill()
        process.wait()
        assert is_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_the_lock_is_one_line_and_not_written_to(tmp_path):
    (tmp_path / "other").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "other")
    with pytest.raises(FedkdError, match=r"\.lock is a link"), lock.held(tmp_path / "run"):
        pass
    assert (tmp_path / "other").read_text() == "mine"


def test_a_forked_process_keeps_no_lock_and_releases_none(tmp_path):
    ours, theirs = os.pipe()
    with lock.held(tmp_path):
        child = os.fork()
        if not child:
            try:
                os.close(theirs)
                os.read(ours, 1)  # lives until this test has closed its end
            finally:
                os._exit(0)
        assert not is_free(tmp_path)
    assert is_free(tmp_path)
    os.close(theirs)
    os.waitpid(child, 0)
    os.close(ours)
    held = lock.held(tmp_path)
    with held:
        child = os.fork()
        if not child:
            try:
                held.__exit__(None, None, None)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert not is_free(tmp_path)


def test_a_started_process_inherits_no_lock(tmp_path):
    code = "import sys; sys.stdin.read()"
    with lock.held(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, close_fds=False
        )
    assert is_free(tmp_path)
    child.communicate()


@pytest.fixture
def _no_locks(monkeypatch):
    """A file system without locks."""

    def flock(handle, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


@pytest.mark.usefixtures("_no_locks")
def test_where_there_are_no_locks_the_name_of_the_process_is_one(tmp_path):
    said = rf"written to by process {os.getpid()} .* delete {re.escape(str(tmp_path / lock.OWNER))}"
    held = lock.held(tmp_path)
    with pytest.warns(FedkdWarning, match="has no locks"):
        held.__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [lock.OWNER]
    with pytest.raises(FedkdError, match=said), lock.held(tmp_path):
        pass
    held.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_locks")
@pytest.mark.filterwarnings("ignore::fedkd.errors.FedkdWarning")
@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"pid": 2**22 + 1}, True),
        ({"begun": "1"}, True),  # another process has had the number
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "pid": 2**22 + 1}, False),
        (None, False),
    ],
)
def test_without_locks_a_process_that_has_ended_here_is_passed_over(tmp_path, changes, free):
    holder = "" if changes is None else json.dumps(lock._self() | changes)
    (tmp_path / lock.OWNER).write_text(holder)
    assert is_free(tmp_path) == free
    assert (tmp_path / lock.OWNER).exists() != free


# --- of a run -----------------------------------------------------------------------------------


class WhileRunning(Observer):
    """Does something when the run has begun."""

    def __init__(self, act):
        self.act = act

    def started(self, run, first_round, rounds, plan):
        self.before = sorted(path.name for path in run.folder.iterdir())
        self.act(run)
        self.after = sorted(path.name for path in run.folder.iterdir())


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--fresh"]])
def test_the_same_command_at_the_same_time_ends_with_a_line(small, tmp_path, capsys, flags):
    from fedkd.simulations import cli

    (tmp_path / "small.toml").write_text(small().to_toml())

    def again(run):
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", "small.toml", "--out", "two", *flags])
        assert ended.value.code == 2

    watching = WhileRunning(again)
    done = run(small(), tmp_path / "two", observer=watching)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"fedkd: two is being written to by process {os.getpid()} on ")
    assert watching.before == watching.after
    assert len(done.rounds) == 2
    assert not (tmp_path / "two" / lock.LOCK).exists()


def test_a_run_is_read_while_it_is_written(small, tmp_path):
    def read(run):
        run.check()
        assert not run.rounds
        assert run.partition["clients"]

    run(small(), tmp_path / "run", observer=WhileRunning(read))


def test_a_run_that_could_not_begin_leaves_no_folder(small, tmp_path):
    with pytest.raises(FedkdError, match=r"data\.clients"):
        run(small("data.clients=5000"), tmp_path / "a" / "run")
    assert not (tmp_path / "a").exists()
