"""The ledger says what left: its total is that of all answers that were sent, composed by hand."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lines import SMALL

from fedkd import FedkdError, registry, run
from fedkd.codec import decode
from fedkd.data.federated import load
from fedkd.engine.inline import InlineGrid
from fedkd.engine.worker import Worker
from fedkd.experiment import Experiment
from fedkd.privacy.epsilons import gaussian_epsilon, zcdp_epsilon
from fedkd.privacy.guarantees import guarantee
from fedkd.strategies.base import KnowledgeStrategy
from fedkd.work import (
    Fit,
    Hold,
    Load,
    Predict,
    Reply,
    Represent,
    Samples,
    Select,
    Share,
)

TINY = (
    *("data.clients=3", "data.samples_per_client=6", "data.transfer.size=5"),
    *("data.test.common=10", "student.width=0.1", "data.partition=iid", "engine.cohort=off"),
    *("training.local_epochs=1", "evaluate_every=100"),
)
CLASSES, CLIENTS = 10, 3
GAUSSIAN = ("release.mechanism=gaussian", "release.scale=0.5", "release.clip=4")


class Scripted(KnowledgeStrategy):
    """Asks for what a script says: of each round, who takes part and the steps of both phases."""

    sends_soft_labels = True
    script = ()

    def _now(self, round):
        return self.script[round - 1]

    def select(self, round):
        return sorted(self._now(round)[0])

    def learn(self, round, client):
        return self._now(round)[1]

    def receive(self, round, client):
        return self._now(round)[2]


class Listening(InlineGrid):
    """Keeps every assignment and its reply, in order."""

    def __init__(self, worker):
        super().__init__(worker)
        self.heard = []

    def send_and_receive(self, messages, *, timeout=None):
        asked = list(messages)
        answers = list(super().send_and_receive(asked, timeout=timeout))
        if asked and asked[0].metadata.message_type != "query":
            pairs = [(decode(a.content), decode(b.content)) for a, b in zip(asked, answers)]
            self.heard += [(assignment, reply) for assignment, reply in pairs if assignment.steps]
        return answers


DATA = {}


def played(script, *overrides, resume_after=0, method=Scripted):
    """Everything sent under a script, what the ledger says of it, and the experiment."""
    experiment = Experiment.from_toml(SMALL, (*TINY, f"rounds={len(script)}", *overrides))
    if not DATA:
        DATA["digits"] = load(experiment)
    data = DATA["digits"]
    kind = type("Played", (method,), {"script": script})

    def made(worker):
        counts, transfer = data.label_counts(), data.transfer().inputs
        return kind(experiment, data.task, counts, transfer, public=worker.public)

    worker = Worker(experiment, data)
    grid, lines = Listening(worker), []
    strategy = made(worker)

    def on_round(line, details):
        lines.extend(details["releases"])

    if resume_after:
        strategy.start(grid, num_rounds=resume_after, on_round=on_round)
        resumed = made(worker)
        resumed.restore(strategy.state())
        resumed.start(grid, first_round=resume_after + 1, on_round=on_round)
    else:
        strategy.start(grid, on_round=on_round)
    return grid.heard, lines, experiment


# --- by hand --------------------------------------------------------------------------------


def vertices(ratio):
    """Probabilities of k classes at the top and of the others, for k = 1 to all."""
    top = 1 / (np.arange(1, CLASSES + 1) + np.arange(CLASSES - 1, -1, -1) * math.exp(-ratio))
    return top, top * math.exp(-ratio)


def price(table, tau):
    """Rho of Gaussian noise, rho of all else, and pure epsilon, of one item at temperature tau."""
    if table.clip is None:
        far1, far2 = 2.0, math.sqrt(2)
        most, least = 1.0, 0.0
    else:
        high, low = vertices(table.clip / tau)
        far1 = far2 = 0.0
        for k in range(1, CLASSES):
            for m in range(1, CLASSES - k + 1):
                p, q = (high[k - 1], low[k - 1]), (high[m - 1], low[m - 1])
                gaps = [p[0] - q[1]] * k + [p[1] - q[0]] * m + [p[1] - q[1]] * (CLASSES - k - m)
                far1 = max(far1, np.abs(gaps).sum())
                far2 = max(far2, np.linalg.norm(gaps))
        most, least = high[0], low[CLASSES - 2]
    keep = 1 - table.mix
    if table.mechanism == "gaussian":
        return (keep * far2 / table.scale) ** 2 / 2, 0.0, 0.0
    if table.mechanism == "laplace":
        pure = keep * far1 / table.scale
        return 0.0, 2 * (pure / 2 + math.exp(-pure / 2) - 1), pure
    most, least = (keep * p + table.mix / CLASSES for p in (most, least))
    if not least:
        return None
    pure = math.log(most / least)
    width = 2 * pure if table.clip is None else min(2 * pure, 2 * table.clip / tau)
    rho = min(width**2 / 8, pure * math.tanh(pure / 2))
    return 0.0, table.draws * rho, table.draws * pure


def epsilon_by_hand(heard, experiment):
    """Of the client that is worst off: None if anything is not bounded, or is private as it is."""
    table = experiment.release
    state, seen, sums = defaultdict(int), {}, defaultdict(lambda: [0.0, 0.0, 0.0])
    nothing = False
    for assignment, reply in heard:
        client = assignment.client
        for step in assignment.steps:
            if isinstance(step, Load | Hold):
                state[client, step.student] += 1
            if isinstance(step, Fit):
                epochs = experiment.training.local_epochs if step.epochs is None else step.epochs
                state[client, step.student] += epochs > 0
            if not isinstance(step, Predict | Represent | Select | Share):
                continue
            own = isinstance(step, Predict) and step.on in ("private", "own", "validation")
            if own or not isinstance(step, Predict) or step.per == "class":
                nothing = True
                continue
            array = reply.values[step.key]
            on = step.on if isinstance(step.on, str) else "sent"
            asked = (on, step.temperature, step.output, step.key)
            answer = (client, step.student, state[client, step.student], *asked)
            if answer in seen:
                assert torch.equal(seen[answer], array)
                continue
            if table.mechanism in ("gaussian", "laplace"):
                assert not any(
                    other.shape == array.shape and torch.equal(other, array)
                    for known, other in seen.items()
                    if known[0] == client
                )
            seen[answer] = array
            low = step.temperature if table.temperature is None else table.temperature
            hot = table.tau_max if table.tau_max and on == "transfer" else low
            if table.mechanism in ("none", "argmax"):
                nothing = True
                continue
            if (each := price(table, hot)) is None:
                nothing = True
                continue
            for place, part in enumerate(each):
                sums[client][place] += len(array) * part
    if nothing:
        return None
    found = [0.0]
    for gaussian, other, pure in sums.values():
        exact = gaussian_epsilon(math.sqrt(2 * gaussian), table.delta)
        both = zcdp_epsilon(gaussian + other, table.delta) if other else math.inf
        found.append(min(exact + pure, both))
    return max(found)


# --- any script, any release ----------------------------------------------------------------

SENT = Samples(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
TEMPERATURES = (1.0, 1.0 + 1e-6, 1.0 + 2**-40, 3.0)
NO_BIAS = {"head.bias": torch.zeros(CLASSES)}
QUIET = (
    *(Fit(epochs=0), Fit(), Fit(epochs=1, lr=1e-30), Fit(epochs=0.1, student="twin")),
    *(Hold("twin"), Load(NO_BIAS), Load(NO_BIAS, student="twin")),
)
UNGUARDED = (
    Predict("private", per="class", key="means"),
    Predict("own", key="own"),
    Represent("fc1", per="class"),
    Select(),
    Share(),
)
asking = st.builds(
    Predict,
    on=st.sampled_from(["transfer", "transfer", "common", SENT]),
    temperature=st.sampled_from(TEMPERATURES),
    output=st.sampled_from(["probabilities", "logits"]),
    key=st.sampled_from(["soft_labels", "mine"]),
    student=st.sampled_from(["own", "own", "twin"]),
)


@st.composite
def steps(draw):
    """Steps of one phase, no two of which have one key."""
    each = st.one_of(asking, asking, st.sampled_from(QUIET))
    keys = set()
    kept = [Hold("twin")]
    for step in draw(st.lists(each, min_size=1, max_size=4)):
        key = getattr(step, "key", None)
        if key is None or key not in keys:
            keys.add(key)
            kept.append(step)
    return tuple(kept)


@st.composite
def tables(draw):
    """Overrides of ``[release]``."""
    mechanism = draw(st.sampled_from(["gaussian", "gaussian", "laplace", "sample", "sample"]))
    found = [f"release.mechanism={mechanism}"]
    if mechanism != "sample":
        found.append(f"release.scale={draw(st.sampled_from([0.05, 0.5, 20]))}")
    else:
        found.append(f"release.draws={draw(st.integers(1, 3))}")
    if draw(st.integers(0, 3)):
        found.append(f"release.clip={draw(st.sampled_from([0.5, 4, 20]))}")
    if draw(st.booleans()):
        found.append(f"release.temperature={draw(st.sampled_from([0.7, 2]))}")
    if draw(st.booleans()):
        found += ["release.tau_max=9", "release.scores=constant"]
    if draw(st.booleans()):
        found.append("release.mix=0.25")
    return tuple(found)


rounds = st.tuples(st.sets(st.integers(0, CLIENTS - 1), min_size=1), steps(), steps() | st.just(()))


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(rounds, min_size=2, max_size=4), tables(), st.integers(0, 1))
def test_the_total_of_a_ledger_is_that_of_what_was_sent(script, table, resume_after):
    heard, lines, experiment = played(script, *table, resume_after=resume_after)
    expected = epsilon_by_hand(heard, experiment)
    formal = guarantee(lines, experiment)
    if expected is None:
        assert formal.epsilon is None
        assert formal.why
    else:
        assert formal.epsilon == pytest.approx(expected, rel=1e-6)


# --- what is the same answer ----------------------------------------------------------------


def same_in_all_rounds(*each, rounds=4):
    return [({0, 1, 2}, tuple(each), ())] * rounds


def test_temperatures_a_millionth_apart_are_answers_of_their_own():
    script = [({0}, (Predict(temperature=1 + 1e-6 * n),), ()) for n in range(64)]
    heard, lines, experiment = played(script, *GAUSSIAN)
    assert all(line["fresh"] for line in lines)
    total = 64 * lines[0]["rho"]
    assert guarantee(lines, experiment).rho == pytest.approx(total, rel=1e-4)
    noise = torch.stack([reply.values["soft_labels"] for _, reply in heard])
    assert len(noise.unique(dim=0)) == 64


def test_whether_training_changed_anything_is_not_told_by_an_answer():
    """A step too small to be seen in float32 has fresh noise too, and is charged."""
    heard, lines, _ = played(same_in_all_rounds(Fit(lr=1e-30), Predict()), *GAUSSIAN)
    assert all(line["fresh"] for line in lines)
    for client in range(CLIENTS):
        sent = [r.values["soft_labels"] for a, r in heard if a.client == client]
        assert len(torch.stack(sent).unique(dim=0)) == 4


@pytest.mark.parametrize("change", [Fit(epochs=0, min_steps=1), Fit(epochs=0.01)])
def test_after_a_step_that_may_change_a_student_its_answer_is_new(change):
    _, lines, _ = played(same_in_all_rounds(change, Predict(), rounds=3), *GAUSSIAN)
    assert all(line["fresh"] for line in lines)


@pytest.mark.parametrize("still", [Fit(epochs=0), Fit(student="twin"), Hold("twin")])
def test_a_step_that_everybody_knows_to_change_nothing_leaves_an_answer_as_it_is(still):
    script = [({0, 1, 2}, (Hold("twin"), still, Predict()), ())] * 3
    _, lines, _ = played(script, *GAUSSIAN)
    assert [line["fresh"] for line in lines] == [True] * 3 + [False] * 6


def test_what_is_said_of_one_temperature_is_done_at_it():
    """What is no number above 0 is one line."""
    for wrong in (np.float32(0.1), torch.ones(5), "2", True, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(FedkdError, match=r"Predict: temperature = .* is not allowed") as error:
            played([({0}, (Predict(temperature=wrong),), ())], *GAUSSIAN)
        assert "\n" not in str(error.value)


def test_a_name_that_a_method_gives_an_answer_itself_counts_for_nothing():
    step = Predict(answer="always the same")
    _, lines, _ = played(same_in_all_rounds(Fit(), step), *GAUSSIAN)
    assert all(line["fresh"] for line in lines)
    assert len({line["answer"] for line in lines}) == 4


def test_two_students_of_a_client_have_answers_of_their_own():
    both = (Predict(), Predict(student="twin", key="twin"))
    script = [({0}, (Hold("twin"), *both), ()), ({0}, (Fit(student="twin"), *both), ())]
    _, lines, _ = played(script, *GAUSSIAN)
    assert [(line["key"], line["fresh"]) for line in lines] == [
        *(("soft_labels", True), ("twin", True), ("soft_labels", False), ("twin", True))
    ]
    assert len({line["answer"] for line in lines}) == 3


def test_rows_sent_along_are_the_same_rows_only_if_all_their_bits_are():
    other = Samples(SENT.inputs + 1e-7)
    script = [({0}, (Predict(on=rows),), ()) for rows in (SENT, other, SENT)]
    _, lines, _ = played(script, *GAUSSIAN)
    assert [line["fresh"] for line in lines] == [True, True, False]
    assert [line["items"] for line in lines] == [4, 4, 4]


@pytest.mark.parametrize("beside", UNGUARDED, ids=lambda step: step.key)
def test_what_no_noise_is_for_does_not_leave(beside):
    with pytest.raises(FedkdError, match="would leave the client unreleased"):
        played([({0, 1}, (Predict(), beside), ())], *GAUSSIAN)


def test_a_resumed_run_knows_which_answers_it_has_given(small, tmp_path):
    """And does not give old noise to a new one."""

    @registry.register("strategies", "asking")
    class Asking(Scripted):
        script = [({0, 1, 2, 3}, (Predict(),), ())] * 2 + [({0, 1}, (Fit(), Predict()), ())] * 2

    from lines import Killed, KilledAfter

    keys = ("strategy.name=asking", "rounds=4", "checkpoint_every=1", *GAUSSIAN)
    experiment = small("engine.cohort=off", *keys)
    whole = run(experiment, tmp_path / "whole")
    with pytest.raises(Killed):
        run(experiment, tmp_path / "killed", observer=KilledAfter(2))
    assert run(experiment, tmp_path / "killed", resume=True).releases == whole.releases
    assert [sum(e["fresh"] for e in whole.releases if e["round"] == n) for n in range(1, 5)] == [
        *(4, 0, 2, 2)
    ]


def test_an_answer_is_free_once_it_is_charged_whatever_comes_after_it_in_the_phase():
    script = [({0}, (Predict(),), (Predict(), Fit()))]
    _, lines, _ = played(script, *GAUSSIAN)
    assert [line["fresh"] for line in lines] == [True, False]


# --- what is looked at beside what is sent --------------------------------------------------

DP = ("training.dp.noise_multiplier=5",)
ONCE = [({0, 1, 2}, (Fit(), Predict()), ())] * 2


class Asked(Scripted):
    """Has nothing to do: a method below does it in one hook."""

    def fuse(self, round, replies):
        self.replies = [reply.values for reply in replies.replies]


class BySamples(Asked):
    def fuse(self, round, replies):
        self.weights = replies.samples


class BySamplesOfAReply(Asked):
    def fuse(self, round, replies):
        self.weights = [reply.samples for reply in replies.replies]


class ByLoss(Asked):
    def fuse(self, round, replies):
        self.losses = [reply.metrics["train_loss"] for reply in replies.replies]


class StopsByAccuracy(Asked):
    def stop(self, round):
        return any(found["own_accuracy"] > 2 for found in self.latest.values())


class SelectsByAccuracy(Asked):
    def select(self, round):
        return sorted({0, 1, 2}, key=lambda n: self.latest.get(n, {}).get("own_accuracy", 0))


class KeepsLabelCounts(Asked):
    def setup(self):
        self.counts = []

    def record(self, round, replies, label_counts):
        self.counts.append(label_counts)
        return {}


class KeepsMeasurements(Asked):
    def measure(self, round, client):
        return [Predict("private", key="measure_labels")]

    def record(self, round, replies, label_counts):
        self.measured = replies.stack("measure_labels")
        return {}


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (BySamples, "numbers of samples leave the client without noise"),
        (BySamplesOfAReply, "numbers of samples leave the client without noise"),
        (ByLoss, "losses or accuracies leave the client without noise"),
        (StopsByAccuracy, "losses or accuracies leave the client without noise"),
        (SelectsByAccuracy, "losses or accuracies leave the client without noise"),
        (KeepsLabelCounts, "what the method does depends on measurements of private data"),
        (KeepsMeasurements, "what the method does depends on measurements of private data"),
    ],
)
@pytest.mark.parametrize("noise", [GAUSSIAN, DP], ids=["client", "record"])
def test_a_method_that_acts_on_more_than_what_is_sent_has_no_guarantee(method, why, noise):
    _, lines, experiment = played(ONCE, *noise, "evaluate_every=1", method=method)
    formal = guarantee(lines, experiment)
    if noise is DP and issubclass(method, BySamples | BySamplesOfAReply):
        # How many records a client has is public where the unit is one of them.
        assert formal.epsilon > 0
    else:
        assert (formal.epsilon, formal.why) == (None, f"none: {why}")


@pytest.mark.parametrize("noise", [GAUSSIAN, DP], ids=["client", "record"])
def test_a_method_that_keeps_to_what_is_sent_has_one(noise):
    _, lines, experiment = played(ONCE, *noise, "evaluate_every=1", method=Asked)
    assert guarantee(lines, experiment).epsilon > 0
    assert {line["step"] for line in lines} == {"Predict"}


def test_what_is_measured_does_not_reach_fusion():
    class Measuring(Asked):
        def measure(self, round, client):
            return [Predict("private", key="measure_labels")]

    seen = []

    class Fusing(Measuring):
        def fuse(self, round, replies):
            seen.extend(set(reply.values) for reply in replies.replies)

        def record(self, round, replies, label_counts):
            assert replies.stack("measure_labels").dim() == 3
            return {}

    played(ONCE, *GAUSSIAN, "evaluate_every=1", method=Fusing)
    assert seen == [{"soft_labels"}] * 6


def test_what_is_tried_out_has_no_key_of_what_is_sent():
    """It would take the place of the noisy labels."""

    class Swapping(Asked):
        def measure(self, round, client):
            return [Predict()]

    with pytest.raises(FedkdError, match="key = 'soft_labels' is not allowed"):
        played(ONCE, *GAUSSIAN, "evaluate_every=1", method=Swapping)


def test_a_client_that_fails_leaves_no_guarantee_and_gives_no_old_answer(monkeypatch):
    """Its data may decide that it fails; and what it answered before it was set back is old."""
    perform = Worker.perform

    def failing(self, assignment):
        reply = perform(self, assignment)
        if (assignment.client, assignment.round) == (1, 2):
            return Reply(1, failure="its student raised")
        return reply

    monkeypatch.setattr(Worker, "perform", failing)
    _, lines, experiment = played([({0, 1}, (Predict(),), ())] * 3, *GAUSSIAN)
    formal = guarantee(lines, experiment)
    assert formal.epsilon is None
    assert formal.why == (
        "none: in round 2 client 1 failed (its student raised), which its data may decide"
    )
    fresh = [(e["client"], e["round"]) for e in lines if e["step"] == "Predict" and e["fresh"]]
    assert fresh == [(0, 1), (1, 1), (1, 3)]


def test_where_nothing_is_claimed_the_ledger_is_what_was_sent():
    _, lines, _ = played(ONCE, method=ByLoss)
    assert {line["step"] for line in lines} == {"Predict"}
