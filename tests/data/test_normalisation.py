"""The same sample has the same numbers, by statistics that are public and said."""

import itertools

import numpy as np
import pytest
import torch

from fedkd import Experiment, run
from fedkd.data.dataset import Dataset, Part, statistics
from fedkd.data.federated import load
from fedkd.errors import FedkdError
from fedkd.registry import register

PIXELS = np.random.default_rng(0).integers(0, 256, (160, 6, 6), dtype=np.uint8)
PIXELS[:, 0] = np.array([0, 51, 102, 153, 204, 255])  # pictures fill their range
LABELS = np.arange(160) % 2
# The same pictures, as files of each kind have them.
KINDS = {
    "uint8": {"x": PIXELS},
    "0 to 1": {"x": PIXELS / 255, "x_range": (0, 1)},
    "-1 to 1": {"x": (PIXELS / 127.5 - 1).astype(np.float32), "x_range": (-1, 1)},
    "16 bits": {"x": PIXELS.astype(np.uint16) * 257, "x_range": (0, 65535)},
    "0 to 1, not said": {"x": PIXELS / 255},
    "-1 to 1, not said": {"x": PIXELS / 127.5 - 1},
    "0 to 255, not said": {"x": PIXELS * 1.0},
    "0 to 16, not said": {"x": PIXELS / 255 * 16},
    "standardised, not said": {"x": (PIXELS / 255 - 0.13) / 0.31},
    "features": {"x": PIXELS.reshape(160, 36) / 255},
    "features, 0 to 255": {"x": PIXELS.reshape(160, 36) * 1.0},
    "features, narrower": {"x": PIXELS.reshape(160, 36)[:, :35] / 255},
}
SAID = ("uint8", "0 to 1", "-1 to 1", "16 bits")


@pytest.fixture
def own(tmp_path):
    """The name of an npz data set that is written from its arrays."""

    def write(name="own", **arrays):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return f"npz:{tmp_path}/{name}.npz"

    return write


def plain(**table):
    """Every sample is a client's training sample, the transfer set apart."""
    return {"clients": 2, "partition": "iid", "test": {"fraction": 0, "common": 0}, **table}


def normalised(data):
    """Every sample of clients, and the transfer set, in the order of the first file."""
    rows = torch.cat([place.rows for place in data._private])
    inputs = torch.cat([data.private(client).inputs for client in range(data.clients)])
    return inputs[rows.argsort()].flatten(1)


def distances(one, other):
    """How far each row of one is from the nearest of the other, in its worst number."""
    return (one[:, None] - other).abs().amax(2).amin(1)


@pytest.mark.parametrize(("private", "public"), [*itertools.product(KINDS, repeat=2)])
def test_the_same_picture_has_the_same_numbers_or_the_pair_is_one_line(
    own, experiment, private, public
):
    dataset = own("private", **KINDS[private], y=LABELS)
    transfer = {"size": 160, "source": own("public", **KINDS[public])}
    allowed = private == public or {private, public} <= {*SAID}
    try:
        data = load(experiment(**plain(dataset=dataset, transfer=transfer)))
    except FedkdError as error:
        line = str(error)
        assert not allowed
        assert "\n" not in line
        assert "data.transfer.source" in line
        assert len([part for part in ("uint8", "float", "features") if part in line]) >= 1
        return
    assert allowed
    ours, theirs = normalised(data), data.transfer().inputs.flatten(1)
    assert len(theirs) == 160
    # Samples of the transfer set come in a drawn order.
    for one, other in ((ours, theirs), (theirs, ours)):
        assert distances(one, other).max() < 1e-5
    assert ours.mean().abs() < 0.01


def test_a_pair_that_is_refused_names_both_kinds_and_ranges(own, experiment):
    dataset = own("private", **KINDS["-1 to 1, not said"], y=LABELS)
    with pytest.raises(FedkdError) as error:
        load(experiment(**plain(dataset=dataset, transfer={"size": 5, "source": "digits"})))
    for part in ("uint8 images, 0 to 255", "float images without x_range, -1 to 1", "x_range"):
        assert part in str(error.value)


