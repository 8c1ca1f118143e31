"""``fedkd claims``: run what claims need and is not run yet, and say what the runs say of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.caveats import gathered, marked
from fedkd.errors import FedkdError
from fedkd.escaping import code, plain
from fedkd.escaping import markdown as in_markdown
from fedkd.simulations.cells import Suite
from fedkd.simulations.claim import Claim
from fedkd.simulations.suite import frame, read, run_suite
from fedkd.simulations.suite_screen import SuiteScreen, told
from fedkd.simulations.table_formats import notes_markdown
from fedkd.simulations.table_runs import titled
from fedkd.simulations.verdicts import Verdict, judge_suite, warnings

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

OTHER_STAGE = "at the other stage"
HEADS = ("where", "verdict", "effect [95 %]", OTHER_STAGE, "seeds", "")
WIDE = 200  # characters
STYLES = {"supported": "green", "not supported": "red", "vacuous": "yellow", "not run": "dim"}


@dataclass(frozen=True)
class Answer:
    """A claim and what its suite's runs say; ``why`` it could not be judged, if it could not.

    ``notes`` are what the runs that judge it warn of, by labels of what is compared.
    """

    claim: Claim
    suite: Suite
    verdicts: Sequence[Verdict]
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def figure(self) -> str:
        """The command for the claim's figure."""
        return self.claim.figure.replace("{folder}", shlex.quote(str(self.suite.folder)))

    @property
    def staged(self) -> bool:
        """Whether anything was judged at both stages of a round."""
        return any(one.other is not None for one in self.verdicts)

    @property
    def difference(self) -> str:
        """That verdicts differ between the stages of a round, if they do: overall, and where."""
        if not self.verdicts:
            return ""
        *cells, last = self.verdicts
        apart = [one for one in cells if one.differs]
        if not (apart or last.differs):
            return ""
        told = f"{last.verdict}, and {last.other.verdict if last.other else ''} at the other stage"
        overall = f"overall {told}" if last.differs else "overall the same"
        places = f"in {len(apart)} of {len(cells)} verdicts of cells"
        return f"The verdict differs between the stages of a round: {overall}; {places}."


def suites_of(
    claims: Mapping[str, Claim], scale: str, data_dir: Path | None, out: Path | None
) -> dict[str, Suite]:
    """The suites that judge ``claims``, by name; in ``out/<name>-<scale>``, or below ``runs``."""
    names = dict.fromkeys(claim.suite for claim in claims.values())
    return {
        name: read(
            name, scale, data_dir=data_dir, out=out / f"{Path(name).stem}-{scale}" if out else None
        )
        for name in names
    }


def run_missing(suites: Mapping[str, Suite], jobs: int | None) -> bool:
    """Run what suites lack, one suite after another, and tell on stderr; whether all went well."""
    console = console_of(sys.stderr.isatty(), stderr=True)
    well = True
    for suite in suites.values():
        console.print(f"suite {suite.name}, {suite.scale}: {suite.folder}", style="bold")
        with SuiteScreen(console) as screen:
            outcome = run_suite(suite, jobs, observer=screen)
        for line in told(outcome):
            console.print(line, style="red" if line.startswith("failed:") else "", soft_wrap=True)
        well = well and not outcome.failed
    return well


def console_of(terminal: bool, stderr: bool = False) -> Console:
    """A console for text as it stands; wide where it is not a terminal, as logs do not wrap."""
    from rich.console import Console

    wide = None if terminal else WIDE
    return Console(stderr=stderr, width=wide, markup=False, highlight=False, emoji=False)


def answers(claims: Mapping[str, Claim], suites: Mapping[str, Suite]) -> list[Answer]:
    """What finished runs say of ``claims``; one that does not fit its runs says why."""
    found = []
    frames: dict[str, DataFrame] = {}
    for claim in claims.values():
        suite = suites[claim.suite]
        try:
            if claim.suite not in frames:
                frames[claim.suite] = frame(suite)
            runs = frames[claim.suite]
            verdicts = judge_suite(claim, suite, runs)
            axis = (claim.compare.axis,)
            warned = warnings(claim, suite, runs)
            notes, _ = marked(gathered((titled(axis, (label,)), its) for label, its in warned))
            found.append(Answer(claim, suite, verdicts, notes=notes))
        except FedkdError as error:
            found.append(Answer(claim, suite, [], str(error)))
    return found


def show(found: Sequence[Answer]) -> None:
    """Print each claim, its verdicts and the command for its figure, for people."""
    from rich.table import Table
    from rich.text import Text

    console = console_of(sys.stdout.isatty())
    for answer in found:
        claim = answer.claim
        console.print(plain(f"{claim.name}: {claim.statement}"), style="bold")
        console.print(plain(claim.source), style="dim")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for head in _without_stage(answer, HEADS):
            wraps = head in ("where", OTHER_STAGE) and console.width < WIDE
            whole = head != "" and not wraps
            justify = "right" if head == "seeds" else "left"
            table.add_column(head, justify=justify, no_wrap=whole)  # type: ignore[arg-type]
        for one in answer.verdicts:
            said = Text(one.verdict, style=STYLES.get(one.verdict, ""))
            end = not one.where
            where, detail = plain(one.where_text), plain(one.detail)
            seeds = str(one.seeds or "")
            cells = (where, said, one.effect_text, one.other_text, seeds, detail)
            table.add_row(*_without_stage(answer, cells), style="bold" if end else "")
        if answer.verdicts:
            console.print(table)
        if answer.difference:
            console.print(answer.difference, style="yellow", soft_wrap=True)
        if answer.why:
            console.print(f"not judged: {plain(answer.why)}", style="red", soft_wrap=True)
        for note in answer.notes:
            console.print(note, style="yellow", soft_wrap=True)
        console.print(f"figure: {plain(answer.figure)}\n", soft_wrap=True)


def markdown(found: Sequence[Answer]) -> str:
    """The same as Markdown: a heading, a statement and a table a claim."""
    return "\n\n".join(section(answer) for answer in found)


def section(answer: Answer, level: str = "###") -> str:
    """One claim as Markdown."""
    claim = answer.claim
    rows = [
        [
            in_markdown(one.where_text),
            _strong(one.verdict, one),
            one.effect_text,
            _strong(one.other_text, one),
            str(one.seeds or ""),
            in_markdown(one.detail),
        ]
        for one in answer.verdicts
    ]
    lines = [_without_stage(answer, row) for row in (HEADS, *rows)]
    parts = [f"{level} {in_markdown(claim.name)}", in_markdown(claim.statement)]
    parts.append(f"*{in_markdown(claim.source)}.*")
    parts.append(f"Not judged: {in_markdown(answer.why)}" if answer.why else listed(lines))
    parts += filter(None, [answer.difference])
    return "\n\n".join([*parts, *notes_markdown(answer.notes), f"Figure: {code(answer.figure)}"])


def listed(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of words, to the left; the first row is the heads. Cells are Markdown."""
    lines = [" | ".join(row) for row in rows]
    return "\n".join(
        f"| {line} |" for line in [lines[0], " | ".join("-" * len(rows[0])), *lines[1:]]
    )


def _strong(text: str, one: Verdict) -> str:
    """Text about a verdict; strong where it is the one over all cells."""
    return f"**{text}**" if text and not one.where else text


def _without_stage(answer: Answer, row: Sequence[Any]) -> list[Any]:
    """A row of HEADS, without the other stage where nothing was judged there."""
    return [x for head, x in zip(HEADS, row, strict=True) if answer.staged or head != OTHER_STAGE]
