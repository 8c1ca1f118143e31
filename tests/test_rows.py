"""Rows of a source: wherever one is named, with bytes, checks and the ledger after them."""

import math

import pytest
import texts
import torch
from lines import measured

from fedkd import FedkdError, registry, run
from fedkd.codec import Codec, decode, nbytes
from fedkd.data.language import PAD
from fedkd.engine.worker import Worker
from fedkd.privacy.guarantees import guarantee
from fedkd.strategies.base import DistillOptions, KnowledgeStrategy
from fedkd.training import item_counts, item_numbers, on_all_items
from fedkd.work import (
    Assignment,
    CrossEntropy,
    Evaluate,
    Feature,
    Fit,
    Predict,
    Represent,
    Rows,
    Select,
    Soft,
)

FEW = torch.tensor([7, 2, 30, 11])
GAUSSIAN = ("release.clip=10", "release.mechanism=gaussian", "release.scale=0.1")
NAME = "strategy.name=rows"


def method(index, **options):
    """Uniform fusion, registered as ``rows``, on those rows of the transfer set."""

    @registry.register("strategies", "rows")
    class OnRows(KnowledgeStrategy):
        Options = DistillOptions
        needs_transfer_set = sends_soft_labels = True

        def rows_of(self, round):
            return index[round - 1] if isinstance(index, list) else index

        def learn(self, round, client):
            on = Rows("transfer", self.rows_of(round))
            return [Fit(**options), Predict(on)]

        def fuse(self, round, replies):
            self.fused = replies.stack().mean(0)

        def receive(self, round, client):
            on = Rows("transfer", self.rows_of(round))
            return [self.distil(Soft(self.fused), on=on)]

    return OnRows


def do(worker, *steps, client=0):
    return worker.perform(Assignment(client, 1, "learn", steps))


# --- laws -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_all_rows_are_the_source_itself_bit_for_bit(cohort, small, tmp_path):
    how = (f"engine.cohort={cohort}", "student.width=0.2")
    method(torch.arange(80))
    rows, plain = (
        run(small(name, *how), tmp_path / name[-4:]) for name in (NAME, "strategy.name=uniform")
    )
    strip = {"bytes_down", "strategy"}
    for one, other in zip(measured(rows)[0], measured(plain)[0], strict=True):
        assert {k: v for k, v in one.items() if k not in strip} == {
            k: v for k, v in other.items() if k not in strip
        }
    assert measured(rows)[1] == measured(plain)[1]


def test_answers_about_rows_are_those_rows_of_the_answers(small):
    worker = Worker(small("student.models=['cnn2']"))
    whole, some = (do(worker, Predict(on)).values for on in ("transfer", Rows("transfer", FEW)))
    assert torch.allclose(some["soft_labels"], whole["soft_labels"][FEW], atol=1e-6)
    held = do(worker, Represent("fc1", Rows("private", FEW))).values["representation"]
    assert torch.equal(held["labels"], worker.samples(0, "private").labels[FEW])


def test_training_on_rows_is_training_on_these_samples_sent_along(small):
    losses = []
    for on in (Rows("private", FEW), None):
        worker = Worker(small())
        on = worker.samples(0, Rows("private", FEW)) if on is None else on
        do(worker, Fit(on, epochs=1))
        losses.append(do(worker, Evaluate("common", "own_")).metrics["own__loss"])
    # Both draw the four samples' order by keys of their own: with one batch there is none.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_term_draws_from_rows_of_another_source(small):
    targets = torch.full((4, 10), 0.1)
    on = Rows("transfer", FEW)
    worker = Worker(small())
    both = do(worker, Fit("private", (CrossEntropy(), Soft(targets, on=on)), epochs=1)).metrics
    worker = Worker(small())
    alone = do(worker, Fit("private", (CrossEntropy(),), epochs=1)).metrics
    assert both["train_loss"] > alone["train_loss"]


