"""The hooks at the ends of a round, and what the second phase sends."""

import pytest
import torch
from lines import Killed, KilledAfter, measured

from fedkd import FedkdError, run
from fedkd.privacy.average import Averaging
from fedkd.registry import register
from fedkd.strategies.base import KnowledgeStrategy
from fedkd.strategies.uniform import Uniform
from fedkd.work import Fit, Load, Predict, Share

FEW = ["strategy.name=mine", "rounds=3", "training.local_epochs=1", "data.test.common=20"]


def mine(base=KnowledgeStrategy, **hooks):
    """Register a method with these hooks, a function each."""
    return register("strategies", "mine")(type("Mine", (base,), hooks))


def test_the_hooks_of_a_round_come_in_their_order(small):
    called = []

    def noted(name, given=None):
        def hook(self, round, *more):
            if (name, round) not in called:
                called.append((name, round))
            return given

        return hook

    names = ("begin_round", "averaging", "select", "learn", "fuse", "record", "receive")
    names += ("deploy", "score", "end_round", "stop")
    given = {"select": [0, 2], "learn": [Fit()], "receive": [], "deploy": [], "score": []}
    given |= {"record": {}, "stop": False}
    mine(**{name: noted(name, given.get(name)) for name in names})
    run(small(*FEW), "run")
    assert called == [(name, round) for round in (1, 2, 3) for name in names]


def test_the_second_phase_reaches_the_end_of_the_round(small):
    """And nothing that is measured, or undone, does."""
    seen = {}

    def end_round(self, round, replies):
        seen[round] = replies
        self.kept = replies.stack("second")

    late = [Fit(key="late_loss"), Predict(key="second")]
    mine(
        Uniform,
        receive=lambda self, round, client: late if client else [],
        end_round=end_round,
    )
    done = run(small(*FEW), "run")
    assert sorted(seen) == [1, 2, 3]
    assert seen[3].clients == [1, 2, 3]
    assert seen[3].stack("second").shape == (3, 80, 10)
    losses = seen[3].metric("late_loss")
    assert losses.shape == (3,)
    last = [line for line in done.clients if line["round"] == 3]
    assert losses.tolist() == [line["late_loss"] for line in last if "late_loss" in line]
    assert {*seen[3].replies[0].values} == {"second"}
    with pytest.raises(FedkdError, match="has no metric 'none'"):
        seen[3].metric("none")
    lines = [line for line in done.releases if line["key"] == "second"]
    assert len(lines) == 9
    labels = 80 * 10 * 4
    assert [line["bytes_up"] for line in done.rounds] == [4 * labels + 3 * labels] * 3


def test_a_run_that_goes_on_ends_its_rounds_as_it_would_have(small):
    def end_round(self, round, replies):
        self.mean = replies.parameters("late")[0]["head.bias"] + torch.rand(10)

    def receive(self, round, client):
        given = self.initial_parameters()
        if self.mean is not None:
            given["head.bias"] = self.mean
        return [Load(given), Share(key="late")]

    mine(
        setup=lambda self: setattr(self, "mean", None),
        begin_round=lambda self, round: setattr(self, "drawn", self.draw_rows(round, 5)),
        learn=lambda self, round, client: [Fit(), Predict(self.rows(self.drawn))],
        receive=receive,
        end_round=end_round,
    )
    given = small(*FEW, "checkpoint_every=1", "participation=0.5")
    whole = run(given, "whole")
    with pytest.raises(Killed):
        run(given, "cut", observer=KilledAfter(2))
    assert measured(run(given, "cut", resume=True)) == measured(whole)


def test_averages_of_both_phases_have_noise_of_their_own(small):
    """Noise that is drawn twice would be taken away by a difference."""
    seen = []

    def noted(self, round, replies):
        first, *others = replies.parameters()
        assert all(one["head.bias"] is first["head.bias"] for one in others)
        seen.append(first["head.bias"] - self.initial_parameters()["head.bias"])

    mine(
        averaging=lambda self, round: Averaging(self.initial_parameters(), 1.0, 1.0),
        learn=lambda self, round, client: [Load(self.initial_parameters()), Share()],
        receive=lambda self, round, client: [Share()],
        fuse=noted,
        end_round=noted,
    )
    done = run(small(*FEW, "rounds=1"), "run")
    before, after = seen
    assert before.abs().min() > 0
    assert (before - after).abs().min() > 1e-6
    lines = [line for line in done.releases if line["client"] is None]
    assert [(line["step"], line["key"]) for line in lines] == [("Average", "parameters")] * 2


def test_what_is_returned_or_raised_there_is_one_line(small):
    for hook in ("begin_round", "end_round"):
        mine(**{hook: lambda self, round, *replies: 3})
        with pytest.raises(FedkdError, match=rf"'mine', {hook}\(round=1\): returned 3"):
            run(small(*FEW), f"wrong {hook}")
        mine(**{hook: lambda self, round, *replies: {}["none"]})
        with pytest.raises(FedkdError, match=rf"'mine', {hook}\(round=1\) failed: KeyError"):
            run(small(*FEW), f"raises {hook}")


def test_a_round_that_is_skipped_has_no_end(small):
    ended = []
    mine(
        learn=lambda self, round, client: [
            Load(self.initial_parameters()),
            Fit(lr=1e9 if round == 2 else None),
        ],
        end_round=lambda self, round, replies: ended.append(round),
    )
    done = run(small(*FEW, "on_empty_round=skip"), "run")
    assert [line.get("skipped", False) for line in done.rounds] == [False, True, False]
    assert ended == [1, 3]


def test_soft_labels_of_the_second_phase_are_measured_too(small):
    """A line for each secret, of what exposes it most."""
    planted = [
        "canary.secrets=1",
        "canary.repeats=[4]",
        "canary.public=exact",
        "data.samples_per_client=100",
    ]
    late = [Predict(key="second")]
    found = []
    for number, base in enumerate((KnowledgeStrategy, Uniform)):
        mine(base, receive=lambda self, round, client: late)
        done = run(small(*FEW, *planted, "rounds=1"), f"run{number}")
        lines = [line for line in done.exposures if line["place"] == "released"]
        found.append({(line["observer"], line["secret"]): line["exposure"] for line in lines})
        assert len(found[-1]) == len(lines) == 4
    assert found[0] == found[1]
