"""Known answers of FedLC."""

import pytest
from lines import measured
from texts import small as text

from fedkd import FedkdError, check, run
from fedkd.work import CrossEntropy, Prior


def test_without_margins_it_is_fedavg_to_the_bit(small, tmp_path):
    none = run(small("strategy.name=fedlc", "strategy.tau=0"), tmp_path / "fedlc")
    fedavg = run(small("strategy.name=fedavg"), tmp_path / "fedavg")
    assert measured(none) == measured(fedavg)


def test_margins_are_made_on_the_client_and_cost_no_bytes(made, small, tmp_path):
    _, fit, _ = made("fedlc", "strategy.tau=0.5").learn(1, 0)
    assert fit.terms == (CrossEntropy(prior=Prior("margin", 0.5)),)
    margins = run(small("strategy.name=fedlc"), tmp_path / "fedlc")
    fedavg = run(small("strategy.name=fedavg"), tmp_path / "fedavg")
    for one, other in zip(margins.rounds, fedavg.rounds, strict=True):
        assert (one["bytes_up"], one["bytes_down"]) == (other["bytes_up"], other["bytes_down"])
    assert measured(margins) != measured(fedavg)


def test_dp_sgd_is_refused_before_a_run(small):
    noise = "training.dp.noise_multiplier=1"
    with pytest.raises(FedkdError, match=r"noise_multiplier = 1 is not allowed with .*'fedlc'"):
        check(small("strategy.name=fedlc", noise))
    check(small("strategy.name=fedlc", "strategy.tau=0", noise))


def test_words_of_a_text_have_margins_too(tmp_path):
    keys, place = "strategy.name=fedlc", tmp_path / "text"
    some, none = (
        run(text(place, keys, f"strategy.tau={tau}"), tmp_path / str(tau)) for tau in (1, 0)
    )
    assert some.rounds[0]["common_perplexity_mean"] > 1
    assert some.rounds[0]["common_loss_mean"] != none.rounds[0]["common_loss_mean"]
