"""The experiment files that come with fedkd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedkd.errors import FedkdError, nearest, shown
from fedkd.experiment import Experiment
from fedkd.results import EXPERIMENT
from fedkd.toml import read_text

FOLDER = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """The shipped experiment files, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.toml"), key=lambda file: file.stem)}


def read_experiment(experiment: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in a file, or of a shipped one by name, after ``key=value`` overrides.

    Raises
    ------
    FedkdError
        There is neither; or one line that names the key, its value and what is allowed.
    """
    text = experiment_text(experiment)
    return Experiment.from_toml(text, overrides, f"experiment {shown(experiment)}")


def experiment_text(experiment: str) -> str:
    """The text of an experiment file, given its path or the name of a shipped one.

    Raises
    ------
    FedkdError
        There is neither; the line names the nearest and all that are shipped.
    """
    return read_text(find("experiment", experiment, shipped()), f"experiment {shown(experiment)}")


def find(kind: str, name: str, known: Mapping[str, Path], other: str = "") -> Path:
    """The file called ``name``: a path, or the name of one of the ``known`` files.

    Parameters
    ----------
    kind
        What the file holds, in a word.
    other
        What else ``name`` could have been.

    Raises
    ------
    FedkdError
        There is no such file; the line says what is there, or names the nearest and all shipped.
    """
    called = f"{kind} {shown(name)}"
    try:
        file = Path(name).expanduser()
        if file.is_file():
            return file
        if name in known:
            return known[name]
        if (file / EXPERIMENT).is_file():
            raise FedkdError(f"{called} is a run's folder; its experiment is {file / EXPERIMENT}")
        if name and file.exists():
            raise FedkdError(f"{called} is {'a folder' if file.is_dir() else 'not a file'}")
    except (OSError, RuntimeError, ValueError) as error:  # no such home; a null character
        raise FedkdError(
            f"{called} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    raise FedkdError(
        f"{called} is neither a file{other} nor the name of a shipped one"
        f"{nearest(name, list(known))}; shipped: {', '.join(known) or 'none'}"
    )
