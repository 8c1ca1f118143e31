"""``fedkd run``: an experiment, from its file to a run's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fedkd.interrupt import exit_code
from fedkd.observers import Observers, TensorBoard
from fedkd.results import CHECKPOINT, Run
from fedkd.run import run as simulate
from fedkd.simulations.commands.options import DataDir, Overrides, check_names, examples, path_of
from fedkd.simulations.screen import Screen, print_summary, progress_bar
from fedkd.simulations.shipped import read_experiment

EXAMPLES = examples(
    "fedkd run quickstart",
    "fedkd run quickstart --set strategy.beta=3 --set data.alpha=0.1 --seed 1",
    "fedkd run mine.toml --out runs/mine",
    "fedkd run mine.toml --out runs/mine --resume  [dim]go on after a kill[/dim]",
    "fedkd run mine.toml --out runs/mine --fresh  [dim]begin anew[/dim]",
    "fedkd run mine.toml --tensorboard runs/tb  [dim]watch: tensorboard --logdir runs/tb[/dim]",
    'folder="$(fedkd run quickstart --quiet)"',
)


def run(
    experiment: Annotated[str, typer.Argument(show_default=False)],
    overrides: Overrides = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where clients' work runs: engine.name.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Key of every random draw: seed.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="FOLDER",
            help="The run's folder; runs/NAME-HASH when not given.",
        ),
    ] = None,
    data_dir: DataDir = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's newest checkpoint.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew, whatever the folder holds of it.")
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="FOLDER",
            help="Also write every round's numbers for TensorBoard.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the run's folder and nothing else.")
    ] = False,
) -> None:
    """Run an experiment; the last line of the output is its folder.

    EXPERIMENT is a TOML file, or a name of [bold]fedkd list experiments[/bold]. A run that has
    finished is shown and not run again; one that has not goes on with --resume, or begins anew with
    --fresh.
    """
    flags = {"engine.name": engine, "seed": seed, "data.data_dir": data_dir and str(data_dir)}
    given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    chosen = read_experiment(experiment, [*(overrides or []), *given])
    check_names(chosen)

    screen = Screen(progress_bar(quiet))
    observer = Observers(screen, TensorBoard(tensorboard)) if tensorboard else screen
    try:
        with screen.bar:
            finished = simulate(chosen, out, resume=resume, fresh=fresh, observer=observer)
    except KeyboardInterrupt as error:
        _interrupted(screen.run, error)
    if not quiet:
        print_summary(finished)
    print(finished.folder, flush=True)


def _interrupted(run: Run | None, error: KeyboardInterrupt) -> NoReturn:
    if run is None:
        print("fedkd: interrupted before the first round", file=sys.stderr)
    else:
        after = run.rounds_done
        on = "; go on with --resume" if (run.folder / CHECKPOINT).is_dir() else ""
        message = f"interrupted after round {after}; the folder is readable{on}"
        print(f"fedkd: {message}", file=sys.stderr, flush=True)
        print(run.folder, flush=True)
    raise typer.Exit(exit_code(error)) from None
