from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd.data import normalisation
from fedkd.data.dataset import Dataset, Part
from fedkd.data.federated import load
from fedkd.data.transfer import reshaped
from fedkd.errors import FedkdError
from fedkd.registry import names, register


def contents(samples):
    """Each sample as bytes, so that sets of samples can be compared."""
    return [sample.numpy().tobytes() for sample in samples.inputs.contiguous()]


def everything(data):
    """All samples of a federation, by where they are."""
    held = {"transfer": contents(data.transfer()), "common": contents(data.common())}
    for client in range(data.clients):
        held[f"private {client}"] = contents(data.private(client))
        held[f"validation {client}"] = contents(data.validation(client))
        held[f"own {client}"] = contents(data.own(client))
    return held


SMALL = {"transfer": {"size": 200}, "validation_fraction": 0.2}


@pytest.mark.parametrize("partition", names("partitions"))
def test_no_sample_is_in_two_places(toy, experiment, partition):
    data = load(experiment(dataset=toy, partition=partition, test={"common": 80}, **SMALL))
    held = everything(data)
    together = [sample for samples in held.values() for sample in samples]
    assert len(set(together)) == len(together)
    assert len(held["transfer"]) == 200
    assert len(held["common"]) == 80
    assert all(len(samples) > 0 for samples in held.values())


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "pathological"])
def test_no_sample_is_in_two_places_without_a_test_part(experiment, partition):
    data = load(experiment(dataset="digits", partition=partition, transfer={"size": 400}))
    # Some of scikit-learn's digits could be alike; rows are what must differ.
    rows = [*data._private, *data._own, data._common_rows]
    together = torch.cat([part.rows for part in rows])
    assert len(together.unique()) == len(together)
    assert len(contents(data.transfer())) == 400


def test_the_same_experiment_gives_the_same_data_whatever_the_global_generators_say(
    toy, experiment
):
    wanted = experiment(dataset=toy, test={"common": 80}, **SMALL)
    torch.manual_seed(1)
    np.random.seed(1)
    first = everything(load(wanted))
    torch.manual_seed(2)
    np.random.seed(2)
    assert everything(load(wanted)) == first
    assert everything(load(experiment(seed=1, dataset=toy, **SMALL))) != first


def test_kept_partitions_are_the_partitions(toy, experiment, tmp_path, monkeypatch):
    wanted = experiment(dataset=toy, **SMALL)
    fresh = everything(load(wanted))
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path))
    assert everything(load(wanted)) == fresh
    assert len(list(tmp_path.glob("partitions/*.npz"))) == 1
    monkeypatch.setattr("fedkd.data.splits.partition", None)
    assert everything(load(wanted)) == fresh


