"""A suite as one page: what was run, tables, figures, verdicts, how to do it again.

The page is a single HTML file that asks for nothing else: figures are PNG images inside it, styles
stand in it, and it has no script. Everything on it is read from the suite's run folders.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.caveats import gathered, marked
from fedkd.errors import FedkdError
from fedkd.escaping import plain
from fedkd.experiment import Experiment
from fedkd.headline import ACCURACY, HEADLINE, OTHER
from fedkd.results import EXPERIMENT, Run
from fedkd.simulations import tables
from fedkd.simulations.answers import Answer, answers
from fedkd.simulations.captions import direction
from fedkd.simulations.cells import SEED, Cell, Suite, compared_axis, panels, where
from fedkd.simulations.claim import MEASURES, claims
from fedkd.simulations.manifest import failures
from fedkd.simulations.report_figures import figures_of
from fedkd.simulations.suite import frame, suites
from fedkd.simulations.table_runs import titled

if TYPE_CHECKING:
    from pandas import DataFrame

TEMPLATE = "report.html.jinja"
VALUES = (
    *(ACCURACY, OTHER),
    *("own_accuracy_mean", "own_accuracy_mean_local", "own_accuracy_worst10"),
    *("common_accuracy_mean", "common_accuracy_mean_local"),
    *("own_perplexity_mean", "common_perplexity_mean"),
)
"""What there is a table of, where it was measured."""
TABLES_SAY = (
    "Bold: the best of a column; ↓: worse than it by a paired t test over seeds (Holm, p < 0.05). "
    "An entry without ↓ is not told from the best, which is no tie: the caption says what "
    "difference the seeds could tell. Marks lead to what runs warn of."
)


def write(suite: Suite, file: Path | None = None) -> Path:
    """Write the page of ``suite`` to ``file``, else to ``report.html`` in the suite's folder.

    Raises
    ------
    FedkdError
        The file cannot be written.
    """
    file = file or suite.folder / "report.html"
    text = page(suite)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FedkdError(f"--out {file} cannot be written: {error}") from error
    return file


def page(suite: Suite) -> str:
    """The page of ``suite``, of the cells that have finished."""
    import jinja2

    found = frame(suite)
    failed = failures(suite)
    states = [_state(cell, failed) for cell in suite.cells]
    environment = _environments(suite)
    about = {name: claim for name, claim in claims().items() if claim.suite == suite.name}
    judged = answers(about, {suite.name: suite})
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(TEMPLATE)
    return template.render(
        name=suite.name,
        about=suite.about,
        scale=suite.scale,
        counts=_counts(states),
        seeds=suite.axes.get(SEED, ()),
        lacking=_lacking(suite, failed),
        axes={axis: [str(label) for label in labels] for axis, labels in suite.axes.items()},
        fewer=len(suite.cells) < _combinations(suite),
        answers=judged,
        tables=_tables(suite, found) if len(found) else {},
        tables_say=TABLES_SAY,
        figures=figures_of(suite),
        cells=_cells(suite, found, states),
        notes=_notes(suite, found),
        cell_heads=[
            *(*suite.axes, "state", *(_words(value) for value in _measured(found))),
            *("s", "warnings"),
        ],
        shared=_shared([cell.experiment for cell in suite.cells]),
        commands=_commands(suite, judged),
        environment=environment,
        differing=[key for key, values in environment.items() if len(values) > 1],
    )


def _shown(value: Any) -> Any:
    """What stands on the page, without control codes."""
    return plain(value, lines=True) if type(value) is str else value


def _notes(suite: Suite, found: DataFrame) -> Sequence[str]:
    """What the finished runs warn of, by labels of what is compared."""
    if not len(found):
        return ()
    axis = compared_axis(suite)
    pairs = zip(found[axis], found["warnings"])
    return marked(gathered((titled([axis], (x,)), its) for x, its in pairs))[0]


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A table of the page and the command that prints it."""

    title: str
    table: tables.Table
    command: str


def _tables(suite: Suite, found: DataFrame) -> dict[str, list[Shown]]:
    """The tables of each panel, by what the panel is of."""
    rows = compared_axis(suite)
    others = [axis for axis in suite.axes if axis not in (rows, SEED)]
    columns = sorted(others, key=lambda axis: -len(suite.axes[axis]))[:1]
    found_in = {}
    for labels, _ in panels(suite, (rows, *columns, SEED)):
        here = found
        for axis, label in labels.items():
            here = here[here[axis] == label]
        found_in[where(labels)] = [
            _table(suite, here, rows, columns, value, labels) for value in _measured(here)
        ]
    return found_in


def _table(
    suite: Suite,
    here: DataFrame,
    rows: str,
    columns: list[str],
    value: str,
    labels: dict[str, Any],
) -> Shown:
    made = tables.table(here, rows, columns, value, best=direction(value))
    seeds = {entry.seeds for row in made.cells for entry in row if entry is not None}
    many = f"; {max(seeds)} seed{'s' * (max(seeds) > 1)}" if len(seeds) == 1 else ""
    unit = f", in {made.unit}" if made.unit else ""
    title = f"{_words(value)}{unit}{_by(columns)}{many}"
    words = ["fedkd", "table", str(suite.folder), "--rows", rows]
    words += [word for axis in columns for word in ("--columns", axis)]
    words += ["--value", value]
    words += [word for axis, label in labels.items() for word in ("--where", f"{axis}={label}")]
    return Shown(title, made, shlex.join(words))


