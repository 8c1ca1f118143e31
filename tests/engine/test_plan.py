"""What runs where."""

import itertools
import random

import pytest

from fedkd import Experiment, FedkdError, registry, run
from fedkd.engine import plan
from fedkd.engine.worker import Worker
from fedkd.simulations.shipped import experiment_text
from fedkd.students import build, count_parameters, multiply_adds

TWO = "engine.workers=2"


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_client_has_one_worker(workers):
    given = plan.shares([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0], workers)
    assert sorted(client for share in given for client in share) == list(range(7))
    assert all(share == sorted(share) for share in given)


def test_clients_that_cost_the_same_are_spread_evenly():
    assert sorted(map(len, plan.shares([1.0] * 10, 4))) == [2, 2, 3, 3]
    assert sorted(map(len, plan.shares([0.0] * 10, 4))) == [2, 2, 3, 3]


def test_a_costly_client_has_a_worker_to_itself():
    assert plan.shares([1.0, 1.0, 10.0, 1.0], 2) == [[2], [0, 1, 3]]


def test_no_share_is_more_than_a_third_above_the_best_there_is():
    draw = random.Random(0)
    for _ in range(20):
        costs = [draw.expovariate(1) for _ in range(7)]

        def longest(given, costs=costs):
            return max(sum(costs[client] for client in share) for share in given)

        best = min(
            longest([[n for n in range(7) if at[n] == worker] for worker in range(2)])
            for at in itertools.product(range(2), repeat=7)
        )
        assert longest(plan.shares(costs, 2)) <= best * (4 / 3 - 1 / 6) + 1e-9