def test_a_broken_kept_partition_is_computed_again(toy, experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path))
    wanted = experiment(dataset=toy, **SMALL)
    fresh = everything(load(wanted))
    for file in tmp_path.glob("partitions/*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert everything(load(wanted)) == fresh


def test_there_is_no_way_to_transfer_labels(toy, experiment):
    data = load(experiment(dataset=toy, **SMALL))
    assert data.transfer().labels is None
    store = data._private[0].store
    assert (store.labels == -1).sum() == 200
    given = [data.private(0), data.validation(0), data.own(0), data.common()]
    assert all((samples.labels >= 0).all() for samples in given)


def test_the_common_test_set_has_as_many_samples_of_every_class(toy, experiment):
    for dataset, most in ((toy, 90), ("digits", 1000), ("digits", 50)):
        data = load(experiment(dataset=dataset, test={"common": most}, transfer={"size": 100}))
        counts = data.common().labels.bincount(minlength=data.task.classes)
        assert counts.unique().numel() == 1
        assert 0 < counts.sum() <= most


@pytest.mark.parametrize("own", ["split", "matched"])
@pytest.mark.parametrize("alpha", [0.2, 10.0])
def test_own_test_samples_have_the_label_distribution_of_the_training_ones(
    toy, experiment, own, alpha
):
    test = {"own": own, "fraction": 0.4, "common": 40}
    data = load(experiment(dataset=toy, alpha=alpha, clients=5, test=test, transfer={"size": 0}))
    for client, counts in enumerate(data.label_counts()):
        tested = data.own(client).labels.bincount(minlength=4)
        expected = counts / counts.sum() * tested.sum()
        assert (tested - expected).abs().max() <= 1.5
        assert tested.sum() > 20


def test_matched_own_test_samples_are_in_the_test_part_and_not_in_the_common_set(toy, experiment):
    test = {"own": "matched", "common": 80}
    data = load(experiment(dataset=toy, test=test, samples_per_client=80, **SMALL))
    common = set(contents(data.common()))
    trained = {sample for client in range(10) for sample in contents(data.private(client))}
    for client in range(10):
        own = contents(data.own(client))
        assert not common & set(own)
        assert not trained & set(own)
        assert len(own) == len(set(own)) == 21  # a quarter of the 64 + 21
        assert len(contents(data.private(client))) == 64


def test_validation_is_carved_out_of_the_training_samples(toy, experiment):
    data = load(experiment(dataset=toy, samples_per_client=50, **SMALL))
    assert data.sizes().tolist() == [40] * 10
    assert [len(contents(data.validation(client))) for client in range(10)] == [10] * 10
    assert [len(contents(data.own(client))) for client in range(10)] == [17] * 10


def test_the_smallest_clients_keep_min_samples_one_to_test_on_and_one_to_validate(toy, experiment):
    table = {"validation_fraction": 0.9, "test": {"fraction": 0.9}, "min_samples": 3}
    data = load(experiment(dataset=toy, clients=200, transfer={"size": 0}, **table))
    assert data.sizes().tolist() == [3] * 200
    for client in range(200):
        assert len(contents(data.own(client))) == 2
        assert len(contents(data.validation(client))) == 1


def test_what_is_not_asked_for_is_empty(toy, experiment):
    data = load(experiment(dataset=toy, test={"common": 0, "fraction": 0}, transfer={"size": 0}))
    for samples in (data.own(0), data.validation(0), data.common(), data.transfer()):
        assert samples.inputs.shape == (0, 1, 4, 4)
    assert data.sizes().sum() == 1200


def test_label_counts_count_the_private_training_samples(toy, experiment):
    data = load(experiment(dataset=toy, **SMALL))
    counts = data.label_counts()
    assert counts.dtype == torch.int64
    assert counts.sum(1).equal(data.sizes())
    for client in range(data.clients):
        assert counts[client].equal(data.private(client).labels.bincount(minlength=4))


def test_inputs_are_normalised_and_channels_last(tmp_path, experiment):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (300, 3, 6, 5), dtype=np.uint8)
    np.savez(tmp_path / "colour.npz", x=x, y=np.arange(300) % 3)
    table = {"clients": 1, "test": {"common": 0, "fraction": 0}, "transfer": {"size": 0}}
    table |= {"partition": "iid", "statistics": "private"}
    data = load(experiment(dataset=f"npz:{tmp_path}/colour.npz", **table))
    inputs = data.private(0).inputs
    assert data.task.shape == (3, 6, 5)
    assert inputs.shape == (300, 3, 6, 5)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-5
    assert (inputs.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_feature_data_stays_flat(tmp_path, experiment):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "f.npz", x=rng.normal(5, 3, (200, 7)), y=np.arange(200) % 2)
    data = load(experiment(dataset=f"npz:{tmp_path}/f.npz", clients=4, transfer={"size": 50}))
    assert data.task.shape == (7,)
    assert data.private(0).inputs.shape[1:] == (7,)
    assert data.transfer().inputs.shape == (50, 7)


def test_the_transfer_set_can_be_of_another_data_set(toy, experiment):
    transfer = {"size": 300, "source": "digits"}
    data = load(experiment(dataset=toy, transfer=transfer, test={"fraction": 0, "common": 0}))
    assert data.transfer().inputs.shape == (300, 1, 4, 4)
    assert data.transfer().labels is None
    assert data.sizes().sum() == 1200


def test_a_data_set_is_no_foreign_source_for_itself(toy, experiment):
    transfer = {"size": 300, "source": toy}
    data = load(experiment(dataset=toy, transfer=transfer))
    private = {sample for client in range(10) for sample in contents(data.private(client))}
    assert not private & set(contents(data.transfer()))


