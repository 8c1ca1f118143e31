"""fedkd: federated knowledge distillation, simulated."""

from importlib.metadata import PackageNotFoundError, version

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.results import Run
from fedkd.run import Observer, check, run

try:
    __version__ = version("fedkd")
except PackageNotFoundError:  # run from the source folder
    __version__ = "0+source"

__all__ = ["Experiment", "FedkdError", "Observer", "Run", "check", "run"]
