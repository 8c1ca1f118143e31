"""``fedkd audit``: what a run's releases guarantee, and attacks on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedkd.interrupt import exit_code
from fedkd.results import Run
from fedkd.simulations.commands.options import examples, path_of

MOST_SHADOWS = 10_000


EXAMPLES = examples(
    "fedkd audit runs/quickstart",
    "fedkd audit runs/swing --shadows 0  [dim]the ledger and what it guarantees alone[/dim]",
    "fedkd audit runs/fedgkt --reconstruct",
    "fedkd audit runs/dp-sgd --shadows 0 --gradient-canaries",
)


def audit(
    run: Annotated[Path, typer.Argument(parser=path_of, metavar="RUN", show_default=False)],
    shadows: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_SHADOWS,
            help="Runs that membership inference compares; 0: no attack. If not given 16, or as "
            "many as take about four minutes.",
        ),
    ] = None,
    reconstruct: Annotated[
        bool,
        typer.Option(
            "--reconstruct", help="Reconstruct images too, and draw them beside the originals."
        ),
    ] = False,
    gradient_canaries: Annotated[
        bool,
        typer.Option(
            "--gradient-canaries",
            help="Attack DP-SGD at each noisy step, in the worst case; about a minute at most.",
        ),
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="FOLDER", help="Where data sets lie, if not where they were."
        ),
    ] = None,
) -> None:
    """Say what a finished run's releases guarantee, and attack what its clients sent.

    Attacks run the experiment of folder RUN again: once as it is, and with random halves of every
    client's data, as often as --shadows says. One table has the strongest attack on each thing that
    was sent, in the last round and over all rounds.
    """
    from fedkd.simulations.audit import main as attack

    try:
        attack(Run.open(run), shadows, data_dir, reconstruct, gradient_canaries)
    except KeyboardInterrupt as error:
        print("fedkd: interrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(exit_code(error)) from None
