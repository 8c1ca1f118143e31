"""FedRoD: Chen & Chao, ICLR 2022 (arXiv 2107.00778): one body, a generic head and a personal one.

Body and generic head are to be good for everybody: they learn by a loss that the client's own mix
of classes does not bend (balanced softmax), and are averaged. A personal head learns what to add
for the client's own mix. With n_c the client's samples of class c::

    client n   (B, G) = the averaged ones;  for each batch, with r = B(x):
                 B, G learn by  CE(G(r) + prior * log n, y)
                 P_n learns by  CE(G(r) + P_n(r), y), with no gradient into r and G(r)
               B and G, sent;  P_n, kept
    server     (B, G) = sum_n samples_n / samples * (B_n, G_n)

The personalised predictor, G(B(x)) + P_n(B(x)), is the client's own student; the generic one,
G(B(x)), is tested beside it. Label counts stay on the client.

Departures: heads are linear, so that the sum of two heads is one head with the sum of their
parameters. Personal heads start from 0, so that who has not taken part yet has the generic
predictor. The variant whose personal heads a hypernetwork makes from label counts is left out. The
authors' code was not read.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import nn

from fedkd import students
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.strategies.base import Replies
from fedkd.strategies.fedavg import AverageOptions, FedAvg, refuse_noise
from fedkd.work import Blend, CrossEntropy, Evaluate, Fit, Hold, Load, Peer, Prior, Share, Step


class FedRoD(FedAvg):
    """Averages body and generic head; a personal head adds to its logits (Chen & Chao 2022)."""

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        prior: float = Field(1.0, ge=0)
        """Weight of the log label counts in the generic loss; 0 is cross-entropy, and the generic
        predictor that of FedAvg."""

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse DP-SGD."""
        super().check(experiment)
        refuse_noise(experiment, "a sample acts on the personal head through the generic one too")

    def setup(self) -> None:
        """The averaged student, and who has a personal head."""
        super().setup()
        student = self.initial_student()
        *below, self.head = students.blocks(student)
        self.cut = below[-1]
        check_linear(student[-1], self.head, self.experiment)
        self.personal: list[int] = []

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train both predictors at once and send the generic one; be the personalised one."""
        zero = Load("own", part=(self.head,), student="personal", weight=0.0)
        return [
            Load(self.parameters),
            Hold("personal"),
            *([] if client in self.personal else [zero]),
            self.local_fit(),
            Share(),
            self.added(),
        ]

    def local_fit(self) -> Fit:
        """The generic predictor by the balanced loss, the personal head by what it leaves."""
        prior = Prior("log", self.options.prior) if self.options.prior else None
        head = Peer(
            "personal",
            (CrossEntropy(),),
            key="personal_loss",
            part=(self.head,),
            at=Blend("own", 1.0, 1.0, self.cut),
        )
        return Fit(terms=(CrossEntropy(prior=prior),), together=(head,))

    def added(self) -> Load:
        """The personal head's parameters come to those of the client's own student."""
        return Load("personal", part=(self.head,), keep=1.0)

    def fuse(self, round: int, replies: Replies) -> None:
        """Average body and generic head. Who was left out begins again with a personal head."""
        super().fuse(round, replies)
        self.personal = sorted({*self.personal, *replies.clients})

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """The personalised predictor, where there is a personal head."""
        generic = Load(self.parameters)
        return [generic, self.added()] if client in self.personal else [generic]

    def score(self, round: int, client: int) -> Sequence[Step]:
        """The generic predictor, beside the personalised one."""
        return [Load(self.parameters), Evaluate(key="generic")]


def check_linear(head: nn.Module, name: str, experiment: Experiment) -> None:
    """Refuse a head of more than one linear layer.

    Raises
    ------
    FedkdError
        One line naming the student and the layers of its head.
    """
    layers = [type(layer) for layer in head.modules() if not [*layer.children()]]
    if layers.count(nn.Linear) != 1 or {*layers} - {nn.Linear, nn.Flatten, nn.Identity}:
        raise FedkdError(
            f"student.models = {list(experiment.student.models)} is not allowed with strategy.name "
            f"= {experiment.strategy.name!r}: heads are added to each other, which takes one "
            f"linear layer, and {name!r} has {', '.join(layer.__name__ for layer in layers)}"
        )
