"""How a fit goes on: what its learning rate is at each step, and when it ends before its last."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from fedkd.training.inference import evaluate
from fedkd.work import Samples

Span = tuple[float, float]
"""From which to which share of a run's training a fit goes."""
WHOLE: Span = (0.0, 1.0)


def span(round: int, rounds: int) -> Span:
    """From which to which share of the training of ``rounds`` the fits of a round go."""
    return max(0, round - 1) / rounds, max(1, round) / rounds


@dataclass(frozen=True)
class Validation:
    """Labelled samples by which a student is watched while it learns.

    Its accuracy is taken before the first step, every ``every`` steps and after the last one. The
    fit ends after ``patience`` steps without a better one, and the student is then, as after the
    last step, as it was at its best; of two as good, at the first.
    """

    samples: Samples
    every: int = 100
    patience: int = 1000


@dataclass(frozen=True)
class Course:
    """How one student's fit goes on.

    ``annealed``: from its rate to 0 along half a period of the cosine (Loshchilov & Hutter 2017).
    """

    annealed: bool = False
    validation: Validation | None = None

    def pace(self, done: float) -> float:
        """What the rate is times, when a share ``done`` of all steps is done."""
        return (1 + math.cos(math.pi * done)) / 2 if self.annealed else 1.0


class Best:
    """What a student was at its best so far, on validation samples."""

    def __init__(self, student: nn.Sequential, validation: Validation) -> None:
        self._student, self._validation = student, validation
        self._step, self._accuracy = 0, -1.0
        self._state: dict[str, Tensor] = {}
        self._look(0)

    def ended(self, step: int, last: bool) -> bool:
        """Whether the fit ends after ``step`` steps; the student may be in evaluation mode then."""
        if last or step % self._validation.every == 0:
            self._look(step)
        return step - self._step >= self._validation.patience

    def give_back(self) -> None:
        """Have the student be as it was at its best."""
        self._student.load_state_dict(self._state)

    def _look(self, step: int) -> None:
        accuracy = evaluate(self._student, self._validation.samples)["accuracy"]
        if accuracy > self._accuracy:
            self._step, self._accuracy = step, accuracy
            state = self._student.state_dict()
            self._state = {name: tensor.clone() for name, tensor in state.items()}