@pytest.mark.parametrize("part", ["step", "term"])
def test_a_cohort_trains_each_client_on_its_own_rows(part, small):
    index = [FEW, FEW.flip(0)[:3] + 1]
    targets = [torch.eye(10)[FEW % 10], torch.eye(10)[index[1] % 10]]

    def assignment(client):
        on = Rows("transfer", index[client])
        soft = Soft(targets[client], on=on if part == "term" else None)
        fit = Fit(on, (soft,)) if part == "step" else Fit("private", (CrossEntropy(), soft))
        return Assignment(client, 1, "learn", (fit, Predict(on)))

    found = []
    for cohort in ("on", "off"):
        worker = Worker(small(f"engine.cohort={cohort}", "student.width=0.2"))
        found.append(worker.perform_all([assignment(0), assignment(1)], lambda done: None))
    together, alone = found
    assert "cohort Fit transfer" in together[0].metrics or part == "term"
    for one, other in zip(together, alone, strict=True):
        assert one.metrics["train_loss"] == pytest.approx(other.metrics["train_loss"], rel=1e-3)
        labels = [reply.values["soft_labels"] for reply in (one, other)]
        assert torch.allclose(*labels, atol=1e-3)


@pytest.mark.parametrize("cohort", ["on", "off"])
def test_every_step_and_term_that_names_a_source_takes_rows(cohort, small, tmp_path):
    on = Rows("private", FEW)

    @registry.register("strategies", "rows")
    class Everywhere(KnowledgeStrategy):
        def learn(self, round, client):
            terms = (CrossEntropy(), CrossEntropy(0.5, on=on))
            return [
                Fit(terms=terms, epochs=1),
                Predict(on, per="class", key="means"),
                Represent("fc1", on),
                Represent("fc1", Rows("transfer", FEW), key="of_transfer"),
                Select(Rows("transfer", FEW)),
                Evaluate(Rows("common", FEW), key="few"),
            ]

        def fuse(self, round, replies):
            (self.prototypes, *_) = [sent["mean"] for sent in replies.parameters("means")]
            assert [len(sent["inputs"]) for sent in replies.parameters("of_transfer")] == [4] * 4
            assert replies.stack("selected").shape == (4, 4)

        def receive(self, round, client):
            width = 40
            targets = torch.zeros(10, width)
            return [Fit("transfer", (Feature(targets, "fc1", on=on),), epochs=1, key="pulled")]

    how = (NAME, f"engine.cohort={cohort}", "student.width=0.2", "rounds=1")
    done = run(small(*how), tmp_path / "run")
    assert done.rounds[0]["left_out"] == []
    assert {line["items"] for line in done.releases} == {10, 4}
    assert {line["on"] for line in done.releases} == {"private", "transfer"}
    assert all(c["pulled"] > 0 for c in done.clients if "pulled" in c)


# --- text: a row is a sample, targets are of its tokens -------------------------------------


def test_items_of_rows_are_the_tokens_of_these_samples():
    inputs = torch.tensor([[5, 6, PAD], [7, PAD, PAD], [8, 9, 1], [2, 3, PAD]])
    counts = item_counts(inputs)
    assert counts.tolist() == [2, 1, 3, 2]
    index = torch.tensor([2, 0])
    assert item_numbers(index, counts).tolist() == [3, 4, 5, 0, 1]
    assert torch.equal(
        inputs[inputs != PAD][item_numbers(index, counts)], torch.tensor([8, 9, 1, 5, 6])
    )
    whole = on_all_items(torch.eye(5), index, inputs)
    assert torch.equal(whole[item_numbers(index, counts)], torch.eye(5))
    assert whole[2].tolist() == pytest.approx([0.2] * 5)


