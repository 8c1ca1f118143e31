"""The experiment files that come with fedkd."""

from __future__ import annotations

from pathlib import Path

from fedkd.errors import FedkdError, nearest

FOLDER = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """The shipped experiment files, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.toml"), key=lambda file: file.stem)}


def experiment_text(experiment: str) -> str:
    """The text of an experiment file, given its path or the name of a shipped one.

    Raises
    ------
    FedkdError
        There is neither; the line names the nearest and all that are shipped.
    """
    file = Path(experiment).expanduser()
    if not file.is_file():
        known = shipped()
        if experiment not in known:
            raise FedkdError(
                f"experiment {experiment!r} is neither a file nor the name of a shipped one"
                f"{nearest(experiment, list(known))}; shipped: {', '.join(known) or 'none'}"
            )
        file = known[experiment]
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FedkdError(f"experiment {experiment!r} cannot be read: {error}") from error
