"""What a method's author writes: one class, with hooks that say what clients and the server do.

Every round has two phases, in this order::

    begin_round(round)             the server    what it prepares
    averaging(round)               the server    how shared parameters are clipped and noised
    select(round)                  the server    who takes part
    learn(round, client)           phase 1       steps of who takes part: learn, and give knowledge
    measure(round, client)         phase 1       further steps, for ``record`` alone
    fuse(round, replies)           the server    what it makes of the knowledge
    record(round, replies, ...)    the server    numbers for the round's line
    receive(round, client)         phase 2       steps of who took part: learn from what was fused
    deploy(round, client)          phase 2       steps of all, undone after they have been tested
    score(round, client)           phase 2       further tests of all, of named students; undone
    end_round(round, replies)      the server    what it makes of what came back in phase 2
    stop(round)                    the server    whether the run ends here

Rounds count from 1, clients from 0 to N - 1. Steps are those of :mod:`fedkd.work`. What a hook
returns is checked at once; what is wrong with it, or raised in it, ends the run in one line that
names the hook, the round and the client. Clients are measured after each phase, on their own test
split and on the common test set: it is where in the round one looks that often decides which method
looks best. How the phases are run is in :mod:`fedkd.rounds`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from fedkd.caveats import LOCAL_TRAINING
from fedkd.distillation.knowledge import Knowledge as Knowledge
from fedkd.distillation.objectives import ObjectiveOption, made, takes_probabilities, traits
from fedkd.distillation.targets import within
from fedkd.encodings import as_received
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.headline import Headline as Headline
from fedkd.mixtures import Mixture, Surest, travelling
from fedkd.options import Epochs, Table
from fedkd.privacy.average import Averaging
from fedkd.random import generator
from fedkd.rounds.outcome import Line as Line
from fedkd.rounds.phases import Rounds
from fedkd.rounds.replies import Replies as Replies
from fedkd.sections import StudentTable
from fedkd.training import on_all_items
from fedkd.training_tables import ServerTable as ServerTable
from fedkd.work import Fit, Rows, Soft, Step, Term, origin


class StrategyOptions(Table):
    """A strategy's own keys of ``[strategy]``; ``name`` is not among them."""


class DistillOptions(StrategyOptions):
    """Options of methods whose clients learn from soft labels on the transfer set."""

    distill_epochs: Epochs = 1.0
    """Passes over the transfer set in which a client learns from the fused knowledge, a round."""
    objective: ObjectiveOption = "forward_kl"
    """How it learns: a name of ``fedkd list objectives``, or with options ``{name = "...", ...}``.
    The transfer set has no labels: ``labels = "argmax"`` in that table takes the likeliest class
    of the fused soft label in their place."""


