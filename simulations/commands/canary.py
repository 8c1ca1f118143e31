"""``fedkd canary``: an experiment under many releases."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedkd.errors import FedkdError, shown
from fedkd.experiment import Experiment
from fedkd.interrupt import exit_code
from fedkd.simulations.commands.options import (
    DataDir,
    Jobs,
    Overrides,
    check_names,
    examples,
    path_of,
)
from fedkd.simulations.shipped import read_experiment

EXAMPLES = examples(
    "fedkd canary swing  [dim]on the embedded text, some minutes[/dim]",
    "fedkd canary swing --arms fkd,swing,shuffled --seeds 0,1,2 --jobs 2",
    "fedkd canary swing --set canary.public=prefix --repeats 16 --out runs/p1",
)


def canary(
    experiment: Annotated[str, typer.Argument(show_default=False)],
    overrides: Overrides = None,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Arms to run; all that fit when not given.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="S,T,…", help="Seeds; the experiment's when not given.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Level of repeats in the table; the highest when not given.")
    ] = None,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="FOLDER",
            help="Folder of all runs; runs/canary-NAME-HASH if none.",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run an experiment under many releases and print what each of them leaks.

    EXPERIMENT plants canaries. Its own release is one arm; the others take it apart, or put
    something else in its place. Finished runs are not repeated.
    """
    extra = [f"data.data_dir={json.dumps(str(data_dir))}"] if data_dir else []
    chosen = read_experiment(experiment, [*(overrides or []), *extra])
    check_names(chosen)
    from fedkd.simulations import canary as study

    try:
        arms_named = _listed(arms, "--arms", "fkd,swing")
        study.main(chosen, arms_named, _seeds(seeds, chosen), repeats, jobs, out)
    except KeyboardInterrupt as error:
        print("fedkd: interrupted; the same command goes on with what is missing", file=sys.stderr)
        raise typer.Exit(exit_code(error)) from None


def _listed(text: str | None, option: str, example: str) -> list[str] | None:
    """Parts of a list with commas; None where the option is not given."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise FedkdError(f"{option} {shown(text)} is not allowed: a list, as in {example}")
    return parts


def _seeds(text: str | None, experiment: Experiment) -> list[int]:
    parts = _listed(text, "--seeds", "0,1,2") or [str(experiment.seed)]
    try:
        seeds = [int(part) for part in parts]
    except ValueError as error:
        raise FedkdError(f"--seeds {shown(text)} is not allowed: numbers, as in 0,1,2") from error
    return list(dict.fromkeys(seeds))