def _by(columns: Sequence[str]) -> str:
    return f", by {', '.join(columns)}" if columns else ""


def _measured(found: DataFrame) -> list[str]:
    values = [value for value in VALUES if value in found and found[value].notna().any()]
    usual = found[HEADLINE].dropna().eq("own_accuracy_mean").all() if HEADLINE in found else True
    return [value for value in values if value not in (ACCURACY, OTHER)] if usual else values


def _words(value: str) -> str:
    return MEASURES.get(value, value.removesuffix("_mean").replace("_", " "))


# --- what was run, and on what --------------------------------------------------------------------


def _state(cell: Cell, failed: Container[Path]) -> str:
    if cell.finished:
        return "done"
    if cell.damaged:
        return "damaged"
    if cell.missing:
        return "without data"
    if cell.folder in failed:
        return "failed"
    return "begun" if (cell.folder / EXPERIMENT).is_file() else "not run"


def _lacking(suite: Suite, failed: Mapping[Path, str]) -> list[str]:
    """Why cells have no run: a line a reason."""
    without = Counter(cell.missing for cell in suite.cells if cell.missing)
    hurt = Counter(cell.damaged for cell in suite.cells if cell.damaged)
    fell = Counter(failed[cell.folder] for cell in suite.cells if cell.folder in failed)
    return [
        f"{count} cell{'s' * (count > 1)} {what}: {why}"
        for what, reasons in (("failed", fell), ("not run", without), ("damaged", hurt))
        for why, count in reasons.items()
    ]


def _counts(states: Sequence[str]) -> dict[str, int]:
    counts = Counter(states)
    order = ("done", "failed", "damaged", "begun", "not run", "without data")
    return {"cells": len(states)} | {state: counts[state] for state in order if counts[state]}


def _combinations(suite: Suite) -> int:
    count = 1
    for labels in suite.axes.values():
        count *= len(labels)
    return count


def _cells(suite: Suite, found: DataFrame, states: Sequence[str]) -> list[list[str]]:
    """A row a cell: its labels, its state, what was measured, seconds, what its run warns of."""
    values = _measured(found)
    warnings = dict(zip(found["folder"], found["warnings"])) if len(found) else {}
    rows = []
    for cell, state in zip(suite.cells, states, strict=True):
        summary = Run(cell.folder).summary or {} if cell.finished else {}
        numbers = [_number(value, summary.get(value)) for value in values]
        seconds = f"{summary['seconds']:.1f}" if "seconds" in summary else ""
        warned = "; ".join(map(str, warnings.get(str(cell.folder), ())))
        rows.append([*map(str, cell.labels.values()), state, *numbers, seconds, warned])
    return rows


def _number(value: str, number: float | None) -> str:
    if number is None:
        return ""
    return f"{100 * number:.1f} %" if "accuracy" in value else f"{number:.2f}"


def _shared(experiments: Sequence[Experiment]) -> str:
    """The keys that have the same value in all experiments, as TOML."""
    import tomli_w

    def common(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
        found = {}
        for key, value in tables[0].items():
            if all(isinstance(table.get(key), dict) for table in tables):
                if inner := common([table[key] for table in tables]):
                    found[key] = inner
            elif all(key in table and table[key] == value for table in tables):
                found[key] = value
        return found

    dumped = [one.model_dump(mode="json", exclude_none=True) for one in experiments]
    return tomli_w.dumps(common(dumped)) if dumped else ""


def _environments(suite: Suite) -> dict[str, dict[str, int]]:
    """Every entry of the runs' environments, with its values and how many runs have them."""
    found: dict[str, Counter[str]] = {}
    for folder in dict.fromkeys(cell.folder for cell in suite.cells if cell.finished):
        entries = Run(folder).environment
        if not entries:
            continue
        for key in ("command", "sources", "data_fingerprint"):
            entries.pop(key, None)
        git = entries.pop("git", None)
        changed = ", changed since" if git and git["changed"] else ""
        entries["commit"] = f"{git['commit']}{changed}" if git else "not a checkout"
        for name, version in entries.pop("packages", {}).items():
            entries[name] = version or "not installed"
        for key, value in entries.items():
            found.setdefault(key, Counter())[str(value)] += 1
    return {key: dict(values.most_common()) for key, values in found.items()}


# --- claims and commands --------------------------------------------------------------------------


def _commands(suite: Suite, judged: Sequence[Answer]) -> list[str]:
    """Commands that run what is missing, judge it and write this page."""
    name = suite.name if suite.name in suites() else f"{suite.name}.toml"
    folder, scale = str(suite.folder), ["--scale", suite.scale]
    usual = suite.folder.name == f"{suite.name}-{suite.scale}"
    out = [] if usual and suite.folder.parent == Path("runs") else ["--out", folder]
    given = [word for one in suite.overrides for word in ("--set", one)]
    commands = [["fedkd", "suite", name, *scale, *given, *out], ["fedkd", "report", folder]]
    if judged and usual and not given:
        out = out and ["--out", str(suite.folder.parent)]
        commands.insert(1, ["fedkd", "claims", *(one.claim.name for one in judged), *scale, *out])
    return [shlex.join(words) for words in commands]
