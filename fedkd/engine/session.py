"""How each step of an assignment is done."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import students
from fedkd.blends import blended
from fedkd.data import cache
from fedkd.density import alike
from fedkd.engine.at_work import AtWork
from fedkd.engine.remembered import LEARNT
from fedkd.engine.resolving import resolved
from fedkd.engine.sending import evaluated, give, predicted, represented, shared
from fedkd.errors import FedkdError
from fedkd.privacy.dpsgd import DPSGD, sees_private
from fedkd.random import generator, key
from fedkd.training import (
    BatchOfOne,
    Trainee,
    aligned,
    evaluate_in_bins,
    fit_together,
    item_labels,
    last_layer,
    learning_names,
    nearest_prototype,
    predict,
    represent,
    span,
)
from fedkd.training.loyalty import Comparison, Loyalty
from fedkd.training_tables import TrainingTable
from fedkd.work import (
    SOURCES,
    Align,
    Count,
    CrossEntropy,
    Evaluate,
    Expose,
    Fit,
    Hold,
    Load,
    Peer,
    Predict,
    Represent,
    Samples,
    Select,
    Share,
    Step,
    Term,
    origin,
)


class Session(AtWork):
    """One assignment at work: does its steps."""

    def do(self, step: Step, phase: str) -> None:
        """Do one step."""
        if isinstance(step, Hold):
            self.clients.hold(self.assignment.client, step.student, step.model)
            return
        if isinstance(step, Select):
            self.select(step)
            return
        if isinstance(step, Count):
            self.count(step)
            return
        if isinstance(step, Fit):
            self.fit(step, phase)
            return
        student = self.student(step.student)
        if isinstance(step, Align):
            self.align(step, student)
        elif isinstance(step, Predict):
            seed, samples = self.seed(step, step.on, step.student), self.samples(step.on)
            predicted(self, step, predict(student, samples.inputs, seed, samples.cut).clone())
        elif isinstance(step, Represent):
            self.represent(step, student)
        elif isinstance(step, Load):
            self.load(step, student)
        elif isinstance(step, Share):
            names = students.part_names(student, step.part)
            tensors = student.state_dict()
            shared(self, step, {name: tensors[name].cpu().clone() for name in names})
        elif isinstance(step, Expose):
            self.values[step.key] = self.clients.remembered.exposures(student)
        elif isinstance(step, Evaluate):
            seed = self.seed(step, step.on, step.student)
            samples = self.samples(step.on)
            if step.above is not None:
                found = self.clients.evaluated_below(step.above, student, samples, seed)
                evaluated(self, step, found)
            elif step.prototypes is None:
                evaluated(self, step, *evaluate_in_bins(student, samples, seed))
            else:
                rows = step.prototypes.to(samples.inputs.device)
                evaluated(self, step, nearest_prototype(student, samples, step.cut, rows, seed))

    def draws(self, step: Fit, phase: str) -> list[tuple[int, int, str]]:
        """What the next fit of this kind draws its numbers by, besides the seed: for each student.

        By the first, batches are drawn.
        """
        on, found = origin(step.on), []
        for peer in step.peers:
            purpose = f"{phase} {on} {self._fits[phase, on, peer.student]}"
            self._fits[phase, on, peer.student] += 1
            found.append((self.assignment.client, self.assignment.round, purpose))
        return found

    def training(self, step: Fit) -> TrainingTable:
        """How the step trains; what is undone after a test goes by no schedule."""
        round = None if self.trying else self.assignment.round
        return self.clients.experiment.training_on(step.on, round)

    def fit(self, step: Fit, phase: str) -> None:
        """Train the student, and those that learn together with it, in place."""
        experiment, samples = self.clients.experiment, self.samples(step.on)
        training = self.training(step)
        draws = self.draws(step, phase)
        private = bool(experiment.training.dp.noise_multiplier) and sees_private(step)
        trainees = [
            self._trainee(step, peer, draw, private)
            for peer, draw in zip(step.peers, draws, strict=True)
        ]
        fits = [trainee.dp for trainee in trainees if trainee.dp is not None]
        compared = [self.compared(step, each.name, each.terms, samples) for each in trainees]

        def loyal() -> list[Loyalty]:
            pairs = zip(trainees, compared, strict=True)
            return [one for each, found in pairs for one in self.loyalties.of(each.student, found)]

        before = loyal()

        def train() -> cache.Arrays:
            try:
                losses = fit_together(
                    trainees,
                    samples,
                    training,
                    generator(experiment.seed, "fit", *draws[0]),
                    epochs=step.epochs,
                    min_steps=step.min_steps,
                    sources={name: partial(self.samples, name) for name in SOURCES},
                    augment=self.clients.augment,
                    span=span(self.assignment.round, experiment.rounds),
                )
            except BatchOfOne as error:
                raise FedkdError(f"client {self.assignment.client}: {error}") from error
            # Students that learn together take the same steps, which are counted once.
            rate = max((dp.sample_rate for dp in fits), default=0.0)
            return {LEARNT: np.array([*losses, rate, max((dp.steps for dp in fits), default=0)])}

        plain = all(term == CrossEntropy(term.weight) for term in step.terms)
        again = not (fits and experiment.release.secure) and not training.keep_optimiser
        if experiment.engine.remember and plain and again and not step.together:
            what = (repr(step), draws[0], training.lr, *self.clients.world)
            learnt = self.clients.remembered.fit(trainees[0].student, samples, what, train)
        else:
            learnt = train()[LEARNT]
        *losses, rate, steps = map(float, learnt)
        for peer, loss in zip(step.peers, losses, strict=True):
            self.wrote(peer.student)
            self.metrics[peer.key] = loss
        for peer, trainee in zip(step.peers, trainees, strict=True):
            slope = trainee.measured.get("slope", 0.0)
            self.metrics |= dict.fromkeys(peer.keys[1:], slope)
        self.metrics |= self.loyalties.add(before, loyal())
        if fits and not self.trying:
            self.metrics["dp_sample_rate"] = max(self.metrics.get("dp_sample_rate", 0.0), rate)
            self.metrics["dp_steps"] = self.metrics.get("dp_steps", 0.0) + steps

    def compared(
        self, step: Fit, student: str, terms: Sequence[Term], samples: Samples
    ) -> list[Comparison | None]:
        """What the student's loyalty is measured by, for each of its terms on ``samples``."""
        length = self.training(step).length(step.epochs, step.min_steps)
        if self.trying or not any(length):
            return []
        probe = partial(self.clients.probe, self.architecture(student))
        return self.loyalties.comparisons(terms, samples, self.samples, probe)

    def _trainee(self, step: Fit, peer: Peer, draw: tuple[int, int, str], private: bool) -> Trainee:
        """One of the students of ``step``, under DP-SGD if it is ``private``."""
        experiment, dp = self.clients.experiment, None
        student = self.student(peer.student)
        if private:
            self._check_private(peer)
            # Two students trained alike must not get the same noise.
            purpose = (*draw, peer.student, *self.clients.world)
            table, secure = experiment.training.dp, experiment.release.secure
            dp = DPSGD(table, step.on, experiment.seed, *purpose, secure=secure)
        names = {other.student for other in step.peers} - {peer.student}
        return Trainee(
            student,
            [resolved(self, term, self.samples(step.on), step.on, names) for term in peer.terms],
            key(experiment.seed, "student", *draw, peer.student),
            peer.student,
            peer.lr,
            peer.part or experiment.training.part,
            dp,
            at=peer.at,
            kept=self.beside.optimiser(step, peer.student),
            auxiliary=self.beside.auxiliary(peer.student),
        )

    def _check_private(self, peer: Peer) -> None:
        """Refuse DP-SGD where a sample has its say other than by its gradient."""
        model = self.architecture(peer.student)
        traits, reason = self.clients.probe(model).training, ""
        if traits.mixes or traits.varies:
            reason = (
                "what it gives for a sample in training depends on the others of the batch, and "
                "no bound holds on one sample's gradient"
            )
        elif traits.writes:
            reason = "it writes to its buffers in training, and they get no noise"
        if reason:
            noise_multiplier = self.clients.experiment.training.dp.noise_multiplier
            raise FedkdError(
                f"student.models = {model!r} is not allowed with training.dp.noise_multiplier = "
                f"{noise_multiplier:g}: {reason}"
            )

    def represent(self, step: Represent, student: nn.Sequential) -> None:
        """Give out representations and the soft labels that go with them."""
        experiment = self.clients.experiment
        if self.clients.data.task.tokens and step.per == "sample":
            raise FedkdError(
                f"strategy.name = {experiment.strategy.name!r} is not allowed with data.dataset = "
                f"{experiment.data.dataset!r}: it sends a representation of each sample, and in "
                "text only tokens have one"
            )
        seed = self.seed(step, step.on, step.student)
        samples = self.samples(step.on)
        found = represent(student, samples.inputs, step.cut, seed, samples.cut)
        represented(self, step, *(tensor.clone() for tensor in found))

    def select(self, step: Select) -> None:
        """Give out which samples are like the client's own."""
        client, seed = self.assignment.client, self.clients.experiment.seed
        inputs, own = (self.samples(on).inputs for on in (step.on, "private"))
        draw = generator(seed, "select", client)
        selected = alike(inputs, own, step.width, step.quantile, draw)
        give(self, step, selected.cpu(), len(selected))

    def count(self, step: Count) -> None:
        """Give out how many samples there are of each class."""
        counts = self.label_counts(step)
        give(self, step, counts.cpu(), len(counts))

    def label_counts(self, step: Count | Align) -> Tensor:
        """How many samples ``(C,)`` the source of a step has of each class."""
        labels = item_labels(self.samples(step.on))
        if labels is None:
            name = type(step).__name__
            raise FedkdError(f"{name}: the samples have no labels (the transfer set never has)")
        return labels[labels >= 0].bincount(minlength=self.clients.data.task.classes)

    def align(self, step: Align, student: nn.Sequential) -> None:
        """Scale the last layer's weights, if it is among what learns."""
        name, layer = last_layer(student, step.student)
        part = step.part or self.clients.experiment.training.part
        if f"{name}.weight" in learning_names(student, part):
            with torch.no_grad():
                layer.weight.copy_(aligned(layer.weight, self.label_counts(step)))
            self.wrote(step.student)

    def load(self, step: Load, student: nn.Sequential) -> None:
        """Take in parameters."""
        given = step.parameters
        if isinstance(given, str):
            of = self.student(given).state_dict()
            given = {name: value.clone() for name, value in of.items()}
            student = self.student(step.student)
        tensors = student.state_dict()
        wanted = set(students.part_names(student, step.part))
        with torch.no_grad():
            for name, value in given.items():
                if name not in tensors or tensors[name].shape != value.shape:
                    raise FedkdError(
                        f"Load: client {self.assignment.client}'s student has no {name} "
                        f"of shape {tuple(value.shape)}"
                    )
                if name in wanted:
                    value = value.to(tensors[name].device)
                    tensors[name].copy_(blended(tensors[name], value, step.keep, step.weight))
        self.wrote(step.student)
