"""SIGTERM and SIGHUP, by which batch systems and terminals end a process, end it as Ctrl-C does."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Whoever ends a group of processes often tells one of them twice: a batch system and the suite that
# the run belongs to. The second time must not end what the first one made the run write.
SAME_SECONDS = 10.0


class Interrupted(KeyboardInterrupt):
    """The process was told to end by a signal other than that of Ctrl-C; ``number`` is its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` where such a signal would end the process on the spot.

    Of signals within ten seconds after one that counted, Ctrl-C's too, none counts. What somebody
    else does about a signal, or that it is ignored (``nohup``), stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    free = {
        number: handler
        for number in (signal.SIGINT, *SIGNALS)
        if (handler := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }
    last = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SAME_SECONDS:
            return
        last = now
        raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)

    for number in free:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in free.items():
            signal.signal(number, handler)


@contextmanager
def interrupts_held_back() -> Iterator[list[int]]:
    """Let Ctrl-C, and what ends a run as it does, come after the block.

    What is half started could not be ended, and what is half written would be lost. What this
    process does about such signals is afterwards what it was before: Ray would end it on SIGTERM,
    without a checkpoint. Gives the signals that are held back; the block may add to them.
    """
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *SIGNALS)}
    for number in handlers:
        signal.signal(number, lambda number, _: held.append(number))
    try:
        yield held
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in held:
            signal.raise_signal(number)


def exit_code(error: BaseException | None) -> int:
    """What a process ends with that was interrupted so: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)
