"""How far soft labels can move: closed forms against every vertex."""

import math

import numpy as np
import pytest
import torch

from fedkd.errors import FedkdError
from fedkd.privacy import sensitivity
from fedkd.privacy.sensitivity import l1_sensitivity, l2_sensitivity

RATIOS = (0.05, 0.5, 1.0, 1.3, 2.0, 3.5, 6.0, 10.0)  # c / tau


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def vertices(classes, ratio):
    """Soft labels of every corner of the cube of clipped logits."""
    corners = np.array(np.meshgrid(*[[-ratio, 0.0]] * classes, indexing="ij"))
    return softmax(corners.reshape(classes, -1).T)


def bucketed(labels, candidates):
    return np.concatenate([labels[:, :candidates], labels[:, candidates:].sum(1, keepdims=True)], 1)


def furthest(labels, order):
    return max(np.linalg.norm(labels - label, ord=order, axis=1).max() for label in labels)


@pytest.mark.parametrize("classes", range(1, 9))
def test_the_largest_distance_between_vertices(classes):
    for ratio in RATIOS:
        corners = vertices(classes, ratio)
        assert l1_sensitivity(1.0, ratio, classes) == pytest.approx(furthest(corners, 1), abs=1e-12)
        assert l2_sensitivity(1.0, ratio, classes) == pytest.approx(furthest(corners, 2), abs=1e-12)


@pytest.mark.parametrize("classes", range(2, 9))
def test_over_candidates_both_distances_are_exact(classes, monkeypatch):
    for ratio in RATIOS:
        for candidates in range(classes + 1):
            corners = bucketed(vertices(classes, ratio), candidates)
            far = furthest(corners, 1), furthest(corners, 2)
            law = (1.0, ratio, classes, candidates)
            assert l1_sensitivity(*law) == pytest.approx(far[0], abs=1e-12)
            assert l2_sensitivity(*law) == pytest.approx(far[1], abs=1e-12)
            with monkeypatch.context() as patch:
                patch.setattr(sensitivity, "MOST_SEARCHED", 0)
                bound = l2_sensitivity(*law).item()
            assert far[1] <= bound + 1e-12
            assert bound <= math.sqrt(2) * far[1] + 1e-12


def test_each_item_has_a_set_of_its_own_size():
    tau, sizes = np.array([1.0, 2.0, 2.0, 5.0]), np.array([3, 0, 7, 40])
    for distance in (l1_sensitivity, l2_sensitivity):
        found = distance(tau, 8.0, 60, sizes)
        alone = [distance(t, 8.0, 60, k).item() for t, k in zip(tau, sizes)]
        assert found.tolist() == pytest.approx(alone)


def test_fewer_candidates_may_be_further_apart():
    three, four = (float(l2_sensitivity(1.0, 1.0, 5, count)) for count in (3, 4))
    assert (three / four) ** 2 == pytest.approx(1.6)


def test_no_pair_of_logits_inside_the_cube_goes_further():
    draw = np.random.default_rng(0)
    for classes in (2, 3, 5, 8):
        for ratio in RATIOS:
            logits = draw.normal(0, 2 * ratio, (2, 2000, classes))
            logits -= logits.max(-1, keepdims=True)
            labels = softmax(np.maximum(logits, -ratio))
            moved = labels[0] - labels[1]
            assert (np.abs(moved).sum(1) <= l1_sensitivity(1.0, ratio, classes) + 1e-12).all()
            far = np.linalg.norm(moved, axis=1)
            assert (far <= l2_sensitivity(1.0, ratio, classes) + 1e-12).all()


