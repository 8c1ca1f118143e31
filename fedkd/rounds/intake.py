"""Replies of one phase on their way in: those that can be used, and why the others cannot."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message

from fedkd.codec import nbytes
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.lab.watch import Watch
from fedkd.replies import Contract, Unreadable, read
from fedkd.rounds.outcome import Outcome
from fedkd.rounds.transcoder import Transcoder
from fedkd.shapes import architectures
from fedkd.steps import MEASURED
from fedkd.work import Assignment, Fit, Reply

NOBODY = -1
"""Stands for the client that a node is which is none."""


@dataclass
class Intake:
    """Checks the replies of one phase in.

    ``assigned`` has what each client was asked, ``held`` the architectures of students that clients
    have beside their own, which grows. ``transcoder`` decodes what they send. What passes is shown
    to ``watch``; ``outcome`` gets bytes, measurements of the ``stage`` and who is left out.
    """

    experiment: Experiment
    contract: Contract
    transcoder: Transcoder
    watch: Watch
    warn_once: Callable[[str, str], None]
    outcome: Outcome
    stage: str
    assigned: Mapping[int, Assignment]
    held: dict[int, dict[str, str]]

    def collect(self, messages: Iterable[Message], nodes: Mapping[int, int]) -> list[Reply]:
        """Replies that are fit to be used, in client order; the others are noted in the line.

        Parameters
        ----------
        nodes
            The node of each client.

        Raises
        ------
        FedkdError
            A client reports wrong input; or its work has failed, and ``engine.failures`` is
            ``"stop"``.
        """
        clients = {node: client for client, node in nodes.items()}
        received: dict[int, list[Message]] = defaultdict(list)
        for message in messages:
            client = clients.get(message.metadata.src_node_id, NOBODY)
            if client in self.assigned:
                received[client].append(message)
            else:
                self.outcome.leave_out(client, self.stage, "it was not asked")
        kept = []
        for client, assignment in sorted(self.assigned.items()):
            replies = [read(message) for message in received[client]]
            reply = self._usable(assignment, replies)
            if reply is not None:
                kept.append(reply)
                self.outcome.measured[self.stage][client] = reply.metrics
        self.outcome.line["left_out"].sort(key=lambda entry: entry["client"])
        return kept

    def _usable(self, assignment: Assignment, replies: list[Reply | Unreadable]) -> Reply | None:
        """The one reply to ``assignment``, if it is fit to be used; else the line says why not."""
        client = assignment.client
        for reply in replies:
            if isinstance(reply, Reply) and reply.error:
                raise FedkdError(reply.error)
            if isinstance(reply, Reply):
                for warning in reply.warnings:
                    self.warn_once(warning, warning)
                sent = {k: v for k, v in reply.values.items() if not k.startswith(MEASURED)}
                self.outcome.line["bytes_up"] += nbytes(sent)
        if unfit := _unlike_one_reply(client, replies):
            failed = not replies or any(map(_failed, replies))
            if failed and self.experiment.engine.failures == "stop":
                raise FedkdError(f"client {client}: {unfit}")
            if not any(map(_failed, replies)):  # whose work is undone: nothing has left it
                self.watch.enter(assignment, None, sent=bool(replies))
            self.watch.failed(client, unfit)
            self.transcoder.lose(client)
            self.outcome.leave_out(client, self.stage, unfit)
            return None
        (reply,) = replies
        assert isinstance(reply, Reply)
        models = architectures(self.experiment, client, self.held.get(client, {}), assignment)
        if len(models) > 1:
            self.held[client] = {name: model for name, model in models.items() if name != "own"}
        reply, problem = self.transcoder.received(assignment, reply, models)
        if problem is None:
            problem = self.contract.unfit(assignment, reply, models)
        if problem is None:
            self.transcoder.confirm(assignment, reply)
            self.outcome.account(reply, self.stage)
            self._check_losses(assignment, reply)
            self.watch.enter(assignment, reply)
            self.watch.measured(assignment, reply)
            return reply
        step, reason = problem
        self.watch.enter(assignment, None)
        self.watch.failed(client, reason)
        self.transcoder.lose(client)
        if exposures := self.contract.exposures(assignment, reply):
            self.watch.measured(assignment, replace(reply, values=exposures))
        self.outcome.leave_out(client, step or self.stage, reason)
        return None

    def _check_losses(self, assignment: Assignment, reply: Reply) -> None:
        """Warn of a loss that would leave a client out, were no epsilon claimed."""
        for step in assignment.steps:
            for key in [peer.key for peer in step.peers] if isinstance(step, Fit) else ():
                if not math.isfinite(loss := reply.metrics[key]):
                    self.warn_once(
                        f"loss of {reply.client}",
                        f"client {reply.client}: {key} is {loss}; the client stays, as leaving it "
                        "out would tell of its data past the noise",
                    )


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
