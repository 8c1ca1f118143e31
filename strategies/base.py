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
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedkd import registry, students
from fedkd.caveats import LOCAL_TRAINING
from fedkd.data.dataset import Task
from fedkd.distillation.objectives import traits
from fedkd.errors import FedkdError, blamed, brief
from fedkd.experiment import Epochs, Experiment, Table, validated
from fedkd.hooks import (
    Keeping,
    as_averaging,
    as_decision,
    as_labels,
    as_line,
    as_nothing,
    as_selection,
    as_steps,
    blaming,
    check_hooks,
    check_state,
    trace,
)
from fedkd.lab.watch import Watch
from fedkd.privacy.average import Averaging
from fedkd.privacy.candidates import over_classes
from fedkd.privacy.ledger import Aggregate
from fedkd.privacy.public import Public
from fedkd.random import generator, global_draws, key
from fedkd.replies import COHORT, Contract, Unreadable, read
from fedkd.results import spread
from fedkd.server import ServerStudents
from fedkd.shapes import Shapes, Sizes, architectures, rows_of
from fedkd.steps import MEASURED, TESTED_ON, TESTS, Checker, check_keys
from fedkd.work import (
    Assignment,
    Codec,
    Evaluate,
    Expose,
    Fit,
    Parameters,
    Reply,
    Samples,
    Soft,
    Step,
    Term,
    decode,
    nbytes,
)

if TYPE_CHECKING:
    from fedkd.data.canaries.secrets import Canaries

NODES_COME_WITHIN = 20.0
"""Seconds to wait for as many nodes as there are clients."""
GIVEN = {"experiment", "task", "options", "transfer", "public", "server"}
"""Attributes that a method reads, and does not replace: no checkpoint has them."""
NOBODY = -1
"""Stands for the client that a node is which is none."""
REASONS = 5
"""Clients whose reasons are told where all of them are left out."""

OWN_STATE = frozenset({"_latest", "_changed", "_held", "_warned"})
"""What the base class keeps between rounds."""

