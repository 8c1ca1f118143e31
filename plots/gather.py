"""Which runs a figure is made from, and how it gathers them: panels, lines, seeds."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedkd.caveats import caveats, gathered, span
from fedkd.escaping import plain
from fedkd.frames import runs_below
from fedkd.headline import ACCURACY, LOCAL, column_of
from fedkd.labels import LONGEST_LABEL, by_seed, labels, settings
from fedkd.nesting import child
from fedkd.plots.style import footnote, look
from fedkd.results import EXPERIMENT, SUMMARY, FedkdError, Run, readable
from fedkd.statistics import interval

SUITE, SEED = "suite.json", "seed"
NAMING = ("method", "arm")
"""Axes of a suite whose labels are in the names of lines also where there is one label."""
FEW = 3  # seeds; of fewer the range is shown, as an interval would say nothing
MOST = 12  # panels of a figure
METRICS = {
    "own_accuracy": "Own test accuracy (%)",
    "common_accuracy": "Common test accuracy (%)",
    "headline_accuracy": "Test accuracy as papers score it (%)",
}
STAGES = {"fused": "after fusion", "local": "after local training"}


def find(folders: Iterable[Path | str]) -> list[Run]:
    """The runs in ``folders``, each once.

    A folder is a run's own, or holds finished runs at any depth; of a suite's folder, the cells
    that its ``suite.json`` names, so that what an earlier version of the suite left there is not
    mixed in. A run that cannot be read is left out, with a warning that names it.

    Raises
    ------
    FedkdError
        A folder neither is a run's nor holds a finished one; or no run can be read.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        for run in [Run(folder)] if (folder / EXPERIMENT).is_file() else _below(folder):
            found.setdefault(run.folder.resolve(), run)
    return readable(list(found.values()), named=True)


