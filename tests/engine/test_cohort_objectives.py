"""Objectives in a cohort of clients as in each client alone."""

import pytest
from test_objective_needs import private
from test_vectorised import agree, targets

from fedkd.work import Fit, Soft

LABELLED = ["nkd", "pld", {"name": "dkd", "warmup": 0.4}]
COUPLED = ["dist", {"name": "sinkd", "rows": 4}, {"name": "taid", "alpha": 0.5}]


@pytest.mark.parametrize("chosen", [*LABELLED, *COUPLED], ids=str)
def test_a_cohort_learns_by_them_as_each_client_alone(chosen):
    agree(private(chosen))


@pytest.mark.parametrize("chosen", ["bd_kd", {"name": "pld", "labels": "argmax"}], ids=str)
def test_on_the_transfer_set_too(chosen):
    def steps(host, client):
        return [Fit("transfer", (Soft(targets(host, client, 50), chosen),))]

    agree(steps)
