"""``fedkd table``: a table of a suite's finished runs."""

from __future__ import annotations

from typing import Annotated

import click
import typer

from fedkd.errors import FedkdError
from fedkd.headline import ACCURACY
from fedkd.simulations.commands.options import OfScale, Out, examples


class TableCommand(typer.core.TyperCommand):
    """The command with ``--differences``, whose value may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give ``--differences`` an empty value where none follows."""
        following = [*args[1:], "-"][: len(args)]
        given = [
            f"{word}=" if word == "--differences" and after.startswith("-") else word
            for word, after in zip(args, following, strict=True)
        ]
        return super().parse_args(ctx, given)


EXAMPLES = examples(
    "fedkd table knfu-heterogeneity --where data=digits --columns data.alpha",
    "fedkd table runs/mine --rows method --columns data,data.alpha --format latex",
    "fedkd table fedd2s-baselines --where data=digits --value own_accuracy_worst10",
    "fedkd table knfu-heterogeneity --columns data,data.alpha --differences local",
    "fedkd table objectives --columns setting --differences forward_kl --ranked",
)


def table(
    name: Annotated[str, typer.Argument(metavar="SUITE", show_default=False)],
    rows: Annotated[str, typer.Option(metavar="AXIS[,AXIS]", help="What rows are.")] = "",
    columns: Annotated[str, typer.Option(metavar="AXIS[,AXIS]", help="What columns are.")] = "",
    value: Annotated[
        str,
        typer.Option(
            help="A column of the runs' frame, or 'accuracies', all of them side by side; accuracy "
            "where each method's paper scores it, and at the other stage, if not given.",
            show_default=False,
        ),
    ] = "",
    form: Annotated[
        str, typer.Option("--format", metavar="text|csv|markdown|latex", help="How to print it.")
    ] = "text",
    spread: Annotated[
        str,
        typer.Option(metavar="std|bootstrap", help="Standard deviation, or interval of the mean."),
    ] = "std",
    best: Annotated[
        str, typer.Option(metavar="max|min|none", help="Which is best; by the value if not given.")
    ] = "",
    test: Annotated[
        str, typer.Option(metavar="t|wilcoxon", help="The paired test that finds what is worse.")
    ] = "t",
    differences: Annotated[
        str | None,
        typer.Option(
            metavar="[ROW]",
            help="Differences to the best of the column, or to ROW, with 95 % intervals.",
        ),
    ] = None,
    ranked: Annotated[
        bool,
        typer.Option(
            "--ranked",
            help="Of differences: the best row first, intervals that hold for a column at once.",
        ),
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=LABEL[,LABEL]", help="Take these cells alone; repeatable."),
    ] = None,
    scale: OfScale = "quick",
    out: Out = None,
) -> None:
    """Print a table of a suite's finished runs: mean and spread over seeds, best and worse marked.

    SUITE is what [bold]fedkd suite[/bold] takes, or any folder of runs; axes of such a folder are
    the experiment's keys. What the runs warn of stands under the table.
    """
    allowed = {
        "format": (form, ("text", "csv", "markdown", "latex")),
        "spread": (spread, ("std", "bootstrap")),
        "best": (best or "none", ("max", "min", "none")),
        "test": (test, ("t", "wilcoxon")),
    }
    for flag, (given, known) in allowed.items():
        if given not in known:
            raise FedkdError(f"--{flag} {given!r} is not allowed: {', '.join(known)}")
    from fedkd.simulations import table_formats
    from fedkd.simulations.captions import direction
    from fedkd.simulations.suite_tables import of_suite

    found = of_suite(
        name,
        scale,
        out,
        where or (),
        _axes(rows),
        _axes(columns),
        value,
        spread=spread,  # type: ignore[arg-type]
        best=None if best == "none" else best or direction(value or ACCURACY),  # type: ignore[arg-type]
        test=test,  # type: ignore[arg-type]
        differences=differences or differences is not None,
        ranked=ranked,
    )
    print(getattr(table_formats, form)(found))


def _axes(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
