"""Memory that processes share: nothing of it is left when they are gone, however they end."""

from __future__ import annotations

import itertools
import mmap
import os
from pathlib import Path

NAMELESS = hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()
"""Whether memory can be shared that has no name in any folder, and is bounded by no /dev/shm."""

Name = tuple[str, int]
"""What another process opens a block by: a path, and bytes."""

_numbers = itertools.count()


class Block:
    """Shared memory that one process owns and grows as needed, for others to look into.

    Parameters
    ----------
    folder : str
        Where its file lies on systems that cannot do without.
    """

    def __init__(self, folder: str) -> None:
        if NAMELESS:
            self._file = os.memfd_create("fedkd")
            self._path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            self._path = str(Path(folder) / f"{os.getpid()}-{next(_numbers)}")
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._map: mmap.mmap | None = None

    def room(self, size: int) -> mmap.mmap | None:
        """At least ``size`` bytes to write to; None where none are needed."""
        if size and (self._map is None or len(self._map) < size):
            os.ftruncate(self._file, size)
            self._map = mmap.mmap(self._file, size)
        return self._map

    @property
    def name(self) -> Name:
        """For :class:`Window`, in any process of this user."""
        return self._path, 0 if self._map is None else len(self._map)

    def close(self) -> None:
        """Give the memory back once nobody looks into it."""
        self._map = None
        os.close(self._file)
        if not NAMELESS:
            Path(self._path).unlink(missing_ok=True)


class Window:
    """A look into somebody else's block, kept open as long as the block stays the same."""

    def __init__(self) -> None:
        self._name: Name = ("", 0)
        self._map: mmap.mmap | None = None

    def at(self, name: Name) -> mmap.mmap | None:
        """The memory of a block.

        Raises
        ------
        OSError
            Its owner is gone.
        """
        if name != self._name:
            path, size = name
            self._map = None
            if size:
                file = os.open(path, os.O_RDWR)
                try:
                    self._map = mmap.mmap(file, size)
                finally:
                    os.close(file)
            self._name = name
        return self._map
