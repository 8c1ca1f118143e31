"""Rows to try objectives on, and all that one may need of them."""

import torch

from fedkd.distillation.objectives import Memory, made, traits


def draw(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


class Rows:
    """Rows of two students, 4 and 2: labels, groups, and an auxiliary head's logits."""

    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    groups = torch.tensor([0, 0, 1, 0, 1, 0])
    classes = 4

    def __init__(self, dtype=torch.float64):
        self.logits = draw(6, self.classes).to(dtype)
        self.teacher = draw(6, self.classes, seed=1).to(dtype)
        self.auxiliary = draw(6, self.classes, seed=2).to(dtype)
        self.progress = (torch.tensor([0.2, 0.6], dtype=dtype)[self.groups])[:, None]

    def targets(self, chosen, tau=1.0):
        """What the teacher sends: probabilities at a temperature, or logits."""
        logits = traits(made(chosen)).targets == "logits"
        return self.teacher if logits else (self.teacher / tau).softmax(1)

    def of(self, *names):
        """Some rows alone, or in another order."""
        other = Rows()
        for key in ("logits", "teacher", "auxiliary", "progress", "labels", "groups"):
            setattr(other, key, getattr(self, key)[torch.tensor(names)])
        return other


def value(chosen, rows, tau=1.0, targets=None, logits=None):
    """The losses of rows, ``(B,)``."""
    objective = made(chosen)
    needs = traits(objective).needs
    given = {"memory": Memory(2)} | {
        need: getattr(rows, need) for need in needs if need != "memory"
    }
    targets = rows.targets(chosen, tau) if targets is None else targets
    logits = rows.logits if logits is None else logits
    return objective(logits, targets, tau, **{need: given[need] for need in needs})


def gradient(chosen, rows, tau=1.0, targets=None, logits=None):
    """The gradient of the losses' sum by the logits, and by the auxiliary head's."""
    logits = (rows.logits if logits is None else logits).detach().requires_grad_()
    rows.auxiliary = rows.auxiliary.detach().requires_grad_()
    total = value(chosen, rows, tau, targets, logits).sum()
    found = torch.autograd.grad(total, (logits, rows.auxiliary), allow_unused=True)
    return [torch.zeros_like(logits) if each is None else each for each in found]
