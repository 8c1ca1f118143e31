"""``engine.remember``: training that was done before is taken from disk, to the bit."""

from collections import Counter
from types import ModuleType

import nasty
import pytest
import texts
import torch
from lines import measured
from torch import nn

from fedkd import run
from fedkd.digests import source
from fedkd.engine import session as module
from fedkd.engine.worker import Worker
from fedkd.lab import measure
from fedkd.work import Assignment, CrossEntropy, Fit, Proximal, Soft

REMEMBER = "engine.remember=true"
SECRETS = ("canary.secrets=1", "canary.repeats=[8]", "canary.length=2", "canary.public=exact")
PRIVATE = ["fedavg", "knfu", "local", "swing", "uniform"]  # train on private labels alone


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """What is remembered is remembered for one test."""
    folder = tmp_path / "remembered"
    monkeypatch.setenv("FEDKD_CACHE", str(folder))
    return folder


@pytest.fixture
def small(small):
    """Clients one by one, as those are that remember."""
    return lambda *overrides: small("engine.cohort=off", *overrides)


@pytest.fixture
def trained(monkeypatch):
    """How often students were trained on private labels, and otherwise."""
    found = Counter()
    fit = module.fit_together

    def counting(trainees, *given, **how):
        terms = [term for trainee in trainees for term in trainee.terms]
        plain = all(term == CrossEntropy(term.weight) for term in terms)
        found["plain" if plain else "other"] += 1
        return fit(trainees, *given, **how)

    monkeypatch.setattr(module, "fit_together", counting)
    return found


@pytest.fixture
def forbidden(monkeypatch):
    """A function after which nobody may train on private labels, nor measure exposure."""

    def forbid():
        fit = module.fit_together

        def refuse(trainees, *given, **how):
            terms = [term for trainee in trainees for term in trainee.terms]
            assert not all(term == CrossEntropy(term.weight) for term in terms), "trained again"
            return fit(trainees, *given, **how)

        def never(*given):
            raise AssertionError("measured again")

        monkeypatch.setattr(module, "fit_together", refuse)
        monkeypatch.setattr(measure, "by_student", never)

    return forbid


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIVATE)
def test_a_run_that_remembers_has_the_numbers_of_one_that_does_not(
    name, small, tmp_path, forbidden
):
    overrides = [f"strategy.name={name}", *SECRETS, "canary.every=1"]
    plain = run(small(*overrides), tmp_path / "plain")
    first = run(small(*overrides, REMEMBER), tmp_path / "first")
    forbidden()
    second = run(small(*overrides, REMEMBER), tmp_path / "second")
    for done in (first, second):
        assert measured(done) == measured(plain)
        assert done.exposures == plain.exposures
        assert done.releases == plain.releases


def test_it_is_so_on_text_too(tmp_path, forbidden):
    overrides = ["strategy.name=swing", "rounds=2", "canary.secrets=1", "canary.public=exact"]
    plain, first = (
        run(texts.small(tmp_path / "texts", *overrides, *more), tmp_path / str(len(more)))
        for more in ([], [REMEMBER])
    )
    forbidden()
    second = run(texts.small(tmp_path / "texts", *overrides, REMEMBER), tmp_path / "second")
    assert measured(first) == measured(second) == measured(plain)
    assert first.exposures == second.exposures == plain.exposures


def test_another_arm_takes_the_teachers_that_this_one_trained(small, tmp_path, forbidden):
    """What a policy changes comes after training, where nothing comes back from the server."""
    base = ["strategy.name=swing", REMEMBER]
    plain = run(small(*base), tmp_path / "plain")
    forbidden()
    arm = run(small(*base, "release.mechanism=argmax"), tmp_path / "arm")
    for one, other in zip(plain.rounds, arm.rounds, strict=True):
        assert one["local"] == other["local"]
        assert one["own_loss_mean"] != other["own_loss_mean"]


def test_private_training_costs_what_it_cost(small, tmp_path, forbidden):
    """The steps of DP-SGD that were not done again are accounted all the same."""
    dp = ["training.dp.noise_multiplier=1", "training.local_epochs=0.5"]
    plain, first = (
        run(small("strategy.name=knfu", *dp, *more), tmp_path / str(len(more)))
        for more in ([], [REMEMBER])
    )
    forbidden()
    second = run(small("strategy.name=knfu", *dp, REMEMBER), tmp_path / "second")
    assert measured(first) == measured(second) == measured(plain)
    assert first.releases == second.releases == plain.releases
    for entry in second.releases:
        ((rate, steps),) = entry["dp_training"]
        assert rate == pytest.approx(1 / 4, rel=0.1)  # batches of 16 out of 60
        assert steps == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        "seed=1",
        "training.lr=0.01",
        "training.batch_size=8",
        "training.local_epochs=1",
        "training.min_steps=20",
        "training.optimiser=sgd",
        "training.dp.noise_multiplier=1",
        "data.samples_per_client=50",
        "data.alpha=0.1",
        "student.models=['cnn2']",
        "student.width=0.5",
        "student.init=same",
        "canary.secrets=1",
    ],
)
def test_another_start_other_data_and_other_settings_are_trained_anew(
    other, small, tmp_path, trained
):
    base = ["strategy.name=local", REMEMBER, "rounds=1", "student.norm=none"]
    run(small(*base), tmp_path / "one")
    assert trained == {"plain": 4}
    run(small(*base), tmp_path / "again")
    assert trained == {"plain": 4}
    run(small(*base, other), tmp_path / "other")
    assert trained == {"plain": 8}


class Halved(nn.Module):
    def forward(self, inputs):
        return inputs / 2


