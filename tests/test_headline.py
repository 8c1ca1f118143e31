"""Where a method's paper scores it, and students that are tested beside the clients' own."""

import json

import pytest
import torch
from lines import forget_files, measured
from torch import nn

from fedkd import Run, load_rounds, load_runs, registry, run
from fedkd.headline import at, other_stage
from fedkd.server import ServerStudents
from fedkd.simulations.screen import print_summary
from fedkd.strategies.base import Headline, KnowledgeStrategy
from fedkd.summaries import reached
from fedkd.training import nearest_prototype
from fedkd.work import CrossEntropy, Evaluate, Hold, Load, Samples

FUSED = Headline()


@pytest.fixture
def scoring(small, tmp_path):
    """A function that runs local training with steps of ``score``, and a headline."""

    def run_it(score, headline=FUSED, *overrides):
        @registry.register("strategies", "scoring")
        class Scoring(KnowledgeStrategy):
            def score(self, round, client):
                return score(self)

        Scoring.headline = headline
        return run(small("strategy.name=scoring", *overrides), tmp_path / "run")

    return run_it


def fresh(strategy):
    """A student that nobody trained, under a name of its own."""
    parameters = strategy.initial_parameters()
    return [
        Hold("fresh"),
        Load(parameters, student="fresh"),
        Evaluate(key="fresh", student="fresh"),
    ]


def test_a_named_student_is_tested_on_all_sets_and_costs_nothing(scoring, small, tmp_path):
    done = scoring(fresh, Headline(evaluation="fresh"))
    local = run(small("strategy.name=local"), tmp_path / "local")
    for line in done.rounds:
        assert (line["bytes_up"], line["bytes_down"]) == (0, 0)
        for tests in ("own", "common"):
            assert (
                0 <= line[f"{tests}_fresh_accuracy_worst10"] <= line[f"{tests}_fresh_accuracy_mean"]
            )
            assert line[f"{tests}_fresh_loss_mean"] > 0
    # All hold the same untrained student, so all are as good on the common test set.
    assert done.summary["common_fresh_accuracy_std"] == 0
    assert done.summary["headline"] == "own_fresh_accuracy_mean"
    assert done.summary["other_stage_accuracy"] == done.summary["own_accuracy_mean"]
    for name in ("own_accuracy_mean", "common_loss_mean", "own_accuracy_mean_local"):
        assert done.summary[name] == local.summary[name]


def test_what_score_does_is_undone(scoring, small, tmp_path):
    done = scoring(lambda strategy: [Load(strategy.initial_parameters()), Evaluate(key="fresh")])
    local = run(small("strategy.name=local"), tmp_path / "local")
    trained = [line["own_accuracy_mean"] for line in local.rounds]
    assert [line["own_accuracy_mean"] for line in done.rounds] == trained
    assert [line["own_fresh_accuracy_mean"] for line in done.rounds] != trained


def test_without_own_tests_the_common_ones_are_the_headline(scoring):
    done = scoring(fresh, Headline("local"), "data.test.fraction=0")
    assert done.summary["headline"] == "common_accuracy_mean_local"
    assert done.summary["headline_accuracy"] == done.summary["common_accuracy_mean_local"]


def test_a_run_that_has_no_headline_has_that_of_its_method(small, tmp_path):
    done = run(small("strategy.name=fedmd"), tmp_path / "runs" / "run")
    file = done.folder / "summary.json"
    wrote = json.loads(file.read_text())
    names = ("headline", "headline_accuracy", "other_stage_accuracy")
    file.write_text(json.dumps({k: v for k, v in wrote.items() if k not in names}))
    forget_files(done.folder)
    (row,) = load_runs(tmp_path / "runs").to_dict("records")
    assert row["headline"] == "own_accuracy_mean_local"
    assert [row[name] for name in names] == [wrote[name] for name in names]


def test_a_headline_that_was_not_measured_is_named_and_has_no_number(small, tmp_path):
    run(small("strategy.name=fedgkt", "strategy.head=mlp"), tmp_path / "runs" / "run")
    (row,) = load_runs(tmp_path / "runs").to_dict("records")
    assert row["headline"] == "own_server_accuracy_mean"
    assert "headline_accuracy" not in row
    assert row["other_stage_accuracy"] == row["own_accuracy_mean"]


def test_rounds_have_it_too_and_rounds_to_a_target_are_counted_by_it(small, tmp_path):
    done = run(small("strategy.name=fedmd", "target_accuracy=0.2"), tmp_path / "runs" / "run")
    rounds = load_rounds(tmp_path / "runs")
    assert list(rounds["headline_accuracy"]) == list(rounds["own_accuracy_mean_local"])
    found = reached(done, 0.2, "own_accuracy_mean_local")
    assert done.summary["headline_rounds_to_target"] == found["rounds_to_target"]
    assert done.summary["headline_bytes_to_target"] == found["bytes_to_target"]


