import numpy as np
import pytest
import torch

from fedkd import registry
from fedkd.data.federated import load
from fedkd.data.partitions import entropies, own_count, partition, stratified
from fedkd.effects import without_effect
from fedkd.errors import FedkdError
from fedkd.sections import DataTable

PARTITIONS = registry.names("partitions")
LABELS = np.tile(np.arange(10), 120)
WRITERS = np.repeat(np.arange(24), 50)


def share(labels=LABELS, writers=WRITERS, seed=0, **table):
    return partition(labels, writers, DataTable(**{"clients": 10, **table}), seed)


def distributions(parts, labels=LABELS):
    counts = np.stack([np.bincount(labels[rows], minlength=10) for rows in parts])
    return counts / counts.sum(1, keepdims=True)


@pytest.mark.parametrize("sizes", ["equal", "natural"])
@pytest.mark.parametrize("name", PARTITIONS)
def test_no_sample_belongs_to_two_clients(name, sizes):
    rows = np.concatenate(share(partition=name, sizes=sizes))
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < len(LABELS)


@pytest.mark.parametrize("name", PARTITIONS)
def test_the_same_seed_gives_the_same_partition_whatever_the_global_generators_say(name):
    np.random.seed(1)
    torch.manual_seed(1)
    first = share(partition=name)
    np.random.seed(2)
    torch.manual_seed(2)
    second = share(partition=name)
    state = np.random.get_state()[1].copy()
    other = share(partition=name, seed=1)
    assert all(map(np.array_equal, first, second))
    assert not all(map(np.array_equal, first, other))
    assert np.array_equal(state, np.random.get_state()[1]), "the global generator was drawn from"


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "pathological"])
@pytest.mark.parametrize(("fraction", "total"), [(0.0, 50), (0.25, 67), (0.5, 100)])
def test_samples_per_client_is_exact_and_own_test_samples_come_on_top(name, fraction, total):
    table = DataTable(
        partition=name, samples_per_client=50, clients=10, test={"fraction": fraction}
    )
    parts = partition(LABELS, None, table, 0)
    assert [len(rows) for rows in parts] == [total] * 10
    assert total - own_count(total, table) == 50


@pytest.mark.parametrize("wanted", range(3, 60, 7))
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.33, 0.5, 0.8])
def test_the_own_test_split_leaves_samples_per_client_to_train_on(wanted, fraction):
    table = DataTable(partition="iid", samples_per_client=wanted, clients=4)
    table = table.model_copy(update={"test": table.test.model_copy(update={"fraction": fraction})})
    for rows in partition(LABELS, None, table, 0):
        assert len(rows) - own_count(len(rows), table) == wanted


@pytest.mark.parametrize("name", ["quantity-skew", "natural", "dirichlet"])
def test_samples_per_client_is_the_most_where_sizes_are_natural(name):
    sizes = [len(rows) for rows in share(partition=name, sizes="natural", samples_per_client=30)]
    assert max(sizes) <= 40
    uncut = [len(rows) for rows in share(partition=name, sizes="natural")]
    assert sizes == [min(size, 40) for size in uncut]


def test_a_large_alpha_makes_clients_alike_and_a_small_one_unlike():
    for sizes in ("equal", "natural"):
        alike = distributions(share(alpha=1000.0, sizes=sizes))
        unlike = distributions(share(alpha=0.1, sizes=sizes))
        assert np.abs(alike - 0.1).max() < 0.1
        assert unlike.max(1).mean() > 0.4


def test_the_class_wise_split_shares_out_everything_and_nobody_has_a_class_too_many():
    """Who has its share of all samples is given no more of later classes."""
    for alpha in (0.1, 0.5, 100.0):
        parts = share(partition="dirichlet-by-class", alpha=alpha)
        rows = np.concatenate(parts)
        assert len(np.unique(rows)) == len(rows) == len(LABELS)
        counts = np.stack([np.bincount(LABELS[rows], minlength=10) for rows in parts])
        before = counts.cumsum(1) - counts
        assert not (counts > 0)[before > len(LABELS) / len(parts)].any()
    unlike, alike = (
        entropies(10 * distributions(share(partition="dirichlet-by-class", alpha=alpha))).mean()
        for alpha in (0.1, 100.0)
    )
    assert unlike < 0.6 * alike