@pytest.mark.parametrize("said", ["-1 to 1", "0 to 1"])
def test_float_images_with_a_range_go_with_colour_images_of_another_size(own, experiment, said):
    white = np.full((8, 12, 12, 3), 255, np.uint8)
    dataset = own("private", **KINDS[said], y=LABELS)
    transfer = {"size": 8, "source": own("public", x=white)}
    table = plain(dataset=dataset, transfer=transfer, statistics="constants")
    data = load(experiment(**table))
    assert data.transfer().inputs.shape == (8, 1, 6, 6)
    assert data.transfer().inputs.allclose(torch.tensor(1.0))  # (1 - 0.5) / 0.5
    assert normalised(data).amin() == pytest.approx(-1)


def test_test_samples_are_on_the_scale_of_training_samples(own, experiment):
    for kind in SAID:
        arrays = dict(KINDS[kind])
        dataset = own(**arrays, y=LABELS, x_test=arrays["x"][:80], y_test=LABELS[:80])
        test = {"fraction": 0, "common": 80}
        data = load(experiment(**plain(dataset=dataset, transfer={"size": 0}, test=test)))
        assert distances(data.common().inputs.flatten(1), normalised(data)).max() < 1e-5


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("0 to 1, not said", "uint8"),
        ("uint8", "0 to 1, not said"),
        ("0 to 1, not said", "0 to 255, not said"),
        ("0 to 1, not said", "-1 to 1, not said"),
        ("standardised, not said", "0 to 1, not said"),
        ("features", "features, 0 to 255"),
        ("features", "features, narrower"),
        ("features", "0 to 1, not said"),
    ],
)
def test_a_test_part_of_another_kind_is_one_line(own, experiment, train, test):
    dataset = own(**KINDS[train], y=LABELS, x_test=KINDS[test]["x"], y_test=LABELS)
    with pytest.raises(FedkdError, match="x_test") as error:
        load(experiment(**plain(dataset=dataset, transfer={"size": 5})))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("secret", ["labels", "pixels"])
@pytest.mark.parametrize("kind", ["0 to 1", "-1 to 1"])
def test_canaries_have_the_same_numbers_among_float_images_and_among_uint8_ones(own, kind, secret):
    from fedkd.experiment import Experiment

    found = []
    for name in ("uint8", kind):
        dataset = own(**KINDS[name], y=LABELS)
        tables = {
            "data": plain(dataset=dataset, transfer={"size": 40}, statistics="constants"),
            "canary": {"kind": secret, "secrets": 1, "repeats": [1], "length": 2}
            | {"public": "exact"},
        }
        data = load(Experiment.from_dict(tables))
        each = data.canaries.images.shape[1]
        planted = [data.private(client).inputs[-each:] for client in range(2)]
        public = data.transfer().inputs[-2 * each :]
        assert public.allclose(torch.cat(planted), atol=1e-6)
        assert public.allclose(data.normalised(data.canaries.images.flatten(0, 1)), atol=1e-6)
        found.append(public)
    assert found[0].allclose(found[1], atol=1e-6)


def test_canaries_need_images_whose_black_and_white_are_known(own):
    from fedkd.experiment import Experiment

    dataset = own(**KINDS["0 to 1, not said"], y=LABELS)
    tables = {"data": plain(dataset=dataset), "canary": {"secrets": 1, "repeats": [1]}}
    with pytest.raises(FedkdError, match=r"canary\.secrets = 1 is not allowed .* x_range"):
        load(Experiment.from_dict(tables | {"data": tables["data"] | {"transfer": {"size": 9}}}))


# --- where statistics come from -----------------------------------------------------------------


def source(experiment, dataset, **table):
    data = load(experiment(**plain(dataset=dataset, **table)))
    return data.statistics, data.warnings