def test_reshaped_turns_grey_to_colour_and_back_and_resizes():
    grey = torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1)
    colour = reshaped(grey, (3, 8, 8))
    assert colour.shape == (1, 8, 8, 3)
    assert colour.equal(grey.expand(-1, -1, -1, 3))
    assert reshaped(colour, (1, 8, 8)).equal(grey)
    flat = torch.full((2, 5, 7, 3), 200, dtype=torch.uint8)
    assert reshaped(flat, (1, 28, 28)).equal(torch.full((2, 28, 28, 1), 200, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (
            {"dataset": "digits", "transfer": {"size": 5000}},
            "data.transfer.size = 5000 is too many: the training part of 'digits' has 1797 samples",
        ),
        ({"dataset": "digits", "transfer": {"size": 1780}}, "data.clients = 10 need at least 30"),
        (
            {"dataset": "digits", "transfer": {"size": 5, "source": "digit"}},
            r"data.transfer.source = 'digit' is not known \(did you mean 'digits'\?\)",
        ),
        ({"dataset": "digits", "test": {"common": 5}}, "data.test.common = 5 cannot hold one"),
        (
            {"dataset": "digits", "test": {"own": "matched"}},
            "'matched' needs a data set with a test part, and 'digits' has none",
        ),
        ({"dataset": "digits", "clients": 600}, "data.clients = 600 need at least 1800"),
        ({"dataset": "digits", "clients": 400}, "is too many for the 1057 samples"),
        ({"dataset": "digit"}, r"data.dataset = 'digit' is not known \(did you mean 'digits'\?\)"),
    ],
)
def test_an_impossible_request_is_one_line_that_names_keys_and_values(experiment, table, line):
    with pytest.raises(FedkdError, match=line) as error:
        load(experiment(**table))
    assert "\n" not in str(error.value)


def test_foreign_transfer_sets_need_images_on_both_sides(tmp_path, toy, experiment):
    np.savez(tmp_path / "f.npz", x=np.random.default_rng(0).random((99, 7)), y=np.arange(99) % 2)
    table = {"dataset": f"npz:{tmp_path}/f.npz", "transfer": {"size": 5, "source": "digits"}}
    with pytest.raises(FedkdError, match="uint8 images, 0 to 255, the other 7 float features"):
        load(experiment(**table))
    with pytest.raises(FedkdError, match=r"data.transfer.size = 1798 is too many"):
        load(experiment(dataset=toy, transfer={"size": 1798, "source": "digits"}))


def test_matched_says_which_class_the_test_part_lacks(toy, experiment):
    with pytest.raises(FedkdError, match="no sample of class 0, which client 0 trains on"):
        load(experiment(dataset=toy, partition="iid", test={"own": "matched", "common": 400}))


def test_the_default_experiment_has_data_for_everyone(experiment):
    data = load(experiment())
    assert data.task.shape == (1, 8, 8)
    assert data.clients == 10
    assert data.transfer().inputs.shape == (400, 1, 8, 8)
    assert data.sizes().tolist() == [79] * 10
    assert len(contents(data.own(0))) == 26


def test_mnist_is_shared_out(real_data, experiment):
    table = {"samples_per_client": 500, "alpha": 0.1, "transfer": {"size": 5000}}
    data = load(experiment(dataset="mnist", data_dir=str(real_data), **table))
    assert data.sizes().tolist() == [500] * 10
    assert data.common().inputs.shape == (1000, 1, 28, 28)
    assert data.common().labels.bincount().tolist() == [100] * 10
    assert abs(data.transfer().inputs.mean()) < 0.02


def test_femnist_clients_are_writers(real_data, experiment):
    table = {"partition": "natural", "clients": 90, "transfer": {"size": 0}}
    data = load(experiment(dataset="femnist", data_dir=str(real_data), **table))
    for client in range(90):
        rows = torch.cat([data._private[client].rows, data._own[client].rows])
        assert data.task.classes == 62
        assert len(rows) > 3


def test_the_fingerprint_is_of_the_data_alone(toy, experiment, tmp_path, monkeypatch):
    def fingerprint(**table):
        return load(experiment(**{"dataset": toy, **SMALL, **table})).fingerprint()

    found = fingerprint()
    assert len(found) == 32
    assert int(found, 16) >= 0
    assert fingerprint() == found
    monkeypatch.setenv("FEDKD_CACHE", str(tmp_path / "kept"))
    assert [fingerprint(), fingerprint()] == [found, found]
    copied = tmp_path / "elsewhere.npz"
    copied.write_bytes(Path(toy.removeprefix("npz:")).read_bytes())
    assert fingerprint(dataset=f"npz:{copied}") == found
    assert fingerprint(augment=True) == found


def test_the_fingerprint_is_the_same_where_rounding_differs(tmp_path, experiment, monkeypatch):
    x = np.random.default_rng(0).normal(5, 3, (200, 7))
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(200) % 2)
    wanted = experiment(dataset=f"npz:{tmp_path}/own.npz", clients=4, transfer={"size": 50})
    found = load(wanted).fingerprint()
    rounded = normalisation.standardised
    monkeypatch.setattr(normalisation, "standardised", lambda *given: rounded(*given) * (1 + 1e-7))
    assert load(wanted).fingerprint() == found


