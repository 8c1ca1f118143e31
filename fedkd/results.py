"""A run's folder: everything a table or a figure needs, readable at any moment of the run.

::

    experiment.toml     the experiment, every key written out
    environment.json    versions, device, processor, state of the source tree
    partition.json      clients x classes, sizes, students
    rounds.jsonl        a line a round, written when the round ends
    clients.jsonl       a line a round, client and stage ("local": after local training;
                        "fused": at the end of the round, with the fused knowledge)
    warnings.jsonl      a line a warning: the round, 0 before the first, and the message
    releases.jsonl      a line a round, client and step that sent something: the privacy ledger
    canaries.json       planted secrets, where there are any
    exposures.jsonl     a line a secret, place and measured round
    audit.json          what ``fedkd audit`` found
    checkpoint/         state to resume from
    summary.json        written when the run ends

Lines hold measurements and, under keys that begin with ``seconds``, timings: the only entries that
may differ between two runs of one experiment.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment

if TYPE_CHECKING:
    import numpy as np

    from fedkd.privacy.exposure import Estimate

EXPERIMENT, ENVIRONMENT, PARTITION = "experiment.toml", "environment.json", "partition.json"
ROUNDS, SUMMARY, CHECKPOINT = "rounds.jsonl", "summary.json", "checkpoint"
CLIENTS, RELEASES, EXPOSURES = "clients.jsonl", "releases.jsonl", "exposures.jsonl"
CANARIES, AUDIT = "canaries.json", "audit.json"
WARNINGS = "warnings.jsonl"
UNLABELLED = {"name", "seed", "rounds", "evaluate_every", "checkpoint_every", "engine"} | {
    "data.data_dir",
    "data.download",
}
LONGEST_LABEL = 48
PLACES = ("teacher", "released", "fused", "student")
"""Where exposure is measured, on a secret's way out of its client."""
Line = Mapping[str, Any]
PACKAGES = ("fedkd", "torch", "torchvision", "flwr", "flwr-datasets", "ray", "numpy")