def test_auto_takes_published_constants_first(experiment):
    found, warnings = source(experiment, "digits")
    assert (found.source, found.mean) == ("constants", (0.30530871850687963,))
    assert "'digits'" in found.origin
    assert warnings == ()


def test_auto_takes_the_transfer_set_where_nothing_is_published(own, experiment):
    dataset = own(**KINDS["uint8"], y=LABELS)
    found, _ = source(experiment, dataset, transfer={"size": 60})
    assert found.source == "public"
    data = load(experiment(**plain(dataset=dataset, transfer={"size": 60})))
    public = data.transfer().inputs
    assert public.mean().abs() < 1e-5
    assert (public.std(correction=0) - 1).abs() < 1e-4


def test_no_sample_of_a_client_moves_the_statistics(own, experiment):
    table = plain(transfer={"size": 60})
    before = load(experiment(dataset=own("one", **KINDS["features"], y=LABELS), **table))
    row = int(before._private[0].rows[0])
    other = KINDS["features"]["x"].copy()
    other[row] = 1e9
    after = load(experiment(dataset=own("two", x=other, y=LABELS), **table))
    assert after.statistics.mean == before.statistics.mean
    assert after.statistics.std == before.statistics.std
    assert after.private(1).inputs.equal(before.private(1).inputs)


def test_pictures_without_a_public_sample_are_normalised_by_a_half(own, experiment):
    for kind in SAID:
        found, _ = source(experiment, own(**KINDS[kind], y=LABELS), transfer={"size": 0})
        assert (found.source, found.mean, found.std) == ("constants", (0.5,), (0.5,))


@pytest.mark.parametrize("kind", ["features", "0 to 1, not said"])
def test_other_samples_without_a_public_one_are_refused_and_told_what_to_do(own, experiment, kind):
    with pytest.raises(FedkdError, match=r"data\.transfer\.size.*x_mean.*'private'") as error:
        source(experiment, own(**KINDS[kind], y=LABELS), transfer={"size": 0})
    assert "\n" not in str(error.value)


def test_a_file_may_publish_its_own_statistics(own, experiment):
    dataset = own(**KINDS["features"], y=LABELS, x_mean=0.0, x_std=np.full(36, 2.0))
    data = load(experiment(**plain(dataset=dataset, transfer={"size": 0})))
    assert data.statistics.source == "constants"
    assert normalised(data).allclose(torch.from_numpy(KINDS["features"]["x"] / 2).float())


def test_private_statistics_are_those_of_the_whole_training_part_and_are_said(own, experiment):
    found, warnings = source(
        experiment, own(**KINDS["features"], y=LABELS), statistics="private", transfer={"size": 9}
    )
    assert found.source == "private"
    assert np.allclose(found.mean, KINDS["features"]["x"].mean(0))
    assert any("no epsilon covers this release" in line for line in warnings)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"statistics": "public", "transfer": {"size": 0}}, "'public' is not allowed with"),
        ({"statistics": "constants", "transfer": {"size": 9}}, "'constants' is not allowed with"),
        ({"statistics": "mine"}, "data.statistics = 'mine' is not allowed"),
    ],
)
def test_statistics_that_are_not_there_are_one_line(own, experiment, table, line):
    with pytest.raises(FedkdError, match=line) as error:
        load(experiment(**plain(dataset=own(**KINDS["features"], y=LABELS), **table)))
    assert "\n" not in str(error.value)


def test_text_has_no_statistics_to_choose(experiment):
    assert load(experiment(dataset="pydoc", clients=2)).statistics.source == "none"
    with pytest.raises(FedkdError, match=r"data\.statistics = 'private' is not allowed .* text"):
        load(experiment(dataset="pydoc", clients=2, statistics="private"))