def _below(folder: Path) -> list[Run]:
    if (folder / SUITE).is_file():
        try:
            suite = json.loads((folder / SUITE).read_text(encoding="utf-8"))
            names = [str(cell["folder"]) for cell in suite["cells"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FedkdError(f"{folder / SUITE} cannot be read: {error!r}") from error
        runs = [Run(child(folder, name, SUITE)) for name in names]
    else:
        runs = list(runs_below(folder)) if folder.is_dir() else []
    runs = [run for run in runs if (run.folder / SUMMARY).is_file()]
    if not runs:
        raise FedkdError(f"{folder} is not a run's folder and holds no finished run")
    return runs


def one(runs: Sequence[Run], figure: str) -> Run:
    """The only run there is.

    Raises
    ------
    FedkdError
        There are several.
    """
    if len(runs) != 1:
        raise FedkdError(
            f"{figure} shows one run and {len(runs)} were given; name one, as {runs[0].folder}"
        )
    return runs[0]


@dataclass(frozen=True)
class Panel:
    """Runs on data of one kind; ``title`` says which, where there are several panels."""

    title: str
    runs: list[Run]


def panels(runs: Sequence[Run], key: str = "") -> tuple[list[Panel], tuple[str, ...]]:
    """Part runs by the keys of ``[data]`` that vary within a method, in rising order.

    Accuracies on other data are not comparable, so figures show them side by side. The transfer
    set, and ``key``, which is the figure's own axis, do not count.

    Returns
    -------
    tuple
        The panels, and keys in which runs of one line may differ between them: those in the titles,
        and whatever goes with these and ``key``, as the student that goes with a data set.

    Raises
    ------
    FedkdError
        There are more panels than fit into a figure.
    """
    # How long a run is and when it is measured may go with the data, and is in no label.
    tables = [
        settings(run) | run.experiment.model_dump(include={"rounds", "evaluate_every"})
        for run in runs
    ]
    varying = [name for name in _varying(tables) if name != key]
    told: list[str] = []
    for name in filter(_of_data, varying):
        before, after = (
            len({_values(table, which) for table in tables}) for which in (told, [*told, name])
        )
        if after > before:
            told.append(name)
    within = [(_method(table), _values(table, [*told, key])) for table in tables]
    along = tuple(
        name
        for name in varying
        if len(set(within))
        == len({(at, repr(table.get(name))) for at, table in zip(within, tables)})
    )
    places: dict[tuple[str, ...], Panel] = {}
    for table, run in sorted(zip(tables, runs), key=lambda pair: _order(pair[0], told)):
        title = plain(", ".join(_said(name, table.get(name)) for name in told))
        places.setdefault(_values(table, told), Panel(title, [])).runs.append(run)
    if len(places) > MOST:
        raise FedkdError(
            f"runs on {len(places)} kinds of data do not fit into one figure; allowed: {MOST}"
        )
    found = list(places.values())
    names = _suite_names([panel.runs for panel in found]) if told else None
    if names:
        found = [Panel(name, panel.runs) for name, panel in zip(names, found, strict=True)]
    return found, along


def _method(table: dict[str, Any]) -> str:
    """The strategy with its options."""
    return repr({name: value for name, value in table.items() if name.startswith("strategy.")})


def _of_data(name: str) -> bool:
    """Whether a key says what clients and tests have."""
    return name.startswith("data.") and not name.startswith("data.transfer.")


def _varying(tables: Sequence[dict[str, Any]]) -> list[str]:
    """Keys beside the strategy's that have several values within a method."""
    seen: dict[tuple[str, str], set[str]] = {}
    for table in tables:
        for name, value in table.items():
            seen.setdefault((name, _method(table)), set()).add(repr(value))
    found = {name for (name, _), values in seen.items() if len(values) > 1}
    return [name for name in tables[0] if name in found and not name.startswith("strategy.")]


def _said(name: str, value: Any) -> str:
    """A key and its value in a title; a data set by its name alone."""
    if name == "data.dataset":
        return str(value).rsplit("/", 1)[-1]
    return f"{name.split('.')[-1]} = {f'{value:g}' if isinstance(value, float) else value}"


def _values(table: dict[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(repr(table.get(key)) for key in keys)


def _order(table: dict[str, Any], keys: Sequence[str]) -> list[tuple[bool, float, str]]:
    """Numbers by their size, before words."""
    values = [table.get(key) for key in keys]
    return [
        (False, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value))
        for value in values
    ]


@dataclass(frozen=True)
class Line:
    """What a figure shows as one line or point: runs that differ in seed and ``but`` keys alone.

    ``style`` are keywords of ``Axes.plot``.
    """

    label: str
    style: dict[str, Any]
    runs: list[Run]

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len({run.experiment.seed for run in self.runs})

    def among(self, runs: Sequence[Run]) -> Line:
        """The same with those of its runs that are among ``runs``, of which there may be none."""
        folders = {run.folder for run in runs}
        return Line(self.label, self.style, [run for run in self.runs if run.folder in folders])


def lines(runs: Sequence[Run], but: Collection[str] = ()) -> list[Line]:
    """Gather runs into lines, in the order given; ``but`` are keys shown otherwise.

    Lines of a suite's runs are called by its labels, others by their methods and what tells them
    apart.

    Raises
    ------
    FedkdError
        Two runs are one experiment with one seed.
    """
    groups = by_seed(runs, but)
    tables = [settings(group[0]) for group in groups]
    # What a method has alone is no other method's name.
    apart = {*_varying(tables), *filter(_of_data, tables[0])}
    known = [name for name in tables[0] if name not in apart and not name.startswith("strategy.")]
    names = _suite_names(groups, NAMING) or [
        plain(name) for name in labels([group[0] for group in groups], (*but, *known))
    ]
    variants: Counter[str] = Counter()
    found = []
    for name, group in zip(names, groups):
        method = group[0].experiment.strategy.name
        found.append(Line(name, look(method, variants[method]), group))
        variants[method] += 1
    return found


def _suite_names(groups: Sequence[Sequence[Run]], always: Sequence[str] = ()) -> list[str] | None:
    """A name for each group of a suite's runs, of the labels that tell groups apart.

    Labels of axes in ``always`` are in the names in any case. None where runs are not all of one
    suite, or labels do not tell them apart or are too long.
    """
    cells: dict[Path, dict[str, dict[str, Any]]] = {}
    tables = [[_suite_labels(run, cells) for run in group] for group in groups]
    axes = list(tables[0][0])
    if not axes or any(list(labels) != axes for some in tables for labels in some):
        return None
    found = {axis: [{labels[axis] for labels in some} for some in tables] for axis in axes}
    shown = [
        axis
        for axis, labels in found.items()
        if axis != SEED
        and all(len(some) == 1 for some in labels)
        and (axis in always or len(set.union(*labels)) > 1)
    ]
    names = [plain(", ".join(_label(axis, some[0][axis]) for axis in shown)) for some in tables]
    fit = all(0 < len(name) <= LONGEST_LABEL for name in names)
    return names if fit and len(set(names)) == len(names) else None


def _suite_labels(run: Run, cells: dict[Path, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The labels of a run by axis, from the ``suite.json`` beside its folder; {} if there is none.

    Cells that are the same experiment share a folder: their labels are joined. ``cells`` remembers
    the files that were read.
    """
    file = run.folder.resolve().parent / SUITE
    if file not in cells:
        cells[file] = {}
        try:
            for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
                both = cells[file].setdefault(cell["folder"], {})
                for axis, label in cell["labels"].items():
                    label = label if isinstance(label, str | int | float) else str(label)
                    words = str(both.get(axis, label)).split(" / ")
                    new = both and str(label) not in words
                    both[axis] = f"{both[axis]} / {label}" if new and axis in both else label
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            cells[file] = {}
    return cells[file].get(run.folder.resolve().name, {})


def _label(axis: str, label: Any) -> str:
    """A label in a name; of a number, also what it is of."""
    try:
        float(label)
    except (TypeError, ValueError):
        return str(label)
    return f"{axis.split('.')[-1]} {label}"


def noted(figure: Figure, named: Iterable[tuple[str, Sequence[Run]]]) -> Figure:
    """The figure with what it is of under it, and what its runs warn of.

    ``named`` are the runs that it shows, by the names that they have in it.
    """
    pairs = [(name, run) for name, runs in named for run in runs]
    experiments = {run.folder.resolve(): run.experiment for _, run in pairs}.values()
    facts = [
        span((one.data.clients for one in experiments), "client"),
        span((one.rounds for one in experiments), "round"),
        span([len({one.seed for one in experiments})], "seed"),
    ]
    notes = [note.brief for note in gathered((name, caveats(run)) for name, run in pairs)]
    return footnote(figure, ", ".join(facts), [plain(note) for note in notes])


def apart(runs: Sequence[Run]) -> list[Line]:
    """The lines of all panels, named by method and panel, for figures that have no panels."""
    parts, keys = panels(runs)
    methods = lines(runs, keys)
    variants: Counter[str] = Counter()
    found = []
    for part in parts:
        for line in (line.among(part.runs) for line in methods):
            if line.runs:
                method = line.runs[0].experiment.strategy.name
                name = ", ".join(filter(None, [line.label, part.title]))
                found.append(Line(name, look(method, variants[method]), line.runs))
                variants[method] += 1
    return found


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, low and high over seeds: 95 % by Student's t, the range of two, NaN bounds of one."""
    if 1 < len(values) < FEW:
        return sum(values) / len(values), min(values), max(values)
    found = interval(values)
    return found.mean, found.low, found.high


def said_of_seeds(counts: Collection[int]) -> str:
    """What bars or bands over these numbers of seeds are; nothing where there are none."""
    several = sorted({count for count in counts if count > 1})
    if not several:
        return ""
    fewest = f"{several[0]} to " if len(several) > 1 else ""
    if several[-1] < FEW:
        return f"range over {several[-1]} seeds"
    note = " (of two: the range)" if several[0] < FEW else ""
    return f"95 % interval over {fewest}{several[-1]} seeds{note}"


def placed(run: Run, metric: str, stage: str) -> tuple[str, str]:
    """The metric and the stage that are meant: of ``headline_accuracy``, the paper's own."""
    if metric != ACCURACY:
        return metric, stage
    column = column_of(run) or ACCURACY
    stage = "local" if column.endswith(LOCAL) else "fused"
    return column.removesuffix(LOCAL).removesuffix("_mean"), stage


def said_of_stage(metric: str, stage: str) -> str:
    """``after fusion``, for a title; ``headline_accuracy`` is at a stage of each method's own."""
    return "where each method's paper scores it" if metric == ACCURACY else STAGES[stage]


def final(run: Run, metric: str, stage: str = "fused") -> float:
    """``metric``, mean over clients when the run ended; NaN where it was not measured.

    Of ``headline_accuracy`` it is at the stage that the paper of the run's method scores.

    Raises
    ------
    FedkdError
        The run has not ended.
    """
    if run.summary is None:
        raise FedkdError(f"{run.folder} has not ended; this figure shows the end of a run")
    metric, stage = placed(run, metric, stage)
    value = run.summary.get(f"{metric}_mean{'_local' if stage == 'local' else ''}")
    return math.nan if value is None else float(value)


def check(metric: str, stage: str = "fused") -> None:
    """Refuse a metric or a stage that is not known.

    Raises
    ------
    FedkdError
        It is not known.
    """
    for word, value, known in (("metric", metric, METRICS), ("stage", stage, STAGES)):
        if value not in known:
            raise FedkdError(f"{word} {value!r} is not known; known: {', '.join(known)}")
