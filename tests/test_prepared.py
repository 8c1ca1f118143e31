"""What ``[training]`` adds before a student answers: aligned weights, and variety in a class."""

import math

import pytest
import torch
from torch import nn

from fedkd import Experiment, FedkdError, registry, run
from fedkd.distillation.objectives import made, reverse_kl
from fedkd.effects import without_effect
from fedkd.engine.worker import Worker
from fedkd.rounds.prepared import prepared
from fedkd.training import aligned, last_layer
from fedkd.training_tables import TrainingTable
from fedkd.work import Align, Assignment, CrossEntropy, Fit, Predict, Rows, Share, Soft

COUNTS = torch.tensor([9, 0, 4, 1, 30])
"""Of five classes; the median class has 4 samples, and classes 0 and 4 are favoured."""


@pytest.fixture
def weight():
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norms(weight):
    return torch.linalg.vector_norm(weight, dim=1)


def test_the_two_groups_have_equal_mean_norms_afterwards(weight):
    found = norms(aligned(weight, COUNTS))
    assert found[[0, 4]].mean() == pytest.approx(float(found[[1, 2, 3]].mean()), abs=1e-12)
    assert torch.equal(aligned(weight, COUNTS)[[1, 2, 3]], weight[[1, 2, 3]])


def test_aligning_again_changes_nothing(weight):
    once = aligned(weight, COUNTS)
    torch.testing.assert_close(aligned(once, COUNTS), once, rtol=0, atol=1e-12)


def test_rows_that_are_as_long_already_stay(weight):
    unit = weight / norms(weight)[:, None]
    torch.testing.assert_close(aligned(unit, COUNTS), unit, rtol=0, atol=1e-12)


def test_the_order_inside_a_group_is_kept_without_a_bias(weight):
    features = torch.randn(50, 7, dtype=torch.float64)
    before, after = features @ weight.T, features @ aligned(weight, COUNTS).T
    for group in ([0, 4], [1, 2, 3]):
        assert torch.equal(before[:, group].argsort(1), after[:, group].argsort(1))


def test_an_empty_group_or_one_without_length_changes_nothing(weight):
    assert aligned(weight, torch.full((5,), 3)) is weight
    nothing = weight.clone()
    nothing[[0, 4]] = 0
    assert aligned(nothing, COUNTS) is nothing
    broken = weight.clone()
    broken[0] = torch.nan
    assert aligned(broken, COUNTS) is broken


def test_the_last_layer_is_found_inside_blocks_or_refused():
    linear = nn.Linear(3, 2)
    assert last_layer(nn.Sequential(linear), "own") == ("0", linear)
    nested = nn.Sequential(nn.Flatten(), nn.Sequential(nn.LayerNorm(3), linear))
    assert last_layer(nested, "own") == ("1.1", linear)
    with pytest.raises(FedkdError, match="its last layer is ReLU"):
        last_layer(nn.Sequential(linear, nn.ReLU()), "own")
    tied = nn.Sequential(nn.Embedding(2, 3), linear)
    tied[0].weight = linear.weight
    with pytest.raises(FedkdError, match="is that of another layer too"):
        last_layer(tied, "own")


def test_what_is_added_is_before_the_first_answer_after_private_training():
    table = TrainingTable(align_weights=True, class_variety=0.25)
    steps = (Predict(key="before"), Fit(part=("head",)), Share(), Predict(), Predict(key="again"))
    before, fit, share, variety, align, *after = prepared(steps, table)
    assert (before, fit, share, *after) == steps
    assert align == Align("private", ("head",))
    assert (variety.on, variety.part, variety.epochs) == ("private", ("head",), 1.0)
    assert variety.terms[0] == CrossEntropy()
    assert (variety.terms[1].weight, variety.terms[1].per) == (-0.25, "class")
    assert prepared(steps, TrainingTable()) == steps
    others = (Fit("transfer"), Predict(), Fit(Rows("private", torch.arange(3)), student="twin"))
    assert prepared(others, table) == others


# --- on clients -----------------------------------------------------------------------------


def last(state):
    return [value for name, value in state.items() if name.endswith("weight")][-1]


