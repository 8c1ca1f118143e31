"""The one error a person can act on, and errors in other people's code told in a line."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from traceback import extract_tb

PACKAGES = ("fedkd", "strategies", "simulations", "plots")
"""fedkd's own packages, side by side in one folder."""
LONGEST = 400
"""Characters of an exception's message that a line repeats."""
LONGEST_LINE = 1_500
LONGEST_VALUE = 120
"""Characters of a value that a line repeats."""


class FedkdError(Exception):
    """Wrong input, said in one line: names the key, the value and what is allowed.

    The command line prints the line and ends with exit code 2, without a traceback. What it repeats
    of files and of other people's messages is brought to one line of a bearable length.
    """

    def __init__(self, line: str) -> None:
        line = " ".join(str(line).splitlines())
        super().__init__(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…")


class MissingData(FedkdError):
    """A data set is not there: what does not need it can go on."""


class CheckpointError(FedkdError):
    """No checkpoint of a run can be read: it can only begin anew."""


class FedkdWarning(UserWarning):
    """Something about what was read, in one line, that a person should know of."""


def nearest(name: str, known: list[str]) -> str:
    """``" (did you mean 'x'?)"`` for the known name closest to ``name``, or an empty string."""
    import difflib

    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def shown(value: object) -> str:
    """``value`` as a line repeats it: cut where it is long, whatever the value."""
    if isinstance(value, bool):
        return str(value).lower()  # as TOML has it
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists in lists
        return f"({type(value).__name__}, too long to be shown)"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def brief(value: object) -> str:
    """``value`` in some words, on one line: arrays by their shape, objects by their class."""
    kind = type(value).__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        library = type(value).__module__.partition(".")[0]
        return f"a {library} {kind} of shape {tuple(value.shape)}, {value.dtype}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value) if isinstance(value, bool) else shown(value)
    if hasattr(value, "__name__"):
        return f"the {kind} {value.__name__}"
    if isinstance(value, list | tuple | set | dict) and not hasattr(value, "_fields"):
        return f"a {kind} of {len(value)}"
    return f"a {kind}"


# --- errors in other people's code: a strategy, a student, a data set, an objective -------------


@contextmanager
def blamed(code: str) -> Iterator[None]:
    """Turn an exception in somebody else's ``code`` into one line with its class and place.

    ``code`` names it as the line's beginning, e.g. ``"data.dataset = 'mine'"``. A
    :class:`FedkdError` goes through as it is: it says already what is wrong.

    Raises
    ------
    FedkdError
        ``<code> failed: ZeroDivisionError: division by zero (mine.py:12)``, with the exception as
        its cause.
    """
    try:
        yield
    except FedkdError:
        raise
    except (Exception, SystemExit) as error:
        raise FedkdError(f"{code} failed: {summary_of(error)}") from error


@contextmanager
def about(thing: str) -> Iterator[None]:
    """Begin the line of a complaint with what it is about."""
    try:
        yield
    except FedkdError as error:
        raise FedkdError(f"{thing}: {error}") from error.__cause__


def summary_of(error: BaseException) -> str:
    """Class, message and place of an exception in one line."""
    message = _message(error)
    if len(message) > LONGEST:
        message = f"{message[:LONGEST]}…"
    name = type(error).__name__
    return f"{name}: {message} ({place_of(error)})" if message else f"{name} ({place_of(error)})"


def _message(error: BaseException) -> str:
    """What an exception says, in one line of characters that can be shown anywhere."""
    try:
        # The rest of what a SyntaxError says repeats the place.
        message = str(error.msg if isinstance(error, SyntaxError) else error)
    except (Exception, SystemExit):
        return "its message cannot be shown"
    return " ".join("".join(c if c.isprintable() else " " for c in message).split())


def place_of(error: BaseException) -> str:
    """Where in its author's code an exception was raised, as ``mine.py:12``.

    It is the innermost line outside of fedkd, of Python's standard library and of installed
    packages, other than packages that add something to fedkd by an entry point. Where there is no
    such line it is the innermost of fedkd, or else of all.
    """
    frames = [(frame.filename, frame.lineno or 0) for frame in extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    if not frames:
        return "place unknown"
    authored = [frame for frame in frames if _authored(frame[0])]
    own = [frame for frame in frames if _own(frame[0])]
    file, line = (authored or own or frames)[-1]
    path = Path(file)
    name = f"{path.parent.name}/{path.name}" if path.name == "__init__.py" else path.name
    return f"{name}:{line}"


def _authored(file: str) -> bool:
    """Whether a file belongs neither to fedkd nor to Python nor to a library."""
    if file.startswith("<frozen") or _own(file):
        return False
    path = Path(file)
    for folder in ("site-packages", "dist-packages"):
        if folder in path.parts:
            inside = path.parts[path.parts.index(folder) + 1 :]
            return Path(inside[0]).stem in _extensions()
    return not any(path.is_relative_to(folder) for folder in _standard_library())


def _own(file: str) -> bool:
    """Whether a file belongs to fedkd."""
    here = Path(__file__).parent.parent
    return any(Path(file).is_relative_to(here / package) for package in PACKAGES)


@cache
def _standard_library() -> tuple[str, ...]:
    return tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})


@cache
def _extensions() -> frozenset[str]:
    """Top-level names of installed packages that add something to fedkd."""
    from importlib.metadata import entry_points

    points = entry_points()
    groups = [group for group in points.groups if group.startswith("fedkd.")]
    modules = {point.module for group in groups for point in points.select(group=group)}
    return frozenset(module.partition(".")[0] for module in modules) - {*PACKAGES}
