"""Whether the audit of DP-SGD stays below its formal epsilon, seed by seed.

``python tests/benchmarks/audit_dpsgd.py [SEEDS]``: quickstart with fedavg, one round, 16 shadows,
sigma 20 and 200. Fewer clients, as what is to be shown is of each by itself. A line a seed.
"""

import sys
import tempfile
from pathlib import Path

from fedkd import run
from fedkd.experiment import Experiment
from fedkd.lab.attack import attack
from fedkd.privacy.guarantees import guarantee
from fedkd.simulations.shipped import experiment_text

FEWER = ("data.clients=4", "strategy.name=fedavg", "rounds=1")


def main(seeds: int) -> None:
    """Print formal and audited epsilon of every seed, and how many audits stay below."""
    for sigma in (20, 200):
        below = 0
        for seed in range(seeds):
            noise = f"training.dp.noise_multiplier={sigma}"
            given = (*FEWER, f"seed={seed}", noise)
            experiment = Experiment.from_toml(experiment_text("quickstart"), given)
            with tempfile.TemporaryDirectory() as folder:
                formal = guarantee(run(experiment, Path(folder) / "run").releases, experiment)
            found = attack(experiment, 16).findings
            audited = max(one.epsilon for one in found if one.epsilon is not None)
            below += audited <= formal.epsilon
            print(f"sigma {sigma}, seed {seed}: formal {formal.epsilon:.3f}, audited {audited:.3f}")
        print(f"sigma {sigma}: {below} of {seeds} at or below the formal epsilon", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
