"""Real runs for figures: tiny, made once."""

from itertools import product

import pytest
import texts

from fedkd import Experiment, run

TINY = """
rounds = 2
[data]
clients = 4
[data.test]
common = 20
[student]
models = ["mlp"]
width = 0.25
[training]
local_epochs = 2
batch_size = 16
[engine]
name = "inline"
"""
METHODS = ("knfu", "fedavg", "local")
ALPHAS, SIZES, SEEDS = (0.1, 100), (20, 60), (0, 1)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder of runs by ``method/alpha-size-seed``: METHODS x ALPHAS x SIZES x SEEDS."""
    root = tmp_path_factory.mktemp("runs")
    for method, alpha, size, seed in product(METHODS, ALPHAS, SIZES, SEEDS):
        keys = [f"data.alpha={alpha}", f"data.samples_per_client={size}", f"seed={seed}"]
        keys += [f"strategy.name={method}", "data.transfer.size=20"]
        run(Experiment.from_toml(TINY, keys), root / method / f"{alpha}-{size}-{seed}")
    return root


@pytest.fixture(scope="session")
def cut_run(tmp_path_factory):
    """A run of a method that moves its cut."""
    keys = ["strategy.name=fedd2s", "data.transfer.size=0", "data.samples_per_client=20"]
    return run(Experiment.from_toml(TINY, keys), tmp_path_factory.mktemp("cuts") / "run").folder


@pytest.fixture(scope="session")
def canary_runs(tmp_path_factory):
    """A folder of runs with canaries: two arms."""
    root = tmp_path_factory.mktemp("canaries")
    (root / "text").mkdir()
    for name, hottest in (("fkd", 1), ("swing", 4)):
        keys = [f"name={name}", f"release.tau_max={hottest}", "rounds=1", "canary.secrets=2"]
        run(texts.experiment(root / "text", *keys), root / name)
    return root


@pytest.fixture(scope="session")
def private_runs(tmp_path_factory):
    """A folder of runs with guarantees of clients and records, against others and the server."""
    root = tmp_path_factory.mktemp("private")
    noise = ["release.mechanism=gaussian", "release.scale=3"]
    average = ["strategy.clipping_norm=1", "strategy.noise_multiplier=2"]
    settings = {
        "average": ["strategy.name=fedavg", *average],
        "local": ["strategy.name=uniform", *noise],
        "central": ["strategy.name=uniform", "release.trust=central", *noise],
        "record": ["strategy.name=uniform", "training.dp.noise_multiplier=2"],
    }
    for name, keys in settings.items():
        size = ["data.transfer.size=10", "data.samples_per_client=20"]
        run(Experiment.from_toml(TINY, [*keys, *size]), root / name)
    return root
