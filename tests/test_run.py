"""A run's folder, resuming, and what goes wrong on the way."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from lines import Killed, KilledAfter, measured
from torch import nn

from fedkd import FedkdError, Run, registry, run
from fedkd.engine.worker import Worker
from fedkd.training import fit


@pytest.mark.parametrize("name", registry.names("strategies"))
@pytest.mark.parametrize("killed_after", [2, 3])
def test_a_killed_run_ends_with_the_numbers_it_would_have_had(name, killed_after, small, tmp_path):
    experiment = small(
        f"strategy.name={name}", "rounds=4", "checkpoint_every=2", "participation=0.5"
    )
    whole = measured(run(experiment, tmp_path / "whole"))
    with pytest.raises(Killed):
        run(experiment, tmp_path / "killed", observer=KilledAfter(killed_after))
    killed = Run.open(tmp_path / "killed")
    assert killed.summary is None
    assert len(killed.rounds) == killed_after
    resumed = run(experiment, tmp_path / "killed", resume=True)
    assert measured(resumed) == whole
    assert resumed.summary["rounds"] == 4


def test_resuming_a_finished_run_changes_nothing(small, tmp_path):
    done = run(small(), tmp_path / "run")
    before = (tmp_path / "run" / "rounds.jsonl").read_text()
    run(small(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "rounds.jsonl").read_text() == before
    assert done.summary is not None


def test_a_broken_checkpoint_is_one_line(small, tmp_path):
    with pytest.raises(Killed):
        run(small("rounds=4", "checkpoint_every=1"), tmp_path / "run", observer=KilledAfter(2))
    (tmp_path / "run" / "checkpoint" / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(FedkdError, match=r"--resume: the checkpoint .* cannot be read") as failure:
        run(small("rounds=4", "checkpoint_every=1"), tmp_path / "run", resume=True)
    assert "\n" not in str(failure.value)
    assert len(Run.open(tmp_path / "run").rounds) == 2


def test_nothing_to_resume_is_one_line(small, tmp_path):
    with pytest.raises(FedkdError, match="holds no checkpoint"):
        run(small(), tmp_path / "none", resume=True)


def test_another_experiment_is_never_overwritten(small, tmp_path):
    run(small(), tmp_path / "run")
    with pytest.raises(FedkdError, match="already holds another experiment"):
        run(small("seed=1"), tmp_path / "run")
    assert Run.open(tmp_path / "run").experiment.seed == 0


def test_a_folder_of_other_things_is_never_written_to(small, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(FedkdError, match="is not a run's folder"):
        run(small(), tmp_path / "thesis")
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_the_folder_has_all_that_a_figure_needs(small, tmp_path):
    done = run(small(), tmp_path / "run")
    assert {file.name for file in done.folder.iterdir()} == {
        "experiment.toml",
        "environment.json",
        "partition.json",
        "rounds.jsonl",
        "clients.jsonl",
        "releases.jsonl",
        "summary.json",
    }
    assert done.experiment == small()
    assert {
        "own_accuracy_mean",
        "own_accuracy_std",
        "own_accuracy_worst10",
        "common_accuracy_mean",
        "rounds",
        "bytes_up",
        "bytes_down",
        "seconds",
    } <= done.summary.keys()
    environment = json.loads((done.folder / "environment.json").read_text())
    assert {"torch", "flwr", "numpy"} <= environment["packages"].keys()
    counts = torch.tensor([client["labels"] for client in done.partition["clients"]])
    assert counts.sum(1).tolist() == [60, 60, 60, 60]


def test_a_line_that_was_cut_off_does_not_spoil_the_folder(small, tmp_path):
    done = run(small(), tmp_path / "run")
    with (done.folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "own_acc')
    assert [line["round"] for line in done.rounds] == [1, 2]


def test_client_numbers_average_to_the_line(small, tmp_path):
    done = run(small(), tmp_path / "run")
    for line in done.rounds:
        own = [
            entry["own_accuracy"]
            for entry in done.clients
            if entry["round"] == line["round"] and entry["stage"] == "fused"
        ]
        assert len(own) == 4
        assert line["own_accuracy_mean"] == pytest.approx(sum(own) / 4)


# --- clients that go wrong ------------------------------------------------------------------


class Sick(nn.Module):
    """A head whose output is not a number."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.linear(x) * float("nan")


@pytest.fixture
def sick_student():
    @registry.register("students", "sick")
    def sick(shape, classes, norm, width):
        return nn.Sequential(
            OrderedDict(flat=nn.Flatten(), head=Sick(torch.Size(shape).numel(), classes))
        )

    sick.__doc__ = "A student whose logits are NaN."