def test_of_text_a_row_is_a_sample_and_targets_are_of_its_tokens(tmp_path):
    experiment = texts.small(tmp_path / "texts", NAME)
    size = len(Worker(experiment).data.transfer().inputs)
    made = method(torch.tensor([1, 0]) if size > 1 else torch.tensor([0]))
    done = run(experiment, tmp_path / "run")
    assert done.rounds[0]["left_out"] == []
    worker = Worker(experiment)
    transfer = worker.data.transfer().inputs
    whole = do(worker, Predict()).values["soft_labels"]
    index = torch.tensor([1, 0]) if size > 1 else torch.tensor([0])
    some = do(worker, Predict(Rows("transfer", index))).values["soft_labels"]
    assert torch.allclose(some, whole[item_numbers(index, item_counts(transfer))], atol=1e-5)
    assert made.needs_transfer_set


# --- on the way -----------------------------------------------------------------------------


def test_rows_survive_the_way_and_count_as_their_numbers():
    on = Rows("transfer", FEW)
    steps = (Predict(on), Fit(on, (Soft(torch.rand(4, 3)),)))
    told = decode(Codec().encode(Assignment(0, 1, "learn", steps))).steps
    assert told[0].on.source == "transfer"
    assert torch.equal(told[0].on.index, FEW)
    assert told[0].on == told[1].on  # the array travels once
    assert nbytes(steps) == 4 * 8 + 4 * 3 * 4


def test_bytes_are_the_rows_of_labels_and_their_numbers(small, tmp_path):
    method(FEW)
    done = run(small(NAME, "rounds=1"), tmp_path / "run")
    labels, numbers = 4 * 4 * 10 * 4, 4 * 4 * 8  # clients, rows, classes, bytes
    assert done.rounds[0]["bytes_up"] == labels
    assert done.rounds[0]["bytes_down"] == labels + 2 * numbers  # asked, then distilled on


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scarlet", "cfd"])
@pytest.mark.parametrize("engine", ["procs", "ray", "flower"])
def test_other_engines_agree_on_rows_and_deltas(engine, name, small, tmp_path):
    how = (f"strategy.name={name}", "rounds=3", "engine.cohort=off", "participation=0.75")
    inline = run(small(*how, "engine.name=inline"), tmp_path / "inline")
    other = run(small(*how, f"engine.name={engine}", "engine.workers=2"), tmp_path / "other")
    assert measured(other) == measured(inline)
    assert other.releases == inline.releases


# --- checks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "reason"),
    [
        (Rows("transfer", torch.tensor([0, 80])), "index holds 0 to 80; 'transfer' has samples 0"),
        (Rows("transfer", torch.tensor([-1, 3])), "index holds -1 to 3"),
        (Rows("transfer", torch.tensor([3, 5, 3])), "names a sample twice"),
        (Rows("transfer", torch.tensor([], dtype=torch.long)), "with one number at least"),
        (Rows("transfer", torch.tensor([1.0])), "a tensor of int64"),
        (Rows("transfr", torch.tensor([1])), r"'transfr' is not known \(did you mean 'transfer'"),
        (Rows("validation", torch.tensor([1])), "has no samples in this experiment"),
    ],
)
def test_rows_that_are_none_are_one_line_when_they_are_said(on, reason, small, tmp_path):
    @registry.register("strategies", "rows")
    class Wrong(KnowledgeStrategy):
        def learn(self, round, client):
            return [Predict(on)]

    with pytest.raises(FedkdError, match=reason):
        run(small(NAME), tmp_path / "run")


@pytest.mark.parametrize(
    ("fit", "reason"),
    [
        (Fit(Rows("transfer", FEW)), "the samples of rows of 'transfer' have no labels"),
        (Fit(Rows("transfer", FEW), (Soft(torch.full((5, 10), 0.1)),)), "5 targets for 4 rows"),
        (
            Fit(terms=(Soft(torch.full((80, 10), 0.1), on=Rows("transfer", FEW)),)),
            "80 targets for 4 rows",
        ),
    ],
)
def test_targets_are_held_to_the_rows(fit, reason, small, tmp_path):
    @registry.register("strategies", "rows")
    class Wrong(KnowledgeStrategy):
        def learn(self, round, client):
            return [fit]

    with pytest.raises(FedkdError, match=reason):
        run(small(NAME), tmp_path / "run")


