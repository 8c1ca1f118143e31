"""``fedkd compare``: finished runs side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from fedkd.errors import FedkdError
from fedkd.results import Run, readable
from fedkd.simulations.commands.options import examples, path_of

EXAMPLES = examples(
    "fedkd compare runs/*",
    "fedkd compare runs/knfu-* runs/local-*",
    "fedkd compare runs/* --target 60  [dim]and what it took to reach 60 %[/dim]",
)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(parser=path_of, metavar="RUN...", show_default=False)
    ],
    target: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT", min=1, max=100, help="Own accuracy to count rounds and bytes up to."
        ),
    ] = None,
) -> None:
    """Put finished runs side by side, as a Markdown table.

    RUN... are folders; those that differ only in their seed are one row, mean ± standard deviation.
    """
    from fedkd.simulations.compare import table

    if target is not None and math.isnan(target):
        raise FedkdError("--target nan is not allowed: a share of 1 to 100 %")
    print(table(readable([Run(folder) for folder in runs], named=True), target))
