"""What a reader of a run's numbers must know, and how it stands under a table or figure.

A run's caveats are the warnings that it recorded and what its lines show: clients that were left
out, rounds that are missing, local training that still improved at the end. They change no number
and pick no result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd.escaping import plain
from fedkd.results import Run

LOCAL_TRAINING, UNIFORM_FUSION = "local training", "uniform fusion"
ANOTHER_METHOD = (LOCAL_TRAINING, UNIFORM_FUSION)
"""Kinds of caveats that say that a run is of another method than its name says."""
UNFINISHED, ENDED_EARLY, LEFT_OUT = "unfinished", "ended early", "clients left out"
NOT_CONVERGED, FEW_ROUNDS = "not converged", "few rounds"
ORDER = (*ANOTHER_METHOD, "", UNFINISHED, ENDED_EARLY, LEFT_OUT, NOT_CONVERGED, FEW_ROUNDS)
"""What comes first under a table; the empty kind stands for all other warnings."""

LOCAL, FUSED = "after local training", "after fusion"
FEWEST_ROUNDS = 8  # measured ones, so that a quarter of them has two
RISE = 0.01
STANDARD_ERRORS = 2.0
NAMED = 3
"""Rows or clients that a line names; the others it counts."""
MARKS = "†‡§¶"
"""Of notes, in their order; doubled where there are more."""


@dataclass(frozen=True)
class Caveat:
    """One thing to know of a run.

    Caveats of one ``kind`` are gathered over runs; their texts are alike and may differ in numbers.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text


def caveats(run: Run, rounds: Sequence[Mapping[str, Any]] | None = None) -> list[Caveat]:
    """All caveats of a run, finished or not, the gravest first.

    Parameters
    ----------
    run
        The run.
    rounds
        Its ``rounds``, where they have been read already.

    Raises
    ------
    FedkdError
        The run's folder cannot be read.
    """
    rounds = run.rounds if rounds is None else rounds
    lines = run.warning_lines or [
        {"message": message} for line in rounds for message in line.get("warnings", [])
    ]
    found = [
        Caveat(line.get("about", "") if line.get("about") in ANOTHER_METHOD else _kind(text), text)
        for line in lines
        for text in [line["message"]]
    ]
    found += [*_ended(run, rounds), *_left_out(run, rounds), *_converged(rounds)]
    return sorted(dict.fromkeys(found), key=_place)


def _kind(message: str) -> str:
    """What warnings have in common that differ in their numbers."""
    return re.sub(r"\d+([.,]\d+)*(e[+-]?\d+)?", "#", message)


def _place(caveat: Caveat) -> int:
    return ORDER.index(caveat.kind if caveat.kind in ORDER else "")


def _ended(run: Run, rounds: Sequence[Mapping[str, Any]]) -> Iterable[Caveat]:
    last, asked = rounds[-1]["round"] if rounds else 0, run.experiment.rounds
    if run.summary is None:
        yield Caveat(UNFINISHED, f"has not ended: {last} of {asked} rounds")
    elif rounds and last < asked:
        yield Caveat(ENDED_EARLY, f"ended after {last} of {asked} rounds")


def _left_out(run: Run, rounds: Sequence[Mapping[str, Any]]) -> Iterable[Caveat]:
    """Who was left out of how many rounds, why first, and how few were left."""
    entries = [(line, entry) for line in rounds for entry in line.get("left_out", [])]
    if not entries:
        return
    clients = sorted({entry["client"] for _, entry in entries})
    count = len({line["round"] for line, _ in entries})
    first, entry = entries[0]
    many = f"client{'s' * (len(clients) > 1)} {_few(clients)}"
    fewest = min(
        (len(line["participants"]) for line in rounds if "participants" in line), default=0
    )
    yield Caveat(
        LEFT_OUT,
        f"{many} left out in {count} of {len(rounds)} rounds, {fewest} of "
        f"{run.experiment.data.clients} took part at the fewest; first in round {first['round']}: "
        f"client {entry['client']}, {entry['step']}, {entry['reason']}",
    )


def _converged(rounds: Sequence[Mapping[str, Any]]) -> Iterable[Caveat]:
    """Whether clients' accuracy was still rising when the run ended.

    The mean over the last quarter of the measured rounds is held against that over the quarter
    before: it is rising where it is more than one point higher, and more than twice the standard
    error of that difference, by the scatter of rounds within either quarter. The second keeps noise
    between rounds from counting; of a steady rise the difference is always above it. Early stopping
    looks at progress over strips of epochs in the same way (Prechelt 1998); the numbers are ours.
    """
    series = {
        stage: [
            float(value)
            for line in rounds
            for value in [_accuracy(line.get("local", {}) if stage == LOCAL else line)]
            if "local" in line and value is not None
        ]
        for stage in (LOCAL, FUSED)
    }
    measured = max(map(len, series.values()))
    if measured and measured < FEWEST_ROUNDS:
        rounds_ = f"{measured} measured round{'s' * (measured > 1)}"
        yield Caveat(FEW_ROUNDS, f"{rounds_}: too few to tell whether training had converged")
    for stage, values in series.items():
        if len(values) >= FEWEST_ROUNDS and (ends := rising(values)):
            before, after = (100 * mean for mean in ends)
            yield Caveat(
                NOT_CONVERGED,
                f"not converged: accuracy {stage} rose from {before:.1f} to {after:.1f} % between "
                f"the last two quarters of {len(values)} measured rounds",
            )
            return


