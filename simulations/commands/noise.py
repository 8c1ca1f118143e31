"""``fedkd noise``: how much noise would give a run another epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd.errors import FedkdError, shown
from fedkd.results import Run
from fedkd.simulations.commands.options import examples, path_of

EXAMPLES = examples(
    "fedkd noise runs/quickstart --epsilon 8",
    "fedkd noise runs/mine --epsilon 0.5,1,2,4,8",
)


def noise(
    run: Annotated[Path, typer.Argument(parser=path_of, metavar="RUN", show_default=False)],
    epsilon: Annotated[
        str, typer.Option(metavar="E[,E]", help="What is to be guaranteed.", show_default=False)
    ],
) -> None:
    """Say how much noise would give a finished run another epsilon, all else as it is.

    By the ledger of folder RUN, without running anything again: DP-SGD, Gaussian noise and votes,
    averages with clipping.
    """
    from fedkd.simulations.noise import main as told

    try:
        wanted = [float(part) for part in epsilon.split(",")]
    except ValueError as error:
        raise FedkdError(
            f"--epsilon {shown(epsilon)} is not allowed: numbers, as in 0.5,1,2"
        ) from error
    told(Run.open(run), wanted)
