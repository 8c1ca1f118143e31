"""Modules and losses of one's own on the server."""

import re

import pytest
import torch
from lines import Killed, KilledAfter, Told, measured
from torch import nn
from torch.nn import functional as F

from fedkd import FedkdError, registry, run
from fedkd.server import ServerStudents
from fedkd.strategies.base import KnowledgeStrategy
from fedkd.students import named_blocks
from fedkd.training import Validation, represent
from fedkd.work import CrossEntropy, Fit, Samples


class Generator(nn.Module):
    """Images of noise and a class, with what a module of one's own may have."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(10, 4))
        self.body = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.2), nn.ReLU())
        self.last = nn.Linear(16, 64)
        self.bn = nn.BatchNorm1d(64)

    def forward(self, noise, labels):
        hidden = self.body(torch.cat([noise, self.codes[labels]], 1))
        return self.bn(self.last(hidden)).unflatten(1, (1, 8, 8))


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.scale = nn.Linear(2, 2)


@pytest.fixture
def server(small):
    """A server with a generator, a point and the clients' student."""

    def make(*overrides):
        experiment = small(*overrides)
        torch.manual_seed(0)
        found = ServerStudents(experiment)
        found.add("generator", Generator)
        found.add("point", Point)
        found.add("student", lambda: student_of(experiment))
        return found

    return make


def student_of(experiment):
    from fedkd.students import build

    return build("mlp", (1, 8, 8), 10, experiment.student, 0)


LABELS = torch.arange(40) % 10


def towards(server, seen=None):
    """A loss of the generator: its images are of their class for the student."""
    student = server.frozen("student")

    def loss(generator, index, draw):
        labels = LABELS[index]
        noise = torch.randn(len(index), 8, generator=draw)
        if seen is not None:
            seen.append((index.tolist(), noise))
        return F.cross_entropy(student(generator(noise, labels)), labels)

    return loss


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- the loop -------------------------------------------------------------------------------


def test_a_step_of_descent_by_hand(server):
    here, to = server(), torch.tensor([[0.0, 0.0], [4.0, 2.0], [2.0, 7.0]])

    def loss(point, index, draw):
        return (point.at - to[index]).square().sum(1).mean()

    at = here.parameters("point")["at"]
    how = {"size": 3, "epochs": 1, "batch_size": 3, "optimiser": "sgd", "lr": 0.25}
    value = here.minimise("point", 1, loss, **how)
    assert value == pytest.approx(float((at - to).square().sum(1).mean()))
    assert torch.allclose(here.parameters("point")["at"], at - 0.25 * 2 * (at - to.mean(0)))


def test_every_pass_goes_through_all_rows_in_a_new_order(server):
    here, seen = server(), []
    here.minimise("generator", 1, towards(here, seen), size=40, epochs=2, batch_size=8)
    assert [len(index) for index, _ in seen] == [8] * 10
    passes = [[row for index, _ in half for row in index] for half in (seen[:5], seen[5:])]
    assert [sorted(each) for each in passes] == [[*range(40)]] * 2
    assert passes[0] != passes[1]


def test_what_a_loss_draws_depends_on_the_seed_the_round_and_the_call(server):
    def drawn(*rounds, seed=0):
        here, seen = server(f"seed={seed}"), []
        for round in rounds:
            here.minimise("generator", round, towards(here, seen), size=40, epochs=1)
        return seen, here.parameters("generator")

    (one, student), (again, other) = drawn(1, 1, 2), drawn(1, 1, 2)
    assert str(one) == str(again)
    assert same(student, other)
    firsts = [float(noise[0, 0]) for _, noise in one[::3]]
    firsts.append(float(drawn(1, seed=1)[0][0][1][0, 0]))
    assert len({*firsts}) == 4


def test_a_module_learns_by_a_loss_through_a_frozen_student(server):
    here = server()
    before = here.parameters("student")
    losses = [
        here.minimise("generator", round, towards(here), size=40, epochs=20, lr=0.05)
        for round in (1, 2, 3)
    ]
    assert losses[2] < losses[1] < losses[0]
    assert same(here.parameters("student"), before)
    noise = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    images = here.predict("generator", noise, LABELS)
    assert images.shape == (40, 1, 8, 8)
    assert torch.equal(images, here.predict("generator", noise, LABELS))
    found = here.predict("student", images).argmax(1)
    assert (found == LABELS).float().mean() > 0.5


@pytest.mark.parametrize("part", [("codes",), ("last", "bn"), ("body",)])
def test_a_part_learns_and_the_rest_is_frozen(part, server):
    here, modes = server(), []
    before = here.parameters("generator")
    plain = towards(here)

    def loss(generator, index, draw):
        modes.append((generator.training, generator.body.training, generator.bn.training))
        return plain(generator, index, draw)

    here.minimise("generator", 1, loss, size=40, epochs=1, part=part)
    after = here.parameters("generator")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {*part}
    assert {*modes} == {(True, "body" in part, "bn" in part)}
    whole = here.frozen("generator")
    assert not any(each.training for each in whole.modules())


