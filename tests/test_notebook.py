"""The code of docs/notebook.md runs as it stands, in a script and inside a running event loop."""

import asyncio
import re
from pathlib import Path

import pytest

from fedkd import run

TEXT = (Path(__file__).parent.parent / "docs" / "notebook.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.slow
def test_the_code_of_the_page_runs_as_it_stands(tmp_path, capsys):
    names = {}
    for number, block in enumerate(CODE):
        exec(compile(block, f"notebook.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    frame = names["frame"]
    assert sorted(frame["strategy.name"]) == ["knfu", "knfu", "local", "local"]
    assert f"{frame['own_accuracy_mean'][frame['strategy.name'] == 'local'].mean():.4f}" in said
    assert (tmp_path / "figures" / "curves.png").stat().st_size
    assert re.search(r"^2 0\.\d{3}$", said, re.MULTILINE)


@pytest.mark.parametrize("engine", ["inline", pytest.param("procs", marks=pytest.mark.slow)])
def test_a_run_inside_a_running_event_loop_has_the_same_numbers(small, engine):
    experiment = small(f"engine.name={engine}")

    async def cell():
        return run(experiment, "inside").summary

    inside, outside = asyncio.run(cell()), run(experiment, "outside").summary
    assert inside["own_accuracy_mean"] == outside["own_accuracy_mean"]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)", TEXT))
def test_every_link_of_the_page_leads_somewhere(link):
    assert (Path(__file__).parent.parent / "docs" / link).is_file()
