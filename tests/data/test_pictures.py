"""Image files come out as they are, upright, or are refused by name."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fedkd.data.loading import load_dataset
from fedkd.data.sources.folders import images
from fedkd.errors import FedkdError

GREY = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)
WIDE = GREY.astype(np.uint16) * 257


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes with a grey image each, and another of class ``a`` if given."""

    def make(image=None, name="0.png", **options):
        for label in ("a", "b"):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.fromarray(GREY).save(tmp_path / label / "1.png")
        place = tmp_path / "a" / name
        if isinstance(image, bytes):
            place.write_bytes(image)
        elif image is not None:
            image.save(place, **options)
        return tmp_path

    return make


def first(folder):
    """The first image of a folder ``(H, W, C)``."""
    return images(folder).train.images[0].numpy()


def png(width, height, bits, kind, rows):
    """A PNG file with these header fields, its rows as bytes."""

    def chunk(name, content):
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + end


# --- depths and colours ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (Image.fromarray(WIDE), "0.png"),
        (Image.fromarray(WIDE), "0.tif"),
        (b"P5 5 6 65535\n" + WIDE.astype(">u2").tobytes(), "0.pgm"),
    ],
    ids=["png", "tiff", "pgm"],
)
def test_grey_of_16_bits_is_scaled_to_its_range_beside_grey_of_8(pictures, image, name):
    data = images(pictures(image, name))
    assert data.unit
    assert data.train.images.dtype == torch.float32
    for number in (0, 1):
        assert np.allclose(data.train.images[number, ..., 0], GREY / 255, atol=1e-6)


def test_levels_between_those_of_8_bits_are_kept(pictures):
    levels = np.arange(30, dtype=np.uint16).reshape(6, 5) + 40_000
    found = first(pictures(Image.fromarray(levels)))[..., 0]
    assert np.allclose(found, levels / 65535, atol=1e-7)
    assert len(np.unique(found)) == 30


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_refused_by_name(pictures, kind):
    with pytest.raises(FedkdError, match=r"0\.tif is not a readable image: it has 32 bits"):
        images(pictures(Image.fromarray(GREY.astype(kind)), "0.tif"))


def test_colours_of_16_bits_are_said_to_be_read_with_8(pictures):
    rows = np.repeat(WIDE[..., None], 3, axis=2).astype(">u2")
    portable = b"P6 5 6 65535\n" + rows.tobytes()
    for image, name in ((png(5, 6, 16, 2, [row.tobytes() for row in rows]), "0.png"),):
        data = images(pictures(image, name))
        assert np.array_equal(data.train.images[0, ..., 0], GREY)
        assert "1 image(s) with colours of 16 bits" in " ".join(data.warnings)
    data = images(pictures(portable, "00.ppm"))
    assert "2 image(s) with colours of 16 bits" in " ".join(data.warnings)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("0.png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *(("0.tif", mode) for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")),
    ],
)
def test_every_mode_without_transparency_keeps_its_pixels(pictures, mode, name):
    image = Image.fromarray(COLOUR).convert(mode)
    grey = mode in ("1", "L", "LA")
    expected = np.asarray(image.convert("L" if grey else "RGB")).reshape(6, 5, -1)
    found = first(pictures(image, name))
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_transparent_pixels_are_refused_by_name(pictures):
    clear = Image.fromarray(COLOUR).convert("RGBA")
    clear.putpixel((1, 1), (9, 9, 9, 0))
    palette = Image.fromarray(COLOUR).convert("P")
    for image, options in (
        (clear, {}),
        (palette, {"transparency": palette.getpixel((0, 0))}),
        (Image.fromarray(GREY), {"transparency": int(GREY[0, 0])}),
        (Image.fromarray(COLOUR), {"transparency": tuple(map(int, COLOUR[0, 0]))}),
    ):
        with pytest.raises(FedkdError, match=r"a/0\.png is not .* it has transparent pixels"):
            images(pictures(image, **options))


@pytest.mark.parametrize("name", ["0.gif", "0.tif", "0.png", "0.webp"])
def test_several_frames_are_refused_by_name(pictures, name):
    more = [Image.fromarray(np.roll(GREY, shift)) for shift in (1, 2)]
    with pytest.raises(FedkdError, match=rf"{name} is not .*: it has 3 frames; allowed: one"):
        images(pictures(Image.fromarray(GREY), name, save_all=True, append_images=more))


def test_the_first_picture_of_a_photograph_with_previews_counts(pictures):
    more = [Image.fromarray(np.roll(GREY, 1))]
    folder = pictures(
        Image.fromarray(GREY), "0.jpg", format="MPO", save_all=True, append_images=more
    )
    assert len(images(folder).train) == 3


UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.T,
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["0.png", "0.tif"])
@pytest.mark.parametrize("levels", [GREY, WIDE])
def test_images_stand_upright_as_exif_has_it(tmp_path, orientation, name, levels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.fromarray(levels).save(tmp_path / label / name, exif=exif)
    expected = UPRIGHT[orientation](levels)
    found = first(tmp_path)[..., 0]
    if levels is WIDE:
        found = (found * 65535).round()
    assert np.array_equal(found, expected)


def test_the_suffix_says_that_it_is_an_image_and_the_content_of_which_kind(pictures):
    assert images(pictures(Image.fromarray(GREY), "0.png", format="BMP")).train.images.shape


# --- what is no image -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is none of BMP"),
        (b"hello", "it is none of BMP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n", "it is none of BMP"),
        (png(5, 6, 8, 0, [row.tobytes() for row in GREY])[:60], "truncated"),
        (png(30_000, 30_000, 8, 0, []), "it has more than 89,478,485 pixels"),
        (png(10_000, 9_000, 8, 0, []), "it has more than 89,478,485 pixels"),
    ],
)
def test_what_is_no_image_is_named(pictures, content, reason):
    with pytest.raises(FedkdError, match=rf"a/0\.png is not a readable image: .*{reason}") as error:
        images(pictures(content))
    assert "\n" not in str(error.value)


