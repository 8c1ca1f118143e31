"""The command line: ``fedkd run``, ``list``, ``compare``, ``canary``, ``audit``, ``plot``.

torch, matplotlib and the like are imported inside the function that needs them, so that help and
wrong input answer at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer
from typer.main import get_command

from fedkd import registry
from fedkd.caveats import LEFT_OUT, caveats
from fedkd.errors import FedkdError, FedkdWarning, nearest, shown
from fedkd.escaping import plain
from fedkd.experiment import MOST_PROCESSES, Experiment
from fedkd.interrupt import exit_code, interruptible
from fedkd.observers import Observer, Observers, TensorBoard
from fedkd.results import CHECKPOINT, PLACES, Run, readable
from fedkd.results import exposure as exposure_at
from fedkd.run import run as simulate
from simulations.failures import DEBUG, ended
from simulations.shipped import read_experiment, shipped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

KINDS = (
    *("strategies", "datasets", "students", "partitions", "objectives", "experiments"),
    *("suites", "claims"),
)
LOG_LINES = 20  # of progress in a log, whatever the number of rounds
PHASES = ("learn", "receive")  # of a round, in this order
LEFT_OUT_SHOWN = 5
COMPLETION = "_FEDKD_COMPLETE"
"""Environment variable by which a shell asks for completions."""
MOST_SHADOWS = 10_000


def examples(*lines: str) -> str:
    """Make an epilog of example commands, a line each."""
    return "\n\n".join(["[bold]Examples[/bold]", *lines])


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
plot = typer.Typer(
    help="Draw a figure from runs, as PNG and PDF. RUN is the folder of a run, finished or going "
    "on, or one that holds finished runs, as that of a suite.",
    epilog=examples("fedkd plot curves runs/*", "fedkd plot partition runs/quickstart-0a1b2c3d"),
)
app.add_typer(plot, name="plot")


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


# --- options of several commands ----------------------------------------------------------------


def _path(text: str) -> Path:
    """A path on the command line: an empty one would be the current folder."""
    if not text:
        raise typer.BadParameter("'' is not a path")
    return Path(text)


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the experiment; repeatable."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        parser=_path, metavar="FOLDER", help="Where data sets lie: data.data_dir, else FEDKD_DATA."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_PROCESSES, help="Runs at a time; as cores allow when not given."),
]
OfScale = Annotated[str, typer.Option(metavar="quick|full", help="Which of the suite's sizes.")]


# --- fedkd run ----------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "fedkd run quickstart",
        "fedkd run quickstart --set strategy.beta=3 --set data.alpha=0.1 --seed 1",
        "fedkd run mine.toml --out runs/mine",
        "fedkd run mine.toml --out runs/mine --resume  [dim]go on after a kill[/dim]",
        "fedkd run mine.toml --out runs/mine --fresh  [dim]begin anew[/dim]",
        "fedkd run mine.toml --tensorboard runs/tb  [dim]watch: tensorboard --logdir runs/tb[/dim]",
        'folder="$(fedkd run quickstart --quiet)"',
    )
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
            parser=_path, metavar="FOLDER", help="The run's folder; runs/NAME-HASH when not given."
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
            parser=_path, metavar="FOLDER", help="Also write every round's numbers for TensorBoard."
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
    _check_names(chosen)

    screen = Screen(_bar(quiet))
    observer = Observers(screen, TensorBoard(tensorboard)) if tensorboard else screen
    try:
        with screen.bar:
            finished = simulate(chosen, out, resume=resume, fresh=fresh, observer=observer)
    except KeyboardInterrupt as error:
        _interrupted(screen.run, error)
    if not quiet:
        _report(finished)
    print(finished.folder, flush=True)


def _check_names(experiment: Experiment) -> None:
    """Refuse unknown names before anything slow is imported."""
    wanted = [("strategies", experiment.strategy.name), ("datasets", experiment.data.dataset)]
    wanted += [("students", name) for name in experiment.student.models]
    for group, name in wanted:
        if ":" not in name and name not in registry.names(group):
            registry.load(group, name)  # says what is known


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


# --- while it runs ------------------------------------------------------------------------------


def _console(stderr: bool, quiet: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, quiet=quiet, markup=False, highlight=False, emoji=False)


def _bar(quiet: bool) -> Progress:
    """Make a progress bar for a terminal; elsewhere it shows nothing, as logs get lines."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def text(field: str) -> TextColumn:
        column = Column(no_wrap=True, overflow="ellipsis")
        return TextColumn(f"{{task.{field}}}", markup=False, table_column=column)

    console = _console(stderr=True, quiet=quiet)
    middle: list[ProgressColumn] = [BarColumn(None)] if console.width >= 90 else []
    bar = Progress(
        text("description"),
        *middle,
        text("fields[accuracy]"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        disable=quiet or not sys.stderr.isatty() or console.is_dumb_terminal,
        expand=bool(middle),
        refresh_per_second=4,
        speed_estimate_period=3600,
    )
    bar.add_task("starting", total=None, accuracy="")
    return bar


class Screen(Observer):
    """What a person sees of a run: a bar on a terminal, some lines in a log."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.run: Run | None = None
        self.first = self.rounds = 1
        self.told: set[Any] = set()

    def _say(self, message: str, style: str = "") -> None:
        self.bar.console.print(plain(message), style=style, soft_wrap=True)

    def started(self, run: Run, first_round: int, rounds: int, plan: str) -> None:
        """Keep the run; show the plan."""
        self.run, self.first, self.rounds = run, first_round, rounds
        again = f", going on from round {first_round}" if first_round > 1 else ""
        self._say(f"{plan}{again}", "dim")
        self._show(first_round, "", 0.0)

    def clients_done(self, round: int, done: int, total: int, phase: str) -> None:
        """Move the bar inside a round."""
        part = PHASES.index(phase) if phase in PHASES else 0
        within = (part + done / max(total, 1)) / len(PHASES)
        self._show(round, f", {phase} {done}/{total}", within)

    def round_done(self, line: dict[str, Any]) -> None:
        """Move the bar to the end of the round, or write a line into the log."""
        round = line["round"]
        accuracy = _accuracies(line)
        self._show(round, "", 1.0, **({"accuracy": accuracy} if accuracy else {}))
        every = -(-self.rounds // LOG_LINES)
        if self.bar.disable and (round % every == 0 or round == self.rounds):
            parts = [f"round {round}/{self.rounds}", accuracy, f"{line.get('seconds', 0):.1f} s"]
            self._say(", ".join(part for part in parts if part))
        for out in line.get("left_out", []):
            self._once(
                ("client", out["client"]),
                f"round {round}: client {out['client']} left out at {out['step']}: {out['reason']}",
            )

    def warned(self, message: str) -> None:
        """Show a warning, the first time."""
        self._once(message, f"warning: {message}")

    def finished_before(self, run: Run) -> None:
        """Say that nothing is run."""
        self._say(f"{run.folder} has finished before: nothing is run; --fresh runs it again", "dim")

    def _once(self, key: Any, message: str) -> None:
        if key not in self.told:
            self.told.add(key)
            self._say(message, "yellow")

    def _show(self, round: int, clients: str, within: float, **fields: str) -> None:
        self.bar.update(
            self.bar.task_ids[0],
            description=f"round {round}/{self.rounds}{clients}",
            completed=round - self.first + within,
            total=self.rounds - self.first + 1,
            **fields,  # type: ignore[arg-type]
        )


def _accuracies(line: dict[str, Any]) -> str:
    """``own 91.2 %, common 60.0 %``, or nothing in a round that was not measured."""
    means = {name: line.get(f"{name}_accuracy_mean") for name in ("own", "common")}
    return ", ".join(f"{name} {_percent(mean)}" for name, mean in means.items() if mean is not None)


# --- at the end ---------------------------------------------------------------------------------


def _report(run: Run) -> None:
    """Print the table at the end, from the run's folder alone."""
    from rich.table import Table

    rounds, summary, console = run.rounds, run.summary or {}, _console(stderr=False)
    last: dict[str, Any] = next((line for line in reversed(rounds) if "local" in line), {})
    table = Table(f"round {last.get('round', 0)}, {run.experiment.strategy.name}")
    perplexity = [name for name in ("own", "common") if f"{name}_perplexity_mean" in last]
    heads = ["own accuracy", *["worst 10 %"] * (not perplexity), "common accuracy"]
    for head in (*heads, *(f"{name} ppl" for name in perplexity)):
        table.add_column(head, justify="right")
    stages = {"after local training": last.get("local", {}), "after fusion": last}
    for title, measured in stages.items():
        if "own_accuracy_mean" in measured or "common_accuracy_mean" in measured:
            std = measured.get("own_accuracy_std", 0.0)
            own = _percent(measured.get("own_accuracy_mean"), f" ± {100 * std:.1f}")
            worst = _percent(measured.get("own_accuracy_worst10"))
            common = _percent(measured.get("common_accuracy_mean"))
            of_text = [_number(measured.get(f"{name}_perplexity_mean")) for name in perplexity]
            table.add_row(title, own, *[worst] * (not perplexity), common, *of_text)
    if table.row_count:
        console.print(table)
    sent = f"{_size(summary.get('bytes_up', 0))} up, {_size(summary.get('bytes_down', 0))} down"
    seconds = summary.get("seconds", sum(line.get("seconds", 0) for line in rounds))
    console.print(f"{len(rounds)} rounds, {seconds:.1f} s, {sent}")
    exposed = {place: exposure_at([run], place) for place in PLACES} if run.canaries else {}
    bits = [f"{place} {found.mean:.1f}" for place, found in exposed.items() if found is not None]
    if bits:
        console.print(f"exposure of secrets, in bits (null 1.4): {', '.join(bits)}", soft_wrap=True)
    out: dict[int, list[str]] = {}
    for line in rounds:
        for entry in line.get("left_out", []):
            out.setdefault(entry["client"], []).append(f"{entry['step']}: {entry['reason']}")
    for client, reasons in sorted(out.items())[:LEFT_OUT_SHOWN]:
        many = f"{len(reasons)} of {len(rounds)} rounds"
        console.print(f"client {client} left out of {many} ({reasons[-1]})", style="yellow")
    if len(out) > LEFT_OUT_SHOWN:
        console.print(f"and {len(out) - LEFT_OUT_SHOWN} more clients left out", style="yellow")
    for caveat in caveats(run, rounds):
        if caveat.kind != LEFT_OUT:
            console.print(plain(caveat), style="yellow", soft_wrap=True)


def _percent(share: float | None, after: str = "") -> str:
    return "-" if share is None else f"{100 * share:.1f}{after} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _size(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.3g} {units[0]}"


# --- fedkd list ---------------------------------------------------------------------------------


@app.command("list", epilog=examples("fedkd list strategies", "fedkd list experiments"))
def list_(
    kind: Annotated[str, typer.Argument(show_default=False)],
) -> None:
    """List what can be named in an experiment, a line each.

    KIND is one of: strategies, datasets, students, partitions, objectives, experiments, suites,
    claims.
    """
    if kind not in KINDS:
        raise FedkdError(
            f"list {kind!r} is not known{nearest(kind, list(KINDS))}; known: {', '.join(KINDS)}"
        )
    described = _described(kind)
    width = max(map(len, described), default=0)
    for name, text in described.items():
        print(f"{name:{width}}  {text}".rstrip())


def _described(kind: str) -> dict[str, str]:
    """Name and one line of everything of a kind."""
    if kind == "experiments":
        return {name: _first_comment(file) for name, file in shipped().items()}
    if kind == "suites":
        from simulations.suite import suites

        return {name: _first_comment(file) for name, file in suites().items()}
    if kind == "claims":
        from simulations.verdicts import claims as known

        return {name: claim.statement for name, claim in known().items()}
    if kind == "partitions":
        from fedkd.data.partitions import PARTITIONS

        documents = {name: (thing.__doc__ or "").strip() for name, thing in PARTITIONS.items()}
        return {name: text.split("\n")[0] for name, text in sorted(documents.items())}
    return registry.described(kind)


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


# --- fedkd tune ---------------------------------------------------------------------------------


@app.command(epilog=examples("fedkd tune", "fedkd tune --device cuda", "fedkd tune --dry-run"))
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


# --- fedkd suite, fedkd table ------------------------------------------------------------------

Out = Annotated[
    Path | None,
    typer.Option(
        parser=_path, metavar="FOLDER", help="The suite's folder; runs/NAME-SCALE when not given."
    ),
]


@app.command(
    epilog=examples(
        "fedkd suite knfu-heterogeneity --dry-run",
        "fedkd suite knfu-heterogeneity --only data=digits --only method=knfu,local",
        "fedkd suite mine.toml --scale full --jobs 8 --data-dir DATA",
    )
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
    from simulations.suite import check, chosen, read, run_suite
    from simulations.watch import Screen as SuiteScreen
    from simulations.watch import state, told

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
        with SuiteScreen(_console(stderr=True)) as screen:
            outcome = run_suite(opened, jobs, only or (), screen)
    except KeyboardInterrupt as error:
        print("fedkd: interrupted; the same command goes on with what is missing", file=sys.stderr)
        raise typer.Exit(exit_code(error)) from None
    for line in told(outcome):
        print(line, file=sys.stderr)
    print(opened.folder, flush=True)
    if outcome.failed:
        raise typer.Exit(1)


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


@app.command(
    epilog=examples(
        "fedkd table knfu-heterogeneity --where data=digits --columns data.alpha",
        "fedkd table runs/mine --rows method --columns data,data.alpha --format latex",
        "fedkd table fedd2s-baselines --where data=digits --value own_accuracy_worst10",
        "fedkd table knfu-heterogeneity --columns data,data.alpha --differences local",
    ),
    cls=TableCommand,
)
def table(
    name: Annotated[str, typer.Argument(metavar="SUITE", show_default=False)],
    rows: Annotated[str, typer.Option(metavar="AXIS[,AXIS]", help="What rows are.")] = "",
    columns: Annotated[str, typer.Option(metavar="AXIS[,AXIS]", help="What columns are.")] = "",
    value: Annotated[str, typer.Option(help="A column of the runs' frame.")] = "own_accuracy_mean",
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
    from simulations import tables

    found = tables.of_suite(
        name,
        scale,
        out,
        where or (),
        _axes(rows),
        _axes(columns),
        value,
        spread=spread,  # type: ignore[arg-type]
        best=None if best == "none" else best or tables.direction(value),  # type: ignore[arg-type]
        test=test,  # type: ignore[arg-type]
        differences=differences or differences is not None,
    )
    print(getattr(tables, form)(found))


def _axes(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


# --- fedkd claims -------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "fedkd claims  [dim]all of them, on data that is there; some run for minutes[/dim]",
        "fedkd claims knfu  [dim]those of one method[/dim]",
        "fedkd claims swing-leak --no-run --format markdown",
        "fedkd claims --scale full --jobs 8 --data-dir DATA",
    )
)
def claims(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None,
    scale: OfScale = "quick",
    jobs: Jobs = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=_path, metavar="FOLDER", help="Holds the suites' folders; runs when not given."
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
    from simulations import answers, verdicts

    if form not in ("text", "markdown"):
        raise FedkdError(f"--format {form!r} is not allowed: text, markdown")
    wanted = verdicts.chosen(names or ())
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


# --- fedkd compare ------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "fedkd compare runs/*",
        "fedkd compare runs/knfu-* runs/local-*",
        "fedkd compare runs/* --target 60  [dim]and what it took to reach 60 %[/dim]",
    )
)
def compare(
    runs: Annotated[list[Path], typer.Argument(parser=_path, metavar="RUN...", show_default=False)],
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
    from simulations.compare import table

    if target is not None and math.isnan(target):
        raise FedkdError("--target nan is not allowed: a share of 1 to 100 %")
    print(table(readable([Run(folder) for folder in runs], named=True), target))


# --- fedkd report -------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "fedkd report knfu-heterogeneity",
        "fedkd report runs/knfu-heterogeneity-full --out report.html",
    )
)
def report(
    suite: Annotated[str, typer.Argument(show_default=False)],
    scale: OfScale = "quick",
    out: Annotated[
        Path | None,
        typer.Option(
            parser=_path,
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
    from simulations.suite import read

    chosen = read(suite, scale, data_dir=data_dir)
    from simulations.report import write

    print(write(chosen, out))


# --- fedkd canary, fedkd audit -----------------------------------------------------------------


@app.command(
    epilog=examples(
        "fedkd canary swing  [dim]on the embedded text, some minutes[/dim]",
        "fedkd canary swing --arms fkd,swing,shuffled --seeds 0,1,2 --jobs 2",
        "fedkd canary swing --set canary.public=prefix --repeats 16 --out runs/p1",
    )
)
def canary(
    experiment: Annotated[str, typer.Argument(show_default=False)],
    overrides: Overrides = None,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Arms to run; all that fit when not given.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="S,T,…", help="Seeds; the experiment's when not given.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Level of repeats in the table; the highest when not given.")
    ] = None,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=_path,
            metavar="FOLDER",
            help="Folder of all runs; runs/canary-NAME-HASH if none.",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run an experiment under many releases and print what each of them leaks.

    EXPERIMENT plants canaries. Its own release is one arm; the others take it apart, or put
    something else in its place. Finished runs are not repeated.
    """
    extra = [f"data.data_dir={json.dumps(str(data_dir))}"] if data_dir else []
    chosen = read_experiment(experiment, [*(overrides or []), *extra])
    _check_names(chosen)
    from simulations import canary as study

    try:
        arms_named = _listed(arms, "--arms", "fkd,swing")
        study.main(chosen, arms_named, _seeds(seeds, chosen), repeats, jobs, out)
    except KeyboardInterrupt as error:
        print("fedkd: interrupted; the same command goes on with what is missing", file=sys.stderr)
        raise typer.Exit(exit_code(error)) from None


def _listed(text: str | None, option: str, example: str) -> list[str] | None:
    """Parts of a list with commas; None where the option is not given."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise FedkdError(f"{option} {shown(text)} is not allowed: a list, as in {example}")
    return parts


def _seeds(text: str | None, experiment: Experiment) -> list[int]:
    parts = _listed(text, "--seeds", "0,1,2") or [str(experiment.seed)]
    try:
        seeds = [int(part) for part in parts]
    except ValueError as error:
        raise FedkdError(f"--seeds {shown(text)} is not allowed: numbers, as in 0,1,2") from error
    return list(dict.fromkeys(seeds))


@app.command(
    epilog=examples(
        "fedkd audit runs/quickstart",
        "fedkd audit runs/swing --shadows 0  [dim]the ledger and what it guarantees alone[/dim]",
        "fedkd audit runs/fedgkt --reconstruct",
        "fedkd audit runs/dp-sgd --shadows 0 --gradient-canaries",
    )
)
def audit(
    run: Annotated[Path, typer.Argument(parser=_path, metavar="RUN", show_default=False)],
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
            parser=_path, metavar="FOLDER", help="Where data sets lie, if not where they were."
        ),
    ] = None,
) -> None:
    """Say what a finished run's releases guarantee, and attack what its clients sent.

    Attacks run the experiment of folder RUN again: once as it is, and with random halves of every
    client's data, as often as --shadows says. One table has the strongest attack on each thing that
    was sent, in the last round and over all rounds.
    """
    from simulations.audit import main as attack

    try:
        attack(Run.open(run), shadows, data_dir, reconstruct, gradient_canaries)
    except KeyboardInterrupt as error:
        print("fedkd: interrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(exit_code(error)) from None


@app.command(
    epilog=examples(
        "fedkd noise runs/quickstart --epsilon 8",
        "fedkd noise runs/mine --epsilon 0.5,1,2,4,8",
    )
)
def noise(
    run: Annotated[Path, typer.Argument(parser=_path, metavar="RUN", show_default=False)],
    epsilon: Annotated[
        str, typer.Option(metavar="E[,E]", help="What is to be guaranteed.", show_default=False)
    ],
) -> None:
    """Say how much noise would give a finished run another epsilon, all else as it is.

    By the ledger of folder RUN, without running anything again: DP-SGD, Gaussian noise and votes,
    averages with clipping.
    """
    from simulations.noise import main as told

    try:
        wanted = [float(part) for part in epsilon.split(",")]
    except ValueError as error:
        raise FedkdError(
            f"--epsilon {shown(epsilon)} is not allowed: numbers, as in 0.5,1,2"
        ) from error
    told(Run.open(run), wanted)


# --- fedkd plot ---------------------------------------------------------------------------------


class Metric(StrEnum):
    """Which test accuracy a figure shows."""

    own_accuracy = "own_accuracy"
    common_accuracy = "common_accuracy"


class Stage(StrEnum):
    """When in the last round accuracy is measured."""

    fused = "fused"
    local = "local"


Runs = Annotated[list[Path], typer.Argument(parser=_path, metavar="RUN...", show_default=False)]
OneRun = Annotated[Path, typer.Argument(parser=_path, metavar="RUN", show_default=False)]
Stem = Annotated[
    Path | None,
    typer.Option(
        parser=_path,
        metavar="FILE",
        help="Where to write, without a suffix; RUN/plots/ when not given.",
    ),
]
MetricOption = Annotated[Metric, typer.Option(help="Which test accuracy.")]
StageOption = Annotated[Stage, typer.Option(help="After fusion or after local training.")]


def _draw(name: str, folders: Sequence[Path], out: Path | None, *options: Any) -> None:
    """Draw figure ``name`` of all runs in ``folders``, beside the first when ``out`` is None."""
    from importlib import import_module

    from plots.gather import find
    from plots.style import save

    figure = import_module(f"plots.{name}").draw(find(folders), *options)
    for file in save(figure, out or folders[0] / "plots" / name):
        print(file)


@plot.command(
    epilog=examples(
        "fedkd plot curves runs/*",
        "fedkd plot curves runs/knfu-* runs/fedmd-* --out figures/curves --metric common_accuracy",
    )
)
def curves(runs: Runs, out: Stem = None, metric: MetricOption = Metric.own_accuracy) -> None:
    """Accuracy against rounds: a line per method, the mean over its seeds.

    One method alone is shown after local training and after fusion.
    """
    _draw("curves", runs, out, metric.value)


@plot.command(
    epilog=examples(
        "fedkd plot alpha runs/*", "fedkd plot alpha runs/* --metric common_accuracy --stage local"
    )
)
def alpha(
    runs: Runs,
    out: Stem = None,
    metric: MetricOption = Metric.own_accuracy,
    stage: StageOption = Stage.fused,
) -> None:
    """Accuracy at the end against data.alpha: a line per method, intervals over its seeds."""
    _draw("alpha", runs, out, metric.value, stage.value)


@plot.command(epilog=examples("fedkd plot size runs/*", "fedkd plot size runs/* --stage local"))
def size(
    runs: Runs,
    out: Stem = None,
    metric: MetricOption = Metric.own_accuracy,
    stage: StageOption = Stage.fused,
) -> None:
    """Accuracy at the end against data.samples_per_client, a panel an alpha.

    Rings mark where the line of local training crosses that of another method.
    """
    _draw("size", runs, out, metric.value, stage.value)


@plot.command(
    epilog=examples(
        "fedkd plot against strategy.beta runs/knfu-*",
        "fedkd plot against participation runs/* --metric common_accuracy",
    )
)
def against(
    key: Annotated[str, typer.Argument(show_default=False)],
    runs: Runs,
    out: Stem = None,
    metric: MetricOption = Metric.own_accuracy,
    stage: StageOption = Stage.fused,
) -> None:
    """Accuracy at the end against any KEY of the experiment that is a number."""
    _draw("against", runs, out, key, metric.value, stage.value)


@plot.command(epilog=examples("fedkd plot budget runs/privacy-utility-quick/digits-*"))
def budget(runs: Runs, out: Stem = None) -> None:
    """What a privacy budget buys: utility and membership inference against the formal epsilon.

    Runs that differ in noise alone are one line; the second panel is of runs that were audited.
    """
    _draw("budget", runs, out)


@plot.command(epilog=examples("fedkd plot weights runs/knfu-*"))
def weights(runs: Runs, out: Stem = None) -> None:
    """Whom clients listen to: weight matrices of some rounds, effective contributors over rounds.

    For runs of strategies that fuse for each client, as knfu; others are left out.
    """
    _draw("weights", runs, out)


@plot.command(
    epilog=examples("fedkd plot pareto runs/*", "fedkd plot pareto runs/* --metric common_accuracy")
)
def pareto(
    runs: Runs,
    out: Stem = None,
    metric: MetricOption = Metric.own_accuracy,
    stage: StageOption = Stage.fused,
) -> None:
    """Accuracy at the end against bytes sent: a point per method, and the Pareto front."""
    _draw("pareto", runs, out, metric.value, stage.value)


@plot.command(epilog=examples("fedkd plot calibration runs/*"))
def calibration(runs: Runs, out: Stem = None) -> None:
    """Calibration error against accuracy, before and after fusion: two points per method."""
    _draw("calibration", runs, out)


@plot.command(epilog=examples("fedkd plot partition runs/quickstart-0a1b2c3d"))
def partition(run: OneRun, out: Stem = None) -> None:
    """Who holds what: training samples per client and class of the run in folder RUN."""
    _draw("partition", [run], out)


@plot.command(
    epilog=examples(
        "fedkd plot fairness runs/*",
        "fedkd plot fairness runs/fedd2s-* runs/fedavg-* --out figures/fairness",
    )
)
def fairness(runs: Runs, out: Stem = None) -> None:
    """Every client's own accuracy at the end: a column per method, with the clients of all seeds.

    One method in several settings takes a column for each.
    """
    _draw("fairness", runs, out)


@plot.command(epilog=examples("fedkd plot cuts runs/fedd2s-0a1b2c3d"))
def cuts(run: OneRun, out: Stem = None) -> None:
    """Accuracies and bytes against rounds, and where the cut moves, of the run in folder RUN."""
    _draw("cuts", [run], out)


@plot.command(
    epilog=examples(
        "fedkd plot exposure runs/canary-*",
        "fedkd plot exposure runs/canary-*/fkd runs/canary-*/swing --out figures/exposure",
    )
)
def exposure(runs: Runs, out: Stem = None) -> None:
    """Exposure of planted secrets against their repeats: a panel an arm, a line a place.

    For finished runs with canaries; those that differ only in their seed are one.
    """
    _draw("exposure", runs, out)


@plot.command(
    epilog=examples(
        "fedkd plot tradeoff runs/canary-*",
        "fedkd plot tradeoff runs/canary-* --place released --repeats 16",
    )
)
def tradeoff(
    runs: Runs,
    out: Stem = None,
    place: Annotated[
        str, typer.Option(help="Where exposure is measured: teacher, released, fused, student.")
    ] = "student",
    repeats: Annotated[
        int | None, typer.Option(help="Level of repeats; the highest there is when not given.")
    ] = None,
) -> None:
    """Perplexity or accuracy against excess exposure of planted secrets: a point an arm.

    For finished runs with canaries; those that differ only in their seed are one.
    """
    _draw("tradeoff", runs, out, place, repeats)


@plot.command(
    epilog=examples(
        "fedkd plot profile runs/canary-*", "fedkd plot profile runs/fedavg-* runs/uniform-*"
    )
)
def profile(runs: Runs, out: Stem = None) -> None:
    """Formal ε against δ: a panel per unit and adversary, a line per method or setting.

    For runs whose ledger guarantees anything; of several seeds the worst is shown.
    """
    _draw("profile", runs, out)


@plot.command(epilog=examples("fedkd plot auditing runs/sigma-*"))
def auditing(runs: Runs, out: Stem = None) -> None:
    """Audited and formal ε of DP-SGD against its noise: a pair of lines per method or setting.

    For runs that were audited with --gradient-canaries.
    """
    _draw("auditing", runs, out)


@plot.command(epilog=examples("fedkd plot reconstruction runs/fedgkt-0a1b2c3d"))
def reconstruction(run: OneRun, out: Stem = None) -> None:
    """Images of clients beside what an audit with --reconstruct made of what was sent."""
    _draw("reconstruction", [run], out)


if __name__ == "__main__":
    main()