def test_with_an_optimiser_of_its_own_the_clients_weight_decay_is_not_the_servers(server):
    def nothing(point, index, draw):
        return 0 * point.at.sum() + 0 * point.scale(point.at).sum()

    how = {"size": 1, "epochs": 1, "optimiser": "sgd", "lr": 0.5}
    for key, factor in (("training", 1.0), ("server", 1 - 0.5 * 0.1)):
        here = server(f"{key}.weight_decay=0.1")
        at = here.parameters("point")["at"]
        here.minimise("point", 1, nothing, **how)
        assert torch.allclose(here.parameters("point")["at"], at * factor, atol=0, rtol=1e-6)


def test_a_rate_that_the_call_says_goes_by_no_schedule(server):
    ends = []
    for more in ([], ["server.schedule=step", "server.schedule_rounds=1", "server.lr=0.5"]):
        here = server(*more)
        for round in (1, 2):
            here.minimise("generator", round, towards(here), size=40, epochs=1, lr=0.05)
        ends.append(here.parameters("generator"))
    assert same(*ends)


# --- frozen students ------------------------------------------------------------------------


def test_gradients_go_through_a_frozen_student_to_its_inputs_alone(server):
    here = server()
    inputs = torch.randn(3, 1, 8, 8, requires_grad=True)
    student = here.frozen("student")
    slope = torch.autograd.grad(student(inputs).square().sum(), inputs)[0]
    assert slope.abs().sum() > 0
    assert not any(each.requires_grad for each in student.parameters())
    assert torch.allclose(student(inputs), here.predict("student", inputs.detach()))


def test_a_frozen_student_may_have_a_clients_parameters_and_be_what_is_above_a_cut(server, small):
    here, inputs = server(), torch.randn(5, 1, 8, 8)
    own = here.parameters("student")
    clients = {name: value + 0.1 for name, value in own.items()}
    other = student_of(small())
    other.load_state_dict(clients)
    held, logits = represent(other, inputs, "fc1")
    above = here.frozen("student", clients, cut="fc1")
    assert torch.allclose(above(held), logits, atol=1e-6)
    assert [name for name, _ in named_blocks(above)] == ["fc2", "head"]
    assert torch.equal(here.frozen("student", clients)(inputs), other.eval()(inputs))
    assert same(here.parameters("student"), own)


# --- what is refused ------------------------------------------------------------------------


def fixed(point, index, draw):
    return torch.tensor(1.0)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda s: s.minimise("x", 1, fixed, size=1, epochs=1), "'x' is not known; known: gen"),
        (lambda s: s.minimise("point", 1, fixed, size=0, epochs=1), "size = 0 is not allowed"),
        (lambda s: s.minimise("point", 1, fixed, size=1, epochs=-1), "epochs = -1 is not"),
        (lambda s: s.minimise("point", 1, fixed, size=1, epochs=1, lr=0), "lr = 0 is not"),
        (lambda s: s.minimise("point", 1, None, size=1, epochs=1), "loss = None is not"),
        (
            lambda s: s.minimise("point", 1, fixed, size=1, epochs=1, part=("x",)),
            "'x' is not a block of this student; its blocks: at, scale",
        ),
        (lambda s: s.minimise("point", 1, fixed, size=1, epochs=1), "it has no gradient"),
        (
            lambda s: s.minimise("point", 1, lambda p, *_: p.at, size=1, epochs=1),
            r"its loss gave a torch Parameter of shape \(2,\), .*; allowed: a tensor of one float",
        ),
        (
            lambda s: s.minimise("point", 1, lambda *_: 1.0, size=1, epochs=1),
            "its loss gave 1.0; allowed",
        ),
        (
            lambda s: s.minimise("point", 1, lambda p, i, d: p.x, size=1, epochs=1),
            r"its loss failed: AttributeError: .* 'x' \(test_server.py:\d+\)",
        ),
        (
            lambda s: s.fit("point", 1, Samples(torch.ones(2, 2)), [CrossEntropy()], 1),
            "'point' is a Point, and terms and cuts are for",
        ),
        (lambda s: s.frozen("point", cut="at"), "'point' is a Point"),
        (lambda s: s.frozen("student", cut="x"), "'student': cut 'x' is not a cut"),
        (lambda s: s.frozen("student", {}), "fc1.1.weight is of shape .* it is missing"),
        (lambda s: s.add("y", lambda: 3), "'y': its factory gives 3; allowed"),
        (lambda s: s.add("y", lambda: nn.LazyLinear(3)), "weight of its .* without a shape"),
    ],
)
def test_what_cannot_be_is_a_line(call, line, server):
    with pytest.raises(FedkdError, match=line):
        call(server())


# --- in a run -------------------------------------------------------------------------------


