"""What a method distils, and which objectives that is enough for.

Fused knowledge is of a kind: logits, or probabilities at a temperature. Whatever an objective takes
is made of it here, for all methods, or refused in one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedkd.distillation.objectives import (
    SMALLEST,
    Chosen,
    Function,
    columns_of,
    made,
    name_of,
    traits,
)
from fedkd.distillation.targets import soften


@dataclass(frozen=True)
class Knowledge:
    """What a method distils by its option ``objective``.

    Students that teach by their names are ``logits``: they say what an objective takes.
    """

    kind: Literal["probabilities", "logits"] = "probabilities"
    """What it is; probabilities come as they were softened, at the temperature of the term."""
    labelled: bool = False
    """Whether the samples that it is distilled on have labels: the transfer set's have none."""

    def unfit(self, chosen: Chosen, key: str = "strategy.objective") -> str | None:
        """Why it is not enough for an objective, chosen by ``key``, in one line; None if it is."""
        objective, name = made(chosen, key), name_of(chosen)
        expects = traits(objective)
        if expects.targets == "logits" and self.kind != "logits" and not blind(objective):
            return (
                f"{key} = {name!r} is not allowed: it takes logits, and what is distilled here are "
                "probabilities, whose logarithms leave a constant open; allowed: one that takes "
                "probabilities (fedkd list objectives)"
            )
        if columns_of(chosen, 1) != 1:
            return (
                f"{key} = {name!r} is not allowed: it takes parts of classes as targets, and what "
                "is distilled here has a column a class"
            )
        own = isinstance(chosen, str) or chosen.get("labels", "own") == "own"
        if "labels" in expects.needs and own and not self.labelled:
            return (
                f"{key} = {name!r} needs labels, and what is distilled on here has none (the "
                f'transfer set never has); {{name = "{name}", labels = "argmax"}} takes the '
                "teacher's likeliest class"
            )
        return None

    def targets(self, chosen: Chosen, given: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """What an objective takes, made of what is known: ``(K, C)`` to ``(K, C)``.

        ``temperature`` is one number or ``(K,)``.

        Logits are softened at ``temperature`` where the objective takes probabilities. Of
        probabilities that were softened at it, logits are ``temperature log p``, up to a constant a
        row, for objectives that do not see one: :meth:`unfit` refuses the others. Rows of NaN, and
        what already is as it is taken, stay as they are, to the bit.
        """
        takes = traits(made(chosen)).targets
        if takes == self.kind:
            return given
        tau = temperature[:, None] if isinstance(temperature, Tensor) else temperature
        if takes == "probabilities":
            return soften(given, tau)
        return tau * given.clamp_min(SMALLEST).log()


def blind(objective: Function) -> bool:
    """Whether a constant that is added to a row of targets changes nothing for an objective.

    Tried on a few numbers; of one that needs more than labels it is not known, and False.
    """
    if {*traits(objective).needs} - {"labels"}:
        return False
    draw = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 4, 5, generator=draw, dtype=torch.float64)
    constants = torch.randn(4, 1, generator=draw, dtype=torch.float64)
    needed = {"labels": torch.arange(4)} if traits(objective).needs else {}
    once, again = (objective(logits, t, 1.0, **needed) for t in (targets, targets + constants))
    return bool(torch.allclose(once, again))
