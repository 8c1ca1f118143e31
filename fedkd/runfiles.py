"""Files of a run's folder, held to what the run says that it has written to them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedkd import folder as disk
from fedkd import records
from fedkd.errors import FedkdError, FedkdWarning
from fedkd.folder import Tally
from fedkd.records import (
    KEPT,
    LINES,
    ROUNDS,
    SUMMARY,
)

Value = TypeVar("Value")


class RunFiles:
    """The files of a run, read and checked: each by itself, and against what the run has written.

    While a run goes on its lines are counted; when it has ended, ``summary.json`` says how many
    lines each file has, and a digest of each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tallies: dict[str, Tally] = {}
        self._known: dict[str, tuple[Any, Any]] = {}

    @property
    def rounds_done(self) -> int:
        """How many whole lines ``rounds.jsonl`` has, whatever they hold."""
        return disk.whole_lines(disk.read(self.folder / ROUNDS) or b"")

    def written(self) -> dict[str, dict[str, Any]]:
        """How much was written to each file of lines, and a digest of it."""
        return {name: self._tally(name).to_json() for name in LINES}

    def _tally(self, name: str) -> Tally:
        """How much was written to a file of lines, by this object or before."""
        if name not in self._tallies:
            self._tallies[name] = Tally(disk.read(self.folder / name) or b"")
        return self._tallies[name]

    def _check_written(
        self, name: str, there: Tally, written: Mapping[str, Any], source: str
    ) -> None:
        """Refuse a file that does not hold what ``source`` says was written to it."""
        file, lines = self.folder / name, written["lines"]
        if there.to_json() == {"lines": lines, "digest": written["digest"]}:
            return
        if name in LINES:
            self._entries(name)  # names the line that is wrong, if one is by itself
            if there.lines != lines:
                raise FedkdError(
                    f"{disk.at(file, there.lines + 1)}: the run has written {lines} lines, says "
                    f"{source}, and there are {there.lines}"
                )
        if not there.lines:
            raise FedkdError(
                f"{file} is missing or empty, and the run has written it, says {source}"
            )
        raise FedkdError(f"{file} is not what the run has written: {source} has another digest")

    def _once(self, name: str, read: Callable[[], Value]) -> Value:
        """What ``read`` makes of a file, as long as that is not written anew."""
        stamp = disk.stamp(self.folder / name)
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            known = self._known[name] = stamp, read()
        return known[1]

    def _summary(self) -> dict[str, Any] | None:
        """The summary with ``files``, what was written to each file; not to be changed."""
        return self._once(SUMMARY, self._read_summary)

    def _read_summary(self) -> dict[str, Any] | None:
        summary = disk.read_json(self.folder / SUMMARY, partial(records.check, SUMMARY))
        if summary is None:
            return None
        if written := summary.get("files", {}).get(SUMMARY):
            numbers = {key: value for key, value in summary.items() if key != "files"}
            self._check_written(SUMMARY, digest_of(numbers), written, "its own entry")
        return summary

    def _files(self) -> dict[str, Any]:
        """What a run that has ended has written, by file; empty where that is not known."""
        return (self._summary() or {}).get("files", {})

    def _json(self, name: str) -> dict[str, Any] | None:
        content = disk.read(self.folder / name)
        if name in KEPT:
            self._check_kept(name, content or b"")
        if content is None:
            return None
        place = str(self.folder / name)
        return records.check(name, disk.parsed(content, place), place)

    def _check_kept(self, name: str, content: bytes) -> None:
        """Refuse a file that a run has written once and that is not as it was when it ended."""
        if written := self._files().get(name):
            self._check_written(name, Tally(content), written, SUMMARY)

    def _entries(self, name: str) -> tuple[list[dict[str, Any]], Tally]:
        """The lines of a file, each as it should be by itself and after those before it."""
        file = self.folder / name
        entries, tally, torn = disk.read_lines(file, partial(records.check, name))
        if torn:
            self._warn_cut_off(name, len(entries) + 1)
        records.check_order(name, entries, file)
        return entries, tally

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file, as many and the same as the run has written."""
        entries, tally = self._entries(name)
        summary = self._summary()
        if written := (summary or {}).get("files", {}).get(name):
            self._check_written(name, tally, written, SUMMARY)
            return entries
        file, rounds = self.folder / name, self.rounds_done
        if name != ROUNDS:
            records.check_rounds(entries, rounds + (summary is None), file)
            # A round's own line comes last: without it, its details are as if they were not there.
            return [line for line in entries if line["round"] <= rounds]
        if summary is not None and summary.get("rounds", len(entries)) != len(entries):
            raise FedkdError(
                f"{disk.at(file, len(entries) + 1)}: the run had {summary['rounds']} rounds, says "
                f"{SUMMARY}, and there are {len(entries)} lines"
            )
        return entries

    def _warn_cut_off(self, name: str, line: int) -> None:
        where = disk.at(self.folder / name, line)
        warnings.warn(f"{where} was cut off and is left out", FedkdWarning, stacklevel=5)


def digest_of(summary: Mapping[str, Any]) -> Tally:
    """A digest of a summary, whatever the order of its keys."""
    return Tally(json.dumps(summary, sort_keys=True).encode())
