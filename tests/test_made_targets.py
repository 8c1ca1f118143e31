"""``[distill]``: which targets a client learns from, in every method that distils."""

import pytest
import torch
from lines import measured

from fedkd import Experiment, FedkdError, registry, run
from fedkd.data.federated import load
from fedkd.distillation.targets import within
from fedkd.effects import without_effect
from fedkd.engine.worker import Worker
from fedkd.mixtures import Mean, Mixture, Surest
from fedkd.strategies.feddistill import FedDistill
from fedkd.strategies.uniform import Uniform
from fedkd.training import class_means, predict
from fedkd.training.made_targets import mixed
from fedkd.work import Assignment, CrossEntropy, Fit, Soft

DISTILS = sorted(
    name
    for name in registry.names("strategies")
    if "distill_epochs" in registry.load("strategies", name).Options.model_fields
)


def test_who_distils_is_known():
    assert {"fedmd", "dsfl", "cfd", "scarlet", "knfu", "uniform"} <= {*DISTILS}


def test_rows_within_two_bounds():
    labels = torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.0, 1.0]])
    assert within(labels, 0.6, 0.9)[:, 0].isnan().tolist() == [True, False, True]
    assert torch.equal(within(labels, 0.5, 1.0), labels)  # what is at a bound is within it
    logits = torch.tensor([[0.0, 0.0], [0.0, 9.0]])
    assert within(logits, 0.6, 1.0, logits.softmax(1))[:, 0].isnan().tolist() == [True, False]


def test_bounds_that_leave_nothing_out_change_nothing(small):
    few = ["strategy.name=uniform", "rounds=1"]
    plain = run(small(*few), "plain")
    within_all = run(small(*few, "distill.least_confidence=0.05"), "band")
    assert measured(within_all) == measured(plain)  # of ten classes one has 0.1 at least


@pytest.mark.parametrize("method", ["uniform", "fedmd", "cfd"])
def test_who_is_left_without_targets_learns_nothing(small, method):
    few = [f"strategy.name={method}", "rounds=1", "student.norm=none"]
    still = run(small(*few, "distill.most_confidence=0.01"), "still").rounds[0]
    assert still["own_accuracy_mean"] == still["local"]["own_accuracy_mean"]
    assert still["own_loss_mean"] == pytest.approx(still["local"]["own_loss_mean"], abs=1e-6)


def test_a_client_that_is_never_less_sure_keeps_its_own_word(small):
    """Clients get the uniform law, and stay where they are; with what is given they do not."""

    @registry.register("strategies", "flat_here")
    class Flat(Uniform):
        def fuse(self, round, replies):
            super().fuse(round, replies)
            self.fused = torch.full_like(self.fused, 0.1)

    few = ["strategy.name=flat_here", "rounds=1", "training.optimiser=sgd", "training.lr=0.1"]
    still = run(small(*few, "distill.targets=surest"), "surest").rounds[0]
    assert still["own_loss_mean"] == pytest.approx(still["local"]["own_loss_mean"], abs=1e-4)
    moved = run(small(*few), "given").rounds[0]
    assert abs(moved["own_loss_mean"] - moved["local"]["own_loss_mean"]) > 1e-3


def test_a_server_that_is_always_surer_is_learned_from_as_ever(small):
    @registry.register("strategies", "sharp_here")
    class Sharp(Uniform):
        def fuse(self, round, replies):
            super().fuse(round, replies)
            self.fused = torch.eye(10)[self.fused.argmax(1)]

    few = ["strategy.name=sharp_here", "rounds=1"]
    plain = run(small(*few), "given")
    surest = run(small(*few, "distill.targets=surest"), "surest")
    assert measured(plain) == measured(surest)


def test_one_line_of_the_surest_beside_what_the_server_leaves_out(small):
    rows = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    method = Uniform(small("strategy.name=uniform", "distill.targets=surest"), *_given(small))
    (term,) = method.distil(Soft(rows)).terms
    assert term.targets == Mixture(("own", rows), Surest(every=True))


def _given(small):
    data = load(small())
    return data.task, data.label_counts(), data.transfer().inputs


@pytest.mark.parametrize("method", DISTILS)
def test_every_method_that_distils_has_its_targets_chosen(small, method):
    """Two rounds, each by stacks and one by one, which agree; the bounds leave out some rows."""
    few = [
        f"strategy.name={method}",
        "rounds=2",
        "data.clients=3",
        "distill.targets=surest",
        "distill.least_confidence=0.12",
        "distill.most_confidence=0.999",
    ]
    one, other = (run(small(*few, f"engine.cohort={how}"), how) for how in ("off", "on"))
    for mine, theirs in zip(one.rounds, other.rounds, strict=True):
        assert mine["own_loss_mean"] == pytest.approx(theirs["own_loss_mean"], abs=1e-3)


