"""``docs/results.md`` from the suites' runs: ``python -m fedkd.simulations.results_page``.

Everything on the page is read off run folders: nobody writes a number or a reading by hand. What
is missing is run first, unless told not to; what has finished is not run again, so the command may
be interrupted and goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import FedkdError
from fedkd.escaping import code, markdown
from fedkd.headline import ACCURACY
from fedkd.plots.style import styled
from fedkd.results import Run
from fedkd.simulations import leakage, table_formats, tables
from fedkd.simulations.accuracy_table import EVERY, accuracies
from fedkd.simulations.answers import Answer, answers, listed, run_missing, section
from fedkd.simulations.captions import direction
from fedkd.simulations.cells import ARM, SEED, Cell, Label, Suite, panels, where
from fedkd.simulations.claim import MEASURES, claims
from fedkd.simulations.results_sections import RANKED, SECTIONS, Picture, Section
from fedkd.simulations.rules import Judgement
from fedkd.simulations.suite import frame, read, suites
from fedkd.simulations.table_formats import notes_markdown
from fedkd.summaries import most_repeated

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
FIGURES = "figures"
LARGEST = 150_000  # bytes of a figure: it is loaded with the page
DPI = (150, 120, 100, 80)
READINGS: Mapping[Judgement, str] = {
    "supported": "Supported by these runs",
    "not supported": "Not supported",
    "undecided": "Undecided",
    "vacuous": "Vacuous: the claim says nothing here",
    "not run": "Not run",
}


HEAD = """# Results

*Made by `{command}`; do not edit. Numbers, verdicts and readings on this page are read off run
folders. [measurements.md](measurements.md) has longer, separate measurements.*

KnFu, FedD2S and swing distillation are implemented after their public descriptions; the papers'
tables are not public to us, and nothing here says that they are matched. A verdict is about these
implementations, on these data sets, at these sizes.

**Scale**: `{scale}`. Accuracies are means over clients in percent, ± the standard deviation over
seeds. *own* is a client's own test split, with its own label distribution; *common* a
class-balanced set; *local* is measured after local training, *fused* at the end of the same round,
with the fused knowledge.

**Tables.** Bold is the best of a column; ↓ is told to be worse than it by a paired t test over
seeds. What has no ↓ is not told apart from the best with these seeds: that is no tie, and each
caption says how small a difference would not be told. Marks (†, ‡, …) lead to what runs warn of,
under the table; a method whose run was no more than local training or uniform fusion is not counted
as best. Warnings are also under each claim that such runs judge, and under each figure.

**Verdicts** follow rules that are fixed in the claims' files (`simulations/claims`) before the
runs. An effect is a paired difference over seeds, positive where it speaks for the claim, with a
95 % interval by Student's t, simultaneous over all that one label is compared with (Bonferroni): of
several comparisons the one that decides is shown. *Better* is supported if the interval is above
0, *at least as good* if it is above minus the margin, *level* if it is inside the margin; the
opposite, outside of it, is "not supported"; all else, and fewer seeds than asked for, is
"undecided". Overall, a claim is supported if it is in all cells where it says anything, and not
supported if it is not in any one of them, so that many cells are many chances: read the cells.
Cells whose data was not there are "not run"; others alone do not support a claim overall.

