"""Samples that are representations and enter the student above a cut."""

import copy

import pytest
import texts
import torch
from test_work import same

from fedkd import FedkdError, registry, run
from fedkd.codec import Codec, decode, nbytes
from fedkd.engine.worker import Worker
from fedkd.sections import StudentTable
from fedkd.server import ServerStudents
from fedkd.strategies.base import KnowledgeStrategy
from fedkd.students import build
from fedkd.work import (
    Assignment,
    Contrast,
    CrossEntropy,
    Evaluate,
    Feature,
    Fit,
    Hold,
    Peer,
    Predict,
    Represent,
    Samples,
    Select,
    Soft,
)

CUT, BELOW, ABOVE = "fc1", "fc1.", ("fc2", "head")
NARROW = "student.width=0.1"


@pytest.fixture
def worker(small):
    """A worker of the small experiment, with narrow students."""
    return lambda *overrides: Worker(small(NARROW, *overrides))


def do(worker, *steps, client=0):
    return worker.perform(Assignment(client, 1, "learn", steps))


def entering(worker, on="private", cut=CUT, client=0):
    """The client's representations at a cut, with their labels, as samples that enter there."""
    held = do(worker, Represent(cut, on), client=client).values["representation"]
    return Samples(held["inputs"], held["labels"], cut)


def state(worker, client=0, name="own"):
    return {key: value.clone() for key, value in worker.state(client)[name].items()}


def below(name):
    return name.startswith(BELOW)


# --- laws -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "cnn2"])
@pytest.mark.parametrize("cohort", ["on", "off"])
def test_training_on_representations_is_training_what_is_above_on_the_samples(
    model, cohort, worker
):
    """With one batch a step no order is drawn."""
    how = (f"student.models=['{model}']", f"engine.cohort={cohort}", "training.batch_size=64")
    cut = CUT if model == "mlp" else "conv1"
    above = ABOVE if model == "mlp" else ("conv2", "fc1", "head")
    one, other = worker(*how), worker(*how)
    samples = entering(one, cut=cut)
    first = do(one, Fit(samples, epochs=3)).metrics["train_loss"]
    second = do(other, Fit("private", epochs=3, part=above)).metrics["train_loss"]
    assert first == pytest.approx(second, rel=1e-4)
    for name, value in state(one).items():
        assert torch.allclose(value, state(other)[name], atol=1e-4), name


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("cohort", ["on", "off"])
def test_blocks_below_stay_as_they_are_to_the_bit(cohort, optimiser, worker):
    one = worker(
        *(f"engine.cohort={cohort}", f"training.optimiser={optimiser}"),
        "training.weight_decay=0.1",
    )
    samples, before = entering(one), state(one)
    do(one, Fit(samples, (CrossEntropy(), Soft(torch.full((60, 10), 0.1))), epochs=2))
    for name, value in state(one).items():
        assert torch.equal(value, before[name]) == below(name)


def test_statistics_below_stay_as_they_are_to_the_bit(worker):
    one = worker("student.models=['cnn2']", "student.norm=batch")
    samples, before = entering(one, cut="conv1"), state(one)
    do(one, Fit(samples, epochs=1))
    for name, value in state(one).items():
        assert torch.equal(value, before[name]) == name.startswith("conv1."), name


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_feature_maps_are_not_augmented_as_images_are(cohort, worker):
    found = []
    for augment in ("true", "false"):
        one = worker(
            *("student.models=['cnn2']", f"engine.cohort={cohort}"), f"data.augment={augment}"
        )
        do(one, Fit(entering(one, cut="conv1"), epochs=1))
        found.append(state(one))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_answers_on_representations_are_those_on_the_samples(worker):
    for cohort in ("on", "off"):
        one = worker(f"engine.cohort={cohort}")
        samples = entering(one)
        for output in ("probabilities", "logits"):
            asked = [Predict(on, output=output) for on in ("private", samples)]
            plain, entered = (do(one, ask).values["soft_labels"] for ask in asked)
            assert torch.allclose(plain, entered, atol=1e-5)
        means = [Predict(on, per="class") for on in ("private", samples)]
        plain, entered = (do(one, ask).values["soft_labels"]["mean"] for ask in means)
        assert torch.allclose(plain, entered, atol=1e-5)
        higher = [Represent("fc2", on) for on in ("private", samples)]
        plain, entered = (do(one, ask).values["representation"]["inputs"] for ask in higher)
        assert torch.allclose(plain, entered, atol=1e-5)
        plain, entered = (
            do(one, Evaluate(on, key="test")).metrics["test_loss"] for on in ("private", samples)
        )
        assert plain == pytest.approx(entered, rel=1e-5)


