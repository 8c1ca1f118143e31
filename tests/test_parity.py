"""Partitions of other libraries are read as they lie, and without running what is in them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedkd.errors import FedkdError

HERE = Path(__file__).parent / "parity"


@pytest.fixture
def given(monkeypatch):
    """The reader, from the folder of the benchmark."""
    monkeypatch.syspath_prepend(HERE)
    import given

    return given


def drawn(count, seed, classes=3, shape=(1, 28, 28)):
    """Samples that a student learns in an epoch: each class is bright in a band of its own."""
    random = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = random.normal(scale=0.3, size=(count, *shape)).astype(np.float32)
    for label in range(classes):
        x[y == label, :, 8 * label : 8 * label + 8] += 1
    return {"x": x, "y": y}


@pytest.fixture
def partition(tmp_path):
    """Three clients of different sizes, as HtFLlib's generators write them."""
    folder = tmp_path / "mnist"
    for part, sizes in (("train", (40, 50, 60)), ("test", (9, 12, 30))):
        (folder / part).mkdir(parents=True)
        for client, size in enumerate(sizes):
            data = drawn(size, len(part) + client)
            with (folder / part / f"{client}.npz").open("wb") as file:
                np.savez_compressed(file, data=data)
    (folder / "config.json").write_text(json.dumps({"num_clients": 3, "num_classes": 3}))
    return folder


def test_clients_hold_the_samples_that_are_given_for_training_and_for_tests(given, partition):
    data = given.load(partition)
    assert (data.clients, data.task.shape, data.task.classes) == (3, (1, 28, 28), 3)
    assert data.sizes().tolist() == [40, 50, 60]
    for client in range(3):
        for part, held in (("train", data.private(client)), ("test", data.own(client))):
            with np.load(partition / part / f"{client}.npz", allow_pickle=True) as file:
                theirs = file["data"].item()
            np.testing.assert_array_equal(held.inputs.numpy(), theirs["x"])
            np.testing.assert_array_equal(held.labels.numpy(), theirs["y"])
    assert len(data.transfer().inputs) == len(data.common().inputs) == 0


class Harmful:
    """What a pickle may ask for when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_file_that_asks_for_more_than_arrays_is_refused_and_runs_nothing(given, partition):
    made = partition / "made-by-a-pickle"
    np.savez(partition / "test" / "1.npz", data={"x": Harmful(made), "y": np.zeros(1, int)})
    with pytest.raises(FedkdError, match=r"1\.npz cannot be read: .*mkdir, which is no array"):
        given.load(partition)
    assert not made.exists()


@pytest.mark.parametrize(
    ("held", "wrong"),
    [
        ({"x": np.zeros((2, 1, 4, 4))}, "KeyError"),
        ({"x": np.zeros((2, 1, 4, 4)), "y": np.zeros(3, int)}, "as many labels"),
        ({"x": np.zeros((2, 4)), "y": np.zeros(2)}, "integers"),
        ({"x": np.array(["a", "b"]), "y": np.zeros(2, int)}, "allowed: images"),
        ({"x": np.zeros((2, 1, 4, 4)), "y": np.zeros(2, int)}, "needed: \\(28, 28, 1\\)"),
        ({**drawn(2, 0), "y": np.array([0, 3])}, "labels 0 to 3"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(given, partition, held, wrong):
    np.savez(partition / "train" / "1.npz", data=held)
    with pytest.raises(FedkdError, match=wrong) as raised:
        given.load(partition)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing_is_one_line(given, partition):
    (partition / "train" / "2.npz").unlink()
    with pytest.raises(FedkdError, match=r"train/2\.npz cannot be read"):
        given.load(partition)
    (partition / "config.json").write_text("{}")
    with pytest.raises(FedkdError, match=r"config\.json does not say num_clients"):
        given.load(partition)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("theirs.csv", "method,last,best\nlocal,50.0,60.0\n"),
        ("theirs.toml", "[local]\nlast = 50.0\nbest = 60.0\n"),
    ],
)
def test_methods_are_printed_beside_the_numbers_of_the_file(partition, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    words = [sys.executable, str(HERE / "run.py"), str(partition), "--rounds", "2"]
    done = subprocess.run(
        [*words, "--reference", str(tmp_path / name)], capture_output=True, text=True, check=True
    )
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert lines["local"][1:2] == ["own_accuracy_mean"]
    last, best, their_last, their_best = map(float, lines["local"][2:6])
    assert (their_last, their_best) == (50.0, 60.0)
    assert lines["local"][6] == f"{last - 50:+.1f}"
    assert best >= last > 40
    assert lines["fedproto"][1] == "own_nearest_accuracy_mean"
    assert {"feddistill", "fml", "lg-fedavg", "fedgh", "fedgen", "fedkd-svd"} <= lines.keys()
    assert lines["fedtgp"][1] == "own_nearest_accuracy_mean"