def test_features_that_do_not_vary_in_public_are_said(own, experiment):
    x = KINDS["features"]["x"].copy()
    x[:, 6:9] = 3
    _, warnings = source(experiment, own(x=x, y=LABELS), transfer={"size": 60})
    # The first row of each picture is the same in all of them.
    assert any(line.startswith("9 of 36 features or channels do not vary") for line in warnings)


# --- narrowing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-200, 1e-13, 1.0, 1e13, 1e200])
def test_features_of_any_size_are_standardised(own, experiment, scale):
    x = np.random.default_rng(1).normal(0, 1, (200, 3)) * scale
    data = load(experiment(**plain(dataset=own(x=x, y=np.arange(200) % 2), transfer={"size": 90})))
    assert (normalised(data).std(0) - 1).abs().max() < 0.25


def test_a_run_on_tiny_features_learns_as_on_large_ones(own, experiment, tmp_path):
    drawn = np.random.default_rng(1).normal(0, 1, (400, 8))
    labels = (drawn[:, 0] > 0).astype(np.int64)
    accuracies = []
    for scale in (1.0, 1e-13):
        data = plain(dataset=own(x=drawn * scale, y=labels), transfer={"size": 90})
        data |= {"test": {"fraction": 0.25, "common": 0}}
        made = experiment(**data).model_dump() | {"student": {"models": ["mlp"]}, "rounds": 3}
        done = run(Experiment.from_dict(made), tmp_path / str(scale))
        accuracies.append(done.summary["own_accuracy_mean"])
    assert accuracies[0] == accuracies[1] > 0.9


@pytest.mark.parametrize(("centre", "spread"), [(1e6, 1e-3), (-1e9, 1.0), (1.0, 1e-9)])
def test_numbers_far_from_zero_keep_their_digits(own, experiment, centre, spread):
    drawn = np.random.default_rng(2).normal(0, spread, (200, 4))
    x = centre + drawn
    data = load(experiment(**plain(dataset=own(x=x, y=np.arange(200) % 2), transfer={"size": 90})))
    rows = torch.cat([place.rows for place in data._private]).sort().values.numpy()
    public = np.setdiff1d(np.arange(200), rows)
    exact = x - centre  # exact, as the numbers are close
    expected = (exact[rows] - exact[public].mean(0)) / exact[public].std(0)
    assert np.allclose(normalised(data).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_vary_is_divided_by_one_and_what_varies_a_little_is_not():
    def deviations(*columns, dtype=torch.float64):
        return statistics(torch.tensor(columns, dtype=dtype).T)[1]

    assert deviations([0.1] * 7, [1e300] * 7, [0.0] * 7) == (1.0, 1.0, 1.0)
    small = deviations([1.0, 1 + 2e-13], [1e-30, 3e-30], [1e6, 1e6 + 2e-3])
    assert small == pytest.approx((1e-13, 1e-30, 1e-3), rel=1e-2)
    assert deviations([1.0, 1 + 2e-16]) == (1.0,)  # the last digit is rounding
    assert statistics(torch.full((5, 4, 4, 1), 200, dtype=torch.uint8))[1] == (1.0,)


def test_statistics_of_pieces_are_those_of_the_whole(monkeypatch):
    x = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (50, 4)))
    pixels = torch.from_numpy(PIXELS[..., None])
    whole = statistics(x), statistics(pixels)
    monkeypatch.setattr("fedkd.data.dataset.PIECE", 8)
    assert np.allclose(statistics(x), whole[0], rtol=1e-12)
    assert statistics(pixels) == whole[1]


def test_a_sample_that_no_float32_can_hold_is_one_line(own, experiment):
    x = np.random.default_rng(1).normal(0, 1e-30, (200, 2))
    data = load(experiment(**plain(dataset=own(x=x, y=np.arange(200) % 2), transfer={"size": 90})))
    x[int(data._private[0].rows[0])] = 1e30
    with pytest.raises(FedkdError, match=r"data\.statistics: a sample is over 1e38") as error:
        load(experiment(**plain(dataset=own(x=x, y=np.arange(200) % 2), transfer={"size": 90})))
    assert "\n" not in str(error.value)


