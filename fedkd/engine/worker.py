"""The worker: owns its clients' students, loads the data once, performs assignments."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import students, training
from fedkd.data import cache
from fedkd.data.augment import augment
from fedkd.data.federated import FederatedData, load
from fedkd.density import alike
from fedkd.distillation.objectives import SMALLEST
from fedkd.engine import rule
from fedkd.engine.alone import Alone, alone
from fedkd.errors import FedkdError, summary_of
from fedkd.experiment import Experiment
from fedkd.privacy import exposure, measure
from fedkd.privacy.accounting import Release
from fedkd.privacy.dpsgd import DPSGD, sees_private
from fedkd.privacy.public import Public
from fedkd.privacy.release import applies, charge, known_of, release
from fedkd.random import generator, key, privacy_noise
from fedkd.students.outline import check_size
from fedkd.students.probe import Probe, exactly, layers, made_up, probe, unkept
from fedkd.training import (
    BatchOfOne,
    class_means,
    evaluate,
    fit,
    item_labels,
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
    Reply,
    Represent,
    Samples,
    Select,
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


@dataclass(frozen=True)
class Care:
    """What is done otherwise since clients' work has failed.

    Clients in ``alone``, and those that would be in a cohort with them, are performed one by one.
    Clients in ``left_out`` are not performed; the cohorts of others stay as they are.
    """

    alone: frozenset[int] = frozenset()
    left_out: frozenset[int] = frozenset()


class Worker:
    """Performs assignments for any client of an experiment.

    ``states`` holds what each client keeps; a host that stores it elsewhere puts it in before an
    assignment and takes it out after. One module an architecture is reused in place.

    Worlds with different numbers draw privacy noise, and who is in a batch of DP-SGD, independently
    of one another; an attack compares many. A run is world 0.
    """

    @students.float32_by_default()
    def __init__(
        self, experiment: Experiment, data: FederatedData | None = None, world: int = 0
    ) -> None:
        torch.set_num_threads(experiment.engine.threads)
        self.experiment = experiment
        self.world: tuple[str | int, ...] = ("world", world) if world else ()
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
        # Of each architecture: its layers and shapes, and tensors that no state_dict has.
        self._built: dict[str, tuple[object, Parameters]] = {}
        self._probes: dict[str, Probe] = {}
        self._alone: dict[str, Alone] = {}
        self._warnings: list[str] = []  # that no reply has taken along yet
        self._sizes = self.data.sizes().tolist()
        self._exposures: dict[int, Tensor] = {}  # of the student measured last
        self._at_work = "start"
        self._charges: dict[tuple[float, int, int], dict[str, Any]] = {}  # of the last release
        check_size(experiment, self.data.task)
        # A student that does not fit the data is found now, and not in some client's first round.
        for client in range(min(len(experiment.student.models), self.data.clients)):
            student = self.module(client, "own")
            check_part(student, experiment, experiment.architecture(client))

    def perform(self, assignment: Assignment) -> Reply:
        """Do the steps, keep what the client has become, try the trial, reply.

        Raises
        ------
        FedkdError
            What a person did wrong.
        Exception
            What the student, or other code of a person, raised. The client is as it was before.
        """
        (reply,) = self._together([assignment])
        return reply

    def perform_all(
        self,
        assignments: Sequence[Assignment],
        answered: Callable[[int], None],
        begun: Callable[[Sequence[int]], None] = lambda clients: None,
        care: Care = Care(),
    ) -> list[Reply]:
        """Perform assignments of different clients: a reply for each, in their order.

        Those that do the same steps are cohorts where :mod:`fedkd.engine.rule` has it so. A cohort
        whose work fails is done again, one client after the other. What a person did wrong is in a
        reply's ``error``. Any other exception is in the reply's ``failure``, and the client is as
        it was before: only its own work is lost.

        Parameters
        ----------
        answered
            Gets the number of clients that are done.
        begun
            Gets the clients whose work begins.
        care
            Who is not performed as usual.
        """
        replies: dict[int, Reply] = {}
        groups = []
        for group in self._groups(assignments):
            split = any(assignment.client in care.alone for assignment in group)
            kept = [assignment for assignment in group if assignment.client not in care.left_out]
            groups += [[assignment] for assignment in kept] if split else [kept]
        while groups:
            group = groups.pop(0)
            if not group:
                continue
            begun([assignment.client for assignment in group])
            try:
                together = len(group) > 1
                done = self._together(group) if together else [self.perform(group[0])]
            except (Exception, SystemExit) as error:
                if len(group) == 1:
                    done = [self._failed(group[0].client, error)]
                else:  # one by one they show whose fault it is
                    groups[:0] = [[assignment] for assignment in group]
                    continue
            replies |= {reply.client: reply for reply in done}
            answered(len(replies))
        return [replies[a.client] for a in assignments if a.client not in care.left_out]

    def _groups(self, assignments: Sequence[Assignment]) -> list[list[Assignment]]:
        try:
            return rule.groups(self, assignments)
        except (Exception, SystemExit):  # of a student that a step wants to hold, say
            return [[assignment] for assignment in assignments]

    def _failed(self, client: int, error: BaseException) -> Reply:
        if isinstance(error, FedkdError):
            return Reply(client, error=str(error))
        return Reply(client, failure=f"{summary_of(error)} at {self._at_work}")

    @students.float32_by_default()
    def _together(self, group: Sequence[Assignment]) -> list[Reply]:
        """Perform the assignments of a group, of one client or of a cohort: all, or none."""
        clients = [assignment.client for assignment in group]
        before = {client: dict(self.states[client]) for client in clients if client in self.states}
        self._at_work = "start"
        try:
            return self._performed(group)
        except BaseException:
            for client in clients:
                self.states.pop(client, None)
            self.states |= before
            # A module may have been left in any condition; it is built anew, always the same.
            self._modules.clear()
            raise

    def _performed(self, group: Sequence[Assignment]) -> list[Reply]:
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
                self._at_work = type(steps[0]).__name__
                do(steps, group[0].phase)
        kept = []
        for session in sessions:
            session.keep()
            session.trying = True
            kept.append(set(self.state(session.assignment.client)))
        with autocast():
            for steps in zip(*(session.assignment.trial for session in sessions), strict=True):
                self._at_work = type(steps[0]).__name__
                do(steps, f"{group[0].phase} trial")
        seconds = (time.perf_counter() - start) / len(group)
        replies = []
        for session, names in zip(sessions, kept, strict=True):
            client = session.assignment.client
            state = self.state(client)
            for name in state.keys() - names:
                del state[name]
            session.metrics["seconds"] = seconds
            replies.append(
                Reply(
                    client,
                    self._sizes[client],
                    session.values,
                    session.metrics,
                    releases=tuple(session.releases),
                )
            )
        replies[0] = replace(replies[0], warnings=tuple(self._warnings))
        self._warnings.clear()
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
        # What a student keeps besides its state would go from one client to the next.
        afresh = architecture in self._probes and self._probes[architecture].keeps
        if afresh or (architecture, student) not in self._modules:
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

    def architecture(self, assignment: Assignment, student: str) -> str:
        """The architecture of a client's student, which the assignment itself may make it hold."""
        own = self.experiment.architecture(assignment.client)
        if student == "own":
            return own
        if (key := self.key(assignment.client, student)) is not None:
            return key.partition(":")[2] or own
        for step in (*assignment.steps, *assignment.trial):
            if isinstance(step, Hold) and step.student == student:
                return step.model or own
        return own

    def keep(self, client: int, student: str, tensors: Parameters) -> None:
        """Make these the client's own: new tensors, as a checkpoint may yet need those before."""
        if client not in self.states and student == "own":  # what it began with is of no use
            self.states[client] = {student: {n: tensor.clone() for n, tensor in tensors.items()}}
            return
        # Beside what it had, which it is given back if its work fails after this.
        before = self.parameters(client, student)
        self.state(client)[self._known(client, student)] = {
            name: torch.empty_like(before[name]).copy_(tensor) for name, tensor in tensors.items()
        }

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

    def probe(self, architecture: str) -> Probe:
        """What a few passes show of students of this architecture, tried out once.

        Raises
        ------
        FedkdError
            Such a student would not be trained.
        """
        if architecture not in self._probes:
            student, inputs = self.template(architecture), self._made_up()
            with exactly(self.device):
                found = self._probes[architecture] = probe(student, inputs)
            if found.replaces:
                raise FedkdError(
                    f"student.models = {architecture!r} is not allowed: its forward replaces the "
                    f"parameter {found.replaces}, and the one before would be trained"
                )
            if found.keeps:  # each is made anew from now on
                for known in [known for known in self._modules if known[0] == architecture]:
                    del self._modules[known]
            if found.counts:
                self._warnings.append(
                    f"student {architecture!r} changes {found.keeps}, which its state_dict does "
                    "not have: it begins anew in each piece of work; what is to be kept is a buffer"
                )
            elif found.training.varies or found.answers.varies:
                self._warnings.append(
                    f"student {architecture!r} gives something else for the same samples each "
                    "time: it draws from a generator that fedkd does not set (torch's, numpy's and "
                    "Python's global ones it does), or goes by something outside; another run of "
                    "the same experiment has other numbers"
                )
            elif found.answers.mixes:
                self._warnings.append(
                    f"student {architecture!r} answers a sample by the others of its batch too: "
                    "its numbers depend on how many samples are measured or asked for at a time"
                )
        return self._probes[architecture]

    def alone(self, architecture: str) -> Alone:
        """Why students of this architecture cannot be in a cohort."""
        if architecture not in self._alone:
            found = self.probe(architecture)
            student, inputs = self.template(architecture), self._made_up()
            with exactly(self.device):
                why = self._alone[architecture] = alone(student, found, inputs)
            if why.differs:
                self._warnings.append(
                    f"student {architecture!r} goes client by client: {why.differs}"
                )
        return self._alone[architecture]

    def _made_up(self) -> Tensor:
        task = self.data.task
        return made_up(task.shape, task.classes, task.tokens, self.device)

    def rows(self, client: int, on: Source) -> int:
        """How many samples ``on`` means for ``client``."""
        if isinstance(on, Samples):
            return len(on.inputs)
        return self._sizes[client] if on == "private" else self.data.count(on, client)

    def _build(self, architecture: str, whose: int | str) -> nn.Sequential:
        table, seed, task = self.experiment.student, self.experiment.seed, self.data.task
        student = students.build(
            architecture,
            task.shape,
            task.classes,
            table,
            key(seed, "student", architecture, whose),
            tokens=task.tokens,
        )
        shapes = {name: tensor.shape for name, tensor in _tensors(student).items()}
        shown = layers(student), shapes
        loose = {name: value.clone() for name, value in unkept(student).items()}
        known, before = self._built.setdefault(architecture, (shown, loose))
        for name, value in loose.items():
            if known == shown and not torch.equal(value, before.get(name, value)):
                raise FedkdError(
                    f"student.models = {architecture!r} is not allowed: {name} is random, and its "
                    "state_dict does not have it; make it a persistent buffer"
                )
        if known != shown:
            raise FedkdError(
                f"student.models = {architecture!r} is not allowed: it gives another student each "
                "time that it is called, and all of one name must have the same layers"
            )
        return student

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
            *(measure.digest(student), measure.described(student)),
            *(experiment.seed, what, repr(experiment.training)),
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
                canaries, how = self.data.canaries, measure.source(exposure)
                secrets = canaries.to_json(), measure.fingerprint(canaries.images), repr(table)
                known = (state, measure.described(student), *secrets, how)
                found = cache.remembered("exposures", known, make)
            else:
                found = make()
            self._exposures = {state: torch.from_numpy(found["bits"])}
        return self._exposures[state]

    def charge(self, temperature: float, public: Public, classes: int) -> dict[str, Any]:
        """What labels released at ``temperature`` cost, the same for every client."""
        table, items = self.experiment.release, len(public.scores)
        if public is not self.public:
            return charge(temperature, table, public, classes)
        known = temperature, items, classes
        if known not in self._charges:
            self._charges = {known: charge(temperature, table, public, classes)}
        return self._charges[known]

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
        self.releases: list[dict[str, Any]] = []
        self.changed: set[str] = set()
        self.trying = False
        self._fits: Counter[tuple[str, str, str]] = Counter()
        self._answers: Counter[tuple[str, str, str]] = Counter()

    def do(self, step: Step, phase: str) -> None:
        """Do one step."""
        if isinstance(step, Hold):
            self.worker.hold(self.assignment.client, step.student, step.model)
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
            tensors = _tensors(student)
            self.give(step, {name: tensors[name].cpu().clone() for name in names}, 1)
        elif isinstance(step, Expose):
            self.values[step.key] = self.worker.exposures(student)
        elif isinstance(step, Evaluate):
            seed = self.seed(step, step.on, step.student)
            self.evaluated(step, evaluate(student, self.samples(step.on), seed))

    def student(self, name: str) -> nn.Sequential:
        """The client's student of this name, as it is by now."""
        if name not in self.students:
            self.worker.probe(self.architecture(name))
            self.students[name] = self.worker.module(self.assignment.client, name)
        return self.students[name]

    def architecture(self, name: str) -> str:
        """The architecture of the client's student of this name."""
        return self.worker.architecture(self.assignment, name)

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

    def seed(self, step: Step | Soft, on: Source | None, student: str) -> int:
        """Key of what a student draws by itself in its next answer of this kind."""
        trial = " trial" if self.trying else ""
        kind = type(step).__name__, on if isinstance(on, str) else "samples", student
        purpose = f"{self.assignment.phase}{trial} {' '.join(kind)} {self._answers[kind]}"
        self._answers[kind] += 1
        whose = self.assignment.client, self.assignment.round
        return key(self.worker.experiment.seed, "answer", *whose, purpose)

    def fit(self, step: Fit, student: nn.Sequential, phase: str) -> None:
        """Train the student, in place."""
        experiment, samples = self.worker.experiment, self.samples(step.on)
        table, draw = experiment.training.dp, self.draw(step, phase)
        dp = None
        if table.noise_multiplier and sees_private(step):
            self._check_private(step)
            # Two students trained alike must not get the same noise.
            purpose = (*draw, step.student, *self.worker.world)
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
                    augment=self.worker.augment,
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
            what = (repr(step), draw, *self.worker.world)
            learnt = self.worker.remembered(student, samples, what, train)
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
        traits, reason = self.worker.probe(model).training, ""
        if traits.mixes or traits.varies:
            reason = (
                "what it gives for a sample in training depends on the others of the batch, and "
                "no bound holds on one sample's gradient"
            )
        elif traits.writes:
            reason = "it writes to its buffers in training, and they get no noise"
        if reason:
            noise_multiplier = self.worker.experiment.training.dp.noise_multiplier
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
        if applies(step, self.worker.experiment.release) and not self.trying:
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
        worker, assignment = self.worker, self.assignment
        table, seed, classes = worker.experiment.release, worker.experiment.seed, logits.shape[1]
        public = known_of(worker.public, step.on, len(logits))
        # Whoever names no answer asks for a new one.
        new = f"{assignment.round} {assignment.phase} unnamed {len(self.releases)}"
        purpose = (assignment.client, step.answer or new)
        draw = privacy_noise(table.secure, seed, "release", *purpose, *worker.world)
        labels = release(logits, step.temperature, table, public, draw).cpu()
        value = labels.clamp_min(SMALLEST).log() if step.output == "logits" else labels
        details = worker.charge(step.temperature, public, classes)
        self.give(step, value, len(labels), answer=step.answer, **details)

    def represent(self, step: Represent, student: nn.Sequential) -> None:
        """Give out representations and the soft labels that go with them."""
        experiment = self.worker.experiment
        if self.worker.data.task.tokens and step.per == "sample":
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
        means = class_means(values, labels, self.worker.data.task.classes)
        return {name: value.cpu() for name, value in means.items()}

    def select(self, step: Select) -> None:
        """Give out which samples are like the client's own."""
        client, seed = self.assignment.client, self.worker.experiment.seed
        inputs, own = (self.samples(on).inputs for on in (step.on, "private"))
        draw = generator(seed, "select", client)
        selected = alike(inputs, own, step.width, step.quantile, draw)
        self.give(step, selected.cpu(), len(selected))

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


def check_part(student: nn.Sequential, experiment: Experiment, architecture: str) -> None:
    """Refuse a ``training.part`` that this student does not have, or in which nothing learns."""
    part = experiment.training.part
    try:
        names = training.learning_names(student, part)
    except FedkdError as error:
        raise FedkdError(
            f"training.part = {list(part)} does not fit student {architecture!r}: {error}"
        ) from error
    if not names:
        raise FedkdError(
            f"training.part = {list(part)} is not allowed: nothing learns there in student "
            f"{architecture!r}, whose blocks are {', '.join(students.blocks(student))}"
        )


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
    reason = "fedkd computes on CPUs and CUDA GPUs"
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        try:
            torch.empty(0, device=name)
            return torch.device(name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).split("\n")[0]
    raise FedkdError(
        f"engine.device = {name!r} is not here ({reason}); allowed: auto, cpu"
        + (", cuda, cuda:N" if torch.cuda.is_available() else "")
    )
