"""KnowledgeStrategy: what every method has in common, on Flower's message-based Strategy.

A method says what clients do and how their knowledge is fused, in four hooks::

    learn(round, client)     steps of local learning and of giving knowledge, for who takes part
    fuse(round, replies)     what the server makes of it
    receive(round, client)   steps in which a client learns from the fused knowledge
    deploy(round, client)    what a client is tested with, and does not keep

The two phases of a round are Flower's own: ``train`` messages carry ``learn``, ``evaluate``
messages ``receive`` and ``deploy``. Clients are measured after each of them, on their own test
split and on the common test set: it is where in the round one looks that often decides which
method looks best.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedkd import registry, students
from fedkd.data.federated import Task
from fedkd.distillation.objectives import traits
from fedkd.distillation.targets import check_probabilities
from fedkd.errors import FedkdError
from fedkd.experiment import Epochs, Experiment, Table, validated
from fedkd.privacy.public import Public
from fedkd.privacy.release import over_classes
from fedkd.privacy.watch import Watch
from fedkd.random import generator, key
from fedkd.results import spread
from fedkd.server import ServerStudents
from fedkd.work import (
    Assignment,
    Codec,
    Evaluate,
    Expose,
    Fit,
    Parameters,
    Predict,
    Reply,
    Represent,
    Samples,
    Share,
    Soft,
    Step,
    Term,
    decode,
    nbytes,
)

if TYPE_CHECKING:
    from fedkd.privacy.canary import Canaries

NODES_COME_WITHIN = 20.0
"""Seconds to wait for as many nodes as there are clients."""

Line = dict[str, Any]
OnRound = Callable[[Line, dict[str, list[Line]]], None]


class StrategyOptions(Table):
    """A strategy's own keys of ``[strategy]``; ``name`` is not among them."""


class DistillOptions(StrategyOptions):
    """Options of methods whose clients learn from soft labels on the transfer set."""

    distill_epochs: Epochs = 1.0
    """Passes over the transfer set in which a client learns from the fused knowledge, a round."""


class Replies:
    """The replies of a round that are fit to be fused, in client order."""

    def __init__(self, replies: Iterable[Reply]) -> None:
        self.replies = sorted(replies, key=lambda reply: reply.client)

    @property
    def clients(self) -> list[int]:
        """Who replied, ascending."""
        return [reply.client for reply in self.replies]

    @property
    def samples(self) -> torch.Tensor:
        """Private training samples of each, ``(N,)`` float64."""
        return torch.tensor([reply.samples for reply in self.replies], dtype=torch.float64)

    def stack(self, key: str = "soft_labels") -> torch.Tensor:
        """The array ``key`` of all clients: ``(N, ...)``, e.g. soft labels ``(N, M, C)``."""
        return torch.stack([cast(torch.Tensor, reply.values[key]) for reply in self.replies])

    def of(self, client: int, key: str) -> Parameters:
        """The named arrays ``key`` of one client; empty if it sent none."""
        (reply,) = (reply for reply in self.replies if reply.client == client)
        return cast(Parameters, reply.values.get(key, {}))

    def parameters(self, key: str = "parameters") -> list[Parameters]:
        """The named arrays ``key`` of each client."""
        return [cast(Parameters, reply.values[key]) for reply in self.replies]

    def __len__(self) -> int:
        return len(self.replies)


