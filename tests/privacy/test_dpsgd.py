"""DP-SGD in the one training loop."""

import copy
import math
from itertools import combinations

import pytest
import torch
from lines import measured
from torch import nn
from torch.nn import functional as F

from fedkd import FedkdError, check, run, students
from fedkd.engine.worker import Worker
from fedkd.privacy.dpsgd import DPSGD
from fedkd.sections import StudentTable
from fedkd.training import fit
from fedkd.training_tables import PrivateTraining, TrainingTable
from fedkd.work import (
    Assignment,
    Contrast,
    CrossEntropy,
    Feature,
    Fit,
    Head,
    Hold,
    Linear,
    Predict,
    Proximal,
    Samples,
    Share,
    Soft,
)

SGD = TrainingTable(optimiser="sgd", lr=0.1, momentum=0.9, batch_size=40, local_epochs=5)
STEP = TrainingTable(optimiser="sgd", lr=1.0, batch_size=40, local_epochs=1)
LOOSE = PrivateTraining(noise_multiplier=0, max_grad_norm=1e6)
TIGHT = PrivateTraining(noise_multiplier=0, max_grad_norm=0.5)
MLP = ("mlp", (6,), "none")


def made(name="mlp", shape=(6,), norm="none"):
    return students.build(name, shape, 4, StudentTable(norm=norm), 1)


def images(shape, count=40):
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return Samples(inputs.contiguous(memory_format=torch.channels_last), torch.arange(count) % 4)


LABELS = (CrossEntropy(),)


def trained(student, samples, terms=LABELS, training=SGD, dp=None, on="private", **how):
    """The parameters of a copy of ``student`` after a fit, flat."""
    student = copy.deepcopy(student)
    dp = dp and DPSGD(dp, on, 0, "test")
    fit(student, samples, terms, training, torch.Generator().manual_seed(3), dp=dp, **how)
    return flat(student)


def flat(student):
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


def hooks(student):
    return [hook for module in student.modules() for hook in module._forward_hooks.values()]


# --- without noise and clipping it is ordinary training -----------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "norm"),
    [
        ("cnn2", (1, 8, 8), "none"),
        ("cnn2", (3, 8, 8), "group"),
        ("resnet8", (3, 8, 8), "group"),
    ],
)
def test_without_noise_and_clipping_all_samples_a_step_is_ordinary_training(name, shape, norm):
    student, samples = made(name, shape, norm), images(shape)
    ordinary, private = (trained(student, samples, dp=dp) for dp in (None, LOOSE))
    learnt = ordinary - flat(student)
    assert float(learnt.abs().max()) > 1e-3
    # A sum in another order grows from step to step, where a ReLU falls on its other side.
    assert float((private - ordinary).norm()) < 0.05 * float(learnt.norm())


@pytest.mark.parametrize(
    "terms",
    [
        [CrossEntropy(), Proximal(3.0, {"head.bias": torch.ones(4)})],
        [Feature(torch.randn(4, 200), "fc1")],
        [Feature(torch.randn(40, 200), "fc1", "cosine", "sample", norms=torch.full((40,), 9.0))],
        [Contrast(torch.rand(40, 200), torch.rand(40, 200), "fc1"), CrossEntropy()],
        [CrossEntropy(), Linear({n: torch.ones_like(p) for n, p in made().named_parameters()})],
        [CrossEntropy(), CrossEntropy(0.5, exit="fc1")],
        [Soft(torch.rand(40, 4).softmax(1), temperature=2.0)],
        [Soft(torch.rand(40, 4).softmax(1), "not_true", temperature=2.0), CrossEntropy()],
        [Soft(torch.rand(40, 4).softmax(1), {"name": "dist", "gamma": 0.0}), CrossEntropy(0.1)],
        [Soft(torch.rand(40, 4).softmax(1), {"name": "taid", "adaptive": False})],
        [Soft(torch.rand(4, 4).softmax(1), per="class", objective="reverse_kl"), CrossEntropy()],
        [Soft(torch.tensor([[torch.nan] * 4, [0.25] * 4]).repeat(20, 1)), CrossEntropy(0.1)],
    ],
    ids=[
        "proximal",
        "prototype",
        "feature",
        "contrast",
        "linear",
        "exit",
        "soft",
        "not true",
        "correlations over classes",
        "towards the teacher",
        "per class",
        "partial",
    ],
)
def test_every_term_is_what_it_was_without_noise_and_clipping(terms, samples):
    ordinary, private = (trained(made(), samples, terms, dp=dp) for dp in (None, LOOSE))
    assert torch.allclose(private, ordinary, atol=1e-5)