def test_many_images_that_unpack_to_nothing_are_refused_before_they_are_decoded(pictures):
    folder = pictures()
    for number in range(2, 10):
        (folder / "a" / f"{number}.png").write_bytes(png(9_000, 9_000, 8, 0, []))
    with pytest.raises(FedkdError, match=r"unpacks to 648 MB; allowed: 200 times its size"):
        images(folder)


@pytest.mark.parametrize("kind", ["pipe", "device", "link to nothing"])
def test_pipes_and_devices_are_refused_by_name(pictures, kind):
    place = pictures() / "a" / "0.png"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    with pytest.raises(FedkdError, match=r"a/0\.png is not a readable image"):
        images(place.parent.parent)


def test_links_are_followed_unless_they_lead_round_in_circles(pictures):
    folder = pictures()
    (folder / "c").symlink_to(folder / "b")
    (folder / "a" / "0.png").symlink_to(folder / "b" / "1.png")
    assert len(images(folder).train) == 4
    for link in (folder / "a" / "again", folder / "a" / "deeper" / "again", folder / "again"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(folder)
        with pytest.raises(FedkdError, match="is a link to a folder that it is in"):
            images(folder)
        link.unlink()


# --- folders --------------------------------------------------------------------------------


def test_hidden_files_and_folders_are_passed_over(pictures):
    folder = pictures()
    for name in (".ipynb_checkpoints", ".git", "__MACOSX", "a/.ipynb_checkpoints", "a/__MACOSX"):
        (folder / name).mkdir()
        Image.fromarray(GREY[:2]).save(folder / name / "9.png")
    for name in ("a/._1.png", "a/.DS_Store", "b/Thumbs.db"):
        (folder / name).write_bytes(b"left behind")
    data = images(folder)
    assert data.class_names == ("a", "b")
    assert len(data.train) == 2
    assert data.warnings == ()


def test_what_is_left_out_is_said(pictures):
    folder = pictures()
    (folder / "a" / "notes.txt").write_text("hello")
    Image.fromarray(GREY).save(folder / "overview.png")
    (warning,) = images(folder).warnings
    assert "2 file(s) that are no images of a class were left out" in warning


def test_classes_that_differ_by_case_alone_are_said(pictures):
    folder = pictures()
    (folder / "A").mkdir()
    Image.fromarray(GREY).save(folder / "A" / "1.png")
    data = images(folder)
    assert data.class_names == ("A", "a", "b")
    assert "'A' and 'a' are two classes" in data.warnings[0]


def test_parts_are_not_taken_for_classes(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(GREY).save(tmp_path / name / "1.png")
    with pytest.raises(FedkdError, match="train and val are names of parts and not of classes"):
        images(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    assert images(tmp_path).class_names == ("a", "b")
    (tmp_path / "dev").mkdir()
    assert "the folder 'dev' was left out" in images(tmp_path).warnings[0]


# --- without labels -------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False])
def test_a_folder_of_unlabelled_images_is_a_transfer_set(tmp_path, experiment, flat):
    from fedkd.data.federated import load

    for number in range(12):
        place = tmp_path / ("" if flat else f"some/where{number % 2}") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(place)
    transfer = {"size": 12, "source": f"folder:{tmp_path}"}
    data = load(experiment(dataset="digits", transfer=transfer))
    assert data.transfer().labels is None
    found = sorted(data._transfer_images[:, 0, 0, 0].tolist())
    assert found == list(range(12))


@pytest.mark.parametrize("kind", ["images", "features", "broken labels"])
def test_an_npz_file_without_labels_is_a_transfer_set(tmp_path, experiment, kind):
    from fedkd.data.federated import load

    x = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    x = x.reshape(60, 16) / 255 if kind == "features" else x
    np.savez(tmp_path / "private.npz", x=x, y=np.arange(60) % 2)
    more = {"y": np.array(["?"] * 3)} if kind == "broken labels" else {}
    np.savez(tmp_path / "public.npz", x=x[:20], **more)
    transfer = {"size": 20, "source": f"npz:{tmp_path}/public.npz"}
    table = {"dataset": f"npz:{tmp_path}/private.npz", "clients": 2, "test": {"common": 0}}
    data = load(experiment(**table, transfer=transfer))
    assert len(data.transfer().inputs) == 20
    assert data.transfer().labels is None


def test_labels_are_needed_where_clients_train(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 4, 4), np.uint8))
    with pytest.raises(FedkdError, match="y is missing; needed: x and y"):
        load_dataset(f"npz:{tmp_path}/x.npz", None, False)
    with pytest.raises(FedkdError, match="it holds no images"):
        load_dataset(f"folder:{tmp_path}", None, False, labelled=False)


def test_signed_levels_are_refused(pictures):
    """Which Pillow reads as if there were no sign."""
    folder = pictures(Image.fromarray(GREY), "0.tif", tiffinfo={339: 2})
    with pytest.raises(FedkdError, match=r"0\.tif.*its levels are signed"):
        first(folder)
