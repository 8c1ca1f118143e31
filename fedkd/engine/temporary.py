"""A temporary folder of which nothing is left, however the process that made it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

LONGEST_BASE = 25
"""Characters of the folder's own folder: the path of a socket has room for about 100."""
SWEEP = """cat; i=0; gone=0
while [ $gone -lt 3 ] && [ $i -lt 60 ]; do
    if [ -e "$0" ]; then rm -rf -- "$0"; gone=0; else gone=$((gone + 1)); fi
    i=$((i + 1)); sleep 1
done"""
"""Waits for the maker to end, then sees to it that what it has begun writes nothing any more."""


class TemporaryFolder:
    """A temporary folder with a path short enough for sockets in it.

    A process of its own waits for the one that made it, and deletes the folder if that has not.

    Raises
    ------
    OSError
        There is no place for it.
    """

    def __init__(self, prefix: str) -> None:
        base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        self.path = Path(
            tempfile.mkdtemp(prefix=prefix, dir=base if len(base) <= LONGEST_BASE else "/tmp")
        )
        self._sweeper: subprocess.Popen[bytes] | None = None
        with suppress(FileNotFoundError):  # a system without a shell
            self._sweeper = subprocess.Popen(
                ["sh", "-c", SWEEP, str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the process that made it
            )

    def close(self) -> None:
        """Delete it; may be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._sweeper is not None:
            self._sweeper.kill()
            self._sweeper.communicate()
            self._sweeper = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
