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


@pytest.mark.parametrize("size", [10, 2 * cache.MAPPED])
def test_what_is_damaged_or_of_another_layout_is_made_again(tmp_path, size):
    made = []

    def make():
        made.append(1)
        return {"x": np.arange(size, dtype=np.uint8), "y": np.arange(3)}

    def remembered():
        found = cache.remembered("datasets", "key", make, cache.holds("x", "y"))
        assert found["x"].tobytes() == (np.arange(size, dtype=np.uint8)).tobytes()
        assert found["y"].tolist() == [0, 1, 2]
        return len(made)

    assert (remembered(), remembered()) == (1, 1)
    (file,) = tmp_path.glob("datasets/*.npz")
    whole = file.read_bytes()
    middle = whole.index(b"\x93NUMPY") + 128 + min(size, cache.MAPPED) // 2
    damages = [
        b"",
        b"hello",
        whole[: len(whole) // 2],
        whole[:-3],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    ]
    for times, damage in enumerate(damages, start=2):
        file.write_bytes(damage)
        assert (remembered(), remembered()) == (times, times)
    np.savez(file, x=np.arange(size, dtype=np.uint8))
    assert remembered() == len(damages) + 2


def test_a_kept_partition_of_other_rows_is_made_again(tmp_path, experiment):
    from fedkd.data.federated import load

    wanted = experiment()
    sizes = load(wanted).sizes().tolist()
    (file,) = tmp_path.glob("partitions/*.npz")
    rows, counts = (np.load(file)[name] for name in ("rows", "sizes"))
    others = [{"rows": rows}]
    others += [{"rows": wrong, "sizes": counts} for wrong in (rows * 0, rows + 9999, rows[1:])]
    for other in others:
        np.savez(file, **other)
        assert load(wanted).sizes().tolist() == sizes
        assert np.array_equal(np.load(file)["rows"], rows)


def test_large_arrays_are_mapped_and_writing_to_one_stays_in_the_process():
    def remembered():
        return cache.remembered("datasets", "key", lambda: {"x": np.ones(cache.MAPPED, np.uint8)})

    remembered()
    mapped = remembered()["x"]
    assert isinstance(mapped, np.memmap)
    mapped[:] = 7
    assert (remembered()["x"] == 1).all()
