"""Fairness: every client is a dot, and the marks stand where the numbers are."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.plots import fairness
from fedkd.plots.fairness import MARKS, MOST, draw
from fedkd.plots.style import COLUMN, PAGE, look
from fedkd.results import Run
from fedkd.simulations import cli
from fedkd.summaries import spread


def fake_run(folder, method="knfu", accuracies=(0.5, 0.6, 0.7), seed=0, **options):
    """A run of one round that ends with these own accuracies, 0.1 less before fusion."""
    strategy = {"name": method, **options}
    experiment = Experiment.from_dict({"seed": seed, "strategy": strategy})
    run = Run.at(experiment, folder).begin(experiment)
    run.append_round(
        {"round": 1, **spread(accuracies, "own_accuracy")},
        [
            {"round": 1, "client": n, "stage": stage, "own_accuracy": accuracy - before}
            for stage, before in (("local", 0.1), ("fused", 0))
            for n, accuracy in enumerate(accuracies)
        ],
    )
    return run


def even(clients):
    return np.linspace(0.2, 0.9, clients).tolist()


def dots(figure):
    """The dots of each column, by its name."""
    lines = figure.axes[0].lines
    return {line.get_label(): line for line in lines if line.get_label() not in MARKS}


def marks(figure):
    """The heights of each kind of mark, a number a column."""
    lines = figure.axes[0].lines
    return {line.get_label(): list(line.get_ydata()) for line in lines if line.get_label() in MARKS}


def names(figure):
    return [text.get_text() for text in figure.axes[0].get_xticklabels()]


def ink(figure, texts):
    """Where each text alone leaves ink, ``(texts, H, W)``, whatever its angle."""
    figure.set_dpi(72)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, found = canvas.get_renderer(), []
    for text in texts:
        renderer.clear()
        text.draw(renderer)
        found.append(np.asarray(canvas.buffer_rgba())[..., 3] > 0)
    return np.array(found)


def test_there_is_one_column_per_method(tmp_path):
    methods = ["fedd2s", "knfu", "local", "my_own"]
    figure = draw([fake_run(tmp_path / name, name) for name in methods])
    assert names(figure) == list(dots(figure)) == methods
    assert all(len(values) == len(methods) for values in marks(figure).values())


@pytest.mark.parametrize("clients", [1, 10, 200])
def test_there_is_a_dot_for_every_client_at_its_accuracy(tmp_path, clients):
    shown = dots(draw([fake_run(tmp_path / "a", accuracies=even(clients))]))["knfu"]
    assert sorted(shown.get_ydata()) == pytest.approx([100 * share for share in even(clients)])


def test_seeds_are_pooled_into_one_column(tmp_path):
    runs = [fake_run(tmp_path / f"{seed}", accuracies=even(7), seed=seed) for seed in range(3)]
    figure = draw(runs)
    assert len(dots(figure)["knfu"].get_ydata()) == 21
    assert "means of 3 seeds" in figure.axes[0].get_title(loc="left")


def test_other_numbers_of_seeds_are_told_in_the_names(tmp_path):
    runs = [fake_run(tmp_path / f"{seed}", seed=seed) for seed in range(2)]
    figure = draw([*runs, fake_run(tmp_path / "b", "fedmd")])
    assert [" ".join(name.split()) for name in names(figure)] == ["knfu 2 seeds", "fedmd 1 seed"]


def test_the_marks_stand_at_median_mean_and_mean_of_the_worst_tenth(tmp_path):
    shares = [0.1, 0.2, *[0.6] * 9, *[0.9] * 9]  # of 20 clients, the worst tenth are two
    found = marks(draw([fake_run(tmp_path / "a", accuracies=shares)]))
    assert found["median"] == pytest.approx([60])
    assert found["mean"] == pytest.approx([100 * np.mean(shares)])
    assert found["mean of the worst 10 %"] == pytest.approx([15])


def test_marks_are_means_over_seeds_as_in_the_table_of_compare(tmp_path):
    runs = [fake_run(tmp_path / "a", accuracies=[0.2] * 5)]
    runs += [fake_run(tmp_path / "b", accuracies=[0.6] * 5, seed=1)]
    assert all(values == pytest.approx([40]) for values in marks(draw(runs)).values())


def test_dots_and_marks_of_a_column_stay_in_its_slot_and_do_not_touch(tmp_path):
    runs = [fake_run(tmp_path / f"{n}", accuracies=even(200), beta=n + 1) for n in range(14)]
    figure = draw(runs)
    beside = next(line for line in figure.axes[0].lines if line.get_label() == "mean")
    for column, line in enumerate(dots(figure).values()):
        where = np.array(line.get_xdata())
        assert column - 0.5 < where.min() < where.max() < beside.get_xdata()[column]
        assert beside.get_xdata()[column] < column + 0.5


def test_dots_are_at_the_same_places_in_every_drawing(tmp_path):
    run = fake_run(tmp_path / "a", accuracies=even(30))
    first, second = (dots(draw([run]))["knfu"].get_xdata() for _ in range(2))
    assert list(first) == list(second)


def test_clients_of_the_same_accuracy_stand_side_by_side(tmp_path):
    figure = draw([fake_run(tmp_path / "a", accuracies=[0.5] * 10)])
    where = np.sort(dots(figure)["knfu"].get_xdata())
    assert np.diff(where).min() > 0.05 * np.ptp(where)


def test_a_client_counts_as_it_was_last_measured(tmp_path):
    run = fake_run(tmp_path / "a", accuracies=(0.5, 0.6))
    run.append_round(
        {"round": 2, "own_accuracy_mean": 0.5},
        [
            {"round": 2, "client": 0, "stage": "local", "own_accuracy": 0.9},
            {"round": 2, "client": 1, "stage": "local", "train_loss": 1.0},
        ],
    )
    assert list(dots(draw([run]))["knfu"].get_ydata()) == pytest.approx([60, 90])


def test_a_method_has_its_own_colour_and_marker_and_its_variants_other_markers(tmp_path):
    runs = [fake_run(tmp_path / f"{beta}", beta=beta) for beta in (1, 3)]
    first, second, other = dots(draw([*runs, fake_run(tmp_path / "c", "my_own")])).values()
    assert to_hex(first.get_color()) == to_hex(second.get_color()) == look("knfu")["color"]
    assert first.get_marker() == look("knfu")["marker"] != second.get_marker()
    assert other.get_markerfacecolor() == "white"


def test_the_figure_says_what_its_axes_and_marks_are(tmp_path):
    figure = draw([fake_run(tmp_path / "a")])
    assert figure.axes[0].get_ylabel() == "Own test accuracy (%)"
    assert figure.axes[0].get_xlabel() == "Method"
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["client", "median", "mean", "mean of the worst 10 %"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "name", "angle"),
    [
        (2, "knfu", 0),
        (14, "a_long_name", 45),
        (14, "a_name_too_long_to_lie_slanted", 90),
        (MOST, "knfu", 90),
    ],
)
def test_names_never_overlap_whatever_their_angle(tmp_path, methods, name, angle):
    figure = draw([fake_run(tmp_path / f"{n}", f"{name}{n}") for n in range(methods)])
    texts = figure.axes[0].get_xticklabels()
    assert {text.get_rotation() for text in texts} == {angle}
    found = ink(figure, texts)
    assert found.any((1, 2)).all()
    assert found.sum(0).max() == 1


def test_names_of_variants_never_overlap(tmp_path):
    runs = [fake_run(tmp_path / f"{n}", "fedd2s", rounds_per_drop=n) for n in range(5)]
    figure = draw([*runs, fake_run(tmp_path / "seed", "fedd2s", seed=1, rounds_per_drop=0)])
    axes = figure.axes[0]
    found = ink(figure, [*axes.get_xticklabels(), axes.xaxis.label, *figure.legends[0].get_texts()])
    assert found.sum(0).max() == 1


def test_few_methods_fit_a_column_and_many_a_page(tmp_path):
    runs = [fake_run(tmp_path / f"{n}", beta=n + 1) for n in range(14)]
    assert draw(runs[:2]).get_figwidth() == COLUMN
    assert draw(runs).get_figwidth() == PAGE


def test_more_methods_than_fit_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(fairness, "MOST", 2)
    runs = [fake_run(tmp_path / f"{n}", beta=n + 1) for n in range(3)]
    with pytest.raises(FedkdError, match="3 methods do not fit into one figure; allowed: 2"):
        draw(runs)


def test_a_run_without_a_measured_client_is_one_line(tmp_path):
    run = fake_run(tmp_path / "a", accuracies=())
    with pytest.raises(FedkdError, match="no client with a measured own_accuracy"):
        draw([run])


def test_the_command_writes_png_and_pdf_beside_the_first_run(tmp_path, capsys):
    folders = [str(fake_run(tmp_path / name, name).folder) for name in ("knfu", "fedmd")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", "fairness", *folders])
    stem = tmp_path / "knfu" / "plots" / "fairness"
    assert not ended.value.code
    assert capsys.readouterr().out.split() == [f"{stem}.png", f"{stem}.pdf"]