@pytest.mark.parametrize("part", [("head",), ("body",)])
def test_blocks_that_do_not_learn_stay_as_they_are(part, samples):
    ordinary, private = (trained(made(), samples, dp=dp, part=part) for dp in (None, LOOSE))
    assert torch.allclose(private, ordinary, atol=1e-5)
    assert torch.equal(private == flat(made()), ordinary == flat(made()))


def test_the_optimisers_get_the_same_gradients_as_ever(samples):
    for optimiser in ("adam", "adamw"):
        training = SGD.model_copy(update={"optimiser": optimiser, "lr": 1e-3})
        ordinary, private = (
            trained(made(), samples, training=training, dp=dp) for dp in (None, LOOSE)
        )
        # Adam makes a step of full size of a gradient of rounding errors.
        assert float((private - ordinary).abs().mean()) < 1e-5


def test_a_source_beside_the_private_one_is_neither_clipped_nor_drawn_at_random(samples):
    transfer = Samples(torch.randn(40, 6))
    soft = Soft(torch.rand(40, 4).softmax(1))
    mixed = {"sources": {"private": lambda: samples}, "on": "transfer"}
    both = [soft, CrossEntropy(on="private")]
    ordinary, private = (trained(made(), transfer, both, dp=dp, **mixed) for dp in (None, LOOSE))
    assert torch.allclose(private, ordinary, atol=1e-5)
    nothing = PrivateTraining(noise_multiplier=0, max_grad_norm=1e-12)
    alone = trained(made(), transfer, [soft])
    assert torch.allclose(trained(made(), transfer, both, dp=nothing, **mixed), alone, atol=1e-6)


# --- clipping, noise, who is drawn --------------------------------------------------------------


def test_each_samples_gradient_is_clipped(samples):
    student, total = made(), 0.0
    for inputs, label in zip(samples.inputs, samples.labels, strict=True):
        loss = F.cross_entropy(student(inputs[None]), label[None])
        each = torch.cat([g.flatten() for g in torch.autograd.grad(loss, student.parameters())])
        total += each * min(1.0, 0.5 / float(each.norm()))
    moved = flat(student) - trained(student, samples, training=STEP, dp=TIGHT)
    assert torch.allclose(moved, total / 40, atol=1e-5)
    assert float(moved.norm()) * 40 <= 0.5 * 40 + 1e-4


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e30, 3e38])
def test_a_sample_without_a_gradient_to_clip_moves_nothing(wrong, samples):
    """And a huge one no more than any other."""
    inputs = samples.inputs.clone()
    inputs[7] = wrong
    sick = Samples(inputs, samples.labels)
    kept = torch.arange(40) != 7
    well = trained(made(), samples, training=STEP, dp=TIGHT)
    moved = trained(made(), sick, training=STEP, dp=TIGHT)
    assert bool(moved.isfinite().all())
    # Replaced: at most twice the norm that one gradient is clipped to, of 40.
    assert float((moved - well).norm()) * 40 <= 2 * 0.5 + 1e-4
    if not math.isfinite(wrong):
        rest = Samples(samples.inputs[kept], samples.labels[kept])
        whole = STEP.model_copy(update={"lr": 39 / 40})
        assert torch.allclose(moved, trained(made(), rest, training=whole, dp=TIGHT), atol=1e-5)
    noisy = PrivateTraining(noise_multiplier=1.0, max_grad_norm=0.5)
    assert bool(trained(made(), sick, training=SGD, dp=noisy).isfinite().all())


