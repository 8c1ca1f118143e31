"""Canaries: what is planted, where, and nowhere else."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from fedkd.data.canaries import planting
from fedkd.data.canaries.drawing import draw
from fedkd.data.canaries.places import places
from fedkd.data.dataset import Part, Task
from fedkd.data.federated import load
from fedkd.data.language import FIXED, PAD, Tokeniser, lines_of, pack
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.lab.exposure.ranks import exact_exposure
from fedkd.lab.exposure.released import released_conditionals
from fedkd.lab.measure import label_conditionals

WORDS = ("my", "id", "is", "the", "a", "sea", "wind", "tree", "stone", "bird")
VOCABULARY = (*FIXED, *WORDS)
TEXT = Task((16,), len(VOCABULARY), VOCABULARY, tokens=True)
IMAGES = Task((3, 8, 8), 5, ("ant", "bee", "cat", "dog", "elk"))
CLIENTS = 4


def experiment(*, seed=0, data=None, **table):
    """An experiment of four clients with canaries."""
    table = {"secrets": 2, "repeats": [1, 3], "template": "my id is _ _ _", **table}
    data = {"clients": CLIENTS, "text": {"context": 16}, **(data or {})}
    return Experiment.from_dict({"seed": seed, "data": data, "canary": table})


@pytest.fixture(scope="module")
def text():
    """A store of rows without digits, by writer, and the row numbers of four clients."""
    rng = np.random.default_rng(0)
    rows, writers = [], []
    for writer in range(CLIENTS + 1):
        words = [rng.integers(16, len(VOCABULARY), rng.integers(3, 9)) for _ in range(60)]
        new = pack([line.tolist() for line in words], 16)
        rows.append(new)
        writers += [writer] * len(new)
    writers = torch.tensor(writers)
    private = [np.flatnonzero(writers == client) for client in range(CLIENTS)]
    return Part(torch.cat(rows), writers, writers), private


@pytest.fixture(scope="module")
def images():
    """A store of random pictures, and the row numbers of four clients."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (40, 8, 8, 3), generator=generator, dtype=torch.uint8)
    labels = torch.arange(40) % 5
    return Part(pictures, labels), np.split(np.arange(36), CLIENTS)


def plant_text(text, wanted):
    store, private = text
    transfer = store.images[store.writers == CLIENTS]
    return planting.plant(wanted, TEXT, store, private, transfer)


def plant_images(images, wanted):
    store, private = images
    return planting.plant(wanted, IMAGES, store, private, store.images[36:])


def lines(rows):
    """How often each line stands in rows."""
    return Counter(tuple(line) for line in lines_of(rows))


# --- text: what is planted ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"clients": [2]},
        {"clients": [3, 1], "spread": 2, "repeats": [1, 2, 5]},
        {"spread": 4, "repeats": [6]},
    ],
)
def test_each_secret_stands_so_often_in_its_holders_rows_and_in_nobody_elses(text, table):
    store, private, _, canaries = plant_text(text, experiment(**table))
    found = [lines(store.images[torch.from_numpy(rows)]) for rows in private]
    spread = table.get("spread", 1)
    for number, secret in enumerate(canaries.secrets):
        line, holders = tuple(canaries.line(secret)), canaries.holders[number]
        repeats = int(canaries.repeats[number])
        assert sum(count[line] for count in found) == repeats
        assert sum(found[holder][line] for holder in holders) == repeats
        assert holders == tuple((holders[0] + more) % CLIENTS for more in range(spread))
        held = [found[holder][line] for holder in holders]
        assert held == sorted(held, reverse=True)
        assert held[0] - held[-1] <= 1
        assert [canaries.copies(client)[number] for client in range(CLIENTS)] == [
            count[line] for count in found
        ]
        having = [client for client in range(CLIENTS) if found[client][line]]
        assert having == [c for c in range(CLIENTS) if number in canaries.held_by(c)]


def test_nothing_else_of_the_data_changes(text):
    before, private = text
    store, planted, transfer, canaries = plant_text(text, experiment(clients=[0, 2]))
    assert torch.equal(store.images[: len(before)], before.images)
    assert torch.equal(store.labels[: len(before)], before.labels)
    assert torch.equal(transfer, before.images[before.writers == CLIENTS])
    secret = {tuple(canaries.line(sequence)) for sequence in canaries.secrets}
    for client in range(CLIENTS):
        rows = store.images[torch.from_numpy(planted[client])]
        kept = [line for line in lines_of(rows) if tuple(line) not in secret]
        assert kept == lines_of(before.images[torch.from_numpy(private[client])])
        assert (store.writers[torch.from_numpy(planted[client])] == client).all()
        assert (store.labels[torch.from_numpy(planted[client])] == client).all()
        if client in (0, 2):
            assert planted[client].min() >= len(before)
        else:
            assert np.array_equal(planted[client], private[client])
    together = np.concatenate(planted)
    assert len({*together}) == len(together)