def test_channels_of_a_series_have_statistics_of_their_own(own, experiment):
    rng = np.random.default_rng(0)
    windows = rng.normal(0, 1, (120, 9, 128)) * np.logspace(-3, 5, 9)[:, None]
    for layout, x in (("first", windows), ("last", windows.transpose(0, 2, 1))):
        dataset = own(x=x, y=np.arange(120) % 3, x_channels=layout)
        data = load(experiment(**plain(dataset=dataset, transfer={"size": 60})))
        assert data.task.shape == (9, 1, 128)
        inputs = torch.cat([data.private(client).inputs for client in range(2)])
        assert (inputs.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_the_global_default_type_changes_no_input(experiment):
    before = load(experiment()).private(0).inputs
    torch.set_default_dtype(torch.float64)
    try:
        after = load(experiment()).private(0).inputs
    finally:
        torch.set_default_dtype(torch.float32)
    assert after.dtype == torch.float32
    assert after.equal(before)


# --- data sets of others ------------------------------------------------------------------------

IMAGES, CLASSES = torch.from_numpy(PIXELS[..., None]), torch.from_numpy(LABELS)


def made(images=IMAGES, labels=CLASSES, names=("a", "b"), test=None, **more):
    return Dataset("mine", Part(images, labels), test, names, **more)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"x": 1}, "its loader returned a dict"),
        (made(IMAGES[..., 0]), r"train.images is torch.uint8 \(160, 6, 6\)"),
        (made(IMAGES.long()), "train.images is torch.int64"),
        (made(IMAGES[:0], CLASSES[:0]), "train.images is empty"),
        (made(labels=CLASSES[:5]), r"train.labels is torch.int64 \(5,\)"),
        (made(labels=CLASSES.float()), "train.labels is torch.float32"),
        (made(labels=CLASSES + 1), "train.labels goes from 1 to 2; allowed: 0 to 1"),
        (made(IMAGES / 255.0 * torch.nan), "train.images holds NaN or infinity"),
        (made(IMAGES.float(), unit=True), "train.images goes from 0 to 255; with unit = True"),
        (made(test=Part(IMAGES / 255, CLASSES)), "test.images is torch.float32"),
        (made(mean=(0.5,), std=(0.0,)), "std finite and above 0"),
        (made(mean=(0.5, 0.5), std=(1.0, 1.0)), "mean and std have 2 and 2 numbers; allowed: 1"),
    ],
)
def test_a_registered_data_set_that_is_none_is_one_line(experiment, data, line):
    register("datasets", "mine")(lambda folder, download: data)
    with pytest.raises(FedkdError, match=line) as error:
        load(experiment(dataset="mine"))
    assert "\n" not in str(error.value)
    assert "'mine'" in str(error.value)


def test_a_registered_data_set_that_raises_is_one_line_with_its_place(experiment):
    @register("datasets", "mine")
    def mine(folder, download):
        return np.zeros(3)[7]

    with pytest.raises(FedkdError, match=r"'mine' cannot be loaded: IndexError.*test_norm.*line"):
        load(experiment(dataset="mine"))


def test_a_registered_data_set_without_labels_is_a_transfer_set_alone(experiment):
    register("datasets", "mine")(lambda folder, download: made(labels=CLASSES * 0 - 1, names=()))
    data = load(experiment(dataset="digits", transfer={"size": 40, "source": "mine"}))
    assert len(data.transfer().inputs) == 40
    with pytest.raises(FedkdError, match=r"train\.labels goes from -1 to -1"):
        load(experiment(dataset="mine"))


def test_a_registered_data_set_needs_to_publish_nothing(experiment):
    register("datasets", "mine")(lambda folder, download: made())
    data = load(experiment(**plain(dataset="mine", transfer={"size": 40})))
    assert data.statistics.source == "public"
