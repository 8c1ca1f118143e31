"""Operations on soft labels."""

import math

import pytest
import torch

from fedkd.distillation.targets import (
    CHUNK,
    check_probabilities,
    entropy,
    mix,
    retemper,
    sharpen,
    soften,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, seed=0):
    return soften(draw(*shape, seed=seed), 1.0)


def test_temperature_one_is_the_softmax_and_a_high_one_is_uniform():
    logits = draw(5, 4)
    assert torch.equal(soften(logits, 1.0), logits.softmax(-1))
    torch.testing.assert_close(soften(logits, 1e6), torch.full((5, 4), 0.25), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tau", [0.5, 2.0, 4.0])
def test_retemper_inverts_soften(tau):
    logits = draw(5, 4)
    torch.testing.assert_close(retemper(soften(logits, tau), tau), soften(logits, 1.0))


def test_retemper_leaves_exact_zeros_zero():
    assert retemper(torch.tensor([[1.0, 0.0]]), 3.0).tolist() == [[1.0, 0.0]]


def test_sharpening_tends_to_the_argmax_and_keeps_the_order():
    given = labels(20, 4)
    torch.testing.assert_close(
        sharpen(given, 1e-6), torch.nn.functional.one_hot(given.argmax(-1), 4).float()
    )
    assert torch.equal(sharpen(given, 0.1).argsort(-1), given.argsort(-1))


def test_sharpening_at_a_low_temperature_lowers_entropy():
    given = labels(20, 4)
    assert (entropy(sharpen(given, 0.05)) < entropy(given)).all()


def test_entropy_is_zero_for_one_hot_and_ln_c_for_uniform():
    assert entropy(torch.eye(4)).tolist() == [0, 0, 0, 0]
    assert entropy(torch.full((3, 5), 0.2)).tolist() == pytest.approx([math.log(5)] * 3)


def test_identity_weights_give_every_client_its_own_labels():
    given = labels(6, 30, 4)
    assert torch.equal(mix(torch.eye(6), given), given)


def test_uniform_weights_give_the_mean():
    given = labels(6, 30, 4)
    mixed = mix(torch.full((6, 6), 1 / 6), given)
    torch.testing.assert_close(mixed, given.mean(0).expand(6, 30, 4))


def test_uniform_weights_are_to_the_bit_one_uniform_row():
    given = labels(7, 30, 4)
    uniform = torch.full((1, 7), 1 / 7)
    one = mix(uniform, given)[0]
    assert all(torch.equal(row, one) for row in mix(uniform.expand(7, 7), given))


def test_mixtures_of_probabilities_are_probabilities():
    assert check_probabilities(mix(labels(6, 6, seed=1), labels(6, 30, 4)), "mixtures") is None


@pytest.mark.parametrize(("clients", "samples"), [(1, 1), (5, 13), (20, CHUNK // 40)])
def test_a_row_has_the_same_bits_alone_and_among_others(clients, samples):
    weights, given = labels(clients, clients, seed=1), labels(clients, samples, 10)
    whole = mix(weights, given)
    for row in range(clients):
        assert torch.equal(mix(weights[row : row + 1], given)[0], whole[row])
    assert torch.equal(mix(weights[-3:], given), whole[-3:])


def test_a_sample_has_the_same_bits_alone_and_among_others():
    weights, given = labels(5, 5, seed=1), labels(5, 33, 7)
    assert torch.equal(mix(weights, given[:, 31:32]), mix(weights, given)[:, 31:32])


def test_permuting_the_clients_permutes_what_they_get():
    weights, given = labels(5, 5, seed=1), labels(5, 30, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = mix(weights[order][:, order], given[order])
    torch.testing.assert_close(permuted, mix(weights, given)[order])


def test_weights_in_double_give_labels_in_single():
    weights, given = labels(5, 5, seed=1).double(), labels(5, 30, 4)
    assert mix(weights, given).dtype == torch.float32


def test_probabilities_are_probabilities():
    assert check_probabilities(labels(10, 4), "soft_labels") is None
    assert check_probabilities(torch.eye(4), "soft_labels") is None
    assert check_probabilities(labels(0, 4), "soft_labels") is None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([math.nan, 0.5, 0.5], "row 3 holds NaN"),
        ([-0.5, 1.0, 0.5], "row 3 holds -0.5"),
        ([0.5, 0.5, 0.5], "row 3 sums to 1.5"),
        ([math.inf, 0.0, 0.0], "row 3 sums to inf"),
    ],
)
def test_the_first_row_that_is_no_distribution_is_named(row, reason):
    given = labels(10, 3)
    given[3] = given[7] = torch.tensor(row)
    line = check_probabilities(given, "soft_labels")
    assert line is not None
    assert line.startswith("soft_labels")
    assert reason in line
    assert "\n" not in line


def test_logits_are_not_taken_for_probabilities():
    assert check_probabilities(draw(10, 4), "soft_labels") is not None
