"""What holds of every objective that comes with fedkd."""

import pytest
import torch
from objective_inputs import Rows, draw, gradient, value

from fedkd import registry
from fedkd.distillation.objectives import Objective, couples, made, traits

OPTIONS = [
    {"name": "bd_kd", "width": 0.5},
    {"name": "borup", "alpha": 0.3},
    {"name": "dhkd", "main": 0.0},
    {"name": "dist", "gamma": 0.0},
    {"name": "dkd", "warmup": 0.5},
    {"name": "nkd", "gamma": 0.0},
    {"name": "ofa", "epsilon": 1.5},
    {"name": "power", "epsilon": 2.0},
    {"name": "sinkd", "epsilon": 0.01, "rows": 3},
    {"name": "taid", "adaptive": False},
    {"name": "top_k_kl", "k": 2},
    {"name": "uskd", "ranks": "probabilities"},
]


def of_classes(name):
    """Whether the columns of its targets are the classes; others have tests of their own."""
    columns = getattr(made(name), "columns", None)
    return columns is None or columns(4) == 4


ALL = [*filter(of_classes, registry.shipped("objectives")), *OPTIONS]
SOFT = [chosen for chosen in ALL if traits(made(chosen)).targets == "probabilities"]
STATIONARY = ("forward_kl", "reverse_kl", "jensen_shannon", "not_true", "dkd", "bd_kd")
STATIONARY += ("top_k_kl", "dist")
STUCK = (*STATIONARY, "dhkd", "cross_entropy", "ofa", "power", "taid")
"""Those that have no gradient from a teacher that says what the student says."""


def told(chosen):
    return chosen if isinstance(chosen, str) else "-".join(map(str, chosen.values()))


def every(given):
    return pytest.mark.parametrize("chosen", given, ids=told)


@every(ALL)
def test_one_loss_a_row(chosen):
    found = value(chosen, Rows())
    assert found.shape == (6,)
    assert found.isfinite().all()


@every(ALL)
def test_rows_of_other_students_do_not_matter(chosen):
    rows = Rows()
    whole = value(chosen, rows)
    for places in ([0, 1, 3, 5], [2, 4]):
        torch.testing.assert_close(
            value(chosen, rows.of(*places)), whole[places], atol=1e-9, rtol=0
        )


@every([chosen for chosen in ALL if not couples(made(chosen))])
def test_what_does_not_couple_rows_depends_on_a_row_alone(chosen):
    rows = Rows()
    torch.testing.assert_close(value(chosen, rows.of(1)), value(chosen, rows)[1:2])


