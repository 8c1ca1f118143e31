"""docs/extend.md, and the package that it is about."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fedkd import Experiment, Run, registry, run

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "docs" / "example"
FILES = sorted(
    file.relative_to(PACKAGE).as_posix()
    for pattern in ("*.toml", "fedkd_example/[!_]*.py")
    for file in PACKAGE.glob(pattern)
)
GROUPS = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]


@pytest.mark.parametrize("name", FILES)
def test_the_page_shows_each_file_of_the_package(name):
    blocks = re.findall(
        r"```(?:python|toml)\n(.*?)```", (ROOT / "docs/extend.md").read_text(), re.S
    )
    assert (PACKAGE / name).read_text() in blocks


def test_the_package_has_one_of_each():
    assert {group.removeprefix("fedkd.") for group in GROUPS} == {*registry.GROUPS}


def test_what_the_package_has_runs_for_two_rounds(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE)
    for group, points in GROUPS.items():
        for name, value in points.items():
            thing = EntryPoint(name, value, group).load()
            registry.register(group.removeprefix("fedkd."), name)(thing)
    done = run(Experiment.from_toml((PACKAGE / "example.toml").read_text()), tmp_path / "run")
    assert done.summary["rounds"] == 2
    assert done.summary["headline"] == "own_assistant_accuracy_mean"
    assert done.warnings == []


@pytest.mark.slow
def test_installed_the_package_is_found_by_commands_and_worker_processes(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(PACKAGE, source)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", target, source], check=True)
    paths = [str(target), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def fedkd(*words):
        command = [sys.executable, "-c", "from fedkd.simulations.cli import main; main()", *words]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    for group, points in GROUPS.items():
        for name in points:
            kind = group.removeprefix("fedkd.")
            assert re.search(rf"^{name} +\S", fedkd("list", kind), re.M)
    lines = []
    for engine in ("inline", "procs"):
        fedkd("run", str(source / "example.toml"), "--engine", engine, "--out", engine)
        done = Run.open(tmp_path / engine)
        assert done.summary["rounds"] == 2
        lines.append(
            [{k: v for k, v in line.items() if "seconds" not in k} for line in done.rounds]
        )
    assert lines[0] == lines[1]
