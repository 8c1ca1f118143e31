"""Train and eval as torch means them, draws that are keyed, and what is frozen stays so."""

import os
import random

import nasty
import numpy as np
import pytest
import torch
from lines import Killed, KilledAfter, measured
from torch import nn

from fedkd import FedkdError, Run, registry, run
from fedkd.engine.worker import Worker
from fedkd.registry import load as find
from fedkd.sections import StudentTable
from fedkd.server import ServerStudents
from fedkd.students import build
from fedkd.training import fit, predict, represent
from fedkd.training_tables import TrainingTable
from fedkd.work import Assignment, CrossEntropy, Fit, Load, Predict, Proximal, Samples, Share, Soft

SGD = TrainingTable(optimiser="sgd", lr=0.1, batch_size=8, local_epochs=2)
OWN = "student.models=['own']"


def learned(model, samples, seed=0, training=SGD, **options):
    """The model's loss and tensors after a fit."""
    loss = fit(
        model, samples, [CrossEntropy()], training, torch.Generator().manual_seed(seed), **options
    )
    return loss, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def made(*layers, head=4):
    """Six features, layers of six, and a head; the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 6), *(layer() for layer in layers), nn.Linear(6, head))


def dropping(p):
    return made(lambda: nn.Dropout(p))


# --- modes ----------------------------------------------------------------------------------


def test_dropout_in_a_block_of_its_own_drops(samples):
    losses = {p: learned(dropping(p), samples)[0] for p in (0.0, 0.5, 0.9)}
    assert len({*losses.values()}) == 3
    assert losses[0.0] == learned(made(nn.Identity), samples)[0]


def test_what_has_parameters_of_which_none_learns_is_frozen_and_the_rest_trains(samples):
    seen = {}

    class Mode(nn.Module):
        def __init__(self, name, weights):
            super().__init__()
            self.name = name
            self.weight = nn.Parameter(torch.ones(6)) if weights else None

        def forward(self, inputs):
            seen[self.name] = self.training
            return inputs if self.weight is None else inputs * self.weight

    model = made(lambda: Mode("weights", True), lambda: Mode("none", False))
    learned(model, samples)
    assert seen == {"weights": True, "none": True}
    learned(model, samples, part=("head",))
    assert seen == {"weights": False, "none": True}
    model[1].requires_grad_(False)
    learned(model, samples)
    assert seen == {"weights": False, "none": True}
    predict(model, samples.inputs)
    assert seen == {"weights": False, "none": False}


@pytest.mark.parametrize(("affine", "moves"), [(True, False), (False, True)])
def test_statistics_follow_the_data_unless_their_block_is_frozen(affine, moves, samples):
    model = made(lambda: nn.BatchNorm1d(6, affine=affine))
    before = model[1].running_mean.clone()
    learned(model, samples, part=("head",))
    assert bool((model[1].running_mean != before).any()) == moves


# --- draws ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Dropout, nasty.NumpyNoise, nasty.PythonNoise])
def test_what_a_student_draws_depends_on_the_key_alone(layer, samples):
    first = learned(made(layer), samples)
    torch.rand(3), np.random.rand(3), random.random()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    again = learned(made(layer), samples)
    assert first[0] == again[0]
    assert equal(first[1], again[1])
    assert learned(made(layer), samples, seed=1)[0] != first[0]
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()


def test_draws_leave_the_order_of_batches_as_it_was(samples):
    """Dropout of nothing draws nevertheless."""
    assert equal(learned(made(nn.Identity), samples)[1], learned(dropping(0.0), samples)[1])


def test_a_student_that_draws_when_it_answers_does_so_by_its_key(samples):
    model = made(nasty.AlwaysDropout)
    one, other = predict(model, samples.inputs, 1), predict(model, samples.inputs, 2)
    torch.rand(1)
    assert torch.equal(one, predict(model, samples.inputs, 1))
    assert not torch.equal(one, other)


def test_clients_rounds_students_and_answers_have_draws_of_their_own(small):
    nasty.add(lambda: nasty.between(nasty.AlwaysDropout()))
    host = Worker(small(OWN, "student.init=same"))
    steps = (Predict(key="one"), Predict(key="other"))
    told = [
        host.perform(Assignment(client, server_round, "learn", steps))
        for client, server_round in [(0, 1), (1, 1), (0, 2), (0, 1)]
    ]
    answers = [reply.values[key] for reply in told[:3] for key in ("one", "other")]
    for number, one in enumerate(answers):
        assert not any(torch.equal(one, other) for other in answers[number + 1 :])
    assert torch.equal(told[0].values["other"], told[3].values["other"])


def test_dropout_goes_with_dp_sgd(small):
    told = []
    for number, p in enumerate([0.5, 0.5, 0.0]):
        nasty.add(lambda p=p: nasty.between(nn.Dropout(p)))
        torch.rand(number)
        changes = ("strategy.name=local", "data.clients=2", "training.dp.noise_multiplier=0.5")
        done = run(small(OWN, *changes), str(number))
        told.append([line["train_loss_mean"] for line in done.rounds])
    assert told[0] == told[1] != told[2]


RUNS = ("strategy.name=fml", "strategy.shared_model=drops", "student.models=['drops', 'mlp']")


@pytest.fixture
def drops(tmp_path, monkeypatch):
    """A student that draws everywhere, which other processes find, too."""
    folder = tmp_path / "site"
    (folder / "drops-1.0.dist-info").mkdir(parents=True)
    (folder / "drops-1.0.dist-info" / "METADATA").write_text("Name: drops\nVersion: 1.0\n")
    points = "[fedkd.students]\ndrops = nasty:dropout\n"
    (folder / "drops-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(folder)
    # Before what is there: processes that Flower and Ray begin look there, too.
    before = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    here = os.path.dirname(__file__)
    path = os.pathsep.join([str(folder), here, *before, os.path.dirname(here)])
    monkeypatch.setenv("PYTHONPATH", path)
    registry._points.cache_clear()
    yield
    registry._points.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("drops")
def test_draws_are_the_same_in_worker_processes_in_a_second_run_and_in_one_that_goes_on(
    small, tmp_path
):
    experiment = small(*RUNS, "data.clients=2", "checkpoint_every=1")
    inline = measured(run(experiment, tmp_path / "inline"))
    with pytest.raises(Killed):
        run(experiment, tmp_path / "again", observer=KilledAfter(1))
    torch.rand(7)
    assert measured(run(experiment, tmp_path / "again", resume=True)) == inline
    elsewhere = small(*RUNS, "data.clients=2", "engine.name=procs", "engine.workers=2")
    assert measured(run(elsewhere, tmp_path / "procs")) == inline


@pytest.mark.slow
@pytest.mark.usefixtures("drops")
@pytest.mark.parametrize("engine", ["flower", "ray"])
def test_draws_are_the_same_on_flower_and_ray(engine, small, tmp_path):
    inline = run(small(*RUNS), tmp_path / "inline")
    elsewhere = run(small(*RUNS, f"engine.name={engine}", "engine.workers=2"), tmp_path / engine)
    assert measured(elsewhere) == measured(inline)


NAMES = [name for name in sorted(registry.names("strategies")) if name != "swing"]  # text alone


@pytest.mark.parametrize(
    "name",
    [name if name == "knfu" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_every_method_says_the_same_twice_with_a_student_that_draws(name, tmp_path, small):
    registry.register("students", "own")(nasty.dropout)
    changes = (f"strategy.name={name}", OWN, "data.clients=2", "training.local_epochs=1")
    if name == "fml":
        changes += ("strategy.shared_model=own",)
    if name == "fedmrl":
        changes += ("strategy.nested=8",)
    told = []
    for number in range(2):
        torch.rand(number), np.random.rand(number), random.random()
        told.append(measured(run(small(*changes), tmp_path / str(number))))
    assert told[0] == told[1]


# --- frozen ---------------------------------------------------------------------------------


def moved(before, after):
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("cohort", ["off", "on"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_what_a_factory_froze_stays_frozen(cohort, optimiser, decay, small):
    nasty.add(nasty.frozen_body)
    changes = (f"training.optimiser={optimiser}", f"training.weight_decay={decay}")
    host = Worker(small(OWN, f"engine.cohort={cohort}", *changes))
    initial = {client: dict(host.state(client)["own"]) for client in range(4)}
    before = {c: {n: t.clone() for n, t in own.items()} for c, own in initial.items()}
    terms = (CrossEntropy(), Proximal(1.0)) if decay else (CrossEntropy(),)
    steps = (
        Fit(terms=terms),
        Fit("transfer", (Soft(torch.full((80, 10), 0.1)),), key="distilled"),
        Share(),
    )
    replies = host.perform_all([Assignment(c, 1, "learn", steps) for c in range(4)], lambda _: None)
    for reply in replies:
        assert moved(before[reply.client], host.state(reply.client)["own"]) == {"3"}
        assert reply.values["parameters"].keys() == before[0].keys()
    host.perform(Assignment(0, 2, "learn", (Fit(part=("3",)), Fit())))
    assert moved(before[0], host.state(0)["own"]) == {"3"}


PRIVATE = {
    "plain": (),
    "dp-sgd": ("training.dp.noise_multiplier=1",),
    "noisy average": ("strategy.clipping_norm=1", "strategy.noise_multiplier=1"),
}
METHODS = ("fedprox", "feddf", "fedavg-ft", "ditto", "fedntd", "moon")


@pytest.mark.parametrize("private", PRIVATE)
@pytest.mark.parametrize(
    "name", ["fedavg", *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS)]
)
def test_frozen_weights_are_sent_and_averaged_to_the_same_bits(name, private, small, monkeypatch):
    if name == "feddf" and private == "noisy average":
        pytest.skip("has no such option")
    nasty.add(nasty.frozen_body)
    strategies = find("strategies", name)
    averaged = []
    fuse = strategies.fuse

    def watched(self, *arguments):
        fuse(self, *arguments)
        by_model = name == "feddf"
        averaged.append(next(iter(self.parameters.values())) if by_model else self.parameters)

    monkeypatch.setattr(strategies, "fuse", watched)
    experiment = small(OWN, f"strategy.name={name}", "training.local_epochs=1", *PRIVATE[private])
    run(experiment, "run")
    initial = Worker(experiment)._build("own", "all").state_dict()
    assert len(averaged) == 2
    for parameters in averaged:
        assert moved(initial, parameters) == {"3"}


def test_training_part_names_the_blocks_that_learn(small):
    parts = {"head": {"head"}, "body": {"fc1", "fc2"}, "fc2": {"fc2"}}
    for cohort in ("off", "on"):
        for part, learns in parts.items():
            host = Worker(small(f"training.part=['{part}']", f"engine.cohort={cohort}"))
            before = {name: tensor.clone() for name, tensor in host.state(0)["own"].items()}
            steps = (Fit(), Fit("transfer", (Soft(torch.full((80, 10), 0.1)),), key="distilled"))
            host.perform_all([Assignment(c, 1, "learn", steps) for c in range(2)], lambda _: None)
            assert moved(before, host.state(0)["own"]) == learns
    steps = (Load(before), Fit(part=("fc1",)))
    host.perform(Assignment(0, 1, "learn", steps))
    assert moved(before, host.state(0)["own"]) == {"fc1"}


@pytest.mark.parametrize(
    ("part", "line"),
    [
        (["haed"], r"training\.part = \['haed'\] does not fit student 'mlp': .*its blocks: fc1"),
        (["1"], r"training\.part = \['1'\] is not allowed: nothing learns there"),
    ],
)
def test_a_part_that_cannot_learn_is_one_line_before_a_run_begins(part, line, small, tmp_path):
    nasty.add(nasty.frozen_body)
    model = OWN if part == ["1"] else "student.models=['mlp']"
    with pytest.raises(FedkdError, match=line):
        run(small(model, f"training.part={part}"), tmp_path / "run")
    assert not Run(tmp_path / "run").folder.exists()


def test_a_fit_in_which_nothing_learns_is_one_line(samples):
    model = made(nn.ReLU)
    model[0].requires_grad_(False)
    with pytest.raises(FedkdError, match="nothing learns in the blocks 0"):
        learned(model, samples, part=("0",))
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert learned(model, samples, part=("0",), epochs=0)[0] == 0.0


def test_a_parameter_that_two_blocks_share_is_not_divided(samples):
    model = made(nn.ReLU, head=6)
    model[2].weight = model[0].weight
    with pytest.raises(FedkdError, match=r"2\.weight and 0\.weight are one"):
        learned(model, samples, part=("head",))
    with pytest.raises(FedkdError, match="divides a parameter"):
        learned(model, samples, part=("body",))


def test_where_a_method_names_what_learns_nobody_else_does(small):
    with pytest.raises(FedkdError, match=r"training\.part = \['head'\] .* 'fedrep'"):
        run(small("strategy.name=fedrep", "training.part=['head']"), "run")
    clipped = ("strategy.name=fedavg", "strategy.clipping_norm=1", "training.part=['head']")
    with pytest.raises(FedkdError, match=r"training\.part .* strategy\.clipping_norm = 1"):
        run(small(*clipped), "run")


def test_what_the_server_trains_keeps_its_frozen_blocks(small, samples):
    server = ServerStudents(small())
    model = made(nn.ReLU)
    model[0].requires_grad_(False)
    server.add("student", lambda: model)
    before = server.parameters("student")
    server.fit("student", 1, samples, [CrossEntropy()], 1.0)
    assert moved(before, server.parameters("student")) == {"2"}


# --- buffers --------------------------------------------------------------------------------


def random_features():
    student = nasty.between(nn.ReLU())
    student[1].register_buffer("features", torch.randn(3), persistent=False)
    return student


def test_random_numbers_that_no_state_dict_has_are_refused(small):
    nasty.add(random_features)
    with pytest.raises(FedkdError, match=r"1\.features is random, and its state_dict does not"):
        Worker(small(OWN))


def test_whole_numbers_that_differ_between_clients_are_a_warning(small):
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("samples", torch.tensor(0))

        def forward(self, inputs):
            self.samples += (inputs > 0).sum() if self.training else 0
            return inputs

    nasty.add(lambda: nasty.between(Seen()))
    done = run(small(OWN, "strategy.name=fedavg"), "run")
    assert "2.samples holds whole numbers, which are not averaged: all clients get those of the " \
        "first, client 0" in done.warnings  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nasty.Centred, "depends on the others of the batch"),
        (lambda: nn.BatchNorm1d(64, affine=False), "depends on the others of the batch"),
        (nasty.Counter, "it writes to its buffers in training"),
    ],
)
def test_no_epsilon_is_stated_where_a_sample_has_its_say_besides_its_gradient(layer, reason, small):
    nasty.add(lambda: nasty.between(layer()))
    with pytest.raises(FedkdError, match=rf"training\.dp\.noise_multiplier = 1: .*{reason}"):
        run(small(OWN, "training.dp.noise_multiplier=1"), "run")


def test_noise_is_for_parameters_and_statistics_that_move_are_refused(small, monkeypatch):
    clipped = (OWN, "strategy.name=fedavg", "strategy.clipping_norm=1",
               "strategy.noise_multiplier=1")  # fmt: skip
    nasty.add(lambda: nasty.between(nn.BatchNorm1d(64)))
    with pytest.raises(FedkdError, match=r"2\.running_mean is no parameter"):
        run(small(*clipped), "run")

    def positions():
        student = nasty.between(nn.ReLU())
        student[1].register_buffer("positions", torch.arange(3.0))
        return student

    nasty.add(positions)
    seen = []
    average = find("strategies", "fedavg").fuse

    def watched(self, *arguments):
        average(self, *arguments)
        seen.append(self.parameters["1.positions"])

    monkeypatch.setattr(find("strategies", "fedavg"), "fuse", watched)
    run(small(*clipped), "constant")
    assert [positions.tolist() for positions in seen] == [[0.0, 1.0, 2.0]] * 2


# --- batches of one -------------------------------------------------------------------------


def batch_normalised():
    return made(lambda: nn.BatchNorm1d(6))


@pytest.mark.parametrize(("count", "size"), [(1, 8), (4, 1)])
def test_a_batch_of_one_under_batch_normalisation_is_one_line(count, size, samples):
    few = Samples(samples.inputs[:count], samples.labels[:count])
    training = SGD.model_copy(update={"batch_size": size})
    line = rf"here {count} samples come in batches of {size}: use student\.norm = 'group'"
    with pytest.raises(FedkdError, match=line):
        learned(batch_normalised(), few, training=training)
    model = batch_normalised()
    model[1].requires_grad_(False)  # frozen: its statistics are there
    learned(model, few, training=training)


def test_the_line_names_the_client_or_the_servers_student(small, samples):
    host = Worker(small("student.norm=batch", "training.batch_size=1"))
    (reply,) = host.perform_all([Assignment(3, 1, "learn", (Fit(),))], lambda _: None)
    assert reply.error.startswith("client 3: batch normalisation cannot train on a batch of one")
    server = ServerStudents(small())
    server.add("global", batch_normalised)
    with pytest.raises(FedkdError, match=r"^the server's student 'global': batch normalisation"):
        server.fit("global", 1, Samples(samples.inputs[:1], samples.labels[:1]),
                   [CrossEntropy()], 1.0)  # fmt: skip


# --- what forward says is what is trained ---------------------------------------------------


def test_a_layer_that_stands_in_two_places_is_passed_twice(samples):
    act = nn.Tanh()

    def student(one, other):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(6, 6), one, nn.Linear(6, 6), other, nn.Linear(6, 4))

    same, apart = student(act, act), student(nn.Tanh(), nn.Tanh())
    assert equal(learned(same, samples)[1], learned(apart, samples)[1])
    held, _ = represent(same, samples.inputs, "3")
    assert held.abs().max() <= 1


def test_a_layer_with_weights_that_stands_in_two_places_trains_in_both(samples):
    class Mode(nn.Linear):
        def forward(self, inputs):
            seen.append(self.training)
            return super().forward(inputs)

    layer, seen = Mode(6, 6), []
    learned(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(6, 4)), samples)
    assert seen
    assert all(seen)


def test_a_representation_is_not_written_to_by_the_block_above(samples):
    plain, in_place = made(nn.ReLU), made(lambda: nn.ReLU(inplace=True))
    one, other = (represent(model, samples.inputs, "0")[0] for model in (plain, in_place))
    assert torch.equal(one, other)
    assert bool((one < 0).any())


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        (lambda: nasty.Twice(nn.Flatten(), nn.Linear(64, 10)), "its class Twice has forward"),
        (lambda: nn.Sequential(nn.Linear(64, 10)).requires_grad_(False), "at least two"),
        (lambda: nasty.between().requires_grad_(False), "nothing in it learns"),
        (lambda: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), "nothing in it learns"),
        (lambda: nasty.between(nn.Linear(3, 3)), "does not take a batch .* mat1 and mat2"),
        (lambda: 1 / 0, r"cannot be made: ZeroDivisionError: .*test_student_modes\.py:\d+"),
    ],
)
def test_a_student_that_would_not_be_trained_as_it_is_ends_in_one_line(factory, line):
    nasty.add(factory)
    with pytest.raises(FedkdError, match=line) as error:
        build("own", (1, 8, 8), 10, StudentTable(), 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_that_students_have_in_common_is_refused_unless_it_is_frozen(frozen, small):
    body = nn.Linear(64, 64)
    body.requires_grad_(not frozen)
    nasty.add(lambda: nn.Sequential(nn.Flatten(), body, nn.Linear(64, 10)))
    if frozen:
        before = body.weight.clone()
        run(small(OWN, "strategy.name=fedavg"), "run")
        assert torch.equal(body.weight, before)
        return
    with pytest.raises(FedkdError, match=r"its 1\.weight is that of the student it gave before"):
        run(small(OWN, "strategy.name=fedavg"), "run")


def with_hook():
    student = nasty.between()
    student.register_forward_hook(lambda module, inputs, output: 2 * output)
    return student


def with_a_parameter_of_its_own():
    student = nasty.between()
    student.register_parameter("scale", nn.Parameter(torch.ones(1)))
    return student


def with_extra_state():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"rounds": 1}

        def set_extra_state(self, state):
            pass

    return nasty.between(Extra(64, 64))


def with_complex_weights():
    layer = nn.Linear(64, 64)
    layer.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    return nasty.between(layer)


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        (with_hook, "it has hooks"),
        (with_a_parameter_of_its_own, "scale belongs to none of its blocks"),
        (with_extra_state, "2._extra_state in its state_dict is not its parameter"),
        (with_complex_weights, r"2\.phase is complex"),
    ],
)
def test_what_blocks_or_state_leave_out_is_refused(factory, line):
    nasty.add(factory)
    with pytest.raises(FedkdError, match=line):
        build("own", (1, 8, 8), 10, StudentTable(), 0)


def test_complex_buffers_keep_their_imaginary_part():
    def factory():
        student = nasty.between()
        student[1].register_buffer("roots", torch.tensor([1 + 2j]))
        return student

    nasty.add(factory)
    assert build("own", (1, 8, 8), 10, StudentTable(), 0)[1].roots == 1 + 2j


@pytest.mark.parametrize("name", ["knfu", pytest.param("feddf", marks=pytest.mark.slow)])
def test_torchs_default_type_changes_no_number(name, small, tmp_path):
    """Set by a script, by a factory, or not at all."""
    told = []
    for script, factory in [(None, None), (torch.float64, None), (None, torch.float64)]:

        def own(wanted=factory):
            torch.set_default_dtype(wanted or torch.get_default_dtype())
            return nasty.between(nn.BatchNorm1d(64))

        nasty.add(own)
        try:
            torch.set_default_dtype(script or torch.float32)
            experiment = small(OWN, f"strategy.name={name}", "data.clients=2")
            told.append(measured(run(experiment, tmp_path / f"{script} {factory}")))
            assert torch.get_default_dtype() == (script or torch.float32)
        finally:
            torch.set_default_dtype(torch.float32)
    assert told[0] == told[1]
    assert len(told[2][0]) == 2  # other weights at first, drawn in double precision