class KnowledgeStrategy(Rounds, base=True):
    """Base of all methods: a method overrides the hooks that it needs, most often three.

    Hooks may read ``self.experiment``, ``self.options`` (an ``Options``), ``self.task`` (the shape
    of an input, the C classes), ``self.transfer`` (inputs of the transfer set, ``(M, ...)``) and
    ``self.public`` (what else is known to all); train students on ``self.server``; and call
    :meth:`soft`, :meth:`distil`, :meth:`draw_rows`, :meth:`rows`, :meth:`label_rows`,
    :meth:`over_classes`, :meth:`initial_student`, :meth:`initial_parameters` and
    :meth:`warn_once`. Which samples of the
    transfer set a round is about is :attr:`asked`, their numbers :attr:`asked_index`, and what
    students on the server learn them from :meth:`asked_samples`; :meth:`of_asked` and
    :meth:`over_transfer` go from rows of all samples to those, and back.

    Whatever a method stores on itself, from :meth:`setup` on, is its state: it goes into
    checkpoints, and must be tensors, numbers, strings, None, or lists, tuples and dictionaries of
    them.
    """

    Options: ClassVar[type[StrategyOptions]] = StrategyOptions
    one_architecture: ClassVar[bool] = False
    """Whether all clients must have the same student, as where parameters are averaged."""
    needs_transfer_set: ClassVar[bool] = False
    """Whether clients exchange knowledge on a transfer set."""
    sends_soft_labels: ClassVar[bool] = False
    """Whether clients send nothing but soft labels on the transfer set."""
    asks_rows: ClassVar[bool] = False
    """Whether all that it does on the transfer set is on :attr:`asked`, so that ``distill.rows``
    may say which of its samples that is; else the key is refused."""
    headline: ClassVar[Headline] = Headline()
    """Where the method's paper scores it, which tables show: the stage, and the evaluation of
    :meth:`score`, if it is not the client's own student."""
    knowledge: ClassVar[Knowledge | None] = None
    """What it distils by its option ``objective``, with :meth:`soft`; None: it has no such option,
    or looks after it itself."""
    server_training: ClassVar[ServerTable] = ServerTable()
    """How its students on the server are trained, as in its paper, where ``[server]`` says nothing;
    what is not given here is as in ``[training]``."""

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Also refuse an objective that the method's knowledge is not enough for."""
        super().check(experiment)
        if cls.knowledge and (why := cls.knowledge.unfit(cls.read_options(experiment).objective)):
            raise FedkdError(f"{why}, with strategy.name = {experiment.strategy.name!r}")

    # --- before the rounds ------------------------------------------------------------------

    @classmethod
    def student_table(cls, experiment: Experiment) -> StudentTable:
        """How the clients' students are built: a table of its own, such as a ``PairTable``.

        Called wherever one is built, on clients too.
        """
        return experiment.student

    def setup_server(self) -> None:
        """Add the students that the server trains (``self.server.add``).

        Called before :meth:`setup`, and again when a run is resumed, after all else is as it was:
        students that were added before get the parameters of the checkpoint.
        """

    def setup(self) -> None:
        """Begin what is kept between rounds, on ``self``.

        Called once, when the strategy is made. In a run that is resumed, what the checkpoint has
        then takes the place of what was set here.
        """

    # --- phase 1 ----------------------------------------------------------------------------

    def begin_round(self, round: int) -> None:
        """Prepare the round on the server, and keep it on ``self``, as rows that it draws.

        Called first in a round, before :meth:`averaging` and :meth:`select`; in a run that is
        resumed, for the rounds that are yet to come.
        """

    def averaging(self, round: int) -> Averaging | None:
        """How the server clips and noises the parameters that clients share in the round.

        Called before :meth:`select`. Where it returns an ``Averaging`` and not None, :meth:`fuse`
        is shown the average in the place of each client's parameters, and all that is made of it
        is post-processing.
        """
        return None

    def select(self, round: int) -> list[int]:
        """Clients that take part: at least one number from 0 to N - 1, each once.

        Called once a round, before the messages of phase 1. By default ceil(participation N) of
        them, drawn without replacement.
        """
        clients = self.experiment.data.clients
        count = max(1, math.ceil(self.experiment.participation * clients - 1e-9))
        draw = generator(self.experiment.seed, "participation", round)
        return sorted(torch.randperm(clients, generator=draw)[:count].tolist())

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Steps of local learning and of giving knowledge.

        Called in phase 1 for each client that takes part and has not dropped out. What the steps
        send (``Predict``, ``Represent``, ``Select``, ``Count``, ``Share``) is in :meth:`fuse`'s
        replies, by the steps' keys; no two steps may have the same.
        """
        return [Fit()]

    def measure(self, round: int, client: int) -> Sequence[Step]:
        """Steps, undone afterwards, whose values :meth:`record` needs.

        Called after :meth:`learn`, for the same clients, in rounds that are measured. Their keys
        begin with ``measure_``: no method would send them, their bytes do not count, and
        :meth:`fuse` does not get them.
        """
        return []

    # --- on the server ----------------------------------------------------------------------

    def fuse(self, round: int, replies: Replies) -> None:
        """Make the server's knowledge out of the clients', and keep it on ``self``.

        Called between the phases with the N replies that can be used, in client order. By key:
        ``replies.stack("soft_labels")`` ``(N, M, C)``, ``replies.parameters()``, the named arrays
        of each, ``replies.of(client, key)``, those of one, ``replies.metric("train_loss")``
        ``(N,)``; a key that was not sent is a ``FedkdError``. Also ``replies.clients``, their
        numbers, and ``replies.samples`` ``(N,)``. Not called in a round without a reply: it ends
        the run or, with ``on_empty_round = "skip"``, changes nothing.
        """

    def record(self, round: int, replies: Replies, label_counts: torch.Tensor) -> Line:
        """Numbers for the round's line: by name, what JSON holds; columns of tables.

        Called after :meth:`fuse`, with the replies as they came. The only place that sees the
        values of :meth:`measure` and the true label counts, private training samples of each
        client of the run and class ``(N, C)``. So nothing that is kept here may decide on later
        rounds: where an epsilon is claimed, it is none then.
        """
        return {}

    def fused_labels(self, client: int, steps: Sequence[Step]) -> torch.Tensor | None:
        """The fused soft labels ``(M, C)`` that leave the server, to measure what they expose.

        Called in rounds in which canaries are measured, with the steps that :meth:`receive` gave
        for ``client``. By default the targets that these distil on the transfer set, as
        probabilities; a method that keeps its labels on the server returns None. Where they are
        those of some rows alone, the uniform law stands for the others.
        """
        for step in steps:
            if not isinstance(step, Fit) or origin(step.on) != "transfer":
                continue
            for term in step.terms:
                given = (
                    next(iter(travelling(term.targets)), None) if isinstance(term, Soft) else None
                )
                if isinstance(term, Soft) and isinstance(given, torch.Tensor):
                    logits = traits(made(term.objective)).targets == "logits"
                    labels = as_received(given, term.encoding)
                    labels = labels.softmax(1) if logits else labels
                    # What is no target is no more than the uniform law.
                    uniform = torch.full_like(labels, 1 / labels.shape[1])
                    labels = labels.where(~labels[:, :1].isnan(), uniform)
                    if isinstance(step.on, Rows):
                        return on_all_items(labels, step.on.index, self.transfer)
                    return labels
        return None

    # --- phase 2 ----------------------------------------------------------------------------

    def receive(self, round: int, client: int) -> Sequence[Step]:
        """Steps in which a client learns from the fused knowledge.

        Called in phase 2 for each client whose reply in phase 1 could be used. What the steps send
        is in :meth:`end_round`'s replies.
        """
        return []

    def end_round(self, round: int, replies: Replies) -> None:
        """Take in what the steps of :meth:`receive` sent, and keep it on ``self``.

        Called after phase 2, when students have been tested, with the replies of clients that
        :meth:`receive` gave steps and that can be used, which may be none. They are as in
        :meth:`fuse`: released, aggregated and in the ledger. Not called in a round that is skipped.
        """

    def deploy(self, round: int, client: int) -> Sequence[Step]:
        """Steps that make the student that a client is tested with, undone after the tests.

        Called in phase 2 of rounds that are measured, for all clients, those that took no part
        among them. ``Fit``, ``Hold``, ``Load`` and ``Evaluate`` alone: nothing is sent.
        """
        return []

    def score(self, round: int, client: int) -> Sequence[Step]:
        """Further tests, undone afterwards: of another student, or another way of predicting.

        Called in phase 2 of rounds that are measured, for all clients, after the client's own
        student was tested. ``Fit``, ``Hold``, ``Load`` and ``Evaluate`` alone. An ``Evaluate`` is
        done on all sets of tests, and its ``key`` is the name that it has in columns:
        ``Evaluate(key="server", student="server")`` gives ``own_server_accuracy``,
        ``common_server_accuracy`` and so on. Nothing is sent, no bytes count.
        """
        return []

    def stop(self, round: int) -> bool:
        """Whether to end the run after this round, before its last one.

        Called at the end of every round, and when a run is resumed, with the round before.
        """
        return False

    # --- what methods call ------------------------------------------------------------------

    def soft(
        self, given: torch.Tensor | str, temperature: float | torch.Tensor = 1.0, **fields: Any
    ) -> Soft:
        """The term that learns from what is known by ``options.objective``.

        ``given`` is of the kind that :attr:`knowledge` says, ``(K, C)``: logits, or probabilities
        that were softened at ``temperature``; or the name of a student. What the objective takes
        is made of it. ``fields`` are further ones of ``Soft``.
        """
        chosen = self.options.objective
        if isinstance(given, torch.Tensor) and self.knowledge is not None:
            given = self.knowledge.targets(chosen, given, temperature)
        return Soft(given, chosen, temperature=temperature, **fields)

    def distil(self, *terms: Term, on: str | Rows | None = None) -> Fit:
        """Training on the transfer set towards ``terms``, ``options.distill_epochs`` passes.

        It is on :attr:`asked`, unless ``on`` has other rows. For a method whose ``Options`` are
        made from :class:`DistillOptions`; replies with the metric ``distill_loss``. Targets that
        are given for its rows are chosen among, or left out, as ``[distill]`` says.
        """
        on = self.asked if on is None else on
        epochs, among = self.options.distill_epochs, self.public.among
        if isinstance(on, Rows) and among is not None:
            among = among[self.label_rows(on.index)]
        if not epochs:
            said = "strategy.distill_epochs = 0: no client learns from what is fused"
            if self.headline.evaluation:  # another student does, which is what is scored
                self.warn_once("distill_epochs", said)
            else:
                self.warn_once(LOCAL_TRAINING, f"{said}, so it equals local training")
        terms = tuple(
            replace(term, among=among) if isinstance(term, Soft) and among is not None else term
            for term in map(self._targets, terms)
        )
        return Fit(on, terms, epochs=epochs, min_steps=0, key="distill_loss")

    def _targets(self, term: Term) -> Term:
        """``term`` of :meth:`distil` with its targets as ``[distill]`` has them."""
        if not isinstance(term, Soft) or not isinstance(term.targets, torch.Tensor):
            return term
        if term.on is not None or term.per != "sample":
            return term
        table, targets = self.experiment.distill, term.targets
        if table.least_confidence > 0 or table.most_confidence < 1:
            judged = targets if takes_probabilities(term.objective) else targets.softmax(-1)
            if self.public.among is not None:
                judged = judged[:, :-1]  # all other classes together are no class
            targets = within(targets, table.least_confidence, table.most_confidence, judged)
        if targets is not term.targets and bool(targets[:, 0].isnan().all()):
            self.warn_once(
                "confidence",
                "distill.least_confidence and most_confidence leave out all that the server sends: "
                "no client learns from it",
            )
        if table.targets == "given":
            return replace(term, targets=targets)
        return replace(term, targets=Mixture(("own", targets), Surest(every=True)))

    def draw_rows(self, round: int, count: int) -> torch.Tensor:
        """Numbers ``(K,)`` of ``count`` samples of the transfer set, drawn anew each round.

        Without replacement, ascending; of all where ``count`` is 0 or more than there are.
        """
        size = len(self.transfer)
        draw = generator(self.experiment.seed, "rows of the transfer set", round)
        order = torch.randperm(size, generator=draw)
        return order[: count or size].sort().values

    def rows(self, index: torch.Tensor) -> str | Rows:
        """The samples ``index`` ``(K,)`` of the transfer set, as a source.

        All of them, ascending, are the transfer set itself, and no numbers need to travel.
        """
        everything = torch.equal(index, torch.arange(len(self.transfer)))
        return "transfer" if everything else Rows("transfer", index)
