"""``distill.rows``: which rows of the transfer set clients are asked for, over all methods."""

import pytest
import texts
import torch
from lines import measured

from fedkd import FedkdError, registry, run
from fedkd.experiment import Experiment
from fedkd.rounds.asking import token_losses
from fedkd.strategies.uniform import Uniform

RULES = ("random", "confident", "k_centre", "robust", "domains", "pick")
METHODS = [
    name for name in registry.names("strategies") if registry.load("strategies", name).asks_rows
]
FAST = ("student.width=0.2", "training.local_epochs=1", "evaluate_every=9")
PARTS = {"selectivefd": ("strategy.client_quantile=0.05",)}
CLIENTS, ROWS, CLASSES = 4, 80, 10


def watched():
    """Uniform fusion, registered as ``watched``, and the rows that it was given each round."""
    seen = []

    @registry.register("strategies", "watched")
    class Watched(Uniform):
        def begin_round(self, round):
            seen.append(self.asked_index.tolist())

    return seen


def test_the_methods_that_promise_it():
    assert {"uniform", "fedmd", "knfu", "dsfl", "ktpfl", "selectivefd", "swing"} <= {*METHODS}
    assert not {"scarlet", "cfd", "comet", "fedavg"} & {*METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_bytes_and_the_ledger_fall_with_the_share(name, small, tmp_path):
    how = (f"strategy.name={name}", *FAST, *PARTS.get(name, ()), "rounds=2")
    whole = run(small(*how), tmp_path / "whole")
    some = run(small(*how, "distill.rows=confident", "distill.share=0.25"), tmp_path / "some")
    assert [line["left_out"] for line in some.rounds] == [[], []]
    sent = CLIENTS * CLASSES * 4
    for one, other in zip(some.rounds, whole.rounds, strict=True):
        assert other["bytes_up"] - one["bytes_up"] == sent * (ROWS - 20)
    soft = [line for line in some.releases if line["key"] in ("soft_labels", "logits")]
    assert {line["items"] for line in soft} == {20}


@pytest.mark.parametrize("rule", RULES)
def test_every_row_is_asked_for_before_a_rule_chooses(rule, small, tmp_path):
    seen = watched()
    how = ("strategy.name=watched", "rounds=4", f"distill.rows={rule}", "distill.share=0.5")
    done = run(small(*how, *FAST), tmp_path / "run")
    assert [line["left_out"] for line in done.rounds] == [[]] * 4
    first, second, *later = seen
    if rule != "random":
        assert sorted(first + second) == list(range(ROWS))
    assert all(rows == sorted({*rows}) for rows in seen)
    if rule != "confident":  # which rounds up in each class
        assert all(len(rows) == 40 for rows in seen)
    assert all(40 <= len(rows) < 40 + CLASSES for rows in later)
    assert len({tuple(rows) for rows in seen}) > 2


def test_a_share_of_one_and_all_rows_are_what_was_without(small, tmp_path):
    how = ("strategy.name=uniform", *FAST)
    plain = run(small(*how), tmp_path / "plain")
    whole = run(small(*how, "distill.rows=k_centre", "distill.share=1.0"), tmp_path / "whole")
    assert measured(whole) == measured(plain)


def test_a_random_choice_is_the_subset_that_fedmd_draws(small, tmp_path):
    how = ("strategy.name=fedmd", *FAST)
    own = run(small(*how, "strategy.subset=20"), tmp_path / "own")
    chosen = run(small(*how, "distill.rows=random", "distill.share=0.25"), tmp_path / "chosen")
    assert measured(chosen) == measured(own)


@pytest.mark.parametrize("rule", ["pick", "domains"])
def test_a_run_that_goes_on_chooses_the_same_rows(rule, small, tmp_path):
    how = ("strategy.name=stopping", "rounds=4", f"distill.rows={rule}", "checkpoint_every=1")
    stopping = []

    @registry.register("strategies", "stopping")
    class Stopping(Uniform):
        def fuse(self, round, replies):
            if stopping and round == 4:
                raise KeyboardInterrupt
            super().fuse(round, replies)

    whole = run(small(*how, *FAST), tmp_path / "whole")
    stopping.append(True)
    with pytest.raises(KeyboardInterrupt):
        run(small(*how, *FAST), tmp_path / "part")
    stopping.clear()
    again = run(small(*how, *FAST), tmp_path / "part", resume=True)
    assert measured(again) == measured(whole)


def test_what_is_chosen_follows_from_what_was_released(small, tmp_path):
    """Under noise the ledger charges the rows that were asked for, and those alone."""
    seen = watched()
    noisy = ("release.clip=10", "release.mechanism=gaussian", "release.scale=0.1")
    how = ("strategy.name=watched", "rounds=3", "distill.rows=robust", *noisy, *FAST)
    done = run(small(*how), tmp_path / "run")
    assert {line["items"] for line in done.releases if line["client"] is not None} == {40}
    assert len(seen) == 3


def test_text_goes_by_what_the_fused_labels_know_better(tmp_path):
    @registry.register("strategies", "watched")
    class Watched(Uniform):
        def begin_round(self, round):
            seen.append(self.asked_index.tolist())

    seen = []
    for number, rule in enumerate(("difference", "random")):
        how = ("strategy.name=watched", "rounds=3", f"distill.rows={rule}")
        done = run(texts.small(tmp_path / f"texts{number}", *how), tmp_path / f"run{number}")
        assert [line["left_out"] for line in done.rounds] == [[]] * 3
    first, second, third = seen[:3]
    assert len(third) == len(first) < len({*first, *second}) or len(first) == 1


@pytest.mark.parametrize("name", ["uniform", "swing", "dsfl", "knfu"])
def test_text_over_candidates_is_asked_for_by_rows(name, tmp_path):
    released = ("release.candidates=3", "release.tau_max=4", "release.mechanism=argmax")
    how = (f"strategy.name={name}", "rounds=3", "distill.rows=difference", "distill.share=0.5")
    experiment = texts.small(tmp_path / "texts", *how, *released)
    done = run(experiment, tmp_path / "run")
    assert [line["left_out"] for line in done.rounds] == [[]] * 3
    tokens = {line["round"]: line["items"] for line in done.releases}
    plain = texts.small(tmp_path / "texts", f"strategy.name={name}", *released)
    (whole,) = {line["items"] for line in run(plain, tmp_path / "plain").releases}
    assert tokens[1] + tokens[2] == whole
    assert tokens[3] < whole


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_other_processes_choose_the_same_rows(name, small, tmp_path):
    how = (f"strategy.name={name}", *FAST, *PARTS.get(name, ()), "rounds=4", "engine.cohort=off")
    rows = ("distill.rows=k_centre", "distill.share=0.5", "participation=0.75")
    inline = run(small(*how, *rows, "engine.name=inline"), tmp_path / "inline")
    other = run(small(*how, *rows, "engine.name=procs", "engine.workers=2"), tmp_path / "procs")
    assert measured(other) == measured(inline)
    assert other.releases == inline.releases


def test_losses_of_a_text_are_of_the_tokens_that_follow():
    inputs = torch.tensor([[3, 1, 2], [2, 0, 0], [1, 3, 0]])
    labels = torch.full((6, 4), 0.1)
    labels[0, 1] = 0.5  # token 1 follows the first, 2 the second, and 3 the fifth
    labels[1, 2] = 0.25
    labels[4, 3] = 1.0
    found = token_losses(labels, inputs)
    assert found.tolist() == pytest.approx([(0.6931472 + 1.3862944) / 2, 0.0, 0.0])


REFUSED = {
    "strategy.name=scarlet distill.rows=random": "'scarlet'.*goes by its rows itself",
    "strategy.name=cfd distill.rows=random": "'cfd'.*allowed: 'all'",
    "strategy.name=comet distill.rows=random": "'comet'",
    "strategy.name=fedavg distill.rows=random": "'fedavg': it asks clients for no soft labels",
    "strategy.name=fedmd strategy.subset=9 distill.rows=random": "strategy.subset = 9 is not",
    "strategy.name=uniform distill.rows=difference": "the transfer set has no labels",
    "strategy.name=uniform distill.rows=some": "distill.rows = 'some' is not allowed",
    "strategy.name=uniform distill.share=0": "distill.share = 0",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_cannot_be_is_one_line(settings, small, tmp_path):
    with pytest.raises(FedkdError, match=REFUSED[settings]) as raised:
        run(small(*settings.split()), tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_text_has_few_rules(tmp_path):
    experiment = texts.small(tmp_path / "t", "strategy.name=uniform", "distill.rows=k_centre")
    with pytest.raises(FedkdError, match=r"which is text, .* allowed: all, random, difference"):
        run(experiment, tmp_path / "run")


def test_keys_of_distill_that_are_none_of_training_stay_out_of_it():
    made = Experiment.from_dict({"distill": {"rows": "random", "lr": 0.5}})
    assert made.training_on("transfer") == made.training.model_copy(update={"lr": 0.5})
