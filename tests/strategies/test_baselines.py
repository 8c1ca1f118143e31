"""Known answers of the baselines."""

import pytest
import torch
from lines import measured

from fedkd import run
from fedkd.caveats import LOCAL_TRAINING
from fedkd.distillation.targets import sharpen
from fedkd.strategies.base import Replies
from fedkd.strategies.fedavg import average
from fedkd.work import CrossEntropy, Proximal, Reply, Soft


def replies(key, *arrays):
    return Replies([Reply(n, 10, {key: array}) for n, array in enumerate(arrays)])


LOGITS = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])]
LABELS = [logits.softmax(1) for logits in LOGITS]


def test_the_mean_of_parameters_is_weighted_by_samples():
    parameters = [{"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([8.0, 0.0])}]
    mean = average(parameters, torch.tensor([30.0, 10.0]))
    assert torch.equal(mean["w"], torch.tensor([2.0, 3.0]))


def test_the_mean_of_equal_parameters_is_that_parameter_set():
    parameters = {"w": torch.randn(5)}
    mean = average([parameters] * 4, torch.ones(4))
    assert torch.allclose(mean["w"], parameters["w"])


def test_counters_are_not_averaged():
    parameters = [{"n": torch.tensor(3)}, {"n": torch.tensor(8)}]
    assert average(parameters, torch.ones(2))["n"] == 3


def test_uniform_fusion_averages_probabilities(made):
    strategy = made("uniform")
    strategy.fuse(1, replies("soft_labels", *LABELS))
    assert torch.allclose(strategy.fused, (LABELS[0] + LABELS[1]) / 2)


def test_fedmd_averages_logits_which_is_another_thing(made):
    strategy = made("fedmd")
    strategy.fuse(1, replies("logits", *LOGITS))
    assert torch.equal(strategy.fused, torch.tensor([[1.0, 2.0]]))
    assert not torch.allclose(strategy.fused.softmax(1), (LABELS[0] + LABELS[1]) / 2)


def test_dsfl_sharpens_the_mean_and_trains_by_cross_entropy(made):
    strategy = made("dsfl", "measure.loyalty=0")
    strategy.fuse(1, replies("soft_labels", *LABELS))
    mean = (LABELS[0] + LABELS[1]) / 2
    assert torch.allclose(strategy.fused, sharpen(mean, 0.1))
    assert strategy.fused.max() > mean.max()
    (step,) = strategy.receive(1, 0)
    (term,) = step.terms
    assert isinstance(term, Soft)
    assert term.objective == "cross_entropy"


def test_fedprox_without_penalty_is_fedavg_to_the_bit(small, tmp_path):
    fedprox = run(small("strategy.name=fedprox", "strategy.mu=0"), tmp_path / "prox")
    fedavg = run(small("strategy.name=fedavg"), tmp_path / "avg")
    assert measured(fedprox)[1] == measured(fedavg)[1]


def test_fedprox_holds_clients_to_the_global_student(made):
    step = made("fedprox", "strategy.mu=0.3").local_fit()
    assert step.terms == (CrossEntropy(), Proximal(0.3))


def test_fedavg_with_one_client_tests_the_student_that_it_trained(small, tmp_path):
    done = run(small("strategy.name=fedavg", "data.clients=1"), tmp_path / "run")
    for line in done.rounds:
        assert line["own_loss_mean"] == pytest.approx(line["local"]["own_loss_mean"], rel=1e-5)


def test_local_training_is_the_same_after_fusion_as_before(small, tmp_path):
    for line in run(small("strategy.name=local"), tmp_path / "run").rounds:
        assert all(line[key] == value for key, value in line["local"].items())


def test_knfu_without_weight_on_others_is_self_distillation(small, tmp_path):
    """With identity weights a client's target is its own soft labels: accuracy barely moves."""
    options = ["strategy.beta=1e9", "rounds=1"]
    knfu = run(small("strategy.name=knfu", *options), tmp_path / "knfu")
    local = run(small("strategy.name=local", "rounds=1"), tmp_path / "local")
    assert knfu.rounds[0]["strategy"]["self_weight"] == 1.0
    assert knfu.rounds[0]["local"] == local.rounds[0]["local"]


def test_knfu_at_beta_zero_is_uniform_fusion_to_the_bit(small, tmp_path):
    knfu = run(small("strategy.name=knfu", "strategy.beta=0", "seed=2"), tmp_path / "knfu")
    uniform = run(small("strategy.name=uniform", "seed=2"), tmp_path / "uniform")
    assert measured(knfu)[1] == measured(uniform)[1]


CHOICES = [
    "strategy.divergence=jensen_shannon",
    "strategy.epd=histogram",
    "strategy.epd_when=once",
    "strategy.neighbours=top_k",
    "strategy.neighbours=threshold strategy.threshold=0.3",
    "strategy.include_self=false",
    "strategy.tau=3",
    "strategy.objective=reverse_kl",
    "strategy.private_weight=0.5",
]


@pytest.mark.slow
def test_every_choice_of_knfu_runs_and_changes_the_numbers(each_changes_the_numbers):
    base = ("strategy.name=knfu", "strategy.beta=1", "data.alpha=1", "rounds=3")
    each_changes_the_numbers(base, CHOICES)


def test_knfu_warns_once_when_it_fuses_uniformly(small, tmp_path):
    done = run(
        small("strategy.beta=1e-6", "rounds=5", "data.alpha=0.5", "strategy.name=knfu"),
        tmp_path / "run",
    )
    warnings = [text for line in done.rounds for text in line.get("warnings", [])]
    assert len(warnings) == 1
    assert "fuses uniformly" in warnings[0]


def test_knfu_warns_once_when_it_leaves_clients_to_themselves(small, tmp_path):
    done = run(small("strategy.beta=1e6", "rounds=5", "strategy.name=knfu"), tmp_path / "run")
    warnings = [text for line in done.rounds for text in line.get("warnings", [])]
    assert len(warnings) == 1
    assert "leaves clients to themselves" in warnings[0]


def test_knfu_warns_where_one_client_a_round_has_nobody_to_fuse_with(small, tmp_path):
    done = run(small("participation=0.25", "rounds=5", "strategy.name=knfu"), tmp_path / "run")
    (line,) = done.warning_lines
    assert line["about"] == LOCAL_TRAINING
    assert "raise participation = 0.25 or data.clients = 4" in line["message"]


def test_knfu_records_what_its_weights_amount_to(small, tmp_path):
    line = run(small("strategy.name=knfu", "rounds=1"), tmp_path / "run").rounds[0]["strategy"]
    weights = torch.tensor(line["weights"], dtype=torch.float64)
    assert torch.allclose(weights.sum(1), torch.ones(4, dtype=torch.float64))
    assert line["contributors"] == pytest.approx(float((1 / weights.square().sum(1)).mean()))
    assert line["self_weight"] == pytest.approx(float(weights.diagonal().mean()))
    assert -1 <= line["epd_prior_correlation"] <= 1
