"""Checkpoints: what a run goes on from, checked before it is believed.

A checkpoint is one file, ``round-<round>-<digest>.pt``, whose name holds the digest of its content.
The two newest are kept: one that is damaged is named and set aside, and the one before is used.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from fedkd import folder as disk
from fedkd.errors import CheckpointError, FedkdError
from fedkd.records import AUXILIARY, CHECKPOINT, HELD, LINES, OPTIMISER, ROUNDS

if TYPE_CHECKING:
    from fedkd.engine.clients import State
    from fedkd.engine.worker import Worker

KEPT = 2
ASIDE = "unreadable-"
"""Begins the name of a checkpoint that could not be read: it is kept, and never used."""
NAME = re.compile(r"round-([1-9][0-9]{0,9})-([0-9a-f]{32})\.pt")
OF_EVERY_METHOD = {"_warned", "_privacy", "_server", "_transcoder"}
"""Entries of a strategy's state that every method has."""
PIECE = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A run at the end of a round.

    ``seconds`` is how long it took so far; ``strategy`` and ``states`` are what the server and the
    clients keep; ``files`` says how much was written to each file of lines by then, as
    :meth:`fedkd.folder.Tally.to_json` does; ``experiment`` is a digest of ``experiment.toml``.
    """

    round: int
    seconds: float
    strategy: dict[str, Any]
    states: dict[int, State]
    files: dict[str, dict[str, Any]]
    experiment: str


# --- writing ------------------------------------------------------------------------------------


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of the run in ``folder``, and drop all but the newest two.

    Earlier ones are dropped when this one is on disk and was read back.

    Raises
    ------
    FedkdError
        It cannot be written; the earlier ones are still there.
    """
    import torch

    place = folder / CHECKPOINT
    made = disk.make(place)
    half = place / f".state{disk.HALF}"
    with disk.writing(place):
        try:
            with half.open("wb") as stream:
                written = _Digested(stream)
                torch.save(dict(vars(checkpoint)), cast(IO[bytes], written))
                if written.error is not None:
                    raise written.error
                stream.flush()
                os.fsync(stream.fileno())
            if digest(half) != written.digest:
                raise OSError("what was read back is not what was written")
            half.replace(place / f"round-{checkpoint.round}-{written.digest}.pt")
            disk.sync(place)
        except BaseException:
            with suppress(OSError):
                half.unlink()
            disk.remove_empty(made)
            raise
        for old in _newest_first(place)[KEPT:]:
            old.unlink()