def test_the_class_wise_split_refuses_an_alpha_that_leaves_a_class_to_nobody():
    with pytest.raises(FedkdError, match="dirichlet"):
        share(partition="dirichlet-by-class", alpha=1e-4)


def test_dirichlet_sizes_are_equal_when_asked_to_be():
    assert {len(rows) for rows in share(alpha=0.1, sizes="equal")} == {120}
    assert len({len(rows) for rows in share(alpha=0.1, sizes="natural")}) > 5


def test_dirichlet_goes_by_its_labels_when_a_class_is_missing():
    labels = np.where(LABELS == 3, 7, LABELS)
    for sizes in ("equal", "natural"):
        rows = np.concatenate(share(labels, sizes=sizes, alpha=1.0))
        assert len(np.unique(rows)) == len(LABELS)


def test_more_clients_than_a_cohort_are_still_filled_exactly():
    labels = np.tile(np.arange(5), 420)
    parts = partition(labels, None, DataTable(clients=520, alpha=0.3), 0)
    assert {len(rows) for rows in parts} == {4}
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows)


@pytest.mark.parametrize("held", [1, 2, 5, 10])
@pytest.mark.parametrize("wanted", [None, 30])
def test_pathological_clients_hold_exactly_so_many_classes(held, wanted):
    parts = share(partition="pathological", classes_per_client=held, samples_per_client=wanted)
    assert {len(np.unique(LABELS[rows])) for rows in parts} == {held}


def test_a_client_of_one_shard_has_one_class_when_classes_divide_evenly():
    parts = share(partition="shards", shards_per_client=1)
    assert {len(np.unique(LABELS[rows])) for rows in parts} == {1}


def test_iid_uses_every_sample():
    assert sorted(np.concatenate(share(partition="iid", clients=7))) == list(range(len(LABELS)))


def test_quantity_skew_changes_sizes_and_not_labels():
    parts = share(partition="quantity-skew", alpha=0.5, clients=4)
    sizes = [len(rows) for rows in parts]
    assert max(sizes) > 2 * min(sizes)
    assert np.abs(distributions([parts[np.argmax(sizes)]]) - 0.1).max() < 0.05


def test_quantity_skew_gives_everyone_the_least_at_a_tiny_alpha():
    sizes = [len(rows) for rows in share(partition="quantity-skew", alpha=1e-6, min_samples=5)]
    assert sorted(sizes)[:9] == [6] * 9


def test_natural_clients_are_one_writer_each_and_all_of_that_writer():
    parts = share(partition="natural")
    people = [np.unique(WRITERS[rows]) for rows in parts]
    assert all(len(person) == 1 for person in people)
    assert len({int(person[0]) for person in people}) == 10
    assert {len(rows) for rows in parts} == {50}


def test_natural_passes_over_writers_with_too_few_samples():
    writers = WRITERS.copy()
    writers[:48] = 1  # writer 0 is left with two samples
    parts = share(writers=writers, partition="natural", clients=23)
    assert 0 not in {int(writers[rows[0]]) for rows in parts}


def test_natural_draws_no_progress_bar(capfd):
    share(partition="natural")
    assert capfd.readouterr() == ("", "")