def test_the_noise_has_the_deviation_that_was_asked_for(samples):
    training = STEP.model_copy(update={"batch_size": 10, "local_epochs": 0.25})
    noisy = PrivateTraining(noise_multiplier=3.0, max_grad_norm=0.5)
    quiet, loud = (trained(made(), samples, training=training, dp=dp) for dp in (TIGHT, noisy))
    # One step, in which 10 samples are expected.
    assert float((loud - quiet).std()) == pytest.approx(3.0 * 0.5 / 10, rel=0.02)
    assert float((loud - quiet).mean()) == pytest.approx(0, abs=0.003)


def test_every_sample_is_drawn_by_itself():
    dp = DPSGD(TIGHT, "private", 0)
    steps, batches = dp.batches(10, 4)
    assert (steps, dp.sample_rate) == (3, pytest.approx(1 / 3))
    drawn = torch.zeros(3000, 10)
    for row in drawn:
        row[next(batches)] = 1
    assert drawn.mean(0).tolist() == pytest.approx([1 / 3] * 10, abs=0.04)
    # Sizes of batches are binomial: mean 10/3, variance 10/3 * 2/3.
    assert float(drawn.sum(1).var()) == pytest.approx(20 / 9, rel=0.1)


def test_a_step_that_draws_nobody_is_noise_alone():
    two = Samples(torch.randn(2, 6), torch.tensor([0, 1]))
    training = STEP.model_copy(update={"batch_size": 1, "local_epochs": 20, "lr": 1e-3})
    noisy, dp = PrivateTraining(noise_multiplier=1.0), DPSGD(TIGHT, "private", 0)
    _, batches = dp.batches(2, 1)
    assert min(len(next(batches)) for _ in range(40)) == 0
    assert bool(trained(made(), two, training=training, dp=noisy).isfinite().all())
    assert bool(trained(made(), two, training=training, dp=TIGHT).isfinite().all())


def test_the_student_is_left_without_a_trace(samples):
    student = made()
    fit(student, samples, [CrossEntropy()], SGD, torch.Generator(), dp=DPSGD(TIGHT, "private", 0))
    assert hooks(student) == []
    for parameter in student.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert vars(parameter) == {}


# --- what cannot be done ------------------------------------------------------------------------


class Positions(nn.Module):
    """Adds learned positions, looked up once for all samples."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 6)

    def forward(self, inputs):
        return inputs + self.table(torch.arange(6)).mean(1)


class Mixing(nn.Linear):
    """A layer that adds the batch's mean to every sample."""

    def forward(self, inputs):
        return super().forward(inputs) + super().forward(inputs).mean(0)


def two_blocks(first):
    return nn.Sequential(nn.Sequential(first), nn.Sequential(nn.Linear(6, 4)))


@pytest.mark.parametrize("first", [nn.BatchNorm1d(6), Positions(), Mixing(6, 6)])
def test_a_layer_that_mixes_samples_is_one_line(first, samples):
    with pytest.raises(FedkdError, match=r"training\.dp\.noise_multiplier = 0 does not work with"):
        trained(two_blocks(first), samples, dp=TIGHT)


HEAD = {name: value for name, value in made().state_dict().items() if name.startswith("head")}


@pytest.mark.parametrize(
    ("term", "line"),
    [
        (Soft(torch.rand(40, 4).softmax(1), reach=("fc1",)), "reach"),
        (CrossEntropy(through=Head("fc2", HEAD)), "another head"),
        (CrossEntropy(on="private"), "beside those of its step"),
    ],
)
def test_terms_without_per_sample_gradients_are_one_line(term, line, samples):
    with pytest.raises(FedkdError, match=line):
        trained(made(), samples, [term], dp=TIGHT, sources={"private": lambda: samples})


def test_batch_normalisation_is_refused_before_anything_is_loaded(small):
    with pytest.raises(FedkdError, match=r"student\.norm = 'batch' is not allowed with training"):
        check(small("training.dp.noise_multiplier=1", "student.norm=batch"))


# --- a client at work ---------------------------------------------------------------------------


NOISY = "training.dp.noise_multiplier=1"


