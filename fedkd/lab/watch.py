"""Exposure of a run's canaries by what passes between clients and server.

The server's strategy shows everything that passes to a :class:`Watch`, which changes nothing of it
but what :class:`fedkd.privacy.ledger.Ledger` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fedkd.data.canaries.secrets import Canaries
from fedkd.experiment import Experiment
from fedkd.lab import measure
from fedkd.privacy.ledger import Ledger, Line
from fedkd.privacy.public import Public
from fedkd.shapes import Shapes
from fedkd.training import item_counts, item_numbers, on_all_items
from fedkd.work import (
    Assignment,
    Predict,
    Reply,
    Rows,
    origin,
)

EXPOSURE = "measure_exposure"


class ByLabels(NamedTuple):
    """Exposure of every secret ``(S,)`` by labels, in bits, under two scores."""

    exposure: Tensor
    linear: Tensor


class Watch(Ledger):
    """A ledger that also measures exposure where that is due.

    ``exposures`` holds the lines of the round that is under way.
    """

    def __init__(
        self,
        experiment: Experiment,
        public: Public,
        canaries: Canaries | None,
        transfer: Tensor,
        shapes: Shapes,
    ) -> None:
        super().__init__(experiment, public, shapes)
        self.canaries, self.transfer = canaries, transfer
        self.exposures: list[Line] = []
        self._lines: dict[tuple[str, int | None, int], Line] = {}  # the same, by what each is of
        self._students: dict[int, Tensor] = {}
        # By client and key: soft labels of those who answer for some rows at a time.
        self._rows: dict[int, dict[str, Tensor]] = {}

    def state(self) -> Line:
        """What later rounds depend on."""
        return super().state() | {"rows": {n: dict(kept) for n, kept in self._rows.items() if kept}}

    def restore(self, state: Line) -> None:
        """Take in what :meth:`state` gave."""
        super().restore(state)
        self._rows = {client: dict(kept) for client, kept in state["rows"].items()}

    def begin(self, round: int) -> None:
        """Begin a round with no lines."""
        super().begin(round)
        self.exposures, self._students, self._lines = [], {}, {}

    def due(self, round: int) -> bool:
        """Whether the exposure of planted secrets is measured in this round."""
        every = self.experiment.canary.every
        last = round == self.experiment.rounds
        return self.canaries is not None and (last or bool(every and round % every == 0))

    def lines(self) -> dict[str, list[Line]]:
        """The lines of the round, by the name of their file, in an order of their own."""
        found = super().lines()
        if self._students:
            self._everybody("student", dict(sorted(self._students.items())))
        order = sorted(
            self.exposures,
            key=lambda e: (
                e["place"],
                -1 if e["observer"] is None else e["observer"],
                e["secret"],
            ),
        )
        return found | {"exposures": order}

    def measured(self, assignment: Assignment, reply: Reply) -> None:
        """Take the exposure by a client's student, and by the soft labels that it sent.

        After local training the student is a teacher, measured on the client's own secrets; at the
        end of the round it is measured on secrets that it was not trained on.
        """
        found = reply.values.pop(EXPOSURE, None)
        if self.canaries is None:
            return
        sent = self._labels(assignment, reply)
        if not isinstance(found, Tensor):
            return
        own, learning = self.canaries.held_by(reply.client), assignment.phase == "learn"
        if learning:
            self._note("teacher", reply.client, found, own)
        else:
            self._students[reply.client] = found
        answers = any(isinstance(step, Predict) for step in assignment.steps)
        for labels in sent if learning or answers else ():
            self._note("released", reply.client, self._by_labels(labels), own)

    def _labels(self, assignment: Assignment, reply: Reply) -> list[Tensor]:
        """Soft labels of the transfer set that somebody has of a client, ``(M, C)``, by key.

        Where it answers for some rows at a time, they are the last that it gave of each; of rows
        that it was never asked for, the uniform law, which says nothing.
        """
        whole, kept = [], self._rows.setdefault(reply.client, {})
        for step in assignment.steps:
            if not isinstance(step, Predict) or step.per != "sample":
                continue
            # Of a reply that was left out, there are no values.
            if origin(step.on) != "transfer" or step.key not in reply.values:
                continue
            labels = cast(Tensor, reply.values[step.key])
            labels = labels.softmax(1) if step.output == "logits" else labels
            if isinstance(step.on, Rows):
                rows = item_numbers(step.on.index, item_counts(self.transfer))
                before = kept.get(step.key)
                if before is None:
                    before = on_all_items(labels, step.on.index, self.transfer)
                kept[step.key] = before.index_copy(0, rows, labels)
            else:
                kept.pop(step.key, None)
                whole.append(labels)
        return [*whole, *kept.values()]

    def fused(self, labels: Mapping[int, Tensor]) -> None:
        """Measure fused soft labels, by who gets them, on secrets that are not the receiver's.

        Labels that all receive alike are measured once, on all secrets.
        """
        if self.canaries is None or not labels:
            return
        first = next(iter(labels.values()))
        if all(same(first, given) for given in labels.values()):
            self._everybody("fused", dict.fromkeys(labels, self._by_labels(first)))
        else:
            self._everybody("fused", {n: self._by_labels(given) for n, given in labels.items()})

    def _everybody(self, place: str, found: Mapping[int, Tensor | ByLabels | None]) -> None:
        """Note what several clients have, on all secrets if it is the same, else on the others'."""
        assert self.canaries is not None
        first = next(iter(found.values()))
        if all(exposure is first or _equal(exposure, first) for exposure in found.values()):
            self._note(place, None, first, range(self.canaries.count))
            return
        for client, exposure in found.items():
            self._note(place, client, exposure, self._others(client))

    def _by_labels(self, labels: Tensor) -> ByLabels | None:
        assert self.canaries is not None
        if not bool(torch.isfinite(labels).all()):
            return None
        table, among = self.experiment.canary, self.public.among
        given = (self.canaries, labels, self.transfer, table, among, self.classes)
        exposure = measure.by_labels(*given)
        linear = None if exposure is None else measure.by_labels(*given, linear=True)
        return None if exposure is None or linear is None else ByLabels(exposure, linear)

    def _others(self, client: int) -> list[int]:
        assert self.canaries is not None
        own = set(self.canaries.held_by(client))
        return [secret for secret in range(self.canaries.count) if secret not in own]

    def _note(
        self,
        place: str,
        observer: int | None,
        found: Tensor | ByLabels | None,
        secrets: Iterable[int],
    ) -> None:
        if found is None or self.canaries is None:
            return
        scores = {"exposure": found} if isinstance(found, Tensor) else found._asdict()
        for secret in secrets:
            line = {
                "round": self._round,
                "place": place,
                "observer": observer,
                "secret": secret,
                "repeats": int(self.canaries.repeats[secret]),
                "holders": list(self.canaries.holders[secret]),
            }
            bits = {name: float(each[secret]) for name, each in scores.items()}
            known = self._lines.setdefault((place, observer, secret), line)
            if known is line:
                self.exposures.append(line)
            # Of what a client sends more than once in a round, what exposes most.
            known |= {name: max(value, known.get(name, value)) for name, value in bits.items()}


def _equal(one: Tensor | ByLabels | None, other: Tensor | ByLabels | None) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, ByLabels) and isinstance(other, ByLabels):
        return all(map(torch.equal, one, other))
    return False


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
