"""What ``[training]`` adds between a student's private training and what it says then.

It is of the steps of every method whose clients answer after they have trained: the training in
which a teacher keeps its variety, and the aligning of its last layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.training_tables import TrainingTable
from fedkd.work import Align, CrossEntropy, Fit, Peer, Predict, Soft, Source, Step, origin

VARIETY = "variety_loss"
"""Metric of the training that :func:`varied` gives; of other students, with their name."""


def prepared(steps: Sequence[Step], training: TrainingTable) -> tuple[Step, ...]:
    """``steps``, with what prepares a student before the first ``Predict`` after private training.

    The same steps where nothing is asked for, or no student answers after it has trained.
    """
    if not training.class_variety and not training.align_weights:
        return tuple(steps)
    found: list[Step] = []
    learnt: dict[str, tuple[Source, Peer]] = {}
    for step in steps:
        if isinstance(step, Fit) and origin(step.on) == "private":
            learnt |= {peer.student: (step.on, peer) for peer in step.peers}
        if isinstance(step, Predict) and step.student in learnt:
            on, peer = learnt.pop(step.student)
            if training.class_variety:
                found.append(varied(on, peer, training))
            if training.align_weights:
                found.append(Align(on, peer.part, peer.student))
        found.append(step)
    return tuple(found)


def varied(on: Source, peer: Peer, training: TrainingTable) -> Fit:
    """Training that keeps what a teacher says of samples of one class apart (Ye et al. 2024).

    On private samples of class y, with q what the student says and Q_y the mean of it over them
    before: ``CE(q, y) - class_variety min(KL(q || Q_y), ln C)``.
    """
    variety = Soft(
        peer.student,
        "capped_reverse_kl",
        weight=-training.class_variety,
        per="class",
    )
    return Fit(
        on,
        (CrossEntropy(), variety),
        epochs=training.class_variety_epochs,
        min_steps=0,
        lr=peer.lr,
        part=peer.part,
        key=VARIETY if peer.student == "own" else f"{VARIETY}_{peer.student}",
        student=peer.student,
    )