@pytest.mark.parametrize(
    ("cgroup", "files", "allowed"),
    [
        ("0::/", {"sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "100000 100000"}, 1),
        ("0::/elsewhere", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 1),
        ("0::/", {"sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
        ("4:cpu,cpuacct:/d", {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
                              "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, 64),
        ("0::/", {}, 64),
        ("", {}, 64),
    ],
)  # fmt: skip
def test_cores_are_bounded_by_affinity_and_by_quotas(cgroup, files, allowed, tmp_path, monkeypatch):
    monkeypatch.setattr(plan.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in {"proc/self/cgroup": f"{cgroup}\n" if cgroup else "", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert plan.cores(tmp_path) == allowed
    monkeypatch.setattr(plan.os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert plan.cores(tmp_path) == 1


def test_there_are_no_more_workers_than_clients_at_work(small):
    assert plan.workers(small("engine.workers=9")) == 4
    assert plan.workers(small("engine.workers=9", "participation=0.5")) == 2


def choice(experiment):
    return plan.chosen(experiment, plan.costs(Worker(experiment)))


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_the_quick_start_runs_in_this_process(workers):
    text = experiment_text("quickstart")
    assert choice(Experiment.from_toml(text, [f"engine.workers={workers}"])) == "inline"


def test_a_long_run_gets_processes_where_there_are_cores_for_them(small):
    long = ("rounds=100000", "student.models=['cnn2']")
    assert choice(small(*long, TWO)) == "procs"
    assert choice(small(*long, "engine.workers=1")) == "inline"
    assert choice(small(*long, TWO, "engine.remember=true")) == "inline"


def test_more_of_anything_never_turns_processes_down(small):
    costs = plan.costs(Worker(small("student.models=['cnn2']")))
    chosen = [plan.chosen(small(f"rounds={r}", TWO), costs) for r in (1, 10, 10**3, 10**5, 10**6)]
    assert chosen == sorted(chosen)  # "inline" comes before "procs"


def test_work_grows_with_samples_and_with_the_student(small):
    overrides = ("data.partition=quantity-skew", "data.alpha=0.3", "data.samples_per_client=9999")
    worker = Worker(small(*overrides))
    sizes, costs = worker.data.sizes().tolist(), plan.costs(worker)
    assert max(sizes) > 2 * min(sizes)
    assert sorted(range(4), key=lambda n: sizes[n]) == sorted(range(4), key=lambda n: costs[n])
    mixed = plan.costs(Worker(small("student.models=['mlp', 'cnn2']")))
    assert mixed[0] == mixed[2] < mixed[1] == mixed[3]


def test_multiplications_of_known_students(small):
    table = small().student
    mlp = build("mlp", (64,), 10, table, 0)
    assert multiply_adds(mlp, (64,)) == count_parameters(mlp)
    cnn = build("cnn2", (1, 28, 28), 10, table, 0)
    assert cnn.training
    first = next(cnn.modules().__iter__())
    assert multiply_adds(cnn, (1, 28, 28)) > 28 * 28 * 5 * count_parameters(first[0]) / 10
    assert cnn.training
    gru = build("gru", (16,), 50, table, 0, tokens=True)
    assert multiply_adds(gru, (16,), tokens=True) == 2 * multiply_adds(gru, (8,), tokens=True)


def test_the_engine_is_no_part_of_what_an_experiment_is(small):
    engines = ("auto", "inline", "procs", "ray", "flower")
    digests = {small(f"engine.name={name}").digest() for name in engines}
    digests |= {small("engine.workers=3", "engine.cpus_per_worker=2").digest()}
    assert len(digests) == 1


def test_what_only_this_process_knows_keeps_the_run_in_it(small, tmp_path):
    registry.register("students", "mine")(registry.load("students", "mlp"))
    long = ("rounds=100000", "student.models=['mine']", TWO)
    assert choice(small(*long)) == "inline"
    with pytest.raises(FedkdError, match="mine was registered in this process") as failure:
        run(small(*long, "engine.name=procs"), tmp_path / "run")
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "run").exists()


def test_a_time_limit_needs_processes_and_says_where_it_can_have_none(small):
    """A client that does not answer can only be ended with the process that it works in."""
    assert choice(small("engine.timeout=9")) == "procs"
    warnings = []
    with plan.host(Worker(small("engine.timeout=9", "engine.remember=true")), warnings.append):
        assert warnings == ["engine.timeout = 9.0 has no effect: engine.name is 'inline' here"]


@pytest.mark.parametrize("name", ["procs", "ray", "flower"])
def test_more_processes_or_threads_than_a_machine_can_have_are_refused_before_they_begin(
    name, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan, "cores", lambda: 2)
    many = ("data.clients=40", "data.samples_per_client=10", f"engine.name={name}")
    with pytest.raises(FedkdError, match=r"engine\.workers = 40 is .*for the 2 cores.*at most 32$"):
        run(small(*many, "engine.workers=40"), tmp_path / "run")
    with pytest.raises(FedkdError, match=r"engine\.threads = 64 is not allowed with 30 workers"):
        run(small(*many, "engine.workers=30", "engine.threads=64"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_students_of_this_process_are_refused_on_flower_too(small, tmp_path):
    registry.register("strategies", "mine")(registry.load("strategies", "local"))
    experiment = small("strategy.name=mine", "engine.name=flower")
    with pytest.raises(FedkdError, match="mine was registered in this process"):
        run(experiment, tmp_path / "run")


def test_flower_does_not_wait_for_gpus_that_are_not_there(small, tmp_path):
    experiment = small("engine.name=flower", "engine.gpus_per_worker=9")
    with pytest.raises(FedkdError, match=r"engine\.gpus_per_worker = 9 is too much: this machine"):
        run(experiment, tmp_path / "run")


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "cpu:1", "cuda:", "CUDA", "cuda:99", ""])
def test_a_device_that_is_none_is_one_line(name, small):
    said = rf"^engine\.device = '{name}' is not here \(.*\); allowed: auto, cpu"
    with pytest.raises(FedkdError, match=said) as failure:
        Worker(small(f"engine.device='{name}'"))
    assert "\n" not in str(failure.value)