def test_a_term_on_representations_has_no_gradient_below(worker):
    """Beside a term of the private samples that has none either, as its weight is 0."""
    one = worker("training.optimiser=sgd", "training.lr=0.1")
    samples, before = entering(one), state(one)
    do(one, Fit("private", (CrossEntropy(0.0), CrossEntropy(on=samples))))
    for name, value in state(one).items():
        assert torch.equal(value, before[name]) == below(name)


def test_terms_and_steps_may_take_samples_of_images_too(worker):
    one, other = worker("training.batch_size=64"), worker("training.batch_size=64")
    sent = one.samples(0, "private")
    do(one, Fit("private", (CrossEntropy(0.5), CrossEntropy(0.5, on=sent))))
    do(other, Fit())
    for name, value in state(one).items():
        assert torch.allclose(value, state(other)[name], atol=1e-4)


@pytest.mark.parametrize("where", ["step", "term", "terms"])
@pytest.mark.parametrize("model", ["mlp", "cnn2"])
def test_a_cohort_agrees_with_a_loop(model, where, worker):
    cut = CUT if model == "mlp" else "conv1"

    def assignment(one, client):
        samples = entering(one, cut=cut, client=client)
        samples = Samples(samples.inputs[: 30 + client], samples.labels[: 30 + client], cut)
        soft = Soft(torch.full((30 + client, 10), 0.1), on=samples)
        if where == "step":
            fit = Fit(samples, (CrossEntropy(), Feature(torch.zeros(10, 20), "fc2")))
            fit = fit if model == "mlp" else Fit(samples)
        elif where == "term":
            fit = Fit(terms=(CrossEntropy(), CrossEntropy(0.3, on=samples)))
        else:
            fit = Fit(terms=(CrossEntropy(), CrossEntropy(0.3, on=samples), soft))
        return Assignment(client, 1, "learn", (fit, Predict("transfer"), Predict(samples, key="s")))

    found = []
    for cohort in ("on", "off"):
        one = worker(f"engine.cohort={cohort}", f"student.models=['{model}']")
        work = [assignment(one, client) for client in (0, 1, 2)]
        found.append(one.perform_all(work, lambda done: None))
    together, alone = found
    assert any(name.startswith("cohort Fit") for name in together[0].metrics)
    for one, other in zip(together, alone, strict=True):
        assert one.metrics["train_loss"] == pytest.approx(other.metrics["train_loss"], rel=1e-3)
        for key in ("soft_labels", "s"):
            assert torch.allclose(one.values[key], other.values[key], atol=1e-3)


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_students_that_learn_together_each_take_them(cohort, worker):
    one, other = worker(f"engine.cohort={cohort}"), worker(f"engine.cohort={cohort}")
    for each in (one, other):
        do(each, Hold("twin"))
    samples = entering(one)
    fit = Fit(samples, together=(Peer("twin", (Soft("own", on=None),), "twin_loss"),))
    before = state(one, name="twin")
    do(one, fit)
    do(other, Fit(samples))
    for name, value in state(one).items():
        assert torch.allclose(value, state(other)[name], atol=1e-5)
    # The twin starts as its teacher is: the first batch teaches nothing, the next ones do.
    for name, value in state(one, name="twin").items():
        assert torch.equal(value, before[name]) == below(name)


def test_another_students_answers_are_on_representations_too(worker):
    one = worker()
    do(one, Hold("teacher"))
    samples = entering(one)
    done = do(one, Fit(samples, (Soft("teacher"), Contrast("teacher", "own", "fc2"))))
    assert done.metrics["train_loss"] > 0


# --- on the way -----------------------------------------------------------------------------


def test_representations_travel_with_their_place_and_their_bytes_count_once():
    samples = Samples(torch.randn(5, 20), torch.arange(5), CUT)
    fit = Fit(terms=(CrossEntropy(on=samples), Soft(torch.full((5, 10), 0.1), on=samples)))
    there = Assignment(0, 1, "learn", (fit, Predict(samples)))
    records = Codec().encode(there)
    assert len(records.array_records) == 3  # inputs, labels, targets
    back = decode(copy.deepcopy(records))
    assert same(back, there)
    first, second = (term.on for term in back.steps[0].terms)
    assert first == second == back.steps[1].on
    assert first.cut == CUT
    assert nbytes(there.steps) == 5 * 20 * 4 + 5 * 8 + 5 * 10 * 4


def test_samples_are_equal_where_they_hold_the_same_tensors_at_the_same_place():
    inputs, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    assert Samples(inputs, labels, CUT) == Samples(inputs, labels, CUT)
    assert Samples(inputs, labels, CUT) != Samples(inputs, labels)
    assert Samples(inputs, labels) != Samples(inputs.clone(), labels)


# --- around privacy -------------------------------------------------------------------------


