"""What several commands take: options, arguments, and the examples under their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd import registry
from fedkd.experiment import Experiment
from fedkd.options import MOST_PROCESSES


def examples(*lines: str) -> str:
    """Make an epilog of example commands, a line each."""
    return "\n\n".join(["[bold]Examples[/bold]", *lines])


def path_of(text: str) -> Path:
    """A path on the command line: an empty one would be the current folder."""
    if not text:
        raise typer.BadParameter("'' is not a path")
    return Path(text)


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the experiment; repeatable."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        parser=path_of,
        metavar="FOLDER",
        help="Where data sets lie: data.data_dir, else FEDKD_DATA.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_PROCESSES, help="Runs at a time; as cores allow when not given."),
]
OfScale = Annotated[str, typer.Option(metavar="quick|full", help="Which of the suite's sizes.")]
Out = Annotated[
    Path | None,
    typer.Option(
        parser=path_of, metavar="FOLDER", help="The suite's folder; runs/NAME-SCALE when not given."
    ),
]


def check_names(experiment: Experiment) -> None:
    """Refuse unknown names before anything slow is imported."""
    wanted = [("strategies", experiment.strategy.name), ("datasets", experiment.data.dataset)]
    wanted += [("students", name) for name in experiment.student.models]
    for group, name in wanted:
        if ":" not in name and name not in registry.names(group):
            registry.load(group, name)  # says what is known
