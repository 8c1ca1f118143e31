"""Privacy scores: what counts as rare, what looks like an identifier, and who may know."""

import math

import pytest
import texts
import torch

from fedkd.data.federated import load
from fedkd.data.language import LINE
from fedkd.privacy.public import Public
from fedkd.privacy.scores import identifier_like, outlierness, rarity, rules, surprise
from fedkd.training import item_labels

PLANTED = ("canary.secrets=2", "canary.repeats=[4]", "canary.public=exact")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A function that gives the data of a small experiment on text, and its scores."""
    place = tmp_path_factory.mktemp("texts")

    def make(how, *overrides):
        wanted = (*PLANTED, "release.tau_max=9", f"release.scores={how}", *overrides)
        experiment = texts.small(place, *wanted)
        data = load(experiment)
        return data, Public.of(experiment, data).scores

    return make


def items(data):
    """Tokens that are read at each item, and that come next."""
    inputs = data.transfer().inputs
    return inputs[inputs != 0], item_labels(data.transfer())


def digits(data, tokens):
    """Which tokens are digits."""
    names = data.task.class_names
    return torch.tensor([names[token].isdigit() if token >= 0 else False for token in tokens])


# --- rarity ---------------------------------------------------------------------------------


def test_rarity_goes_from_the_median_of_the_public_corpus_to_its_last_percent():
    reference = torch.arange(101.0)  # its quantile q is 100 q
    given = torch.tensor([-5.0, 50.0, 74.5, 99.0, 1000.0])
    assert rarity(given, reference).tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_rarity_is_as_it_is_in_any_unit():
    given, reference = torch.linspace(0, 1, 30), torch.linspace(0, 1, 200) ** 2
    changed = rarity(3 * given + 7, 3 * reference + 7)
    assert torch.allclose(changed, rarity(given, reference), atol=1e-5)


def test_rarity_grows_with_surprise():
    reference = torch.randn(500, generator=torch.Generator().manual_seed(0))
    found = rarity(torch.linspace(-3, 4, 100), reference)
    assert (found.diff() >= 0).all()
    assert float((rarity(reference, reference) == 0).float().mean()) == pytest.approx(0.5)
    assert float((rarity(reference, reference) == 1).float().mean()) == pytest.approx(0.01)


def test_where_the_public_corpus_is_all_alike_anything_else_is_rare():
    reference = torch.full((20,), 2.0)
    assert rarity(torch.tensor([1.0, 2.0, 2.1]), reference).tolist() == [0, 0, 1]


def test_surprise_is_the_negative_log_likelihood_and_nothing_where_nothing_follows():
    law = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.1, 0.2, 0.7]])
    found = surprise(torch.tensor([1, 2, -1]), law).tolist()
    assert found == pytest.approx([math.log(4), 12 * math.log(10), 0], rel=1e-5)


# --- rules ----------------------------------------------------------------------------------


def test_what_has_a_digit_or_looks_like_a_name_in_a_program_or_an_address_is_identifier_like():
    words = ["7", "b2", "user_name", "_", "_id", "a@b", "<unk>", "<line>", "word", "it's", "-", "."]
    found = [word for word, is_one in zip(words, identifier_like(words)) if is_one]
    assert found == ["7", "b2", "user_name", "_id", "a@b"]


def test_rules_look_at_the_next_token_and_at_what_the_public_expects():
    private = torch.tensor([False, True, True, False])
    law = torch.tensor(
        [
            [0.4, 0.1, 0.1, 0.4],  # said
            [0.2, 0.3, 0.3, 0.2],  # expected
            [0.2, 0.25, 0.25, 0.3],  # half is not more than half
            [0.2, 0.3, 0.4, 0.1],  # expected, and nothing follows
            [0.5, 0.1, 0.1, 0.3],  # nothing follows
        ]
    )
    gold = torch.tensor([1, 0, 3, -1, -1])
    assert rules(gold, law, private).tolist() == [1, 1, 0, 1, 0]


# --- images ---------------------------------------------------------------------------------


def test_an_image_in_the_span_of_the_public_ones_is_no_outlier_and_noise_is():
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(3, 1, 8, 8, generator=draw)
    public = 2 + torch.einsum("kn,nchw->kchw", torch.randn(60, 3, generator=draw), directions)
    inside = 2 + torch.einsum("kn,nchw->kchw", torch.randn(9, 3, generator=draw), directions)
    noise = torch.randn(9, 1, 8, 8, generator=draw)
    assert outlierness(public, public).max() < 1e-8
    assert outlierness(inside, public).max() < 1e-8
    assert outlierness(public[:9] + noise, public).min() > 1
    small, large = (outlierness(public[:9] + size * noise, public) for size in (0.1, 1.0))
    assert torch.allclose(100 * small, large, rtol=1e-3)


def test_images_unlike_any_other_are_outliers(small):
    overrides = ["canary.secrets=1", "canary.repeats=[2]", "canary.length=2", "canary.public=exact"]
    experiment = small(*overrides, "release.tau_max=9", "release.scores=rarity")
    data = load(experiment)
    found = Public.of(experiment, data).scores
    planted = data.canaries.count * 2
    assert len(found) == 80 + planted
    assert found[-planted:].eq(1).all()
    assert found[:80].mean() < 0.4


# --- of a run -------------------------------------------------------------------------------


def test_every_way_scores_every_item_from_0_to_1(scored):
    for how in ("rarity", "rules", "max", "oracle", "shuffled", "constant"):
        data, found = scored(how)
        assert found.shape == items(data)[0].shape
        assert found.min() >= 0
        assert found.max() == 1


def test_rules_are_1_at_every_digit_and_0_elsewhere_in_a_text_without_any(scored):
    data, found = scored("rules")
    _, following = items(data)
    assert torch.equal(found.bool(), digits(data, following.tolist()))


def test_the_larger_of_both_is_that(scored):
    (_, rare), (_, ruled), (_, larger) = map(scored, ("rarity", "rules", "max"))
    assert torch.equal(larger, torch.maximum(rare, ruled))
    assert (rare > ruled).any()
    assert (rare < 1).any()


def test_shuffled_scores_are_the_same_ones_elsewhere(scored):
    (_, ordered), (_, shuffled), (_, again) = map(scored, ("max", "shuffled", "shuffled"))
    assert torch.equal(shuffled.sort().values, ordered.sort().values)
    assert not torch.equal(shuffled, ordered)
    assert torch.equal(shuffled, again)
    _, other = scored("shuffled", "seed=1")
    assert not torch.equal(other[: len(shuffled)], shuffled[: len(other)])


def test_the_oracle_knows_the_places_where_a_symbol_of_a_secret_follows(scored):
    data, found = scored("oracle")
    tokens, following = items(data)
    # Texts have no digits: every one is a canary's.
    assert torch.equal(found.bool(), digits(data, following.tolist()))
    assert int(found.sum()) == 2 * data.canaries.count
    assert (tokens == LINE).any()


def test_without_public_canaries_the_oracle_finds_none(scored):
    _, found = scored("oracle", "canary.public=none")
    assert found.eq(0).all()


def test_the_oracle_knows_canary_images(small):
    overrides = ["canary.secrets=1", "canary.repeats=[2]", "canary.length=3"]
    swing = ["release.tau_max=9", "release.scores=oracle"]
    for how, expected in (("exact", 12), ("none", 0)):
        experiment = small(*overrides, *swing, f"canary.public={how}")
        found = Public.of(experiment, load(experiment)).scores
        assert found[:80].eq(0).all()
        assert found[80:].eq(1).all()
        assert len(found[80:]) == expected


def test_a_constant_score_is_1_everywhere(scored):
    assert scored("constant")[1].eq(1).all()


def test_without_a_largest_temperature_nothing_is_scored(tmp_path):
    experiment = texts.small(tmp_path / "texts", "release.temperature=2")
    public = Public.of(experiment, load(experiment))
    assert public.scores.eq(0).all()
    assert public.model is None
