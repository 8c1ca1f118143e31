"""A run's folder: everything a table or a figure needs, readable at any moment of the run.

::

    experiment.toml     the experiment, every key written out
    environment.json    versions, device, processor, state of the source tree
    partition.json      clients x classes, sizes, students; what samples are normalised by
    rounds.jsonl        a line a round, written when the round ends
    clients.jsonl       a line a round, client and stage ("local": after local training;
                        "fused": at the end of the round, with the fused knowledge)
    warnings.jsonl      a line a warning: the round, 0 before the first, the message, what about
    releases.jsonl      a line a round, client and step that sent something: the privacy ledger
    canaries.json       planted secrets, where there are any
    exposures.jsonl     a line a secret, place and measured round
    reliability.json    confidence and accuracy in bins of confidence, written when the run ends
    audit.json          what ``fedkd audit`` found
    checkpoint/         state to resume from: the two newest checkpoints
    summary.json        written when the run ends, with the number of lines of the other files and
                        a digest of each
    .lock               while a process writes to the folder: which one

Lines hold measurements and, under keys that begin with ``seconds``, timings: the only entries that
may differ between two runs of one experiment.
"""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedkd import checkpoint, lock, records
from fedkd import folder as disk
from fedkd.environment import environment
from fedkd.errors import FedkdError, FedkdWarning
from fedkd.experiment import Experiment
from fedkd.folder import Tally, finite
from fedkd.nesting import check_not_inside_a_run
from fedkd.records import (
    AUDIT,
    CANARIES,
    CLIENTS,
    ENVIRONMENT,
    EXPERIMENT,
    EXPOSURES,
    KEPT,
    LINES,
    PARTITION,
    RELEASES,
    RELIABILITY,
    ROUNDS,
    SUMMARY,
    WARNINGS,
)
from fedkd.records import CHECKPOINT as CHECKPOINT
from fedkd.records import PLACES as PLACES
from fedkd.runfiles import RunFiles, digest_of

if TYPE_CHECKING:
    import numpy as np

Line = Mapping[str, Any]


