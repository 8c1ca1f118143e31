"""The terms of a loss, made ready for a student or a stack of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.distillation.objectives import (
    SMALLEST,
    Memory,
    check_candidates,
    labels_of,
    made,
    name_of,
    traits,
)
from fedkd.distillation.targets import among_logs, candidate_column
from fedkd.errors import FedkdError
from fedkd.mixtures import Mixture
from fedkd.students import cut_index, part_names
from fedkd.training.auxiliary import NOT_AMONG, parameters_of, said_by, spot
from fedkd.training.batches import Batch
from fedkd.training.items import at_items, items
from fedkd.training.needs import provided
from fedkd.training.student import names_around
from fedkd.work import (
    Contrast,
    CrossEntropy,
    Feature,
    Head,
    Linear,
    Parameters,
    Penalty,
    Prior,
    Proximal,
    Samples,
    Soft,
    Source,
    Term,
)

NO_LABEL = -1
SHORTEST = 1e-8
"""Least length that a representation is divided by."""


class Summand(Protocol):
    """What the loop needs of a loss: its value on a batch, and where its gradient may go."""

    @property
    def on(self) -> Source | None:
        """Where it draws from; None: from the step's own source."""

    @property
    def reach(self) -> list[nn.Parameter] | None:
        """The parameters that its gradient may touch; None for all."""

    def __call__(self, batch: Batch) -> Tensor:
        """Its value on a batch: ``()``, of a stack ``(n,)``."""


