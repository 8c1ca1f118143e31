"""What is remembered on disk, and how it comes back."""

import errno
import os

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


# --- entries that are damaged, disks that are full, several writers -----------------------------

ARRAYS = {
    "large": {"x": np.arange(2 * cache.MAPPED, dtype=np.uint8), "y": np.arange(3)},
    "small": {"x": np.arange(9), "y": np.arange(3)},
}


def flip(content, place):
    content[place] ^= 1
    return content


DAMAGES = {
    "a bit of its first array is another": lambda c: flip(c, len(c) // 3),
    "a bit near its beginning is another": lambda c: flip(c, 130),
    "a bit of its directory is another": lambda c: flip(c, len(c) - 30),
    "it is cut off": lambda c: c[: len(c) // 2],
    "it is empty": lambda c: b"",
    "it is text": lambda c: b"not an archive",
}


def entry(tmp_path):
    (file,) = (tmp_path / "datasets").glob("*.npz")
    return file


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("size", ARRAYS)
def test_a_damaged_entry_is_made_anew(size, how, tmp_path):
    made = []

    def remembered():
        return cache.remembered("datasets", "key", lambda: made.append(1) or ARRAYS[size])

    remembered()
    file = entry(tmp_path)
    file.write_bytes(DAMAGES[how](bytearray(file.read_bytes())))
    for _ in range(2):
        found = remembered()
        assert found.keys() == ARRAYS[size].keys()
        assert all((found[name] == array).all() for name, array in ARRAYS[size].items())
    assert made == [1, 1]


@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EROFS, "")])
def test_a_disk_that_takes_nothing_costs_time_only(kind, tmp_path, monkeypatch):
    def refuse(stream, **arrays):
        stream.write(b"half")
        raise kind

    monkeypatch.setattr(np, "savez", refuse)
    made = []
    for _ in range(2):
        found = cache.remembered("datasets", "key", lambda: made.append(1) or ARRAYS["small"])
        assert (found["x"] == ARRAYS["small"]["x"]).all()
    assert made == [1, 1]
    assert list((tmp_path / "datasets").iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "file" / "cache"))
    assert cache.remembered("datasets", "key", lambda: ARRAYS["small"]) is ARRAYS["small"]


def test_writers_of_one_entry_at_a_time_do_not_write_into_each_others_files(tmp_path, monkeypatch):
    """The second begins and ends while the first is writing."""
    savez, writers = np.savez, []

    def remembered():
        return cache.remembered("datasets", "key", lambda: ARRAYS["small"])

    def slow(stream, **arrays):
        writers.append(stream.name)
        if len(writers) == 1:
            remembered()
        savez(stream, **arrays)

    monkeypatch.setattr(np, "savez", slow)
    remembered()
    assert len(set(writers)) == 2
    monkeypatch.setattr(np, "savez", None)
    assert (remembered()["x"] == ARRAYS["small"]["x"]).all()
    assert list((tmp_path / "datasets").iterdir()) == [entry(tmp_path)]


def test_what_a_kill_left_half_written_goes_after_a_day(tmp_path):
    (tmp_path / "datasets").mkdir()
    old, new = (tmp_path / "datasets" / f"{name}.partial" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.remembered("datasets", "key", lambda: ARRAYS["small"])
    assert (old.exists(), new.exists()) == (False, True)
