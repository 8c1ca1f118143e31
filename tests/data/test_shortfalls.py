"""What was asked of the data and not given is said, and nothing else is."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import digamma

import fedkd.simulations
from fedkd.data.federated import load
from fedkd.data.partitions import entropies
from fedkd.data.shortfalls import _entropies_of
from fedkd.experiment import Experiment


@pytest.fixture
def own(tmp_path):
    """An npz data set with these many samples of each class, and of the test part."""

    def write(*train, test=()):
        rng = np.random.default_rng(0)
        arrays = {}
        for key, counts in (("", train), ("_test", test)):
            if counts:
                size = (sum(counts), 4, 4)
                arrays[f"x{key}"] = rng.integers(0, 256, size, dtype=np.uint8)
                arrays[f"y{key}"] = np.repeat(np.arange(len(counts)), counts)
        np.savez(tmp_path / "own.npz", **arrays)
        return f"npz:{tmp_path}/own.npz"

    return write


def asked(experiment, dataset, **table):
    """The warnings of an experiment that asks for nothing else."""
    plain = {"clients": 4, "partition": "iid", "transfer": {"size": 0}}
    plain |= {"test": {"fraction": 0, "common": 0}}
    return load(experiment(dataset=dataset, **plain | table)).warnings


def test_a_common_test_set_that_the_rarest_class_shrinks_is_said(own, experiment):
    dataset = own(200, 200, 200, test=(5000, 5000, 3))
    (line,) = asked(experiment, dataset, test={"fraction": 0, "common": 1000})
    assert "data.test.common = 1000: the common test set has 9 samples, 3 of each" in line
    dataset = own(200, 200, 200, test=(5000, 5000, 1))
    (line,) = asked(experiment, dataset, test={"fraction": 0, "common": 1000})
    assert "has 3 samples, 1 of each of 3 classes" in line


def test_classes_that_the_common_test_set_lacks_are_said(own, experiment):
    for test in ((200, 200), (200, 200, 0, 0)):
        lines = asked(experiment, own(200, 200, 200, 200, test=test), test={"common": 100})
        assert any("2 of the 4 classes that clients train on, class 2 for one" in x for x in lines)
    lines = asked(experiment, own(200, 200, 200, test=(200,) * 3), test={"common": 99})
    assert not any("classes that clients train on" in line for line in lines)


def test_a_common_test_set_that_is_whole_but_for_rounding_is_not(own, experiment):
    dataset = own(200, 200, 200, test=(400, 400, 400))
    assert asked(experiment, dataset, test={"fraction": 0, "common": 1000}) == ()


def test_a_common_test_set_out_of_a_small_training_part_is_said(own, experiment):
    (line,) = asked(experiment, own(200, 200), test={"fraction": 0, "common": 300})
    assert "data.test.common = 300: the common test set has 100 samples, 50 of each" in line


def test_own_test_samples_that_cannot_be_matched_are_said(own, experiment):
    dataset = own(200, 200, test=(40, 3))
    test = {"own": "matched", "fraction": 0.25, "common": 0}
    (line,) = asked(experiment, dataset, test=test)
    assert "data.test.fraction = 0.25: 4 of 4 clients have fewer own test samples" in line
    dataset = own(200, 200, test=(60, 60))
    assert asked(experiment, dataset, test=test) == ()


def test_samples_that_min_samples_keeps_for_training_are_said(own, experiment):
    table = {"min_samples": 90, "validation_fraction": 0.5}
    lines = asked(experiment, own(200, 200), test={"fraction": 0.2, "common": 0}, **table)
    own_line, validation_line = lines
    assert "have fewer own test samples, client 0 9 of 20" in own_line
    assert "data.validation_fraction = 0.5: 4 of 4 clients have fewer validation" in validation_line
    assert "1 of 46" in validation_line


def test_clients_with_fewer_samples_than_asked_are_said(own, experiment):
    table = {"partition": "quantity-skew", "alpha": 0.3, "samples_per_client": 80}
    (line,) = asked(experiment, own(200, 200), **table)
    assert "data.samples_per_client = 80" in line
    assert "clients have fewer samples to train and validate on, client" in line
    assert asked(experiment, own(200, 200), samples_per_client=80, clients=5) == ()
    table = {"samples_per_client": 80, "validation_fraction": 0.3}
    assert asked(experiment, own(200, 200), clients=5, **table) == ()


def test_alpha_is_not_met_where_all_samples_are_shared_out_and_met_where_few_are(own, experiment):
    dataset, table = own(*[300] * 10), {"partition": "dirichlet", "alpha": 0.1, "clients": 10}
    (line,) = asked(experiment, dataset, **table)
    assert "data.alpha = 0.1 is not met: clients have" in line
    assert "draws of it 2." in line
    assert asked(experiment, dataset, samples_per_client=60, **table) == ()
    assert asked(experiment, dataset, sizes="natural", **table) == ()
    assert asked(experiment, dataset, **table | {"alpha": 100.0}) == ()


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 10.0])
def test_draws_of_alpha_have_the_entropy_of_a_dirichlet_law(alpha):
    exact = digamma(10 * alpha + 1) - digamma(alpha + 1)
    drawn = _entropies_of(alpha, 10, 100_000)
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / len(drawn) ** 0.5 + 1e-3


def test_so_small_an_alpha_that_nothing_can_be_drawn_asks_for_one_class():
    assert _entropies_of(1e-320, 10, 100).mean() == pytest.approx(0, abs=1e-6)


def test_effective_classes_are_classes_where_all_are_alike():
    counts = np.array([[5, 5, 5, 5], [7, 0, 0, 0], [0, 3, 3, 0], [0, 0, 0, 0]])
    assert np.exp(entropies(counts)).tolist() == pytest.approx([4, 1, 2, 1])


def test_writers_with_fewer_samples_than_asked_are_said():
    # Each client is a topic of its own size, and the key says how many it has at most.
    file = Path(fedkd.simulations.__file__).parent / "swing.toml"
    (line,) = load(Experiment.from_toml(file.read_text())).warnings
    assert "data.samples_per_client = 360" in line


@pytest.mark.parametrize("name", ["quickstart", "fedd2s"])
def test_shipped_experiments_ask_for_what_there_is(name):
    file = Path(fedkd.simulations.__file__).parent / f"{name}.toml"
    assert load(Experiment.from_toml(file.read_text())).warnings == ()


@pytest.mark.parametrize(
    "name", ["knfu-mnist", "knfu-cifar10", "fedd2s-cifar10", "fedd2s-femnist", "swing-mnist"]
)
def test_shipped_experiments_on_real_data_ask_for_what_there_is(name, real_data):
    file = Path(fedkd.simulations.__file__).parent / f"{name}.toml"
    assert load(Experiment.from_toml(file.read_text())).warnings == ()
