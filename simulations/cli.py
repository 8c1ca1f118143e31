"""The command line: ``fedkd run``, ``list``, ``compare``, ``canary``, ``audit``, ``plot``.

torch, matplotlib and the like are imported inside the function that needs them, so that help and
wrong input answer at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer

from fedkd import registry
from fedkd.errors import FedkdError, nearest
from fedkd.experiment import Experiment
from fedkd.observers import Observers, TensorBoard
from fedkd.results import CHECKPOINT, PLACES, Run
from fedkd.results import exposure as exposure_at
from fedkd.run import Observer
from fedkd.run import run as simulate
from simulations.shipped import experiment_text, shipped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

KINDS = ("strategies", "datasets", "students", "partitions", "objectives", "experiments")
LOG_LINES = 20  # of progress in a log, whatever the number of rounds
PHASES = ("learn", "receive")  # of a round, in this order
LEFT_OUT_SHOWN = 5


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
    help="Draw a figure from finished or running runs, as PNG and PDF.",
    epilog=examples("fedkd plot curves runs/*", "fedkd plot partition runs/quickstart-0a1b2c3d"),
)
app.add_typer(plot, name="plot")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; wrong input is one line on stderr and exit code 2."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(words, prog_name="fedkd", standalone_mode=False)
    except FedkdError as error:
        code = _complain(str(error))
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "fedkd"
        said = error.format_message().partition(" Did you mean")  # click and typer both ask
        code = _complain(f"{said[0].rstrip('.')}; see {command} --help")
    sys.exit(code)


def _complain(message: str) -> int:
    print("fedkd:", " ".join(message.split()), file=sys.stderr)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print("fedkd", version("fedkd"))
        except PackageNotFoundError:
            print("fedkd (source tree, not installed)")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None: ...


# --- fedkd run ----------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "fedkd run quickstart",
        "fedkd run quickstart --set strategy.beta=3 --set data.alpha=0.1 --seed 1",
        "fedkd run mine.toml --out runs/mine",
        "fedkd run mine.toml --out runs/mine --resume  [dim]go on after a kill[/dim]",
        "fedkd run mine.toml --tensorboard runs/tb  [dim]watch: tensorboard --logdir runs/tb[/dim]",
        'folder="$(fedkd run quickstart --quiet)"',
    )
)
def run(
    experiment: Annotated[str, typer.Argument(show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the experiment; repeatable."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where clients' work runs: engine.name.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Key of every random draw: seed.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The run's folder; runs/NAME-HASH when not given."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where data sets lie: data.data_dir, else FEDKD_DATA."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write every round's numbers for TensorBoard."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the run's folder and nothing else.")
    ] = False,
) -> None:
    """Run an experiment; the last line of the output is its folder.

    EXPERIMENT is a TOML file, or a name of [bold]fedkd list experiments[/bold].
    """
    flags = {"engine.name": engine, "seed": seed, "data.data_dir": data_dir and str(data_dir)}
    given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    chosen = Experiment.from_toml(experiment_text(experiment), [*(overrides or []), *given])
    _check_names(chosen)

    screen = Screen(_bar(quiet))
    observer = Observers(screen, TensorBoard(tensorboard)) if tensorboard else screen
    try:
        with screen.bar:
            finished = simulate(chosen, out, resume=resume, observer=observer)
    except KeyboardInterrupt:
        _interrupted(screen.run)
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


def _interrupted(run: Run | None) -> NoReturn:
    if run is None:
        print("fedkd: interrupted before the first round", file=sys.stderr)
    else:
        after = max((line["round"] for line in run.rounds), default=0)
        on = "; go on with --resume" if (run.folder / CHECKPOINT).is_dir() else ""
        message = f"interrupted after round {after}; the folder is readable{on}"
        print(f"fedkd: {message}", file=sys.stderr, flush=True)
        print(run.folder, flush=True)
    raise typer.Exit(130)


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
        self.bar.console.print(message, style=style, soft_wrap=True)

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

    KIND is one of: strategies, datasets, students, partitions, objectives, experiments.
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
    if kind == "partitions":
        from fedkd.data.partitions import PARTITIONS

        documents = {name: (thing.__doc__ or "").strip() for name, thing in PARTITIONS.items()}
        return {name: text.split("\n")[0] for name, text in sorted(documents.items())}
    return registry.described(kind)


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


# --- fedkd compare ------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "fedkd compare runs/*",
        "fedkd compare runs/knfu-* runs/local-*",
        "fedkd compare runs/* --target 60  [dim]and what it took to reach 60 %[/dim]",
    )
)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", show_default=False)],
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

    print(table([Run.open(folder) for folder in runs], target))


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
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the experiment; repeatable."),
    ] = None,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Arms to run; all that fit when not given.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="S,T,…", help="Seeds; the experiment's when not given.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Level of repeats in the table; the highest when not given.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time; a core each when not given.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of all runs; runs/canary-NAME-HASH if none."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where data sets lie: data.data_dir, else FEDKD_DATA."),
    ] = None,
) -> None:
    """Run an experiment under many releases and print what each of them leaks.

    EXPERIMENT plants canaries. Its own release is one arm; the others take it apart, or put
    something else in its place. Finished runs are not repeated.
    """
    from simulations import canary as study

    extra = [f"data.data_dir={json.dumps(str(data_dir))}"] if data_dir else []
    chosen = Experiment.from_toml(experiment_text(experiment), [*(overrides or []), *extra])
    _check_names(chosen)
    try:
        study.main(chosen, _listed(arms), _seeds(seeds, chosen), repeats, jobs, out)
    except KeyboardInterrupt:
        print("fedkd: interrupted; the same command goes on with what is missing", file=sys.stderr)
        raise typer.Exit(130) from None


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str | None, experiment: Experiment) -> list[int]:
    try:
        found = [int(part) for part in _listed(text) or [str(experiment.seed)]]
    except ValueError as error:
        raise FedkdError(f"--seeds {text!r} is not allowed: numbers, as in 0,1,2") from error
    return list(dict.fromkeys(found))


@app.command(
    epilog=examples(
        "fedkd audit runs/quickstart",
        "fedkd audit runs/swing --shadows 0  [dim]the ledger and what it guarantees alone[/dim]",
    )
)
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    shadows: Annotated[
        int, typer.Option(min=0, help="Runs that membership inference compares; 0: no attack.")
    ] = 16,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where data sets lie, if not where they were."),
    ] = None,
) -> None:
    """Say what a finished run's releases guarantee, and attack what its clients sent.

    Attacks run the experiment of folder RUN again: once for label distributions, and with random
    halves of every client's data, as often as --shadows says, for membership.
    """
    from simulations.audit import main as attack

    try:
        attack(Run.open(run), shadows, data_dir)
    except KeyboardInterrupt:
        print("fedkd: interrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None


# --- fedkd plot ---------------------------------------------------------------------------------


class Metric(StrEnum):
    """What ``fedkd plot curves`` shows."""

    own_accuracy = "own_accuracy"
    common_accuracy = "common_accuracy"


Stem = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Where to write, without a suffix; RUN/plots/ when not given."
    ),
]


@plot.command(
    epilog=examples(
        "fedkd plot curves runs/*",
        "fedkd plot curves runs/knfu-* runs/fedmd-* --out figures/curves --metric common_accuracy",
    )
)
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    out: Stem = None,
    metric: Annotated[Metric, typer.Option(help="Which test accuracy.")] = Metric.own_accuracy,
) -> None:
    """Accuracy against rounds: a line per method, the mean over its seeds.

    RUN... are folders of runs; one alone is shown after local training and after fusion.
    """
    from plots.curves import draw
    from plots.style import save

    opened = [Run.open(folder) for folder in runs]
    _written(save(draw(opened, metric.value), out or opened[0].folder / "plots" / "curves"))


@plot.command(epilog=examples("fedkd plot partition runs/quickstart-0a1b2c3d"))
def partition(run: Annotated[Path, typer.Argument(metavar="RUN")], out: Stem = None) -> None:
    """Who holds what: training samples per client and class of the run in folder RUN."""
    from plots.partition import draw
    from plots.style import save

    opened = Run.open(run)
    _written(save(draw(opened), out or opened.folder / "plots" / "partition"))


@plot.command(
    epilog=examples(
        "fedkd plot fairness runs/*",
        "fedkd plot fairness runs/fedd2s-* runs/fedavg-* --out figures/fairness",
    )
)
def fairness(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")], out: Stem = None
) -> None:
    """Every client's own accuracy at the end: a column per method, with the clients of all seeds.

    RUN... are folders of runs.
    """
    from plots.fairness import draw
    from plots.style import save

    opened = [Run.open(folder) for folder in runs]
    _written(save(draw(opened), out or opened[0].folder / "plots" / "fairness"))


@plot.command(epilog=examples("fedkd plot cuts runs/fedd2s-0a1b2c3d"))
def cuts(run: Annotated[Path, typer.Argument(metavar="RUN")], out: Stem = None) -> None:
    """Accuracies and bytes against rounds, and where the cut moves, of the run in folder RUN."""
    from plots.cuts import draw
    from plots.style import save

    opened = Run.open(run)
    _written(save(draw(opened), out or opened.folder / "plots" / "cuts"))


@plot.command(
    epilog=examples(
        "fedkd plot exposure runs/canary-*/*/*",
        "fedkd plot exposure runs/canary-*/fkd/* runs/canary-*/swing/* --out figures/exposure",
    )
)
def exposure(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")], out: Stem = None
) -> None:
    """Exposure of planted secrets against their repeats: a panel an arm, a line a place.

    RUN... are folders of finished runs with canaries; those that differ only in their seed are one.
    """
    from plots.exposure import draw
    from plots.style import save

    opened = [Run.open(folder) for folder in runs]
    _written(save(draw(opened), out or opened[0].folder / "plots" / "exposure"))


@plot.command(
    epilog=examples(
        "fedkd plot tradeoff runs/canary-*/*/*",
        "fedkd plot tradeoff runs/canary-*/*/* --place released --repeats 16",
    )
)
def tradeoff(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    out: Stem = None,
    place: Annotated[
        str, typer.Option(help="Where exposure is measured: teacher, released, fused, student.")
    ] = "student",
    repeats: Annotated[
        int | None, typer.Option(help="Level of repeats; the highest there is when not given.")
    ] = None,
) -> None:
    """Perplexity or accuracy against excess exposure of planted secrets: a point an arm.

    RUN... are folders of finished runs with canaries; those that differ only in their seed are one.
    """
    from plots.style import save
    from plots.tradeoff import draw

    opened = [Run.open(folder) for folder in runs]
    figure = draw(opened, place, repeats)
    _written(save(figure, out or opened[0].folder / "plots" / "tradeoff"))


def _written(files: Sequence[Path]) -> None:
    for file in files:
        print(file)


if __name__ == "__main__":
    main()
