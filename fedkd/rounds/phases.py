"""The rounds: Flower's two phases of each, and what is written of it when it has ended.

``train`` messages carry ``learn`` and ``measure``; ``evaluate`` messages carry ``receive`` and
``deploy``. Clients are measured after each of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedkd.codec import Codec, nbytes
from fedkd.errors import FedkdError
from fedkd.hooks import (
    as_averaging,
    as_decision,
    as_labels,
    as_line,
    as_nothing,
    as_selection,
    as_steps,
    blaming,
    check_state,
)
from fedkd.random import generator
from fedkd.rounds.intake import Intake
from fedkd.rounds.measuring import averages, diverged, due, named, tested, tests
from fedkd.rounds.method import Method, OnAggregates
from fedkd.rounds.nodes import identify
from fedkd.rounds.outcome import Line, Outcome
from fedkd.rounds.prepared import prepared
from fedkd.rounds.replies import Replies
from fedkd.shapes import architectures
from fedkd.steps import TESTED_ON, check_keys
from fedkd.work import Assignment, Expose, Fit, Reply, Step, origin

REASONS = 5
"""Clients whose reasons are told where all of them are left out."""

OnRound = Callable[[Line, dict[str, list[Line]]], None]


class Rounds(Method):
    """Runs the rounds of a method, whose hooks say what is done in them."""

    # --- Flower's two phases ----------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages with ``learn`` for those who take part."""
        self._asking.begin(server_round)
        begin_round: Any = self.begin_round  # for a method that returns something
        with blaming(self._where, "begin_round", server_round):
            as_nothing(begin_round(server_round))
        with blaming(self._where, "averaging", server_round):
            self._privacy.averaging = as_averaging(self.averaging(server_round))
        measuring = due(self.experiment, server_round)
        trial: tuple[Step, ...] = tests(self.experiment) if measuring else ()
        if self._privacy.due(server_round):
            trial = (*trial, Expose())
        with blaming(self._where, "select", server_round):
            selected = as_selection(self.select(server_round), self.experiment.data.clients)
        staying, gone = self._drop_out(server_round, selected)
        if self.experiment.dropout:
            self._outcome.line["dropped_out"] = gone
        self._checker.begin()
        self._transcoder.begin()
        assignments = []
        for client in staying:
            models: dict[str, str] = {}
            steps = self._steps("learn", server_round, client, models)
            measure = self._steps("measure", server_round, client, models) if measuring else ()
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
        self._outcome.line["participants"] = fit.clients
        if not len(fit):
            self._skip(server_round)
            return None, None
        shown = self._shown(server_round, fit.replies)
        fuse: Any = self.fuse  # for a method that returns something
        with blaming(self._where, "fuse", server_round):
            as_nothing(fuse(server_round, shown))
        self._asking.heard(self._assigned[fit.clients[0]].steps, shown)
        before = self._traced()
        with blaming(self._where, "record", server_round):
            recorded = as_line(self.record(server_round, fit, self._label_counts))
        if self._traced() != before:
            for client in fit.clients:
                self._privacy.used(client, "record")
        if recorded:
            self._outcome.line["strategy"] = recorded
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages with ``receive`` for those who took part and, when due, tests for all."""
        assignments = []
        taking_part = set(self._outcome.line["participants"])
        measuring, exposing = due(self.experiment, server_round), self._privacy.due(server_round)
        fused: dict[int, torch.Tensor] = {}
        self._checker.begin()
        self._transcoder.begin()
        for client in range(self.experiment.data.clients):
            models: dict[str, str] = {}
            steps: tuple[Step, ...] = ()
            if client in taking_part:
                steps = self._steps("receive", server_round, client, models)
            trial: tuple[Step, ...] = ()
            if measuring or exposing:
                trial = self._steps("deploy", server_round, client, models)
                further = self._steps("score", server_round, client, models) if measuring else ()
                just_tested = client in self._outcome.measured["local"]
                known = client in self._latest and client not in self._changed
                if measuring and (steps or trial or further or not (just_tested or known)):
                    trial = (*trial, *tests(self.experiment))
                if exposing:
                    trial = (*trial, Expose())
                trial = (*trial, *further)  # last, as they may change the client's own student
            if (exposing or self._asking.watches) and client in taking_part:
                labels = self._fused_labels(server_round, client, steps)
                self._asking.taught(labels)
                if exposing and labels is not None:
                    fused[client] = labels
            if steps or trial:
                assignments.append(self._assignment(client, server_round, "receive", steps, trial))
        with blaming(self._where, "receive", server_round):
            self._checker.end()
        self._asking.end()
        self._privacy.fused(fused)
        return self._messages(grid, "evaluate", server_round, assignments)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """``end_round``, and gather the measurements of the round."""
        asked = [r for r in self._collect(replies, "fused") if self._assigned[r.client].steps]
        if not self._outcome.line.get("skipped"):
            end_round: Any = self.end_round  # for a method that returns something
            shown = self._shown(server_round, asked)
            with blaming(self._where, "end_round", server_round), self._draws(server_round, "end"):
                as_nothing(end_round(server_round, shown))
        if not due(self.experiment, server_round):
            self._changed = sorted({*self._changed, *self._outcome.line["participants"]})
            return None
        # A client whose student did not change since it was last measured is as it was then.
        unknown = []
        for client in range(self.experiment.data.clients):
            if client in self._assigned and client not in self._outcome.measured["fused"]:
                unknown.append(client)
                self._latest.pop(client, None)
                self._bins["fused"].pop(client, None)
                continue
            for stage in ("fused", "local"):
                if found := tested(self._outcome.measured[stage].get(client, {})):
                    self._latest[client] = found
                    self._bins["fused"][client] = self._outcome.bins[stage].get(client, {})
                    break
        self._bins["local"] = self._outcome.bins["local"]
        self._changed = unknown
        self._watch_losses(server_round)
        self._outcome.line |= averages(self._latest.values())
        self._outcome.line["local"] = averages(self._outcome.measured["local"].values())
        return MetricRecord({k: v for k, v in self._outcome.line.items() if isinstance(v, float)})

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
        self._nodes = identify(grid, self.experiment.data.clients, timeout)
        self._privacy.world, self._on_aggregates = world, on_aggregates
        last = num_rounds or self.experiment.rounds
        for round in range(first_round, last + 1):
            begin = time.perf_counter()
            self._outcome = Outcome(round)
            self.server.loyalties.clear()
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
            self._outcome.line |= self._outcome.train_loss()
            self._outcome.line |= self._outcome.loyalty(self.server.loyalties)
            self._outcome.line["seconds"] = time.perf_counter() - begin
            # Before the lines are written: what it looks at is one of them.
            with blaming(self._where, "stop", round), self._draws(round, "stop"):
                stopping = as_decision(self.stop(round))
            if stopping or round == last:
                self._watch_prepared()
            if on_round is not None:
                clients = self._outcome.client_lines()
                on_round(self._outcome.line, {"clients": clients, **self._privacy.lines()})
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

    def _messages(
        self, grid: Grid, kind: str, round: int, assignments: list[Assignment]
    ) -> Iterable[Message]:
        codec = Codec()
        self._assigned = {assignment.client: assignment for assignment in assignments}
        for assignment in assignments:
            self._outcome.line["bytes_down"] += nbytes(assignment.steps)
            node = self._nodes[assignment.client]
            # The grid makes the message: Message's constructor works inside Flower's runtime only.
            yield grid.create_message(codec.encode(assignment), kind, node, str(round))

    def _collect(self, messages: Iterable[Message], stage: str) -> list[Reply]:
        """The replies that are fit to be used; of the other clients nobody knows how they are."""
        intake = Intake(
            *(self.experiment, self._contract, self._transcoder, self._privacy, self.warn_once),
            *(self._outcome, stage, self._assigned, self._held),
        )
        kept = intake.collect(messages, self._nodes)
        if missing := self._assigned.keys() - {reply.client for reply in kept}:
            self._changed = sorted({*self._changed, *missing})
        return kept

    def _shown(self, round: int, replies: list[Reply]) -> Replies:
        """Replies of a phase as the method sees them; what is aggregated is told of."""
        before = len(self._privacy.aggregates)
        with blaming(self._where, "averaging", round):
            given = self._privacy.aggregated(self._assigned, replies)
        if self._on_aggregates is not None and replies:
            self._on_aggregates(round, self._privacy.aggregates[before:])
        return Replies(self._privacy.shown(self._assigned[r.client], r) for r in given)

    def _skip(self, round: int) -> None:
        """End the run after a round without one usable reply, or have the round change nothing."""
        entries = [f"client {e['client']}: {e['reason']}" for e in self._outcome.line["left_out"]]
        more = f"; and {len(entries) - REASONS} more" if len(entries) > REASONS else ""
        reasons = f"every client's reply was left out ({'; '.join(entries[:REASONS])}{more})"
        if self.experiment.on_empty_round == "stop":
            raise FedkdError(f"round {round}: {reasons}")
        self._outcome.line["skipped"] = True
        self.warn_once("skipped", f"round {round} and maybe later ones changed nothing: {reasons}")

    def _watch_losses(self, round: int) -> None:
        """Warn of students that have diverged."""
        if lost := diverged(self._latest):
            self.warn_once(
                "diverged",
                f"round {round}: {len(lost)} of {len(self._latest)} clients' students, client "
                f"{lost[0]}'s for one, answer with NaN; such an answer counts as wrong, and as no "
                "loss",
            )

    def _steps(
        self, hook: str, round: int, client: int, models: dict[str, str]
    ) -> tuple[Step, ...]:
        """The steps that a hook returns for a client.

        ``models`` gets the architectures of the client's students, those of the steps among them.
        """
        with blaming(self._where, hook, round, client):
            steps = as_steps(getattr(self, hook)(round, client))
            if hook in ("learn", "receive"):
                steps = self._prepared(steps)
            if hook == "score":
                steps = named(steps, self.experiment)
            if steps:
                models |= (
                    architectures(self.experiment, client, self._held.get(client, {})) | models
                )
                self._checker.check(hook, steps, client, models)
                self._watch_tests(hook, steps)
        return steps

    def _prepared(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Steps with what ``[training]`` adds before what is sent."""
        found = prepared(steps, self.experiment.training)
        self._prepares = self._prepares or len(found) > len(steps)
        return found

    def _watch_prepared(self) -> None:
        """Warn, at the end, of keys that had no effect as nobody answered after training."""
        training = self.experiment.training
        if self._prepares:
            return
        for key in ("class_variety", "align_weights"):
            if getattr(training, key):
                self.warn_once(
                    key,
                    f"training.{key} had no effect: no client's student was asked for soft labels "
                    "after it had trained on private samples",
                )

    def _watch_tests(self, hook: str, steps: tuple[Step, ...]) -> None:
        """Warn of training on what students are tested on."""
        for step in steps:
            if isinstance(step, Fit):
                terms = [term for peer in step.peers for term in peer.terms]
                for on in (step.on, *(getattr(term, "on", None) for term in terms)):
                    if (name := origin(on)) in TESTED_ON:
                        self.warn_once(
                            f"trained on {name}",
                            f"{hook} trains students on {name!r}, the samples that they are tested "
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
            steps = self._transcoder.sent(client, round, phase, steps)
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
