"""A worker process of the procs engine: begun with two numbers of pipes, ends with its parent."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Do what comes through the pipe until it closes: ``main()`` of a fresh interpreter."""
    pipe, life, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    # What ends all processes of a job is for the parent, which then ends this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _serve(Connection(pipe), folder)


def _end_with(life: int) -> None:
    """End this process and those it has begun, at once, when the other end of ``life`` closes."""
    os.read(life, 1)
    os.killpg(os.getpid(), signal.SIGKILL)


def _serve(connection: Connection, folder: str) -> None:
    # Only now: the process that began this one may end it while torch is imported.
    from fedkd.engine.blocks import Block, Window
    from fedkd.engine.pool import Done, Failed, Progress, restore_states, serve_work
    from fedkd.engine.worker import Worker
    from fedkd.errors import blamed
    from fedkd.experiment import Experiment

    try:
        with blamed("its start"):
            worker: Worker = Worker(Experiment.from_toml(connection.recv()))
        block, window, once = Block(folder), Window(), Window()
        connection.send(Progress(0, ()))
        while True:
            task: tuple[Any, ...] = connection.recv()
            kind, name, frame, *care = task
            if kind == "restore":
                restore_states(worker, frame, once.at(name))
                continue
            done, payload = serve_work(worker, frame, window.at(name), care[0], connection.send)
            payload.write(block.room(payload.size))
            connection.send(Done(done, block.name))
    except (Exception, SystemExit) as error:
        with suppress(OSError):  # nobody is there any more to be told
            connection.send(Failed.by(error))
