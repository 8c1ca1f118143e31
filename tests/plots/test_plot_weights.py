"""Whom clients listen to: what is drawn, told from made-up weights."""

import numpy as np
import pytest
from test_plot_gather import fake_run

from fedkd.errors import FedkdError
from fedkd.plots.weights import SHOWN, draw


def weighted(folder, *overrides, weights, participants=None):
    """A run whose rounds have these weights."""
    run = fake_run(folder, *overrides, ended=False)
    for round, matrix in enumerate(weights, 1):
        clients = list(range(len(matrix))) if participants is None else participants
        strategy = {"weights": np.asarray(matrix).tolist()}
        run.append_round({"round": round, "participants": clients, "strategy": strategy})
    run.write_summary({"own_accuracy_mean": 0.5})
    return run


def heat_maps(figure):
    return [panel for panel in figure.axes if panel.images]


def contributors(figure):
    (panel,) = [one for one in figure.axes if one.get_ylabel() == "Effective contributors"]
    return {line.get_label(): line.get_ydata() for line in panel.lines}


UNIFORM, ALONE = np.full((4, 4), 0.25), np.eye(4)


def test_uniform_weights_have_as_many_contributors_as_clients_and_the_identity_one(tmp_path):
    found = contributors(draw([weighted(tmp_path / "a", weights=[UNIFORM, ALONE])]))
    assert found["knfu"] == pytest.approx([4, 1])


def test_first_middle_and_last_round_are_shown(tmp_path):
    figure = draw([weighted(tmp_path / "a", weights=[UNIFORM] * 8 + [ALONE])])
    titles = [panel.get_title(loc="left") for panel in heat_maps(figure)]
    assert titles == ["round 1", "round 5", "round 9"]
    assert len(titles) == SHOWN
    assert np.array_equal(heat_maps(figure)[-1].images[0].get_array(), ALONE)


def test_a_single_round_is_shown_once(tmp_path):
    assert len(heat_maps(draw([weighted(tmp_path / "a", weights=[UNIFORM])]))) == 1


def test_all_maps_have_one_scale_from_zero(tmp_path):
    figure = draw([weighted(tmp_path / "a", weights=[UNIFORM, ALONE])])
    assert {panel.images[0].get_clim() for panel in heat_maps(figure)} == {(0, 1)}


def test_clients_are_called_by_their_numbers_where_not_all_take_part(tmp_path):
    run = weighted(tmp_path / "a", weights=[UNIFORM], participants=[3, 5, 7, 9])
    (panel,) = heat_maps(draw([run]))
    assert [label.get_text() for label in panel.get_xticklabels()] == ["3", "5", "7", "9"]


def test_methods_are_rows_and_seeds_are_averaged(tmp_path):
    runs = [
        weighted(tmp_path / f"{beta}-{seed}", f"strategy.beta={beta}", f"seed={seed}", weights=[w])
        for beta, many in ((1, (UNIFORM, ALONE)), (3, (ALONE, ALONE)))
        for seed, w in enumerate(many)
    ]
    figure = draw(runs)
    assert len(heat_maps(figure)) == 2
    found = contributors(figure)
    assert found["knfu, beta = 1"] == pytest.approx([2.5])
    assert found["knfu, beta = 3"] == pytest.approx([1])


def test_runs_that_record_no_weights_are_left_out(tmp_path):
    runs = [fake_run(tmp_path / "a", "strategy.name=local")]
    runs.append(weighted(tmp_path / "b", weights=[UNIFORM, ALONE]))
    assert len(heat_maps(draw(runs))) == 2


def test_no_weights_at_all_are_one_line(tmp_path):
    with pytest.raises(FedkdError, match="has no round that records weights") as error:
        draw([fake_run(tmp_path / "a", "strategy.name=local")])
    assert "\n" not in str(error.value)


def test_more_methods_than_fit_are_one_line(tmp_path):
    runs = [weighted(tmp_path / str(n), f"strategy.beta={n}", weights=[UNIFORM]) for n in range(5)]
    with pytest.raises(FedkdError, match="5 methods do not fit into one figure; allowed: 4"):
        draw(runs)
