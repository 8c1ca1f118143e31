"""Objectives with needs: in a cohort as alone, and on every engine."""

import needy
import pytest
import torch
from lines import measured
from test_vectorised import CLIENTS, agree, performed, targets

from fedkd import run
from fedkd.work import CrossEntropy, Fit, Soft

CHOSEN = [*needy.NAMES, {"name": "not_true", "labels": "argmax"}]


@pytest.fixture
def _registered():
    needy.register()
    needy.seen.clear()


def private(chosen):
    """Clients with targets for two samples of three, the last with none at all."""

    def steps(host, client):
        rows = host.rows(client, "private")
        given = targets(host, client, rows)
        given[::3] = torch.nan
        if client == CLIENTS - 1:
            given[:] = torch.nan
        return [Fit(terms=(CrossEntropy(0.1), Soft(given, chosen, 2.0)), epochs=3)]

    return steps


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
def test_a_cohort_learns_by_them_as_each_client_alone(chosen):
    agree(private(chosen))


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("chosen", ["coupled", {"name": "everything", "labels": "argmax"}], ids=str)
def test_on_the_transfer_set_too(chosen):
    def steps(host, client):
        return [Fit("transfer", (Soft(targets(host, client, 50), chosen),))]

    agree(steps)


@pytest.mark.usefixtures("_registered")
def test_students_of_a_cohort_have_progress_and_groups_of_their_own():
    performed("on", private("paced"))
    last = [each["progress"].flatten().unique() for each in needy.seen]
    assert all(each["progress"].shape == (each["rows"], 1) for each in needy.seen)
    assert any(len(found) > 1 for found in last)  # fits of different lengths
    assert max(float(found.max()) for found in last) < 1 / 2  # of the first round of two
    needy.seen.clear()
    performed("on", private("coupled"))
    assert set(needy.seen[0]["groups"]) == set(range(CLIENTS - 1))


def test_worker_processes_compute_the_same(small, tmp_path):
    points = {"everything": "needy:Everything"}
    table = ["strategy.name=knfu", "strategy.objective.name=everything"]
    table += ["strategy.objective.labels=argmax", "strategy.objective.rate=0.9", "rounds=1"]
    with needy.installed(tmp_path / "installed", points):
        inline, procs = (
            run(small(*table, f"engine.name={name}", "engine.workers=2"), tmp_path / name)
            for name in ("inline", "procs")
        )
    assert measured(inline) == measured(procs)