class KnowledgeStrategy(Strategy):
    """Base of all methods; see the module's docstring for the hooks.

    Parameters
    ----------
    experiment
        The run's description; its ``[strategy]`` table is validated by ``Options``.
    task
        Shape of an input and the classes.
    label_counts
        Private training samples of each client and class, ``(N, C)``. A server would not know
        them: they are given to :meth:`record` alone, for diagnostics.
    transfer
        The transfer set's inputs, known to all.
    public
        What else is known to all: candidate classes, privacy scores.
    canaries
        Secrets planted to measure what leaks; no method sees them.

    Whatever a subclass stores on itself, from :meth:`setup` on, is its state: it goes into
    checkpoints, and must be tensors, numbers, strings, or lists and dictionaries of them. Students
    that the server trains are in :attr:`server` and go there too.
    """

    Options: ClassVar[type[StrategyOptions]] = StrategyOptions
    one_architecture: ClassVar[bool] = False
    """Whether all clients must have the same student, as where parameters are averaged."""
    needs_transfer_set: ClassVar[bool] = False
    """Whether clients exchange knowledge on a transfer set."""
    sends_soft_labels: ClassVar[bool] = False
    """Whether clients send nothing but soft labels on the transfer set."""

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        label_counts: torch.Tensor,
        transfer: torch.Tensor | None = None,
        *,
        public: Public | None = None,
        canaries: Canaries | None = None,
    ) -> None:
        self.check(experiment)
        self.experiment = experiment
        self.task = task
        self.options: Any = self.read_options(experiment)
        self.transfer = torch.empty(0) if transfer is None else transfer
        self.public = public or Public(Samples(self.transfer))
        self.server = ServerStudents(experiment, self.public)
        self._privacy = Watch(experiment, self.public, canaries, self.transfer, task.classes)
        self._label_counts = label_counts
        self._nodes: dict[int, int] = {}
        self._assigned: dict[int, Assignment] = {}
        self._line: Line = {}
        self._measured: dict[str, dict[int, dict[str, float]]] = {}
        self._warned: set[str] = set()
        self.latest: dict[int, dict[str, float]] = {}
        self.changed: list[int] = []
        self._fixed = {*vars(self), "_fixed"} - {"latest", "changed"}
        self.setup_server()
        self.setup()

    # --- hooks ------------------------------------------------------------------------------

    def setup(self) -> None:
        """Set what the strategy keeps between rounds."""

    def setup_server(self) -> None:
        """Add the students that the server trains: at the beginning, and when a run is resumed."""

    def select(self, round: int) -> list[int]:
        """Clients that take part: ceil(participation N) of them, drawn without replacement."""
        clients = self.experiment.data.clients
        count = max(1, math.ceil(self.experiment.participation * clients - 1e-9))
        draw = generator(self.experiment.seed, "participation", round)
        return sorted(torch.randperm(clients, generator=draw)[:count].tolist())

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Steps of local learning and of giving knowledge."""
        return [Fit()]

    def fuse(self, round: int, replies: Replies) -> None:
        """Make the server's knowledge out of the clients'."""

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Steps in which a client that took part learns from the fused knowledge."""
        return []

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """Steps, undone afterwards, that make the student that any client is tested with."""
        return []

    def measure(self, round: int, client: int) -> Sequence[Step]:
        """Steps, undone afterwards, whose values :meth:`record` needs, in rounds that are measured.

        Their keys begin with ``measure_``: no method would send them, and their bytes do not count.
        """
        return []

    def fused_labels(self, client: int, steps: Sequence[Step]) -> torch.Tensor | None:
        """The fused soft labels ``(M, C)`` that leave the server, to measure what they expose.

        Those that ``client`` distils in ``steps``, unless a method keeps them on the server.
        """
        for step in steps:
            for term in step.terms if isinstance(step, Fit) and step.on == "transfer" else ():
                if isinstance(term, Soft) and isinstance(term.targets, torch.Tensor):
                    logits = traits(registry.load("objectives", term.objective)).targets == "logits"
                    return term.targets.softmax(1) if logits else term.targets
        return None

    def record(self, round: int, replies: Replies, label_counts: torch.Tensor) -> Line:
        """Numbers for the round's line. The only place that sees the true label counts (N, C)."""
        return {}

    def stop(self, round: int) -> bool:
        """Whether to end the run before its last round."""
        return False

    # --- what methods call ------------------------------------------------------------------

    def warn_once(self, about: str, message: str) -> None:
        """Put a warning in the round's line, once a run for each ``about``."""
        if about not in self._warned:
            self._warned.add(about)
            self._line.setdefault("warnings", []).append(message)

    def distil(self, *terms: Term) -> Fit:
        """Training on the transfer set, as long as :class:`DistillOptions` says."""
        epochs, among = self.options.distill_epochs, self.public.among
        terms = tuple(
            replace(term, among=among) if isinstance(term, Soft) and among is not None else term
            for term in terms
        )
        return Fit("transfer", terms, epochs=epochs, min_steps=0, key="distill_loss")

    def over_classes(self, labels: torch.Tensor) -> torch.Tensor:
        """Soft labels ``(M, C)`` over all classes, whether or not they came over candidates."""
        among = self.public.among
        return labels if among is None else over_classes(labels, among, self.task.classes)

    def initial_student(self, model: str = "", init: str = "") -> nn.Sequential:
        """The student that a global model begins as, the clients' first architecture unless named.

        It depends on the seed alone, and is what clients begin with where ``Hold`` makes one; with
        ``init = "public"`` (``student.init`` when not given) it is the model of the public corpus.
        """
        model = model or self.experiment.student.models[0]
        public = (init or self.experiment.student.init) == "public"
        if public and self.public.model is not None and model in self.experiment.student.models:
            return copy.deepcopy(self.public.model)
        seed = key(self.experiment.seed, "student", model, "all")
        shape, classes = self.task.shape, self.task.classes
        return students.build(
            model, shape, classes, self.experiment.student, seed, tokens=self.task.tokens
        )

    def initial_parameters(self, model: str = "") -> Parameters:
        """The parameters of :meth:`initial_student`."""
        tensors = self.initial_student(model).state_dict()
        return {name: value.contiguous() for name, value in tensors.items()}

    # --- checks and state -------------------------------------------------------------------

    @classmethod
    def read_options(cls, experiment: Experiment) -> Any:
        """The validated options of this strategy.

        Raises
        ------
        FedkdError
            One line naming the key, its value and what is allowed.
        """
        return validated(cls.Options, experiment.strategy.options, "strategy.")

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Refuse an experiment that this strategy cannot run.

        Raises
        ------
        FedkdError
            One line naming the key, its value and what is allowed.
        """
        cls.read_options(experiment)
        name, models = experiment.strategy.name, sorted(set(experiment.student.models))
        if cls.one_architecture and len(models) > 1:
            raise FedkdError(
                f"student.models = {models} is not allowed with strategy.name = {name!r}: "
                "it gives clients the same parameters, so all need the same student"
            )
        if experiment.release.active and not cls.sends_soft_labels:
            raise FedkdError(
                f"[release] is not allowed with strategy.name = {name!r}: it is for methods that "
                "send soft labels on the transfer set and nothing else"
            )
        if cls.needs_transfer_set and experiment.data.transfer.size == 0:
            raise FedkdError(
                f"data.transfer.size = 0 is not allowed with strategy.name = {name!r}: "
                "it exchanges soft labels on a transfer set"
            )

    def state(self) -> dict[str, Any]:
        """All that later rounds depend on, for a checkpoint."""
        kept = {name: value for name, value in vars(self).items() if name not in self._fixed}
        kept |= {"_warned": sorted(self._warned), "_privacy": self._privacy.state()}
        return kept | {"_server": self.server.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take in what :meth:`state` gave."""
        state = dict(state)
        self._warned = set(state.pop("_warned"))
        self._privacy.restore(state.pop("_privacy"))
        self.server.restore(state.pop("_server"))
        vars(self).update(state)
        self.setup_server()

    # --- Flower's two phases ----------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages with ``learn`` for those who take part."""
        trial = self._tests() if self._due(server_round) else ()
        expose = (Expose(),) if self._privacy.due(server_round) else ()
        staying, gone = self._drop_out(server_round, self.select(server_round))
        if self.experiment.dropout:
            self._line["dropped_out"] = gone
        return self._messages(
            grid,
            "train",
            server_round,
            [
                Assignment(client, server_round, "learn", tuple(steps), (*trial, *measure, *expose))
                for client in staying
                for steps in [self.learn(server_round, client)]
                for measure in [self.measure(server_round, client) if trial else ()]
            ],
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Leave out what is unfit, then ``fuse`` the rest."""
        fit = Replies(self._collect(replies, "local"))
        if self._assigned and not len(fit):
            reasons = "; ".join(
                f"client {e['client']}: {e['reason']}" for e in self._line["left_out"]
            )
            raise FedkdError(f"round {server_round}: every client's reply was left out ({reasons})")
        self._line["participants"] = fit.clients
        self.fuse(server_round, fit)
        recorded = self.record(server_round, fit, self._label_counts)
        if recorded:
            self._line["strategy"] = recorded
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages with ``receive`` for those who took part and, when due, tests for all."""
        assignments = []
        taking_part = set(self._line["participants"])
        exposing = self._privacy.due(server_round)
        fused: dict[int, torch.Tensor] = {}
        for client in range(self.experiment.data.clients):
            steps = tuple(self.receive(server_round, client)) if client in taking_part else ()
            trial: tuple[Step, ...] = ()
            due = self._due(server_round)
            if due or exposing:
                trial = tuple(self.deploy(server_round, client))
                just_tested = client in self._measured["local"]
                known = client in self.latest and client not in self.changed
                if due and (steps or trial or not (just_tested or known)):
                    trial = (*trial, *self._tests())
                if exposing:
                    trial = (*trial, Expose())
            if exposing and client in taking_part:
                labels = self.fused_labels(client, steps)
                fused |= {} if labels is None else {client: labels}
            if steps or trial:
                assignments.append(Assignment(client, server_round, "receive", steps, trial))
        self._privacy.fused(fused)
        return self._messages(grid, "evaluate", server_round, assignments)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Gather the measurements of the round."""
        self._collect(replies, "fused")
        if not self._due(server_round):
            left_out = [entry["client"] for entry in self._line["left_out"]]
            self.changed = sorted({*self.changed, *self._line["participants"], *left_out})
            return None
        # A client whose student did not change since it was last measured is as it was then.
        self.changed = []
        for client in range(self.experiment.data.clients):
            for stage in ("fused", "local"):
                if found := _tested(self._measured[stage].get(client, {})):
                    self.latest[client] = found
                    break
        self._line |= _averages(self.latest.values())
        self._line["local"] = _averages(self._measured["local"].values())
        return MetricRecord({k: v for k, v in self._line.items() if isinstance(v, float)})

    def summary(self) -> None:
        """Nothing to log: a run's folder holds its description."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float = 3600 * 24,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        first_round: int = 1,
        on_round: OnRound | None = None,
    ) -> Result:
        """Run the rounds, as Flower's ``Strategy.start`` does, from ``first_round`` on.

        ``on_round`` gets, when a round has ended, its line and the lines on its ``clients``,
        ``releases`` and ``exposures``.

        Raises
        ------
        FedkdError
            A client reports wrong input; or no reply of a round is fit to be fused.
        """
        result, nothing, config = Result(), ArrayRecord(), ConfigRecord()
        self._nodes = self._identify(grid, timeout)
        for round in range(first_round, (num_rounds or self.experiment.rounds) + 1):
            begin = time.perf_counter()
            self._line = {"round": round, "left_out": [], "bytes_up": 0, "bytes_down": 0}
            self._line["seconds_clients"] = 0.0
            self._measured = {"local": {}, "fused": {}}
            self._privacy.begin(round)
            messages = list(self.configure_train(round, nothing, config, grid))
            self.aggregate_train(round, grid.send_and_receive(messages, timeout=timeout))
            messages = list(self.configure_evaluate(round, nothing, config, grid))
            found = self.aggregate_evaluate(
                round, grid.send_and_receive(messages, timeout=timeout) if messages else []
            )
            if found is not None:
                result.evaluate_metrics_clientapp[round] = found
            losses = [
                m["train_loss"] for m in self._measured["local"].values() if "train_loss" in m
            ]
            self._line |= {"train_loss_mean": sum(losses) / len(losses)} if losses else {}
            self._line["seconds"] = time.perf_counter() - begin
            if on_round is not None:
                clients = self._client_lines(round)
                on_round(self._line, {"clients": clients, **self._privacy.lines()})
            if self.stop(round):
                break
        return result

    @property
    def underway(self) -> tuple[int, str, int]:
        """Round, phase and number of clients at work in it; (0, "", 0) between runs."""
        first = next(iter(self._assigned.values()), None)
        return (first.round, first.phase, len(self._assigned)) if first else (0, "", 0)

    # --- inside -----------------------------------------------------------------------------

    def _drop_out(self, round: int, selected: list[int]) -> tuple[list[int], list[int]]:
        """Who of the selected stays and who drops out; one at least stays."""
        draw = generator(self.experiment.seed, "dropout", round)
        fate = torch.rand(self.experiment.data.clients, generator=draw)
        gone = [client for client in selected if fate[client] < self.experiment.dropout]
        if len(gone) == len(selected):
            gone.remove(max(gone, key=lambda client: float(fate[client])))
        return [client for client in selected if client not in gone], gone

    def _due(self, round: int) -> bool:
        return round % self.experiment.evaluate_every == 0 or round == self.experiment.rounds

    def _tests(self) -> tuple[Step, ...]:
        test = self.experiment.data.test
        wanted = (("own", test.fraction > 0), ("common", test.common > 0))
        return tuple(Evaluate(name, name) for name, there in wanted if there)

    def _messages(
        self, grid: Grid, kind: str, round: int, assignments: list[Assignment]
    ) -> Iterable[Message]:
        codec = Codec()
        self._assigned = {assignment.client: assignment for assignment in assignments}
        for assignment in assignments:
            self._line["bytes_down"] += nbytes(assignment.steps)
            node = self._nodes[assignment.client]
            # The grid makes the message: Message's constructor works inside Flower's runtime only.
            yield grid.create_message(codec.encode(assignment), kind, node, str(round))

    def _collect(self, messages: Iterable[Message], stage: str) -> list[Reply]:
        """Replies that are fit to be used; the others are noted in the line."""
        kept = []
        answered = set()
        for message in messages:
            if message.has_error():
                raise RuntimeError(f"a client failed: {message.error.reason}")
            reply: Reply = decode(message.content)
            if reply.error:
                raise FedkdError(reply.error)
            answered.add(reply.client)
            if reply.failure:
                if self.experiment.engine.failures == "stop":
                    raise FedkdError(f"client {reply.client}: {reply.failure}")
                entry = {"client": reply.client, "step": stage, "reason": reply.failure}
                self._line["left_out"].append(entry)
                continue
            self._line["seconds_clients"] += reply.metrics.pop("seconds", 0.0)
            for name in [name for name in reply.metrics if name.startswith("cohort ")]:
                together = self._line.setdefault("cohort", {})
                step = name.removeprefix("cohort ")
                together[step] = together.get(step, 0) + int(reply.metrics.pop(name))
            sent = {k: value for k, value in reply.values.items() if not k.startswith("measure_")}
            self._line["bytes_up"] += nbytes(sent)
            assignment = self._assigned[reply.client]
            self._privacy.enter(assignment, reply)
            self._privacy.measured(assignment, reply)
            self._measured[stage][reply.client] = reply.metrics
            if unfit := self._unfit(reply):
                step, reason = unfit
                entry = {"client": reply.client, "step": step, "reason": reason}
                self._line["left_out"].append(entry)
            else:
                kept.append(reply)
        for client in self._assigned.keys() - answered:
            entry = {"client": client, "step": stage, "reason": "no reply"}
            self._line["left_out"].append(entry)
        self._line["left_out"].sort(key=lambda entry: entry["client"])
        return kept

    def _unfit(self, reply: Reply) -> tuple[str, str] | None:
        """The step whose outcome cannot be used, and why."""
        for step in self._assigned[reply.client].steps:
            name = type(step).__name__
            if isinstance(step, Fit) and not math.isfinite(reply.metrics[step.key]):
                return name, f"{step.key} is {reply.metrics[step.key]}"
            if isinstance(step, Predict | Represent | Share):
                value = reply.values[step.key]
                if (
                    isinstance(step, Predict)
                    and step.per == "sample"
                    and step.output == "probabilities"
                ):
                    reason = check_probabilities(value, step.key)  # type: ignore[arg-type]
                else:
                    reason = _not_finite(value, step.key)
                if reason:
                    return name, reason
        return None

    def _identify(self, grid: Grid, timeout: float) -> dict[int, int]:
        """Node id of every client, by asking the nodes which client each of them is."""
        codec, clients = Codec(), self.experiment.data.clients
        # Nodes of Flower's runtime come to the grid one after another.
        deadline = time.monotonic() + NODES_COME_WITHIN
        while len(nodes := list(grid.get_node_ids())) < clients and time.monotonic() < deadline:
            time.sleep(0.05)
        if len(nodes) != clients:
            raise FedkdError(
                f"data.clients = {clients}, but the federation has {len(nodes)} nodes; "
                "make the two the same"
            )
        ask = [grid.create_message(codec.encode(Reply(-1)), "query", node, "0") for node in nodes]
        replies = list(grid.send_and_receive(ask, timeout=timeout))
        found = {
            decode(message.content).client: message.metadata.src_node_id
            for message in replies
            if message.has_content()
        }
        if missing := [client for client in range(clients) if client not in found]:
            raise FedkdError(f"no node of the federation is client {missing[0]} of {clients}")
        return found

    def _client_lines(self, round: int) -> list[Line]:
        return [
            {"round": round, "client": client, "stage": stage, **metrics}
            for stage, measured in self._measured.items()
            for client, metrics in sorted(measured.items())
            if metrics
        ]


def _tested(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(("own_", "common_"))}


def _averages(clients: Iterable[dict[str, float]]) -> Line:
    """Spread of the accuracies over clients, means of the other measurements."""
    found: dict[str, list[float]] = {}
    for metrics in clients:
        for name, value in _tested(metrics).items():
            if math.isfinite(value):  # a client that diverged has an accuracy, but no loss
                found.setdefault(name, []).append(value)
    line: Line = {}
    for name, values in found.items():
        over_clients = spread(values, name)
        keep = over_clients if name.endswith("accuracy") else [f"{name}_mean"]
        line |= {entry: over_clients[entry] for entry in keep}
    return line


def _not_finite(value: torch.Tensor | Parameters, key: str) -> str | None:
    arrays = value if isinstance(value, dict) else {key: value}
    # A sum is finite only if all of it is, and is sooner there than a look at each.
    if math.isfinite(sum(float(array.sum()) for array in arrays.values())):
        return None
    for name, array in arrays.items():
        if not bool(torch.isfinite(array).all()):
            return f"{name} holds values that are not finite"
    return None