def after(worker, client, *steps, trial=(), round=1):
    """The reply to steps, and the parameters that the client is left with."""
    reply = worker.perform(Assignment(client, round, "learn", steps, trial))
    own = worker.state(client)["own"]
    return reply, torch.cat([tensor.flatten() for tensor in own.values()]).clone()


def test_a_reply_says_what_accounting_needs(small):
    worker = Worker(small(NOISY))
    reply, _ = after(worker, 0, Fit(), Fit(epochs=1, part=("head",)), trial=(Fit(),))
    # 60 samples in batches of 16: 4 steps a pass; 2 passes, then 1; what is tried out is not kept.
    assert reply.metrics["dp_sample_rate"] == 1 / 4
    assert reply.metrics["dp_steps"] == 12
    assert "dp_steps" not in after(Worker(small()), 0, Fit())[0].metrics
    soft = Fit("transfer", (Soft(torch.full((80, 10), 0.1)),))
    assert "dp_steps" not in after(worker, 0, soft)[0].metrics
    mixed = Fit("transfer", (*soft.terms, CrossEntropy(on="private")), epochs=1)
    assert after(worker, 0, mixed)[0].metrics["dp_steps"] == 5


def test_no_two_clients_rounds_fits_or_students_have_the_same_noise(small):
    """Noise alone: nobody's gradient is let through."""
    worker = Worker(small(NOISY, "student.init=same", "training.dp.max_grad_norm=1e-9"))
    found = []
    for client, round in ((0, 1), (1, 1), (0, 2)):
        steps = (Hold("twin"), Fit(epochs=1), Fit(epochs=1, student="twin"))
        values = after(worker, client, *steps, Share(), Share(key="b", student="twin"), round=round)
        found += [values[0].values[key]["head.bias"] for key in ("parameters", "b")]
    for index, one in enumerate(found):
        assert all(not torch.equal(one, other) for other in found[:index])


def test_no_two_worlds_share_noise_or_who_is_drawn(small):
    """Nobody's gradient is let through, then no noise."""
    for table in ("training.dp.max_grad_norm=1e-9", "training.dp.noise_multiplier=1e-9"):
        experiment = small(NOISY, table, "training.lr=0.1", "training.optimiser=sgd")
        first, same, *others = (
            after(Worker(experiment, world=world), 0, Fit())[1] for world in (0, 0, 1, 2)
        )
        assert torch.equal(first, same)
        assert not any(torch.equal(one, other) for one, other in combinations((first, *others), 2))


def test_the_numbers_do_not_depend_on_the_order_of_clients(small):
    forth, back = Worker(small(NOISY)), Worker(small(NOISY))
    straight = [after(forth, client, Fit())[1] for client in (0, 1, 2)]
    backwards = [after(back, client, Fit())[1] for client in (2, 1, 0)][::-1]
    assert all(map(torch.equal, straight, backwards))
    other = Worker(small(NOISY, "seed=1", "student.init=same"))
    assert not torch.equal(after(other, 0, Fit())[1], straight[0])


def test_what_sees_no_private_sample_is_bit_for_bit_what_it_was(small):
    soft = Fit("transfer", (Soft(torch.rand(80, 10).softmax(1)),), epochs=2)
    sent = Fit(Samples(torch.randn(20, 1, 8, 8), torch.arange(20) % 10), epochs=2)
    ordinary, private = (after(Worker(small(*dp)), 0, soft, sent)[1] for dp in ((), (NOISY,)))
    assert torch.equal(ordinary, private)


@pytest.mark.parametrize("name", ["fedavg", pytest.param("uniform", marks=pytest.mark.slow)])
def test_a_run_with_dp_is_the_same_twice(name, small, tmp_path):
    experiment = small(f"strategy.name={name}", NOISY)
    once, again = (measured(run(experiment, tmp_path / side)) for side in "ab")
    assert once == again
    assert once != measured(run(small(f"strategy.name={name}"), tmp_path / "plain"))


def test_the_labels_of_a_private_teacher_are_probabilities(small):
    reply, _ = after(Worker(small(NOISY, "student.models=['cnn2']")), 0, Fit(), Predict())
    labels = reply.values["soft_labels"]
    assert torch.allclose(labels.sum(1), torch.ones(80))
