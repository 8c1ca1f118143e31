"""What is remembered on disk, and how it comes back."""

import numpy as np
import pytest

from fedkd.data import cache


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(2 * cache.MAPPED, dtype=np.uint8).reshape(2, -1),
        np.asfortranarray(np.random.default_rng(0).random((400, 500))),
        np.random.default_rng(0).random((400, 500)).astype(np.float32),
        np.array(["zero", "one"]),
        np.zeros((0, 3)),
    ],
    ids=["bytes", "columns first", "floats", "names", "empty"],
)
def test_what_was_remembered_comes_back_as_it_was(array):
    made = []

    def make():
        made.append(1)
        return {"first": np.arange(3), "x": array}

    for _ in range(3):
        found = cache.remembered("datasets", "key", make)["x"]
        assert (found == array).all()
        assert found.dtype == array.dtype
    assert made == [1]


def test_large_arrays_are_mapped_and_writing_to_one_stays_in_the_process():
    def remembered():
        return cache.remembered("datasets", "key", lambda: {"x": np.ones(cache.MAPPED, np.uint8)})

    remembered()
    mapped = remembered()["x"]
    assert isinstance(mapped, np.memmap)
    mapped[:] = 7
    assert (remembered()["x"] == 1).all()
