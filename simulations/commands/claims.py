"""``fedkd claims``: what runs say of the claims of the methods' papers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedkd.errors import FedkdError
from fedkd.interrupt import exit_code
from fedkd.simulations.commands.options import DataDir, Jobs, OfScale, examples, path_of

EXAMPLES = examples(
    "fedkd claims  [dim]all of them, on data that is there; some run for minutes[/dim]",
    "fedkd claims knfu  [dim]those of one method[/dim]",
    "fedkd claims swing-leak --no-run --format markdown",
    "fedkd claims --scale full --jobs 8 --data-dir DATA",
)


def claims(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None,
    scale: OfScale = "quick",
    jobs: Jobs = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="FOLDER", help="Holds the suites' folders; runs when not given."
        ),
    ] = None,
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Judge by the runs that have finished.")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="text|markdown", help="How to print it.")
    ] = "text",
) -> None:
    """Answer claims of the methods' papers: run what is missing, judge by rules fixed before.

    NAME... are claims of [bold]fedkd list claims[/bold], methods, or TOML files; all when not
    given. The exit code is 0 whatever the verdicts are, and 1 if a run failed.
    """
    from fedkd.simulations import answers
    from fedkd.simulations.claim import chosen

    if form not in ("text", "markdown"):
        raise FedkdError(f"--format {form!r} is not allowed: text, markdown")
    wanted = chosen(names or ())
    suites = answers.suites_of(wanted, scale, data_dir, out)
    well = True
    if not no_run:
        try:
            well = answers.run_missing(suites, jobs)
        except KeyboardInterrupt as error:
            line = "interrupted; the same command goes on with what is missing"
            print(f"fedkd: {line}", file=sys.stderr)
            raise typer.Exit(exit_code(error)) from None
    found = answers.answers(wanted, suites)
    if form == "markdown":
        print(answers.markdown(found))
    else:
        answers.show(found)
    if not well:
        raise typer.Exit(1)