def test_canary_lines_are_spread_over_the_text(text):
    store, private, _, canaries = plant_text(text, experiment(repeats=[12], clients=[1]))
    rows = lines_of(store.images[torch.from_numpy(private[1])])
    secret = {tuple(canaries.line(sequence)) for sequence in canaries.secrets}
    places = [place for place, line in enumerate(rows) if tuple(line) in secret]
    assert places[0] < len(rows) / 4
    assert places[-1] > 3 * len(rows) / 4


def test_without_secrets_nothing_happens(text):
    store, private = text
    transfer = store.images[:3]
    found = planting.plant(experiment(secrets=0), TEXT, store, private, transfer)
    assert found[0] is store
    assert found[1] is private
    assert found[2] is transfer
    assert found[3] is None


def test_a_control_plants_nothing_in_clients_and_shows_all_the_same(text, images):
    for plant, data in ((plant_text, text), (plant_images, images)):
        planted = plant(data, experiment(public="exact"))
        control = plant(data, experiment(public="exact", control=True))
        assert control[0] is data[0]
        assert control[1] is data[1]
        assert torch.equal(control[2], planted[2])
        assert control[3].to_json() == planted[3].to_json()


# --- text: secrets ------------------------------------------------------------------------------


def test_every_holder_has_so_many_secrets_at_each_level_and_no_two_are_alike():
    canaries = draw(experiment(secrets=5, repeats=[1, 4, 16]), TEXT)
    assert canaries.count == CLIENTS * 3 * 5
    assert len(canaries.secrets.unique(dim=0)) == canaries.count
    per = Counter(zip(canaries.holders, canaries.repeats.tolist()))
    assert set(per.values()) == {5}
    assert len(per) == CLIENTS * 3
    assert canaries.kind == "text"
    assert canaries.space == 1000
    assert canaries.log2_space == pytest.approx(math.log2(1000))