def test_dp_sgd_covers_the_private_samples_and_adds_these_gradients_as_they_are(worker):
    """With private gradients clipped to nothing, and next to no noise."""
    dp = ("training.dp.noise_multiplier=0.001", "training.dp.max_grad_norm=1e-6")
    how = ("training.optimiser=sgd", "training.lr=0.1", "training.batch_size=64")
    one, other = worker(*dp, *how), worker(*how)
    samples = entering(one)
    done = do(one, Fit(terms=(CrossEntropy(), CrossEntropy(on=samples)), epochs=1))
    assert done.metrics["dp_steps"] == 1
    do(other, Fit(samples, epochs=1))
    for name, value in state(one).items():
        assert torch.allclose(value, state(other)[name], atol=1e-5), name


def test_release_is_for_answers_on_them_too(worker):
    one = worker("release.mechanism=argmax")
    reply = do(one, Predict(entering(worker())))
    assert set(reply.values["soft_labels"].unique().tolist()) == {0.0, 1.0}
    assert reply.releases[0]["mechanism"] == "argmax"


# --- refused in one line --------------------------------------------------------------------


THERE = Samples(torch.zeros(4, 20), torch.zeros(4, dtype=torch.long), CUT)
UNKNOWN = Samples(torch.zeros(4, 20), torch.zeros(4, dtype=torch.long), "fc7")
OTHER = Samples(torch.zeros(4, 21), torch.zeros(4, dtype=torch.long), CUT)
BARE = Samples(torch.zeros(4, 20), None, CUT)
NOBODY = Samples(torch.zeros(0, 20), torch.zeros(0, dtype=torch.long), CUT)


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        ([Fit(UNKNOWN)], r"cut 'fc7' is not a cut of this student.*its cuts, .*: fc1, fc2"),
        ([Predict(UNKNOWN)], "cut 'fc7' is not a cut"),
        ([Evaluate(UNKNOWN, key="e")], "cut 'fc7' is not a cut"),
        ([Fit(terms=(CrossEntropy(on=UNKNOWN),))], "CrossEntropy: cut 'fc7' is not a cut"),
        ([Fit(OTHER)], r"Samples: inputs = .*\(4, 21\).* with cut = 'fc1'; .* there are \(K, 20\)"),
        ([Fit(terms=(CrossEntropy(on=OTHER),))], r"CrossEntropy: Samples: inputs = .*\(K, 20\)"),
        ([Predict(OTHER)], r"representations there are \(K, 20\)"),
        ([Fit(terms=(CrossEntropy(on=BARE),))], "samples that enter above 'fc1' have no labels"),
        ([Fit(terms=(CrossEntropy(on=NOBODY),))], "one sample at least"),
        ([Fit(THERE, part=("fc1",))], "nothing that learns by this term lies above"),
        (
            [Fit(THERE, (Soft(torch.full((4, 10), 0.1), reach=("fc1",)),))],
            "Soft: samples that enter above 'fc1' are not allowed here",
        ),
        (
            [Fit(THERE, (Feature(torch.zeros(10, 20), "fc1"),))],
            "Feature: cut = 'fc1' is not allowed with samples that enter above 'fc1'",
        ),
        ([Fit(THERE, (Contrast("own", "own", "fc1"),))], "Contrast: cut = 'fc1' is not allowed"),
        ([Represent("fc1", THERE)], "Represent: cut = 'fc1' is not allowed with samples that"),
        ([Select(THERE)], r"Select: on = Samples\(4 inputs, cut='fc1'\) is not allowed"),
        ([Fit(terms=(Soft(torch.zeros(3, 10), on=THERE),))], "3 targets for 4 rows"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_said(steps, line, small, tmp_path):
    @registry.register("strategies", "enters")
    class Enters(KnowledgeStrategy):
        def learn(self, round, client):
            return steps

    with pytest.raises(FedkdError, match=line):
        run(small("strategy.name=enters", NARROW), tmp_path / "run")


def test_text_is_refused_in_one_line(tmp_path):
    @registry.register("strategies", "enters")
    class Enters(KnowledgeStrategy):
        def learn(self, round, client):
            return [Fit(terms=(CrossEntropy(on=THERE),))]

    with pytest.raises(FedkdError, match=r"cut = 'fc1' is not allowed with data\.dataset = "):
        run(texts.small(tmp_path / "texts", "strategy.name=enters"), tmp_path / "run")


def test_a_student_on_the_server_has_only_the_blocks_above(small):
    server = ServerStudents(small())
    server.add("head", lambda: build("mlp", (6,), 4, StudentTable(width=0.1), 0)[1:])
    with pytest.raises(FedkdError, match="cut = 'fc1' is not allowed for a student on the server"):
        server.fit("head", 1, THERE, [CrossEntropy()], 1.0)