@pytest.mark.usefixtures("sick_student")
@pytest.mark.parametrize("name", ["knfu", "uniform", "dsfl", "fedmd"])
def test_a_client_that_returns_nan_is_left_out_and_recorded(name, small, tmp_path):
    experiment = small(f"strategy.name={name}", "student.models=['mlp', 'sick', 'mlp', 'mlp']")
    done = run(experiment, tmp_path / "run")
    for line in done.rounds:
        assert line["participants"] == [0, 2, 3]
        (entry,) = line["left_out"]
        assert (entry["client"], entry["step"]) == (1, "Fit")
        assert "nan" in entry["reason"]
    assert done.summary["left_out"] == 2
    # Three healthy clients learned: what is not a number reached no mean.
    assert done.rounds[-1]["own_loss_mean"] < 100
    healthy = [c["own_accuracy"] for c in done.clients if c["client"] != 1 and c["round"] == 2]
    assert min(healthy) > 0.2


@pytest.mark.usefixtures("sick_student")
def test_a_round_without_one_fit_reply_ends_the_run_in_one_line(small, tmp_path):
    with pytest.raises(FedkdError, match=r"round 1: every client's reply was left out \(client 0"):
        run(small("student.models=['sick']"), tmp_path / "run")
    assert Run.open(tmp_path / "run").rounds == []


def test_rows_that_are_not_probabilities_are_left_out(small, tmp_path, monkeypatch):
    perform = Worker.perform

    def lie(self, assignment):
        reply = perform(self, assignment)
        if assignment.client == 2 and "soft_labels" in reply.values:
            reply.values["soft_labels"][7] *= 2
        return reply

    monkeypatch.setattr(Worker, "perform", lie)
    done = run(small("strategy.name=knfu", "engine.cohort=off"), tmp_path / "run")
    assert [e["client"] for e in done.rounds[0]["left_out"]] == [2]
    assert "row 7" in done.rounds[0]["left_out"][0]["reason"]
    assert len(done.rounds[0]["strategy"]["weights"]) == 3


def test_parameters_that_are_not_finite_are_left_out(small, tmp_path):
    done = run(
        small("strategy.name=fedavg", "training.optimiser=sgd", "training.lr=1"), tmp_path / "ok"
    )
    assert done.rounds[0]["left_out"] == []
    with pytest.raises(FedkdError, match="every client's reply was left out"):
        run(
            small("strategy.name=fedavg", "training.optimiser=sgd", "training.lr=1e30"),
            tmp_path / "run",
        )


# --- wrong input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("strategy.name=knfuu", r"strategy\.name = 'knfuu' is not known \(did you mean 'knfu'\?\)"),
        ("student.models=['cnn4']", r"student\.models = 'cnn4' is not known \(did you mean 'cnn"),
        ("data.dataset=digit", r"data\.dataset = 'digit' is not known \(did you mean 'digits'\?\)"),
        ("data.partition=dirichlett", r"data\.partition = 'dirichlett'"),
        ("data.clients=5000", r"data\.clients = 5000"),
        ("data.transfer.size=5000", r"data\.transfer\.size = 5000"),
        ("strategy.beta=-1", r"strategy\.beta = -1 is not allowed"),
        ("strategy.objective=mse_logits", r"strategy\.objective = 'mse_logits' is not allowed"),
        ("strategy.objective=kll", r"objective = 'kll' is not known"),
        ("engine.device=tpu9", r"engine\.device = 'tpu9' is not here"),
        ("engine.device=meta", r"engine\.device = 'meta' is not here"),
        ("engine.device=", r"engine\.device = '' is not here"),
        ("engine.threads=512", r"engine\.threads = 512 is too many for \d+ cores"),
        ("student.width=100 student.models=cnn3", r"student\.width = 100 is too large: .* GB"),
        ("student.models=['resnet18'] student.norm=group data.dataset=npz:tiny.npz", r"4x4|4 x 4"),
        ("student.models=['cnn3'] data.dataset=npz:tiny.npz", r"cnn3.*8"),
        ("student.models=['resnet18']", r"norm"),
    ],
)
def test_wrong_input_is_one_line_before_anything_runs(override, line, small, tmp_path):
    np.savez("tiny.npz", x=np.zeros((400, 4, 4), np.uint8), y=np.arange(400) % 10)
    experiment = small("data.samples_per_client=20", *override.split())
    with pytest.raises(FedkdError, match=line) as failure:
        run(experiment, tmp_path / "run")
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_a_share_of_clients_that_is_almost_none_is_one_client(small, tmp_path):
    experiment = small("participation=1e-300", "rounds=1", "strategy.name=fedavg")
    assert len(run(experiment, tmp_path / "run").rounds[0]["participants"]) == 1


def test_fit_is_the_loop_that_runs_learn(small, monkeypatch, tmp_path):
    """The worker has no loop of its own, and a cohort's steps are that loop's too."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return fit(*args, **kwargs)

    monkeypatch.setattr("fedkd.engine.worker.fit", counting)
    run(small("strategy.name=local", "rounds=3", "engine.cohort=off"), tmp_path / "run")
    assert len(calls) == 3 * 4
