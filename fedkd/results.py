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
import math
import tomllib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from fedkd import checkpoint, lock, records
from fedkd import folder as disk
from fedkd.environment import environment
from fedkd.errors import FedkdError, FedkdWarning
from fedkd.experiment import Experiment
from fedkd.folder import Tally
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
    ROUNDS,
    SUMMARY,
    WARNINGS,
)
from fedkd.records import CHECKPOINT as CHECKPOINT
from fedkd.records import PLACES as PLACES

if TYPE_CHECKING:
    import numpy as np

    from fedkd.exposures import Estimate

WITHOUT_NUMBERS = {"name", "seed", "checkpoint_every", "engine", "data.data_dir", "data.download"}
"""Keys, and a table of keys, in which runs of one experiment may differ."""
UNLABELLED = WITHOUT_NUMBERS | {"rounds", "evaluate_every"}
LONGEST_LABEL = 48
Line = Mapping[str, Any]
Value = TypeVar("Value")


class Run:
    """A run's folder, to write while it runs and to read ever after.

    What is read is checked: a file, or a line of it, that is not what a run writes is a
    :class:`~fedkd.errors.FedkdError` of one line that names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tallies: dict[str, Tally] = {}
        self._known: dict[str, tuple[Any, Any]] = {}

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
            for name in (*LINES, PARTITION, ENVIRONMENT, CANARIES, AUDIT):
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

    def _tally(self, name: str) -> Tally:
        """How much was written to a file of lines, by this object or before."""
        if name not in self._tallies:
            self._tallies[name] = Tally(disk.read(self.folder / name) or b"")
        return self._tallies[name]

    def written(self) -> dict[str, dict[str, Any]]:
        """How much was written to each file of lines, and a digest of it."""
        return {name: self._tally(name).to_json() for name in LINES}

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

    def write_canaries(self, canaries: Mapping[str, Any]) -> None:
        """Record the secrets that were planted."""
        self._write(CANARIES, json.dumps(canaries))

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
        files[SUMMARY] = _numbers(numbers).to_json()
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
        _ = self.partition, self.canaries, self.environment, self.audit

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

    def _once(self, name: str, read: Callable[[], Value]) -> Value:
        """What ``read`` makes of a file, as long as that is not written anew."""
        stamp = disk.stamp(self.folder / name)
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            known = self._known[name] = stamp, read()
        return known[1]

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
    def rounds_done(self) -> int:
        """How many whole lines ``rounds.jsonl`` has, whatever they hold."""
        return disk.whole_lines(disk.read(self.folder / ROUNDS) or b"")

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
    def environment(self) -> dict[str, Any]:
        """What the run ran on; empty where that is not known."""
        return self._json(ENVIRONMENT) or {}

    @property
    def partition(self) -> dict[str, Any]:
        """``classes``, for every client its label counts, sizes and student, and ``statistics``.

        ``statistics`` are what samples are normalised by and where that is from;
        ``effective_classes`` is e to the mean entropy of clients' label distributions.
        """
        return self._json(PARTITION) or {"classes": [], "clients": []}

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary, or None while the run has not ended."""
        summary = self._summary()
        return summary and {key: value for key, value in summary.items() if key != "files"}

    def _summary(self) -> dict[str, Any] | None:
        """The summary with ``files``, what was written to each file; not to be changed."""
        return self._once(SUMMARY, self._read_summary)

    def _read_summary(self) -> dict[str, Any] | None:
        summary = disk.read_json(self.folder / SUMMARY, partial(records.check, SUMMARY))
        if summary is None:
            return None
        if written := summary.get("files", {}).get(SUMMARY):
            numbers = {key: value for key, value in summary.items() if key != "files"}
            self._check_written(SUMMARY, _numbers(numbers), written, "its own entry")
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

    def _warn_cut_off(self, name: str, line: int) -> None:
        where = disk.at(self.folder / name, line)
        warnings.warn(f"{where} was cut off and is left out", FedkdWarning, stacklevel=5)

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


def _numbers(summary: Mapping[str, Any]) -> Tally:
    """A digest of a summary, whatever the order of its keys."""
    return Tally(json.dumps(summary, sort_keys=True).encode())


def check_not_inside_a_run(folder: Path) -> None:
    """Refuse a folder below that of a run, which would count as part of it.

    Raises
    ------
    FedkdError
        The line names the run.
    """
    for above in folder.resolve().parents:
        if (above / EXPERIMENT).is_file() and (above / ENVIRONMENT).is_file():
            raise FedkdError(
                f"--out {folder} lies in the folder of a run, {above}; choose another folder"
            )


