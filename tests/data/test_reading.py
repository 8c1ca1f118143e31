"""Files of others are looked at before memory is taken for them."""

import contextlib
import io
import os
import warnings
import zipfile

import numpy as np
import pytest

from fedkd.data import reading
from fedkd.data.loading import load_dataset
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment

X = np.random.default_rng(0).integers(0, 256, (12, 5, 6), dtype=np.uint8)
Y = np.arange(12) % 3


def npy(array):
    """What ``numpy.save`` makes of an array."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def head(shape, kind="|u1"):
    """The header of an array as ``numpy.save`` writes it."""
    stream = io.BytesIO()
    fields = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def archive(*members):
    """A zip file of names and contents."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as held:
            for name, content in members:
                held.writestr(name, content)
    return stream.getvalue()


def read(folder, content):
    (folder / "own.npz").write_bytes(content)
    return load_dataset(f"npz:{folder}/own.npz", None, False)


# --- npz ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ([("x.npy", npy(X)), ("x.npy", npy(X)), ("y.npy", npy(Y))], "it holds x twice"),
        ([("x.npy", npy(X)), ("x", npy(X)), ("y.npy", npy(Y))], "it holds x twice"),
        ([("x.npy", head((10**12, 5, 6))), ("y.npy", npy(Y))], "x has another size than its"),
        ([("x.npy", head((-1, 5, 6)) + b"..."), ("y.npy", npy(Y))], "x has another size than its"),
        ([("x.npy", npy(X)[:-1]), ("y.npy", npy(Y))], "x has another size than its"),
        ([("x.npy", npy(X)[:9]), ("y.npy", npy(Y))], "x is not an array as numpy saves it"),
        ([("x.npy", b"hello"), ("y.npy", npy(Y))], "x is not an array as numpy saves it"),
        ([("x.npy", npy(np.array([{}] * 12))), ("y.npy", npy(Y))], "x holds Python objects"),
    ],
)
def test_an_archive_that_is_not_as_numpy_writes_it_is_one_line(tmp_path, members, line):
    with pytest.raises(FedkdError, match=f"is not a readable npz file: {line}") as error:
        read(tmp_path, archive(*members))
    assert "\n" not in str(error.value)


def test_a_damaged_archive_is_one_line_or_reads_as_it_was(tmp_path):
    whole = archive(("x.npy", npy(X)), ("y.npy", npy(Y)))
    damaged = [whole[:length] for length in range(0, len(whole), 40)]
    for place in range(0, len(whole), 7):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
    for content in damaged:
        with contextlib.suppress(FedkdError):
            assert np.array_equal(read(tmp_path, content).train.images[..., 0], X)


def test_a_small_file_of_gigabytes_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as held:
        with held.open("x.npy", "w", force_zip64=True) as stream:
            stream.write(head((600, 1000, 1000)))
            for _ in range(600):
                stream.write(bytes(10**6))
        held.writestr("y.npy", npy(np.arange(600) % 2))
    assert file.stat().st_size < 3e6
    with pytest.raises(FedkdError, match=r"unpacks to 600 MB; allowed: 200 times its size"):
        load_dataset(f"npz:{file}", None, False)


def test_what_takes_more_than_half_of_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "free_memory", lambda: 700)
    with pytest.raises(FedkdError, match=r"in memory, and 0\.0007 MB are free; allowed: half"):
        read(tmp_path, archive(("x.npy", npy(X)), ("y.npy", npy(Y))))


def test_memory_is_that_of_the_machine_or_of_a_control_group(tmp_path):
    assert 0 < reading.free_memory() < 2**50
    assert reading.free_memory(tmp_path) == 2**62
    for name, text in {
        "proc/meminfo": "MemTotal: 90 kB\nMemAvailable: 80 kB\n",
        "proc/self/cgroup": "0::/job/inner\n",
        "sys/fs/cgroup/job/memory.max": "9000\n",
        "sys/fs/cgroup/job/memory.current": "5000\n",
        "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 300\nactive_file 700\n",
        "sys/fs/cgroup/job/inner/memory.max": "max\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert reading.free_memory(tmp_path) == 5000
    (tmp_path / "proc/self/cgroup").unlink()
    assert reading.free_memory(tmp_path) == 80 * 1024


@pytest.mark.parametrize("kind", [">f8", "<f4", np.float16, np.longdouble])
@pytest.mark.parametrize("order", ["C", "F"])
def test_byte_order_precision_and_layout_of_floats_do_not_matter(tmp_path, kind, order):
    x = np.asarray((X.reshape(12, 30) / 256).astype(kind), order=order)
    data = read(tmp_path, archive(("x.npy", npy(x)), ("y.npy", npy(Y.astype(">i2")))))
    assert np.allclose(data.train.images, X.reshape(12, 30) / 256)
    assert data.train.labels.tolist() == Y.tolist()


@pytest.mark.parametrize(
    "x",
    [
        X.astype(complex),
        X > 3,
        X.astype("datetime64[s]"),
        X.astype(str),
        X.astype(np.uint16),
        X.reshape(12, 30).astype(np.int64),
        np.zeros(12, [("a", "f4")]),
        X[None],
        X[0, 0] / 255,
        np.zeros((12, 0)),
    ],
    ids=lambda x: f"{x.dtype.kind}{x.ndim}",
)
def test_arrays_of_other_types_and_shapes_are_one_line(tmp_path, x):
    with pytest.raises(FedkdError, match=r"x is .*; allowed: uint8 or float images") as error:
        read(tmp_path, archive(("x.npy", npy(x)), ("y.npy", npy(Y))))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"x_range": (1, 0)}, r"x_range is \[1, 0\]; allowed: two numbers, black below white"),
        ({"x_range": (0, np.inf)}, "x_range is"),
        ({"x_range": "wide"}, "x_range is 'wide'"),
        ({"x_range": (0, 100)}, r"x holds \d+ in sample 0; allowed by x_range: 0 to 100"),
        ({"x_channels": "chw"}, "x_channels is 'chw'; allowed: 'first', 'last', 'none'"),
        ({"x_channels": 1}, "x_channels is 1"),
        ({"x_mean": 0.5}, "x_std is missing, and x_mean is there"),
        ({"x_mean": 0.5, "x_std": 0.0}, "x_std above 0"),
        ({"x_mean": np.nan, "x_std": 1.0}, "finite numbers"),
        ({"x_mean": 127.0, "x_std": 60.0}, "are 127.0 and 60.0; allowed: from 0 to 1, where black"),
        ({"x_mean": [0.5] * 3, "x_std": 1.0}, r"x_mean is float64 \(3,\); allowed: one number"),
    ],
)
def test_what_a_file_says_of_its_samples_is_checked(tmp_path, more, line):
    np.savez(tmp_path / "own.npz", x=X, y=Y, **more)
    with pytest.raises(FedkdError, match=line) as error:
        load_dataset(f"npz:{tmp_path}/own.npz", None, False)
    assert "\n" not in str(error.value)