class Loss:
    """One term, made ready: targets on the device, blocks looked up, needs checked.

    Parameters
    ----------
    samples
        The source that the term draws from; of a stack, all its students' behind one another.
    learning
        The parameters that learn, by name; of a stack ``(n, ...)``, replaced as it gets smaller.
    stacked
        Students of a stack, 0 if it is of one alone: a head's and other named arrays are then
        ``(n, ...)``, and targets are those of all students behind one another.
    peers
        Students that learn together with this one: what they say comes with each batch.
    sizes
        Of a stack, how many of the samples are each student's.
    auxiliary
        Heads beside the student, by name: see :mod:`fedkd.training.auxiliary`.
    """

    def __init__(
        self,
        student: nn.Sequential,
        term: Term,
        samples: Samples,
        learning: dict[str, nn.Parameter],
        stacked: int = 0,
        peers: Collection[str] = (),
        sizes: Sequence[int] = (),
        auxiliary: Mapping[str, nn.Linear] | None = None,
    ) -> None:
        self.term = term
        self.peer = ""
        self.on = source_of(term)
        self.stacked = stacked
        self.learning = learning
        self._reach: list[str] | None = None
        self.cut = term.cut if isinstance(term, Feature | Contrast) else None
        self.spot = spot(student, term)
        self.auxiliary = auxiliary or {}
        if isinstance(term, CrossEntropy) and term.exit:
            self.cut = term.exit
        device = samples.inputs.device
        if isinstance(term, CrossEntropy | Soft) and term.through is not None:
            # What comes in at the lowest frozen block; at "" that is the batch itself.
            self.cut = "" if term.through.below else term.through.cut
            if isinstance(term.through.parameters, str):
                raise FedkdError("Head: its student was not asked for its parameters")
            # Copies: batch statistics among them are written to.
            given = term.through.parameters
            self.head = {name: value.to(device, copy=True) for name, value in given.items()}
        if self.cut is not None:
            self.above = student[cut_index(student, self.cut) if self.cut else 0 :]
        if isinstance(term, CrossEntropy | Soft) and term.through is not None:
            state = self.above.state_dict()
            frozen = names_around(student, term.through.below, term.through.cut)
            if missing := {*frozen} ^ self.head.keys():
                raise FedkdError(
                    "Head: its parameters are not those of the blocks above "
                    f"{term.through.cut!r}{up_to(term.through)}: {min(missing)} is in one of them "
                    "only"
                )
            self.head = {name: value.to(state[name].dtype) for name, value in self.head.items()}
        if isinstance(term, CrossEntropy) and term.prior is not None and samples.labels is not None:
            self._counted = samples.labels.split([*sizes] or len(samples.labels))
            self._shifts: Tensor | None = None
        elif isinstance(term, Soft):
            targets = term.targets
            if isinstance(targets, dict):
                raise FedkdError("Soft: its targets were not decoded")
            if isinstance(targets, Mixture):
                raise FedkdError("Soft: its targets were not made of their parts")
            if isinstance(targets, str):
                if targets not in peers:
                    raise FedkdError(f"Soft: the student {targets!r} was not asked for its targets")
                self.peer, columns = targets, 1 if term.among is None else term.among.shape[1] + 1
                targets = torch.zeros(1, 1).expand(_rows(samples), columns)  # in the place of them
            if term.adaptive and not self.peer:
                raise FedkdError("Soft: adaptive is for students that learn together, by name")
            self.objective = made(term.objective)
            self.needs = traits(self.objective).needs
            self.argmax = labels_of(term.objective) == "argmax"
            self.memory = Memory(stacked or 1)
            # Logits are single precision, whatever a method has computed in.
            self.targets = targets.to(device, torch.float32)
            self._check(term, samples)
            self.tau: float | Tensor = term.temperature
            if isinstance(self.tau, Tensor):
                self.tau = self.tau.to(device, torch.float32)[:, None]
            self.among = None if term.among is None else term.among.to(device)
            weights = term.row_weights
            self.weights = None if weights is None else weights.to(device, torch.float32)
            self.squared = term.tau_squared and traits(self.objective).tau_squared
            if term.reach:
                self._reach = [n for n in part_names(student, term.reach) if n in learning]
        elif isinstance(term, Feature):
            self.targets = term.targets.to(device, torch.float32)
            if term.measure == "cosine":
                self.targets = _unit(self.targets)
            norms = term.norms
            self.norms = None if norms is None else norms.to(device, torch.float32)
        elif isinstance(term, Contrast):
            self.sides = [
                _unit(_present(side).to(device, torch.float32))
                for side in (term.positive, term.negative)
            ]
        elif isinstance(term, Linear):
            self.named = {n: term.given[n].to(device, p.dtype) for n, p in learning.items()}
        elif isinstance(term, Proximal):
            anchor = term.anchor or {}
            self.named = {
                name: anchor.get(name, parameter).detach().to(device, parameter.dtype, copy=True)
                for name, parameter in learning.items()
            }
        if isinstance(term, Soft | Feature):
            self.classes = len(self.targets) // (stacked or 1)
            self.partial = bool(self.targets[:, 0].isnan().any())
            self.tokens = not samples.inputs.is_floating_point()

    @property
    def reach(self) -> list[nn.Parameter] | None:
        """The parameters that the term's gradient may touch; None for all."""
        if self._reach is None:
            return None
        mine = {} if self.spot is None else {self.spot.name: self.auxiliary[self.spot.name]}
        return [*(self.learning[name] for name in self._reach), *parameters_of(mine).values()]

    @property
    def cuts(self) -> set[str]:
        """Where the term looks at representations."""
        return {at for at in (self.cut, self.spot and self.spot.cut) if at is not None}

    def keep(self, students: Tensor) -> None:
        """Go on with some students of a stack alone: their places ``(k,)`` in it."""
        for tensors in (getattr(self, "head", {}), getattr(self, "named", {})):
            tensors |= {name: tensor[students] for name, tensor in tensors.items()}
        if isinstance(self.term, Soft):
            self.memory.keep(students)

    def __call__(self, batch: Batch) -> Tensor:
        """The term's value on a batch: ``()``, of a stack ``(n,)``."""
        term = self.term
        if isinstance(term, Penalty):
            return self._penalty(term)
        if isinstance(term, Feature):
            return self._feature(term, batch)
        if isinstance(term, Contrast):
            given = _unit(at_items(batch.held[term.cut], batch.chosen).flatten(1).float())
            cosines = torch.stack([(given * side[batch.index]).sum(1) for side in self.sides], 1)
            # Not softplus of a difference, whose last bits depend on where in a batch a sample is.
            losses = -F.log_softmax(cosines / term.temperature, 1)[:, 0]
            return term.weight * batch.mean(losses)
        logits = batch.logits
        if term.through is not None:
            logits = self._through(batch.held[cast(str, self.cut)])
            logits = at_items(logits, batch.chosen).float()
        if isinstance(term, CrossEntropy):
            if term.exit:
                given = at_items(batch.held[term.exit], batch.chosen).float()
                logits = given[:, -logits.shape[1] :]
            if term.prior is not None:
                logits = logits + self._shift(term.prior, batch, logits.shape[1])
            return term.weight * _cross_entropy(batch, logits, "CrossEntropy")
        return self._soft(term, batch, logits)

    def _shift(self, prior: Prior, batch: Batch, classes: int) -> Tensor:
        """What a prior adds to the logits of a batch: ``(1, C)``, of a stack ``(B, C)``."""
        _labels(batch, "CrossEntropy with a prior")
        if self._shifts is None:
            counts = [each[each >= 0].bincount(minlength=classes) for each in self._counted]
            self._shifts = prior.shift(torch.stack(counts).float())
        return self._shifts if batch.places is None else self._shifts[batch.places]

    def _feature(self, term: Feature, batch: Batch) -> Tensor:
        """The value of a term of representations."""
        given = at_items(batch.held[term.cut], batch.chosen).flatten(1)
        rows, labels = batch.index, None
        if term.per == "class":
            labels = _labels(batch, "Feature")
            rows = self._by_class(batch, labels)
        there = self._there(rows, labels)
        if there is not None:
            rows, given = rows[there], given[there]
        if term.measure == "squared":
            pieces = (given - self.targets[rows]).square().mean(1)
        else:
            given = given.float()
            lengths = torch.linalg.vector_norm(given, dim=1).clamp_min(SHORTEST)
            if self.norms is not None:
                lengths = lengths.maximum(self.norms[rows])
            # What rounding leaves below 0 is none.
            pieces = (1 - (given * self.targets[rows]).sum(1) / lengths).clamp_min(0)
        return term.weight * batch.mean(pieces, there)

    def _soft(self, term: Soft, batch: Batch, logits: Tensor) -> Tensor:
        """The value of a term of soft targets, where a student has ``logits`` ``(B, C)``."""
        rows, labels = batch.index, None
        if term.per == "class":
            labels = _labels(batch, "Soft per class")
            rows = self._by_class(batch, labels)
        elif "labels" in self.needs and not self.argmax:
            labels = _labels(batch, f"objective = {name_of(term.objective)!r}")
        peers = batch.peers[self.peer] if self.peer else None
        auxiliary = None
        if self.spot is not None:
            layer = self.auxiliary[self.spot.name]
            auxiliary = said_by(layer, batch.held[self.spot.cut], batch.chosen)
        there = self._there(rows, labels)
        if there is not None:
            rows, logits = rows[there], logits[there]
            labels = None if labels is None else labels[there]
            peers = None if peers is None else peers[there]
            auxiliary = None if auxiliary is None else auxiliary[there]
        targets = self.targets[rows] if peers is None else said(self._at(rows), peers)
        tau = self.tau[rows] if isinstance(self.tau, Tensor) else self.tau
        among = None if self.among is None else self.among[rows]
        if self.argmax:
            labels = targets.argmax(1)
        elif among is not None:
            labels = candidate_column(labels, among)
        given = {"labels": labels, "memory": self.memory, "auxiliary": auxiliary}
        needed = provided(self.needs, batch, there, given)
        if not len(rows):
            pieces = logits.sum(1)  # of no rows, with a gradient of zero
        elif among is None:
            pieces = self.objective(logits, targets, tau, **needed)
        else:
            logs = among_logs(F.log_softmax(logits / tau, 1), among)
            pieces = self.objective(logs, targets, 1.0, **needed)
        self.memory.settle(name_of(term.objective))
        if self.weights is not None:
            pieces = self.weights[rows] * pieces
        scale: float | Tensor = term.weight
        if term.adaptive:
            scale = scale / self._hardness(batch)
        if self.squared and isinstance(tau, Tensor):
            pieces = tau[:, 0] ** 2 * pieces
        elif self.squared and isinstance(tau, float | int):
            scale *= tau**2
        return scale * batch.mean(pieces, there)

    def _penalty(self, term: Penalty) -> Tensor:
        """The value of a term of the parameters alone."""
        if isinstance(term, Linear):
            pieces, weight = [p * self.named[n] for n, p in self.learning.items()], term.weight
        else:
            pieces = [(p - self.named[n]).square() for n, p in self.learning.items()]
            weight = term.weight / 2
        if self.stacked:
            return weight * torch.stack([piece.flatten(1).sum(1) for piece in pieces]).sum(0)
        return weight * sum((piece.sum() for piece in pieces), torch.zeros(()))

    def _through(self, held: Tensor) -> Tensor:
        """Logits of the term's head."""

        def above(head: Parameters, held: Tensor) -> Tensor:
            # Parameters that are shared come under each of their names.
            return torch.func.functional_call(self.above, head, (held,), tie_weights=False)

        return torch.vmap(above)(self.head, held) if self.stacked else above(self.head, held)

    def _by_class(self, batch: Batch, labels: Tensor) -> Tensor:
        """Rows of the targets that labels pick; those of a stack's students follow one another."""
        if batch.owners is None or batch.places is None:
            return labels
        return labels + batch.places * self.classes

    def _there(self, rows: Tensor, labels: Tensor | None) -> Tensor | None:
        """Which samples have a target at ``rows``, and a label if one is needed; None: all.

        The others count as samples without a loss.
        """
        there = None
        if labels is not None and self.tokens:  # those of images are never -1
            there = labels >= 0
        if self.partial:
            targeted = ~self.targets[rows, 0].isnan()
            there = targeted if there is None else there & targeted
        return there

    def _hardness(self, batch: Batch) -> Tensor:
        """The sum of this student's cross-entropy and its peer's, ``()`` or ``(n,)``, above 0."""
        both = (batch.logits.detach(), batch.peers[self.peer])
        losses = [_cross_entropy(batch, logits, "adaptive") for logits in both]
        return torch.stack(losses).sum(0).clamp_min(SMALLEST)

    def _at(self, rows: Tensor) -> Soft:
        """The term with the temperatures and candidates at some rows of the source."""
        tau = self.tau[rows, 0] if isinstance(self.tau, Tensor) else self.tau
        among = None if self.among is None else self.among[rows]
        return replace(cast(Soft, self.term), temperature=tau, among=among)

    def _check(self, term: Soft, samples: Samples) -> None:
        """Refuse targets, temperatures and candidates that do not fit together."""
        tokens, count = not samples.inputs.is_floating_point(), _rows(samples)
        targets = self.targets
        if term.per == "sample" and len(targets) != count:
            one = "token of the inputs" if tokens else "sample"
            raise FedkdError(
                f"Soft: {len(targets)} targets for {count} {'tokens' if tokens else 'samples'}; "
                f"one row a {one} is needed"
            )
        tau, among, weights = term.temperature, term.among, term.row_weights
        for what, given in (("temperatures", tau), ("row_weights", weights)):
            if isinstance(given, Tensor) and given.shape != (len(targets),):
                raise FedkdError(
                    f"Soft: {what} of shape {tuple(given.shape)} for {len(targets)} targets; one a "
                    "row of targets is needed"
                )
        if among is None:
            return
        if self.spot is not None:
            raise FedkdError(f"Soft: objective = {name_of(term.objective)!r}: {NOT_AMONG}")
        check_candidates(term.objective)
        if among.shape != (len(targets), targets.shape[1] - 1):
            raise FedkdError(
                f"Soft: candidates of shape {tuple(among.shape)} for targets of shape "
                f"{tuple(targets.shape)}; one candidate a column of targets but the last is needed"
            )
        ordered = among.sort(1).values
        if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
            raise FedkdError("Soft: a row of candidates names a class twice; each once is needed")