class Run:
    """A run's folder, to write while it runs and to read ever after."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    # --- writing ----------------------------------------------------------------------------

    @classmethod
    def at(
        cls, experiment: Experiment, folder: Path | str | None = None, resume: bool = False
    ) -> Run:
        """The folder for a run of ``experiment``, examined and not yet touched.

        Without ``folder``: ``runs/<name>-<digest>``. It may be new, or hold this same experiment.

        Raises
        ------
        FedkdError
            The folder holds something else; or there is nothing to resume.
        """
        folder = Path(folder or Path("runs") / f"{experiment.name}-{experiment.digest()}")
        run = cls(folder)
        if folder.exists() and not folder.is_dir():
            raise FedkdError(f"--out {folder} is a file; a new folder or a run's own is needed")
        if folder.is_dir() and any(map(_kept, folder.iterdir())):
            run._check_same(experiment)
        if resume and not (folder / CHECKPOINT).is_dir() and run.summary is None:
            raise FedkdError(f"--resume: {folder} holds no checkpoint to go on from")
        return run

    def begin(self, experiment: Experiment) -> Run:
        """Make the folder, or empty it of an earlier run of the same experiment."""
        lines = (ROUNDS, CLIENTS, RELEASES, EXPOSURES, WARNINGS)
        for name in (*lines, SUMMARY, PARTITION, ENVIRONMENT, CANARIES, AUDIT):
            (self.folder / name).unlink(missing_ok=True)
        self.drop_checkpoint()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(EXPERIMENT, experiment.to_toml())
        self._write(ENVIRONMENT, json.dumps(environment(experiment), indent=1))
        return self

    def _check_same(self, experiment: Experiment) -> None:
        if not (self.folder / EXPERIMENT).is_file():
            raise FedkdError(
                f"{self.folder} is not empty and is not a run's folder; choose another with --out"
            )
        if self.experiment.digest() != experiment.digest():
            raise FedkdError(
                f"{self.folder} already holds another experiment ({self.experiment.name}, "
                f"{self.experiment.digest()}; this one is {experiment.digest()}); "
                "choose another folder with --out"
            )

    def write_partition(
        self,
        classes: Sequence[str],
        counts: np.ndarray,
        own: Sequence[int],
        students: Sequence[str],
    ) -> None:
        """Record who holds what: ``counts`` is (N, C) private training samples a class."""
        clients = [
            {"client": n, "student": students[n], "train": int(row.sum()), "own_test": int(own[n])}
            | {"labels": [int(count) for count in row]}
            for n, row in enumerate(counts)
        ]
        self._write(PARTITION, json.dumps({"classes": list(classes), "clients": clients}))

    def append_round(
        self,
        line: Line,
        clients: Iterable[Line] = (),
        releases: Iterable[Line] = (),
        exposures: Iterable[Line] = (),
    ) -> None:
        """Add a round's line, after what belongs to it, on disk when this returns."""
        files = {CLIENTS: clients, RELEASES: releases, EXPOSURES: exposures, ROUNDS: [line]}
        for name, lines in files.items():
            text = "".join(json.dumps(finite(entry)) + "\n" for entry in lines)
            if not text:
                continue
            with (self.folder / name).open("a") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())

    def warn(self, message: str, round: int = 0) -> bool:
        """Record a warning, once a run; whether it is new. Tables and figures show it."""
        if message in self.warnings:
            return False
        with (self.folder / WARNINGS).open("a") as file:
            file.write(json.dumps({"round": round, "message": message}) + "\n")
        return True

    def cut_after(self, round: int) -> None:
        """Drop the lines of later rounds: a resumed run does these again."""
        for name in (ROUNDS, CLIENTS, RELEASES, EXPOSURES, WARNINGS):
            kept = [line for line in self._lines(name) if line["round"] <= round]
            if kept:
                self._write(name, "".join(json.dumps(line) + "\n" for line in kept))
            else:
                (self.folder / name).unlink(missing_ok=True)

    def write_canaries(self, canaries: Mapping[str, Any]) -> None:
        """Record the secrets that were planted."""
        self._write(CANARIES, json.dumps(canaries))

    def write_audit(self, audit: Mapping[str, Any]) -> None:
        """Record what an audit found."""
        self._write(AUDIT, json.dumps(finite(audit), indent=1))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """End the run."""
        self._write(SUMMARY, json.dumps(finite(summary), indent=1))

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint: a finished run has nothing to go on with."""
        shutil.rmtree(self.folder / CHECKPOINT, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        # Written beside and renamed, so that a reader never sees half a file.
        beside = self.folder / f".{name}.new"
        beside.write_text(text)
        beside.replace(self.folder / name)

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

    @property
    def experiment(self) -> Experiment:
        """The experiment this folder holds."""
        return Experiment.from_toml((self.folder / EXPERIMENT).read_text())

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The lines of ``rounds.jsonl``; one that was cut off by a kill is left out."""
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
        return [line["message"] for line in self._lines(WARNINGS)]

    @property
    def canaries(self) -> dict[str, Any] | None:
        """The secrets that were planted, or None."""
        return self._json(CANARIES)

    @property
    def audit(self) -> dict[str, Any] | None:
        """What ``fedkd audit`` found, or None."""
        return self._json(AUDIT)

    @property
    def partition(self) -> dict[str, Any]:
        """``classes`` and, for every client, its label counts, sizes and student."""
        return self._json(PARTITION) or {"classes": [], "clients": []}

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary, or None while the run has not ended."""
        return self._json(SUMMARY)

    def _json(self, name: str) -> dict[str, Any] | None:
        file = self.folder / name
        return json.loads(file.read_text()) if file.is_file() else None

    def _lines(self, name: str) -> list[dict[str, Any]]:
        file = self.folder / name
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text().splitlines(True) if line[-1] == "\n"]


def _kept(file: Path) -> bool:
    """Whether a file is more than what a kill left half written."""
    return not (file.name.startswith(".") and file.name.endswith(".new"))


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
    from fedkd.privacy.exposure import interval

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
    """
    groups: dict[str, list[Run]] = {}
    for run in {run.folder.resolve(): run for run in runs}.values():
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
    return [
        label
        if len(label) <= LONGEST_LABEL and found.count(label) == 1
        else f"{method}, {run.folder.resolve().name}"
        for label, method, run in zip(found, methods, runs)
    ]


def settings(run: Run) -> dict[str, Any]:
    """Every key of the run's experiment that may stand in a label, as ``table.key``."""
    keys = flat(run.experiment.model_dump(mode="json"))
    return {key: value for key, value in keys.items() if not UNLABELLED & {key, key.split(".")[0]}}


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


def environment(experiment: Experiment) -> dict[str, Any]:
    """What the run ran on, as far as it can explain a difference in numbers or time."""
    from fedkd.engine import rule

    return {
        "cohorts": rule.limits() if experiment.engine.cohort == "auto" else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "device": experiment.engine.device,
        "threads": experiment.engine.threads,
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
        return next(
            line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line
        )
    except (OSError, StopIteration):
        return platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the source tree fedkd runs from, and whether it was changed since."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout.
        if not git("ls-files", str(Path(__file__).name)):
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def finite(value: Any) -> Any:
    """``value`` with numbers that JSON does not have (NaN, infinity) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