class Run(RunFiles):
    """A run's folder, to write while it runs and to read ever after.

    What is read is checked: a file, or a line of it, that is not what a run writes is a
    :class:`~fedkd.errors.FedkdError` of one line that names it.
    """

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    # --- writing ----------------------------------------------------------------------------

    @classmethod
    def at(cls, experiment: Experiment, folder: Path | str | None = None) -> Run:
        """The folder for a run of ``experiment``, examined and not yet touched.

        Without ``folder``: ``runs/<name>-<digest>``. It may be new, or hold this same experiment.

        Raises
        ------
        FedkdError
            The folder holds something else, or lies in the folder of another run.
        """
        folder = Path(folder or Path("runs") / f"{experiment.name}-{experiment.digest()}")
        run = cls(folder)
        with disk.writing(folder):
            if folder.exists() and not folder.is_dir():
                raise FedkdError(f"--out {folder} is a file; a new folder or a run's own is needed")
            if folder.is_dir() and any(map(_kept, folder.iterdir())):
                run._check_same(experiment)
            check_not_inside_a_run(folder)
        return run

    def begin(self, experiment: Experiment) -> Run:
        """Make the folder, or empty it of an earlier run of the same experiment.

        A checkpoint that cannot be read is set aside.

        Raises
        ------
        FedkdError
            The folder cannot be written to.
        """
        disk.make(self.folder)
        with disk.writing(self.folder):
            # First what says that there is something to read, or to go on from.
            (self.folder / SUMMARY).unlink(missing_ok=True)
            checkpoint.set_aside_damaged(self.folder)
            checkpoint.drop(self.folder)
            for name in (*LINES, PARTITION, ENVIRONMENT, CANARIES, AUDIT, RELIABILITY):
                (self.folder / name).unlink(missing_ok=True)
            disk.remove_halves(self.folder)
        self._tallies.clear()
        self._write(EXPERIMENT, experiment.to_toml())
        self._write(ENVIRONMENT, json.dumps(environment(experiment), indent=1))
        return self

    def _check_same(self, experiment: Experiment) -> None:
        if not (self.folder / EXPERIMENT).is_file():
            raise FedkdError(
                f"{self.folder} is not empty and is not a run's folder; choose another with --out"
            )
        held, unknown = self._read_experiment()
        if unknown:
            raise FedkdError(
                f"{self.folder} holds an experiment of another version of fedkd, with the key "
                f"{unknown[0]}; choose another folder with --out"
            )
        if held.digest() != experiment.digest():
            raise FedkdError(
                f"{self.folder} already holds another experiment ({held.name}, "
                f"{held.digest()}; this one is {experiment.digest()}); "
                "choose another folder with --out"
            )

    def write_partition(
        self,
        classes: Sequence[str],
        counts: np.ndarray,
        own: Sequence[int],
        students: Sequence[str],
        described: Line = MappingProxyType({}),
    ) -> None:
        """Record who holds what: ``counts`` is (N, C) private training samples a class.

        ``described`` is what else there is to say of the data.
        """
        clients = [
            {"client": n, "student": students[n], "train": int(row.sum()), "own_test": int(own[n])}
            | {"labels": [int(count) for count in row]}
            for n, row in enumerate(counts)
        ]
        held = {"classes": list(classes), "clients": clients, **described}
        self._write(PARTITION, json.dumps(held))

    def write_data_fingerprint(self, fingerprint: str) -> None:
        """Record which data the run is on: it is not resumed on others."""
        known = self.environment | {"data_fingerprint": fingerprint}
        self._write(ENVIRONMENT, json.dumps(known, indent=1))

    def append_round(
        self,
        line: Line,
        clients: Iterable[Line] = (),
        releases: Iterable[Line] = (),
        exposures: Iterable[Line] = (),
    ) -> None:
        """Add a round's line, after what belongs to it, on disk when this returns.

        Raises
        ------
        FedkdError
            It cannot be written; nothing of the round is there then.
        """
        self._append({CLIENTS: clients, RELEASES: releases, EXPOSURES: exposures, ROUNDS: [line]})

    def warn(self, message: str, round: int = 0, about: str = "") -> bool:
        """Record a warning, once a run; whether it is new. Tables and figures show it.

        ``about`` is what a strategy's :meth:`warn_once` says that it is about.
        """
        if message in self.warnings:
            return False
        line = {"round": round, "message": message} | ({"about": about} if about else {})
        summary = self.summary
        self._append({WARNINGS: [line]})
        if summary is not None:  # which says how much was written to each file
            self.write_summary(summary)
        return True

    def _append(self, files: Mapping[str, Iterable[Line]]) -> None:
        texts = {
            name: "".join(json.dumps(finite(entry)) + "\n" for entry in lines)
            for name, lines in files.items()
        }
        texts = {name: text for name, text in texts.items() if text}
        tallies = {name: self._tally(name) for name in texts}
        disk.append({self.folder / name: text for name, text in texts.items()})
        for name, tally in tallies.items():
            tally.add(texts[name].encode())

    def cut(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Drop the lines that came after :meth:`written` gave ``files``: they are made again.

        Raises
        ------
        FedkdError
            A file does not hold what was written by then; nothing is dropped.
        """
        kept = {}
        for name in LINES:
            content = disk.read(self.folder / name) or b""
            lines = content.split(disk.NEWLINE)[: files[name]["lines"]]
            kept[name] = b"".join(line + disk.NEWLINE for line in lines if line)
            self._check_written(name, Tally(kept[name]), files[name], "the checkpoint")
        for name, content in kept.items():
            before = disk.read(self.folder / name) or b""
            if disk.whole_lines(before) < len(before.splitlines()):
                self._warn_cut_off(name, disk.whole_lines(before) + 1)
            if content != before:
                self._write(name, content)
            if not content:
                (self.folder / name).unlink(missing_ok=True)
        self._tallies.clear()

    def write_canaries(self, canaries: Mapping[str, Any]) -> None:
        """Record the secrets that were planted."""
        self._write(CANARIES, json.dumps(canaries))

    def write_reliability(self, bins: Mapping[str, Any]) -> None:
        """Record how sure students were when last tested, and how right."""
        self._write(RELIABILITY, json.dumps(finite(bins)))

    def write_audit(self, audit: Mapping[str, Any]) -> None:
        """Record what an audit found."""
        self._write(AUDIT, json.dumps(finite(audit), indent=1))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """End the run: with the summary goes how much was written to each file."""
        files = self.written()
        for name in KEPT:
            if (content := disk.read(self.folder / name)) is not None:
                files[name] = Tally(content).to_json()
        numbers = finite(summary)
        files[SUMMARY] = digest_of(numbers).to_json()
        self._write(SUMMARY, json.dumps(numbers | {"files": files}, indent=1))

    def drop_checkpoint(self) -> None:
        """Remove the checkpoints: a finished run has nothing to go on with."""
        checkpoint.drop(self.folder)

    def _write(self, name: str, text: str | bytes) -> None:
        disk.write(self.folder / name, text)

    # --- reading ----------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """An existing run's folder.

        Raises
        ------
        FedkdError
            There is no run in ``folder``.
        """
        folder = Path(folder)
        if not (folder / EXPERIMENT).is_file():
            raise FedkdError(f"{folder} is not a run's folder: it has no {EXPERIMENT}")
        return cls(folder)

    def check(self) -> None:
        """Read all that figures and tables are made from.

        Raises
        ------
        FedkdError
            A file cannot be read, or is not what the run has written.
        """
        _ = self.experiment
        files = self._files()
        for name in LINES:
            there = Tally(disk.read(self.folder / name) or b"").to_json()
            if name not in files or there != files[name]:
                self._lines(name)
        _ = self.partition, self.canaries, self.environment, self.audit, self.reliability

    @property
    def experiment(self) -> Experiment:
        """The experiment this folder holds; keys of another version are left out, with a word."""
        experiment, unknown = self._once(EXPERIMENT, self._read_experiment)
        if unknown:
            warnings.warn(
                f"{self.folder / EXPERIMENT} is of another version of fedkd: "
                f"{', '.join(unknown)} is passed over",
                FedkdWarning,
                stacklevel=2,
            )
        return experiment

    def _read_experiment(self) -> tuple[Experiment, list[str]]:
        """The experiment, and keys in its file that are not known."""
        file = self.folder / EXPERIMENT
        content = disk.read(file)
        if content is None:
            raise FedkdError(f"{self.folder} is not a run's folder: it has no {EXPERIMENT}")
        self._check_kept(EXPERIMENT, content)
        try:
            tables = tomllib.loads(disk.decoded(content, str(file)))
            unknown = records.without_unknown(Experiment, tables)
            return Experiment.from_dict(tables), unknown
        except (tomllib.TOMLDecodeError, RecursionError, ValueError, FedkdError) as error:
            reason = str(error).removeprefix(f"{file} ")
            raise FedkdError(f"{file} cannot be read: {reason}") from error

    @property
    def experiment_digest(self) -> str:
        """A digest of the text of ``experiment.toml``."""
        return Tally(disk.read(self.folder / EXPERIMENT) or b"").digest

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The lines of ``rounds.jsonl``: of the rounds 1, 2, …, once each.

        A last line that was cut off by a kill is left out, with a word.
        """
        return self._lines(ROUNDS)

    @property
    def clients(self) -> list[dict[str, Any]]:
        """The lines of ``clients.jsonl``."""
        return self._lines(CLIENTS)

    @property
    def releases(self) -> list[dict[str, Any]]:
        """The lines of ``releases.jsonl``."""
        return self._lines(RELEASES)

    @property
    def exposures(self) -> list[dict[str, Any]]:
        """The lines of ``exposures.jsonl``.

        Each has ``round``, ``place`` (of :data:`PLACES`), ``observer`` (a client; none where it is
        everybody), ``secret``, ``repeats``, ``holders``, and ``exposure`` in bits; at released and
        fused also ``linear``, by another score.
        """
        return self._lines(EXPOSURES)

    @property
    def warnings(self) -> list[str]:
        """What a reader of the run's numbers must know, in the order in which it was found."""
        return [line["message"] for line in self.warning_lines]

    @property
    def warning_lines(self) -> list[dict[str, Any]]:
        """The lines of ``warnings.jsonl``: ``round``, ``message``, and ``about`` if there is."""
        return self._lines(WARNINGS)

    @property
    def canaries(self) -> dict[str, Any] | None:
        """The secrets that were planted, or None."""
        return self._json(CANARIES)

    @property
    def audit(self) -> dict[str, Any] | None:
        """What ``fedkd audit`` found, or None."""
        return self._json(AUDIT)

    @property
    def reliability(self) -> dict[str, Any] | None:
        """How sure students were when last tested, and how right, or None where that is not known.

        By the set of tests, ``own`` and ``common``, and the stage, ``local`` and ``fused``: lists
        over bins of confidence of equal width, of all clients' predictions: ``count``, the mean
        ``confidence`` and the ``accuracy``, None in a bin without predictions.
        """
        return self._json(RELIABILITY)

    @property
    def environment(self) -> dict[str, Any]:
        """What the run ran on; empty where that is not known."""
        return self._json(ENVIRONMENT) or {}

    @property
    def partition(self) -> dict[str, Any]:
        """``classes``, for every client its label counts, sizes and student, and ``statistics``.

        ``statistics`` are what samples are normalised by and where that is from;
        ``effective_classes`` is e to the mean entropy of clients' label distributions, and
        ``effective_classes_of_clients`` e to the entropy of each.
        """
        return self._json(PARTITION) or {"classes": [], "clients": []}

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary, or None while the run has not ended."""
        summary = self._summary()
        return summary and {key: value for key, value in summary.items() if key != "files"}


def readable(runs: Sequence[Run], named: bool = False) -> list[Run]:
    """The runs that can be read; the others are named, with the reason, and left out.

    Raises
    ------
    FedkdError
        The only run there is cannot be read, or, where runs are ``named`` by a person, none can.
    """
    sound, first = [], None
    for run in runs:
        try:
            run.check()
        except FedkdError as error:
            if named and len(runs) == 1:
                raise
            first = first or error
            left_out(error)
        else:
            sound.append(run)
    if named and first is not None and not sound:
        raise first
    return sound


def left_out(error: FedkdError) -> None:
    """Say why a run is left out of what is shown."""
    warnings.warn(f"left out: {error}", FedkdWarning, stacklevel=3)


def _kept(file: Path) -> bool:
    """Whether a file is more than a lock, or what a kill left half written."""
    return not disk.is_half(file) and file.name not in lock.FILES
