"""``fedkd suite``: a grid of experiments."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fedkd.interrupt import exit_code
from fedkd.simulations.commands.options import DataDir, Jobs, OfScale, Out, Overrides, examples
from fedkd.simulations.screen import make_console

EXAMPLES = examples(
    "fedkd suite knfu-heterogeneity --dry-run",
    "fedkd suite knfu-heterogeneity --only data=digits --only method=knfu,local",
    "fedkd suite mine.toml --scale full --jobs 8 --data-dir DATA",
)


def suite(
    name: Annotated[str, typer.Argument(metavar="SUITE", show_default=False)],
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=LABEL[,LABEL]", help="Run these cells alone; repeatable."),
    ] = None,
    scale: OfScale = "quick",
    jobs: Jobs = None,
    out: Out = None,
    data_dir: DataDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and what is there already.")
    ] = False,
) -> None:
    """Run a grid of experiments; the last line of the output is its folder.

    SUITE is a TOML file, a name of [bold]fedkd list suites[/bold], or a suite's folder. Finished
    runs are not repeated: after an interruption the same command goes on. A run that fails does not
    stop the others; the exit code is then 1.
    """
    from fedkd.simulations.cells import chosen
    from fedkd.simulations.suite import check, read, run_suite
    from fedkd.simulations.suite_screen import SuiteScreen, state, told

    opened = read(name, scale, overrides=overrides or (), data_dir=data_dir, out=out)
    if dry_run:
        cells = chosen(opened, only or ())
        check(opened, cells)
        for cell in cells:
            print(f"{state(cell):8}{cell.title}  {cell.folder}")
        states = [state(cell) for cell in cells]
        counts = ", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(states))
        print(f"{len(cells)} cells: {counts}")
        return
    try:
        with SuiteScreen(make_console(stderr=True)) as screen:
            outcome = run_suite(opened, jobs, only or (), screen)
    except KeyboardInterrupt as error:
        print("fedkd: interrupted; the same command goes on with what is missing", file=sys.stderr)
        raise typer.Exit(exit_code(error)) from None
    for line in told(outcome):
        print(line, file=sys.stderr)
    print(opened.folder, flush=True)
    if outcome.failed:
        raise typer.Exit(1)