class _Digested:
    """A stream for ``torch.save``, which would not pass on what the system says against it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._hash = stream, hashlib.blake2b(digest_size=16)
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes, unless an error came before."""
        view = memoryview(content).cast("B")
        if self.error is None:
            try:
                self._stream.write(view)
            except OSError as error:
                self.error = error
            self._hash.update(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: the stream is flushed when all is written."""

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def digest(file: Path) -> str:
    """32 hex digits that depend on every byte of a file."""
    hasher = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            hasher.update(piece)
    return hasher.hexdigest()


def drop(folder: Path) -> None:
    """Remove the checkpoints of a run: it has ended, or begins anew."""
    place = folder / CHECKPOINT
    with disk.writing(place):
        for file in _newest_first(place):
            file.unlink(missing_ok=True)
        disk.remove_halves(place)
        disk.remove_empty([place])


def set_aside(file: Path) -> Path:
    """Give a checkpoint that cannot be read another name, and say which."""
    with disk.writing(file):
        number, aside = 1, file.with_name(f"{ASIDE}{file.name}")
        while aside.exists():
            number += 1
            aside = file.with_name(f"{ASIDE}{number}-{file.name}")
        file.rename(aside)
    return aside


def set_aside_damaged(folder: Path) -> None:
    """Set aside what is no checkpoint, or a damaged one, before a run begins anew."""
    for file in files(folder):
        try:
            _check_digest(file)
        except CheckpointError:
            set_aside(file)


# --- reading ------------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first, then what is none and lies among them."""
    place = folder / CHECKPOINT
    if not place.is_dir():
        return []
    known = _newest_first(place)
    others = [
        file
        for file in sorted(place.iterdir())
        if file not in known and not file.name.startswith(ASIDE) and not disk.is_half(file)
    ]
    return known + others


def _newest_first(place: Path) -> list[Path]:
    rounds = [
        (int(name[1]), file) for file in _entries(place) if (name := NAME.fullmatch(file.name))
    ]
    return [file for _, file in sorted(rounds, reverse=True)]


def _entries(place: Path) -> list[Path]:
    return list(place.iterdir()) if place.is_dir() else []


def newest(
    folder: Path, worker: Worker, experiment: str
) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint that can be read, and why those after it cannot be.

    Parameters
    ----------
    folder : Path
        The run's.
    worker : Worker
        Knows the clients and their students.
    experiment : str
        The digest of the run's ``experiment.toml``.
    """
    readable, damaged = None, dict[Path, str]()
    for file in files(folder):
        if readable is not None and NAME.fullmatch(file.name):
            continue
        try:
            readable = _read(file, worker, experiment)
        except CheckpointError as error:
            damaged[file] = str(error)
    return readable, damaged


def _check_digest(file: Path) -> int:
    """The round that a checkpoint says it is of, if its content is what was written."""
    name = NAME.fullmatch(file.name)
    if name is None:
        raise CheckpointError("it is not a checkpoint of this version of fedkd")
    try:
        if digest(file) != name[2]:
            raise CheckpointError("it is damaged: its content is not what was written")
    except OSError as error:
        raise CheckpointError(disk.reason(error)) from error
    return int(name[1])


def _read(file: Path, worker: Worker, experiment: str) -> Checkpoint:
    import torch

    round = _check_digest(file)
    try:
        # weights_only: a checkpoint may come from somebody else and must not run code.
        saved = torch.load(file, weights_only=True)
    except Exception as error:
        line = str(error).split("\n")[0]
        raise CheckpointError(f"it cannot be unpacked: {line}") from error
    try:
        loaded = Checkpoint(**saved)
    except TypeError as error:
        raise CheckpointError("its entries are not those of a checkpoint") from error
    if loaded.experiment != experiment:
        raise CheckpointError("it is of another experiment")
    if not _is_whole(loaded.round) or loaded.round != round:
        raise CheckpointError(f"round = {loaded.round!r} is not allowed: {round} is its name")
    if round > worker.experiment.rounds:
        raise CheckpointError(f"round = {round} is beyond the last one")
    if not isinstance(loaded.seconds, float) or not 0 <= loaded.seconds < math.inf:
        raise CheckpointError(f"seconds = {loaded.seconds!r} is not allowed")
    if not isinstance(loaded.strategy, dict) or not loaded.strategy.keys() >= OF_EVERY_METHOD:
        raise CheckpointError("strategy is not the state of a strategy")
    _check_files(loaded)
    _check_states(loaded.states, worker)
    return loaded


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_files(loaded: Checkpoint) -> None:
    known = loaded.files
    for name in LINES:
        entry = known.get(name) if isinstance(known, dict) else None
        if (
            not isinstance(entry, dict)
            or not _is_whole(entry.get("lines"))
            or not isinstance(entry.get("digest"), str)
        ):
            raise CheckpointError(f"it does not say how much was written to {name}")
    if known[ROUNDS]["lines"] != loaded.round:
        raise CheckpointError(
            f"{known[ROUNDS]['lines']} rounds were written at round {loaded.round}"
        )


def _check_held(client: int, name: str, tensors: Any) -> None:
    """Refuse what is no version of soft labels that a client holds."""
    import torch

    shapes = {}
    if isinstance(tensors, dict) and all(isinstance(t, torch.Tensor) for t in tensors.values()):
        shapes = {key: (tensor.dim(), tensor.dtype) for key, tensor in tensors.items()}
    if shapes != {"values": (2, torch.float32), "version": (0, torch.int64)}:
        raise CheckpointError(f"client {client}: {name!r} is not what it holds of soft labels")


def _check_auxiliary(client: int, state: dict[str, Any], name: str, classes: int) -> None:
    """Refuse what is no auxiliary head of a student that the client has."""
    import torch

    student, held = name.removeprefix(AUXILIARY).partition(":")[0], state[name]
    shapes, width, rows = {}, 0, 0
    tensors = isinstance(held, dict) and all(isinstance(t, torch.Tensor) for t in held.values())
    if tensors and "weight" in held:
        shapes = {part: (tuple(tensor.shape), tensor.dtype) for part, tensor in held.items()}
        rows, width = shapes["weight"][0] if held["weight"].dim() == 2 else (0, 0)
    wanted = {"weight": ((rows, width), torch.float32), "bias": ((rows,), torch.float32)}
    known = {key.partition(":")[0] for key in state}
    if student not in known - {""} or not rows or rows % classes or shapes != wanted:
        raise CheckpointError(f"client {client}: {name!r} is no auxiliary head of its students")


def _check_optimiser(client: int, state: dict[str, Any], name: str) -> None:
    """Refuse what is not kept by an optimiser of a student that the client has."""
    import torch

    student, arrays = name.removeprefix(OPTIMISER).rpartition(" ")[0], state[name]
    mine = next((held for key, held in state.items() if key.partition(":")[0] == student), None)
    known = isinstance(arrays, dict) and isinstance(mine, dict)
    tensors = dict(mine) if isinstance(mine, dict) else {}
    begins = f"{AUXILIARY}{student}:"
    for head in [key for key in state if key.startswith(begins)]:
        parts = state[head].items() if isinstance(state[head], dict) else ()
        tensors |= {f"{head.removeprefix(begins)} {part}": array for part, array in parts}
    for key, array in arrays.items() if known else ():
        own, _, of = str(key).partition(" ")
        like = tensors.get(of) if own != "step" else torch.zeros(())
        known = known and isinstance(array, torch.Tensor) and isinstance(like, torch.Tensor)
        if known and like is not None:
            known = (array.shape, array.dtype) == (like.shape, like.dtype)
    if not known:
        raise CheckpointError(f"client {client}: {name!r} is not what an optimiser keeps")


def _check_states(states: Any, worker: Worker) -> None:
    """Refuse what clients' students could not take in."""
    import torch

    if not isinstance(states, dict):
        raise CheckpointError("states is not a table of clients")
    for client, state in states.items():
        if not _is_whole(client) or not 0 <= client < worker.data.clients:
            raise CheckpointError(f"client {client!r} is none of {worker.data.clients}")
        if not isinstance(state, dict) or "own" not in state:
            raise CheckpointError(f"client {client} has no student of its own")
        for name, tensors in state.items():
            if str(name).startswith(OPTIMISER):
                _check_optimiser(client, state, name)
                continue
            if str(name).startswith(AUXILIARY):
                _check_auxiliary(client, state, name, worker.data.task.classes)
                continue
            if str(name).startswith(HELD):
                _check_held(client, name, tensors)
                continue
            architecture = str(name).partition(":")[2] or worker.experiment.architecture(client)
            try:
                wanted = worker.template(architecture).state_dict()
            except FedkdError as error:
                raise CheckpointError(f"client {client}, student {name!r}: {error}") from error
            if not isinstance(tensors, dict) or tensors.keys() != wanted.keys():
                raise CheckpointError(f"client {client}: {name!r} is not a {architecture}")
            for key, tensor in tensors.items():
                if not isinstance(tensor, torch.Tensor) or (tensor.shape, tensor.dtype) != (
                    wanted[key].shape,
                    wanted[key].dtype,
                ):
                    raise CheckpointError(f"client {client}: {key} of {name!r} has another shape")
