"""Objectives against the formulas that their authors' code computes, written down anew.

Means over the batch there are means of the losses of rows here.
"""

import pytest
import torch
from objective_inputs import Rows, draw, value
from torch.nn import functional

from fedkd.distillation.objectives import Memory, made

TAUS = (1.0, 2.0, 4.0)
taus = pytest.mark.parametrize("tau", TAUS)


@pytest.fixture
def rows():
    """Of one student."""
    rows = Rows()
    rows.groups = torch.zeros(6, dtype=torch.int64)
    return rows


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def without(scores, labels):
    """Scores ``(B, C - 1)`` of all classes but the true one."""
    others = [[c for c in range(scores.shape[1]) if c != y] for y in labels.tolist()]
    return scores.gather(1, torch.tensor(others))


@taus
def test_dkd(rows, tau):
    """With a mask of -1000, and logarithms of summed probabilities."""
    true = functional.one_hot(rows.labels, 4).double()

    def binary(logits):
        probabilities = (logits / tau).softmax(1)
        return torch.stack([(probabilities * part).sum(1) for part in (true, 1 - true)], 1)

    teacher, student = binary(rows.teacher), binary(rows.logits)
    first = (teacher * (teacher / student).log()).sum(1)
    teacher = (rows.teacher / tau - 1000 * true).log_softmax(1)
    student = (rows.logits / tau - 1000 * true).log_softmax(1)
    second = (teacher.exp() * (teacher - student)).sum(1)
    close(value({"name": "dkd", "alpha": 0.7, "beta": 3.0}, rows, tau), 0.7 * first + 3.0 * second)


@taus
def test_not_true(rows, tau):
    student = (without(rows.logits, rows.labels) / tau).log_softmax(1)
    teacher = (without(rows.teacher, rows.labels) / tau).softmax(1)
    expected = functional.kl_div(student, teacher, reduction="none").sum(1)
    close(value("not_true", rows, tau), expected)


@taus
def test_nkd(rows, tau):
    place = rows.labels[:, None]
    true = rows.teacher.softmax(1).gather(1, place) * rows.logits.log_softmax(1).gather(1, place)
    student = (without(rows.logits, rows.labels) / tau).log_softmax(1)
    teacher = (without(rows.teacher, rows.labels) / tau).softmax(1)
    expected = -true[:, 0] - 1.5 * tau**2 * (teacher * student).sum(1)
    close(value("nkd", rows, tau), expected)


@pytest.mark.parametrize("epsilon", [1.0, 1.5, 3.0])
@taus
def test_ofa(rows, tau, epsilon):
    true = functional.one_hot(rows.labels, 4).double()
    student, teacher = (rows.logits / tau).softmax(1), (rows.teacher / tau).softmax(1)
    expected = -(((teacher + true).pow(epsilon) - true) * student.log()).sum(1)
    close(value({"name": "ofa", "epsilon": epsilon}, rows, tau), expected)


def test_ground_truth_weighting(rows):
    true = functional.one_hot(rows.labels, 4).double()
    student = rows.logits.softmax(1)
    errors = functional.mse_loss(student, true), functional.mse_loss(student, rows.targets("borup"))
    found = value({"name": "borup", "alpha": 0.3}, rows)
    close(found.mean(), 0.3 * errors[0] + 0.7 * errors[1])


@taus
def test_dist(rows, tau):
    student, teacher = (rows.logits / tau).softmax(1), (rows.teacher / tau).softmax(1)

    def apart(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    expected = 2 * apart(student, teacher) + 3 * apart(student.T, teacher.T)
    found = value({"name": "dist", "beta": 2.0, "gamma": 3.0}, rows, tau).mean()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # it adds 1e-8 to the lengths


@taus
def test_sinkd(rows, tau):
    """A sum over the batch; here it is a mean over its rows."""
    student, teacher = (rows.logits / tau).softmax(1), (rows.teacher / tau).softmax(1)
    costs = (student[:, None] - teacher).abs().sum(2)
    plan = torch.exp(-costs / 0.1)
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    close(6 * value("sinkd", rows, tau).mean(), (plan * costs).sum())


@taus
def test_dhkd(rows, tau):
    """Two binary KLs of one half, scores less their row's mean."""
    aside = rows.auxiliary - rows.auxiliary.mean(1, keepdim=True)
    teacher = rows.teacher - rows.teacher.mean(1, keepdim=True)
    chance = torch.sigmoid((aside - teacher) / tau)
    both = sum(0.5 * (torch.tensor(0.5).double() / part).log() for part in (chance, 1 - chance))
    found = value({"name": "dhkd", "main": 0.0, "alpha": 2.0}, rows, tau)
    close(found, 2.0 * tau**2 * both.sum(1))


def test_uskd(rows):
    student, weak = rows.logits.softmax(1), rows.auxiliary.softmax(1)
    place, total = rows.labels[:, None], 0.0
    squares = student.gather(1, place)[:, 0] ** 2
    for row, label in enumerate(rows.labels.tolist()):
        trust = squares[row] + 1 - squares.mean()
        logs = student[row].log()
        score = weak[row] / (1 - weak[row, label] + 1e-6) + logs / (1 - logs[label] + 1e-6)
        ranks = [1 + int((score > score[c]).sum()) for c in range(4)]
        others = [c for c in range(4) if c != label]
        shares = torch.tensor([1 / ranks[c] for c in others]).double()
        left = rows.logits[row, others].log_softmax(0)
        smooth = 0.1 / 4 + 0.9 * functional.one_hot(rows.labels[row], 4)
        total = total - trust * logs[label] - 0.1 * (shares / shares.sum() * left).sum()
        total = total - 0.005 * (smooth * weak[row].log()).sum()
    close(value("uskd", rows).mean(), total / 6)


def test_pld(rows):
    """One class after another is drawn, the teacher's order being the one to be drawn."""
    targets, expected = rows.targets("pld"), []
    for row, label in enumerate(rows.labels.tolist()):
        order = sorted(range(4), key=lambda c: (c != label, -float(targets[row, c])))
        loss = 0.0
        for k, c in enumerate(order):
            left = rows.logits[row, order[k:]]
            loss = loss + targets[row, c] * (left.exp().sum().log() - rows.logits[row, c])
        expected.append(loss)
    close(value("pld", rows), torch.stack(expected))


@pytest.mark.parametrize("adaptive", [True, False])
def test_taid(adaptive):
    """A run of ten steps, of one student, whose loss falls."""
    objective = made({"name": "taid", "alpha": 0.3, "beta": 0.9, "adaptive": adaptive})
    teacher, groups, memory = draw(6, 4, seed=1), torch.zeros(6, dtype=torch.int64), Memory()
    between, before, change = 0.4, None, 0.0
    for step in range(10):
        if not adaptive:
            between = 0.4 + 0.6 * step / 10
        logits = draw(6, 4) + step / 10 * (teacher - draw(6, 4))
        target = ((1 - between) * logits + between * teacher.log_softmax(1)).softmax(1)
        expected = -(target * logits.log_softmax(1)).sum(1)
        given = {"groups": groups, "memory": memory} if adaptive else {}
        found = objective(logits, teacher.softmax(1), 1.0, progress=step / 10, **given)
        close(found, expected)
        loss = expected.mean()
        if before is not None and adaptive:
            change = 0.9 * change + 0.1 * (before - loss) / (before + 1e-15)
            grown = between + 0.3 * torch.sigmoid(change) * (1 - between)
            between = min(1.0, max(0.4 + 0.6 * step / 10, float(grown)))
        before = loss
