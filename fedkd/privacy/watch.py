"""What leaves the clients of a run, and what it exposes: its ledger and its canaries.

The server's strategy shows everything that passes to a :class:`Watch`, which changes nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fedkd.experiment import Experiment
from fedkd.privacy import measure
from fedkd.privacy.accounting import Release, described
from fedkd.privacy.public import Public
from fedkd.privacy.release import temperatures
from fedkd.work import Assignment, Predict, Reply, Represent, Share, Step

if TYPE_CHECKING:
    from fedkd.privacy.canary import Canaries

Line = dict[str, Any]
EXPOSURE = "measure_exposure"
DP = ("dp_sample_rate", "dp_steps")


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
        classes: int,
    ) -> None:
        self.experiment, self.public, self.canaries = experiment, public, canaries
        self.transfer, self.classes = transfer, classes
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

    def enter(self, assignment: Assignment, reply: Reply) -> None:
        """Put everything that left a client into the ledger, a line each.

        With it goes the private training that it may tell of: all since the client's last release,
        as pairs of sample rate and steps. Takes what only the ledger is for out of the metrics.
        """
        metrics = reply.metrics
        if "dp_steps" in metrics:
            steps = [metrics.pop(name) for name in DP]
            self.trained.setdefault(reply.client, []).append(steps)
        for step in assignment.steps:
            if isinstance(step, Predict | Represent | Share):
                details = self._details(step, reply)
                if not isinstance(step, Share) and isinstance(step.on, str):
                    details["on"] = step.on
                line = Release(
                    round=assignment.round,
                    client=reply.client,
                    step=type(step).__name__,
                    key=step.key,
                    **details,
                )
                entry = line.to_dict()
                if trained := self.trained.pop(reply.client, None):
                    entry["dp_training"] = trained
                self.releases.append(entry)

    def _details(self, step: Step, reply: Reply) -> dict[str, Any]:
        """What the ledger says of one release beside who, when and what."""
        table = self.experiment.release
        if isinstance(step, Share):
            return {"items": 1}
        if not isinstance(step, Predict) or step.on != "transfer":
            return {"items": reply.samples}
        items = len(self.public.scores)
        if not table.active or step.per == "class":
            return {"items": items}
        # A second answer at another temperature could cancel the first one's noise: it has noise
        # of its own, and is charged.
        state = int(reply.metrics.pop(f"{step.key}_state"))
        answer = f"{state} {step.temperature:g} {step.key}"
        answered = self.answered.setdefault(reply.client, [])
        fresh = answer not in answered or not table.cache
        if answer not in answered:
            answered.append(answer)
        tau = temperatures(table, self.public.scores, step.temperature)
        over_candidates = self.public.among is not None
        return {"items": items, "fresh": fresh} | described(
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
            if isinstance(step, Predict) and step.on == "transfer" and step.per == "sample":
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
