"""What is refused before a run begins: an experiment that cannot be run here."""

from __future__ import annotations

from fedkd import registry
from fedkd.errors import FedkdError, blamed
from fedkd.experiment import Experiment

MOST_THREADS = 32
"""Torch threads to a core: far more of them wait for one another for ever."""


def check(experiment: Experiment) -> None:
    """Refuse an experiment whose strategy or students do not fit, before anything is loaded.

    Raises
    ------
    FedkdError
        One line naming the key, its value and what is allowed.
    """
    from fedkd.engine import plan
    from fedkd.privacy.dpsgd import check_norm

    threads, cores = experiment.engine.threads, plan.cores()
    if threads > MOST_THREADS * cores:
        raise FedkdError(
            f"engine.threads = {threads} is too many for {cores} cores: at most {MOST_THREADS} to "
            "a core are allowed"
        )
    registry.load("partitions", experiment.data.partition)
    table = experiment.student
    for model in (*table.models, *([table.teacher] if table.teacher else [])):
        registry.load("students", model)
    check_norm(experiment.student, experiment.training.dp)
    name = experiment.strategy.name
    strategy = registry.load("strategies", name)
    with blamed(f"strategy {name!r}, check()"):
        strategy.check(experiment)
