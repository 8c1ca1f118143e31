"""One writer a folder: a lock that ends with the process that holds it, and names that process.

The lock is the system's own (``flock``) on the file ``.lock`` in the folder, so that nothing of it
is left when a process is killed; the file says who holds it. Readers need no lock.

On a file system that has no such locks, the holder is the process whose name is in
``.lock.owner``: one of this machine that has ended is passed over, for one of another machine the
refusal says which file to delete.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fedkd import folder as disk
from fedkd.errors import FedkdError, FedkdWarning

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK, OWNER = ".lock", ".lock.owner"
FILES = (LOCK, OWNER)
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What a file system says that has no locks."""

NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""The lock's file is written to: it is none of somewhere else, and no pipe that is waited for."""

_handles: set[int] = set()
"""Open files of the locks that this process holds: a process forked from it must not keep them."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the only one that writes to ``folder``, which is made if it is not there.

    A folder that was made and is empty at the end is removed. The lock's file is gone at the end.

    Raises
    ------
    FedkdError
        Another process, which the line names, is writing there; or the folder cannot be written to.
    """
    made = disk.make(folder)
    process = os.getpid()
    try:
        with disk.writing(folder / LOCK):
            handle = _locked(folder)
        try:
            yield
        finally:
            if os.getpid() == process:
                _release(folder, handle)
    finally:
        if os.getpid() == process:
            disk.remove_empty(made)


def _locked(folder: Path) -> int:
    """The open file of the lock; below 0 where the file system has no locks."""
    if fcntl is None:
        _own(folder)
        return -1
    while True:
        try:
            # Not inherited by other programs.
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise FedkdError(f"{folder / LOCK} is a link, which a lock is not; delete it") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed its file since it was opened here.
            ours = _same(handle, folder / LOCK)
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise _busy(folder, folder / LOCK) from None
            if error.errno not in NO_LOCKS:
                raise
            with suppress(OSError):
                (folder / LOCK).unlink()
            _own(folder)
            return -1
        if ours:
            break
        os.close(handle)
    _handles.add(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(_self()).encode())
    except BaseException:
        _release(folder, handle)
        raise
    return handle


def _same(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _release(folder: Path, handle: int) -> None:
    with suppress(OSError):
        (folder / (OWNER if handle < 0 else LOCK)).unlink()
    if handle >= 0:
        _handles.discard(handle)
        os.close(handle)


def _forked() -> None:
    """Close, in a process forked from this one, what would hold the locks as long as it lives."""
    while _handles:
        with suppress(OSError):
            os.close(_handles.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


# --- who holds it -------------------------------------------------------------------------------


def _self() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "begun": _begun(os.getpid()),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }


def _begun(pid: int) -> str:
    """When a process of this machine began, in ticks: another one may get its number later."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _busy(folder: Path, file: Path) -> FedkdError:
    holder = _holder(file)
    who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else ""
    end = "wait until it has ended, or choose another folder with --out"
    if file.name == OWNER:
        end = f"{end}; if it has ended (the file system has no locks that tell), delete {file}"
    return FedkdError(f"{folder} is being written to by {who or 'another process'}; {end}")


def _holder(file: Path) -> dict[str, Any]:
    """Who holds a lock, as far as its file says so."""
    with suppress(OSError, ValueError):
        holder = json.loads(file.read_bytes())
        if isinstance(holder, dict) and {"host", "pid", "since"} <= holder.keys():
            return holder
    return {}


def _own(folder: Path) -> None:
    """Put this process's name into the folder, where no other's is that may still be at work."""
    file = folder / OWNER
    for _ in range(2):
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if _may_live(_holder(file)):
                raise _busy(folder, file) from None
            with suppress(FileNotFoundError):
                file.unlink()
            continue
        with open(handle, "w") as stream:
            json.dump(_self(), stream)
        warnings.warn(
            f"the file system of {folder} has no locks: if this process is killed, it leaves "
            f"{file.name} behind, which another machine cannot tell from a run that goes on",
            FedkdWarning,
            stacklevel=2,
        )
        return
    raise _busy(folder, file)


def _may_live(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    except OSError:
        return True
    return _begun(holder["pid"]) == holder.get("begun")
