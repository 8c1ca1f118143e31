"""Laws of TAID: its target, and how lambda grows."""

import pytest
import torch
from objective_inputs import Rows, draw, gradient, value

from fedkd import FedkdError
from fedkd.distillation.objectives import Memory, couples, made, traits
from fedkd.distillation.targets import entropy


def fixed(share):
    return {"name": "taid", "adaptive": False, "start": share, "end": share}


@pytest.fixture
def rows():
    return Rows()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_its_gradient_is_the_student_less_the_target(rows, share, tau):
    target = (((1 - share) * rows.logits + share * rows.teacher) / tau).softmax(1)
    expected = ((rows.logits / tau).softmax(1) - target) / tau
    torch.testing.assert_close(gradient(fixed(share), rows, tau)[0], expected)


def test_at_the_student_it_is_its_entropy_and_at_the_teacher_soft_cross_entropy(rows):
    torch.testing.assert_close(value(fixed(0.0), rows), entropy(rows.logits.softmax(1)))
    torch.testing.assert_close(value(fixed(1.0), rows), value("cross_entropy", rows))


def test_without_adapting_lambda_is_linear_in_progress(rows):
    rows.progress = torch.linspace(0, 1, 6).double()[:, None]
    found = value({"name": "taid", "adaptive": False, "start": 0.2, "end": 0.8}, rows)
    for row, share in enumerate((0.2, 0.32, 0.44, 0.56, 0.68, 0.8)):
        torch.testing.assert_close(found[row], value(fixed(share), rows)[row])


def run(objective, steps=30, students=2, groups=Rows.groups, begin=0.0, alpha=None):
    """Lambda of each student after each step, of losses that go up and down: ``(steps, n)``."""
    memory, lambdas, teacher = Memory(students), [], draw(6, 4, seed=1)[: len(groups)]
    for step in range(steps):
        logits = draw(6, 4, seed=100 + step)[: len(groups)]
        progress = begin + (1 - begin) * step / steps
        objective(logits, teacher.softmax(1), 1.0, progress=progress, groups=groups, memory=memory)
        lambdas.append(memory["lambda"].clone())
    return torch.stack(lambdas)


@pytest.mark.parametrize("alpha", [0.0, 5e-4, 0.5])
def test_lambda_never_falls_and_stays_within_its_bounds(alpha):
    found = run(made({"name": "taid", "alpha": alpha}))
    assert (found.diff(dim=0) >= 0).all()
    assert bool((found >= 0.4).all() and (found <= 1).all())


def test_lambda_is_at_least_where_progress_has_it_and_at_most_at_its_end():
    planned = 0.4 + 0.6 * torch.arange(30) / 30
    assert (run(made("taid")) >= planned.double()[:, None] - 1e-6).all()
    ended = run(made({"name": "taid", "alpha": 1.0, "end": 0.6}))
    assert ended.max().item() == pytest.approx(0.6)


def test_lambda_grows_faster_while_the_loss_falls():
    objective, teacher = made({"name": "taid", "alpha": 0.1, "beta": 0.0}), draw(6, 4, seed=1)
    found = []
    for scale in (2.0, 0.5):  # the student gets surer, or less sure
        memory = Memory()
        for step in range(4):
            objective(
                scale**step * teacher,
                teacher.softmax(1),
                1.0,
                progress=0.0,
                groups=torch.zeros(6, dtype=torch.int64),
                memory=memory,
            )
        found.append(memory["lambda"].item())
    assert found[0] > found[1] > 0.4


def test_a_fit_begins_where_progress_has_it():
    assert run(made("taid"), begin=0.5)[0].tolist() == pytest.approx([0.7, 0.7])


def test_students_of_a_stack_have_a_lambda_each():
    objective = made({"name": "taid", "alpha": 0.5})
    together, teacher = run(objective), draw(6, 4, seed=1)
    for student in (0, 1):
        mine, memory = student == Rows.groups, Memory()
        for step in range(30):
            objective(
                draw(6, 4, seed=100 + step)[mine],
                teacher[mine].softmax(1),
                1.0,
                progress=step / 30,
                groups=torch.zeros(int(mine.sum()), dtype=torch.int64),
                memory=memory,
            )
            torch.testing.assert_close(memory["lambda"], together[step, student, None])


def test_a_student_without_rows_in_a_step_stays_where_it_is(rows):
    objective, memory = made({"name": "taid", "alpha": 0.5}), Memory(3)

    def step(rows, progress):
        given = rows.logits, rows.targets("taid"), 1.0
        objective(*given, progress=progress, groups=rows.groups, memory=memory)
        return {name: tensor.clone() for name, tensor in memory.items()}

    before = step(rows, 0.0)
    assert before["loss"].isnan().tolist() == [False, False, True]
    after = step(rows.of(0, 1), 0.1)
    assert all(after[name][1] == before[name][1] for name in before)
    assert after["lambda"][0] > before["lambda"][0]
    rows.groups = rows.groups + 1  # the third begins
    assert step(rows, 0.5)["lambda"][2].item() == pytest.approx(0.7)


def test_what_is_remembered_has_no_graph(rows):
    memory = Memory(2)
    made("taid")(
        rows.logits.requires_grad_(),
        rows.targets("taid"),
        1.0,
        progress=rows.progress,
        groups=rows.groups,
        memory=memory,
    )
    assert not any(tensor.requires_grad for tensor in memory.values())


def test_it_remembers_only_to_adapt():
    assert couples(made("taid"))
    assert traits(made({"name": "taid", "adaptive": False})).needs == ("progress",)


def test_a_lambda_that_would_fall_is_refused_in_one_line():
    with pytest.raises(FedkdError, match=r"end = 0\.3 is below start = 0\.4") as error:
        made({"name": "taid", "end": 0.3})
    assert "\n" not in str(error.value)
