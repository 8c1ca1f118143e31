"""What stands under figures, what their lines are called, and names of somebody else."""

import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from test_plot_curves import fake_run

from fedkd.caveats import LOCAL_TRAINING
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.plots import curves, fairness, partition
from fedkd.plots.gather import lines, panels
from fedkd.plots.style import COLUMN, save
from fedkd.results import Run
from fedkd.simulations import cli


def note(figure):
    """The text under a figure."""
    return figure.texts[-1].get_text()


def names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def suite(folder, *cells):
    """Runs of a suite: a folder, the keys of its experiment and its labels each."""
    stored = []
    for name, keys, labels in cells:
        experiment = Experiment.from_dict({"rounds": 2, "data": {"clients": 3}} | keys)
        run = Run.at(experiment, folder / name).begin(experiment)
        for number in (1, 2):
            own = {"own_accuracy_mean": 0.5, "own_accuracy_std": 0.0}
            line = {"round": number, "left_out": [], "bytes_up": 1, "bytes_down": 1}
            clients = [
                {"round": number, "client": n, "stage": "fused", "own_accuracy": 0.5}
                for n in range(3)
            ]
            run.append_round(line | own | {"local": own}, clients)
        run.write_summary({"own_accuracy_mean": 0.5, "bytes_up": 2, "bytes_down": 2})
        stored.append({"folder": name, "labels": labels})
    (folder / "suite.json").write_text(json.dumps({"cells": stored}))
    return [Run(folder / name) for name, *_ in cells]


def two_methods(folder, one="Ours", other="Theirs", seeds=(0,)):
    return suite(
        folder,
        *(
            (f"{name}-{seed}", {"strategy": {"name": name}, "seed": seed}, labels | {"seed": seed})
            for name, labels in (("knfu", {"method": one}), ("local", {"method": other}))
            for seed in seeds
        ),
    )


# --- under a figure -----------------------------------------------------------------------------


def test_a_figure_says_what_it_is_of_and_what_its_runs_warn_of(tmp_path):
    runs = two_methods(tmp_path, seeds=(0, 1, 2))
    runs[1].warn("it leaves clients to themselves", 2, LOCAL_TRAINING)
    said = note(curves.draw(runs)).replace("\n", " ")
    assert said.startswith("3 clients, 2 rounds, 3 seeds")
    assert "Ours (1 of 3 runs): it leaves clients to themselves" in said


def test_a_figure_says_nothing_of_runs_that_it_does_not_show(tmp_path):
    ours, theirs = two_methods(tmp_path)
    theirs.warn("it is not shown")
    assert "not shown" not in note(curves.draw([ours]))


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_warnings_take_three_lines_at_most_and_the_rest_are_counted(tmp_path, count):
    (run, _) = two_methods(tmp_path)
    for number in range(count):
        run.warn(f"{'abcdefghijkl'[number] * 4} " + "and so on " * 20)
    figure = curves.draw([run])
    assert len(note(figure).split("\n")) <= 1 + 3
    assert ("more kinds of warnings" in note(figure)) == (count + 1 > 3)


def test_a_note_keeps_clear_of_legend_and_axes(tmp_path):
    runs = two_methods(tmp_path, seeds=(0, 1))
    runs[0].warn("a warning that goes on " * 10)
    figure = curves.draw(runs)
    FigureCanvasAgg(figure).draw()
    box = figure.texts[-1].get_window_extent()
    assert figure.get_figwidth() == COLUMN
    assert 0 <= box.y0 < box.y1 < figure.legends[0].get_window_extent().y0
    assert (
        figure.legends[0].get_window_extent().y1 < figure.axes[0].xaxis.label.get_window_extent().y0
    )
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


# --- names of lines -----------------------------------------------------------------------------


def test_lines_of_a_suite_have_its_labels(tmp_path):
    assert names(curves.draw(two_methods(tmp_path))) == ["Ours", "Theirs"]


def test_labels_that_are_numbers_say_of_what(tmp_path):
    cells = [
        (
            f"{beta:g}",
            {"strategy": {"name": "knfu", "beta": beta}},
            {"beta": f"{beta:g}", "seed": 0},
        )
        for beta in (0.0, 3.0)
    ]
    assert [line.label for line in lines(suite(tmp_path, *cells))] == ["beta 0", "beta 3"]


def test_panels_of_a_suite_have_its_labels(tmp_path):
    cells = [
        (f"{alpha}{name}", {"strategy": {"name": name}, "data": {"alpha": alpha}}, labels)
        for alpha, split in ((0.1, "unlike"), (10.0, "alike"))
        for name in ("knfu", "local")
        for labels in [{"split": split, "method": name.upper(), "seed": 0}]
    ]
    runs = suite(tmp_path, *cells)
    parts, keys = panels(runs)
    assert [part.title for part in parts] == ["unlike", "alike"]
    assert [line.label for line in lines(runs, keys)] == ["KNFU", "LOCAL"]


