"""Which student each client gets: in turn, or the one most like a teacher (DisWOT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedkd.distillation.similarity import gram_score, shown
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.random import generator, key
from fedkd.students.build import build, count_parameters

BATCH = 64
"""Samples of the transfer set that students are compared on, at most."""


def with_chosen_students(
    experiment: Experiment, inputs: Tensor, shape: tuple[int, ...], classes: int
) -> Experiment:
    """The experiment with ``student.models`` as they were chosen, one a client.

    Under ``student.choose = "similarity"`` each client gets that of its ``student.models`` whose
    untrained student, as this client begins, is most like the untrained teacher. They are compared
    on the first samples ``inputs`` ``(M, ...)`` of the transfer set, with drawn labels. Otherwise
    it is the experiment itself.

    Parameters
    ----------
    shape, classes
        Shape of an input, and the number of classes.

    Raises
    ------
    FedkdError
        There is nothing to compare students on, in one line.
    """
    table, seed = experiment.student, experiment.seed
    if table.choose == "cycle":
        return experiment
    said = "student.choose = 'similarity' is not allowed with"
    if not len(inputs):
        raise FedkdError(
            f"{said} data.transfer.size = 0: students are compared on the transfer set"
        )
    if not inputs.is_floating_point():
        raise FedkdError(
            f"{said} data.dataset = {experiment.data.dataset!r}: it compares representations of "
            "whole samples, and in text only tokens have one; allowed: 'cycle'"
        )

    def made(name: str, *purpose: str | int) -> nn.Sequential:
        return build(name, shape, classes, table, key(seed, *purpose))

    names = list(dict.fromkeys(table.models))
    sizes = {name: count_parameters(made(name, "size", name)) for name in names}
    teacher = table.teacher or max(names, key=lambda name: sizes[name])
    others = [name for name in names if name != teacher] or names
    batch = inputs[:BATCH].cpu()
    labels = torch.randint(classes, (len(batch),), generator=generator(seed, "labels", "choice"))
    wanted = shown(made(teacher, "teacher", teacher), batch, labels)

    def best(whose: str | int) -> str:
        scores = {}
        for name in others:
            # As the client begins: see Clients.
            given = shown(made(name, "student", name, whose), batch, labels)
            scores[name] = gram_score(given[0], wanted[0], given[1], wanted[1])
        return max(others, key=lambda name: scores[name])

    clients = experiment.data.clients
    alike = table.init != "own"
    chosen = [best("all")] * clients if alike else [best(client) for client in range(clients)]
    settled = table.model_copy(update={"models": tuple(chosen), "choose": "cycle", "teacher": ""})
    return experiment.model_copy(update={"student": settled})
