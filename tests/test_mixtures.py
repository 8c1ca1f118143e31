"""Targets that are made of parts when a step begins."""

from dataclasses import replace

import pytest
import texts
import torch

from fedkd import FedkdError
from fedkd.codec import nbytes
from fedkd.engine.worker import Worker
from fedkd.fits import check_server_fit
from fedkd.mixtures import Band, Labels, Mean, Mixture, Surest
from fedkd.training import item_labels, made_targets
from fedkd.training.made_targets import label_rows, mixed
from fedkd.work import Assignment, CrossEntropy, Fit, Hold, Load, Peer, Rows, Samples, Soft

NONE = [torch.nan, torch.nan]
ONE = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], NONE, NONE])
OTHER = torch.tensor([[0.2, 0.8], [0.3, 0.7], [0.5, 0.5], [0.7, 0.3], NONE])


def same(found, rows):
    return torch.equal(found.nan_to_num(-1), torch.tensor(rows).nan_to_num(-1))


def test_the_mean_is_of_the_parts_that_a_row_has():
    rows = [[0.55, 0.45], [0.45, 0.55], [0.5, 0.5], [0.7, 0.3], NONE]
    torch.testing.assert_close(
        mixed([ONE, OTHER], Mean()), torch.tensor(rows), equal_nan=True, rtol=0, atol=1e-7
    )
    assert same(mixed([ONE, OTHER], Mean((1.0, 0.0))), ONE.tolist())
    assert same(mixed([ONE, OTHER], Mean((0.0, 3.0))), OTHER.tolist())


def test_the_surest_is_taken_row_by_row_and_ties_keep_the_first():
    rows = [[0.9, 0.1], [0.3, 0.7], [0.5, 0.5], [0.7, 0.3], NONE]
    for by in ("confidence", "entropy"):
        assert same(mixed([ONE, OTHER], Surest(by)), rows)
    nearly = ONE.clone()
    nearly[2] = torch.tensor([0.25, 0.25])  # no probabilities, but the less sure ones
    assert same(mixed([ONE, nearly], Surest()), ONE.tolist())


def test_the_surest_of_the_true_class_may_be_the_less_sure_one():
    labels = torch.tensor([1, 0, 0, -1, 0])
    rows = [[0.2, 0.8], [0.6, 0.4], [0.5, 0.5], [0.7, 0.3], NONE]
    assert same(mixed([ONE, OTHER], Surest("label"), labels), rows)
    unlabelled = torch.full((5,), -1)
    found = mixed([ONE, OTHER], Surest("label"), unlabelled)
    assert same(found[:3], ONE[:3].tolist())


def test_three_classes_tell_entropy_from_confidence():
    one, other = torch.tensor([[0.6, 0.2, 0.2]]), torch.tensor([[0.55, 0.45, 0.0]])
    assert torch.equal(mixed([one, other], Surest("confidence")), one)
    assert torch.equal(mixed([one, other], Surest("entropy")), other)


def test_a_band_leaves_out_the_unsure_and_the_too_sure_and_has_labels_below_its_middle():
    teacher = torch.tensor([[0.05, 0.95], [0.3, 0.7], [0.8, 0.2], [0.99, 0.01], [0.8, 0.2]])
    labels = torch.tensor([0, 0, 0, 0, -1])
    hard = label_rows(labels, 2, Labels(0.1))
    found = mixed([teacher, hard], Band(0.1, 0.5, 0.95), labels)
    assert same(found, [NONE, hard[1].tolist(), [0.8, 0.2], NONE, NONE])
    by_top = mixed([teacher, hard], Band(0.1, 0.75, 0.96, by="confidence"))
    assert same(by_top[:4], [*teacher[:1].tolist(), hard[1].tolist(), [0.8, 0.2], NONE])


def test_labels_are_rows_that_sum_to_one():
    rows = label_rows(torch.tensor([2, -1]), 4, Labels(0.2))
    assert torch.allclose(rows[0], torch.tensor([0.05, 0.05, 0.85, 0.05]))
    assert bool(rows[1].isnan().all())
    assert torch.equal(label_rows(torch.tensor([1]), 3, Labels()), torch.tensor([[0.0, 1.0, 0.0]]))


def test_labels_among_candidates_are_where_these_have_them():
    among = torch.tensor([[3, 1], [0, -1], [2, -1]])
    samples = Samples(torch.zeros(3, 6), torch.tensor([1, 2, 2]))
    term = Soft(Mixture((Labels(), Labels())), among=among)
    found = made_targets(term, samples, 4, lambda name: pytest.fail(name))
    assert found.argmax(1).tolist() == [1, 2, 0]


# --- as a client does them ------------------------------------------------------------------


@pytest.fixture
def worker(small):
    return lambda *overrides: Worker(
        small("student.width=0.1", "training.optimiser=sgd", "training.lr=0.1", *overrides)
    )


