"""The ledger of what leaves the clients of a run, and what the server adds noise to.

The server's strategy shows everything that passes to a :class:`Ledger`, which names the answers
that are asked for and, where clients' labels or parameters are added up, makes the noisy aggregate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fedkd.digests import fingerprint
from fedkd.distillation.objectives import SMALLEST
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment, TrainingTable
from fedkd.privacy.average import Averaging
from fedkd.privacy.candidates import possible
from fedkd.privacy.dpsgd import is_private, sees_private
from fedkd.privacy.public import Public
from fedkd.privacy.release import aggregate, applies, charge, claims_epsilon, known_of
from fedkd.privacy.releases import Release
from fedkd.privacy.votes import data_dependent_rdp
from fedkd.random import SystemNoise, numpy_noise, privacy_noise
from fedkd.replies import DP
from fedkd.shapes import Shapes
from fedkd.work import (
    Assignment,
    Count,
    Fit,
    Hold,
    Load,
    Parameters,
    Penalty,
    Predict,
    Reply,
    Represent,
    Rows,
    Samples,
    Select,
    Sending,
    Share,
    Source,
    Step,
    origin,
)

Line = dict[str, Any]
SENDING = (Predict, Represent, Select, Count, Share)
"""Steps that give something out."""
SIDE = {"samples": "Samples", "metrics": "Metrics", "record": "Record"}
"""What a method may look at beside what is sent, and the step that it is in the ledger."""


class Aggregate(NamedTuple):
    """What stands in the place of what ``clients`` sent under ``key``: a mean, or votes."""

    key: str
    clients: tuple[int, ...]
    value: Tensor | Parameters


class Ledger:
    """Keeps the ledger of releases, names answers, and makes the server's noisy aggregates.

    ``releases`` holds the lines of the round that is under way, ``aggregates`` what the server made
    in it; ``averaging`` is how it averages parameters. ``world`` is in the key of all its noise, so
    that worlds that are compared share none; a run's is empty.
    """

    def __init__(self, experiment: Experiment, public: Public, shapes: Shapes) -> None:
        self.experiment, self.public = experiment, public
        self.shapes, self.classes = shapes, shapes.classes
        # Of each client and student: what was asked, and the name of the answer.
        self.answers: dict[int, dict[str, dict[str, str]]] = {}
        self.charged: dict[int, list[str]] = {}
        self.summed: list[str] = []  # names of aggregates that were charged
        self.trained: dict[int, list[list[float]]] = {}  # by DP-SGD, since it last sent anything
        self.releases: list[Line] = []
        self.aggregates: list[Aggregate] = []
        self.averaging: Averaging | None = None
        self.world: tuple[str | int, ...] = ()
        self._noted: set[tuple[int, str, str]] = set()  # in the ledger beside what was sent
        self._round = 0
        self._resumed = False  # with other noise, and nobody has said so yet

    @property
    def claims(self) -> bool:
        """Whether an epsilon is claimed: what private data decide must then not be seen."""
        noisy_average = self.averaging is not None and self.averaging.noise_multiplier > 0
        return noisy_average or claims_epsilon(self.experiment)

    def begin(self, round: int) -> None:
        """Begin a round with no lines."""
        self._round, self.releases, self.aggregates = round, [], []
        self._noted = set()
        for client, charged in self.charged.items():
            # Others are never given again.
            live = {n for names in self.answers.get(client, {}).values() for n in names.values()}
            charged[:] = [name for name in charged if name in live]

    def lines(self) -> dict[str, list[Line]]:
        """The lines of the round, by the name of their file, in an order of their own."""
        if self._resumed:
            self._resumed = False
            self._beside(0, "Resumed", "release.secure")
        return {"releases": sorted(self.releases, key=_place)}

    def state(self) -> Line:
        """What later rounds depend on."""
        return {
            "answers": {
                client: {student: dict(names) for student, names in of_client.items()}
                for client, of_client in self.answers.items()
            },
            "charged": {client: list(names) for client, names in self.charged.items()},
            "summed": list(self.summed),
            "trained": {client: list(steps) for client, steps in self.trained.items()},
        }

    def restore(self, state: Line) -> None:
        """Take in what :meth:`state` gave."""
        self.answers, self.charged = state["answers"], state["charged"]
        self.summed, self.trained = state["summed"], state["trained"]
        self._resumed = self.experiment.release.secure

    # --- which answers are the same ---------------------------------------------------------

    def stamped(
        self, client: int, round: int, phase: str, steps: Sequence[Step]
    ) -> tuple[Step, ...]:
        """``steps`` for ``client``, with the name of its answer in each that ``[release]`` is for.

        An answer is the one that was given before where everybody knows that nothing has changed:
        the same client and student, which no step has trained, loaded or begun since, asked for the
        same thing at the very same temperature. Its noise is then the same and it is free. In all
        other cases it has a new name, noise of its own, and a price. What a student is like decides
        nothing here: whether it has changed may be private.

        Raises
        ------
        FedkdError
            A temperature is not one number above 0.
        """
        table = self.experiment.release
        if not table.active:
            return tuple(steps)
        known = self.answers.setdefault(client, {})
        stamped: list[Step] = []
        for place, step in enumerate(steps):
            if applies(step, table):
                step = _exact(step)
                asked, name = _asked(step), f"{round} {phase} {place}"
                of_student = known.setdefault(step.student, {})
                if table.cache and not table.secure:
                    name = of_student.setdefault(asked, name)
                step = replace(step, answer=name)
            for student in changed(step, self.experiment.training):
                known.pop(student, None)
            stamped.append(step)
        return tuple(stamped)

    # --- the ledger -------------------------------------------------------------------------

    def enter(self, assignment: Assignment, reply: Reply | None, sent: bool = True) -> None:
        """Put everything that left a client into the ledger, a line each.

        The lines are those that came with what left. What came without one counts as released as it
        is. With a line goes the private training that it may tell of: all since the client's last
        release, as pairs of sample rate and steps. Takes what only the ledger is for out of the
        metrics.

        Parameters
        ----------
        reply
            None if it broke its contract: something left the client all the same, and what it says
            is not to be trusted. What was asked of the client is charged, as a fresh answer.
        sent
            Whether there was a reply.
        """
        client = assignment.client
        if trained := self._trained(assignment, reply):
            self.trained.setdefault(client, []).append(trained)
        lines = [] if reply is None else [Release.from_dict(line) for line in reply.releases]
        listed = {(line.step, line.key) for line in lines}
        for step in assignment.steps if sent else ():
            if isinstance(step, SENDING) and (type(step).__name__, step.key) not in listed:
                lines.append(self._as_asked(step, assignment))
        charged = self.charged.setdefault(client, [])
        for line in lines:
            fresh = not line.answer or line.redrawn or line.answer not in charged
            if line.answer and fresh and not line.redrawn:
                charged.append(line.answer)
            entry = replace(line, fresh=fresh).to_dict()
            if steps := self.trained.pop(client, None):
                entry["dp_training"] = steps
            self.releases.append(entry)

    def _as_asked(self, step: Sending, assignment: Assignment) -> Release:
        """The line of what was asked, where the client says nothing of it that can be trusted."""
        rows = 1 if isinstance(step, Share) else self._items(step.on, assignment.client)
        line = Release(assignment.round, assignment.client, type(step).__name__, step.key, rows)
        if not isinstance(step, Share) and not isinstance(step.on, Samples):
            line = replace(line, on=origin(step.on))
        if not applies(step, self.experiment.release):
            return line
        public = known_of(self.public, step.on, rows)
        price = charge(float(step.temperature), self.experiment.release, public, self.classes)
        return replace(line, **price)

    def _trained(self, assignment: Assignment, reply: Reply | None) -> list[float] | None:
        """Sample rate and steps of the private training in ``assignment``, if it is private."""
        if reply is not None:
            metrics = reply.metrics
            return [metrics.pop(name) for name in DP] if DP[0] in metrics else None
        training = self.experiment.training
        fits = [step for step in assignment.steps if isinstance(step, Fit) and sees_private(step)]
        if not training.dp.noise_multiplier or not fits:
            return None
        planned = [self._planned(step, assignment.client) for step in fits]
        return [max(rate for rate, _ in planned), float(sum(steps for _, steps in planned))]

    def _planned(self, step: Fit, client: int) -> tuple[float, int]:
        """Sample rate and steps of a fit that was asked for."""
        training, on = self.experiment.training_on(step.on), [step.on]
        terms = [term for peer in step.peers for term in peer.terms]
        on += [term.on for term in terms if not isinstance(term, Penalty) and term.on]
        passes = [-(-max(1, self._items(source, client)) // training.batch_size) for source in on]
        epochs, least = training.length(step.epochs, step.min_steps)
        rate = max(1 / each for source, each in zip(on, passes, strict=True) if is_private(source))
        return rate, max(math.ceil(epochs * passes[0] - 1e-9), least)

    def _items(self, on: Source, client: int) -> int:
        rows = self.shapes.samples(client) if on == "private" else self.shapes.rows(on, client)
        return rows or 0

    def aggregated(
        self, asked: Mapping[int, Assignment], replies: Sequence[Reply]
    ) -> Sequence[Reply]:
        """The replies of a round as the server's method may see them.

        Where clients' parameters are averaged with clipping, or ``release.trust`` is not
        ``local``, each has the aggregate in the place of its own: whatever a method makes of them
        is post-processing. The line of the ledger is made with the aggregate.

        Raises
        ------
        FedkdError
            Labels that are to be added up are not answers to the same question.
        """
        if self.averaging is not None:
            replies = self._averaged(asked, replies, self.averaging)
        questions: dict[str, dict[int, Predict]] = {}
        for client, assignment in asked.items():
            for step in assignment.steps:
                table = self.experiment.release
                if applies(step, table) and table.trust != "local":
                    questions.setdefault(step.key, {})[client] = step
        for steps in questions.values():
            replies = self._summed(steps, replies)
        return replies

    def _averaged(
        self, asked: Mapping[int, Assignment], replies: Sequence[Reply], averaging: Averaging
    ) -> Sequence[Reply]:
        key = averaging.key
        sharing = [
            client
            for client, assignment in asked.items()
            if any(isinstance(step, Share) and step.key == key for step in assignment.steps)
        ]
        given = [cast(Parameters, r.values[key]) for r in replies if r.client in sharing]
        if not given:
            return replies
        draw = SystemNoise() if self.experiment.release.secure else None
        # An average of the second phase has noise of its own.
        phase = {assignment.phase for assignment in asked.values()} - {"learn"}
        with numpy_noise(self.experiment.seed, "average", self._round, *phase, *self.world):
            mean, details = averaging.released(given, len(sharing), draw)
        line = Release(self._round, None, "Average", key, 1, clients=tuple(sharing), **details)
        self.releases.append(line.to_dict())
        self.aggregates.append(Aggregate(key, tuple(sharing), mean))
        return [
            replace(r, values=r.values | {key: mean}) if r.client in sharing else r for r in replies
        ]

    def _summed(self, steps: Mapping[int, Predict], replies: Sequence[Reply]) -> Sequence[Reply]:
        """``replies`` with the aggregate of labels in the place of those that ``steps`` asked for.

        It is the one that was given before, with its noise, where all of the same clients answer
        as before.
        """
        first, table = next(iter(steps.values())), self.experiment.release
        if len({_asked(step) for step in steps.values()}) > 1:
            raise FedkdError(
                f"release.trust = {table.trust!r} is not allowed with a method that asks clients "
                f"for unlike things under one key, {first.key!r}: their labels are added up"
            )
        sending = [reply for reply in replies if reply.client in steps]
        if not sending:
            return replies
        labels = torch.stack([cast(Tensor, reply.values[first.key]) for reply in sending])
        if first.output == "logits":  # of what is released, the logarithm
            labels = labels.exp()
        clients = tuple(reply.client for reply in sending)
        answers = repr([(client, steps[client].answer) for client in clients])
        name = f"{first.key} {hashlib.blake2b(answers.encode(), digest_size=8).hexdigest()}"
        public = known_of(self.public, first.on, labels.shape[1])
        draw = privacy_noise(table.secure, self.experiment.seed, "aggregate", name, *self.world)
        value = aggregate(labels, table, public, self.classes, draw)
        details = charge(float(first.temperature), table, public, self.classes, len(clients))
        if table.mechanism == "votes" and table.trust == "central":
            counts = labels.sum(0).double()
            if public.among is not None:
                there = possible(public.among, self.classes)
                counts = counts.masked_fill(~there, -torch.inf)
            details["rdp"] = tuple(data_dependent_rdp(counts.numpy(), table.scale).tolist())
        line = Release(
            *(self._round, None, "Aggregate", first.key, labels.shape[1]),
            clients=clients,
            answer=name,
            fresh=name not in self.summed or not table.cache,
            **details,
        )
        self.releases.append(line.to_dict())
        if name not in self.summed:
            self.summed.append(name)
        if first.output == "logits":
            value = value.clamp_min(SMALLEST).log()
        self.aggregates.append(Aggregate(first.key, clients, value))
        return [
            replace(r, values=r.values | {first.key: value}) if r.client in steps else r
            for r in replies
        ]

    def shown(self, assignment: Assignment, reply: Reply) -> Reply:
        """What a method is shown of a reply: what the client sent, and no measurement.

        Numbers beside what was sent are there, and whoever looks at them has them in the ledger.
        """
        keys = {step.key for step in assignment.steps if isinstance(step, SENDING)}
        values = {key: value for key, value in reply.values.items() if key in keys}
        found = _Observed(**(vars(reply) | {"values": values}))
        object.__setattr__(found, "used", partial(self.used, reply.client))
        return found

    def used(self, client: int, what: str) -> None:
        """A method acts on a number of a client that no step sends and no noise is on.

        It goes into the ledger where an epsilon is claimed: ``samples``, the number of its training
        samples; ``metrics``, its losses and accuracies; ``record``, what :meth:`record` is given.
        """
        self._beside(client, SIDE[what], what)

    def failed(self, client: int, reason: str) -> None:
        """A client's work could not be done, or it did not answer: everybody sees that.

        What it was asked for before may have been given to somebody, so it is not given again.
        """
        self.answers.pop(client, None)
        self._beside(client, "Failure", reason)

    def _beside(self, client: int, step: str, key: str) -> None:
        if self.claims and (client, step, key) not in self._noted:
            self._noted.add((client, step, key))
            self.releases.append(Release(self._round, client, step, key, 1).to_dict())


class _Observed(Reply):
    """A reply that tells when somebody looks at numbers beside what was sent."""

    used: Callable[[str], None]

    def __getattribute__(self, name: str) -> Any:
        if name in ("samples", "metrics"):
            object.__getattribute__(self, "used")(name)
        return super().__getattribute__(name)


def _place(line: Line) -> tuple[int, str, str]:
    """Where a line of the ledger stands in its round; what the server releases comes first."""
    return -1 if line["client"] is None else line["client"], line["step"], line["key"]


def changed(step: Step, training: TrainingTable) -> list[str]:
    """The students that a step may change, as far as everybody knows."""
    if isinstance(step, Load | Hold):
        return [step.student]
    if isinstance(step, Fit):
        epochs, least = training.length(step.epochs, step.min_steps)
        return [peer.student for peer in step.peers] if epochs or least else []
    return []


def _exact(step: Predict) -> Predict:
    """``step`` with its temperature as Python has it, which is how all sides then know it."""
    tau = step.temperature
    if isinstance(tau, bool) or not isinstance(tau, Real) or not 0 < float(tau) < math.inf:
        shown = repr(tau).replace("\n", " ")
        raise FedkdError(
            f"Predict: temperature = {shown} is not allowed: it is one finite number above 0 (a "
            "temperature for each item comes from [release])"
        )
    return replace(step, temperature=float(tau))


def _asked(step: Predict) -> str:
    """What a step asks of its student, exactly."""
    on = step.on
    rows = on if isinstance(on, str) else origin(on)
    if isinstance(on, Samples):
        rows = f"{fingerprint(on.inputs)} {on.inputs.shape} {on.cut}"
    elif isinstance(on, Rows):
        rows += f" {fingerprint(on.index)}"
    return repr((step.temperature, step.output, rows, step.key))