def test_windows_of_a_series_and_other_channels_need_a_word(tmp_path):
    windows = np.random.default_rng(0).normal(0, 1, (12, 9, 128))
    for x, line in (
        (windows, "windows of a series, or grey images.*x_channels='first'"),
        (windows[:, :, None, :], "where channels are in others"),
        (np.zeros((12, 3, 6, 3)), "are channels first or last"),
    ):
        np.savez(tmp_path / "own.npz", x=x, y=Y)
        with pytest.raises(FedkdError, match=line) as error:
            load_dataset(f"npz:{tmp_path}/own.npz", None, False)
        assert "\n" not in str(error.value)
    for layout, shape in (("first", (1, 128, 9)), ("last", (1, 9, 128)), ("none", (9, 128, 1))):
        np.savez(tmp_path / "own.npz", x=windows, y=Y, x_channels=layout)
        images = load_dataset(f"npz:{tmp_path}/own.npz", None, False).train.images
        assert images.shape[1:] == shape
    bands = np.random.default_rng(0).integers(0, 256, (12, 5, 6, 7), dtype=np.uint8)
    for layout, x in (("last", bands), ("first", bands.transpose(0, 3, 1, 2))):
        np.savez(tmp_path / "own.npz", x=x, y=Y, x_channels=layout)
        images = load_dataset(f"npz:{tmp_path}/own.npz", None, False).train.images
        assert np.array_equal(images, bands)


def test_bytes_that_hardly_go_to_255_are_said_or_scaled(tmp_path):
    np.savez(tmp_path / "own.npz", x=X // 16, y=Y)
    (warning,) = load_dataset(f"npz:{tmp_path}/own.npz", None, False).warnings
    assert "goes from 0 to 15, where white is taken to be 255; x_range says it" in warning
    np.savez(tmp_path / "own.npz", x=X // 16, y=Y, x_range=(0, 15))
    data = load_dataset(f"npz:{tmp_path}/own.npz", None, False)
    assert data.warnings == ()
    assert np.allclose(data.train.images[..., 0], (X // 16) / 15)


# --- paths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "folder", "text", "jsonl"])
@pytest.mark.parametrize("path", ["a" * 5000, "\0", "~nobody-of-this-name/x", "/dev/zero"])
def test_a_path_that_cannot_be_is_one_line(kind, path, tmp_path):
    with pytest.raises(FedkdError) as error:
        load_dataset(f"{kind}:{path}", tmp_path, False)
    assert "\n" not in str(error.value)


def test_a_folder_of_data_sets_that_cannot_be_is_one_line():
    experiment = Experiment.from_dict({"data": {"data_dir": "~nobody-of-this-name"}})
    with pytest.raises(FedkdError, match=r"data\.data_dir .* = '~nobody-of-this-name'"):
        experiment.data_dir()


@pytest.mark.parametrize("kind", ["npz", "text", "jsonl"])
def test_a_pipe_is_not_waited_for(tmp_path, kind):
    os.mkfifo(tmp_path / "own.txt")
    with pytest.raises(FedkdError):
        load_dataset(f"{kind}:{tmp_path}/own.txt", None, False)
    with pytest.raises(FedkdError, match="it is not a regular file"):
        load_dataset(f"text:{tmp_path}", None, False)


# --- JSON -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("{", "line 1 is not JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": 1, "a": 2}', "it holds the key 'a' twice in one object"),
        ("9" * 5000, "it holds an integer of thousands of digits"),
    ],
)
def test_json_that_cannot_be_read_is_one_reason(written, reason):
    with pytest.raises(ValueError, match=reason) as error:
        reading.parsed(written)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
