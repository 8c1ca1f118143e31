"""One experiment, the same numbers on every engine."""

import shlex
from pathlib import Path

import pytest
import texts
from lines import measured

from fedkd import Experiment, FedkdError, Run, run
from fedkd.codec import Codec, decode
from fedkd.engine.inline import InlineGrid
from fedkd.engine.superlink import run_app
from fedkd.engine.worker import Worker
from fedkd.results import PLACES
from fedkd.simulations.shipped import experiment_text
from fedkd.work import Assignment, Evaluate, Fit, Predict

ALONE = "engine.cohort=off"


def running(word):
    """Command lines of this machine's processes that hold ``word``."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if word in line:
            found.append(line)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "fedmd", "fedgen", "fedkd-svd", "knfu", "scarlet"])
def test_inline_and_flower_agree_bit_for_bit(name, small, tmp_path):
    overrides = [f"strategy.name={name}", "rounds=3", "participation=0.75", ALONE]
    if name in ("knfu", "fedmd"):
        overrides.append("student.models=['cnn2', 'mlp']")
    inline = run(small(*overrides), tmp_path / "inline")
    flower = run(small(*overrides, "engine.name=flower"), tmp_path / "flower")
    assert measured(flower) == measured(inline)
    assert flower.partition == inline.partition


@pytest.mark.slow
def test_a_text_run_with_canaries_and_noise_agrees_in_its_ledger_and_exposures(tmp_path):
    (tmp_path / "texts").mkdir()
    table = texts.experiment(tmp_path / "texts", "strategy.name=swing", "rounds=2")
    inline = run(table, tmp_path / "inline")
    engine = table.engine.model_copy(update={"name": "flower"})
    flower = run(table.model_copy(update={"engine": engine}), tmp_path / "flower")
    assert measured(flower) == measured(inline)
    assert flower.releases == inline.releases
    assert flower.exposures == inline.exposures
    assert {line["place"] for line in inline.exposures} == set(PLACES)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_flowers_runtime_leaves_no_process_behind(small, tmp_path):
    before = running("flower-superlink") + running("raylet")
    run(small("engine.name=flower", "rounds=1"), tmp_path / "run")
    assert set(running("flower-superlink") + running("raylet")) <= set(before)


@pytest.mark.slow
def test_what_a_client_cannot_do_is_one_line_from_flower_too(small, tmp_path):
    experiment = small("engine.name=flower", "strategy.name=knfu", "training.lr=1e30")
    with pytest.raises(FedkdError, match="round 1: every client's reply was left out"):
        run(experiment, tmp_path / "run")


def test_resuming_on_flower_is_refused_in_one_line(small, tmp_path):
    experiment = small("engine.name=flower")
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "of-another-engine.pt").write_bytes(b"")
    (tmp_path / "run" / "experiment.toml").write_text(experiment.to_toml())
    with pytest.raises(FedkdError, match=r"--resume is not possible with engine\.name = 'flower'"):
        run(experiment, tmp_path / "run", resume=True)


def test_messages_may_be_pushed_and_pulled(small):
    worker = Worker(small())
    grid, codec = InlineGrid(worker), Codec()
    assignments = [Assignment(n, 1, "learn", (Fit(epochs=0.1), Predict())) for n in range(4)]
    messages = [
        grid.create_message(codec.encode(work), "train", work.client, "1") for work in assignments
    ]
    names = list(grid.push_messages(messages))
    replies = [decode(message.content) for message in grid.pull_messages(names[::-1])]
    assert [reply.client for reply in replies] == [3, 2, 1, 0]


def test_a_trial_is_undone(small):
    worker = Worker(small())
    tests = (Evaluate("own", "own"),)
    before = worker.perform(Assignment(0, 1, "receive", (), tests)).metrics
    tried = worker.perform(Assignment(0, 1, "receive", (), (Fit(), *tests))).metrics
    after = worker.perform(Assignment(0, 1, "receive", (), tests)).metrics
    assert tried["own_loss"] != before["own_loss"]
    assert after["own_loss"] == before["own_loss"]


def test_clients_of_one_architecture_share_a_module_and_nothing_else(small):
    """Work of other clients in between changes nothing."""
    fit = (Fit(), Predict())
    alone, among = Worker(small()), Worker(small())
    for client in (2, 1, 3):
        among.perform(Assignment(client, 1, "learn", fit))
    expected = alone.perform(Assignment(0, 1, "learn", fit)).values["soft_labels"]
    found = among.perform(Assignment(0, 1, "learn", fit)).values["soft_labels"]
    assert bool((expected == found).all())


def test_the_draw_depends_on_client_and_round(small):
    worker = Worker(small("student.init=same"))

    def loss(client, round):
        worker.states.clear()
        return worker.perform(Assignment(client, round, "learn", (Fit(),))).metrics["train_loss"]

    assert loss(0, 1) == loss(0, 1)
    assert loss(0, 1) != loss(0, 2)


def test_same_initial_students_are_the_same(small):
    for init, same in (("same", True), ("own", False)):
        worker = Worker(small(f"student.init={init}"))
        first, second = (worker.state(client)["own"]["head.weight"] for client in (0, 1))
        assert bool((first == second).all()) == same


@pytest.mark.slow
def test_flwr_run_in_the_source_folder_is_the_same_experiment(small, tmp_path):
    """What ``flwr run .`` does, on a SuperLink that is ended afterwards."""
    source = Path(__file__).parents[2]
    overrides = ["rounds=2", "data.clients=4", "student.models=['mlp']", ALONE]
    config = {"experiment": "quickstart", "set": " ".join(map(shlex.quote, overrides))}
    run_app(source, {**config, "out": str(tmp_path / "flower")}, nodes=4, workers=2)
    experiment = Experiment.from_toml(experiment_text("quickstart"), overrides)
    assert measured(Run.open(tmp_path / "flower")) == measured(run(experiment, tmp_path / "inline"))


@pytest.mark.slow
def test_a_federation_of_another_size_is_one_line(tmp_path):
    source = Path(__file__).parents[2]
    said = []
    with pytest.raises(RuntimeError):
        run_app(source, {"out": str(tmp_path / "run")}, nodes=3, workers=2, stream=said.append)
    assert any("data.clients = 10, but the federation has 3 nodes" in line for line in said)
