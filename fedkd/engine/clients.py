"""The clients of an experiment: their students, their data, and what is known of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from fedkd import students, training
from fedkd.compression import Delta
from fedkd.data.augment import augment
from fedkd.data.federated import FederatedData, load
from fedkd.engine import rule
from fedkd.engine.alone import Alone, alone
from fedkd.engine.devices import device
from fedkd.engine.remembered import Remembered
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.privacy.public import Public
from fedkd.privacy.release import charge
from fedkd.random import key
from fedkd.records import HELD
from fedkd.students.choice import with_chosen_students
from fedkd.students.outline import check_size
from fedkd.students.pair import table_of
from fedkd.students.probe import Probe, exactly, layers, made_up, probe, unkept
from fedkd.work import (
    Assignment,
    Hold,
    Network,
    Parameters,
    Rows,
    Samples,
    Source,
)

State = dict[str, Parameters]
"""What a client keeps between assignments: the parameters and buffers of its named students.

A student of another architecture than the client's own is kept as ``name:architecture``. Beside
them, as ``:sent NAME`` and ``:received NAME``, are the soft labels that deltas are to: ``values``
``(M, C)``, NaN where there are none, and their ``version``; and as ``:optimiser STUDENT SOURCE``
what a student's optimiser keeps from one training on a source to the next, by the names of
:func:`fedkd.optimisers.put_by`; and as ``:auxiliary STUDENT:HEAD`` a head that is trained beside a
student, as :class:`fedkd.training.Auxiliary` has it.
"""


class Clients:
    """The students and the data of an experiment's clients.

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
        self.data = data or load(experiment)
        task = self.data.task
        experiment = with_chosen_students(
            experiment, self.data.transfer().inputs, task.shape, task.classes
        )
        self.experiment = experiment
        self.world: tuple[str | int, ...] = ("world", world) if world else ()
        self.device = device(experiment.engine.device)
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
        self.remembered = Remembered(experiment, self.data, self.device)
        self._charges: dict[tuple[float, int, int], dict[str, Any]] = {}  # of the last release
        check_size(experiment, self.data.task)
        # A student that does not fit the data is found now, and not in some client's first round.
        for client in range(min(len(experiment.student.models), self.data.clients)):
            student = self.module(client, "own")
            check_part(student, experiment, experiment.architecture(client))

    @cached_property
    def public(self) -> Public:
        """What everybody knows."""
        return Public.of(self.experiment, self.data)

    def charge(self, temperature: float, public: Public, classes: int) -> dict[str, Any]:
        """What labels released at ``temperature`` cost, the same for every client."""
        table, items = self.experiment.release, len(public.scores)
        if public is not self.public:
            return charge(temperature, table, public, classes)
        known = temperature, items, classes
        if known not in self._charges:
            self._charges = {known: charge(temperature, table, public, classes)}
        return self._charges[known]

    def state(self, client: int) -> State:
        """What ``client`` keeps; its initial students if it has not worked yet."""
        if client not in self.states:
            whose = client if self.experiment.student.init == "own" else "all"
            if self.experiment.student.init == "public" and self.public.model is not None:
                own = self.public.model.state_dict()
            else:
                own = self._build(self.experiment.architecture(client), whose).state_dict()
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
            for name, tensor in module.state_dict().items():
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
        names = [name.partition(":")[0] for name in self.state(client)]
        known = ", ".join(filter(None, names))
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

    def keep_beside(self, client: int, name: str, arrays: Parameters) -> None:
        """Have the client keep these beside its students; nothing where there are none."""
        self.state(client).pop(name, None)
        if arrays:
            self.state(client)[name] = dict(arrays)

    def hold(self, client: int, student: str, model: str) -> None:
        """Give ``client`` a student of this name, unless it has one."""
        if ":" in student:
            raise FedkdError(f"Hold: student = {student!r} is not allowed: a name has no colon")
        if self.key(client, student) is not None:
            return
        own = self.experiment.architecture(client)
        fresh = self._build(model or own, "all").state_dict()
        name = student if model in ("", own) else f"{student}:{model}"
        self.state(client)[name] = {key: value.clone() for key, value in fresh.items()}

    def template(self, architecture: str) -> nn.Sequential:
        """A student of this architecture, on the device, for its shapes and blocks."""
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

    def _build(self, architecture: str, whose: int | str) -> nn.Sequential:
        table, seed, task = table_of(self.experiment), self.experiment.seed, self.data.task
        student = students.build(
            architecture,
            task.shape,
            task.classes,
            table,
            key(seed, "student", architecture, whose),
            tokens=task.tokens,
        )
        shapes = {name: tensor.shape for name, tensor in student.state_dict().items()}
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

    def evaluated_below(
        self, above: Network, student: nn.Sequential, samples: Samples, seed: int
    ) -> dict[str, float]:
        """How good ``student`` is on ``samples`` with another network ``above`` a cut."""
        held, _ = training.represent(student, samples.inputs, above.cut, seed, samples.cut)
        network = students.build(
            *(above.model, tuple(held.shape[1:]), self.data.task.classes),
            *(self.experiment.student, 0),
        ).to(self.device)
        network.load_state_dict(above.parameters)
        return training.evaluate(network, Samples(held, samples.labels), seed)

    def held(self, client: int, way: str, encoding: Delta, on: Source) -> Tensor | None:
        """What ``client`` holds of rows of the transfer set, ``(R, C)``, that a delta is to.

        ``way`` is ``"sent"`` or ``"received"``. None where it holds no such version.
        """
        found = self.state(client).get(f"{HELD}{way} {encoding.name}")
        if not encoding.since or found is None or int(found["version"]) != encoding.since:
            return None
        return found["values"][self.label_rows(on)]

    def hold_labels(
        self, client: int, way: str, encoding: Delta, on: Source, values: Tensor
    ) -> None:
        """Have ``client`` hold these soft labels ``(R, C)`` of rows of the transfer set."""
        name, rows = f"{HELD}{way} {encoding.name}", self.label_rows(on)
        before = self.state(client).get(name)
        size = len(self.label_rows("transfer"))
        if before is None or before["values"].shape[1] != values.shape[1] or not encoding.since:
            whole = values.new_full((size, values.shape[1]), torch.nan)
        else:
            whole = before["values"]
        self.state(client)[name] = {
            "values": whole.index_copy(0, rows, values),
            "version": torch.tensor(encoding.version),
        }

    def label_rows(self, on: Source) -> Tensor:
        """Which rows of soft labels on the transfer set are of ``on``, which is it, or rows of it.

        They are of ``(M, C)``, a row an item.
        """
        inputs = self.data.transfer().inputs
        index = on.index if isinstance(on, Rows) else torch.arange(len(inputs))
        return training.item_numbers(index, training.item_counts(inputs))

    def rows(self, client: int, on: Source) -> int:
        """How many samples ``on`` means for ``client``."""
        if isinstance(on, Samples):
            return len(on.inputs)
        if isinstance(on, Rows):
            return len(on.index)
        return self._sizes[client] if on == "private" else self.data.count(on, client)

    def together(self, on: str, clients: Sequence[int]) -> list[Samples]:
        """The samples that ``on`` means for each of some clients."""
        if len(clients) == 1 or on not in ("private", "own", "validation"):
            return [self.samples(client, on) for client in clients]
        return self._held.together(on, clients)

    def samples(self, client: int, on: Source) -> Samples:
        """The samples that ``on`` means for ``client``, on the device."""
        if isinstance(on, Rows):
            return training.some(self.samples(client, on.source), on.index)
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
        return training.placed(found, self.device)


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