def test_a_reply_with_another_number_of_rows_is_left_out(small, tmp_path, monkeypatch):
    perform = Worker.perform

    def spoiling(self, assignment):
        reply = perform(self, assignment)
        if assignment.client == 2 and "soft_labels" in reply.values:
            reply.values["soft_labels"] = reply.values["soft_labels"][:-1]
        return reply

    method(FEW)
    monkeypatch.setattr(Worker, "perform", spoiling)
    done = run(small(NAME, "rounds=1", "engine.cohort=off"), tmp_path / "run")
    (entry,) = done.rounds[0]["left_out"]
    assert (entry["client"], entry["step"]) == (2, "Predict")


# --- privacy --------------------------------------------------------------------------------


def epsilon(experiment, folder):
    done = run(experiment, folder)
    return guarantee(done.releases, experiment), done


def test_rows_that_were_not_answered_are_not_charged(small, tmp_path):
    method(FEW)
    some, done = epsilon(small(NAME, "rounds=1", *GAUSSIAN), tmp_path / "some")
    whole, _ = epsilon(small("strategy.name=uniform", "rounds=1", *GAUSSIAN), tmp_path / "whole")
    lines = [line for line in done.releases if line["step"] == "Predict"]
    assert [(line["on"], line["items"], line["fresh"]) for line in lines] == [
        ("transfer", 4, True)
    ] * 4
    assert some.rho == pytest.approx(whole.rho * 4 / 80)


def test_two_answers_about_rows_in_common_are_both_charged(small, tmp_path):
    method([FEW, torch.tensor([7, 2, 40])], epochs=0, min_steps=0)
    quiet = ("strategy.distill_epochs=0", *GAUSSIAN)
    both, done = epsilon(small(NAME, *quiet), tmp_path / "both")
    method(FEW, epochs=0, min_steps=0)
    once, again = epsilon(small(NAME, *quiet), tmp_path / "once")
    assert both.rho == pytest.approx(once.rho * 7 / 4)
    assert all(line["fresh"] for line in done.releases)
    # The student is the same, and so is the question: the answer is too, noise and all.
    assert [line["fresh"] for line in again.releases] == [True] * 4 + [False] * 4


def test_the_policy_of_an_item_is_its_own_whichever_rows_it_is_among(small):
    experiment = small("release.tau_max=8", "release.scores=rarity", "strategy.name=uniform")
    worker = Worker(experiment)
    whole, some = (do(worker, Predict(on)).values for on in ("transfer", Rows("transfer", FEW)))
    assert torch.allclose(some["soft_labels"], whole["soft_labels"][FEW], atol=1e-6)
    assert len({*worker.public.scores[FEW].tolist()}) > 1


def test_answers_about_private_rows_are_answers_about_private_samples(small, tmp_path):
    @registry.register("strategies", "rows")
    class Asks(KnowledgeStrategy):
        sends_soft_labels = True

        def learn(self, round, client):
            return [Fit(), Predict(Rows("private", FEW), key="private_labels")]

    with pytest.raises(FedkdError, match=r"rows of 'private' is not allowed with \[release\]"):
        run(small(NAME, *GAUSSIAN), tmp_path / "released")
    done = run(small(NAME, "rounds=1"), tmp_path / "run")
    assert {line["on"] for line in done.releases if line["step"] == "Predict"} == {"private"}
    private = small(NAME, "rounds=1", "training.dp.noise_multiplier=1")
    found, _ = epsilon(private, tmp_path / "dp")
    assert found.why == "none: answers about private samples leave the client"


def test_training_on_private_rows_is_private_training(small, tmp_path):
    on = Rows("private", FEW)
    method(FEW, on=on, epochs=1)
    private = small(NAME, "rounds=1", "training.dp.noise_multiplier=1")
    found, done = epsilon(private, tmp_path / "dp")
    assert found.unit == "record"
    assert found.epsilon is not None
    assert math.isfinite(found.epsilon)
    assert all("dp_training" in line for line in done.releases)