def test_stratified_keeps_the_label_distribution_to_within_one_a_class():
    rng = np.random.default_rng(0)
    labels = rng.choice(5, 200, p=[0.5, 0.3, 0.1, 0.06, 0.04])
    for count in (0, 1, 7, 50, 200, 400):
        picked = np.bincount(labels[stratified(labels, count, rng)], minlength=5)
        assert picked.sum() == count
        assert np.abs(picked - np.bincount(labels) * count / 200).max() < 1


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"partition": "dirichlett"}, r"'dirichlett' is not known \(did you mean 'dirichlet'\?\)"),
        ({"clients": 1201}, "data.clients = 1201 is too many for the 1200 samples"),
        ({"clients": 401}, "needs 3 .data.min_samples = 2 to train, 1 to test on"),
        (
            {"samples_per_client": 500},
            r"data.samples_per_client = 500 for data.clients = 10 takes 6670 samples \(667 each",
        ),
        ({"samples_per_client": 1}, "data.samples_per_client = 1 is too few"),
        (
            {"partition": "pathological", "classes_per_client": 11},
            "data.classes_per_client = 11 is not allowed: the data set has 10 classes",
        ),
        (
            {"partition": "pathological", "classes_per_client": 7, "samples_per_client": 90},
            "cannot give every client data.samples_per_client = 90: the smallest",
        ),
        ({"partition": "shards", "shards_per_client": 121}, "takes 1210 samples in 1210 shards"),
        ({"partition": "natural", "clients": 25}, "more than there are writers: 24 of 24"),
        (
            {"partition": "natural", "clients": 20, "min_samples": 50},
            "0 of 24 have the samples a client needs, 51",
        ),
        ({"alpha": 1e-5}, "data.alpha = 1e-05 is too small for equal sizes"),
        (
            {"alpha": 0.01, "sizes": "natural", "clients": 100, "min_samples": 5},
            "data.alpha = 0.01 with data.clients = 100: no draw gave every client 6",
        ),
    ],
)
def test_an_impossible_request_is_one_line_that_names_keys_and_values(table, line):
    with pytest.raises(FedkdError, match=line) as error:
        share(**table)
    assert "\n" not in str(error.value)


def test_natural_needs_writers():
    with pytest.raises(FedkdError, match="'natural' needs a data set that names its writers"):
        share(writers=None, partition="natural")


def test_every_partition_says_what_it_is():
    assert all(line.endswith(".") for line in registry.described("partitions").values())


# --- somebody's own -----------------------------------------------------------------------------


def halves(labels, writers, table, seed):
    """The lower half of the classes for the first half of the clients, the upper for the others."""
    low = np.flatnonzero(labels < 5)
    high = np.setdiff1d(np.arange(len(labels)), low)
    first = table.clients // 2
    return [*np.array_split(low, first), *np.array_split(high, table.clients - first)]


def test_a_partition_of_ones_own_is_found_by_name_and_cut_to_size(small):
    registry.register("partitions", "halves")(halves)
    experiment = small("data.partition=halves", "data.alpha=3")
    counts = load(experiment).label_counts()
    assert counts.sum(1).tolist() == [60] * 4
    assert counts[:2, 5:].sum() == counts[2:, :5].sum() == 0
    assert not list(without_effect(experiment, load(experiment).task))  # it may read any key
    assert "halves" in registry.described("partitions")


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (lambda n: [np.arange(n)], r"returned 1 of them; allowed: a list of 4 arrays"),
        (lambda n: None, r"returned None; allowed: a list of 4 arrays"),
        (lambda n: [np.arange(50) + 0.5] * 4, r"for client 0; allowed: an array \(n,\)"),
        (lambda n: [np.ones((9, 2), int)] * 4, r"for client 0; allowed: an array \(n,\)"),
        (lambda n: [np.arange(80)] * 4, r"gives two clients the same row"),
        (lambda n: np.zeros((4, 9), int), r"returned .*; allowed: a list of 4 arrays"),
        (lambda n: [np.arange(80) + n - 79, *np.split(np.arange(240), 3)], r"returned row \d+; th"),
        (lambda n: [[], *np.split(np.arange(240), 3)], r"leaves a client 0 samples"),
        (lambda n: 1 // 0, r"failed: ZeroDivisionError: .* \(test_partitions.py:\d+\)"),
    ],
)
def test_what_a_partition_of_ones_own_must_give_is_told_in_a_line(parts, line, small):
    registry.register("partitions", "mine")(lambda labels, writers, table, seed: parts(len(labels)))
    with pytest.raises(FedkdError, match=rf"data\.partition = 'mine'.*{line}") as failure:
        load(small("data.partition=mine"))
    assert "\n" not in str(failure.value)