@every(ALL)
def test_the_order_of_rows_does_not_matter(chosen):
    if isinstance(chosen, dict) and chosen.get("rows"):
        pytest.skip("it carries a batch in parts")
    rows, order = Rows(), [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(value(chosen, rows.of(*order)), value(chosen, rows)[order])


@every(ALL)
def test_a_temperature_a_row_is_that_of_each_row(chosen):
    rows, taus = Rows(), torch.tensor([[0.5], [3.0], [1.0], [2.0], [1.0], [5.0]]).double()
    found = value(chosen, rows, taus)
    if couples(made(chosen)):  # a loop over rows would take batches apart
        objective, needs = made(chosen), traits(made(chosen)).needs
        given = {need: getattr(rows, need) for need in needs if need != "memory"}
        scaled, targets = rows.logits / taus, rows.targets(chosen, taus)
        scaled = rows.logits if told(chosen).startswith("uskd") else scaled
        expected = objective(scaled, targets, 1.0, **given)
    else:
        pairs = enumerate(taus[:, 0].tolist())
        expected = torch.cat([value(chosen, rows.of(row), tau) for row, tau in pairs])
    torch.testing.assert_close(found, expected)


@every(ALL)
def test_one_temperature_is_one_a_row(chosen):
    rows = Rows()
    found = value(chosen, rows, torch.full((6, 1), 3.0, dtype=torch.float64))
    torch.testing.assert_close(found, value(chosen, rows, 3.0))


@every(ALL)
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_gradients_are_those_of_finite_differences(chosen, tau):
    rows = Rows()
    if "taid" in told(chosen):  # the student in its target has no gradient
        pytest.skip("see its own tests")
    if "uskd" in told(chosen):  # neither have its weights
        pytest.skip("see its own tests")
    if chosen == "bd_kd" or chosen == OPTIONS[0]:
        pytest.skip("its weights have no gradient: see its own tests")
    found = torch.autograd.gradcheck(
        lambda logits: value(chosen, rows, tau, logits=logits), rows.logits.requires_grad_()
    )
    assert found


def edges(dtype):
    """Logits of 100 and of 0, and targets: uniform, certain, and nearly so."""
    logits = 100.0 * torch.eye(4)[[0, 1, 3, 2, 0, 1]] - 100.0 * torch.eye(4)[[1, 0, 0, 0, 2, 2]]
    near = (100.0 * torch.eye(4)[[0, 0, 1, 2, 3, 1]]).softmax(1)
    for targets in (
        torch.full((6, 4), 0.25),
        torch.eye(4)[Rows.labels],
        near,
        torch.eye(4)[[1] * 6],
    ):
        yield logits.to(dtype), targets.to(dtype)
        yield torch.zeros(6, 4, dtype=dtype), targets.to(dtype)


@every(ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_loss_and_gradients_are_finite_at_the_edge(chosen, dtype, tau):
    for logits, targets in edges(dtype):
        rows = Rows(dtype)
        rows.auxiliary = logits.flip(1)
        assert value(chosen, rows, tau, targets, logits).isfinite().all()
        assert value(chosen, rows, tau, targets, logits).dtype == dtype
        for found in gradient(chosen, rows, tau, targets, logits):
            assert found.isfinite().all()


@every(SOFT)
def test_a_constant_on_a_row_does_not_matter(chosen):
    rows = Rows()
    moved, before = rows.logits + draw(6, 1, seed=3), value(chosen, rows, 2.0)
    torch.testing.assert_close(value(chosen, rows, 2.0, logits=moved), before, atol=1e-9, rtol=0)
    rows.auxiliary = rows.auxiliary + draw(6, 1, seed=4)
    torch.testing.assert_close(value(chosen, rows, 2.0), before, atol=1e-9, rtol=0)


@every(ALL)
def test_the_order_of_classes_does_not_matter(chosen):
    rows, order = Rows(), torch.tensor([2, 0, 3, 1])
    before = value(chosen, rows, 2.0)
    for key in ("logits", "teacher", "auxiliary"):
        setattr(rows, key, getattr(rows, key)[:, order])
    rows.labels = order.argsort()[rows.labels]
    torch.testing.assert_close(value(chosen, rows, 2.0), before)


@every([chosen for chosen in ALL if told(chosen).split("-")[0] in STUCK])
@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_a_teacher_that_says_what_the_student_says_moves_nothing(chosen, tau):
    name = told(chosen).split("-")[0]
    if name in ("ofa", "power") and chosen != name:
        pytest.skip("powers of targets are another teacher")
    rows = Rows()
    rows.teacher = rows.auxiliary = rows.logits
    for found in gradient(chosen, rows, tau):
        torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-6, rtol=0)
    if name in STATIONARY or name == "dhkd":
        nothing = torch.zeros(6, dtype=torch.float64)
        torch.testing.assert_close(value(chosen, rows, tau), nothing, atol=1e-6, rtol=0)


@every([chosen for chosen in SOFT if told(chosen).split("-")[0] in STATIONARY])
def test_divergences_are_not_negative(chosen):
    for seed in range(5):
        rows = Rows()
        rows.teacher = draw(6, 4, seed=10 + seed)
        assert (value(chosen, rows) >= 0).all()


@pytest.mark.parametrize("name", registry.shipped("objectives"))
def test_options_are_numbers_with_a_range(name):
    found = registry.load("objectives", name)
    if not isinstance(found, type):
        return
    assert issubclass(found, Objective)
    for option, field in found.model_fields.items():
        assert field.description, option
        if field.annotation is float:
            with pytest.raises(Exception, match=option):
                made({"name": name, option: -1.0})
