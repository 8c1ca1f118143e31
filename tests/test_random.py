"""Draws keyed by what they are for."""

import numpy as np
import pytest
import torch

from fedkd.random import _words, noise_generator, numpy_noise


def test_torchs_noise_is_the_mersenne_twister_with_all_its_words_given():
    reference = np.random.MT19937()
    words = {"key": _words(7, "noise", "a", 1), "pos": 624}
    reference.state = {"bit_generator": "MT19937", "state": words}
    drawn = torch.randint(0, 2**20, (2000,), generator=noise_generator(7, "a", 1))
    assert (drawn.numpy() == reference.random_raw(2000) % 2**20).all()


def test_the_words_have_as_many_ones_as_zeros_and_depend_on_everything():
    streams = [_words(*key) for key in ((0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2))]
    for index, words in enumerate(streams):
        assert np.unpackbits(words.view(np.uint8)).mean() == pytest.approx(0.5, abs=0.02)
        assert all((words != other).any() for other in streams[:index])


def test_the_same_purpose_gives_the_same_noise():
    once, again, other = (
        torch.randn(100, generator=noise_generator(0, purpose)) for purpose in ("a", "a", "b")
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_noise_is_normal():
    drawn = torch.randn(40_000, generator=noise_generator(3, "law"))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)


def test_numpys_generator_draws_the_noise_and_is_then_as_it_was():
    np.random.seed(5)
    expected = np.random.normal(size=3)
    np.random.seed(5)
    with numpy_noise(0, "a"):
        once = np.random.normal(size=3)
    assert (np.random.normal(size=3) == expected).all()
    for purpose, same in (("a", True), ("b", False)):
        with numpy_noise(0, purpose):
            assert (np.random.normal(size=3) == once).all() == same
