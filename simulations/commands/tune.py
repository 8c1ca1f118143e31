"""``fedkd tune``: where cohorts are faster on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from fedkd.options import MOST_PROCESSES
from fedkd.simulations.commands.options import examples

EXAMPLES = examples("fedkd tune", "fedkd tune --device cuda", "fedkd tune --dry-run")


def tune(
    device: Annotated[
        str, typer.Option(help="Where students compute: cpu, cuda, cuda:1 …")
    ] = "cpu",
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_PROCESSES, help="Torch threads, as in engine.threads.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure and print; write nothing.")
    ] = False,
) -> None:
    """Measure where cohorts are faster on this machine, and have engine.cohort = "auto" go by it.

    Takes a minute or two, on a machine with nothing else to do. What is written lies with what is
    remembered (FEDKD_CACHE); runs record it, and another rule changes last digits.
    """
    from fedkd.engine.devices import device as known
    from fedkd.engine.tune import measure, write

    def told(kind: str, what: str, batch: int, alone: float, together: float) -> None:
        print(f"{kind:6} {what:8} {batch:4} {1000 * alone:8.1f} {1000 * together:8.1f}", flush=True)

    known(device)
    print("kind   what    batch  alone ms  cohort ms", flush=True)
    limits = measure(device, threads, told)
    for name, kinds in limits.items():
        for kind, found in kinds.items():
            print(
                f"{name}, {kind}: cohorts up to {found['fit']} to fit, {found['forward']} forward"
            )
    if not dry_run:
        print(write(limits))
