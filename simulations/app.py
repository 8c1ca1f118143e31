r"""What ``flwr run .`` runs: an experiment, by name or file, on Flower's own runtime.

::

    flwr run . --run-config 'experiment="quickstart" set="strategy.beta=3 rounds=5"' \
        --federation-config 'num-supernodes=10'

The number of nodes must be the experiment's ``data.clients``. A run that was begun and has not
finished begins anew with ``fresh=true``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkd.engine.flower import node_app, server_app
from fedkd.experiment import Experiment
from fedkd.results import Run
from fedkd.run import opened
from fedkd.simulations.shipped import read_experiment


def _experiment(config: dict[str, Any]) -> Experiment:
    return read_experiment(str(config["experiment"]), shlex.split(str(config["set"])))


@contextmanager
def _run(config: dict[str, Any], experiment: Experiment) -> Iterator[Run]:
    out, fresh = str(config["out"]), bool(config["fresh"])
    with opened(experiment, Path(out) if out else None, fresh=fresh) as (run, _):
        yield run if run.summary is not None and not fresh else run.begin(experiment)


server = server_app(_experiment, _run)
client = node_app(_experiment)