def test_a_client_aligns_by_its_own_label_counts(small):
    host = Worker(small())
    counts = host.samples(0, "private").labels.bincount(minlength=10)
    before = {name: value.clone() for name, value in host.module(0, "own").state_dict().items()}
    host.perform(Assignment(0, 1, "learn", (Align(),)))
    after = host.state(0)["own"]
    assert torch.equal(last(after), aligned(last(before), counts))
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        name for name in before if before[name] is last(before)
    ]
    host = Worker(small())
    host.perform(Assignment(0, 1, "learn", (Align(part=(next(iter(before)).split(".")[0],)),)))
    assert torch.equal(last(host.module(0, "own").state_dict()), last(before))


KEYS = ["training.align_weights=true", "training.class_variety=0.25"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("method", ["uniform", "feddistill"])
def test_stacks_do_as_clients_do_alone_and_only_what_is_said_changes(small, method, key):
    few = [f"strategy.name={method}", "rounds=2", key]
    alone, stacked = (run(small(*few, f"engine.cohort={how}"), how) for how in ("off", "on"))
    for mine, theirs in zip(alone.rounds, stacked.rounds, strict=True):
        assert mine["own_loss_mean"] == pytest.approx(theirs["own_loss_mean"], abs=1e-3)
    plain = run(small(*few[:2]), "plain")
    assert plain.rounds[1]["own_loss_mean"] != alone.rounds[1]["own_loss_mean"]


def test_who_never_answers_is_told_that_nothing_came_of_it(small):
    few = ["strategy.name=local", "rounds=1"]
    plain = run(small(*few), "plain")
    found = run(small(*few, KEYS[0]), "aligned")
    assert found.rounds[0]["own_loss_mean"] == plain.rounds[0]["own_loss_mean"]
    assert any("training.align_weights had no effect" in line for line in found.warnings)


@pytest.mark.parametrize("key", ["align_weights = true", "class_variety = 0.25"])
def test_under_dp_sgd_both_are_refused(small, key):
    name, value = key.split(" = ")
    tables = {"training": {name: {"true": True}.get(value, 0.25), "dp": {"noise_multiplier": 1.0}}}
    with pytest.raises(FedkdError, match=f"training.{key} is not allowed with training.dp.noise"):
        Experiment.from_dict(tables)


def test_an_author_is_refused_aligning_under_dp_sgd(small):
    uniform = registry.load("strategies", "uniform")

    @registry.register("strategies", "aligning_here")
    class Aligning(uniform):
        def learn(self, round, client):
            return [Fit(), Align(), Predict()]

    few = ["strategy.name=aligning_here", "rounds=1"]
    run(small(*few), "plain")
    with pytest.raises(FedkdError, match="Align is not allowed with"):
        run(small(*few, "training.dp.noise_multiplier=1"), "private")


def test_passes_without_variety_are_told_to_have_no_effect(small):
    (line,) = without_effect(small("training.class_variety_epochs=2"))
    assert line.startswith("training.class_variety_epochs = 2.0 has no effect")


# --- variety --------------------------------------------------------------------------------


def test_the_class_average_of_the_divergence_is_an_entropy_less_a_mean_of_entropies():
    logits = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows = logits.softmax(1)
    mean = rows.mean(0)

    def entropy(law):
        return torch.special.entr(law).sum(-1)

    found = reverse_kl(logits, mean.expand(40, 6), 1.0).mean()
    torch.testing.assert_close(found, entropy(mean) - entropy(rows).mean(), rtol=0, atol=1e-9)


def test_the_capped_divergence_is_the_reverse_one_up_to_its_cap_and_stops_there():
    target = torch.tensor([[0.98, 0.01, 0.01]], dtype=torch.float64).expand(2, 3)
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 30.0, 0.0]], dtype=torch.float64)
    logits.requires_grad_()
    found = made({"name": "capped_reverse_kl"})(logits, target, 1.0)
    assert float(found[0]) == float(reverse_kl(logits, target, 1.0)[0])
    assert float(found[1]) == pytest.approx(math.log(3))
    found.sum().backward()
    assert logits.grad[0].abs().sum() > 0
    assert not logits.grad[1].any()


def test_without_weight_variety_is_cross_entropy(small):
    def learnt(*terms):
        host = Worker(small("training.optimiser=sgd"))
        host.perform(Assignment(0, 1, "learn", (Fit("private", terms, epochs=1),)))
        return host.state(0)["own"]

    variety = Soft("own", {"name": "capped_reverse_kl"}, weight=-0.0, per="class")
    one, other = learnt(CrossEntropy()), learnt(CrossEntropy(), variety)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name])
