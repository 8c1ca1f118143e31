"""A student's block in another network: frozen blocks above it and below."""

import copy

import pytest
import torch
from lines import measured

from fedkd import FedkdError, run
from fedkd.engine.worker import Worker
from fedkd.experiment import Experiment
from fedkd.sections import StudentTable
from fedkd.server import ServerStudents
from fedkd.students import build
from fedkd.training import fit, predict
from fedkd.training_tables import TrainingTable
from fedkd.work import Assignment, CrossEntropy, Fit, Head, Hold, Load, Samples, Soft

ONE = TrainingTable(optimiser="sgd", lr=0.5, batch_size=64, local_epochs=1)
"""One step on all rows."""
NEAR = {"rtol": 1e-4, "atol": 1e-6}


def student(seed=0, name="cnn2", norm="group"):
    return build(name, (1, 28, 28), 4, StudentTable(width=0.1, norm=norm), seed)


BLOCKS = [name for name, _ in student().named_children()]
SPANS = [("", BLOCKS[0]), (BLOCKS[0], BLOCKS[1]), (BLOCKS[0], ""), (BLOCKS[-2], "")]
"""A module by the blocks below and above it, each the last that is not above."""


@pytest.fixture
def images():
    draw = torch.Generator().manual_seed(3)
    return Samples(torch.randn(12, 1, 28, 28, generator=draw), torch.arange(12) % 4)


def inside(below, cut):
    first = BLOCKS.index(below) + 1 if below else 0
    return BLOCKS[first : BLOCKS.index(cut) + 1 if cut else None]


def frozen(model, below, cut):
    own = inside(below, cut)
    return {n: t.clone() for n, t in model.state_dict().items() if n.partition(".")[0] not in own}


def learn(model, samples, *terms):
    return fit(model, samples, list(terms), ONE, torch.Generator().manual_seed(0))


def moved(one, other):
    before = other.state_dict()
    return {
        n.partition(".")[0] for n, t in one.state_dict().items() if not torch.equal(t, before[n])
    }


def hybrid(model, teacher, below, cut):
    """``teacher`` with the student's module between ``below`` and ``cut``."""
    own = inside(below, cut)
    blocks = [getattr(model if name in own else teacher, name) for name in BLOCKS]
    return torch.nn.Sequential(*blocks)


@pytest.mark.parametrize(("below", "cut"), SPANS)
def test_a_module_like_the_teachers_has_nothing_to_learn(images, below, cut):
    teacher, model = student(5), student()
    for name in inside(below, cut):
        getattr(model, name).load_state_dict(getattr(teacher, name).state_dict())
    before = copy.deepcopy(model)
    targets = predict(teacher, images.inputs).softmax(1)
    loss = learn(
        model, images, Soft(targets, through=Head(cut, frozen(teacher, below, cut), below))
    )
    assert loss == pytest.approx(0, abs=1e-6)
    for one, other in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(one, other, **NEAR)


@pytest.mark.parametrize(("below", "cut"), SPANS)
def test_a_step_is_that_of_the_hybrid_network(images, below, cut):
    """Its gradient goes into the module alone, whatever else the student is."""
    teacher, model, by_hand = student(5), student(), student()
    targets = predict(teacher, images.inputs).softmax(1)
    head = Head(cut, frozen(teacher, below, cut), below)
    loss = learn(model, images, Soft(targets, weight=0.7, through=head))
    assert moved(model, by_hand) == {*inside(below, cut)}
    logits = hybrid(by_hand, teacher, below, cut)(images.inputs)
    expected = 0.7 * (targets * (targets.log() - logits.log_softmax(1))).sum(1).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        step = 0 if other.grad is None else 0.5 * other.grad
        torch.testing.assert_close(one.detach(), (other - step).detach(), **NEAR)
    before = frozen(teacher, below, cut)
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.parameters.items())


def test_without_any_frozen_block_it_is_distillation(images):
    targets, found = predict(student(5), images.inputs).softmax(1), []
    for through in (None, Head("", {})):
        model = student()
        terms = [Soft(targets, through=through), CrossEntropy(through=through)]
        found.append((learn(model, images, *terms), model))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, other in zip(found[0][1].parameters(), found[1][1].parameters(), strict=True):
        torch.testing.assert_close(one, other, **NEAR)


