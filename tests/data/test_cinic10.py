"""CINIC-10 in its own folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from fedkd.data.loading import load_dataset
from fedkd.data.sources import cinic10
from fedkd.data.sources.cinic10 import CINIC10
from fedkd.errors import FedkdError


def written(place, parts=("train", "valid", "test"), classes=CINIC10, size=(32, 32), count=2):
    """A folder whose image ``number`` of class c is filled with (c, number, part)."""
    for part, label, number in np.ndindex(len(parts), len(classes), count):
        folder = place / parts[part] / classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (label, number, part)).save(folder / f"cifar10-{number}.png")
    return place


@pytest.mark.parametrize("name", ["CINIC-10", "cinic-10", "cinic10"])
def test_it_is_found_in_its_folder_however_that_is_spelt(tmp_path, name):
    written(tmp_path / name, count=1)
    assert len(load_dataset("cinic10", tmp_path, False).train) == 10


def test_train_and_test_are_the_authors_and_their_validation_part_is_left_out(tmp_path):
    written(tmp_path / "CINIC-10")
    data = load_dataset("cinic10", tmp_path, False)
    assert data.train.images.shape == data.test.images.shape == (20, 32, 32, 3)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images[..., 2].unique().tolist() == [0]
    assert data.test.images[..., 2].unique().tolist() == [2]


def test_labels_are_the_places_of_the_sorted_class_names(tmp_path):
    written(tmp_path / "CINIC-10")
    data = load_dataset("cinic10", tmp_path, False)
    assert data.class_names == tuple(sorted(CINIC10))
    assert data.train.images[:, 0, 0, 0].tolist() == data.train.labels.tolist()


def test_images_are_normalised_by_the_known_numbers(tmp_path):
    written(tmp_path / "CINIC-10", count=1)
    data = load_dataset("cinic10", tmp_path, False)
    assert (data.name, data.mean[0], data.std[0]) == ("cinic10", 0.47889522, 0.24205776)


@pytest.mark.parametrize("download", [False, True])
def test_where_it_is_missing_the_line_says_how_to_get_it(tmp_path, download):
    with pytest.raises(FedkdError) as error:
        load_dataset("cinic10", tmp_path, download)
    line = str(error.value)
    assert "\n" not in line
    assert "data.download" not in line  # nothing can download it
    for part in ("'cinic10'", f"{tmp_path}/CINIC-10", "FEDKD_DATA", "https://", "'digits'"):
        assert part in line


def test_a_second_run_reads_no_image_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "kept"))
    place = written(tmp_path / "CINIC-10", count=1)
    first = load_dataset("cinic10", tmp_path, False)
    with monkeypatch.context() as patch:
        patch.setattr(cinic10, "images", None)
        assert load_dataset("cinic10", tmp_path, False).test.images.equal(first.test.images)
    Image.new("RGB", (32, 32), (99, 99, 99)).save(place / "test" / "cat" / "another.png")
    assert len(load_dataset("cinic10", tmp_path, False).test) == 11


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ({"parts": ("train",)}, "must hold the folders"),
        ({"classes": CINIC10[:9]}, "must hold the folders airplane, automobile"),
        ({"size": (16, 16)}, "the images are 16x16x3; allowed: 32x32x3"),
    ],
)
def test_what_is_not_cinic10_is_one_line(tmp_path, broken, line):
    written(tmp_path / "CINIC-10", count=1, **broken)
    with pytest.raises(
        FedkdError, match=rf"'cinic10' at .* is broken or incomplete.*{line}"
    ) as error:
        load_dataset("cinic10", tmp_path, False)
    assert "\n" not in str(error.value)


def test_a_class_that_the_test_part_lacks_is_one_line(tmp_path):
    place = written(tmp_path / "CINIC-10", parts=("train",), count=1)
    written(place, parts=("test",), classes=CINIC10[1:], count=1)
    with pytest.raises(FedkdError, match="test/ must hold the folders airplane"):
        load_dataset("cinic10", tmp_path, False)


def test_a_broken_image_is_one_line(tmp_path):
    place = written(tmp_path / "CINIC-10", count=1)
    (place / "train" / "cat" / "bad.png").write_bytes(b"not an image")
    with pytest.raises(FedkdError, match=r"'cinic10' at .* is broken .*bad\.png"):
        load_dataset("cinic10", tmp_path, False)
