"""A worker process of the procs engine: begun with two numbers of pipes, ends with its parent."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from fedkd.errors import FedkdError

if TYPE_CHECKING:
    from fedkd.engine.worker import Worker


def main() -> None:
    """Do what comes through the pipe until it closes: ``main()`` of a fresh interpreter."""
    pipe, life, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    connection = Connection(pipe)
    try:
        _serve(connection, folder)
    except FedkdError as error:
        connection.send(("wrong", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def _end_with(life: int) -> None:
    """End this process at once, whatever it is doing, when the other end of ``life`` closes."""
    os.read(life, 1)
    os._exit(0)


def _serve(connection: Connection, folder: str) -> None:
    # Only now: the process that began this one may end it while torch is imported.
    from fedkd.engine.blocks import Block, Window
    from fedkd.engine.pool import restore_states, serve_work
    from fedkd.engine.worker import Worker
    from fedkd.experiment import Experiment

    worker: Worker = Worker(Experiment.from_toml(connection.recv()))
    block, window, once = Block(folder), Window(), Window()

    def answered(done: int) -> None:
        connection.send(("progress", done))

    while True:
        task: tuple[Any, ...] = connection.recv()
        kind, name, frame = task
        if kind == "restore":
            restore_states(worker, frame, once.at(name))
            continue
        found, payload = serve_work(worker, frame, window.at(name), answered)
        payload.write(block.room(payload.size))
        connection.send(("done", block.name, found))
