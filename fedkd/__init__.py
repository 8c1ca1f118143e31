"""fedkd: federated knowledge distillation, simulated."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# strategies/, simulations/ and plots/ are packages of this one: installed they lie within its
# folder, in a source tree beside it.
if not Path(__path__[0], "strategies").is_dir():
    __path__.append(str(Path(__path__[0]).parent))

from fedkd.checks import check
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.observers import Observer
from fedkd.results import Run
from fedkd.run import run

if TYPE_CHECKING:
    from fedkd.frames import load_rounds, load_runs

try:
    __version__ = version("fedkd")
except PackageNotFoundError:  # run from the source folder
    __version__ = "0+source"

__all__ = [
    "Experiment",
    "FedkdError",
    "Observer",
    "Run",
    "check",
    "load_rounds",
    "load_runs",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import what reads runs into data frames when it is first asked for: pandas is slow."""
    if name in ("load_runs", "load_rounds"):
        from fedkd import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