def test_they_are_refused_or_told_of_where_nothing_comes_of_them(small):
    with pytest.raises(FedkdError, match=r"least_confidence = 0\.9 is not allowed with"):
        Experiment.from_dict({"distill": {"least_confidence": 0.9, "most_confidence": 0.5}})
    lines = without_effect(small("strategy.name=fedavg", "distill.targets=surest"))
    assert any(line.startswith("distill.targets = ") for line in lines)
    few = ["strategy.name=uniform", "strategy.distill_epochs=0", "distill.least_confidence=0.2"]
    assert any(line.startswith("distill.least") for line in without_effect(small(*few)))


def test_federated_distillation_keeps_the_mean_of_a_class_that_the_client_is_surer_of(small):
    few = ["strategy.name=feddistill", "strategy.targets=surest", "rounds=2"]
    one, other = (run(small(*few, f"engine.cohort={how}"), how) for how in ("off", "on"))
    assert one.rounds[1]["own_loss_mean"] == pytest.approx(
        other.rounds[1]["own_loss_mean"], abs=1e-3
    )
    given = run(small(*few[:1], "rounds=2"), "given")
    assert given.rounds[0]["own_loss_mean"] == one.rounds[0]["own_loss_mean"]
    assert given.rounds[1]["own_loss_mean"] != one.rounds[1]["own_loss_mean"]


# --- what a student says, as means a class ----------------------------------------------------


def test_the_name_of_a_student_per_class_is_its_means_as_the_step_begins(small):
    host = Worker(small("training.optimiser=sgd"))
    samples = host.samples(0, "private")
    rows = predict(host.module(0, "own"), samples.inputs, 0).clone()
    means = class_means((rows / 2).softmax(1), samples.labels, 10)
    given = means["mean"].masked_fill(means["count"][:, None] == 0, torch.nan)
    found = [
        _learnt(small, Soft(targets, temperature=2.0, per="class")) for targets in ("own", given)
    ]
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


def test_a_mixture_per_class_has_rows_of_classes(small):
    flat = torch.full((10, 10), 0.1)
    mixture = Mixture(("own", flat), Mean((0.0, 1.0)))
    found = [_learnt(small, Soft(targets, per="class")) for targets in (mixture, flat)]
    there = Worker(small()).samples(0, "private").labels.bincount(minlength=10) > 0
    assert there.any()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


def _learnt(small, *terms):
    host = Worker(small("training.optimiser=sgd", "training.lr=0.1"))
    host.perform(Assignment(0, 1, "learn", (Fit("private", terms, epochs=1),)))
    return {name: value.clone() for name, value in host.state(0)["own"].items()}


def test_logits_are_mixed_and_judged_by_their_softmax():
    one, other = torch.tensor([[9.0, 8.9], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.2, 0.3]])
    found = mixed([one, other], Surest(), judged=[one.softmax(1), other.softmax(1)])
    assert torch.equal(found, torch.stack([other[0], one[1]]))


def test_of_every_part_none_may_lack_a_row():
    lacking = torch.tensor([[torch.nan, torch.nan], [0.4, 0.6]])
    given = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    found = mixed([given, lacking], Surest(every=True))
    assert found[0].isnan().all()
    assert torch.equal(found[1], lacking[1])


def test_under_dp_sgd_means_of_private_samples_are_refused(small):
    @registry.register("strategies", "varied_here")
    class Varied(FedDistill):
        def learn(self, round, client):
            return [Fit(terms=(CrossEntropy(), Soft("own", per="class")))]

        def fuse(self, round, replies):
            pass

    noisy = ("strategy.name=varied_here", "training.dp.noise_multiplier=1", "rounds=1")
    with pytest.raises(FedkdError, match="per class on private samples is not allowed"):
        run(small(*noisy), "noisy")


@pytest.mark.parametrize(
    "words", ["strategy.name=cfd strategy.bits_down=4", "strategy.name=scarlet"]
)
def test_encoded_targets_are_as_few_bytes_whichever_is_surest(small, words):
    few = [*words.split(), "rounds=1"]
    given = run(small(*few), "given").rounds[0]
    surest = run(small(*few, "distill.targets=surest"), "surest").rounds[0]
    assert surest["bytes_down"] == given["bytes_down"]
    assert surest["own_loss_mean"] != given["own_loss_mean"]
