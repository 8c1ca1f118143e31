"""The one training loop: known answers, and gradients that must be zero."""

from functools import partial

import pytest
import torch
from torch import nn

from fedkd.errors import FedkdError
from fedkd.optimisers import optimiser
from fedkd.sections import StudentTable
from fedkd.students import build
from fedkd.training import evaluate, fit, predict
from fedkd.training_tables import TrainingTable
from fedkd.work import CrossEntropy, Linear, Proximal, Samples, Soft

SGD = TrainingTable(optimiser="sgd", lr=0.1, batch_size=8, local_epochs=1)


def student(seed=0, name="mlp", shape=(6,)):
    return build(name, shape, 4, StudentTable(width=0.1), seed)


def parameters(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def trained(samples, terms, training=SGD, seed=0, **options):
    model = student()
    loss = fit(model, samples, terms, training, torch.Generator().manual_seed(seed), **options)
    return parameters(model), loss


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_it_is_the_textbook_loop(samples):
    """Against plain PyTorch: the same batches, the same steps, the same bits."""
    mine, _ = trained(samples, [CrossEntropy()])
    model = student()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for index in torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(8):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(samples.inputs[index]), samples.labels[index]).backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        assert torch.allclose(mine[name], value, atol=1e-6), name


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_every_optimiser_learns(samples, optimiser):
    lr = 0.3 if optimiser == "sgd" else 0.02
    training = TrainingTable(optimiser=optimiser, lr=lr, batch_size=8, local_epochs=10)
    model = student()
    before = evaluate(model, samples)["loss"]
    fit(model, samples, [CrossEntropy()], training, torch.Generator())
    assert evaluate(model, samples)["loss"] < 0.7 * before


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (TrainingTable(weight_decay=0.1), partial(torch.optim.Adam, weight_decay=0.1)),
        (TrainingTable(optimiser="adamw"), partial(torch.optim.AdamW, weight_decay=0)),
        (TrainingTable(optimiser="sgd", momentum=0.9), partial(torch.optim.SGD, momentum=0.9)),
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_an_optimiser_is_torchs_own_bit_for_bit(ours, torchs):
    learned = []
    for make in (lambda p: optimiser(p, ours, 0.01), lambda p: torchs(p, lr=0.01, fused=True)):
        weights = nn.Parameter(torch.arange(6.0).view(2, 3))
        found = make([weights])
        for step in range(4):
            found.zero_grad()
            ((weights - step).square() * torch.tensor([0.1, 1.0, 7.0])).sum().backward()
            found.step()
        learned.append(weights.detach())
    assert torch.equal(*learned)


def test_the_order_of_samples_depends_on_the_generator_alone(samples):
    torch.manual_seed(1)
    first, _ = trained(samples, [CrossEntropy()])
    torch.manual_seed(2)
    assert equal(first, trained(samples, [CrossEntropy()])[0])
    assert not equal(first, trained(samples, [CrossEntropy()], seed=1)[0])


def test_samples_are_shuffled(samples):
    """Sorted labels are no trouble: every batch would hold one class if they were not."""
    order = samples.labels.argsort()
    model = student()
    fit(
        model,
        Samples(samples.inputs[order], samples.labels[order]),
        [CrossEntropy()],
        TrainingTable(optimiser="sgd", lr=0.3, batch_size=10, local_epochs=20),
        torch.Generator().manual_seed(0),
    )
    assert evaluate(model, samples)["accuracy"] > 0.8


def test_no_epochs_change_nothing(samples):
    assert equal(trained(samples, [CrossEntropy()], epochs=0)[0], parameters(student()))


def test_epochs_may_be_fractions_and_steps_have_a_minimum(samples):
    half, _ = trained(samples, [CrossEntropy()], epochs=0.4)  # 2 of 5 batches
    two, _ = trained(samples, [CrossEntropy()], epochs=0, min_steps=2)
    assert equal(half, two)


def test_minimum_steps_go_round_the_data_again(samples):
    twice, _ = trained(samples, [CrossEntropy()], epochs=2)
    ten, _ = trained(samples, [CrossEntropy()], epochs=1, min_steps=10)
    assert equal(twice, ten)


def test_the_loss_is_the_mean_of_the_last_pass(samples):
    training = TrainingTable(optimiser="sgd", lr=1e-12, batch_size=8, local_epochs=3)
    _, loss = trained(samples, [CrossEntropy()], training)
    assert loss == pytest.approx(evaluate(student(), samples)["loss"], rel=1e-4)