def test_the_other_stage_of_a_column():
    assert other_stage("own_accuracy_mean") == "own_accuracy_mean_local"
    assert other_stage("common_accuracy_mean_local") == "common_accuracy_mean"
    assert other_stage("common_server_accuracy_mean") == "common_accuracy_mean"
    assert at({"x": 1, "local": {"x": 2}}, "x_local") == 2
    assert at({"x": 1}, "x_local") is None


def test_what_many_clients_get_of_a_server_student_is_one_object_until_it_changes(small):
    server = ServerStudents(small())
    server.add("student", lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 3)))
    first = server.parameters("student")
    assert server.parameters("student") is first
    mine = {name: value.clone() for name, value in first.items()}
    first["1.weight"].zero_()  # whoever writes to it has it alone
    assert torch.equal(server.parameters("student")["1.weight"], mine["1.weight"])
    samples = Samples(torch.ones(4, 2), torch.tensor([0, 1, 2, 0]))
    before = server.parameters("student")
    server.fit("student", 1, samples, [CrossEntropy()], 1.0)
    after = server.parameters("student")
    assert not torch.equal(after["1.weight"], before["1.weight"])
    server.load("student", mine)
    assert torch.equal(server.parameters("student")["1.weight"], mine["1.weight"])


def test_the_nearest_prototype_decides():
    student = nn.Sequential()
    student.add_module("base", nn.Flatten())
    student.add_module("head", nn.Linear(2, 3))
    inputs = torch.tensor([[0.0, 0.1], [1.0, 0.9], [5.0, 5.0], [5.0, torch.nan]])
    prototypes = torch.tensor([[0.0, 0.0], [1.0, 1.0], [torch.nan, torch.nan]])

    def accuracy(*labels):
        samples = Samples(inputs, torch.tensor(labels))
        return nearest_prototype(student, samples, "base", prototypes)["accuracy"]

    assert accuracy(0, 1, 1, 1) == 0.75  # an answer that is no number is wrong
    assert accuracy(0, 1, 2, 2) == 0.5  # and so is a class without a prototype
    nothing = torch.full((3, 2), torch.nan)
    assert nearest_prototype(student, Samples(inputs[:1], torch.tensor([0])), "base", nothing) == {
        "accuracy": 0.0
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedproto", "fedgkt", "dsfl", "fml"])
def test_named_students_are_the_same_on_every_engine(name, small, tmp_path):
    lines = [
        measured(
            run(
                small(f"strategy.name={name}", "engine.cohort=off", *engine), tmp_path / str(number)
            )
        )
        for number, engine in enumerate(
            (["engine.name=inline"], ["engine.name=procs", "engine.workers=2"])
        )
    ]
    assert lines[0] == lines[1]


@pytest.fixture
def scored(small, tmp_path):
    """Runs of methods that are scored in three ways, and of one that has no such student."""
    for name, *options in (["fedmd"], ["fedgkt"], ["local"], ["dsfl"], ["fedproto"]):
        run(small(f"strategy.name={name}", "rounds=1", *options), tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_tables_show_what_papers_score_and_beside_it_the_other_stage(scored, fedkd):
    code, out, _ = fedkd("table", str(scored), "--format", "csv")
    assert code == 0
    lines = [line.split(",") for line in out.splitlines()[1:]]
    shown = {(line[0], line[1]): float(line[4]) for line in lines}
    for name in ("fedmd", "fedgkt", "local", "dsfl", "fedproto"):
        summary = Run.open(scored / name).summary
        for value in ("headline_accuracy", "other_stage_accuracy"):
            assert shown[name, value] == pytest.approx(100 * summary[value], rel=1e-4)
    _, out, _ = fedkd("table", str(scored))
    assert "own_accuracy_mean_local of fedmd" in out
    assert "own_server_accuracy_mean of dsfl, fedgkt" in out
    _, out, _ = fedkd("table", str(scored), "--value", "own_accuracy_mean")
    assert "headline" not in out


def test_a_table_says_whose_headline_was_not_measured(small, scored, tmp_path, fedkd):
    run(small("strategy.name=fedgkt", "strategy.head=mlp", "seed=1"), scored / "mlp")
    _, out, _ = fedkd("table", str(scored), "--where", "seed=0")
    assert "Not measured" not in out
    _, out, _ = fedkd("table", str(scored), "--rows", "strategy.name,strategy.head")
    assert "Not measured in runs of fedgkt." in out
    _, out, _ = fedkd("table", str(scored), "--where", "seed=1")
    assert "own_accuracy_mean" in out
    assert "headline" not in out


def test_runs_side_by_side_say_what_their_papers_score(scored, fedkd):
    _, out, _ = fedkd("compare", *(str(scored / name) for name in ("fedmd", "local")))
    assert "as in the paper" in out
    assert "(own_accuracy_mean_local of fedmd)" in out


def test_the_end_of_a_run_marks_what_its_paper_scores(small, tmp_path, capsys):
    for name, row in (("fedgkt", "server, after fusion *"), ("fedmd", "after local training *")):
        done = run(small(f"strategy.name={name}", "rounds=1"), tmp_path / name)
        print_summary(done)
        out = capsys.readouterr().out
        assert row in out
        assert "*: what the method's paper scores" in out
