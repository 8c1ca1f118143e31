"""Own data, mutated and made up: npz, folders of images, text, JSON lines, LEAF's JSON."""

import io
import json
import shutil

import numpy as np
import pytest
from fuzz.law import examples, fuzz, holds
from fuzz.mutations import lines_mutated, mutated, remade, written
from hypothesis import strategies as st
from PIL import Image

from fedkd.data.federated import FederatedData, load
from fedkd.experiment import Experiment

SMALLEST = """
[data]
clients = 2
partition = "iid"
min_samples = 1
[data.test]
common = 0
[data.transfer]
size = 2
"""
TEXT = "the model learns from data\nof its own and it tells\n" * 12


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """What was remembered of a file is not taken for the next, which may look the same."""
    monkeypatch.setenv("FEDKD_CACHE", "")


def read(folder, dataset, *overrides):
    """Load a data set for two clients, and look at all there is of it; or a line."""

    def whole():
        wanted = [f"data.dataset='{dataset}'", f"data.data_dir='{folder}'", *overrides]
        data = load(Experiment.from_toml(SMALLEST, wanted))
        assert isinstance(data, FederatedData)
        for client in range(data.clients):
            held = data.private(client)
            assert len(held.inputs) == len(held.labels) > 0
            assert held.inputs.isfinite().all()
            assert held.labels.max() < data.task.classes
        assert data.transfer().inputs.isfinite().all()
        return data

    return holds(whole, folder)


def packed(**held):
    stream = io.BytesIO()
    np.savez(stream, **held)
    return stream.getvalue()


IMAGES = np.arange(12 * 8 * 8, dtype=np.uint8).reshape(12, 8, 8)
LABELS = np.arange(12) % 3
VALID = [
    packed(x=IMAGES, y=LABELS),
    packed(x=IMAGES / 255, y=LABELS, writer=LABELS),
    packed(x=IMAGES.reshape(12, -1).astype(np.float32), y=LABELS),
    packed(x=IMAGES, y=LABELS, x_test=IMAGES, y_test=LABELS),
]


SHAPES = [
    *((), (0,), (12,), (1,), (12, 0), (0, 5), (12, 5), (12, 1), (1, 5), (11, 5), (12, 8, 8)),
    *((12, 8, 8, 3), (12, 3, 8, 8), (12, 8, 8, 2), (12, 1, 1), (12, 1, 1, 1), (12, 3, 3, 3)),
    *((12, 9, 20), (12, 0, 8), (12, 2, 2, 2, 2), (400, 2)),
]
KINDS = [
    *("u1", "i1", "u2", "i8", "u8", "f2", "f4", "f8", ">f4", ">i2", "b1", "c8", "S3", "U2", "O"),
    *("M8[s]", "m8[s]", "V4", "f16"),
]
FILLINGS = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([0, 1, 2**31, 1e38, -1e38, 1e-300, np.nan, np.inf]),
    st.none(),
)


def filled(shape, kind, filling):
    """An array of one value, or of 0, 1, 2, 0, 1, 2 … where that is None."""
    values = np.arange(np.prod(shape)) % 3 if filling is None else filling
    with np.errstate(all="ignore"):
        try:
            return np.broadcast_to(values, np.prod(shape)).reshape(shape).astype(kind)
        except (ValueError, OverflowError, TypeError):
            return np.zeros(shape, kind)


@examples(40, 6000)
def test_bytes_of_an_npz(count, tmp_path):
    file = tmp_path / "mine.npz"

    def law(content):
        file.write_bytes(content)
        read(tmp_path, f"npz:{file}")

    fuzz(law, mutated(st.sampled_from(VALID)), count, [b"", b"PK", VALID[0][:200]])


@examples(40, 6000)
def test_arrays_in_an_npz(count, tmp_path):
    file = tmp_path / "mine.npz"

    def law(held):
        np.savez(file, **held)
        read(tmp_path, f"npz:{file}")

    anything = st.builds(filled, st.sampled_from(SHAPES), st.sampled_from(KINDS), FILLINGS)
    labels = st.one_of(st.just(LABELS), anything)
    optional = dict.fromkeys(("x_test", "y_test", "writer", "z"), anything)
    x = st.one_of(anything, st.just(IMAGES))
    keys = st.fixed_dictionaries({"x": x, "y": labels}, optional=optional)
    known = [
        {"x": np.full((12, 8, 8), 3e38), "y": LABELS},
        {"x": np.full((12, 4), 1e-300), "y": LABELS},
        {"x": IMAGES, "y": LABELS + 2**40},
        {"x": IMAGES, "y": LABELS.astype(object)},
        {"x": IMAGES, "y": LABELS, "x_test": IMAGES[:0], "y_test": LABELS[:0]},
    ]
    fuzz(law, keys, count, known)