def test_a_single_left_over_sample_is_no_batch_of_its_own(samples):
    """Batch statistics need two samples."""
    model = build("cnn2", (1, 8, 8), 4, StudentTable(norm="batch", width=0.1), 0)
    few = Samples(torch.randn(17, 1, 8, 8), torch.arange(17) % 4)
    loss = fit(model, few, [CrossEntropy()], SGD, torch.Generator())
    assert loss > 0


def test_no_samples_change_nothing():
    model = student()
    empty = Samples(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))
    assert fit(model, empty, [CrossEntropy()], SGD, torch.Generator()) == 0.0
    assert equal(parameters(model), parameters(student()))
    assert evaluate(model, empty) == {}


def test_only_the_named_part_learns(samples):
    after, _ = trained(samples, [CrossEntropy()], part=("head",))
    before = parameters(student())
    for name in before:
        assert torch.equal(after[name], before[name]) == (not name.startswith("head"))


def test_everything_may_learn_again_afterwards(samples):
    model = student()
    fit(model, samples, [CrossEntropy()], SGD, torch.Generator(), part=("head",))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_term_with_a_reach_moves_nothing_beyond_it(samples):
    soft = Soft(torch.rand(40, 4).softmax(1), reach=("fc1",))
    after, _ = trained(samples, [soft])
    before = parameters(student())
    for name in before:
        assert torch.equal(after[name], before[name]) == (not name.startswith("fc1"))


def test_a_reach_of_all_blocks_is_no_reach(samples):
    targets = torch.rand(40, 4).softmax(1)
    everywhere, _ = trained(samples, [CrossEntropy(), Soft(targets)])
    named, _ = trained(samples, [CrossEntropy(), Soft(targets, reach=("body", "head"))])
    for name, value in everywhere.items():
        assert torch.allclose(named[name], value, atol=1e-6)


def test_a_weight_of_zero_is_no_term(samples):
    soft = Soft(torch.rand(40, 4).softmax(1), weight=0.0)
    both, _ = trained(samples, [CrossEntropy(), soft])
    assert equal(both, trained(samples, [CrossEntropy()])[0])


def test_one_hot_targets_are_hard_labels(samples):
    one_hot = nn.functional.one_hot(samples.labels, 4).float()
    soft, _ = trained(samples, [Soft(one_hot)])
    hard, _ = trained(samples, [CrossEntropy()])
    for name, value in hard.items():
        assert torch.allclose(soft[name], value, atol=1e-6)


def test_targets_per_class_are_picked_by_the_label(samples):
    per_class = torch.rand(4, 4).softmax(1)
    by_class, _ = trained(samples, [Soft(per_class, per="class")])
    by_sample, _ = trained(samples, [Soft(per_class[samples.labels])])
    assert equal(by_class, by_sample)


def test_a_students_own_soft_labels_teach_it_nothing(samples):
    own = predict(student(), samples.inputs).softmax(1).clone()
    after, loss = trained(samples, [Soft(own)], epochs=1)
    assert loss == pytest.approx(0, abs=1e-6)
    for name, value in parameters(student()).items():
        assert torch.allclose(after[name], value, atol=1e-5)


def test_tau_squared_multiplies_the_loss(samples):
    frozen = TrainingTable(optimiser="sgd", lr=1e-12, batch_size=40)
    targets = torch.rand(40, 4).softmax(1)
    _, scaled = trained(samples, [Soft(targets, temperature=3.0)], frozen)
    _, plain = trained(samples, [Soft(targets, temperature=3.0, tau_squared=False)], frozen)
    assert scaled == pytest.approx(9 * plain, rel=1e-5)


def test_a_term_may_draw_from_a_source_of_its_own(samples):
    transfer = Samples(torch.randn(16, 6))
    terms = [Soft(torch.rand(16, 4).softmax(1)), CrossEntropy(on="private")]
    model = student()
    before = evaluate(model, samples)["loss"]
    fit(
        model,
        transfer,
        terms,
        TrainingTable(lr=0.01, batch_size=8),
        torch.Generator(),
        epochs=20,
        sources={"private": lambda: samples},
    )
    assert evaluate(model, samples)["loss"] < before


