"""Known answers of FedRoD."""

import pytest
import torch
from lines import measured
from texts import small as text

from fedkd import FedkdError, check, run
from fedkd.engine.worker import Worker
from fedkd.work import Assignment, Share

ROD = "strategy.name=fedrod"
MLP = "student.models=['mlp']"


def measurements(lines, tests):
    """Accuracy and loss in each round of what is tested under these names."""
    names = [f"{tests}_{name}" for name in ("accuracy_mean", "loss_mean")]
    return [[line[name] for name in names] for line in lines]


def test_without_a_prior_the_generic_predictor_is_that_of_fedavg(small, tmp_path):
    """To the bit: nothing of a personal head reaches the body or the generic head."""
    rod = run(small(ROD, "strategy.prior=0", "engine.cohort=off"), tmp_path / "rod")
    fedavg = run(small("strategy.name=fedavg", "engine.cohort=off"), tmp_path / "fedavg")
    for tests in ("own", "common"):
        assert measurements(rod.rounds, f"{tests}_generic") == measurements(fedavg.rounds, tests)
    for one, other in zip(rod.rounds, fedavg.rounds, strict=True):
        assert (one["bytes_up"], one["bytes_down"]) == (other["bytes_up"], other["bytes_down"])
        assert one["train_loss_mean"] == other["train_loss_mean"]
        assert one["own_loss_mean"] != other["own_loss_mean"]


def test_with_personal_heads_at_zero_the_two_predictors_are_one(small, made):
    """Who has not taken part, or whose personal head has learned nothing, has the generic one."""
    strategy = made("fedrod", MLP, "strategy.prior=0")
    *given, _fit, _, added = strategy.learn(1, 0)
    worker = Worker(small(MLP))
    steps = (*given, Share(key="before"), added, Share(key="after"))
    values = worker.perform(Assignment(0, 1, "learn", steps)).values
    for name, value in strategy.parameters.items():
        assert torch.equal(values["before"][name], value)
        assert torch.equal(values["after"][name], value)
    assert strategy.deploy(1, 3)[0].parameters is strategy.parameters
    assert len(strategy.deploy(1, 3)) == 1


def test_the_personal_head_is_what_it_adds_to_the_generic_logits(made, small):
    strategy = made("fedrod", MLP)
    worker = Worker(small(MLP))
    shares = (Share(key="personal", student="personal"), Share(key="sum"))
    reply = worker.perform(Assignment(0, 1, "learn", (*strategy.learn(1, 0), *shares)))
    sent, personal, summed = (reply.values[key] for key in ("parameters", "personal", "sum"))
    for name, value in sent.items():
        wanted = value + personal[name] if name.startswith("head.") else value
        assert torch.equal(summed[name], wanted)
    assert personal["head.weight"].any()
    # A step of the balanced loss on all samples moves the generic head as by its own gradient.
    assert not torch.equal(sent["head.weight"], strategy.parameters["head.weight"])


def test_a_prior_changes_the_generic_predictor(small, tmp_path):
    some, none = (run(small(ROD, f"strategy.prior={p}"), tmp_path / str(p)) for p in (1, 0))
    assert measured(some) != measured(none)
    assert some.rounds[-1]["own_generic_loss_mean"] != none.rounds[-1]["own_generic_loss_mean"]


def test_what_it_cannot_do_is_one_line(small, tmp_path):
    with pytest.raises(FedkdError, match=r"noise_multiplier = 1 is not allowed with .*'fedrod'"):
        check(small(ROD, "training.dp.noise_multiplier=1"))
    with pytest.raises(FedkdError, match=r"heads are added .*'head' has LayerNorm, Linear"):
        run(text(tmp_path / "text", ROD, "student.models=['gpt']"), tmp_path / "run")


def test_a_personal_head_over_the_words_of_a_text(tmp_path):
    done = run(text(tmp_path / "text", ROD), tmp_path / "run")
    line = done.rounds[0]
    assert line["common_perplexity_mean"] > 1
    assert line["common_loss_mean"] != line["common_generic_loss_mean"]