def png(mode="L", size=(8, 8), value=0, kind="PNG"):
    stream = io.BytesIO()
    Image.new(mode, size, value).save(stream, kind)
    return stream.getvalue()


PICTURES = [
    png(),
    png("RGB", value=(9, 8, 7)),
    png("RGBA", value=(1, 2, 3, 4)),
    png("I;16", value=40_000),
    png("P"),
    png("1"),
    png("L", (9, 8)),
    png("RGB", kind="JPEG"),
    png("F", value=0.5, kind="TIFF"),
    png("CMYK", kind="TIFF"),
    png("L", kind="GIF"),
    png("LA"),
]
NAMES = ["a.png", "b.PNG", "c.jpg", "d.tif", "e.txt", ".hidden.png", "f", "g.webp", "h/i.png"]


@examples(25, 2500)
def test_folders_of_images(count, tmp_path):
    root = tmp_path / "images"

    def law(tree):
        shutil.rmtree(root, ignore_errors=True)
        for group, files in tree.items():
            for name, content in files.items():
                file = root / group / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        read(tmp_path, f"folder:{root}")

    picture = st.one_of(st.sampled_from(PICTURES), mutated(st.sampled_from(PICTURES)))
    pure = st.dictionaries(st.sampled_from(NAMES[:3]), st.just(PICTURES[0]), min_size=2)
    mixed = st.dictionaries(st.sampled_from(NAMES), picture, max_size=4)
    groups = st.sampled_from(["cats", "dogs", ".git", "train/a", "train/b", "test/a", "test", "ü"])
    fuzz(law, st.dictionaries(groups, st.one_of(pure, mixed), max_size=4), count)


@examples(25, 4000)
def test_text(count, tmp_path):
    file = tmp_path / "mine.txt"

    def law(content):
        file.write_bytes(content)
        read(tmp_path, f"text:{file}", "data.text.context=8")

    known = [b"", b"\n" * 9, b"\xff", b"a " * 9, "\x1c\x1d\u2028 ".encode() * 40, b"\0" * 99]
    fuzz(law, st.one_of(mutated(TEXT.encode()), st.binary(max_size=99)), count, known)


@examples(25, 4000)
def test_json_lines(count, tmp_path):
    file = tmp_path / "mine.jsonl"
    entries = [{"text": line, "client": index % 2} for index, line in enumerate(TEXT.split("\n"))]
    content = b"".join(written(entry) + b"\n" for entry in entries if entry["text"])

    def law(content):
        file.write_bytes(content)
        read(tmp_path, f"jsonl:{file}", "data.text.context=8")

    known = [b"[" * 100_000, b'{"text": ' + b"9" * 5000 + b"}", b'{"text": "\\ud800"}', b"{}\n" * 9]
    fuzz(law, st.one_of(lines_mutated(content), mutated(content)), count, known)


USERS = ["f1", "f2"]
LEAF = {
    "users": USERS,
    "num_samples": [3, 3],
    "user_data": {
        user: {"x": [[index / 9] * 784 for index in range(3)], "y": [0, 1, 61]} for user in USERS
    },
}


@examples(15, 1500)
def test_leaf(count, tmp_path):
    place = tmp_path / "FEMNIST" / "train"
    place.mkdir(parents=True)

    def law(content):
        (place / "all.json").write_bytes(content)
        read(tmp_path, "femnist", "data.transfer.size=1")

    small = st.one_of(remade(LEAF).map(written), mutated(written(LEAF)))
    known = [
        {**LEAF, "users": ["f1", "f1"]},
        {**LEAF, "users": "f1"},
        {**LEAF, "user_data": {"f1": LEAF["user_data"]["f1"], "f2": {"x": [], "y": []}}},
    ]
    fuzz(law, small, count, [b"[" * 100_000, b"1" * 5000, *map(written, known)])


PLAYS = {"Hamlet": {"HAMLET": ["To be, or not to be"] * 20, "OPHELIA": ["Good my lord"] * 20}}


@examples(15, 2500)
def test_plays(count, tmp_path):
    file = tmp_path / "shakespeare" / "shakespeare_by_role.json"
    file.parent.mkdir()

    def law(content):
        file.write_bytes(content)
        read(tmp_path, "shakespeare", "data.text.context=8")

    text = json.dumps(PLAYS).encode()
    fuzz(law, st.one_of(remade(PLAYS).map(written), mutated(text)), count, [b"[" * 100_000])
