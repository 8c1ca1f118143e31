"""The worker: performs assignments, whole or not at all, one by one or in cohorts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from fedkd import students
from fedkd.engine import rule
from fedkd.engine.clients import Clients
from fedkd.engine.cohort import Cohort
from fedkd.engine.session import Session
from fedkd.errors import FedkdError, summary_of
from fedkd.work import Assignment, Reply, Step


@dataclass(frozen=True)
class Care:
    """What is done otherwise since clients' work has failed.

    Clients in ``alone``, and those that would be in a cohort with them, are performed one by one.
    Clients in ``left_out`` are not performed; the cohorts of others stay as they are.
    """

    alone: frozenset[int] = frozenset()
    left_out: frozenset[int] = frozenset()


class Worker(Clients):
    """Performs assignments for any client of an experiment."""

    _at_work = "start"
    """The step that is being done."""

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
