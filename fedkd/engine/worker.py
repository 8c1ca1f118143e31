"""The worker: owns its clients' students, loads the data once, performs assignments."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import students, training
from fedkd.data import cache
from fedkd.data.augment import augment
from fedkd.data.federated import FederatedData, load
from fedkd.distillation.objectives import SMALLEST
from fedkd.engine import rule
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy import exposure, measure
from fedkd.privacy.dpsgd import DPSGD, sees_private
from fedkd.privacy.public import Public
from fedkd.privacy.release import release
from fedkd.random import generator, key, noise
from fedkd.students.outline import check_size
from fedkd.training import class_means, evaluate, fit, item_labels, predict, represent, said
from fedkd.work import (
    Assignment,
    CrossEntropy,
    Evaluate,
    Expose,
    Fit,
    Hold,
    Load,
    Parameters,
    Predict,
    Reply,
    Represent,
    Samples,
    Share,
    Soft,
    Source,
    Step,
    Term,
)

LEARNT = "learnt: loss, sample rate, steps"
State = dict[str, Parameters]
"""What a client keeps between assignments: the parameters and buffers of its named students.

A student of another architecture than the client's own is kept as ``name:architecture``.
"""


class Worker:
    """Performs assignments for any client of an experiment.

    ``states`` holds what each client keeps; a host that stores it elsewhere puts it in before an
    assignment and takes it out after. One module an architecture is reused in place.
    """

    def __init__(self, experiment: Experiment, data: FederatedData | None = None) -> None:
        torch.set_num_threads(experiment.engine.threads)
        self.experiment = experiment
        self.device = device(experiment.engine.device)
        self.data = data or load(experiment)
        self._held = self.data.on(self.device)
        self.states: dict[int, State] = {}
        # Mirrored digits and letters are others, or none; photographs are what they were.
        flip = self.data.task.shape[0] == 3
        self.augment = partial(augment, flip=flip) if experiment.data.augment else None
        self.limits = rule.limits() if experiment.engine.cohort == "auto" else rule.LIMITS
        self._modules: dict[tuple[str, str], nn.Sequential] = {}
        self._kinds: dict[str, rule.Kind] = {}
        self._sizes = self.data.sizes().tolist()
        self._exposures: dict[int, Tensor] = {}  # of the student measured last
        check_size(experiment, self.data.task)
        # A student that does not fit the data is found now, and not in some client's first round.
        for client in range(min(len(experiment.student.models), self.data.clients)):
            self.module(client, "own")

    def perform(self, assignment: Assignment) -> Reply:
        """Do the steps, keep what the client has become, try the trial, reply.

        Raises
        ------
        FedkdError
            What a person did wrong.
        """
        (reply,) = self._together([assignment])
        return reply

    def perform_all(
        self, assignments: Sequence[Assignment], answered: Callable[[int], None]
    ) -> list[Reply]:
        """Perform assignments of different clients; what a person did wrong is in the reply.

        Those that do the same steps are cohorts where :mod:`fedkd.engine.rule` has it so.
        ``answered`` gets the number of those that are done.
        """
        replies: dict[int, Reply] = {}
        groups = rule.groups(self, assignments)
        while groups:
            group = groups.pop(0)
            try:
                together = len(group) > 1
                found = self._together(group) if together else [self.perform(group[0])]
            except FedkdError as error:
                if together:  # nothing has been kept: one by one they show whose fault it is
                    groups[:0] = [[assignment] for assignment in group]
                    continue
                found = [Reply(group[0].client, error=str(error))]
            replies |= {reply.client: reply for reply in found}
            answered(len(replies))
        return [replies[assignment.client] for assignment in assignments]

    def _together(self, group: Sequence[Assignment]) -> list[Reply]:
        """Perform the assignments of a group: of one client, or of a cohort."""
        start = time.perf_counter()
        sessions: Sequence[Session]
        if any(rule.decisions(self, group[0])):
            from fedkd.engine.vectorised import Cohort  # imports torch.func

            cohort = Cohort(self, group)
            sessions, do = cohort.sessions, cohort.do
        else:
            (alone,) = sessions = [Session(self, assignment) for assignment in group]

            def do(steps: tuple[Step, ...], phase: str) -> None:
                alone.do(steps[0], phase)

        half = self.experiment.engine.precision == "bfloat16"
        autocast = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=half)
        with autocast():
            for steps in zip(*(session.assignment.steps for session in sessions), strict=True):
                do(steps, group[0].phase)
        kept = []
        for session in sessions:
            session.keep()
            session.trying = True
            kept.append(set(self.state(session.assignment.client)))
        with autocast():
            for steps in zip(*(session.assignment.trial for session in sessions), strict=True):
                do(steps, f"{group[0].phase} trial")
        seconds = (time.perf_counter() - start) / len(group)
        replies = []
        for session, names in zip(sessions, kept, strict=True):
            client = session.assignment.client
            state = self.state(client)
            for name in state.keys() - names:
                del state[name]
            session.metrics["seconds"] = seconds
            replies.append(Reply(client, self._sizes[client], session.values, session.metrics))
        return replies

    @cached_property
    def public(self) -> Public:
        """What everybody knows."""
        return Public.of(self.experiment, self.data)

    def state(self, client: int) -> State:
        """What ``client`` keeps; its initial students if it has not worked yet."""
        if client not in self.states:
            whose = client if self.experiment.student.init == "own" else "all"
            if self.experiment.student.init == "public" and self.public.model is not None:
                own = _tensors(self.public.model)
            else:
                own = _tensors(self._build(self.experiment.architecture(client), whose))
            self.states[client] = {"own": {name: value.clone() for name, value in own.items()}}
        return self.states[client]

    def module(self, client: int, student: str) -> nn.Sequential:
        """The client's student, its parameters in place; valid until the next call."""
        key = self._known(client, student)
        architecture = key.partition(":")[2] or self.experiment.architecture(client)
        if (architecture, student) not in self._modules:
            self._modules[architecture, student] = self._build(architecture, "all").to(self.device)
        module = self._modules[architecture, student]
        with torch.no_grad():
            for name, tensor in _tensors(module).items():
                tensor.copy_(self.states[client][key][name])
        return module

    def parameters(self, client: int, student: str) -> Parameters:
        """What the client keeps of this student: its parameters and buffers, not to be changed.

        Raises
        ------
        FedkdError
            It has no such student.
        """
        return self.state(client)[self._known(client, student)]

    def _known(self, client: int, student: str) -> str:
        if (key := self.key(client, student)) is not None:
            return key
        known = ", ".join(name.partition(":")[0] for name in self.state(client))
        raise FedkdError(f"student {student!r} is not known; known: {known}")

    def key(self, client: int, student: str) -> str | None:
        """What ``student`` is kept as in the client's state; None if there is none."""
        names = self.state(client)
        return next((name for name in names if name.partition(":")[0] == student), None)

    def keep(self, client: int, student: str, tensors: Parameters) -> None:
        """Make these the client's own."""
        if client not in self.states and student == "own":  # what it began with is of no use
            self.states[client] = {student: {n: tensor.clone() for n, tensor in tensors.items()}}
            return
        kept = self.parameters(client, student)
        with torch.no_grad():
            for name, tensor in tensors.items():
                kept[name].copy_(tensor)

    def hold(self, client: int, student: str, model: str) -> None:
        """Give ``client`` a student of this name, unless it has one."""
        if ":" in student:
            raise FedkdError(f"Hold: student = {student!r} is not allowed: a name has no colon")
        if self.key(client, student) is not None:
            return
        own = self.experiment.architecture(client)
        fresh = _tensors(self._build(model or own, "all"))
        name = student if model in ("", own) else f"{student}:{model}"
        self.state(client)[name] = {key: value.clone() for key, value in fresh.items()}

    def template(self, architecture: str) -> nn.Sequential:
        """A student of this architecture, on the worker's device, for its shapes and blocks."""
        if (architecture, "own") not in self._modules:
            module = self._build(architecture, "all").to(self.device)
            self._modules[architecture, "own"] = module
        return self._modules[architecture, "own"]

    def kind(self, architecture: str) -> rule.Kind:
        """What the rule for cohorts asks of students of this architecture."""
        if architecture not in self._kinds:
            student = self.template(architecture)
            self._kinds[architecture] = rule.kind_of(student, self.device.type)
        return self._kinds[architecture]

    def rows(self, client: int, on: Source) -> int:
        """How many samples ``on`` means for ``client``."""
        if isinstance(on, Samples):
            return len(on.inputs)
        return self._sizes[client] if on == "private" else self.data.count(on, client)

    def _build(self, architecture: str, whose: int | str) -> nn.Sequential:
        table, seed, task = self.experiment.student, self.experiment.seed, self.data.task
        return students.build(
            architecture,
            task.shape,
            task.classes,
            table,
            key(seed, "student", architecture, whose),
            tokens=task.tokens,
        )

    def remembered(
        self,
        student: nn.Sequential,
        samples: Samples,
        what: object,
        train: Callable[[], cache.Arrays],
    ) -> np.ndarray:
        """Have ``train`` change ``student``, or make it what that has made of it before."""
        experiment = self.experiment
        depends_on = (
            *(measure.digest(student), experiment.seed, what, repr(experiment.training)),
            *(measure.fingerprint(samples.inputs), measure.fingerprint(samples.labels)),
            *(self.augment is None, str(self.device), experiment.engine.threads),
            *(torch.__version__, measure.source(training)),
        )

        def make() -> cache.Arrays:
            learnt = train()
            state = {name: value.cpu().numpy() for name, value in _tensors(student).items()}
            return learnt | state

        arrays = cache.remembered("fits", depends_on, make)
        with torch.no_grad():
            for name, tensor in _tensors(student).items():
                tensor.copy_(torch.from_numpy(arrays[name]))
        return arrays[LEARNT]

    def exposures(self, student: nn.Sequential) -> Tensor:
        """How exposed every planted secret is by ``student``: ``(S,)``, in bits."""
        state, table = measure.digest(student), self.experiment.canary

        def make() -> cache.Arrays:
            return {"bits": measure.by_student(student, self.data, table).numpy()}

        if state not in self._exposures:
            if self.experiment.engine.remember and self.data.canaries is not None:
                known = (state, self.data.canaries.to_json(), repr(table), measure.source(exposure))
                found = cache.remembered("exposures", known, make)
            else:
                found = make()
            self._exposures = {state: torch.from_numpy(found["bits"])}
        return self._exposures[state]

    def together(self, on: str, clients: Sequence[int]) -> list[Samples]:
        """The samples that ``on`` means for each of some clients."""
        if len(clients) == 1 or on not in ("private", "own", "validation"):
            return [self.samples(client, on) for client in clients]
        return self._held.together(on, clients)

    def samples(self, client: int, on: Source) -> Samples:
        """The samples that ``on`` means for ``client``, on the worker's device."""
        if isinstance(on, Samples):
            found = on
        else:
            known: dict[str, Callable[[], Samples]] = {
                "private": partial(self._held.private, client),
                "own": partial(self._held.own, client),
                "validation": partial(self._held.validation, client),
                "common": self._held.common,
                "transfer": self._held.transfer,
            }
            if on not in known:
                raise FedkdError(f"on = {on!r} is not known; known: {', '.join(known)}")
            found = known[on]()
        labels = None if found.labels is None else found.labels.to(self.device)
        return Samples(found.inputs.to(self.device), labels)


