"""The command line: gathers the commands, and says in a line what ends one of them early.

Each command is a file of ``fedkd.simulations.commands``. torch, matplotlib and the like are
imported inside the function that needs them, so that help and wrong input answer at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from fedkd.errors import FedkdWarning
from fedkd.escaping import plain
from fedkd.interrupt import interruptible
from fedkd.simulations.commands import (
    audit,
    canary,
    claims,
    compare,
    noise,
    plot,
    report,
    run,
    suite,
    table,
    tune,
)
from fedkd.simulations.commands import list as listing
from fedkd.simulations.commands.options import examples
from fedkd.simulations.failures import DEBUG, ended

COMPLETION = "_FEDKD_COMPLETE"
"""Environment variable by which a shell asks for completions."""

app = typer.Typer(
    help="Federated knowledge distillation, simulated.",
    epilog=examples(
        "fedkd run quickstart  [dim]a first run, no download[/dim]",
        "fedkd list strategies",
        "fedkd plot curves runs/*  [dim]all runs in one figure[/dim]",
    ),
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog=run.EXAMPLES)(run.run)
app.command("list", epilog=listing.EXAMPLES)(listing.list_)
app.command(epilog=tune.EXAMPLES)(tune.tune)
app.command(epilog=suite.EXAMPLES)(suite.suite)
app.command(epilog=table.EXAMPLES, cls=table.TableCommand)(table.table)
app.command(epilog=claims.EXAMPLES)(claims.claims)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=report.EXAMPLES)(report.report)
app.command(epilog=canary.EXAMPLES)(canary.canary)
app.command(epilog=audit.EXAMPLES)(audit.audit)
app.command(epilog=noise.EXAMPLES)(noise.noise)
app.add_typer(plot.plot, name="plot")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; what ends it early is one line on stderr and an exit code.

    2 for what a person can mend, 130 after Ctrl-C, 1 for what nobody expected or for runs that
    failed among others.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know "±"
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if COMPLETION in os.environ:
        app(words, prog_name="fedkd")
    try:
        with (
            interruptible(),
            _warnings_in_lines(),
            get_command(app).make_context("fedkd", words) as context,
        ):
            context.command.invoke(context)
        sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(ended(error))
    sys.exit(0)


@contextmanager
def _warnings_in_lines() -> Iterator[None]:
    """Print what fedkd warns of as one line, each once."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, FedkdWarning):
            line = plain(" ".join(str(message).split()))
            print("fedkd: warning:", line, file=sys.stderr, flush=True)
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("default", FedkdWarning)
        warnings.showwarning = show
        yield


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print("fedkd", version("fedkd"))
        except PackageNotFoundError:
            print("fedkd (source tree, not installed)")
        raise typer.Exit


def _debug(wanted: bool) -> None:
    if wanted:
        os.environ[DEBUG] = "1"


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            callback=_debug,
            is_eager=True,
            help="Show where an error was raised; FEDKD_DEBUG=1 does the same.",
        ),
    ] = False,
) -> None: ...


if __name__ == "__main__":
    main()
