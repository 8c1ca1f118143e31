"""What the README and the docs say is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedkd import Run, registry
from fedkd.experiment import Experiment
from fedkd.simulations.methods_page import departures, page
from fedkd.simulations.reference import reference
from fedkd.simulations.shipped import shipped

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_strategy_of_the_readme_runs_as_it_stands(tmp_path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    (folder,) = (tmp_path / "runs").iterdir()
    summary = Run.open(folder).summary
    assert summary["rounds"] == 2
    assert str(summary["own_accuracy_mean"]) in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_runs_in_a_project_that_has_folders_of_these_names(tmp_path):
    """``strategies/``, ``simulations/`` and ``plots/`` of one's own are not taken for fedkd's."""
    for name in ("strategies", "simulations", "plots"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('{name} of the project')")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "study.py").write_text(code)
    ended = subprocess.run(
        [sys.executable, "study.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_the_table_of_methods_is_whole():
    cells = re.findall(r"^\| (`[^|]+`) \|", README, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)]
    assert sorted(named) == registry.names("strategies")


@pytest.mark.parametrize("link", re.findall(r"\]\((docs/[^)]+)\)", README))
def test_every_link_leads_somewhere(link):
    assert (ROOT / link).is_file()


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_experiment_is_valid_and_says_what_it_is(name):
    file = shipped()[name]
    assert file.read_text().startswith("# ")
    assert Experiment.from_toml(file.read_text()).name == file.stem


def test_the_reference_of_keys_is_that_of_the_code():
    assert (ROOT / "docs" / "experiment.md").read_text() == reference()


def test_the_page_of_methods_is_that_of_the_code():
    assert (ROOT / "docs" / "methods.md").read_text() == page()


@pytest.mark.parametrize("name", registry.names("strategies"))
def test_every_method_says_where_it_departs_from_its_paper(name):
    """A paragraph of its module's or class's docstring that begins with "Departures:"."""
    assert departures(registry.load("strategies", name))