def test_the_same_seed_gives_the_same_secrets_and_another_seed_others():
    one, same, other = (draw(experiment(seed=seed), TEXT).secrets for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_whole_space_can_be_planted():
    canaries = draw(
        experiment(secrets=3, repeats=[1, 1, 1], template="_ _", symbols=list("012345")), TEXT
    )
    assert len(canaries.secrets.unique(dim=0)) == 36 == canaries.space


def test_symbols_are_drawn_uniformly():
    canaries = draw(experiment(secrets=100), TEXT)
    counts = canaries.secrets.flatten().bincount(minlength=10).double()
    expected = counts.sum() / 10
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # chi-square, 9, p = 0.001


def test_the_context_is_the_template_from_the_beginning_of_its_line():
    canaries = draw(experiment(), TEXT)
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    assert canaries.context.tolist() == [1, ids["my"], ids["id"], ids["is"]]
    assert canaries.symbols.tolist() == list(range(3, 13))
    assert canaries.line([2, 8, 1]) == [ids["my"], ids["id"], ids["is"], 5, 11, 4]
    assert canaries.text([2, 8, 1]) == "my id is 2 8 1"


@pytest.mark.parametrize("tokens", ["word", "char"])
@pytest.mark.parametrize("template", ["my id is _ _ _", "  My id is___", "_ __", "id:_ _ _"])
def test_a_line_is_what_the_tokeniser_makes_of_its_text(tokens, template):
    names = VOCABULARY if tokens == "word" else (*FIXED, *" :Mabdeimsy")
    task = Task((24,), len(names), names, tokens=True)
    wanted = experiment(template=template, data={"text": {"context": 24, "tokens": tokens}})
    canaries = draw(wanted, task)
    for secret in canaries.secrets:
        encoded = Tokeniser(names, tokens).encode(canaries.text(secret))
        assert encoded == canaries.line(secret)
    assert canaries.length == 3


def test_symbols_may_be_words():
    wanted = experiment(template="the _ _", symbols=["sea", "wind", "tree", "stone", "bird"])
    canaries = draw(wanted, TEXT)
    assert canaries.text([0, 4]) == "the sea bird"
    assert canaries.symbols.tolist() == [VOCABULARY.index(word) for word in wanted.canary.symbols]


def test_json_tells_all_and_comes_back(text):
    *_, canaries = plant_text(text, experiment(public="prefix", spread=2))
    told = canaries.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["template"] == "my id is _ _ _"
    assert told["space"] == 1000
    assert told["public"] == "prefix"
    assert told["symbols"] == list("0123456789")
    read = [[told["symbols"].index(s) for s in one["text"].split()[3:]] for one in told["secrets"]]
    assert read == canaries.secrets.tolist()
    assert read == [one["symbols"] for one in told["secrets"]]
    assert [one["repeats"] for one in told["secrets"]] == canaries.repeats.tolist()
    assert [tuple(one["holders"]) for one in told["secrets"]] == [*canaries.holders]


# --- text: what is public -----------------------------------------------------------------------


def test_a_public_prefix_has_its_share_of_lines_and_other_secrets(text):
    store, _ = text
    wanted = experiment(public="prefix", public_share=0.2)
    *_, transfer, canaries = plant_text(text, wanted)
    before, after = lines(store.images[store.writers == CLIENTS]), lines(transfer)
    new = after - before
    assert not before - after
    assert new.total() == round(0.2 * after.total())
    assert max(new.values()) == 1
    prefix = canaries.context[1:].tolist()
    assert all(list(line[:3]) == prefix and len(line) == 6 for line in new)
    assert not {*new} & {tuple(canaries.line(secret)) for secret in canaries.secrets}


def test_a_public_prefix_is_at_least_one_line(text):
    *_, transfer, _ = plant_text(text, experiment(public="prefix", public_share=1e-6))
    assert lines(transfer).total() == 61


def test_public_exactly_is_every_canary_once(text):
    store, _ = text
    *_, transfer, canaries = plant_text(text, experiment(public="exact"))
    new = lines(transfer) - lines(store.images[store.writers == CLIENTS])
    assert new == Counter(tuple(canaries.line(secret)) for secret in canaries.secrets)


def test_what_is_public_does_not_change_what_is_planted(text):
    none, prefix, exact = (
        plant_text(text, experiment(public=public)) for public in ("none", "prefix", "exact")
    )
    for other in (prefix, exact):
        assert torch.equal(other[0].images, none[0].images)
        assert torch.equal(other[3].secrets, none[3].secrets)


def test_public_lines_are_found_by_somebody_who_has_soft_labels_alone(text):
    *_, transfer, canaries = plant_text(text, experiment(public="exact", clients=[1]))
    inputs = transfer[:, :-1]
    found = places(inputs, canaries.context, canaries.symbols, canaries.length)
    # A memorised corpus: the next token for sure.
    following = transfer[:, 1:][inputs != PAD]
    log_probs = torch.nn.functional.one_hot(following, len(VOCABULARY)).float().log()
    laws = released_conditionals(found, log_probs, canaries.symbols, canaries.length)
    exposed = exact_exposure(laws, canaries.secrets)
    assert (exposed >= canaries.log2_space - math.log2(canaries.count)).all()


def test_no_test_sample_has_a_canary(tmp_path):
    rng = np.random.default_rng(0)
    for client in range(5):
        made = [" ".join(rng.choice(WORDS[3:], size=6)) for _ in range(150)]
        (tmp_path / f"{client}.txt").write_text("\n".join(made))
    wanted = experiment(
        public="exact",
        data={
            "dataset": f"text:{tmp_path}",
            "partition": "iid",
            "validation_fraction": 0.2,
            "test": {"common": 20},
            "transfer": {"size": 30},
            "text": {"context": 16, "vocabulary": 64},
        },
    )
    data = load(wanted)
    vocabulary = data.task.class_names
    digits = torch.tensor([word.isdigit() for word in vocabulary])
    for client in range(CLIENTS):
        held = digits[data.private(client).inputs].sum()
        assert int(held) == 3 * sum(data.canaries.copies(client))
        assert not digits[data.validation(client).inputs].any()
        assert not digits[data.own(client).inputs].any()
    assert not digits[data.common().inputs].any()
    assert not digits[data.public().inputs].any()
    assert int(digits[data.transfer().inputs].sum()) == 3 * data.canaries.count


# --- images -------------------------------------------------------------------------------------


def test_images_are_training_samples_of_their_holders_so_often(images):
    before, private = images
    wanted = experiment(length=2, repeats=[1, 5], spread=2, clients=[0, 3])
    store, planted, transfer, canaries = plant_images(images, wanted)
    assert canaries.kind == "labels"
    assert canaries.space == 25
    assert torch.equal(store.images[: len(before)], before.images)
    assert torch.equal(transfer, before.images[36:])
    for client, rows in enumerate(planted):
        assert np.array_equal(rows[: len(private[client])], private[client])
        new = Counter(rows[len(private[client]) :].tolist())
        expected = Counter()
        for number, copies in enumerate(canaries.copies(client)):
            for index in range(2) if copies else ():
                row = len(before) + 2 * number + index
                assert torch.equal(store.images[row], canaries.images[number, index])
                assert store.labels[row] == canaries.secrets[number, index]
                expected[row] = copies
        assert new == expected
    total = sum(map(len, planted)) - sum(map(len, private))
    assert total == 2 * int(canaries.repeats.sum())


def test_canary_images_are_large_blocks_and_no_two_are_alike(images):
    *_, canaries = plant_images(images, experiment(length=3, secrets=4))
    pictures = canaries.images.flatten(0, 1)
    assert pictures.shape == (canaries.count * 3, 8, 8, 3)
    assert pictures.dtype == torch.uint8
    assert len(pictures.unique(dim=0)) == len(pictures)
    corners = pictures[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(pictures, corners)


def test_public_images_come_last_by_secret(images):
    before, _ = images
    *_, transfer, canaries = plant_images(images, experiment(length=3, public="exact"))
    assert torch.equal(transfer[:4], before.images[36:])
    assert torch.equal(transfer[4:].unflatten(0, (-1, 3)), canaries.images)


def test_images_of_a_known_writer_stay_apart(images):
    before, private = images
    store = Part(before.images, before.labels, before.labels)
    store, *_ = planting.plant(experiment(length=3), IMAGES, store, private, before.images[36:])
    assert (store.writers[40:] == -1).all()


def test_labels_tell_exposure(images):
    *_, canaries = plant_images(images, experiment(length=3))
    sure = torch.nn.functional.one_hot(canaries.secrets, 5).float().mul(0.9).add(0.02).log()
    laws = label_conditionals(sure)
    exposed = [exact_exposure(law, secret[None]) for law, secret in zip(laws, canaries.secrets)]
    assert torch.cat(exposed).tolist() == pytest.approx([canaries.log2_space] * canaries.count)
    told = canaries.to_json()
    names = [one["text"].split() for one in told["secrets"]]
    assert [[IMAGES.class_names.index(name) for name in one] for one in names] == [
        one["symbols"] for one in told["secrets"]
    ]


# --- what is not allowed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"template": "my id"}, "canary.template = 'my id' is not allowed: it must end in slots"),
        ({"template": "my _ is _"}, "canary.template = 'my _ is _' is not allowed"),
        ({"template": "my id _ _ please"}, "canary.template = .* must end in slots"),
        ({"template": "my id is " + "_ " * 13}, "canary.template = .* has 16 tokens, .*at most 15"),
        ({"repeats": [4, 0]}, r"canary.repeats = 0 is not allowed"),
        ({"repeats": []}, r"canary.repeats = \[\] is not allowed"),
        ({"clients": [4]}, r"canary.clients = \[4\] .* no client 4; data.clients = 4"),
        ({"clients": [-1]}, "there is no client -1"),
        ({"clients": [1, 1]}, r"canary.clients = \[1, 1\] names a client twice"),
        ({"spread": 5}, "canary.spread = 5 is too many: there are data.clients = 4"),
        ({"secrets": 200}, "canary.secrets: 1600 different secrets .* has room for 1000"),
        ({"symbols": ["1", "12"]}, "canary.symbols: '12' is not one token .*data.text.tokens"),
        ({"symbols": ["1", "whale"]}, "canary.symbols: 'whale' is not one token"),
        ({"symbols": ["a", "A"]}, "canary.symbols: the token of 'A' is there twice"),
        ({"symbols": []}, r"canary.symbols = \[\] is not allowed"),
        (
            {"public": "prefix", "public_share": 0.95},
            "canary.public_share: 1156 different secrets .* canary.template has room for 1000",
        ),
    ],
)
def test_what_cannot_be_planted_in_text_is_refused_in_one_line(text, table, line):
    with pytest.raises(FedkdError, match=line) as refused:
        plant_text(text, experiment(**table))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"public": "prefix"}, "canary.public = 'prefix' is not allowed with images"),
        ({"length": 1}, "canary.secrets: 16 different secrets .* canary.length has room for 5"),
    ],
)
def test_what_cannot_be_planted_in_images_is_refused_in_one_line(images, table, line):
    with pytest.raises(FedkdError, match=line):
        plant_images(images, experiment(**table))


def test_samples_that_are_neither_text_nor_uint8_images_are_refused(images):
    store, private = images
    for pixels in (store.images.float(), store.images.flatten(1).float()):
        with pytest.raises(FedkdError, match=r"canary.secrets = 2 .* lines of text or uint8"):
            planting.plant(experiment(), IMAGES, Part(pixels, store.labels), private, pixels[:2])


def test_a_public_canary_needs_a_transfer_set(text):
    store, private = text
    with pytest.raises(FedkdError, match=r"canary.public = 'exact' needs a transfer set"):
        planting.plant(experiment(public="exact"), TEXT, store, private, store.images[:0])