@pytest.mark.parametrize("key", ["x", "y", "x_test", "y_test"])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_the_fingerprint_changes_with_a_few_numbers(toy, experiment, tmp_path, key, kind):
    held = dict(np.load(toy.removeprefix("npz:")))
    for name in ("x", "x_test"):
        held[name] = held[name].astype(kind)
    file = tmp_path / "own.npz"
    found = []
    for change in (0, 1):
        # Of twenty samples, some are not in the transfer set, where labels do not count.
        numbers = held[key].reshape(len(held[key]), -1)[:20]
        numbers[:, 0] = (numbers[:, 0] + change) % 4
        np.savez(file, **held)
        found.append(load(experiment(dataset=f"npz:{file}", **SMALL)).fingerprint())
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "table",
    [
        {"alpha": 0.4},
        {"clients": 9},
        {"transfer": {"size": 199}},
        {"test": {"common": 96}},
        {"test": {"fraction": 0.2}},
        {"validation_fraction": 0.1},
        {"statistics": "private"},
    ],
)
def test_the_fingerprint_changes_with_who_holds_what(toy, experiment, table):
    first, second = (
        load(experiment(**{"dataset": toy, **SMALL, **more})).fingerprint() for more in ({}, table)
    )
    assert first != second


def test_own_data_by_another_path_is_no_foreign_source(toy, experiment, tmp_path, monkeypatch):
    file = Path(toy.removeprefix("npz:"))
    (tmp_path / "link.npz").symlink_to(file)
    monkeypatch.chdir(file.parent)
    for source in (f"npz:{file.name}", f"npz:./{file.name}", f"npz:{tmp_path}/link.npz"):
        data = load(experiment(dataset=toy, transfer={"size": 300, "source": source}))
        private = {sample for client in range(10) for sample in contents(data.private(client))}
        assert not private & set(contents(data.transfer()))


def test_data_sets_that_share_images_are_said(experiment, monkeypatch):
    def some(folder, download):
        images = torch.randint(256, (300, 4, 4, 3), dtype=torch.uint8)
        part = Part(images, torch.arange(300) % 2)
        return Dataset("some", part, None, ("a", "b"))

    for name in ("cifar10", "cinic10"):
        register("datasets", name)(some)
    transfer = {"size": 9, "source": "cinic10"}
    data = load(experiment(dataset="cifar10", transfer=transfer, test={"common": 0}))
    assert any("holds images of data.dataset = 'cifar10'" in line for line in data.warnings)


def test_what_is_said_of_the_data_is_what_it_was_normalised_by(toy, experiment):
    data = load(experiment(dataset=toy, partition="iid", **SMALL))
    found = data.described()
    assert found["statistics"]["source"] == "public"
    assert len(found["statistics"]["mean"]) == len(found["statistics"]["std"]) == 1
    assert 3.8 < found["effective_classes"] <= 4
    each = found["effective_classes_of_clients"]
    assert len(each) == data.clients
    assert np.exp(np.log(each).mean()) == pytest.approx(found["effective_classes"])


def test_with_part_clients_train_on_some_of_their_samples_alone(toy, experiment):
    data = load(experiment(dataset=toy, clients=3, **SMALL))
    kept = [torch.arange(count)[client::2] for client, count in enumerate(data.sizes().tolist())]
    part = data.with_part(kept)
    for client in range(3):
        assert part.private(client).inputs.equal(data.private(client).inputs[kept[client]])
        assert part.own(client).inputs.equal(data.own(client).inputs)
    assert part.label_counts().sum(1).tolist() == [len(rows) for rows in kept]
    assert data.sizes().tolist() != part.sizes().tolist()


# --- what the server validates on -----------------------------------------------------------


def test_what_the_server_validates_on_is_nobody_elses(small):
    with_it, without = load(small("data.server_validation=90")), load(small())
    held = with_it.server_validation()
    assert without.server_validation() is None
    assert held.inputs.shape == (90, 1, 8, 8)
    assert held.labels.bincount(minlength=10).min() >= 7  # each class has its share
    others = [with_it.transfer(), with_it.common()]
    for client in range(with_it.clients):
        others += [with_it.private(client), with_it.own(client)]
    seen = {image.numpy().tobytes() for samples in others for image in samples.inputs.contiguous()}
    # Digits has a few images twice.
    assert sum(image.numpy().tobytes() in seen for image in held.inputs.contiguous()) <= 2
    assert torch.equal(with_it.transfer().inputs, without.transfer().inputs)
    assert torch.equal(with_it.common().inputs, without.common().inputs)
    assert with_it.fingerprint() != without.fingerprint()


def test_the_server_gets_no_more_than_a_quarter(small):
    with pytest.raises(FedkdError, match=r"server_validation = 900 is more than a quarter of the "):
        load(small("data.server_validation=900"))