def child(folder: Path, name: str, source: str) -> Path:
    """The folder called ``name`` in ``folder``, as the file ``source`` in it says.

    Raises
    ------
    FedkdError
        It is not the name of a folder there: it has a slash, or leads elsewhere.
    """
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise FedkdError(f"{folder / source}: folder = {name!r} is not allowed: a name is needed")
    return folder / name


def check_inside(place: Path, folder: Path) -> None:
    """Refuse a run's folder that would lie outside that of its suite or study.

    Raises
    ------
    FedkdError
        It does, by its name or by a link.
    """
    if folder.resolve() not in place.resolve().parents:
        raise FedkdError(f"{place} is not inside {folder}: nothing is written there")


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


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """Mean, standard deviation, mean of the worst tenth, minimum and Jain's index over clients.

    The standard deviation is the population's (the clients are all there are); the worst tenth is
    ceil(N / 10) clients; Jain's index is (sum x)^2 / (N sum x^2), 1 where all are alike (Jain, Chiu
    & Hawe 1984).
    """
    import numpy as np

    array = np.sort(np.asarray(values, dtype=np.float64))
    if array.size == 0:
        return {}
    worst = array[: math.ceil(array.size / 10)]
    squares = array.size * np.square(array).sum()
    numbers = {
        "mean": array.mean(),
        "std": array.std(),
        "worst10": worst.mean(),
        "min": array[0],
        "jain": array.sum() ** 2 / squares if squares else 1.0,
    }
    return {f"{name}_{key}": float(value) for key, value in numbers.items()}


def reached(run: Run, target: float) -> dict[str, float | None]:
    """Rounds and bytes until the mean own accuracy was first at least ``target``; None if never.

    Bytes are those of all clients, up and down, to the end of that round.
    """
    spent = 0
    for line in run.rounds:
        spent += line["bytes_up"] + line["bytes_down"]
        if line.get("own_accuracy_mean", -1.0) >= target:
            return {"rounds_to_target": line["round"], "bytes_to_target": spent}
    return {"rounds_to_target": None, "bytes_to_target": None}


def exposures(
    runs: Iterable[Run], place: str, repeats: int | None = None, score: str = "exposure"
) -> tuple[list[float], list[str]]:
    """Exposure in bits of each secret at ``place`` in the last measured round, and its cluster.

    Parameters
    ----------
    runs
        Runs that differ in their seed.
    place
        One of :data:`PLACES`. Where several observers have a secret, the mean over them counts;
        a model that diverged has no exposure and does not.
    repeats
        Secrets repeated so often; all of them when not given.
    score
        What sequences are ranked by: ``exposure``, their probability; at released and fused also
        ``linear``, the sum of the probabilities of their symbols.

    Returns
    -------
    tuple
        Values, and beside each the name of the model that it depends on with others: a teacher and
        its labels are one client's, the student and fused labels are one of all secrets of a run.
    """
    found = exposures_by_secret(runs, place, repeats, score)
    return [value for _, value, _ in found], [cluster for *_, cluster in found]


def exposures_by_secret(
    runs: Iterable[Run], place: str, repeats: int | None = None, score: str = "exposure"
) -> list[tuple[tuple[int, int], float, str]]:
    """What :func:`exposures` gives: seed and number of each secret, its value and cluster."""
    import numpy as np

    values = []
    for run in runs:
        seed = run.experiment.seed
        lines = [line for line in run.exposures if line["place"] == place]
        last = max((line["round"] for line in lines), default=0)
        found: dict[int, list[float]] = {}
        holders = {}
        for line in lines:
            wanted = line["round"] == last and repeats in (None, line["repeats"])
            if wanted and line.get(score) is not None:
                found.setdefault(line["secret"], []).append(line[score])
                holders[line["secret"]] = line["holders"][0]
        for secret, seen in found.items():
            own = f" {holders[secret]}" if place in ("teacher", "released") else ""
            values.append(((seed, secret), float(np.mean(seen)), f"{seed}{own}"))
    return values


def exposure(runs: Iterable[Run], place: str, repeats: int | None = None) -> Estimate | None:
    """Mean exposure at ``place`` and its 95 % interval, in bits; None where it was not measured."""
    from fedkd.exposures import interval

    values, clusters = exposures(runs, place, repeats)
    return interval(values, clusters) if values else None


