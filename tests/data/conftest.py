import os
from pathlib import Path

import numpy as np
import pytest

from fedkd.experiment import Experiment


@pytest.fixture(autouse=True)
def _no_kept_arrays(monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", "")


@pytest.fixture
def real_data():
    """The folder of real data sets; a test that asks for it is skipped where there is none."""
    folder = os.environ.get("FEDKD_DATA")
    if not folder:
        pytest.skip("FEDKD_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """``npz:`` data: 1,200 + 400 distinct images of 4x4, 4 classes, 12 writers of 100 samples."""
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("toy") / "toy.npz"
    np.savez(
        file,
        x=rng.integers(0, 256, (1200, 4, 4), dtype=np.uint8),
        y=np.tile(np.arange(4), 300),
        writer=np.repeat(np.arange(12), 100),
        x_test=rng.integers(0, 256, (400, 4, 4), dtype=np.uint8),
        y_test=np.tile(np.arange(4), 100),
    )
    return f"npz:{file}"


@pytest.fixture
def experiment():
    """An experiment from the keys of its ``[data]`` table."""

    def make(seed: int = 0, **data: object) -> Experiment:
        return Experiment.from_dict({"seed": seed, "data": data})

    return make