class Doubled(nn.Module):
    def forward(self, inputs):
        return inputs * 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.5)),
        (Halved, Doubled),
        (nn.ReLU, None),
    ],
)
def test_another_student_with_the_same_weights_is_trained_anew(one, other, small, trained):
    def student():
        return nasty.between(one())

    def another():
        return nasty.between(other()) if other else nasty.frozen_body()

    states = []
    for factory in (student, student, another):
        nasty.add(factory)
        worker = Worker(small(REMEMBER, "student.models=['own']"))
        worker.perform(Assignment(0, 1, "learn", (Fit(),)))
        states.append(worker.state(0)["own"]["1.weight"])
    assert trained == {"plain": 2}
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_augmented_samples_are_others(small, tmp_path, trained):
    base = ["strategy.name=local", REMEMBER, "rounds=1", "student.models=['cnn2']"]
    plain, augmented, again = (
        run(small(*base, *more), tmp_path / str(number))
        for number, more in enumerate(([], ["data.augment=true"], ["data.augment=true"]))
    )
    assert trained == {"plain": 8}
    assert measured(plain) != measured(augmented) == measured(again)


@pytest.mark.parametrize(
    "terms",
    [
        (CrossEntropy(), Proximal(0.1)),
        (CrossEntropy(on="private"),),
        (Soft("own", temperature=3.0),),
    ],
    ids=["proximal", "on another source", "soft"],
)
def test_other_terms_are_always_trained(terms, small, trained):
    for _ in range(2):
        worker = Worker(small(REMEMBER))
        worker.perform(Assignment(0, 1, "learn", (Fit(terms=terms),)))
    assert trained == {"other": 2}


def test_two_weights_of_the_labels_are_two_trainings(small, trained):
    steps = [
        Fit(),
        Fit(terms=(CrossEntropy(2.0),)),
        Fit(part=("head",)),
        Fit(epochs=1),
        Fit(lr=0.1),
    ]
    for step in (*steps, *steps):
        Worker(small(REMEMBER)).perform(Assignment(0, 1, "learn", (step,)))
    assert trained == {"plain": 5}


def test_the_same_step_in_another_round_or_phase_or_again_is_another_training(small, trained):
    def state(round, phase, *steps):
        worker = Worker(small(REMEMBER))
        worker.perform(Assignment(0, round, phase, steps))
        return worker.state(0)["own"]["head.weight"]

    first = state(1, "learn", Fit())
    others = [state(2, "learn", Fit()), state(1, "receive", Fit()), state(1, "learn", Fit(), Fit())]
    assert not any(torch.equal(first, other) for other in others)
    assert trained == {"plain": 4}  # the last one's first is remembered
    assert torch.equal(state(1, "learn", Fit()), first)
    assert trained == {"plain": 4}


@pytest.mark.slow
def test_methods_with_terms_of_their_own_are_as_ever(small, tmp_path, trained):
    for name in ("fedprox", "fml", "ditto", "feddistill"):
        overrides = [f"strategy.name={name}", "rounds=2"]
        plain = run(small(*overrides), tmp_path / name)
        before = trained["other"]
        for number in range(2):
            done = run(small(*overrides, REMEMBER), tmp_path / f"{name}{number}")
            assert measured(done) == measured(plain)
        assert trained["other"] == 3 * before
        trained.clear()


def test_without_the_setting_nothing_is_kept(small, tmp_path, trained, kept):
    for number in range(2):
        run(small("strategy.name=local", "rounds=1", *SECRETS), tmp_path / str(number))
    assert trained == {"plain": 8}
    assert not (kept / "fits").exists()
    assert not (kept / "exposures").exists()


def test_without_a_place_to_keep_it_is_trained_each_time(small, tmp_path, trained, monkeypatch):
    monkeypatch.setenv("FEDKD_CACHE", "")
    lines = [
        measured(run(small("strategy.name=local", "rounds=1", *more), tmp_path / str(len(more))))
        for more in ([], [REMEMBER])
    ]
    assert lines[0] == lines[1]
    assert trained == {"plain": 8}


def test_a_spoilt_file_is_trained_anew(small, tmp_path, trained, kept):
    base = ["strategy.name=local", "rounds=1", REMEMBER]
    first = measured(run(small(*base), tmp_path / "first"))
    for file in (kept / "fits").glob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert measured(run(small(*base), tmp_path / "second")) == first
    assert trained == {"plain": 8}


def test_any_module_of_the_training_loop_that_changes_makes_it_another(tmp_path):
    package = ModuleType("loop")
    package.__file__, package.__path__ = str(tmp_path / "__init__.py"), [str(tmp_path)]
    (tmp_path / "__init__.py").touch()
    (tmp_path / "losses.py").write_text("weight = 1")
    before = source(package)
    (tmp_path / "losses.py").write_text("weight = 2")
    assert source(package) != before


def test_it_is_no_other_experiment(small):
    assert small(REMEMBER).digest() == small().digest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("canary.secrets=1", "canary.secrets=2"),
        ("canary.estimator=exact", "canary.estimator=interpolation"),
        ("canary.kind=labels", "canary.kind=pixels"),
        ("data.clients=3", "data.clients=4"),
    ],
)
def test_the_same_student_is_measured_anew_for_other_secrets_or_another_way(
    one, other, small, tmp_path
):
    still = ["strategy.name=local", "training.local_epochs=0", "student.init=same", "rounds=1"]
    for number, more in enumerate((one, other)):
        overrides = [*still, *SECRETS, more]
        plain = run(small(*overrides), tmp_path / f"plain{number}")
        done = run(small(*overrides, REMEMBER), tmp_path / f"kept{number}")
        assert done.exposures == plain.exposures