def test_a_huge_proximal_weight_holds_the_student_where_it_is(samples):
    training = TrainingTable(optimiser="sgd", lr=1e-4, batch_size=8, local_epochs=20)
    anchor = parameters(student())
    free, _ = trained(samples, [CrossEntropy()], training)
    held, _ = trained(samples, [CrossEntropy(), Proximal(1e4, anchor)], training)

    def moved(after):
        return sum(float((after[name] - anchor[name]).square().sum()) for name in anchor)

    assert moved(held) < 1e-3 * moved(free)


def test_the_proximal_gradient_is_weight_times_distance(samples):
    anchor = {name: value + 1 for name, value in parameters(student()).items()}
    training = TrainingTable(optimiser="sgd", lr=0.1, batch_size=40)
    after, _ = trained(samples, [Proximal(0.5, anchor)], training, epochs=1)
    for name, before in parameters(student()).items():
        assert torch.allclose(after[name], before + 0.05, atol=1e-6)


def test_an_inner_product_moves_every_step_against_what_is_given(samples):
    """Four steps of the rate 0.1, along 0.5 times what is given and along nothing else."""
    given = {name: torch.randn(value.shape) for name, value in parameters(student()).items()}
    training = TrainingTable(optimiser="sgd", lr=0.1, batch_size=10)
    after, _ = trained(samples, [Linear(given, 0.5)], training, epochs=1)
    for name, before in parameters(student()).items():
        assert torch.allclose(after[name], before - 4 * 0.1 * 0.5 * given[name], atol=1e-5)


def test_the_loss_of_an_inner_product_is_that_product(samples):
    given = {name: torch.randn(value.shape) for name, value in parameters(student()).items()}
    training = TrainingTable(optimiser="sgd", lr=1e-9, batch_size=40)
    _, loss = trained(samples, [Linear(given, -2.0)], training, epochs=1)
    expected = sum(float((given[n] * w).sum()) for n, w in parameters(student()).items())
    assert loss == pytest.approx(-2 * expected, rel=1e-4)


def test_a_proximal_term_and_an_inner_product_are_a_proximal_term_to_another_anchor(samples):
    """``a / 2 |w - b|^2 - a <w, d>`` has the gradient of ``a / 2 |w - (b + d)|^2``."""
    anchor = {name: value + 1 for name, value in parameters(student()).items()}
    training = TrainingTable(optimiser="sgd", lr=0.1, batch_size=10, local_epochs=1)
    near = {name: torch.full_like(value, 0.3) for name, value in anchor.items()}
    both, _ = trained(
        samples, [CrossEntropy(), Proximal(0.5, anchor), Linear(near, -0.5)], training
    )
    moved = {name: value + 0.3 for name, value in anchor.items()}
    one, _ = trained(samples, [CrossEntropy(), Proximal(0.5, moved)], training)
    for name, value in one.items():
        assert torch.allclose(both[name], value, atol=1e-5)


@pytest.mark.parametrize(
    ("terms", "line"),
    [
        ([CrossEntropy()], "no labels"),
        ([Soft(torch.rand(3, 4))], "3 targets for 5 samples"),
        ([Soft(torch.rand(4, 4), per="class")], "no labels"),
        ([Soft(torch.rand(5, 4), objective="kl")], "objective = 'kl' is not known"),
        (
            [Soft(torch.rand(5, 4), "not_true")],
            "objective = 'not_true': the samples have no labels",
        ),
        ([Soft(torch.rand(5, 4), reach=("conv1",))], "'conv1' is not a block"),
        ([CrossEntropy(on="privat")], "'privat' is not known"),
    ],
)
def test_what_cannot_be_done_is_one_line(terms, line):
    unlabelled = Samples(torch.randn(5, 6))
    with pytest.raises(FedkdError, match=line):
        fit(student(), unlabelled, terms, SGD, torch.Generator())


def test_prediction_does_not_depend_on_how_it_is_cut_into_batches():
    model, inputs = student(), torch.randn(1100, 6)
    whole = predict(model, inputs)
    assert torch.allclose(whole[700:], predict(model, inputs[700:]), atol=1e-6)


def test_evaluation_knows_the_answers():
    model = nn.Sequential(nn.Identity())
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [0.0, 4.0]])
    found = evaluate(model, Samples(logits, torch.tensor([0, 1, 1, 1])))
    assert found["accuracy"] == 0.75
    expected = nn.functional.cross_entropy(logits.double(), torch.tensor([0, 1, 1, 1]))
    assert found["loss"] == pytest.approx(float(expected))