def learnt(host, *terms, on="private", steps=(), together=()):
    fit = Fit(on, terms, epochs=1, min_steps=0, together=together)
    host.perform(Assignment(0, 1, "learn", (*steps, fit)))
    return {name: value.clone() for name, value in host.state(0)["own"].items()}


def near(one, other, atol=1e-6):
    return all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def targets(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(count, 10, generator=draw)).softmax(1)


def count(worker, on="private"):
    return len(worker().samples(0, on).inputs)


def test_ground_truth_weighting_has_the_gradient_of_two_terms(worker):
    rows = targets(count(worker))
    mixture = Mixture((Labels(), rows), Mean((0.3, 0.7)))
    two = learnt(worker(), CrossEntropy(0.3), Soft(rows, weight=0.7))
    assert near(learnt(worker(), Soft(mixture)), two)


def test_who_is_never_less_sure_keeps_to_itself_and_who_is_always_learns_as_ever(worker):
    flat = torch.full((count(worker), 10), 0.1)
    before = learnt(worker(), CrossEntropy(0.0))
    still = learnt(worker(), Soft(Mixture(("own", flat), Surest())))
    assert near(still, learnt(worker(), Soft("own")))
    sharp = torch.eye(10)[torch.arange(len(flat)) % 10]
    after = learnt(worker(), Soft(Mixture(("own", sharp), Surest())))
    plain = learnt(worker(), Soft(sharp))
    assert all(torch.equal(after[name], plain[name]) for name in plain)
    assert not near(after, before)


def test_a_part_that_learns_in_the_step_is_as_it_was_when_the_step_began(worker):
    peer = Peer("peer", (CrossEntropy(),), "peer_loss")
    steps = (Hold("peer"), Load("own", student="peer"))
    apart = learnt(worker(), Soft(Mixture(("peer", "own"))), steps=steps)
    beside = learnt(worker(), Soft(Mixture(("peer", "own"))), steps=steps, together=(peer,))
    assert all(torch.equal(apart[name], beside[name]) for name in apart)


def test_parts_are_of_the_rows_that_a_step_draws_from(worker):
    index = torch.tensor([7, 2, 30, 11])
    rows, on = targets(4), Rows("transfer", index)
    found = learnt(worker(), Soft(Mixture((rows, "own"), Mean((1.0, 0.0)))), on=on)
    assert near(found, learnt(worker(), Soft(rows), on=on))


def test_the_temperature_is_that_of_students_and_not_of_tensors(worker):
    rows = targets(count(worker))
    soft = Soft(Mixture((rows, "own"), Mean((0.0, 1.0))), temperature=3.0)
    assert near(learnt(worker(), soft), learnt(worker(), replace(soft, targets="own")))
    soft = replace(soft, targets=Mixture((rows, "own"), Mean((1.0, 0.0))))
    assert near(learnt(worker(), soft), learnt(worker(), replace(soft, targets=rows)))


def test_tensors_among_the_parts_are_the_bytes(worker):
    step = Fit(terms=(Soft(Mixture((targets(7), "own", Labels()))),))
    assert nbytes((step,)) == 7 * 10 * 4


def test_under_dp_sgd_a_sample_has_a_say_in_its_own_target_alone(worker):
    private = ("training.dp.noise_multiplier=1", "training.dp.max_grad_norm=1")
    host, mixture = worker(*private), Mixture(("own", Labels(0.1)), Mean((0.5, 0.5)))
    noisy = learnt(host, CrossEntropy(), Soft(mixture))
    assert not near(noisy, learnt(worker(), CrossEntropy(), Soft(mixture)), atol=1e-3)
    samples = worker().samples(0, "private")
    one = label_rows(samples.labels, 10, Labels())
    other = samples.labels.clone()
    other[0] = (other[0] + 1) % 10
    changed = mixed([one, label_rows(other, 10, Labels())], Surest())
    assert torch.equal(changed[1:], one[1:])


def test_of_text_the_last_token_has_no_label_and_its_other_parts_alone(tmp_path):
    host = Worker(texts.small(tmp_path / "texts"))
    samples = host.samples(0, "private")
    labels, classes = item_labels(samples), host.data.task.classes
    term = Soft(Mixture(("own", Labels())))
    uniform = torch.full((len(labels), classes), 1 / classes)
    found = made_targets(term, samples, classes, lambda name: uniform)
    assert torch.equal(found[labels < 0], uniform[labels < 0])
    assert torch.equal(found[labels >= 0].argmax(1), labels[labels >= 0])
    before = {name: value.clone() for name, value in host.state(0)["own"].items()}
    after = learnt(host, term)
    assert not near(after, before)


def test_on_the_server_a_blend_is_refused_in_a_line(worker):
    host = worker()
    samples = host.samples(0, "private")
    step = Fit(samples, (Soft(Mixture(("own", Labels()))),))
    with pytest.raises(FedkdError, match="a Mixture is not allowed for a student on the server"):
        check_server_fit(step, host.module(0, "own"), samples, samples)
