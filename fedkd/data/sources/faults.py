"""The lines for data sets that are not there, or cannot be read."""

from __future__ import annotations

from pathlib import Path

from fedkd.errors import FedkdError, MissingData


def missing(name: str, where: Path, downloadable: bool = True) -> MissingData:
    """The line for a data set that is not there."""
    ways = ["point --data-dir (data.data_dir, FEDKD_DATA) at its folder"]
    if downloadable:
        ways.append("set data.download = true")
    return MissingData(
        f"data set {name!r} is not at {where}: {', '.join(ways)}, or use data.dataset = 'digits'"
    )


def broken(name: str, where: Path, reason: object) -> FedkdError:
    """The line for a data set whose files cannot be read."""
    return FedkdError(f"data set {name!r} at {where} is broken or incomplete: {first_line(reason)}")


def first_line(reason: object) -> str:
    """The first line of a reason, or what kind of exception it is."""
    lines = str(reason).strip().splitlines()
    return lines[0] if lines else type(reason).__name__