def strategy(loss):
    class Mine(KnowledgeStrategy):
        def setup_server(self):
            self.server.add("generator", Generator)
            self.server.add("student", self.initial_student)

        def learn(self, round, client):
            return [Fit(epochs=0.1)]

        def fuse(self, round, replies):
            self.loss = self.server.minimise("generator", round, loss(self), size=40, epochs=1)

        def record(self, round, replies, label_counts):
            return {"loss": self.loss}

    registry.register("strategies", "mine")(Mine)


def test_a_run_that_goes_on_has_the_same_generator(small, tmp_path):
    strategy(lambda mine: towards(mine.server))
    experiment = small("strategy.name=mine", "rounds=3", "checkpoint_every=1")
    whole = measured(run(experiment, tmp_path / "whole"))
    with pytest.raises(Killed):
        run(experiment, tmp_path / "killed", observer=KilledAfter(2))
    assert measured(run(experiment, tmp_path / "killed", resume=True)) == whole
    assert len({line["strategy"]["loss"] for line in whole[0]}) == 3


def test_a_loss_that_fails_is_a_line_with_its_method_and_hook(small, tmp_path):
    def loss(mine):
        return lambda module, index, draw: module(index)

    strategy(loss)
    with pytest.raises(FedkdError) as failed:
        run(small("strategy.name=mine"), tmp_path / "run")
    assert re.fullmatch(
        r"strategy 'mine', fuse\(round=1\): server student 'generator': its loss failed: "
        r"TypeError: .*'labels' \(test_server\.py:\d+\)",
        str(failed.value),
    )


def test_a_loss_that_is_no_number_is_told(small, tmp_path):
    def loss(mine):
        return lambda module, index, draw: module.codes.sum() * torch.nan

    strategy(loss)
    told = Told()
    done = run(small("strategy.name=mine", "rounds=2"), tmp_path / "run", observer=told)
    (line,) = [message for message in told.warnings if "server's" in message]
    assert line == "round 1: the loss of the server's 'generator' is nan: it has diverged"
    assert done.rounds[1]["round"] == 2


# --- the course of a fit --------------------------------------------------------------------


DESCENT = ("server.optimiser=sgd", "server.batch_size=40")
WHOLE = (*DESCENT, "server.lr=0.1")


def fitted(here, samples, epochs, **how):
    here.fit("student", 1, samples, (CrossEntropy(),), epochs, **how)
    return here.parameters("student")


IMAGES = Samples(torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), LABELS)


def test_an_annealed_rate_falls_along_a_cosine(server):
    """Steps of plain descent on all samples: with rates 1, (1 + cos 60 degrees) / 2 and so on."""
    found = fitted(server(*WHOLE), IMAGES, 3, annealed=True)
    by_hand = None
    for rate in (1.0, 0.75, 0.25):
        here = server(*DESCENT, f"server.lr={0.1 * rate}")
        if by_hand is not None:
            here.load("student", by_hand)
        by_hand = fitted(here, IMAGES, 1)
    assert all(torch.allclose(found[name], by_hand[name], atol=1e-6) for name in found)
    assert not same(found, fitted(server(*WHOLE), IMAGES, 3))


def test_validation_gives_the_best_student_back(server):
    """Labels that contradict those to learn: every step harms, so it is the first that is best."""
    here, wrong = server(*WHOLE), Samples(IMAGES.inputs, (LABELS + 1) % 10)
    fitted(here, wrong, 50)
    before = here.parameters("student")
    watch = Validation(wrong, every=2, patience=4)
    assert same(fitted(here, IMAGES, 60, validation=watch), before)
    # And where every step helps, it ends as without.
    watch = Validation(IMAGES, every=1, patience=1000)
    found = fitted(here, IMAGES, 60, validation=watch)
    right = here.predict("student", IMAGES.inputs).argmax(1) == LABELS
    assert right.float().mean() > 0.9
    assert not same(found, before)


def test_a_fit_ends_when_patience_does(server):
    here, wrong, seen = server(*WHOLE), Samples(IMAGES.inputs, (LABELS + 1) % 10), []
    fitted(here, wrong, 50)
    student = here._students["student"]
    student.head.register_forward_hook(lambda *_: seen.append(student.fc1.training))
    fitted(here, IMAGES, 60, validation=Validation(wrong, every=2, patience=4))
    # Steps (training) and looks: before the first, and after the second and the fourth.
    assert seen[-7:] == [False, True, True, False, True, True, False]
    assert sum(seen) == 4


@pytest.mark.parametrize(
    ("validation", "line"),
    [
        (Validation(Samples(IMAGES.inputs)), "a label each are needed"),
        (Validation(IMAGES, every=0), "every = 0 is not allowed"),
        (Validation(IMAGES, patience=-1), "patience = -1 is not allowed"),
    ],
)
def test_a_validation_that_cannot_be_is_a_line(validation, line, server):
    with pytest.raises(FedkdError, match=f"server student 'student': Validation: .*{line}"):
        fitted(server(*WHOLE), IMAGES, 1, validation=validation)
