"""FedDF: Lin, Kong, Stich & Jaggi, 2020 (arXiv 2006.07242), algorithms 1 and 3.

The average of the clients' students is only where the server starts: it then distils their
ensemble on the unlabelled transfer set, with x over its samples. Of several architectures p each
has an average, of its own clients, and learns from the ensemble of all clients::

    client n   w_n = training on private data, from w of its architecture           sent
    server     w   = sum_n samples_n / samples * w_n,  over the clients of p;  for each p
               minimise KL(softmax(mean_n f(w_n; x)) || softmax(f(w; x)))     over w, for each p

The server's optimiser is Adam, as in the paper, whatever the clients use, unless ``[server]`` has
another. All clients are tested with the server's student of their architecture, which is what the
paper scores. Where nobody of an architecture takes part in a round, its student goes on from where
it was.

Departures: the rate is constant unless ``annealing`` is set, and without ``early_stopping`` on
validation data a distillation has a fixed number of epochs, and harms where the ensemble is worse
than the average. With it, the average too may be the best, which the authors' code has as a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field

from fedkd.distillation.objectives import ObjectiveOption
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.options import MOST, Epochs, OnlyWith
from fedkd.strategies.base import (
    Knowledge,
    KnowledgeStrategy,
    Replies,
    ServerTable,
    StrategyOptions,
)
from fedkd.strategies.fedavg import average_of
from fedkd.training import Validation
from fedkd.work import Fit, Load, Parameters, Samples, Share, Step


class FedDF(KnowledgeStrategy):
    """FedAvg, then the server distils the clients' ensemble into the average (Lin et al. 2020)."""

    class Options(StrategyOptions):
        """Keys of ``[strategy]``."""

        server_epochs: Epochs = 5.0
        """Passes over the transfer set in which the server distils, a round; 0 is FedAvg."""
        objective: ObjectiveOption = "forward_kl"
        """How it learns from the ensemble, of ``fedkd list objectives``."""
        annealing: bool = False
        """Whether the rate falls to 0 along a cosine in each distillation, as in the paper."""
        early_stopping: bool = False
        """Whether a distillation ends by the accuracy on ``data.server_validation``, and the global
        student is what was best on it, the average among them."""
        check_every: Annotated[int, OnlyWith("early_stopping", True)] = Field(100, ge=1, le=MOST)
        """Steps from one look at the validation samples to the next."""
        patience: Annotated[int, OnlyWith("early_stopping", True)] = Field(1000, ge=1, le=MOST)
        """Steps without a better accuracy after which a distillation ends."""

    needs_transfer_set = True
    knowledge = Knowledge("logits")
    server_training = ServerTable(optimiser="adam", lr=1e-3, batch_size=128)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse early stopping where the server has nothing to validate on."""
        super().check(experiment)
        if cls.read_options(experiment).early_stopping and not experiment.data.server_validation:
            raise FedkdError(
                "strategy.early_stopping = true is not allowed with data.server_validation = 0: "
                "the server has no labelled samples to validate on"
            )

    def setup(self) -> None:
        """The global students, freshly initialised, by architecture."""
        models = dict.fromkeys(self.experiment.student.models)
        self.parameters = {model: self.initial_parameters(model) for model in models}

    def setup_server(self) -> None:
        """One student an architecture: through it go its uploads, and then their average."""
        for model in self.experiment.student.models:
            self.server.add(self.place(model), partial(self.initial_student, model))

    def place(self, model: str) -> str:
        """What the server's student of an architecture is called."""
        first = self.experiment.student.models[0]
        return "global" if model == first else f"global {model}"

    def own(self, client: int) -> Parameters:
        """The global student of a client's architecture."""
        return self.parameters[self.experiment.architecture(client)]

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the global student on private data and send it back."""
        return [Load(self.own(client)), Fit(), Share()]

    def fuse(self, round: int, replies: Replies) -> None:
        """Average, then distil the ensemble of what was uploaded."""
        options, ensemble, validation = self.options, self.soft(self.ensemble(replies)), None
        if options.early_stopping and self.public.validation is not None:
            watched = self.public.validation
            validation = Validation(watched, options.check_every, options.patience)
        for model in self.parameters:
            group = Replies(
                reply
                for reply in replies.replies
                if self.experiment.architecture(reply.client) == model
            )
            if len(group):
                self.parameters[model] = average_of(self, group)
            place = self.place(model)
            self.server.load(place, self.parameters[model])
            self.server.fit(
                place,
                round,
                Samples(self.transfer),
                [ensemble],
                options.server_epochs,
                annealed=options.annealing,
                validation=validation,
            )
            self.parameters[model] = self.server.parameters(place)

    def ensemble(self, replies: Replies) -> torch.Tensor:
        """``mean_n f_n`` on the transfer set, (M, C) logits."""
        total = torch.zeros(1, self.task.classes)
        for client, parameters in zip(replies.clients, replies.parameters(), strict=True):
            place = self.place(self.experiment.architecture(client))
            self.server.load(place, parameters)
            total = total + self.server.predict(place, self.transfer)
        return total / len(replies)

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """Every client is tested with the global student of its architecture."""
        return [Load(self.own(client))]