@pytest.mark.parametrize("classes", [9, 10, 33, 60])
def test_no_pair_of_vertex_sizes_goes_further(classes):
    for ratio in (*RATIOS, 1.0986, 1.0987, math.log(classes), math.log(1 + classes / 2)):
        high, many = math.exp(ratio), np.arange(classes + 1)
        one, other = np.meshgrid(many, many, indexing="ij")
        p, q = (1 / (high * top + classes - top) for top in (one, other))
        rest = classes - one - other
        parts = [(one, high * p - q), (other, high * q - p), (rest, p - q)]
        allowed = rest >= 0
        for distance, order in ((l1_sensitivity, 1), (l2_sensitivity, 2)):
            power = sum(count * np.abs(gap) ** order for count, gap in parts)
            far = np.where(allowed, power, 0).max() ** (1 / order)
            assert distance(1.0, ratio, classes) == pytest.approx(far, rel=1e-12)


def test_ten_classes_of_range_ten():
    found = l2_sensitivity(np.array([1, 2, 4, 8, 16]), 10.0, 10)
    assert found == pytest.approx([1.414, 1.324, 0.747, 0.353, 0.192], abs=6e-4)


def test_l1_of_an_even_number_of_classes_is_twice_the_tanh_of_half_the_range():
    tau = np.array([0.5, 1.0, 3.0, 20.0])
    for classes in (2, 10, 50_000):
        assert l1_sensitivity(tau, 10.0, classes) == pytest.approx(2 * np.tanh(10 / (2 * tau)))
    assert (l1_sensitivity(tau, 10.0, 3) < 2 * np.tanh(10 / (2 * tau))).all()


def test_logits_of_any_size_reach_every_corner_of_the_simplex():
    assert l1_sensitivity([1.0, 9.0], None, 10).tolist() == [2, 2]
    assert l2_sensitivity([1.0, 9.0], None, 10) == pytest.approx([math.sqrt(2)] * 2)
    assert l2_sensitivity(1.0, None, 10, candidates=3) == pytest.approx(math.sqrt(2))
    assert l2_sensitivity(1.0, 1e4, 10) == pytest.approx(math.sqrt(2))


def test_one_class_or_no_candidate_says_nothing():
    for distance in (l1_sensitivity, l2_sensitivity):
        assert distance(1.0, 10.0, 1) == 0
        assert distance(1.0, None, 1) == 0
        assert distance(1.0, None, 5, candidates=0) == 0


@pytest.mark.parametrize("distance", [l1_sensitivity, l2_sensitivity])
def test_heat_and_a_public_share_make_less_of_it(distance):
    tau = torch.linspace(0.5, 40, 10_000)
    for classes, candidates in ((10, None), (50_000, None), (50_000, 33)):
        found = distance(tau, 12.0, classes, candidates)
        assert found.shape == (10_000,)
        assert (np.diff(found) <= 1e-12).all()
        mixed = distance(tau, 12.0, classes, candidates, mix=0.25)
        assert mixed == pytest.approx(0.75 * found)
    assert distance(1.0, 12.0, 10, mix=1.0) == 0
    assert distance(1.0, 1e-18, 10) == pytest.approx(0)


def test_l2_is_within_what_l1_allows():
    tau = np.linspace(0.5, 40, 200)
    for classes in (2, 3, 10, 1001):
        one, two = (f(tau, 12.0, classes) for f in (l1_sensitivity, l2_sensitivity))
        assert (two <= one / math.sqrt(2) + 1e-12).all()
        assert (one <= math.sqrt(classes) * two + 1e-12).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperatures": [1.0, 0.0]}, "temperature = 0 is not allowed: temperatures are above 0"),
        ({"clip": -1.0}, "clip = -1 is not allowed: a range of logits is above 0"),
        ({"classes": 0}, "classes = 0 is not allowed: there is at least one"),
        ({"candidates": 11}, "candidates = 11 is not allowed: 0 to 10, the classes"),
        ({"mix": 1.5}, "mix = 1.5 is not allowed: a share is between 0 and 1"),
    ],
)
def test_wrong_input_is_one_line(arguments, said):
    with pytest.raises(FedkdError, match=f"^{said}$"):
        l2_sensitivity(**({"temperatures": 1.0, "clip": 10.0, "classes": 10} | arguments))
