"""What leaves the clients of a run, and what it exposes: its ledger and its canaries.

The server's strategy shows everything that passes to a :class:`Watch`, which changes nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fedkd.experiment import Experiment
from fedkd.privacy import measure
from fedkd.privacy.accounting import Release, described
from fedkd.privacy.dpsgd import is_private, sees_private
from fedkd.privacy.public import Public
from fedkd.privacy.release import temperatures
from fedkd.replies import DP, released
from fedkd.shapes import Shapes
from fedkd.work import (
    Assignment,
    Fit,
    Predict,
    Proximal,
    Reply,
    Represent,
    Share,
    Source,
    Step,
)

if TYPE_CHECKING:
    from fedkd.privacy.canary import Canaries

Line = dict[str, Any]
EXPOSURE = "measure_exposure"


class Watch:
    """Keeps the ledger of releases, and measures exposure where that is due.

    ``releases`` and ``exposures`` hold the lines of the round that is under way.
    """

    def __init__(
        self,
        experiment: Experiment,
        public: Public,
        canaries: Canaries | None,
        transfer: Tensor,
        shapes: Shapes,
    ) -> None:
        self.experiment, self.public, self.canaries = experiment, public, canaries
        self.transfer, self.shapes, self.classes = transfer, shapes, shapes.classes
        self.answered: dict[int, list[str]] = {}
        self.trained: dict[int, list[list[float]]] = {}  # by DP-SGD, since it last sent anything
        self.releases: list[Line] = []
        self.exposures: list[Line] = []
        self._students: dict[int, Tensor] = {}
        self._round = 0

    def begin(self, round: int) -> None:
        """Begin a round with no lines."""
        self._round, self.releases, self.exposures, self._students = round, [], [], {}

    def due(self, round: int) -> bool:
        """Whether the exposure of planted secrets is measured in this round."""
        every = self.experiment.canary.every
        last = round == self.experiment.rounds
        return self.canaries is not None and (last or bool(every and round % every == 0))

    def lines(self) -> dict[str, list[Line]]:
        """The lines of the round, by the name of their file, in an order of their own."""
        if self._students:
            self._everybody("student", dict(sorted(self._students.items())))
        return {
            "releases": sorted(self.releases, key=lambda e: (e["client"], e["step"], e["key"])),
            "exposures": sorted(
                self.exposures,
                key=lambda e: (
                    e["place"],
                    -1 if e["observer"] is None else e["observer"],
                    e["secret"],
                ),
            ),
        }

    def state(self) -> Line:
        """What later rounds depend on."""
        return {
            "answered": {client: list(given) for client, given in self.answered.items()},
            "trained": {client: list(steps) for client, steps in self.trained.items()},
        }

    def restore(self, state: Line) -> None:
        """Take in what :meth:`state` gave."""
        self.answered, self.trained = state["answered"], state["trained"]

    # --- the ledger -------------------------------------------------------------------------

    def enter(self, assignment: Assignment, reply: Reply | None, sent: bool = True) -> None:
        """Put everything that left a client into the ledger, a line each.

        With it goes the private training that it may tell of: all since the client's last release,
        as pairs of sample rate and steps. Takes what only the ledger is for out of the metrics.

        Parameters
        ----------
        reply
            None if it broke its contract: something left the client all the same, and what it says
            is not to be trusted. What was asked of the client is charged, as a fresh answer.
        sent
            Whether there was a reply.
        """
        if trained := self._trained(assignment, reply):
            self.trained.setdefault(assignment.client, []).append(trained)
        for step in assignment.steps if sent else ():
            if isinstance(step, Predict | Represent | Share):
                details = self._details(step, assignment.client, reply)
                if not isinstance(step, Share) and isinstance(step.on, str):
                    details["on"] = step.on
                line = Release(
                    round=assignment.round,
                    client=assignment.client,
                    step=type(step).__name__,
                    key=step.key,
                    **details,
                )
                entry = line.to_dict()
                if steps := self.trained.pop(assignment.client, None):
                    entry["dp_training"] = steps
                self.releases.append(entry)

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
        training, on = self.experiment.training, [step.on]
        on += [term.on for term in step.terms if not isinstance(term, Proximal) and term.on]
        passes = [-(-max(1, self._items(source, client)) // training.batch_size) for source in on]
        epochs = training.local_epochs if step.epochs is None else step.epochs
        least = training.min_steps if step.min_steps is None else step.min_steps
        rate = max(1 / each for source, each in zip(on, passes, strict=True) if is_private(source))
        return rate, max(math.ceil(epochs * passes[0] - 1e-9), least)

    def _items(self, on: Source, client: int) -> int:
        rows = self.shapes.samples(client) if on == "private" else self.shapes.rows(on, client)
        return rows or 0

    def _details(self, step: Step, client: int, reply: Reply | None) -> dict[str, Any]:
        """What the ledger says of one release beside who, when and what."""
        table = self.experiment.release
        if not isinstance(step, Predict | Represent):
            return {"items": 1}
        if not (table.active and released(step)):
            rows = self.shapes.rows(step.on, client)
            return {"items": (0 if reply is None else reply.samples) if rows is None else rows}
        # A second answer at another temperature could cancel the first one's noise: it has noise
        # of its own, and is charged.
        fresh = True
        if reply is not None:
            state = int(reply.metrics.pop(f"{step.key}_state"))
            answer = f"{state} {step.temperature:g} {step.key}"
            answered = self.answered.setdefault(client, [])
            fresh = answer not in answered or not table.cache
            if answer not in answered:
                answered.append(answer)
        tau = temperatures(table, self.public.scores, step.temperature)
        over_candidates = self.public.among is not None
        return {"items": len(self.public.scores), "fresh": fresh} | described(
            table, tau, self.classes, over_candidates
        )

    # --- exposure ---------------------------------------------------------------------------

    def measured(self, assignment: Assignment, reply: Reply) -> None:
        """Take the exposure by a client's student, and by the soft labels that it sent.

        After local training the student is a teacher, measured on the client's own secrets; at the
        end of the round it is measured on secrets that it was not trained on.
        """
        found = reply.values.pop(EXPOSURE, None)
        if self.canaries is None or not isinstance(found, Tensor):
            return
        if assignment.phase != "learn":
            self._students[reply.client] = found
            return
        own = self.canaries.held_by(reply.client)
        self._note("teacher", reply.client, found, own)
        for step in assignment.steps:
            if not isinstance(step, Predict) or step.on != "transfer" or step.per != "sample":
                continue
            if step.key in reply.values:  # of a reply that was left out, it is not
                labels = cast(Tensor, reply.values[step.key])
                labels = labels.softmax(1) if step.output == "logits" else labels
                self._note("released", reply.client, self._by_labels(labels), own)

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

    def _everybody(self, place: str, found: Mapping[int, Tensor | None]) -> None:
        """Note what several clients have, on all secrets if it is the same, else on the others'."""
        assert self.canaries is not None
        first = next(iter(found.values()))
        if all(exposure is first or _equal(exposure, first) for exposure in found.values()):
            self._note(place, None, first, range(self.canaries.count))
            return
        for client, exposure in found.items():
            self._note(place, client, exposure, self._others(client))

    def _by_labels(self, labels: Tensor) -> Tensor | None:
        assert self.canaries is not None
        if not bool(torch.isfinite(labels).all()):
            return None
        return measure.by_labels(
            self.canaries,
            labels,
            self.transfer,
            self.experiment.canary,
            self.public.among,
            self.classes,
        )

    def _others(self, client: int) -> list[int]:
        assert self.canaries is not None
        own = set(self.canaries.held_by(client))
        return [secret for secret in range(self.canaries.count) if secret not in own]

    def _note(
        self, place: str, observer: int | None, found: Tensor | None, secrets: Iterable[int]
    ) -> None:
        if found is None or self.canaries is None:
            return
        for secret in secrets:
            self.exposures.append(
                {
                    "round": self._round,
                    "place": place,
                    "observer": observer,
                    "secret": secret,
                    "repeats": int(self.canaries.repeats[secret]),
                    "holders": list(self.canaries.holders[secret]),
                    "exposure": float(found[secret]),
                }
            )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
