"""FedBABU: Oh, Kim & Yun, ICLR 2022 (arXiv 2106.06042): body aggregation and body update.

The head is drawn once, the same for everybody, and no round trains it: federated training is about
the body. Where a client uses the student, it fine-tunes the head::

    client n   b_n = training of the body on private data, from b, below the head h_0;  b_n, sent
    server     b   = sum_n samples_n / samples * b_n
    test       (b, h_n), h_n = E epochs of training of the head on private data, from h_0, above b
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fedkd import students
from fedkd.experiment import Experiment
from fedkd.options import Epochs
from fedkd.strategies.base import Replies
from fedkd.strategies.fedavg import AverageOptions, FedAvg, refuse_part
from fedkd.work import Fit, Load, Share, Step


class FedBABU(FedAvg):
    """Averages bodies below a head that nobody trains, but for the test (Oh et al. 2022).

    Departures: the head that was fine-tuned is not kept, and no round depends on it; it is trained
    with the optimiser and learning rate of ``[training]``. A block that is held fixed is as in an
    answer: its dropout is off.
    """

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        finetune_epochs: Epochs = 5.0
        """Passes over the private data before a test; 0 is the global student."""
        finetune_part: Literal["head", "all"] = "head"
        """What learns in them: the head alone, or all of the student."""

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse another say in which blocks learn."""
        super().check(experiment)
        refuse_part(experiment, "it trains the body, and for the test the head")

    def setup(self) -> None:
        """The body and the head that all clients start from, and who has the head."""
        student, parameters = self.initial_student(), self.initial_parameters()
        body, head = (students.part_names(student, (part,)) for part in ("body", "head"))
        self.parameters = {name: parameters[name] for name in body}
        self.head = {name: parameters[name] for name in head}
        self.known: list[int] = []

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the common body below the fixed head, and send it back."""
        return [
            *([] if client in self.known else [Load(self.head)]),
            Load(self.parameters),
            Fit(part=("body",)),
            Share(("body",)),
        ]

    def fuse(self, round: int, replies: Replies) -> None:
        """Average the bodies. Who was left out is sent the head again."""
        super().fuse(round, replies)
        self.known = sorted({*self.known, *replies.clients})

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """The common body, below the head or what fine-tuning makes of it."""
        options = self.options
        part = ("head",) if options.finetune_part == "head" else ()
        tuned = Fit(part=part, epochs=options.finetune_epochs, min_steps=0, key="finetune_loss")
        return [Load(self.head), Load(self.parameters), tuned]
