"""Run a Flower app on a private, throw-away instance of Flower's simulation runtime."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import IO

from fedkd.engine.temporary import TemporaryFolder

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def _toml(value: str | int | float | bool) -> str:
    if isinstance(value, float):
        return repr(value)  # TOML has inf and nan in this form
    # TOML knows no surrogate escapes, hence raw characters; but it wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _environment(home: str) -> dict[str, str]:
    env = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", **os.environ}
    env["FLWR_HOME"] = env["RAY_TMPDIR"] = home
    env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = env["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    env["PYTHONUNBUFFERED"] = "1"  # else `flwr run` holds its log back when writing to a pipe
    env["COLUMNS"] = "1000"  # else it breaks error messages into lines
    # Flower's processes start each other by name, also where no environment is activated.
    scripts = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    env["PATH"] = os.pathsep.join([*scripts, env.get("PATH", os.defpath)])
    env["NO_PROXY"] = env["no_proxy"] = f"127.0.0.1,{env.get('no_proxy', env.get('NO_PROXY', ''))}"
    env.pop("RAY_ADDRESS", None)  # Ray would join that cluster rather than start its own
    return env


def _spawn(
    command: str, env: dict[str, str], processes: list[Popen[str]], out: IO[str] | int = PIPE
) -> Popen[str]:
    # Off the terminal's process group: Ctrl-C then reaches this process alone, which ends the
    # others. In an empty folder: Ray's actors import from their working directory first.
    process = Popen(
        shlex.split(command), env=env, cwd=Path(env["FLWR_HOME"], "cwd"), stdin=PIPE, stdout=out,
        stderr=STDOUT, process_group=processes[0].pid if processes else 0, encoding="utf-8",
        errors="replace",
    )  # fmt: skip
    processes.append(process)
    return process


def _listens(port: int) -> bool:
    with socket.socket() as probe:  # which may chance upon the very port, and meet itself
        return probe.connect_ex(("127.0.0.1", port)) == 0 and probe.getsockname()[1] != port


def _end(processes: list[Popen[str]]) -> None:
    # SIGKILL: nothing here needs saving, and Flower's own way down takes seconds. Where nothing
    # reaps orphans, as in some containers, they stay in the group as zombies: hence the limit.
    deadline = time.monotonic() + 0.5
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(processes[0].pid, signal.SIGKILL)
            for process in processes:
                process.poll()
            time.sleep(0.02)
    for process in processes:
        process.__exit__(None, None, None)  # closes the pipes


def _failure(text: str) -> RuntimeError:
    return RuntimeError(" ".join(_ANSI.sub("", text).split())[:600])


def run_app(
    app_dir: Path,
    run_config: dict[str, str | int | float | bool],
    nodes: int,
    workers: int,
    gpus_per_worker: float = 0.0,
    stream: Callable[[str], None] | None = None,
) -> None:
    """Run a Flower app to its end with ``flwr run``, and leave nothing behind.

    Parameters
    ----------
    app_dir : Path
        Folder with the app's ``pyproject.toml``.
    run_config : dict
        Values for keys that the app's ``[tool.flwr.app.config]`` declares.
    nodes : int
        Number of simulated SuperNodes.
    workers : int
        Clients at work at the same time, each in a process of its own.
    gpus_per_worker : float, default 0.0
        Share of a GPU that a client takes while it works.
    stream : callable, optional
        Gets every line of the run's log as it appears, without line end and colours.

    Raises
    ------
    RuntimeError
        If the run could not start or did not complete; the message is one line.
    """
    # Ray's CPUs are mere counters here: one a worker. Ray starts an actor for every one, so more
    # of them than nodes would only cost memory.
    federation = f"num-supernodes={nodes} init-args-num-cpus={min(nodes, workers)}"
    federation += f" client-resources-num-cpus=1 client-resources-num-gpus={gpus_per_worker}"
    lines: list[str] = []
    with TemporaryFolder("fl") as temporary:  # where Ray keeps its sockets
        home, env = temporary.path, _environment(str(temporary.path))
        (home / "cwd").mkdir()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        text = f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (home / "config.toml").write_text(text, encoding="utf-8")
        text = "".join(f"{json.dumps(key)} = {_toml(v)}\n" for key, v in run_config.items())
        (home / "run.toml").write_text(text, encoding="utf-8")
        processes: list[Popen[str]] = []
        try:
            # All processes, Ray's too, stay in the group of this one, which ends them when its
            # pipe closes: in whatever way this process ends. (A SuperLink left to itself would
            # detach a SuperExec that nobody finds again.)
            _spawn("sh -c 'cat; kill -9 0'", env, processes)
            with (log := home / "log").open("w") as out:
                command = f"flower-superlink --insecure --host 127.0.0.1 --port {port}"
                superlink = _spawn(
                    f"{command} --simulation --isolation process", env, processes, out
                )
                while not _listens(port):
                    if superlink.poll() is not None:
                        raise _failure(f"no SuperLink: {log.read_text()[-500:]}")
                    time.sleep(0.05)
                command = f"flower-superexec --insecure --runtime-api-address 127.0.0.1:{port}"
                _spawn(command, env, processes, out)
            command = f"flwr run {shlex.quote(str(app_dir.resolve()))} here --stream --run-config"
            command += f" {home / 'run.toml'} --federation-config '{federation}'"
            run = _spawn(command, env, processes)
            for line in run.stdout or ():
                lines.append(_ANSI.sub("", line.rstrip()))
                if stream:
                    stream(lines[-1])
            if run.wait():
                box = [line.strip("│ ") for line in lines if line.startswith("│")]
                raise _failure(f"flwr run failed: {' '.join(box or lines[-1:])}")
            # The exit code of `flwr run` says nothing about how the run itself went.
            answer = _spawn("flwr list here --format json", env, processes).communicate()[0]
            if processes[-1].returncode or not (runs := json.loads(answer).get("runs")):
                raise _failure(f"flwr list failed: {answer}")
            if runs[0]["status"] != "finished:completed":
                reason = runs[0]["status-details"].split("failed with exception: ", 1)[-1]
                if "Ending simulation" in reason:  # Ray or its actors could not start
                    causes = (line.split("!! ")[1] for line in lines if "exception occur" in line)
                    reason = next(causes, reason)
                raise _failure(reason)
        finally:
            _end(processes)
