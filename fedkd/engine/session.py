"""An assignment at work: how each of its steps is done, and what it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import students
from fedkd.data import cache
from fedkd.density import alike
from fedkd.distillation.objectives import SMALLEST
from fedkd.engine.clients import Clients
from fedkd.engine.remembered import LEARNT
from fedkd.errors import FedkdError
from fedkd.privacy.accounting import Release
from fedkd.privacy.dpsgd import DPSGD, sees_private
from fedkd.privacy.release import applies, known_of, release
from fedkd.random import generator, key, privacy_noise
from fedkd.training import (
    BatchOfOne,
    class_means,
    evaluate,
    fit,
    item_labels,
    nearest_prototype,
    predict,
    represent,
    said,
)
from fedkd.work import (
    SOURCES,
    Assignment,
    CrossEntropy,
    Evaluate,
    Expose,
    Fit,
    Hold,
    Load,
    Parameters,
    Predict,
    Represent,
    Samples,
    Select,
    Share,
    Soft,
    Source,
    Step,
    Term,
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
        student = self.student(step.student)
        if isinstance(step, Fit):
            self.fit(step, student, phase)
        elif isinstance(step, Predict):
            seed = self.seed(step, step.on, step.student)
            self.predicted(step, predict(student, self.samples(step.on).inputs, seed).clone())
        elif isinstance(step, Represent):
            self.represent(step, student)
        elif isinstance(step, Load):
            self.load(step, student)
        elif isinstance(step, Share):
            names = students.part_names(student, step.part)
            tensors = student.state_dict()
            self.give(step, {name: tensors[name].cpu().clone() for name in names}, 1)
        elif isinstance(step, Expose):
            self.values[step.key] = self.clients.remembered.exposures(student)
        elif isinstance(step, Evaluate):
            seed = self.seed(step, step.on, step.student)
            samples = self.samples(step.on)
            if step.prototypes is None:
                self.evaluated(step, evaluate(student, samples, seed))
                return
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

    def samples(self, on: Source) -> Samples:
        """The samples that ``on`` means for the client."""
        return self.clients.samples(self.assignment.client, on)

    def draw(self, step: Fit, phase: str) -> tuple[int, int, str]:
        """What the next fit of this kind draws its numbers by, besides the seed."""
        on = step.on if isinstance(step.on, str) else "samples"
        purpose = f"{phase} {on} {self._fits[phase, on, step.student]}"
        self._fits[phase, on, step.student] += 1
        return self.assignment.client, self.assignment.round, purpose

    def seed(self, step: Step | Soft, on: Source | None, student: str) -> int:
        """Key of what a student draws by itself in its next answer of this kind."""
        trial = " trial" if self.trying else ""
        kind = type(step).__name__, on if isinstance(on, str) else "samples", student
        purpose = f"{self.assignment.phase}{trial} {' '.join(kind)} {self._answers[kind]}"
        self._answers[kind] += 1
        whose = self.assignment.client, self.assignment.round
        return key(self.clients.experiment.seed, "answer", *whose, purpose)

    def fit(self, step: Fit, student: nn.Sequential, phase: str) -> None:
        """Train the student, in place."""
        experiment, samples = self.clients.experiment, self.samples(step.on)
        table, draw = experiment.training.dp, self.draw(step, phase)
        dp = None
        if table.noise_multiplier and sees_private(step):
            self._check_private(step)
            # Two students trained alike must not get the same noise.
            purpose = (*draw, step.student, *self.clients.world)
            secure = experiment.release.secure
            dp = DPSGD(table, step.on, experiment.seed, *purpose, secure=secure)

        def train() -> cache.Arrays:
            try:
                loss = fit(
                    student,
                    samples,
                    [self.resolved(term, samples) for term in step.terms],
                    experiment.training,
                    generator(experiment.seed, "fit", *draw),
                    epochs=step.epochs,
                    min_steps=step.min_steps,
                    lr=step.lr,
                    part=step.part or experiment.training.part,
                    sources={name: partial(self.samples, name) for name in SOURCES},
                    augment=self.clients.augment,
                    dp=dp,
                    seed=key(experiment.seed, "student", *draw, step.student),
                )
            except BatchOfOne as error:
                raise FedkdError(f"client {self.assignment.client}: {error}") from error
            spent = (0.0, 0.0) if dp is None else (dp.sample_rate, float(dp.steps))
            return {LEARNT: np.array([loss, *spent])}

        plain = all(term == CrossEntropy(term.weight) for term in step.terms)
        again = dp is None or not experiment.release.secure
        if experiment.engine.remember and plain and again:
            what = (repr(step), draw, *self.clients.world)
            learnt = self.clients.remembered.fit(student, samples, what, train)
        else:
            learnt = train()[LEARNT]
        self.wrote(step.student)
        self.metrics[step.key], rate, steps = map(float, learnt)
        if dp is not None and not self.trying:
            self.metrics["dp_sample_rate"] = max(self.metrics.get("dp_sample_rate", 0.0), rate)
            self.metrics["dp_steps"] = self.metrics.get("dp_steps", 0.0) + steps

    def _check_private(self, step: Fit) -> None:
        """Refuse DP-SGD where a sample has its say other than by its gradient."""
        model = self.architecture(step.student)
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

    def resolved(self, term: Term, samples: Samples) -> Term:
        """``term`` with what another student says in the place of that student's name."""
        if not isinstance(term, Soft) or not isinstance(term.targets, str):
            return term
        source = samples if term.on is None else self.samples(term.on)
        seed = self.seed(term, term.on, term.targets)
        logits = predict(self.student(term.targets), source.inputs, seed).clone()
        return replace(term, targets=said(term, logits))

    def evaluated(self, step: Evaluate, found: Mapping[str, float]) -> None:
        """Give out what was measured, as the step has it."""
        self.metrics |= {f"{step.key}_{name}": value for name, value in found.items()}

    def give(
        self,
        step: Predict | Represent | Select | Share,
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
        on = getattr(step, "on", "")
        line = Release(
            round=self.assignment.round,
            client=self.assignment.client,
            step=type(step).__name__,
            key=step.key,
            items=items,
            on=on if isinstance(on, str) else "samples",
            **details,
        )
        self.releases.append(line.to_dict(brief=True))

    def predicted(self, step: Predict, given: Tensor) -> None:
        """Give out logits ``(M, C)``, as the step has it."""
        if applies(step, self.clients.experiment.release) and not self.trying:
            self.released(step, given)
            return
        if step.output == "probabilities":
            given = (given / step.temperature).softmax(1)
        if step.per == "sample":
            self.give(step, given.cpu(), len(given))
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
        self.give(step, value, len(labels), answer=step.answer, **details)

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
        found = represent(student, self.samples(step.on).inputs, step.cut, seed)
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

    def load(self, step: Load, student: nn.Sequential) -> None:
        """Take in parameters."""
        tensors = student.state_dict()
        wanted = set(students.part_names(student, step.part))
        with torch.no_grad():
            for name, value in step.parameters.items():
                if name not in tensors or tensors[name].shape != value.shape:
                    raise FedkdError(
                        f"Load: client {self.assignment.client}'s student has no {name} "
                        f"of shape {tuple(value.shape)}"
                    )
                if name in wanted:
                    tensors[name].copy_(value)
        self.wrote(step.student)
