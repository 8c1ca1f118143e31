"""The figure of who holds what."""

from itertools import pairwise

import numpy as np
import pytest

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.plots.partition import draw
from fedkd.results import Run


def partitioned(folder, clients, classes):
    run = Run.at(Experiment(), folder).begin(Experiment())
    counts = np.arange(clients * classes).reshape(clients, classes) % 7
    names = [f"class {number}" for number in range(classes)]
    run.write_partition(names, counts, [1] * clients, ["cnn2"] * clients)
    return run, counts


def test_axes_and_colours_are_labelled(tmp_path):
    run, _ = partitioned(tmp_path, 5, 3)
    _, cells, colours = draw([run]).axes
    assert (cells.get_xlabel(), cells.get_ylabel()) == ("Client", "Class")
    assert colours.get_ylabel() == "Training samples"


def test_counts_are_written_into_the_cells_and_zero_is_left_white(tmp_path):
    run, counts = partitioned(tmp_path, 5, 3)
    written = {text.get_position(): text.get_text() for text in draw([run]).axes[1].texts}
    assert written == {
        (client, label): str(counts[client, label])
        for client, label in np.ndindex(counts.shape)
        if counts[client, label]
    }


def test_bars_above_are_the_clients_sizes(tmp_path):
    run, counts = partitioned(tmp_path, 5, 3)
    assert [bar.get_height() for bar in draw([run]).axes[0].patches] == list(counts.sum(1))


@pytest.mark.parametrize(("clients", "classes"), [(2, 2), (10, 100), (200, 10), (200, 100)])
def test_labels_never_touch_however_many_clients_and_classes(tmp_path, clients, classes):
    figure = draw([partitioned(tmp_path, clients, classes)[0]])
    figure.draw_without_rendering()
    axes = figure.axes[1]
    for labels, low, high in (
        (axes.get_xticklabels(), "x0", "x1"),
        (axes.get_yticklabels(), "y0", "y1"),
    ):
        boxes = [text.get_window_extent() for text in labels if text.get_text()]
        boxes.sort(key=lambda box: getattr(box, low))
        assert all(getattr(a, high) <= getattr(b, low) for a, b in pairwise(boxes))


def test_a_run_without_a_partition_is_one_line(tmp_path):
    with pytest.raises(FedkdError, match="no partition"):
        draw([Run.at(Experiment(), tmp_path).begin(Experiment())])
