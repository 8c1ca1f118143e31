"""How a command ends that does not end well: an exit code and one line on stderr."""

from __future__ import annotations

import errno
import os
import select
import sys
import traceback
from contextlib import suppress

import click

from fedkd.errors import FedkdError, shown, summary_of
from fedkd.interrupt import exit_code

DEBUG = "FEDKD_DEBUG"
"""Environment variable that asks for tracebacks, as ``--debug`` does; empty or 0: no."""
WRONG_INPUT, UNEXPECTED = 2, 1
NO_READER = 141
"""Exit code of programs whose output nobody reads any more: 128 + SIGPIPE."""
MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")
"""What torch says in a ``RuntimeError`` where memory is short."""


def ended(error: BaseException) -> int:
    """Tell why a command ended, in a line on stderr, and give its exit code.

    A traceback goes before the line where :data:`DEBUG` asks for it.
    """
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError) and _unread():
        return NO_READER
    code, line = explained(error)
    with suppress(OSError):  # nobody reads stderr
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            traceback.print_exception(error, file=sys.stderr)
        print("fedkd:", _printable(line), file=sys.stderr, flush=True)
    return code


def explained(error: BaseException) -> tuple[int, str]:
    """Exit code and line of what ended a command."""
    if isinstance(error, FedkdError):
        return WRONG_INPUT, str(error)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "fedkd"
        message = error.format_message().partition(" Did you mean")[0]  # click and typer both ask
        return WRONG_INPUT, f"{message.rstrip('.')}; see {command} --help"
    if isinstance(error, KeyboardInterrupt):
        return exit_code(error), "interrupted"
    if isinstance(error, click.Abort):
        return exit_code(error.__cause__), "interrupted"
    if isinstance(error, MemoryError) or _of_memory(error):
        return WRONG_INPUT, f"out of memory: {summary_of(error)}"
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or errno.errorcode.get(error.errno, str(error.errno))
        return WRONG_INPUT, reason + (f": {shown(error.filename)}" if error.filename else "")
    return UNEXPECTED, (
        f"unexpected error: {summary_of(error)}; run again with fedkd --debug … for the traceback, "
        "and report it"
    )


def _of_memory(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY)


def _unread() -> bool:
    """Whether nobody reads stdout any more; what is left to be written is then dropped."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python flushes once more as it ends
    return True


def _printable(line: str) -> str:
    """``line`` as one line without control characters, which could move a terminal's cursor."""
    line = " ".join(line.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
