"""The experiment: the whole description of a run, typed and validated, from and to TOML."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fedkd.errors import FedkdError, shown
from fedkd.options import MOST, Table, validated
from fedkd.sections import (
    NUMERICAL,
    CanaryTable,
    DataTable,
    EngineTable,
    MeasureTable,
    PublicTable,
    ReleaseTable,
    StrategyTable,
    StudentTable,
)
from fedkd.toml import dotted, parse, settings
from fedkd.training_tables import DistillTable, ServerTable, TrainingTable
from fedkd.work import Source, origin


class Experiment(Table):
    """The whole description of a run."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run; its folder starts with it."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Key of every random draw."""
    rounds: int = Field(10, ge=1, le=MOST)
    """Number of rounds R."""
    participation: float = Field(1.0, gt=0, le=1)
    """Share of clients that take part in a round; at least one."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Chance that a client that was selected drops out of the round before it has done anything;
    one at least stays."""
    on_empty_round: Literal["stop", "skip"] = "stop"
    """What becomes of a round in which no client's reply can be used: the run ends with a line; or
    it goes on, and the round has changed nothing but what clients learned by themselves."""
    target_accuracy: float | None = Field(None, gt=0, le=1)
    """Own accuracy, mean over clients, that the summary counts rounds and bytes up to: after fusion
    (``rounds_to_target``), and as the method's paper scores it (``headline_rounds_to_target``)."""
    evaluate_every: int = Field(1, ge=1)
    """Measure every so many rounds; the last round always is."""
    checkpoint_every: int = Field(5, ge=0)
    """Write a checkpoint every so many rounds (not ``flower``); 0 for never."""
    data: DataTable = DataTable()
    student: StudentTable = StudentTable()
    training: TrainingTable = TrainingTable()
    distill: DistillTable = DistillTable()
    server: ServerTable = ServerTable()
    strategy: StrategyTable = StrategyTable()
    release: ReleaseTable = ReleaseTable()
    public: PublicTable = PublicTable()
    canary: CanaryTable = CanaryTable()
    measure: MeasureTable = MeasureTable()
    engine: EngineTable = EngineTable()

    @classmethod
    def from_dict(cls, tables: dict[str, Any]) -> Experiment:
        """Validate ``tables``.

        Raises
        ------
        FedkdError
            One line naming the first key that is wrong, its value and what is allowed.
        """
        return validated(cls, tables)

    @classmethod
    def from_toml(
        cls, text: str, overrides: Sequence[str] = (), name: str = "the experiment"
    ) -> Experiment:
        """Read an experiment from TOML text, then apply ``key=value`` overrides.

        ``name`` is what the text is called in an error, e.g. ``"experiment 'mine.toml'"``.

        Raises
        ------
        FedkdError
            As :meth:`from_dict`; or the text is not TOML, or an override is not ``key=value``.
        """
        return cls.from_dict(changed(parse(text, name), settings(overrides)))

    def to_toml(self) -> str:
        """The experiment as TOML, every key written out; ``from_toml`` gives it back."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def training_on(self, source: Source, round: int | None = None) -> TrainingTable:
        """How a client trains on ``source`` in ``round``, the schedule being in the rate.

        On the transfer set, or rows of it, with what ``[distill]`` sets. Without a round, as in
        training that is undone after a test, there is no schedule.
        """
        on_transfer = origin(source) == "transfer"
        changes = self.distill.training if on_transfer else {}
        factor = 1.0 if round is None else self.training.rate(round, self.rounds)
        if factor != 1:
            changes["lr"] = factor * changes.get("lr", self.training.lr)
        return self.training.model_copy(update=changes) if changes else self.training

    def measured(self, round: int) -> bool:
        """Whether clients are measured in ``round``."""
        return round % self.evaluate_every == 0 or round == self.rounds

    def digest(self) -> str:
        """Eight hex digits that depend on everything that can change a number.

        Not on the name, the engine or where the data lies: the same experiment run elsewhere is
        the same experiment. What of the engine is :data:`NUMERICAL` counts. Keys that have their
        defaults do not: a key that a later version adds makes no other experiment.
        """
        tables = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        engine = tables.pop("engine", {})
        tables["engine"] = {key: engine[key] for key in NUMERICAL if key in engine}
        for key in ("name", "checkpoint_every"):
            tables.pop(key, None)
        for key in ("data_dir", "download"):
            tables.get("data", {}).pop(key, None)
        tables = {name: value for name, value in tables.items() if value != {}}
        return hashlib.blake2b(repr(_sorted(tables)).encode(), digest_size=4).hexdigest()

    def data_dir(self) -> Path | None:
        """The folder of data sets: ``data.data_dir``, else FEDKD_DATA, else None."""
        folder = self.data.data_dir or os.environ.get("FEDKD_DATA")
        try:
            return Path(folder).expanduser() if folder else None
        except RuntimeError:
            raise FedkdError(
                f"data.data_dir (or FEDKD_DATA) = {folder!r} is not allowed: there is no such home "
                "folder"
            ) from None

    def located(self) -> Experiment:
        """The same with every path absolute, for processes that run in folders of their own."""
        folder = self.data_dir()
        data: dict[str, Any] = {"data_dir": str(folder.resolve())} if folder else {}
        transfer = self.data.transfer
        kind, colon, path = transfer.source.partition(":")
        if colon and Path(path).exists():
            source = f"{kind}:{Path(path).resolve()}"
            data["transfer"] = transfer.model_copy(update={"source": source})
        kind, colon, path = self.data.dataset.partition(":")
        if colon and Path(path).exists():
            data["dataset"] = f"{kind}:{Path(path).resolve()}"
        return self.model_copy(update={"data": self.data.model_copy(update=data)})

    def architecture(self, client: int) -> str:
        """Name of the student that ``client`` trains."""
        return self.student.models[client % len(self.student.models)]


def changed(tables: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted keys in ``tables``, in place, and return them.

    Another ``name`` of a table, as of ``[strategy]`` or of an objective, takes the keys beside the
    former one away.

    Raises
    ------
    FedkdError
        A key goes through what is not a table.
    """
    for key, value in changes.items():
        *parents, last = key.split(".")
        if parents and last == "name":
            _renamed(tables, parents, value)
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = tables
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise FedkdError(
                    f"{dotted(key.split('.'))} = {shown(value)} is not allowed: {parent} is not a "
                    "table"
                )
        inner[last] = value
    return tables


def _renamed(tables: dict[str, Any], path: Sequence[str], name: Any) -> None:
    """Empty the table at ``path``, or the bare name that stands there, if it has another name."""
    *parents, last = path
    holder: Any = tables
    for parent in parents:
        holder = holder.get(parent) if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or last not in holder:
        return
    there = holder[last]
    default = StrategyTable().name if parents == [] else None
    bare = isinstance(there, str) and bool(parents)
    if bare or (isinstance(there, dict) and there.get("name", default) != name):
        holder[last] = {}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    return value