def _accuracy(line: Mapping[str, Any]) -> float | None:
    own = line.get("own_accuracy_mean")
    return line.get("common_accuracy_mean") if own is None else own


def rising(values: Sequence[float]) -> tuple[float, float] | None:
    """Means of the last quarter but one and of the last, where values still rise; else None.

    By the rule that :func:`caveats` goes by; values are accuracies, one a round, eight at least.
    """
    quarter = len(values) // 4
    before, after = values[-2 * quarter : -quarter], values[-quarter:]
    means = [sum(part) / quarter for part in (before, after)]
    scatter = sum(
        sum((value - mean) ** 2 for value in part) / (quarter - 1)
        for part, mean in zip((before, after), means)
    )
    rise, error = means[1] - means[0], math.sqrt(scatter / quarter)
    return (means[0], means[1]) if rise > RISE and rise > STANDARD_ERRORS * error else None


def _few(items: Sequence[Any]) -> str:
    """``1, 2, 3 and 4 more``."""
    more = len(items) - NAMED
    listed = ", ".join(map(str, items[:NAMED]))
    return f"{listed} and {more} more" if more > 0 else listed


# --- gathered over runs -------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """What a table or figure says of one kind of caveat.

    ``names`` are the rows, cells or lines that it concerns, in their order: how many of their runs,
    and how many these have. ``runs`` is how many runs the table or figure has in all.
    """

    kind: str
    example: str
    alike: bool
    names: Mapping[str, tuple[int, int]]
    runs: int

    @property
    def concerned(self) -> int:
        """How many runs it concerns."""
        return sum(count for count, _ in self.names.values())

    @property
    def message(self) -> str:
        """What runs warn of: in the words of one of them, where they differ."""
        return self.example if self.alike else f"e.g. {self.example}"

    @property
    def brief(self) -> str:
        """As ``text``, without the names where there are several: ``3 of 10 runs: …``."""
        if len(self.names) == 1 or self.concerned == self.runs:
            return self.text
        return f"{self.concerned} of {self.runs} runs: {self.message}"

    @property
    def text(self) -> str:
        """``knfu, 0.1 (3 of 5 runs): …``, or ``all 10 runs: …``."""
        if self.concerned == self.runs:
            who = f"all {self.runs} runs" if self.runs > 1 else "the run"
            return f"{who}: {self.message}"
        more = len(self.names) - NAMED
        if more > 0:
            who = f"{'; '.join(list(self.names)[:NAMED])}; and {more} more"
            who = f"{self.concerned} of {self.runs} runs ({who})"
        else:
            who = "; ".join(f"{name}{_share(*counts)}" for name, counts in self.names.items())
        return f"{who}: {self.message}"


def _share(count: int, total: int) -> str:
    """How many of a name's runs, unless it has but one."""
    return f" ({count} of {total} runs)" if total > 1 else ""


def gathered(runs: Iterable[tuple[str, Collection[Caveat]]]) -> list[Note]:
    """One note a kind, from the name that each run goes by and its caveats, the gravest first."""
    totals: dict[str, int] = {}
    found: dict[str, list[tuple[str, Caveat]]] = {}
    for name, its in runs:
        totals[name] = totals.get(name, 0) + 1
        for caveat in {caveat.kind: caveat for caveat in reversed(list(its))}.values():
            found.setdefault(caveat.kind, []).append((name, caveat))
    notes = []
    for kind, concerned in sorted(found.items(), key=lambda item: _place(item[1][0][1])):
        counts: dict[str, int] = {}
        for name, _ in concerned:
            counts[name] = counts.get(name, 0) + 1
        notes.append(
            Note(
                kind=kind,
                example=concerned[0][1].text,
                alike=len({caveat.text for _, caveat in concerned}) == 1,
                names={name: (count, totals[name]) for name, count in counts.items()},
                runs=sum(totals.values()),
            )
        )
    return notes


def marked(notes: Iterable[Note], never: str = "") -> tuple[tuple[str, ...], dict[str, str]]:
    """Notes as lines that begin with their marks, and the marks of each name that they are about.

    ``never`` is what is said besides of methods that come to no more than another.
    How many rounds there are is told without a mark.
    """
    lines, marks = [], dict[str, str]()
    rank = 0
    for note in notes:
        mark, after = "", never if note.kind in ANOTHER_METHOD else ""
        if note.kind not in (ENDED_EARLY, FEW_ROUNDS):
            mark = MARKS[rank % len(MARKS)] * (1 + rank // len(MARKS))
            rank += 1
        lines.append(plain(f"{mark} {note.text}{after}".strip()))
        for name in note.names:
            marks[name] = marks.get(name, "") + mark
    return tuple(lines), marks


def span(values: Iterable[Any], noun: str) -> str:
    """``5 rounds``, ``1 client``, ``4 to 10 clients``: how many there are of a thing."""
    counts = sorted({int(value) for value in values})
    if not counts:
        return ""
    fewest = f"{counts[0]} to " if len(counts) > 1 else ""
    return f"{fewest}{counts[-1]} {noun}{'s' * (counts[-1] != 1)}"
