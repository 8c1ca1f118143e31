"""The law that fuzz tests hold: whatever comes in, it works, or one line says what is wrong.

It takes no more than :data:`SECONDS` and :data:`MEMORY`, and nothing is written elsewhere.
"""

import contextlib
import io
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings

from fedkd.errors import FedkdError
from fedkd.simulations import cli

SECONDS = 20  # of computing, as the machine may have other things to do
WAITING = 600
MEMORY = 2 * 2**30
LONGEST_LINE = 2000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"}

_allowed: list[Path] = []
_written: list[str] = []
_hooked: list[bool] = []


def fuzz(law, strategy, examples, known=()):
    """Hold ``law`` for what ``strategy`` draws, the same ``examples`` each time, and ``known``."""
    test = given(strategy)(law)
    for one in known:
        test = example(one)(test)
    with _limits():
        settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )(test)()


def examples(fast, slow):
    """How many: a sample in every run of the tests, about a minute's in the slow ones."""
    return pytest.mark.parametrize(
        "count", [fast, pytest.param(slow, marks=pytest.mark.slow)], ids=["sample", "minute"]
    )


def holds(call, folder):
    """What ``call`` returns, or the line of its :class:`FedkdError`: all that may come of it."""
    with _bounded(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except FedkdError as error:
            _one_line(str(error))
            return str(error)


def ends_well(folder, *words):
    """Run a command: exit code 0, or 2 with one line on stderr; returns the code and stdout."""
    out, err = io.StringIO(), io.StringIO()
    with _bounded(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code or 0
    said = err.getvalue()
    assert code in (0, 2), said
    assert "Traceback" not in said
    assert "out of memory" not in said
    if code == 2:
        lines = [line for line in said.split("\n") if not line.startswith("fedkd: warning: ")]
        assert lines[0].startswith("fedkd: "), said
        assert lines[1:] == [""], said
        _one_line(lines[0])
    return code, out.getvalue()


def _one_line(line):
    assert line.strip()
    assert "\n" not in line
    assert len(line) < LONGEST_LINE, line[:LONGEST_LINE]


@contextlib.contextmanager
def _bounded(folder):
    """Bound the time of what happens inside, and where it writes."""
    if not _hooked:
        sys.addaudithook(_watch)
        _hooked.append(True)
    cache = os.environ.get("FEDKD_CACHE")
    _allowed[:] = [Path(folder).resolve(), *([Path(cache).resolve()] if cache else [])]
    _written.clear()
    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS)}
    clocks[signal.SIGALRM] = (signal.ITIMER_REAL, WAITING)
    before = {number: signal.signal(number, _too_long) for number in clocks}
    for clock, seconds in clocks.values():
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for number, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])
        _allowed.clear()
    assert not _written, f"written elsewhere: {_written}"


class TooLongError(BaseException):
    """Nothing in fedkd may catch this."""


def _too_long(signum, frame):
    raise TooLongError(f"more than {SECONDS} seconds of computing, or {WAITING} of waiting")


def _watch(event, arguments):
    if not _allowed:
        return
    if event == "open":
        path, mode, flags = arguments
        if not (set(mode or "") & set("wax+") or (flags or 0) & WRITES):
            return
    elif event in CHANGES:
        path = arguments[0]
    else:
        return
    if isinstance(path, str | bytes | os.PathLike):
        place = Path(os.path.abspath(os.fsdecode(path)))
        others = place == Path(os.devnull) or "matplotlib" in place.parts  # its own cache
        if not others and not any(map(place.is_relative_to, _allowed)):
            _written.append(f"{event} {place}")


@contextlib.contextmanager
def _limits():
    """Bound the memory that this process may take on top of what it has."""
    held = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData:")
    )
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
