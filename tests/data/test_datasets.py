import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fedkd import registry
from fedkd.data.dataset import statistics
from fedkd.data.loading import load_dataset
from fedkd.data.sources import digits, folders
from fedkd.data.sources.qmnist import QMNIST_LABELS
from fedkd.errors import FedkdError


def idx(array):
    """An idx file's bytes, as MNIST's are."""
    kind = {np.dtype(np.uint8): 8, np.dtype(">i4"): 12}[array.dtype]
    head = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return head + array.tobytes()


@pytest.fixture
def small_mnist(tmp_path):
    """MNIST's own file layout with 20 + 10 images, and QMNIST's label table for it."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
    table = np.zeros((20, 8), dtype=">i4")
    table[:, 0] = np.arange(20) % 10
    table[:, 2] = np.arange(20) // 5 + 100
    (tmp_path / "QMNIST").mkdir()
    (tmp_path / "QMNIST" / f"{QMNIST_LABELS}.gz").write_bytes(gzip.compress(idx(table)))
    return tmp_path


def test_digits_are_scikit_learns_own():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = load_dataset("digits", None, False)
    assert data.train.images.shape == (1797, 8, 8, 1)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.numpy().tolist() == bunch.target.tolist()
    assert np.abs(data.train.images[..., 0].numpy() / 255 * 16 - bunch.images).max() < 0.05
    assert data.test is None


def test_digits_fall_back_on_scikit_learn(monkeypatch, tmp_path):
    expected = digits.digits(None, False).train
    (tmp_path / "__init__.py").touch()
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: spec)
    found = digits.digits(None, False).train
    assert found.images.equal(expected.images)
    assert found.labels.equal(expected.labels)


def test_statistics_are_those_of_the_pixels():
    images = torch.randint(0, 256, (50, 5, 4, 3), dtype=torch.uint8)
    mean, std = statistics(images)
    pixels = images.double().reshape(-1, 3) / 255
    assert torch.tensor(mean).double().allclose(pixels.mean(0))
    assert torch.tensor(std).double().allclose(pixels.std(0, correction=0))
    assert statistics(torch.full((3, 2), 7.0))[1] == (1.0, 1.0)


def test_every_loader_says_what_it_is():
    described = registry.described("datasets")
    assert {"digits", "mnist", "cifar10", "femnist", "mnist-by-writer"} <= set(described)
    assert all(line.endswith(".") for line in described.values())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "emnist"])
def test_a_missing_data_set_says_where_it_was_looked_for_and_how_to_get_it(name, tmp_path):
    with pytest.raises(FedkdError) as error:
        load_dataset(name, tmp_path, False)
    line = str(error.value)
    assert "\n" not in line
    for part in (repr(name), str(tmp_path), "FEDKD_DATA", "data.download = true", "'digits'"):
        assert part in line


def test_a_missing_data_set_without_a_folder_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("mnist", "femnist", "mnist-by-writer"):
        with pytest.raises(FedkdError, match=f"is not at {tmp_path}/fedkd/.*FEDKD_DATA"):
            load_dataset(name, None, False)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    import torchvision

    def fail(*arguments, **options):
        raise RuntimeError("no route to host\nsecond line")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    with pytest.raises(FedkdError, match=r"'mnist' could not be downloaded to .*no route") as error:
        load_dataset("mnist", tmp_path, True)
    assert "\n" not in str(error.value)


def test_mnist_is_read_in_its_own_layout(small_mnist, tmp_path, monkeypatch):
    plain = load_dataset("mnist", small_mnist, False)
    assert plain.train.images.shape == (20, 28, 28, 1)
    assert plain.test is not None
    assert plain.test.labels.tolist() == list(range(10))
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "kept"))
    for _ in range(2):
        kept = load_dataset("mnist", small_mnist, False)
        assert kept.train.images.equal(plain.train.images)
        assert kept.test.labels.equal(plain.test.labels)
    assert len(list((tmp_path / "kept" / "datasets").glob("*.npz"))) == 1


def test_kept_data_is_not_used_once_the_files_have_changed(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "kept"))
    load_dataset("mnist", small_mnist, False)
    labels = np.full(20, 3, dtype=np.uint8)
    (small_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    assert set(load_dataset("mnist", small_mnist, False).train.labels.tolist()) == {3}


def test_a_broken_file_is_one_line(small_mnist):
    file = small_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FedkdError, match=r"'mnist' at .* is broken or incomplete") as error:
        load_dataset("mnist", small_mnist, False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("unpacked", [False, True])
def test_mnist_by_writer_takes_writers_from_qmnist(small_mnist, unpacked):
    packed = small_mnist / "QMNIST" / f"{QMNIST_LABELS}.gz"
    if unpacked:
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    data = load_dataset("mnist-by-writer", small_mnist, False)
    assert data.train.writers.tolist() == [100 + row // 5 for row in range(20)]
    assert data.name == "mnist-by-writer"


def test_mnist_by_writer_refuses_labels_in_another_order(small_mnist):
    table = np.zeros((20, 8), dtype=">i4")
    (small_mnist / "QMNIST" / QMNIST_LABELS).write_bytes(idx(table))
    with pytest.raises(FedkdError, match="are not those of MNIST's training part"):
        load_dataset("mnist-by-writer", small_mnist, False)


HEAD = bytes([0, 0, 12, 2])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip",
        gzip.compress(b"short"),
        gzip.compress(HEAD + np.array([-1, 8], ">i4").tobytes()),
        gzip.compress(HEAD + np.array([2**29, 8], ">i4").tobytes()),
        gzip.compress(HEAD + np.array([60000, 8], ">i4").tobytes() + bytes(10**8), 1),
    ],
    ids=["empty", "text", "short", "negative", "overflowing", "unpacks to too much"],
)
def test_mnist_by_writer_refuses_broken_labels(small_mnist, content):
    (small_mnist / "QMNIST" / f"{QMNIST_LABELS}.gz").write_bytes(content)
    with pytest.raises(FedkdError, match=r"'mnist-by-writer' at .* is broken"):
        load_dataset("mnist-by-writer", small_mnist, False)


def leaf(users):
    data = {user: {"x": [[0.5] * 784] * len(y), "y": y} for user, y in users.items()}
    counts = [len(y) for y in users.values()]
    return json.dumps({"users": list(users), "num_samples": counts, "user_data": data})


def test_femnist_is_read_from_leafs_json(tmp_path):
    for part, users in (("train", {"a": [0, 61], "b": [5]}), ("test", {"b": [7]})):
        (tmp_path / "FEMNIST" / part).mkdir(parents=True)
        (tmp_path / "FEMNIST" / part / "all_data_0.json").write_text(leaf(users))
    data = load_dataset("femnist", tmp_path, False)
    assert data.train.images.shape == (3, 28, 28, 1)
    assert data.train.images.unique().tolist() == [128]
    assert data.train.labels.tolist() == [0, 61, 5]
    assert data.train.writers.tolist() == [0, 0, 1]
    assert data.test.writers.tolist() == [1]
    assert len(data.class_names) == 62


@pytest.mark.parametrize("text", ["{", "{}", leaf({"a": [62]}), leaf({})])
def test_broken_leaf_json_is_one_line(tmp_path, text):
    (tmp_path / "FEMNIST").mkdir()
    (tmp_path / "FEMNIST" / "all_data.json").write_text(text)
    with pytest.raises(FedkdError, match=r"'femnist' at .* is broken or incomplete"):
        load_dataset("femnist", tmp_path, False)


ROW = [0.5] * 784


@pytest.mark.parametrize(
    ("users", "counts", "held", "line"),
    [
        # One label too few for one user and one too many for the next.
        (
            ["a", "b"],
            [2, 2],
            {"a": ([ROW] * 2, [1]), "b": ([ROW] * 2, [1, 2, 3])},
            "user 'a' has 2 and 1 entries in x and y",
        ),
        (["a"], [1], {"a": ([ROW], [1.7])}, "user 'a' has the label 1.7; allowed: integers 0 to"),
        (["a"], [1], {"a": ([ROW], [62])}, "user 'a' has the label 62"),
        (["a"], [1], {"a": ([ROW], [-1])}, "user 'a' has the label -1"),
        (["a"], [1], {"a": ([ROW], [True])}, "user 'a' has the label True"),
        (["a"], [1], {"a": ([ROW], ["3"])}, "user 'a' has the label '3'"),
        (["a"], [1], {"a": ([ROW], [float("nan")])}, "user 'a' has the label nan"),
        (["a"], [1], {"a": ([ROW[1:]], [3])}, "user 'a': x must be lists of 784 numbers"),
        (["a"], [2], {"a": ([ROW, ROW[1:]], [3, 3])}, "user 'a': x must be lists of 784 numbers"),
        (["a"], [1], {"a": ([["?"] * 784], [3])}, "user 'a': x must be lists of 784 numbers"),
        (["a"], [1], {"a": ([[37.0] * 784], [3])}, "user 'a': x holds 37; allowed: numbers from 0"),
        (["a"], [1], {"a": ([[float("nan")] * 784], [3])}, "user 'a': x holds nan"),
        (["a"], [2], {"a": ([ROW], [3])}, "user 'a' has 1 samples, and num_samples says 2"),
        (["a"], [], {"a": ([ROW], [3])}, "num_samples must hold a number for each of the 1 users"),
        (["a", "a"], [1, 1], {"a": ([ROW], [3])}, "user 'a' is there twice"),
        (["a", "b"], [1, 1], {"a": ([ROW], [3])}, "user 'b' has no x and y in user_data"),
        (["a"], [1], {"a": ([ROW], [3]), "b": ([ROW], [3])}, "user 'b' is in user_data but not in"),
        ([1], [1], {"1": ([ROW], [3])}, "users must be strings"),
        (["a"], [1], {"a": ([ROW], None)}, "user 'a' has 1 and no entries in x and y"),
    ],
)
def test_each_user_of_a_leaf_file_is_checked(tmp_path, users, counts, held, line):
    (tmp_path / "FEMNIST").mkdir()
    file = tmp_path / "FEMNIST" / "all_data_3.json"
    data = {user: {"x": x, "y": y} for user, (x, y) in held.items()}
    file.write_text(json.dumps({"users": users, "num_samples": counts, "user_data": data}))
    with pytest.raises(FedkdError, match=line) as error:
        load_dataset("femnist", tmp_path, False)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_a_user_twice_in_leaf_files_is_one_line(tmp_path):
    (tmp_path / "FEMNIST").mkdir()
    file = tmp_path / "FEMNIST" / "all_data_0.json"
    once = '"a": {"x": [], "y": []}'
    text = '{"users": ["a"], "num_samples": [0], "user_data": {%s, %s}}'
    file.write_text(text % (once, once))
    with pytest.raises(FedkdError, match="the key 'a' twice"):
        load_dataset("femnist", tmp_path, False)
    for number in (0, 1):
        (tmp_path / "FEMNIST" / f"all_data_{number}.json").write_text(leaf({"a": [3]}))
    with pytest.raises(FedkdError, match=r"all_data_1\.json .*user 'a' is there twice"):
        load_dataset("femnist", tmp_path, False)


@pytest.mark.parametrize(
    "content", [b"\xff", b"[" * 99999, b'{"users": ' + b"9" * 5000 + b"}", b"[1]", b"\0"]
)
def test_what_is_not_json_of_leaf_is_one_line(tmp_path, content):
    (tmp_path / "FEMNIST").mkdir()
    (tmp_path / "FEMNIST" / "all_data.json").write_bytes(content)
    with pytest.raises(FedkdError, match=r"'femnist' at .*all_data\.json is broken") as error:
        load_dataset("femnist", tmp_path, False)
    assert "\n" not in str(error.value)


def test_a_broken_femnist_npz_is_one_line(tmp_path):
    (tmp_path / "FEMNIST").mkdir()
    np.savez(tmp_path / "FEMNIST" / "some.npz", x_train=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(FedkdError, match="its keys must be x_train, y_train, writer_train"):
        load_dataset("femnist", tmp_path, False)


# --- own data -------------------------------------------------------------------------------

X = np.random.default_rng(0).integers(0, 256, (12, 5, 6), dtype=np.uint8)
Y = np.arange(12) % 3
F = X.reshape(12, 30) / 255


def saved(folder, **arrays):
    np.savez(folder / "own.npz", **arrays)
    return load_dataset(f"npz:{folder}/own.npz", None, False)


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (X, (12, 5, 6, 1)),
        (X[..., None], (12, 5, 6, 1)),
        (X[:, None], (12, 5, 6, 1)),
        (np.stack([X] * 3, axis=3), (12, 5, 6, 3)),
        (np.stack([X] * 3, axis=1), (12, 5, 6, 3)),
        (X / 255, (12, 5, 6, 1)),
        (F, (12, 30)),
    ],
)
def test_an_npz_file_comes_back_as_it_was_saved(tmp_path, x, shape):
    data = saved(tmp_path, x=x, y=Y, x_test=x[:3], y_test=Y[:3], writer=np.array(list("abc") * 4))
    assert data.train.images.shape == shape
    assert data.train.images.dtype == (torch.uint8 if x.dtype == np.uint8 else torch.float64)
    first = X[0] if x.dtype == np.uint8 else X[0] / 255
    given = data.train.images[0] if len(shape) == 2 else data.train.images[0, ..., 0]
    assert np.allclose(given.numpy().ravel(), first.ravel(), atol=1e-6)
    assert data.train.labels.tolist() == Y.tolist()
    assert data.train.writers.tolist() == [0, 1, 2] * 4
    assert len(data.test) == 3
    assert len(data.class_names) == 3


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"x": X}, "y is missing"),
        ({"x": X, "y": Y, "x_tst": X}, r"x_tst is not a known key \(did you mean 'x_test'\?\)"),
        ({"x": X.astype(np.int64), "y": Y}, r"x is int64 \(12, 5, 6\); allowed: uint8 or float"),
        ({"x": X.reshape(12, 30), "y": Y}, r"x is uint8 \(12, 30\); allowed"),
        ({"x": np.zeros((12, 5, 6, 4), np.uint8), "y": Y}, "with C = 1 or 3"),
        ({"x": X[:0], "y": Y[:0]}, r"x is uint8 \(0, 5, 6\); allowed"),
        ({"x": np.float64(3), "y": Y}, r"x is float64 \(\); allowed"),
        ({"x": np.where(F > 0.9, np.nan, F), "y": Y}, "x holds NaN or infinity, first in sample"),
        ({"x": X, "y": Y[:5]}, "y has 5 labels for 12 samples"),
        ({"x": X, "y": Y / 2}, r"y is float64 \(12,\); allowed: \(n,\) integers 0…C-1"),
        ({"x": X, "y": Y[:, None]}, r"y is int64 \(12, 1\); allowed"),
        ({"x": X, "y": Y - 1}, "y holds the label -1; allowed: 0…C-1"),
        ({"x": X, "y": Y * 10**9}, "y holds the label 2000000000; allowed: 0…C-1"),
        ({"x": X, "y": Y * 2}, "y has no class 1; allowed: labels 0…C-1, every class"),
        ({"x": X, "y": Y * 0}, "y holds one class only"),
        ({"x": X, "y": Y, "x_test": X}, "x_test, y_test one is missing; allowed: both or neither"),
        ({"x": X, "y": Y, "x_test": X[:, :4], "y_test": Y}, "x_test samples are uint8"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, "y_test holds the label 3; allowed: 0…2"),
        ({"x": X, "y": Y, "writer": Y[:5]}, r"writer is int64 \(5,\); allowed: \(12,\)"),
        ({"x": X, "y": np.array([{}] * 12)}, "is not a readable npz file"),
    ],
)
def test_a_wrong_npz_file_is_one_line_that_names_file_key_and_what_is_allowed(
    tmp_path, arrays, line
):
    with pytest.raises(FedkdError, match=line) as error:
        saved(tmp_path, **arrays)
    assert "\n" not in str(error.value)
    assert "own.npz" in str(error.value)


def test_what_is_no_npz_file_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match="there is no such file"):
        load_dataset(f"npz:{tmp_path}/none.npz", None, False)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(FedkdError, match="is not a readable npz file"):
        load_dataset(f"npz:{tmp_path}/text.npz", None, False)
    np.save(tmp_path / "bare.npy", X)
    with pytest.raises(FedkdError, match="one bare array"):
        load_dataset(f"npz:{tmp_path}/bare.npy", None, False)


def test_own_data_is_also_looked_for_in_the_folder_of_data_sets(tmp_path):
    np.savez(tmp_path / "own.npz", x=X, y=Y)
    assert len(load_dataset("npz:own.npz", tmp_path, False).train) == 12


@pytest.mark.parametrize("name", ["zip:file", "npz:", "folder:"])
def test_an_unknown_kind_of_own_data_is_one_line(name):
    with pytest.raises(
        FedkdError, match="own data is npz:FILE, folder:FOLDER, text:PATH or jsonl:FILE"
    ):
        load_dataset(name, None, False)


def draw(folder, name, pixels):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_a_folder_of_images_comes_back_as_it_was_saved(tmp_path, colour, split):
    pixels = np.stack([X] * 3, axis=3) if colour else X
    for part in ("train", "test") if split else (".",):
        for number, image in enumerate(pixels):
            draw(tmp_path, f"{part}/{'cat' if number % 2 else 'dog'}/{number:02}.png", image)
    data = load_dataset(f"folder:{tmp_path}", None, False)
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    assert data.train.images.shape == (12, 5, 6, 3 if colour else 1)
    assert np.array_equal(data.train.images[0].numpy().squeeze(), pixels[1])
    assert (data.test is not None) == split


def test_a_wrong_folder_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match="there is no such folder"):
        folders.images(tmp_path / "none")
    with pytest.raises(FedkdError, match=r"it has 0 folder\(s\) of images"):
        folders.images(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(FedkdError, match="cat holds no images"):
        folders.images(tmp_path)
    draw(tmp_path, "cat/1.png", X[0])
    draw(tmp_path, "dog/1.png", X[0, :4])
    with pytest.raises(FedkdError, match=r"share one size; .*1\.png is 6x5, .*1\.png is 6x4"):
        folders.images(tmp_path)
    (tmp_path / "dog" / "1.png").write_text("hello")
    with pytest.raises(FedkdError, match="is not a readable image"):
        folders.images(tmp_path)


def test_test_classes_must_be_training_classes(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cow/1.png"):
        draw(tmp_path, name, X[0])
    with pytest.raises(FedkdError, match="class 'cow' is in test but not in train"):
        folders.images(tmp_path)


# --- real data ------------------------------------------------------------------------------


def test_real_mnist(real_data):
    data = load_dataset("mnist", real_data, False)
    assert data.train.images.shape == (60000, 28, 28, 1)
    assert data.test.images.shape == (10000, 28, 28, 1)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "femnist"])
def test_published_statistics_are_those_of_the_training_part(name, request):
    folder = None if name == "digits" else request.getfixturevalue("real_data")
    data = load_dataset(name, folder, False)
    computed = statistics(data.train.images)
    # Those of MNIST and CIFAR-10 are rounded to four digits, as everybody has them.
    rounding = 6e-5 if name in ("mnist", "cifar10") else 0
    assert np.allclose(computed, (data.mean, data.std), atol=rounding, rtol=1e-14)


def test_real_mnist_has_539_writers(real_data):
    data = load_dataset("mnist-by-writer", real_data, False)
    assert len(data.train.writers.unique()) == 539


def test_real_cifar10(real_data):
    data = load_dataset("cifar10", real_data, False)
    assert data.train.images.shape == (50000, 32, 32, 3)
    assert data.train.images.is_contiguous()
    assert data.train.labels.bincount().tolist() == [5000] * 10


def test_real_femnist(real_data):
    data = load_dataset("femnist", real_data, False)
    assert data.train.images.shape == (14708, 28, 28, 1)
    assert len(data.train.writers.unique()) == 105
    assert data.test is not None