def up_to(head: Head) -> str:
    """What a line adds on the frozen blocks below, if there are any."""
    return f" and up to {head.below!r}" if head.below else ""


def _rows(samples: Samples) -> int:
    """Rows of targets that samples have: one each, of text one a token."""
    tokens = not samples.inputs.is_floating_point()
    return len(items(samples.inputs)) if tokens else len(samples.inputs)


def _cross_entropy(batch: Batch, logits: Tensor, term: str) -> Tensor:
    """Of logits ``(B, C)`` with the labels of a batch: ``()``, of a stack ``(n,)``."""
    labels = _labels(batch, term)
    if batch.owners is not None:
        return batch.mean(F.cross_entropy(logits, labels, reduction="none"))
    how = "sum" if batch.over else "mean"
    loss = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction=how)
    return loss / (batch.over or 1)


def _labels(batch: Batch, term: str) -> Tensor:
    if batch.labels is None:
        raise FedkdError(f"{term}: the samples have no labels (the transfer set never has)")
    return batch.labels


def _present(given: Tensor | str) -> Tensor:
    if isinstance(given, str):
        raise FedkdError(f"Contrast: the student {given!r} was not asked for its representations")
    return given


def _unit(rows: Tensor) -> Tensor:
    """Rows ``(K, d)`` of length 1."""
    return F.normalize(rows, dim=1, eps=SHORTEST)


def source_of(term: Term) -> Source | None:
    """Where a term draws its own mini-batches from; None: with the step."""
    return None if isinstance(term, Penalty) else term.on


def said(term: Soft, logits: Tensor) -> Tensor:
    """Targets of ``term`` that a student with ``logits`` ``(K, C)`` gives in its place."""
    if traits(made(term.objective)).targets == "logits":
        return logits
    tau = term.temperature
    logits = logits / (tau.to(logits)[:, None] if isinstance(tau, Tensor) else tau)
    if term.among is None:
        return logits.softmax(1)
    return among_logs(F.log_softmax(logits, 1), term.among.to(logits.device)).exp()
