"""What every method is given, may call and keeps, whatever it does in its hooks."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedkd import students
from fedkd.data.canaries.secrets import Canaries
from fedkd.data.federated import Task
from fedkd.errors import FedkdError, blamed, brief
from fedkd.experiment import Experiment
from fedkd.headline import Headline
from fedkd.hooks import Keeping, as_nothing, blaming, check_hooks, trace
from fedkd.lab.watch import Watch
from fedkd.options import Table, validated
from fedkd.privacy.average import Averaging
from fedkd.privacy.candidates import over_classes
from fedkd.privacy.ledger import Aggregate
from fedkd.privacy.public import Public
from fedkd.random import global_draws, key
from fedkd.replies import Contract
from fedkd.rounds import asking
from fedkd.rounds.asking import Asking
from fedkd.rounds.measuring import reliability
from fedkd.rounds.outcome import Bins, Line, Outcome
from fedkd.rounds.replies import Replies
from fedkd.rounds.transcoder import Transcoder
from fedkd.server import ServerStudents
from fedkd.shapes import Shapes, Sizes
from fedkd.steps import Checker
from fedkd.students.pair import table_of
from fedkd.training import item_counts, item_numbers, on_all_items
from fedkd.training.items import take
from fedkd.training_tables import ServerTable
from fedkd.work import Assignment, Parameters, Rows, Samples, Step

GIVEN = {"experiment", "task", "options", "transfer", "public", "server"}
"""Attributes that a method reads, and does not replace: no checkpoint has them."""

OWN_STATE = frozenset({"_latest", "_bins", "_changed", "_held", "_warned"})
"""What the base class keeps between rounds."""

OnAggregates = Callable[[int, Sequence[Aggregate]], None]


class Method(Strategy):
    """A federated method as :class:`fedkd.rounds.phases.Rounds` sees it, which runs the rounds.

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

    Options: ClassVar[type[Table]]
    one_architecture: ClassVar[bool]
    needs_transfer_set: ClassVar[bool]
    sends_soft_labels: ClassVar[bool]
    asks_rows: ClassVar[bool]
    headline: ClassVar[Headline]
    server_training: ClassVar[ServerTable]
    _base_of_methods: ClassVar[type[Method]]

    def __init_subclass__(cls, *, base: bool = False, **given: Any) -> None:
        """With ``base``, the class is the one that methods are made from."""
        super().__init_subclass__(**given)
        if base:
            cls._base_of_methods = cls

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
        self.server = ServerStudents(experiment, self.public, self.warn_once, self.server_training)
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
        self._transcoder = Transcoder(shapes, self.transfer)
        self._asking = Asking(
            *(experiment, self.transfer, self.public, task.tokens, task.classes),
            lambda: self.public.model or self.initial_student(),
        )
        self._on_aggregates: OnAggregates | None = None
        self._label_counts = label_counts
        self._nodes: dict[int, int] = {}
        self._assigned: dict[int, Assignment] = {}
        self._outcome = Outcome(0)
        self._warned: dict[str, str] = {}  # what each warning is about, by its message
        self._latest: dict[int, dict[str, float]] = {}
        self._bins: dict[str, dict[int, Bins]] = {"local": {}, "fused": {}}
        self._changed: list[int] = []
        self._prepares = False  # whether [training] has added to any steps
        self._held: dict[int, dict[str, str]] = {}  # architectures of students beside the own
        self._fixed = {*vars(self), "_fixed", "_keeping"} - OWN_STATE
        self._keeping = Keeping(self._fixed)
        self._keeping.begin(type(self), self._base_of_methods)
        with blaming(str, f"strategy {experiment.strategy.name!r}"):
            check_hooks(self)
        for hook in ("setup_server", "setup"):
            self._call(hook)
        with blaming(self._where, "setup"):
            self._keeping.check(vars(self))

    def __setattr__(self, name: str, value: Any) -> None:
        given = name in GIVEN and name in vars(self)
        if given or callable(getattr(self._base_of_methods, name, None)):
            what = "what the strategy was given" if given else "a method of every strategy"
            raise AttributeError(
                f"self.{name} is {what}, and {brief(value)} cannot take its place; give that "
                "another name"
            )
        super().__setattr__(name, value)

    # --- what a method implements: see strategies/base.py ------------------------------------

    @abstractmethod
    def setup(self) -> None:
        """Begin what is kept between rounds."""

    @abstractmethod
    def setup_server(self) -> None:
        """Begin the students on the server."""

    @abstractmethod
    def begin_round(self, round: int) -> None:
        """Prepare a round."""

    @abstractmethod
    def select(self, round: int) -> list[int]:
        """Who takes part."""

    @abstractmethod
    def averaging(self, round: int) -> Averaging | None:
        """How shared parameters are clipped and noised."""

    @abstractmethod
    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Steps of the first phase."""

    @abstractmethod
    def measure(self, round: int, client: int) -> Sequence[Step]:
        """Steps of the first phase that only ``record`` sees the outcome of."""

    @abstractmethod
    def fuse(self, round: int, replies: Replies) -> None:
        """The server's knowledge out of the clients'."""

    @abstractmethod
    def record(self, round: int, replies: Replies, label_counts: torch.Tensor) -> Line:
        """Numbers for the round's line."""

    @abstractmethod
    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Steps of the second phase."""

    @abstractmethod
    def end_round(self, round: int, replies: Replies) -> None:
        """Take in what the steps of the second phase sent."""

    @abstractmethod
    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """Steps of the second phase that are undone after the tests."""

    @abstractmethod
    def score(self, round: int, client: int) -> Sequence[Step]:
        """Further tests, of named students or ways of predicting."""

    @abstractmethod
    def fused_labels(self, client: int, steps: Sequence[Step]) -> torch.Tensor | None:
        """Fused soft labels that leave the server."""

    @abstractmethod
    def stop(self, round: int) -> bool:
        """Whether the run ends."""

    # --- what methods call ------------------------------------------------------------------

    def warn_once(self, about: str, message: str) -> None:
        """Put a warning in the round's line, once a run for each ``about``.

        It stands under every table and figure of the run. Where the method comes to no more than
        another, ``about`` is one of ``fedkd.caveats.ANOTHER_METHOD``: the run then counts as that
        method's, and never as the best of this one's.
        """
        if about not in self._warned.values():
            self._warned[message] = about
            self._outcome.warn(message)

    @property
    def warned(self) -> dict[str, str]:
        """What each warning so far is about, by its message."""
        return dict(self._warned)

    @property
    def asked(self) -> str | Rows:
        """What clients are asked for on the transfer set in this round, and learn from.

        It is the transfer set, or those rows of it that ``distill.rows`` has chosen. A method that
        goes by it says so by ``asks_rows``.
        """
        return self._asking.on

    @property
    def asked_index(self) -> torch.Tensor:
        """The numbers ``(K,)`` of the samples that :attr:`asked` has, ascending."""
        return self._asking.index

    @property
    def asked_candidates(self) -> torch.Tensor | None:
        """Candidate classes ``(R, k)`` of the items of :attr:`asked`; None without candidates."""
        among = self.public.among
        return None if among is None else self.of_asked(among)

    def of_asked(self, values: torch.Tensor) -> torch.Tensor:
        """The rows ``(R, ...)`` that are of :attr:`asked`.

        ``values`` ``(M, ...)`` has a row for each item of the transfer set.
        """
        return values if self.asked == "transfer" else values[self.label_rows(self.asked_index)]

    def over_transfer(self, labels: torch.Tensor) -> torch.Tensor:
        """Soft labels ``(M, C)`` of the transfer set, of those ``(R, C)`` of :attr:`asked`.

        The uniform law stands for the others.
        """
        if self.asked == "transfer":
            return labels
        return on_all_items(labels, self.asked_index, self.transfer)

    def asked_samples(self) -> Samples:
        """The samples of :attr:`asked`, for students on the server."""
        every = self.asked == "transfer"
        return Samples(self.transfer if every else take(self.transfer, self.asked_index))

    def over_classes(self, labels: torch.Tensor, among: torch.Tensor | None = None) -> torch.Tensor:
        """Soft labels ``(M, C)`` over all classes, whether or not they came over candidates.

        ``among`` has the candidates of other rows than those of all of the transfer set.
        """
        among = self.public.among if among is None else among
        return labels if among is None else over_classes(labels, among, self.task.classes)

    def label_rows(self, index: torch.Tensor | None = None) -> torch.Tensor:
        """Which rows of soft labels ``(M, C)`` are of samples ``index`` ``(K,)``: ``(R,)`` int64.

        Of the transfer set; of all of its samples when not given. Of images they are the numbers
        of the samples themselves, of text those of their tokens.
        """
        samples = torch.arange(len(self.transfer)) if index is None else index
        return item_numbers(samples, item_counts(self.transfer))

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
            model, shape, classes, table_of(self.experiment), seed, tokens=self.task.tokens
        )

    def initial_parameters(self, model: str = "") -> Parameters:
        """The parameters of :meth:`initial_student`."""
        tensors = self.initial_student(model).state_dict()
        return {name: value.contiguous() for name, value in tensors.items()}

    # --- checks and state -------------------------------------------------------------------

    @classmethod
    def trains_on_server(cls) -> bool:
        """Whether it has students on the server, as far as its class tells."""
        base = cls._base_of_methods
        own = cls.server_training is not base.server_training
        return own or cls.setup_server is not base.setup_server

    @classmethod
    def read_options(cls, experiment: Experiment) -> Any:
        """The validated options of this strategy.

        Raises
        ------
        FedkdError
            One line naming the key, its value and what is allowed.
        """
        name, options = experiment.strategy.name, cls.Options
        if not (isinstance(options, type) and issubclass(options, cls._base_of_methods.Options)):
            raise FedkdError(
                f"strategy {name!r}: Options = {brief(options)} is not allowed; allowed: a class "
                f"made from {cls._base_of_methods.Options.__name__}"
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
        asking.check(experiment, cls.asks_rows)
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

    @property
    def reliability(self) -> Line:
        """How sure students were when last tested, and how right: what figures show, no method."""
        return reliability(self._bins)

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
        kept["_transcoder"] = self._transcoder.state()
        kept["_asking"] = self._asking.state()
        return kept | {"_server": self.server.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take in what :meth:`state` gave."""
        state = dict(state)
        self._privacy.restore(state.pop("_privacy"))
        self._transcoder.restore(state.pop("_transcoder"))
        self._asking.restore(state.pop("_asking"))
        self.server.restore(state.pop("_server"))
        vars(self).update(state)
        self._call("setup_server")

    # --- inside -----------------------------------------------------------------------------

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

    def _sizes(self, label_counts: torch.Tensor) -> Sizes:
        """What can be told of the sizes from what every strategy is given."""
        rows, clients = {}, self.experiment.data.clients
        if len(self.transfer):
            rows["transfer"] = [len(self.label_rows())] * clients
        if self.task.tokens:  # of which label_counts has tokens, and not samples
            counts = item_counts(self.transfer)
            return Sizes(None, rows, {} if counts is None else {"transfer": [counts] * clients})
        samples = label_counts.sum(1).tolist()
        return Sizes(samples, {"private": samples, **rows})