class Session:
    """One assignment at work: the students in use, the values and metrics gathered."""

    def __init__(self, worker: Worker, assignment: Assignment) -> None:
        self.worker, self.assignment = worker, assignment
        self.students: dict[str, nn.Sequential] = {}
        self.values: dict[str, Tensor | Parameters] = {}
        self.metrics: dict[str, float] = {}
        self.changed: set[str] = set()
        self.trying = False
        self._fits: Counter[tuple[str, str, str]] = Counter()

    def do(self, step: Step, phase: str) -> None:
        """Do one step."""
        if isinstance(step, Hold):
            self.worker.hold(self.assignment.client, step.student, step.model)
            return
        student = self.student(step.student)
        if isinstance(step, Fit):
            self.fit(step, student, phase)
        elif isinstance(step, Predict):
            self.predicted(step, predict(student, self.samples(step.on).inputs).clone())
        elif isinstance(step, Represent):
            self.represent(step, student)
        elif isinstance(step, Load):
            self.load(step, student)
        elif isinstance(step, Share):
            names = students.part_names(student, step.part)
            tensors = _tensors(student)
            self.values[step.key] = {name: tensors[name].cpu().clone() for name in names}
        elif isinstance(step, Expose):
            self.values[step.key] = self.worker.exposures(student)
        elif isinstance(step, Evaluate):
            self.evaluated(step, evaluate(student, self.samples(step.on)))

    def student(self, name: str) -> nn.Sequential:
        """The client's student of this name, as it is by now."""
        if name not in self.students:
            self.students[name] = self.worker.module(self.assignment.client, name)
        return self.students[name]

    def wrote(self, name: str) -> None:
        """Note that the student of this name is no longer as it was."""
        self.changed.add(name)

    def keep(self) -> None:
        """Make the students, as they are now, the client's own."""
        for name in self.changed:
            self.worker.keep(self.assignment.client, name, _tensors(self.students[name]))

    def samples(self, on: Source) -> Samples:
        """The samples that ``on`` means for the client."""
        return self.worker.samples(self.assignment.client, on)

    def draw(self, step: Fit, phase: str) -> tuple[int, int, str]:
        """What the next fit of this kind draws its numbers by, besides the seed."""
        on = step.on if isinstance(step.on, str) else "samples"
        purpose = f"{phase} {on} {self._fits[phase, on, step.student]}"
        self._fits[phase, on, step.student] += 1
        return self.assignment.client, self.assignment.round, purpose

    def fit(self, step: Fit, student: nn.Sequential, phase: str) -> None:
        """Train the student, in place."""
        experiment, samples = self.worker.experiment, self.samples(step.on)
        table, draw = experiment.training.dp, self.draw(step, phase)
        dp = None
        if table.noise_multiplier and sees_private(step):
            # Two students trained alike must not get the same noise.
            dp = DPSGD(table, step.on, experiment.seed, *draw, step.student)

        def train() -> cache.Arrays:
            loss = fit(
                student,
                samples,
                [self.resolved(term, samples) for term in step.terms],
                experiment.training,
                generator(experiment.seed, "fit", *draw),
                epochs=step.epochs,
                min_steps=step.min_steps,
                lr=step.lr,
                part=step.part,
                sources={"private": partial(self.samples, "private")},
                augment=self.worker.augment,
                dp=dp,
            )
            spent = (0.0, 0.0) if dp is None else (dp.sample_rate, float(dp.steps))
            return {LEARNT: np.array([loss, *spent])}

        plain = all(term == CrossEntropy(term.weight) for term in step.terms)
        if experiment.engine.remember and plain:
            learnt = self.worker.remembered(student, samples, (repr(step), draw), train)
        else:
            learnt = train()[LEARNT]
        self.wrote(step.student)
        self.metrics[step.key], rate, steps = map(float, learnt)
        if dp is not None and not self.trying:
            self.metrics["dp_sample_rate"] = max(self.metrics.get("dp_sample_rate", 0.0), rate)
            self.metrics["dp_steps"] = self.metrics.get("dp_steps", 0.0) + steps

    def resolved(self, term: Term, samples: Samples) -> Term:
        """``term`` with what another student says in the place of that student's name."""
        if not isinstance(term, Soft) or not isinstance(term.targets, str):
            return term
        source = samples if term.on is None else self.samples(term.on)
        logits = predict(self.student(term.targets), source.inputs).clone()
        return replace(term, targets=said(term, logits))

    def evaluated(self, step: Evaluate, found: Mapping[str, float]) -> None:
        """Give out what was measured, as the step has it."""
        self.metrics |= {f"{step.key}_{name}": value for name, value in found.items()}

    def predicted(self, step: Predict, given: Tensor) -> None:
        """Give out logits ``(M, C)``, as the step has it."""
        table = self.worker.experiment.release
        if table.active and step.on == "transfer" and step.per == "sample" and not self.trying:
            self.values[step.key] = self.released(step, self.student(step.student), given)
            return
        if step.output == "probabilities":
            given = (given / step.temperature).softmax(1)
        self.values[step.key] = (
            given.cpu() if step.per == "sample" else self.class_means(given, self.samples(step.on))
        )

    def released(self, step: Predict, student: nn.Sequential, logits: Tensor) -> Tensor:
        """What ``[release]`` makes of logits; where logits are asked for, its logarithm."""
        experiment, assignment = self.worker.experiment, self.assignment
        table, state = experiment.release, measure.digest(student)
        # The same answer from the same student has the same noise: it is drawn once.
        answer = [assignment.client, state, step.temperature, step.key]
        if not table.cache:
            answer += [assignment.round, assignment.phase]
        draw = noise(experiment.seed, "release", *map(str, answer))
        labels = release(logits, step.temperature, table, self.worker.public, draw).cpu()
        self.metrics[f"{step.key}_state"] = float(state)
        return labels.clamp_min(SMALLEST).log() if step.output == "logits" else labels

    def represent(self, step: Represent, student: nn.Sequential) -> None:
        """Give out representations and the soft labels that go with them."""
        experiment = self.worker.experiment
        if self.worker.data.task.tokens and step.per == "sample":
            raise FedkdError(
                f"strategy.name = {experiment.strategy.name!r} is not allowed with data.dataset = "
                f"{experiment.data.dataset!r}: it sends a representation of each sample, and in "
                "text only tokens have one"
            )
        found = represent(student, self.samples(step.on).inputs, step.cut)
        self.represented(step, *(tensor.clone() for tensor in found))

    def represented(self, step: Represent, held: Tensor, logits: Tensor) -> None:
        """Give out representations ``(K, ...)`` and logits ``(K, C)``, as the step has it."""
        samples = self.samples(step.on)
        if step.pool and held.dim() == 4:
            held = held.mean((2, 3))
        if step.per == "class":
            self.values[step.key] = self.class_means(held.flatten(1), samples)
            return
        labels = {} if samples.labels is None else {"labels": samples.labels.cpu()}
        soft_labels = (logits / step.temperature).softmax(1).cpu()
        self.values[step.key] = {"inputs": held.cpu(), "soft_labels": soft_labels, **labels}

    def class_means(self, values: Tensor, samples: Samples) -> Parameters:
        """The means of rows ``(K, d)`` by class, and how many there are."""
        if samples.labels is None:
            raise FedkdError("per class: the samples have no labels (the transfer set never has)")
        labels = cast(Tensor, item_labels(samples))
        means = class_means(values, labels, self.worker.data.task.classes)
        return {name: value.cpu() for name, value in means.items()}

    def load(self, step: Load, student: nn.Sequential) -> None:
        """Take in parameters."""
        tensors = _tensors(student)
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


def _tensors(module: nn.Sequential) -> Parameters:
    """Parameters and buffers by name, sharing the module's memory."""
    return module.state_dict()


def device(name: str) -> torch.device:
    """The torch device called ``name``; ``auto`` is CUDA where there is one.

    Raises
    ------
    FedkdError
        The device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise FedkdError(
            f"engine.device = {name!r} is not here ({reason}); allowed: auto, cpu"
            + (", cuda" if torch.cuda.is_available() else "")
        ) from error
    return torch.device(name)
