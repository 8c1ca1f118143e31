"""The Pareto front, by known answers and laws."""

import itertools
import random

import pytest
from test_plot_gather import fake_run

from fedkd.errors import FedkdError
from fedkd.plots.pareto import FRONT, draw, front

SENT = {"knfu": (1000, 80), "fedavg": (90_000, 85), "fedmd": (1000, 70), "local": (0, 60)}


def study(root, sent=SENT, seeds=(0, 1, 2)):
    return [
        fake_run(
            root / f"{method}-{seed}",
            f"strategy.name={method}",
            f"seed={seed}",
            own_accuracy_mean=(percent + seed - 1) / 100,
            bytes_up=count,
            bytes_down=count,
        )
        for method, (count, percent) in sent.items()
        for seed in seeds
    ]


def spots(figure):
    found = {one.get_label(): one.lines[0] for one in figure.axes[0].containers}
    return {name: (line.get_xdata()[0], line.get_ydata()[0]) for name, line in found.items()}


def the_front(figure):
    lines = [line for line in figure.axes[0].lines if line.get_color() == FRONT["color"]]
    return lines[0].get_xdata(), lines[0].get_ydata()


@pytest.mark.parametrize(
    ("points", "on"),
    [
        ([(1, 1)], [0]),
        ([(1, 1), (2, 2)], [0, 1]),
        ([(1, 2), (2, 1)], [0]),
        ([(1, 1), (1, 2)], [1]),
        ([(1, 1), (2, 1)], [0]),
        ([(3, 3), (1, 1), (2, 2)], [1, 2, 0]),
        ([(1, 1), (1, 1)], [0, 1]),
    ],
)
def test_the_front_of_a_few_points(points, on):
    assert front(points) == on


def test_nobody_beats_the_front_and_the_rest_is_beaten():
    draws = random.Random(0)
    points = [(draws.randint(0, 9), draws.randint(0, 9)) for _ in range(40)]

    def beaten(point):
        return any(
            cost <= point[0] and value >= point[1] and (cost, value) != point
            for cost, value in points
        )

    assert sorted(front(points)) == [n for n, point in enumerate(points) if not beaten(point)]


def test_the_front_rises_from_left_to_right():
    points = [(cost, (7 * cost) % 11) for cost in range(11)]
    on = [points[n] for n in front(points)]
    assert all(one[0] < two[0] and one[1] < two[1] for one, two in itertools.pairwise(on))


def test_points_stand_at_bytes_up_and_down_and_mean_accuracy(tmp_path):
    found = spots(draw(study(tmp_path)))
    assert found["knfu"] == (2000, pytest.approx(80))
    assert found["fedavg"] == (180_000, pytest.approx(85))


def test_a_method_that_sends_nothing_is_a_line_across(tmp_path):
    figure = draw(study(tmp_path))
    assert "local" not in spots(figure)
    across = {line.get_label(): line for line in figure.axes[0].lines}["local"]
    assert list(across.get_xdata()) == [0, 1]
    assert list(across.get_ydata()) == pytest.approx([60, 60])


def test_the_front_goes_through_the_methods_that_none_beats(tmp_path):
    x, y = the_front(draw(study(tmp_path)))
    assert list(zip(x, y))[1:3] == [(2000, pytest.approx(80)), (180_000, pytest.approx(85))]
    assert 70 not in y.round()


def test_what_is_no_better_than_sending_nothing_is_not_on_the_front(tmp_path):
    sent = SENT | {"local": (0, 90)}
    _, y = the_front(draw(study(tmp_path, sent)))
    assert set(y.round()) == {90}


def test_a_study_in_which_nothing_is_sent_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match="no run sends anything"):
        draw(study(tmp_path, {"local": (0, 60)}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1000, 61_728, 284_000, 9_224_000])
def test_seeds_that_send_the_same_are_drawn_without_a_warning(tmp_path, count):
    figure = draw(study(tmp_path, {"knfu": (count, 80), "local": (0, 60)}))
    assert spots(figure) == {"knfu": (2 * count, 80)}
