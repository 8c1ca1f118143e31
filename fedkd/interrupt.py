"""SIGTERM and SIGHUP, by which batch systems and terminals end a process, end it as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """The process was told to end by a signal other than that of Ctrl-C; ``number`` is its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` where such a signal would end the process on the spot.

    What somebody else does about a signal, or that it is ignored (``nohup``), stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    free = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def exit_code(error: BaseException | None) -> int:
    """What a process ends with that was interrupted so: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)
