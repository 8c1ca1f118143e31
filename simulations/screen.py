"""What a person sees of a run: a bar on a terminal, some lines in a log, a table at the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fedkd.caveats import LEFT_OUT, caveats
from fedkd.escaping import plain
from fedkd.headline import LOCAL, column_of, named
from fedkd.results import PLACES, Run
from fedkd.run import Observer
from fedkd.summaries import exposure as exposure_at

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LOG_LINES = 20  # of progress in a log, whatever the number of rounds
PHASES = ("learn", "receive")  # of a round, in this order
LEFT_OUT_SHOWN = 5


def make_console(stderr: bool, quiet: bool = False) -> Console:
    """Make a console that prints texts as they are, without markup."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=quiet, markup=False, highlight=False, emoji=False)


def progress_bar(quiet: bool) -> Progress:
    """Make a progress bar for a terminal; elsewhere it shows nothing, as logs get lines."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def text(field: str) -> TextColumn:
        column = Column(no_wrap=True, overflow="ellipsis")
        return TextColumn(f"{{task.{field}}}", markup=False, table_column=column)

    console = make_console(stderr=True, quiet=quiet)
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


def print_summary(run: Run) -> None:
    """Print the table at the end, from the run's folder alone."""
    from rich.table import Table

    rounds, summary, console = run.rounds, run.summary or {}, make_console(stderr=False)
    last: dict[str, Any] = next((line for line in reversed(rounds) if "local" in line), {})
    table = Table(f"round {last.get('round', 0)}, {run.experiment.strategy.name}")
    perplexity = [name for name in ("own", "common") if f"{name}_perplexity_mean" in last]
    heads = ["own accuracy", *["worst 10 %"] * (not perplexity), "common accuracy"]
    for head in (*heads, *(f"{name} ppl" for name in perplexity)):
        table.add_column(head, justify="right")
    stages = [("after local training", last.get("local", {}), "", LOCAL)]
    stages += [("after fusion", last, "", "")]
    stages += [(f"{name}, after fusion", last, f"{name}_", "") for name in named(last)]
    scored = [
        f"{name}_{of}accuracy_mean{stage}" == column_of(run)
        for _, _, of, stage in stages
        for name in ("own", "common")
    ]
    marks = ["*" * any(scored[2 * row : 2 * row + 2]) for row in range(len(stages))]
    marks[1] = ""  # as usual
    for (title, measured, of, _), mark in zip(stages, marks):
        if {f"own_{of}accuracy_mean", f"common_{of}accuracy_mean"} & measured.keys():
            std = measured.get(f"own_{of}accuracy_std", 0.0)
            own = _percent(measured.get(f"own_{of}accuracy_mean"), f" ± {100 * std:.1f}")
            worst = _percent(measured.get(f"own_{of}accuracy_worst10"))
            common = _percent(measured.get(f"common_{of}accuracy_mean"))
            of_text = [_number(measured.get(f"{name}_{of}perplexity_mean")) for name in perplexity]
            cells = (own, *[worst] * (not perplexity), common, *of_text)
            table.add_row(" ".join(filter(None, (title, mark))), *cells)
    if table.row_count:
        console.print(table)
    if any(marks):
        console.print("*: what the method's paper scores")
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