def most_repeated(run: Run) -> int:
    """The highest level of repeats of the secrets in an experiment."""
    return max(run.experiment.canary.repeats)


def utility_name(run: Run) -> str:
    """What runs are compared at: ``perplexity`` of text, ``accuracy`` of images."""
    text = any(f"{tests}_perplexity_mean" in (run.summary or {}) for tests in ("common", "own"))
    return "perplexity" if text else "accuracy"


def utility(run: Run) -> float:
    """Perplexity or accuracy at the end, on the common test set or else on clients' own.

    Raises
    ------
    FedkdError
        Neither was measured.
    """
    summary, name = run.summary or {}, utility_name(run)
    for tests in ("common", "own"):
        if (value := summary.get(f"{tests}_{name}_mean")) is not None:
            return float(value)
    raise FedkdError(f"{run.folder} has no {name}: it has not ended, or measures nothing")


def by_seed(runs: Sequence[Run], but: Collection[str] = ()) -> list[list[Run]]:
    """Gather runs that differ only in their seed, in the order given; a folder counts once.

    ``but`` are further keys, as ``data.alpha``, in which runs of a group may differ.

    Raises
    ------
    FedkdError
        Two folders hold the same experiment with the same seed: they would count as two seeds.
    """
    groups: dict[str, list[Run]] = {}
    seen: dict[str, Run] = {}
    for run in {run.folder.resolve(): run for run in runs}.values():
        same = seen.setdefault(run.experiment.digest(), run)
        if same is not run:
            raise FedkdError(
                f"{same.folder} and {run.folder} are one experiment with one seed, "
                f"{run.experiment.seed}: name one of them"
            )
        groups.setdefault(_without(run.experiment, ("seed", *but)).digest(), []).append(run)
    return list(groups.values())


def _without(experiment: Experiment, keys: Collection[str]) -> Experiment:
    """``experiment`` with ``keys`` as they are where nothing is said."""
    tables = experiment.model_dump(mode="json", exclude_none=True)
    for key in keys:
        *parents, last = key.split(".")
        inner = tables
        for parent in parents:
            inner = inner.get(parent, {})
        inner.pop(last, None)
    return Experiment.from_dict(tables)


def labels(runs: Sequence[Run], but: Collection[str] = ()) -> list[str]:
    """Name runs by their methods and what tells them apart; where that is too much, by folder.

    ``but`` are keys that a name leaves out, as they are told elsewhere.
    """
    tables = [settings(run) for run in runs]
    methods = [run.experiment.strategy.name for run in runs]
    found = []
    for table, method in zip(tables, methods):
        label = method
        for key, value in table.items():
            own = key.startswith("strategy.")
            others = [t for t, m in zip(tables, methods) if m == method or not own]
            apart = key != "strategy.name" and key not in but
            if apart and any(other.get(key) != value for other in others):
                label += f", {key.split('.')[-1]} = {_short(value)}"
        found.append(label)
    folders = _tails([run.folder.resolve() for run in runs])
    return [
        label if len(label) <= LONGEST_LABEL and found.count(label) == 1 else f"{method}, {folder}"
        for label, method, folder in zip(found, methods, folders)
    ]


def _tails(folders: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells it from the others."""
    deepest = max((len(folder.parts) for folder in folders), default=0)
    names = ["/".join(folder.parts[-1:]) for folder in folders]
    for depth in range(2, deepest + 1):
        names = [
            "/".join(folder.parts[-depth:]) if names.count(name) > 1 else name
            for name, folder in zip(names, folders)
        ]
    return names


def settings(run: Run) -> dict[str, Any]:
    """Every key of the run's experiment that may stand in a label, as ``table.key``."""
    keys = flat(run.experiment.model_dump(mode="json"))
    return {key: value for key, value in keys.items() if not UNLABELLED & {key, key.split(".")[0]}}


def is_setting(name: str) -> bool:
    """Whether a column of runs is a key of their experiments by which numbers may differ."""
    table, dot, _ = name.partition(".")
    known = table in Experiment.model_fields and (dot or name in flat(Experiment().model_dump()))
    return bool(known) and not WITHOUT_NUMBERS & {name, table}


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every key of tables in tables, as ``table.key``."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def finite(value: Any) -> Any:
    """``value`` with numbers that JSON does not have (NaN, infinity) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