Line = dict[str, Any]
OnRound = Callable[[Line, dict[str, list[Line]]], None]
OnAggregates = Callable[[int, Sequence[Aggregate]], None]


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
        """The array ``key`` of all clients: ``(N, ...)``, e.g. soft labels ``(N, M, C)``.

        Raises
        ------
        FedkdError
            A reply has no such array, or one of another shape than the first's.
        """
        found = [self._value(reply, key) for reply in self.replies]
        arrays = [array for array in found if isinstance(array, torch.Tensor)]
        if len(arrays) < len(found):
            raise FedkdError(f"stack({key!r}): these are named arrays; see parameters({key!r})")
        shapes = {tuple(array.shape) for array in arrays}
        if len(shapes) > 1:
            raise FedkdError(
                f"stack({key!r}): the arrays have unlike shapes: {', '.join(map(str, shapes))}"
            )
        return torch.stack(arrays)

    def of(self, client: int, key: str) -> Parameters:
        """The named arrays ``key`` of one client; empty if it sent none.

        Raises
        ------
        FedkdError
            The client did not reply.
        """
        for reply in self.replies:
            if reply.client == client:
                return cast(Parameters, reply.values.get(key, {}))
        raise FedkdError(f"of({client}, {key!r}): client {client} is not one of {self.clients}")

    def parameters(self, key: str = "parameters") -> list[Parameters]:
        """The named arrays ``key`` of each client.

        Raises
        ------
        FedkdError
            A reply has no such arrays.
        """
        groups = [self._value(reply, key) for reply in self.replies]
        if not all(isinstance(group, dict) for group in groups):
            raise FedkdError(f"parameters({key!r}): this is one array; see stack({key!r})")
        return cast(list[Parameters], groups)

    @staticmethod
    def _value(reply: Reply, key: str) -> torch.Tensor | Parameters:
        if key not in reply.values:
            there = ", ".join(map(repr, reply.values)) or "nothing"
            raise FedkdError(f"the reply of client {reply.client} has no {key!r}; it has {there}")
        return reply.values[key]

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
    sizes
        How much data each client has, which replies and steps are checked against; from
        ``label_counts`` and ``transfer`` when not given.

    Whatever a subclass stores on itself, from :meth:`setup` on, is its state: it goes into
    checkpoints, and must be tensors, numbers, strings, None, or lists, tuples and dictionaries of
    them. Students that the server trains are in :attr:`server` and go there too.
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
        sizes: Sizes | None = None,
    ) -> None:
        self.check(experiment)
        self.experiment = experiment
        self.task = task
        self.options: Any = self.read_options(experiment)
        self.transfer = torch.empty(0) if transfer is None else transfer
        self.public = public or Public(Samples(self.transfer))
        self.server = ServerStudents(experiment, self.public)
        columns = None if self.public.among is None else self.public.among.shape[1] + 1
        shapes = Shapes(
            experiment,
            task,
            sizes or self._sizes(label_counts),
            columns,
            0 if canaries is None else canaries.count,
        )
        self._shapes, self._contract, self._checker = shapes, Contract(shapes), Checker(shapes)
        self._privacy = Watch(experiment, self.public, canaries, self.transfer, shapes)
        self._on_aggregates: OnAggregates | None = None
        self._label_counts = label_counts
        self._nodes: dict[int, int] = {}
        self._assigned: dict[int, Assignment] = {}
        self._line: Line = {}
        self._measured: dict[str, dict[int, dict[str, float]]] = {}
        self._warned: dict[str, str] = {}  # what each warning is about, by its message
        self._latest: dict[int, dict[str, float]] = {}
        self._changed: list[int] = []
        self._held: dict[int, dict[str, str]] = {}  # architectures of students beside the own
        self._fixed = {*vars(self), "_fixed", "_keeping"} - OWN_STATE
        self._keeping = Keeping(self._fixed)
        self._keeping.begin(type(self), KnowledgeStrategy)
        with blaming(str, f"strategy {experiment.strategy.name!r}"):
            check_hooks(self)
        for hook in ("setup_server", "setup"):
            self._call(hook)
        with blaming(self._where, "setup"):
            self._keeping.check(vars(self))

    def __setattr__(self, name: str, value: Any) -> None:
        given = name in GIVEN and name in vars(self)
        if given or callable(getattr(KnowledgeStrategy, name, None)):
            what = "what the strategy was given" if given else "a method of every strategy"
            raise AttributeError(
                f"self.{name} is {what}, and {brief(value)} cannot take its place; give that "
                "another name"
            )
        super().__setattr__(name, value)

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

    def averaging(self, round: int) -> Averaging | None:
        """How the server clips and noises the parameters that clients share in the round.

        Asked for before the round begins. Where it is not None, :meth:`fuse` is shown the average
        in the place of each client's parameters, and all that is made of it is post-processing.
        """
        return None

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

        Their keys begin with ``measure_``: no method would send them, their bytes do not count, and
        :meth:`fuse` does not get them.
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
        """Numbers for the round's line. The only place that sees the true label counts (N, C).

        It also sees what :meth:`measure` asked for, so nothing that is kept here may decide on
        later rounds: where an epsilon is claimed, it is none then.
        """
        return {}

    def stop(self, round: int) -> bool:
        """Whether to end the run before its last round."""
        return False

    # --- what methods call ------------------------------------------------------------------

    def warn_once(self, about: str, message: str) -> None:
        """Put a warning in the round's line, once a run for each ``about``.

        It stands under every table and figure of the run. Where the method comes to no more than
        another, ``about`` is one of ``fedkd.caveats.ANOTHER_METHOD``: the run then counts as that
        method's, and never as the best of this one's.
        """
        if about not in self._warned.values():
            self._warned[message] = about
            self._line.setdefault("warnings", []).append(message)

    @property
    def warned(self) -> dict[str, str]:
        """What each warning so far is about, by its message."""
        return dict(self._warned)

    def distil(self, *terms: Term) -> Fit:
        """Training on the transfer set, as long as :class:`DistillOptions` says."""
        epochs, among = self.options.distill_epochs, self.public.among
        if not epochs:
            self.warn_once(
                LOCAL_TRAINING,
                "strategy.distill_epochs = 0: nobody learns from what is fused, so it equals local "
                "training",
            )
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
        name, options = experiment.strategy.name, cls.Options
        if not (isinstance(options, type) and issubclass(options, StrategyOptions)):
            raise FedkdError(
                f"strategy {name!r}: Options = {brief(options)} is not allowed; allowed: a class "
                "made from StrategyOptions"
            )
        return validated(options, experiment.strategy.options, "strategy.")

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
                "send soft labels on the transfer set and nothing else, as their class says by "
                "sends_soft_labels"
            )
        if cls.needs_transfer_set and experiment.data.transfer.size == 0:
            raise FedkdError(
                f"data.transfer.size = 0 is not allowed with strategy.name = {name!r}: "
                "it exchanges soft labels on a transfer set"
            )

    @property
    def latest(self) -> dict[int, dict[str, float]]:
        """What each client was last tested with: a measurement, and no method would have it.

        Where an epsilon is claimed, it is none in a run whose method looks here.
        """
        for client in self._latest:
            self._privacy.used(client, "metrics")
        return self._latest

    def _traced(self) -> dict[str, Any]:
        """What the method keeps, told by identity and version: whether it was touched."""
        kept = vars(self).keys() - self._fixed - OWN_STATE
        return {name: trace(vars(self)[name]) for name in kept}

    def state(self) -> dict[str, Any]:
        """All that later rounds depend on, for a checkpoint.

        Raises
        ------
        FedkdError
            A method keeps what no checkpoint can hold.
        """
        with blaming(self._where, "state"):
            self._keeping.check(vars(self), deeply=True)
        kept = {name: value for name, value in vars(self).items() if name not in self._fixed}
        kept["_privacy"] = self._privacy.state()
        return kept | {"_server": self.server.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take in what :meth:`state` gave."""
        state = dict(state)
        self._privacy.restore(state.pop("_privacy"))
        self.server.restore(state.pop("_server"))
        vars(self).update(state)
        self._call("setup_server")

    # --- Flower's two phases ----------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages with ``learn`` for those who take part."""
        with blaming(self._where, "averaging", server_round):
            self._privacy.averaging = as_averaging(self.averaging(server_round))
        due = self._due(server_round)
        trial: tuple[Step, ...] = self._tests() if due else ()
        if self._privacy.due(server_round):
            trial = (*trial, Expose())
        with blaming(self._where, "select", server_round):
            selected = as_selection(self.select(server_round), self.experiment.data.clients)
        staying, gone = self._drop_out(server_round, selected)
        if self.experiment.dropout:
            self._line["dropped_out"] = gone
        self._checker.begin()
        assignments = []
        for client in staying:
            models: dict[str, str] = {}
            steps = self._steps("learn", server_round, client, models)
            measure = self._steps("measure", server_round, client, models) if due else ()
            assignments.append(
                self._assignment(client, server_round, "learn", steps, (*trial, *measure))
            )
        with blaming(self._where, "learn", server_round):
            self._checker.end()
        return self._messages(grid, "train", server_round, assignments)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Leave out what is unfit, then ``fuse`` the rest."""
        fit = Replies(self._collect(replies, "local"))
        self._line["participants"] = fit.clients
        if not len(fit):
            self._skip(server_round)
            return None, None
        with blaming(self._where, "averaging", server_round):
            given = self._privacy.aggregated(self._assigned, fit.replies)
        if self._on_aggregates is not None:
            self._on_aggregates(server_round, self._privacy.aggregates)
        shown = [self._privacy.shown(self._assigned[r.client], r) for r in given]
        fuse: Any = self.fuse  # for a method that returns something
        with blaming(self._where, "fuse", server_round):
            as_nothing(fuse(server_round, Replies(shown)))
        before = self._traced()
        with blaming(self._where, "record", server_round):
            recorded = as_line(self.record(server_round, fit, self._label_counts))
        if self._traced() != before:
            for client in fit.clients:
                self._privacy.used(client, "record")
        if recorded:
            self._line["strategy"] = recorded
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages with ``receive`` for those who took part and, when due, tests for all."""
        assignments = []
        taking_part = set(self._line["participants"])
        due, exposing = self._due(server_round), self._privacy.due(server_round)
        fused: dict[int, torch.Tensor] = {}
        self._checker.begin()
        for client in range(self.experiment.data.clients):
            models: dict[str, str] = {}
            steps: tuple[Step, ...] = ()
            if client in taking_part:
                steps = self._steps("receive", server_round, client, models)
            trial: tuple[Step, ...] = ()
            if due or exposing:
                trial = self._steps("deploy", server_round, client, models)
                just_tested = client in self._measured["local"]
                known = client in self._latest and client not in self._changed
                if due and (steps or trial or not (just_tested or known)):
                    trial = (*trial, *self._tests())
                if exposing:
                    trial = (*trial, Expose())
            if exposing and client in taking_part:
                labels = self._fused_labels(server_round, client, steps)
                fused |= {} if labels is None else {client: labels}
            if steps or trial:
                assignments.append(self._assignment(client, server_round, "receive", steps, trial))
        with blaming(self._where, "receive", server_round):
            self._checker.end()
        self._privacy.fused(fused)
        return self._messages(grid, "evaluate", server_round, assignments)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Gather the measurements of the round."""
        self._collect(replies, "fused")
        if not self._due(server_round):
            self._changed = sorted({*self._changed, *self._line["participants"]})
            return None
        # A client whose student did not change since it was last measured is as it was then.
        unknown = []
        for client in range(self.experiment.data.clients):
            if client in self._assigned and client not in self._measured["fused"]:
                unknown.append(client)
                self._latest.pop(client, None)
                continue
            for stage in ("fused", "local"):
                if found := _tested(self._measured[stage].get(client, {})):
                    self._latest[client] = found
                    break
        self._changed = unknown
        self._watch_losses(server_round)
        self._line |= _averages(self._latest.values())
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
        on_aggregates: OnAggregates | None = None,
        world: tuple[str | int, ...] = (),
    ) -> Result:
        """Run the rounds, as Flower's ``Strategy.start`` does, from ``first_round`` on.

        ``on_round`` gets, when a round has ended, its line and the lines on its ``clients``,
        ``releases`` and ``exposures``; ``on_aggregates`` gets, in each round that somebody
        answers in, what a trusted server made of what clients sent, before the method sees it.
        ``world`` is in the key of the noise that it adds.

        Raises
        ------
        FedkdError
            A client reports wrong input; or no reply of a round is fit to be fused.
        """
        result, nothing, config = Result(), ArrayRecord(), ConfigRecord()
        name = self.experiment.strategy.name
        self._nodes = self._identify(grid, timeout)
        self._privacy.world, self._on_aggregates = world, on_aggregates
        for round in range(first_round, (num_rounds or self.experiment.rounds) + 1):
            begin = time.perf_counter()
            self._line = {"round": round, "left_out": [], "bytes_up": 0, "bytes_down": 0}
            self._line["seconds_clients"] = 0.0
            self._measured = {"local": {}, "fused": {}}
            self._privacy.begin(round)
            with self._draws(round, "train"):
                messages = list(self.configure_train(round, nothing, config, grid))
            replies = grid.send_and_receive(messages, timeout=timeout)
            with self._draws(round, "fuse"):
                self.aggregate_train(round, replies)
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
            # Before the lines are written: what it looks at is one of them.
            with blaming(self._where, "stop", round), self._draws(round, "stop"):
                stopping = as_decision(self.stop(round))
            if on_round is not None:
                clients = self._client_lines(round)
                on_round(self._line, {"clients": clients, **self._privacy.lines()})
            with blaming(str, f"strategy {name!r}, kept at the end of round {round}"):
                self._keeping.check(vars(self), deeply=round == first_round)
                self._keeping.check_classes()
            if round == first_round:
                with blaming(self._where, "state"):
                    check_state(self.state())
            if stopping:
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
        wanted = {
            "own": test.fraction > 0,
            "common": test.common > 0,
            "validation": self.experiment.data.validation_fraction > 0,
        }
        return tuple(Evaluate(name, name) for name, there in wanted.items() if there)

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
        clients = {node: client for client, node in self._nodes.items()}
        received: dict[int, list[Message]] = defaultdict(list)
        for message in messages:
            client = clients.get(message.metadata.src_node_id, NOBODY)
            if client in self._assigned:
                received[client].append(message)
            else:
                self._leave_out(client, stage, "it was not asked")
        kept = []
        for client, assignment in sorted(self._assigned.items()):
            replies = [read(message) for message in received[client]]
            reply = self._usable(assignment, replies, stage)
            if reply is not None:
                kept.append(reply)
                self._measured[stage][client] = reply.metrics
            else:
                self._changed = sorted({*self._changed, client})
        self._line["left_out"].sort(key=lambda entry: entry["client"])
        return kept

    def _usable(
        self, assignment: Assignment, replies: list[Reply | Unreadable], stage: str
    ) -> Reply | None:
        """The one reply to ``assignment``, if it is fit to be used; else the line says why not."""
        client = assignment.client
        for reply in replies:
            if isinstance(reply, Reply) and reply.error:
                raise FedkdError(reply.error)
            if isinstance(reply, Reply):
                for warning in reply.warnings:
                    self.warn_once(warning, warning)
                sent = {k: v for k, v in reply.values.items() if not k.startswith(MEASURED)}
                self._line["bytes_up"] += nbytes(sent)
        if unfit := _unlike_one_reply(client, replies):
            failed = not replies or any(map(_failed, replies))
            if failed and self.experiment.engine.failures == "stop":
                raise FedkdError(f"client {client}: {unfit}")
            if not any(map(_failed, replies)):  # whose work is undone: nothing has left it
                self._privacy.enter(assignment, None, sent=bool(replies))
            self._privacy.failed(client, unfit)
            self._leave_out(client, stage, unfit)
            return None
        (reply,) = replies
        assert isinstance(reply, Reply)
        models = architectures(self.experiment, client, self._held.get(client, {}), assignment)
        if len(models) > 1:
            self._held[client] = {name: model for name, model in models.items() if name != "own"}
        problem = self._contract.unfit(assignment, reply, models)
        if problem is None:
            self._account(reply)
            self._check_losses(assignment, reply)
            self._privacy.enter(assignment, reply)
            self._privacy.measured(assignment, reply)
            return reply
        step, reason = problem
        self._privacy.enter(assignment, None)
        self._privacy.failed(client, reason)
        if exposures := self._contract.exposures(assignment, reply):
            self._privacy.measured(assignment, replace(reply, values=exposures))
        self._leave_out(client, step or stage, reason)
        return None

    def _check_losses(self, assignment: Assignment, reply: Reply) -> None:
        """Warn of a loss that would leave a client out, were no epsilon claimed."""
        for step in assignment.steps:
            if isinstance(step, Fit) and not math.isfinite(loss := reply.metrics[step.key]):
                self.warn_once(
                    f"loss of {reply.client}",
                    f"client {reply.client}: {step.key} is {loss}; the client stays, as leaving it "
                    "out would tell of its data past the noise",
                )

    def _account(self, reply: Reply) -> None:
        """Take what the engine says of its work out of the metrics."""
        self._line["seconds_clients"] += reply.metrics.pop("seconds", 0.0)
        for name in [name for name in reply.metrics if name.startswith(COHORT)]:
            together = self._line.setdefault("cohort", {})
            step = name.removeprefix(COHORT)
            together[step] = together.get(step, 0) + int(reply.metrics.pop(name))

    def _watch_losses(self, round: int) -> None:
        """Warn of students whose answers are no numbers, which accuracies hide."""
        lost = [
            client
            for client, metrics in sorted(self._latest.items())
            if any(name.endswith("_loss") and math.isnan(loss) for name, loss in metrics.items())
        ]
        if lost:
            self.warn_once(
                "diverged",
                f"round {round}: {len(lost)} of {len(self._latest)} clients' students, client "
                f"{lost[0]}'s for one, answer with NaN; such an answer counts as wrong, and as no "
                "loss",
            )

    def _leave_out(self, client: int, step: str, reason: str) -> None:
        self._line["left_out"].append({"client": client, "step": step, "reason": reason})

    def _skip(self, round: int) -> None:
        """End the run after a round without one usable reply, or have the round change nothing."""
        entries = [f"client {e['client']}: {e['reason']}" for e in self._line["left_out"]]
        more = f"; and {len(entries) - REASONS} more" if len(entries) > REASONS else ""
        reasons = f"every client's reply was left out ({'; '.join(entries[:REASONS])}{more})"
        if self.experiment.on_empty_round == "stop":
            raise FedkdError(f"round {round}: {reasons}")
        self._line["skipped"] = True
        self.warn_once("skipped", f"round {round} and maybe later ones changed nothing: {reasons}")

    # --- inside: the hooks ------------------------------------------------------------------

    def _where(self, hook: str, round: int | None = None, client: int | None = None) -> str:
        """A hook with its strategy and arguments, to begin a line of complaint with."""
        known = {"round": round, "client": client}
        given = [f"{name}={value}" for name, value in known.items() if value is not None]
        return f"strategy {self.experiment.strategy.name!r}, {hook}({', '.join(given)})"

    def _draws(self, *purpose: int | str) -> global_draws:
        """A context in which what hooks draw from global generators is the same in every run."""
        return global_draws(key(self.experiment.seed, "hooks", *purpose))

    def _call(self, hook: str) -> None:
        """Call ``setup`` or ``setup_server``, whose complaints are about the experiment."""
        with blamed(self._where(hook)), self._draws(hook):
            returned = getattr(self, hook)()
        with blaming(self._where, hook):
            as_nothing(returned)

    def _steps(
        self, hook: str, round: int, client: int, models: dict[str, str]
    ) -> tuple[Step, ...]:
        """The steps that a hook returns for a client.

        ``models`` gets the architectures of the client's students, those of the steps among them.
        """
        with blaming(self._where, hook, round, client):
            steps = as_steps(getattr(self, hook)(round, client))
            if steps:
                models |= (
                    architectures(self.experiment, client, self._held.get(client, {})) | models
                )
                self._checker.check(hook, steps, client, models)
                self._watch_tests(hook, steps)
        return steps

    def _watch_tests(self, hook: str, steps: tuple[Step, ...]) -> None:
        """Warn of training on what students are tested on."""
        for step in steps:
            if isinstance(step, Fit):
                for on in (step.on, *(getattr(term, "on", None) for term in step.terms)):
                    if isinstance(on, str) and on in TESTED_ON:
                        self.warn_once(
                            f"trained on {on}",
                            f"{hook} trains students on {on!r}, the samples that they are tested "
                            "on: their accuracy there is not that on new samples",
                        )

    def _assignment(
        self,
        client: int,
        round: int,
        phase: str,
        steps: tuple[Step, ...],
        trial: tuple[Step, ...],
    ) -> Assignment:
        with blaming(self._where, phase, round, client):
            check_keys((*steps, *trial))
            steps = self._privacy.stamped(client, round, phase, steps)
        return Assignment(client, round, phase, steps, trial)

    def _fused_labels(
        self, round: int, client: int, steps: tuple[Step, ...]
    ) -> torch.Tensor | None:
        with blaming(self._where, "fused_labels", round, client):
            labels = self.fused_labels(client, steps)
            rows = self._shapes.rows("transfer", client)
            if labels is None or rows is None:
                return labels
            return as_labels(labels, (rows, self._shapes.released))

    def _sizes(self, label_counts: torch.Tensor) -> Sizes:
        """What can be told of the sizes from what every strategy is given."""
        rows, clients = {}, self.experiment.data.clients
        if len(self.transfer):
            rows["transfer"] = [rows_of(Samples(self.transfer))] * clients
        if self.task.tokens:  # of which label_counts has tokens, and not samples
            return Sizes(None, rows)
        samples = label_counts.sum(1).tolist()
        return Sizes(samples, {"private": samples, **rows})

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


def _unlike_one_reply(client: int, replies: Sequence[Reply | Unreadable]) -> str:
    """Why what a client sent is not one reply of its own, done; or nothing."""
    if not replies:
        return "no reply"
    if len(replies) > 1:
        return f"it replied {len(replies)} times"
    reply = replies[0]
    if isinstance(reply, Unreadable):
        return reply.reason
    if reply.client != client:
        return f"its reply says that it is of client {reply.client}"
    return reply.failure


def _failed(reply: Reply | Unreadable) -> bool:
    return reply.failed if isinstance(reply, Unreadable) else bool(reply.failure)


def _tested(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(TESTS)}


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