def test_it_works_on_tokens():
    def text(seed):
        return build("lstm", (8,), 20, StudentTable(width=0.1), seed, tokens=True)

    model, teacher, before = text(0), text(5), text(0)
    names = [name for name, _ in model.named_children()]
    inputs = torch.randint(3, 20, (6, 8), generator=torch.Generator().manual_seed(0))
    targets = predict(teacher, inputs).softmax(1)
    module, below = names[-2], names[-3] if len(names) > 2 else ""
    held = {n: t for n, t in teacher.state_dict().items() if n.partition(".")[0] != module}
    learn(model, Samples(inputs), Soft(targets, through=Head(module, held, below)))
    assert moved(model, before) == {module}


# --- on clients -------------------------------------------------------------------------------


def assigned(worker, client, head):
    whole = worker.template("mlp").state_dict()
    teacher = {name: 1.5 * tensor.clone() for name, tensor in whole.items()}
    steps = [
        Hold("teacher"),
        Load(teacher, student="teacher"),
        Fit("transfer", (Soft("teacher", through=head), CrossEntropy(on="private"))),
    ]
    return Assignment(client, 1, "learn", tuple(steps))


def test_the_name_of_a_student_stands_for_its_blocks(small):
    """In a cohort as in a loop."""
    found = []
    for cohort in ("off", "on"):
        for given in (True, False):
            worker = Worker(small(f"engine.cohort={cohort}"))
            names = [n for n, _ in worker.template("mlp").named_children()]
            of = {n: 1.5 * t.clone() for n, t in worker.template("mlp").state_dict().items()}
            of = {n: t for n, t in of.items() if n.partition(".")[0] != names[-2]}
            below = names[-3] if len(names) > 2 else ""
            head = Head(names[-2], of if given else "teacher", below)
            work = [assigned(worker, n, head) for n in range(2)]
            replies = worker.perform_all(work, lambda done: None)
            assert not any(reply.error or reply.failure for reply in replies), replies
            found.append(worker.states)
    for states in found[1:]:
        for client in range(2):
            torch.testing.assert_close(states[client], found[0][client], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("module", ["fc1", "head"])
def test_fedgkd_holds_one_block_against_the_teacher(small, module):
    """What travels is the same; where the teacher is the student itself, nothing is learned."""
    keys = ["strategy.name=fedgkd", "strategy.gamma=5.0", "strategy.buffer=2", "rounds=3"]
    plain = run(small(*keys), "plain")
    framed = run(small(*keys, f"strategy.module={module}"), "framed")
    for way in ("bytes_up", "bytes_down"):
        up = [line[way] for line in framed.rounds]
        assert max(abs(a - b[way]) for a, b in zip(up, plain.rounds, strict=True)) < 1000
    assert measured(framed)[0] != measured(plain)[0]


def test_fedgkd_goes_on_and_refuses_what_is_no_block(small):
    with pytest.raises(FedkdError, match=r"strategy\.module = 'fc9' is not allowed.*its blocks: "):
        run(small("strategy.name=fedgkd", "strategy.module=fc9"), "wrong")


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (Head("fc1", "teacher", "fc1"), "below = 'fc1' is not allowed with cut = 'fc1'"),
        (Head("fc9", "teacher"), "cut 'fc9' is not a cut of this student"),
        (Head("", "nobody", "fc1"), "Head: student 'nobody' is not known; known: "),
        (Head("", {}, "fc1"), "not those of the blocks above '' and up to 'fc1'"),
    ],
)
def test_what_does_not_fit_is_one_line(small, images, head, line):
    experiment: Experiment = small()
    server = ServerStudents(experiment)
    server.add("global", lambda: build("mlp", (1, 28, 28), 4, StudentTable(), 0))
    with pytest.raises(FedkdError) as error:
        server.fit("global", 1, images, [CrossEntropy(through=head)], 1)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
