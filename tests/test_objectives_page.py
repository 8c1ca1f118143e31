"""docs/objectives.md, and the objective of one's own that it has."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import needy
import pytest

from fedkd import Run, registry
from fedkd.distillation.objectives import NEEDS, made

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "objectives.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
TOML = [tomllib.loads(block) for block in BLOCKS]
POINTS = TOML[-1]["project"]["entry-points"]["fedkd.objectives"]
COMMANDS = [
    shlex.split(line) for line in re.findall(r"^fedkd (run .*)$", PAGE.split("## One")[1], re.M)
]
BRIEF = ["rounds=1", "data.clients=3", "data.samples_per_client=60", "training.local_epochs=1"]


def brief(command, folder, *more):
    """A command of the page on little data, with the folder of its run."""
    changes = [word for each in BRIEF for word in ("--set", each)]
    return [*command, *changes, "--out", str(folder), *more]


def test_each_choice_is_allowed():
    chosen = [table["strategy"]["objective"] for table in TOML if "strategy" in table]
    assert chosen
    for each in chosen:
        made(each)


def test_each_need_is_told():
    table = PAGE.split("## Needs")[1].split("## Settings")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.M) == [*NEEDS]


def test_each_objective_has_a_line():
    table = PAGE.split("## Which one, where")[1].split("## One of your own")[0]
    first = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert sorted(re.findall(r"`(\w+)`", first)) == registry.shipped("objectives")


def test_ones_own_takes_fewer_than_15_lines():
    assert len([line for line in CODE.splitlines() if line.strip()]) < 15


def test_the_page_that_tells_how_to_extend_leads_here():
    assert "(objectives.md" in (ROOT / "docs" / "extend.md").read_text()


def test_ones_own_is_found_by_commands_and_worker_processes(tmp_path, fedkd, monkeypatch):
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "focal.py").write_text(CODE)
    with needy.installed(folder, POINTS):
        listed = fedkd("list", "objectives")[1]
        assert re.search(r"^focal +KL, and the .* \(needs labels; gamma = 2.0\)$", listed, re.M)
        lines = []
        for number, engine in [(0, "inline"), (1, "inline"), (1, "procs")]:
            out = tmp_path / f"{number}-{engine}"
            code, _, error = fedkd(*brief(COMMANDS[number], out, "--engine", engine, "-q"))
            assert code == 0, error
            lines.append(measured_of(out))
        assert lines[1] == lines[2]
        wrong = brief(COMMANDS[1], tmp_path / "wrong", "--set", "strategy.objective.gamma=-1")
        code, _, error = fedkd(*wrong)
    assert code
    assert "strategy.objective.gamma = -1 is not allowed" in error
    sys.modules.pop("focal")


def measured_of(folder):
    rounds = Run.open(folder).rounds
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in rounds]


@pytest.mark.slow
def test_ones_own_is_installed_as_the_page_says(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "focal.py").write_text(CODE)
    (source / "pyproject.toml").write_text(BLOCKS[-1])
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", target, source], check=True)
    paths = [str(target), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    program = [sys.executable, "-c", "from fedkd.simulations.cli import main; main()"]
    for number, command in enumerate(COMMANDS):
        words = brief(command, tmp_path / str(number), "--engine", "procs")
        ended = subprocess.run(
            [*program, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert Run.open(tmp_path / str(number)).summary["rounds"] == 1
