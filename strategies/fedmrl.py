"""FedMRL: Yi, Yu, Ren, Wang & Li, NeurIPS 2024 (arXiv 2406.00488), Matryoshka representations.

Beside its own student, of any architecture, every client trains a small shared one by the same
loss. A projection of its own makes one representation of both bodies' B, whose first k numbers the
shared head H reads, and all of them the own head::

    client n   (B, H) = the averaged ones;  for each batch:
                 m = W_n [B(x), B_n(x)] + b_n
                 B, H, B_n, H_n, W_n and b_n learn by  CE(H_n(m), y) + weight CE(H(m[:k]), y)
               B and H, sent;  the rest, kept
    server     (B, H) = sum_n samples_n / samples * (B, H)_n

A client is tested by its own head, on both bodies: after local training with the shared body as it
has trained it, as in the authors' code, after fusion with the averaged one. Both students are one
student to all that measures or attacks it (:mod:`fedkd.students.pair`).

Departures: the shared body ends in a linear layer to k numbers, which in the authors' code is its
last hidden layer, with a ReLU. The authors' clipping of gradients is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fedkd import students
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.options import MOST_UNITS
from fedkd.sections import StudentTable
from fedkd.strategies.base import Headline, KnowledgeStrategy, Replies
from fedkd.strategies.fedavg import average
from fedkd.strategies.fml import SharedStudentOptions, check_shared_model
from fedkd.students.pair import EXIT, SHARED, PairTable
from fedkd.work import CrossEntropy, Fit, Load, Share, Step


class FedMRL(KnowledgeStrategy):
    """A shared small student and the own one learn one nested representation (Yi et al. 2024)."""

    class Options(SharedStudentOptions):
        """Keys of ``[strategy]``."""

        nested: int = Field(100, ge=1, le=MOST_UNITS)
        """Numbers k of the representation that the shared head reads, times ``student.width``; at
        most as many as the narrowest own student has below its head. The paper has 100 to 500 of
        500."""
        weight: float = Field(1.0, ge=0)
        """Weight of the shared head's loss; with 0 the shared body learns by the own heads alone,
        and the shared head stays as it began."""

    headline = Headline("local")

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse shared students that could not be averaged, and the public model."""
        super().check(experiment)
        check_shared_model(experiment, cls.read_options(experiment).shared_model)
        if experiment.student.init == "public":
            raise FedkdError(
                "student.init = 'public' is not allowed with strategy.name = "
                f"{experiment.strategy.name!r}: its students are pairs, and the public model is not"
            )

    @classmethod
    def student_table(cls, experiment: Experiment) -> StudentTable:
        """Each student is paired with the shared one."""
        options, table = cls.read_options(experiment), experiment.student
        shared = options.shared_model or table.models[0]
        nested = max(1, round(options.nested * table.width))
        return PairTable(**table.model_dump(), shared=shared, nested=nested)

    def setup(self) -> None:
        """The shared student that all clients start from."""
        student = self.initial_student()
        state = student.state_dict()
        names = students.part_names(student, SHARED)
        self.shared = {name: state[name].contiguous() for name in names}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train both students by the losses of both heads, and send the shared one."""
        terms: tuple[CrossEntropy, ...] = (CrossEntropy(),)
        if weight := self.options.weight:
            terms += (CrossEntropy(weight, exit=EXIT),)
        return [Load(self.shared), Fit(terms=terms), Share(SHARED)]

    def fuse(self, round: int, replies: Replies) -> None:
        """Average the shared students."""
        self.shared = average(replies.parameters(), replies.samples)

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """The averaged shared student, in the client's pair."""
        return [Load(self.shared)]