**Stages.** A claim is judged at the stage of a round that its file names, which was fixed before
the runs. Beside it stands what the same rule says at the other stage: after local training where
the claim is about fused students, and the other way about. What has no stage, as exposure, is
judged once. Where the two verdicts differ, the claim says so.
"""


def page(scale: str, opened: Mapping[str, Suite], command: str) -> tuple[str, dict[str, bytes]]:
    """The page's text and its figures' PNG files, by name.

    Parameters
    ----------
    scale : str
        The suites' scale.
    opened : mapping
        The suites to tell of, by name.
    command : str
        What made the page.
    """
    judged = answers(
        {name: claim for name, claim in claims().items() if claim.suite in opened}, opened
    )
    figures: dict[str, bytes] = {}
    parts = [HEAD.format(command=command, scale=scale), _machine(opened), _overview(judged, scale)]
    for name, suite in opened.items():
        parts.append(_suite(suite, [one for one in judged if one.suite is suite], figures))
        print(f"{name}: {sum(cell.finished for cell in suite.cells)} runs", file=sys.stderr)
    return "\n\n".join(part.strip() for part in parts) + "\n", figures


def _machine(opened: Mapping[str, Suite]) -> str:
    """What the runs ran on, with how many of them where they differ."""
    found: dict[str, Counter[str]] = {}
    for suite in opened.values():
        for folder in dict.fromkeys(cell.folder for cell in suite.cells if cell.finished):
            known = Run(folder).environment
            packages = known["packages"]
            said = {
                "processor": known["processor"],
                "cores": known["cores"],
                "device": known["device"],
                "torch threads a run": known["threads"],
                "Python": known["python"],
            } | {name: packages[name] for name in ("torch", "flwr") if name in packages}
            for key, value in said.items():
                found.setdefault(key, Counter())[str(value)] += 1
    rows = [
        [
            key,
            ", ".join(
                markdown(value if len(counts) == 1 else f"{value} ({count} runs)")
                for value, count in counts.most_common()
            ),
        ]
        for key, counts in found.items()
    ]
    return "## Machine\n\n" + (listed([("", "of the runs"), *rows]) if rows else "No runs.")


def _overview(judged: Sequence[Answer], scale: str) -> str:
    """All claims in one table, and what it comes to."""
    said: dict[Judgement, list[str]] = {}
    rows = []
    for answer in judged:
        claim = answer.claim
        if not answer.verdicts:
            why = f"not judged: {markdown(answer.why)}"
            rows.append([_link(claim.name), markdown(claim.statement), why, "", ""])
            continue
        last = answer.verdicts[-1]
        said.setdefault(last.verdict, []).append(claim.name)
        statement, detail = markdown(claim.statement), markdown(last.detail)
        other = last.other.verdict if last.other else ""
        differs = f"{other}, **differs**" if last.differs else other
        rows.append([_link(claim.name), statement, f"**{last.verdict}**", differs, detail])
    table = listed([("claim", "statement", "verdict", "at the other stage", "cells"), *rows])
    lines = [
        f"- {reading}: {', '.join(map(_link, said[verdict]))}."
        for verdict, reading in READINGS.items()
        if verdict in said
    ]
    apart = [_link(one.claim.name) for one in judged if one.difference]
    if apart:
        lines.append(f"- Differs between the stages, overall or in a cell: {', '.join(apart)}.")
    command = f"```sh\nfedkd claims --scale {scale} --data-dir DATA\n```"
    return "\n\n".join(["## Claims", command, table, "\n".join(lines)])


def _link(name: str) -> str:
    return f"[{name}](#{name})"


# --- a suite --------------------------------------------------------------------------------------


def _suite(suite: Suite, judged: Sequence[Answer], figures: dict[str, bytes]) -> str:
    counts = Counter(
        "finished" if cell.finished else "without data" if cell.missing else "not run"
        for cell in suite.cells
    )
    axes = [
        f"- {markdown(axis)}: {markdown(', '.join(map(str, labels)))}"
        for axis, labels in suite.axes.items()
    ]
    parts = [
        f"## Suite {markdown(suite.name)}",
        markdown(suite.about),
        f"```sh\nfedkd suite {suite.name} --scale {suite.scale} --data-dir DATA\n```",
        "\n".join(axes),
        f"{len(suite.cells)} runs: {', '.join(f'{n} {what}' for what, n in counts.items())}.",
    ]
    parts += [section(answer) for answer in judged]
    shown = SECTIONS.get(suite.name)
    if shown and counts["finished"]:
        parts += _tables(suite, shown)
        parts += _leaks(suite) if shown.rows == ARM else ()
        for picture in shown.pictures:
            parts += _pictures(suite, picture, figures)
    return "\n\n".join(parts)


def _tables(suite: Suite, shown: Section) -> Iterator[str]:
    """A table a value, for each combination of the axes that are neither rows nor columns."""
    found = frame(suite)
    for labels, _ in panels(suite, (shown.rows, shown.columns, SEED)):
        here = found
        for axis, label in labels.items():
            here = here[here[axis] == label]
        for value in shown.values:
            if value in (EVERY, RANKED) or (value in here and here[value].notna().any()):
                yield _table(suite, here, shown, value, labels)


def _leaks(suite: Suite) -> Iterator[str]:
    """A table of what every way of release leaks, as ``fedkd canary`` prints it."""
    for labels, cells in panels(suite, (ARM, SEED)):
        groups: dict[str, list[Run]] = {}
        for cell in cells:
            if Run(cell.folder).canaries is not None:
                groups.setdefault(str(cell.labels[ARM]), []).append(Run(cell.folder))
        if not groups:
            continue
        rows = leakage.table(groups, {}, most_repeated(next(iter(groups.values()))[0]))
        title = _title("exposure", labels)
        notes = notes_markdown(leakage.notes(groups))
        yield "\n\n".join(
            [f"#### {title}", leakage.markdown(rows), *leakage.findings(rows), *notes]
        )


def _table(
    suite: Suite, here: DataFrame, shown: Section, value: str, labels: Mapping[str, Any]
) -> str:
    columns = [shown.columns] if shown.columns else []
    ranked = value == RANKED
    if value == EVERY:
        made = accuracies(here, shown.rows)
    elif ranked:
        value, held = ACCURACY, shown.reference
        made = tables.table(
            here, shown.rows, columns, value, best="max", differences=held, ranked=True
        )
    else:
        made = tables.table(here, shown.rows, columns, value, best=direction(value))
    words = ["fedkd", "table", suite.name, "--scale", suite.scale, "--value", value]
    words += ["--rows", shown.rows, *(word for axis in columns for word in ("--columns", axis))]
    words += [word for axis, label in labels.items() for word in ("--where", f"{axis}={label}")]
    if ranked:
        words += ["--differences", shown.reference, "--ranked"]
    what = MEASURES.get(value, value.replace("_", " "))
    title = _title(f"{what}, against {shown.reference}" if ranked else what, labels)
    return f"#### {title}\n\n{code(shlex.join(words))}\n\n{table_formats.markdown(made)}"


def _title(what: str, labels: Mapping[str, Label]) -> str:
    return markdown(f"{what}, {where(labels)}" if labels else what)


def _pictures(suite: Suite, picture: Picture, figures: dict[str, bytes]) -> Iterator[str]:
    """Draw a figure, one each for the labels of ``picture.each``; what runs cannot show is left."""
    others = [axis for axis in suite.axes if axis not in picture.each]
    for labels, cells in panels(suite, (*others, SEED)):
        cells = [
            cell
            for cell in cells
            if all(cell.labels.get(axis) == label for axis, label in picture.only.items())
        ]
        if not cells:
            continue
        try:
            png = drawn(picture, [Run(cell.folder) for cell in cells])
        except FedkdError as error:
            print(f"{suite.name}: no figure {picture.name}: {error}", file=sys.stderr)
            continue
        named = picture.stem or picture.name
        stem = re.sub(r"[^\w.-]+", "-", "-".join([suite.name, named, *map(str, labels.values())]))
        figures[f"{stem}.png"] = png
        title = _title(named, labels | picture.only)
        command = _plotted(suite, picture, cells)
        yield f"![{title}, of {suite.name}]({FIGURES}/{stem}.png)\n\n{code(command)}"


def _plotted(suite: Suite, picture: Picture, cells: Sequence[Cell]) -> str:
    """The command that draws these cells: of the whole suite, or by a pattern of its folders."""
    place = f"runs/{suite.name}-{suite.scale}"
    key, flags = [], []
    for name, value in picture.settings.items():
        if name == "key":
            key = [value]
        else:
            flags += [f"--{name}", value]
    others = {cell.folder.name for cell in suite.cells if cell.finished}
    wanted = {cell.folder.name for cell in cells}
    if wanted != others:
        pattern = _pattern(suite, cells)
        if {name for name in others if fnmatchcase(name, pattern)} == wanted:
            place += f"/{pattern}"
        else:
            place = " ".join(f"{place}/{name}" for name in sorted(wanted))
    return " ".join(["fedkd plot", picture.name, *key, place, *flags])


def _pattern(suite: Suite, cells: Sequence[Cell]) -> str:
    """What the folders of cells have in common: the labels that are the same in all."""
    words = []
    for axis in suite.axes:
        label, *others = {cell.labels[axis] for cell in cells}
        bare = isinstance(label, int | float)
        word = f"{axis.split('.')[-1]}{label}" if bare else str(label)
        words.append("*" if others else re.sub(r"[^\w.]+", "-", word).strip("-"))
    return "-".join([*words, "*"])


@styled
def drawn(picture: Picture, runs: Sequence[Run]) -> bytes:
    """The figure as a PNG, as fine as its size on the page allows."""
    figure: Figure = importlib.import_module(f"fedkd.plots.{picture.name}").draw(
        runs, **picture.settings
    )
    for dpi in DPI:
        file = io.BytesIO()
        # Without the version of what wrote it, the same runs give the same file.
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
        if len(file.getvalue()) <= LARGEST:
            break
    return file.getvalue()


# --- the command ----------------------------------------------------------------------------------


def write(text: str, figures: Mapping[str, bytes], file: Path = PAGE) -> None:
    """Write the page, and its figures beside it; figures of an earlier page are removed."""
    folder = file.parent / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        if old.name not in figures:
            old.unlink()
    for name, png in figures.items():
        (folder / name).write_bytes(png)
    file.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, write the page; 0, or 1 if a run failed, or 2 for wrong input."""
    parser = argparse.ArgumentParser(
        "python -m fedkd.simulations.results_page", description=main.__doc__
    )
    parser.add_argument("--scale", choices=("quick", "full"), default="quick")
    parser.add_argument("--jobs", type=int, help="runs at a time; as cores allow when not given")
    parser.add_argument("--data-dir", type=Path, help="where data sets lie, else FEDKD_DATA")
    parser.add_argument("--out", type=Path, help="holds the suites' folders; runs when not given")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page; docs/results.md")
    parser.add_argument("--no-run", action="store_true", help="tell of what has finished")
    given = parser.parse_args(arguments)
    well = True
    try:
        opened = {
            name: read(
                name,
                given.scale,
                data_dir=given.data_dir,
                out=given.out and given.out / f"{name}-{given.scale}",
            )
            for name in suites()
        }
        if not given.no_run:
            well = run_missing(opened, given.jobs)
        command = f"python -m fedkd.simulations.results_page --scale {given.scale}"
        text, figures = page(given.scale, opened, command)
    except FedkdError as error:
        print(f"fedkd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is missing", file=sys.stderr)
        return 130
    write(_public(text, given.data_dir, opened.values()), figures, given.page)
    print(given.page)
    return 0 if well else 1


def _public(text: str, data_dir: Path | None, opened: Iterable[Suite]) -> str:
    """The text without this machine's folders."""
    places = {str(suite.folder): f"runs/{suite.folder.name}" for suite in opened}
    places[str(Path.home())] = "~"
    for folder in (data_dir, os.environ.get("FEDKD_DATA")):
        if folder:
            places |= {str(folder): "DATA", str(Path(folder).expanduser().resolve()): "DATA"}
    for place in sorted(places, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(place)}(?![\w.-])", places[place], text)
    return text


if __name__ == "__main__":
    sys.exit(main())
