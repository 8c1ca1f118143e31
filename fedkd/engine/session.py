"""An assignment at work: how each of its steps is done, and what it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import students
from fedkd.blends import blended
from fedkd.compression import Delta
from fedkd.data import cache
from fedkd.density import alike
from fedkd.distillation.objectives import SMALLEST, columns_of
from fedkd.encodings import as_received, decoded, encoded, factorised, loaded
from fedkd.engine.beside import Beside
from fedkd.engine.clients import Clients
from fedkd.engine.loyalty import Loyalties
from fedkd.engine.remembered import LEARNT
from fedkd.errors import FedkdError
from fedkd.mixtures import Mixture, travelling, with_travelling
from fedkd.privacy.accounting import Release
from fedkd.privacy.dpsgd import DPSGD, sees_private
from fedkd.privacy.release import applies, known_of, release
from fedkd.random import generator, key, privacy_noise
from fedkd.training import (
    BatchOfOne,
    Trainee,
    aligned,
    class_means,
    class_targets,
    evaluate_in_bins,
    fit_together,
    item_labels,
    last_layer,
    learning_names,
    made_targets,
    nearest_prototype,
    predict,
    represent,
    said,
    span,
)
from fedkd.training.loyalty import Comparison, Loyalty
from fedkd.training.student import names_around
from fedkd.training_tables import TrainingTable
from fedkd.work import (
    SOURCES,
    Align,
    Assignment,
    Contrast,
    Count,
    CrossEntropy,
    Evaluate,
    Expose,
    Fit,
    Head,
    Hold,
    Load,
    Parameters,
    Peer,
    Predict,
    Represent,
    Samples,
    Select,
    Sending,
    Share,
    Soft,
    Source,
    Step,
    Term,
    origin,
)


class Session:
    """One assignment at work: the students in use, the values and metrics gathered."""

    def __init__(self, clients: Clients, assignment: Assignment) -> None:
        self.clients, self.assignment = clients, assignment
        self.students: dict[str, nn.Sequential] = {}
        self.values: dict[str, Tensor | Parameters] = {}
        self.metrics: dict[str, float] = {}
        self.releases: list[dict[str, Any]] = []
        self.changed: set[str] = set()
        self.beside = Beside(clients, assignment)
        self.loyalties = Loyalties(clients.experiment, assignment)
        self.trying = False
        self._fits: Counter[tuple[str, str, str]] = Counter()
        self._answers: Counter[tuple[str, str, str]] = Counter()

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
            self.predicted(step, predict(student, samples.inputs, seed, samples.cut).clone())
        elif isinstance(step, Represent):
            self.represent(step, student)
        elif isinstance(step, Load):
            self.load(step, student)
        elif isinstance(step, Share):
            names = students.part_names(student, step.part)
            tensors = student.state_dict()
            self.shared(step, {name: tensors[name].cpu().clone() for name in names})
        elif isinstance(step, Expose):
            self.values[step.key] = self.clients.remembered.exposures(student)
        elif isinstance(step, Evaluate):
            seed = self.seed(step, step.on, step.student)
            samples = self.samples(step.on)
            if step.above is not None:
                found = self.clients.evaluated_below(step.above, student, samples, seed)
                self.evaluated(step, found)
            elif step.prototypes is None:
                self.evaluated(step, *evaluate_in_bins(student, samples, seed))
            else:
                rows = step.prototypes.to(samples.inputs.device)
                self.evaluated(step, nearest_prototype(student, samples, step.cut, rows, seed))

    def student(self, name: str) -> nn.Sequential:
        """The client's student of this name, as it is by now."""
        if name not in self.students:
            self.clients.probe(self.architecture(name))
            self.students[name] = self.clients.module(self.assignment.client, name)
        return self.students[name]

    def architecture(self, name: str) -> str:
        """The architecture of the client's student of this name."""
        return self.clients.architecture(self.assignment, name)

    def wrote(self, name: str) -> None:
        """Note that the student of this name is no longer as it was."""
        self.changed.add(name)

    def keep(self) -> None:
        """Make the students, as they are now, the client's own."""
        for name in self.changed:
            self.clients.keep(self.assignment.client, name, self.students[name].state_dict())
        self.beside.keep()

    def samples(self, on: Source) -> Samples:
        """The samples that ``on`` means for the client."""
        return self.clients.samples(self.assignment.client, on)

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

    def seed(self, step: Step | Soft | Contrast, on: Source | None, student: str) -> int:
        """Key of what a student draws by itself in its next answer of this kind."""
        trial = " trial" if self.trying else ""
        kind = type(step).__name__, origin(on), student
        purpose = f"{self.assignment.phase}{trial} {' '.join(kind)} {self._answers[kind]}"
        self._answers[kind] += 1
        whose = self.assignment.client, self.assignment.round
        return key(self.clients.experiment.seed, "answer", *whose, purpose)

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
            [self.resolved(term, self.samples(step.on), step.on, names) for term in peer.terms],
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

    def resolved(
        self, term: Term, samples: Samples, on: Source, peers: Collection[str] = ()
    ) -> Term:
        """``term`` of a step on ``on``, its targets at hand.

        They are what another student says in the place of that student's name, made of parts, or
        decoded. Not of ``peers``, which learn together: what they say comes with each batch.
        """
        if isinstance(term, CrossEntropy | Soft) and term.through is not None:
            term = replace(term, through=self._framed(term.through))
        if isinstance(term, Contrast):
            return self._contrasted(term, samples)
        if isinstance(term, Soft) and term.encoding is not None:
            term = self._decoded(term, on if term.on is None else term.on)
        if not isinstance(term, Soft) or not isinstance(term.targets, str | Mixture):
            return term
        if isinstance(term.targets, str) and term.targets in peers:
            return term
        source = samples if term.on is None else self.samples(term.on)
        answer = partial(self._answer, term, source)
        if isinstance(term.targets, Mixture):
            targets = made_targets(term, source, self.clients.data.task.classes, answer)
        else:
            targets = answer(term.targets)
        return replace(term, targets=targets)

    def _answer(self, term: Soft, source: Samples, name: str) -> Tensor:
        """What the student of this name says of the samples, in the place of targets."""
        seed = self.seed(term, term.on, name)
        logits = predict(self.student(name), source.inputs, seed, source.cut).clone()
        if term.per == "class":
            return class_targets(term, logits, source)
        return said(term, logits)

    def _framed(self, head: Head) -> Head:
        """A head with a student's parameters in the place of its name."""
        if not isinstance(head.parameters, str):
            return head
        student = self.student(head.parameters)
        names, tensors = names_around(student, head.below, head.cut), student.state_dict()
        return replace(head, parameters={name: tensors[name].clone() for name in names})

    def _decoded(self, term: Soft, on: Source) -> Soft:
        """``term`` with the targets that were encoded for the way."""
        client, how = self.assignment.client, term.encoding
        (given,) = travelling(term.targets)
        assert isinstance(given, dict)
        assert how is not None
        columns = columns_of(term.objective, self.clients.data.task.classes)
        columns = columns if term.among is None else term.among.shape[1] + 1
        known = None
        if isinstance(how, Delta):
            known = self.clients.held(client, "received", how, on)
            if how.since and known is None:
                raise RuntimeError(f"soft labels {how.name!r} of version {how.since} are not held")
        shape = len(self.clients.label_rows(on)), columns
        targets = decoded(given, how, shape, known)
        if isinstance(how, Delta):
            self.clients.hold_labels(client, "received", how, on, targets)
        return replace(term, targets=with_travelling(term.targets, targets), encoding=None)

    def encoded(self, step: Predict, labels: Tensor) -> Tensor | Parameters:
        """Soft labels ``(R, C)`` as they travel."""
        how, client = step.encoding, self.assignment.client
        if how is None or self.trying:
            return labels
        if not isinstance(how, Delta):
            return encoded(labels, how)
        known = self.clients.held(client, "sent", how, step.on)
        # To a version that is not here, all rows have changed.
        arrays = encoded(labels, how, known)
        now = how if known is not None else replace(how, since=0)
        self.clients.hold_labels(client, "sent", now, step.on, as_received(labels, how))
        return arrays

    def _contrasted(self, term: Contrast, samples: Samples) -> Contrast:
        """``term`` with other students' representations in the place of their names."""
        source = samples if term.on is None else self.samples(term.on)

        def of(given: Tensor | str) -> Tensor:
            if isinstance(given, Tensor):
                return given
            seed = self.seed(term, term.on, given)
            student, above = self.student(given), source.cut
            held, _ = represent(student, source.inputs, term.cut, seed, above)
            return held.flatten(1).clone()

        return replace(term, positive=of(term.positive), negative=of(term.negative))

    def evaluated(
        self, step: Evaluate, found: Mapping[str, float], bins: Tensor | None = None
    ) -> None:
        """Give out what was measured, as the step has it."""
        if step.bins and found and bins is not None:
            self.values[step.bins_key] = bins
        self.metrics |= {f"{step.key}_{name}": value for name, value in found.items()}

    def give(
        self,
        step: Sending,
        value: Tensor | Parameters,
        items: int,
        **details: Any,
    ) -> None:
        """Give out ``value``, with a line of the ledger unless it is only tried out.

        ``items`` is the number of rows; ``details`` say what was done to them, which is nothing
        where there are none.
        """
        self.values[step.key] = value
        if self.trying:
            return
        line = Release(
            round=self.assignment.round,
            client=self.assignment.client,
            step=type(step).__name__,
            key=step.key,
            items=items,
            on=origin(getattr(step, "on", "")),
            **details,
        )
        self.releases.append(line.to_dict(brief=True))

    def shared(self, step: Share, parameters: Parameters) -> None:
        """Give out parameters, as the step has it."""
        if step.encoding is not None:
            known = loaded(self.assignment.steps, step)
            parameters = factorised(parameters, step.encoding, known)
        self.give(step, parameters, 1)

    def predicted(self, step: Predict, given: Tensor) -> None:
        """Give out logits ``(M, C)``, as the step has it."""
        if applies(step, self.clients.experiment.release) and not self.trying:
            self.released(step, given)
            return
        if step.output == "probabilities":
            given = (given / step.temperature).softmax(1)
        if step.per == "sample":
            self.give(step, self.encoded(step, given.cpu()), len(given))
            return
        means = self.class_means(given, self.samples(step.on))
        self.give(step, means, len(means["mean"]))

    def released(self, step: Predict, logits: Tensor) -> None:
        """Give out what ``[release]`` makes of logits; where they are asked for, its logarithm."""
        clients, assignment = self.clients, self.assignment
        table, seed, classes = clients.experiment.release, clients.experiment.seed, logits.shape[1]
        public = known_of(clients.public, step.on, len(logits))
        # Whoever names no answer asks for a new one.
        new = f"{assignment.round} {assignment.phase} unnamed {len(self.releases)}"
        purpose = (assignment.client, step.answer or new)
        draw = privacy_noise(table.secure, seed, "release", *purpose, *clients.world)
        labels = release(logits, step.temperature, table, public, draw).cpu()
        value = labels.clamp_min(SMALLEST).log() if step.output == "logits" else labels
        details = clients.charge(step.temperature, public, classes)
        given = self.encoded(step, value)
        self.give(step, given, len(labels), answer=step.answer, **details)

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
        self.represented(step, *(tensor.clone() for tensor in found))

    def represented(self, step: Represent, held: Tensor, logits: Tensor) -> None:
        """Give out representations ``(K, ...)`` and logits ``(K, C)``, as the step has it."""
        samples = self.samples(step.on)
        if step.pool and held.dim() == 4:
            held = held.mean((2, 3))
        if step.per == "class":
            means = self.class_means(held.flatten(1), samples)
            self.give(step, means, len(means["mean"]))
            return
        labels = {} if samples.labels is None else {"labels": samples.labels.cpu()}
        soft_labels = (logits / step.temperature).softmax(1).cpu()
        self.give(step, {"inputs": held.cpu(), "soft_labels": soft_labels, **labels}, len(held))

    def class_means(self, values: Tensor, samples: Samples) -> Parameters:
        """The means of rows ``(K, d)`` by class, and how many there are."""
        if samples.labels is None:
            raise FedkdError("per class: the samples have no labels (the transfer set never has)")
        labels = cast(Tensor, item_labels(samples))
        means = class_means(values, labels, self.clients.data.task.classes)
        return {name: value.cpu() for name, value in means.items()}

    def select(self, step: Select) -> None:
        """Give out which samples are like the client's own."""
        client, seed = self.assignment.client, self.clients.experiment.seed
        inputs, own = (self.samples(on).inputs for on in (step.on, "private"))
        draw = generator(seed, "select", client)
        selected = alike(inputs, own, step.width, step.quantile, draw)
        self.give(step, selected.cpu(), len(selected))

    def count(self, step: Count) -> None:
        """Give out how many samples there are of each class."""
        counts = self.label_counts(step)
        self.give(step, counts.cpu(), len(counts))

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
