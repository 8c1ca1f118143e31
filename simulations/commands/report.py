"""``fedkd report``: a suite as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd.simulations.commands.options import DataDir, OfScale, examples, path_of

EXAMPLES = examples(
    "fedkd report knfu-heterogeneity",
    "fedkd report runs/knfu-heterogeneity-full --out report.html",
)


def report(
    suite: Annotated[str, typer.Argument(show_default=False)],
    scale: OfScale = "quick",
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="FILE",
            help="The page; report.html in the suite's folder if none.",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Write what there is of a suite as one HTML page: verdicts, tables, figures, how it was made.

    SUITE is a name of [bold]fedkd list suites[/bold], a TOML file, or a suite's folder. Nothing is
    run; the page needs no network.
    """
    from fedkd.simulations.suite import read

    chosen = read(suite, scale, data_dir=data_dir)
    from fedkd.simulations.report import write

    print(write(chosen, out))