def test_runs_of_two_suites_and_of_none_are_called_by_their_methods(tmp_path):
    one = two_methods(tmp_path / "a")
    assert [line.label for line in lines(one[:1])] == ["Ours"]
    other = two_methods(tmp_path / "b", seeds=(1,))
    (tmp_path / "b" / "suite.json").unlink()
    assert [line.label for line in lines([one[0], other[1]])] == ["knfu", "local"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"cells": [{}]}', '{"cells": [{"folder": "knfu-0"}]}']
)
def test_a_suite_that_cannot_be_read_gives_no_names(tmp_path, text):
    runs = two_methods(tmp_path)
    (tmp_path / "suite.json").write_text(text)
    assert [line.label for line in lines(runs)] == ["knfu", "local"]


def test_a_folder_of_two_cells_has_both_labels(tmp_path):
    runs = two_methods(tmp_path)
    stored = json.loads((tmp_path / "suite.json").read_text())
    stored["cells"].append({"folder": "knfu-0", "labels": {"method": "Again", "seed": 0}})
    (tmp_path / "suite.json").write_text(json.dumps(stored))
    assert [line.label for line in lines(runs)] == ["Ours / Again", "Theirs"]


def test_two_lines_are_never_called_the_same(tmp_path):
    runs = []
    for n, name in enumerate("ab"):
        experiment = Experiment.from_dict({"rounds": n + 1})
        runs.append(Run.at(experiment, tmp_path / name / "run").begin(experiment))
    assert [line.label for line in lines(runs)] == ["knfu, a/run", "knfu, b/run"]


def test_one_run_in_two_folders_is_one_line_of_refusal(tmp_path):
    runs = [fake_run(tmp_path / name) for name in "ab"]
    with pytest.raises(FedkdError, match="one experiment with one seed"):
        curves.draw(runs)


# --- names of somebody else -----------------------------------------------------------------------

NASTY = (
    "$",
    "a$b",
    "$x$",
    r"$\frac{$",
    "x_1^2",
    r"\alpha",
    "100 %",
    "{",
    "a\nb",
    "\x1b[31mred",
    "β",
)


def test_labels_stand_in_a_figure_as_they_are(tmp_path):
    cells = [
        (str(n), {"strategy": {"name": "knfu", "beta": n}}, {"method": label, "seed": 0})
        for n, label in enumerate(NASTY)
    ]
    figure = curves.draw(suite(tmp_path, *cells))
    FigureCanvasAgg(figure).draw()
    assert names(figure) == [x.replace("\n", " ").replace("\x1b", "") for x in NASTY]
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


def test_names_of_classes_stand_as_they_are(tmp_path):
    (run, _) = two_methods(tmp_path)
    clients = [
        {"client": n, "student": "mlp", "train": 3, "labels": [1] * len(NASTY)} for n in (0, 1)
    ]
    classes = [*NASTY[:-1], "long" * 100]
    (run.folder / "partition.json").write_text(
        json.dumps(
            {"classes": classes, "clients": [client | {"own_test": 1} for client in clients]}
        )
    )
    figure = partition.draw([run])
    FigureCanvasAgg(figure).draw()
    shown = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert shown[:2] == ["$", "a$b"]
    assert max(map(len, shown)) <= 30
    for text in figure.findobj(Text):
        text._get_layout(figure.canvas.get_renderer())


def test_columns_of_clients_are_called_as_they_are(tmp_path):
    figure = fairness.draw(two_methods(tmp_path, one="$a_b$, x"))
    FigureCanvasAgg(figure).draw()
    assert any("$a_b$" in text.get_text() for text in figure.axes[0].get_xticklabels())


# --- runs of all kinds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figure",
    ["curves", "alpha", "size", "weights", "pareto", "calibration", "fairness", "exposure"],
)
def test_runs_that_do_not_fit_a_figure_are_one_line(tmp_path, capsys, figure):
    begun = Experiment.from_dict({"seed": 2})
    folder = Run.at(begun, tmp_path / "begun").begin(begun).folder
    two_methods(tmp_path / "done")
    words = [str(tmp_path / "done"), str(folder), "--out", str(tmp_path / "figure")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", figure, *words])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fedkd: ")


def test_an_unfinished_run_is_in_its_curves_and_said_to_be(tmp_path):
    runs = two_methods(tmp_path)
    (runs[0].folder / "summary.json").unlink()
    assert "has not ended: 2 of 2 rounds" in note(curves.draw(runs)).replace("\n", " ")


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_what_is_not_the_name_of_a_file_is_one_line(tmp_path, name):
    with pytest.raises(FedkdError, match="cannot be written"):
        save(curves.draw(two_methods(tmp_path)[:1]), tmp_path.__class__(name))
