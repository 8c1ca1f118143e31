"""The one training loop, and prediction: what Fit, Predict and Evaluate come down to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import registry
from fedkd.distillation.calibration import expected_calibration_error
from fedkd.distillation.objectives import Objective, traits
from fedkd.errors import FedkdError
from fedkd.experiment import TrainingTable
from fedkd.students import cut_index, part_names
from fedkd.work import CrossEntropy, Prototype, Proximal, Samples, Soft, Term

EVALUATION_BATCH = 512
Augment = Callable[[Tensor, torch.Generator], Tensor]


def fit(
    student: nn.Sequential,
    samples: Samples,
    terms: Sequence[Term],
    training: TrainingTable,
    generator: torch.Generator,
    *,
    epochs: float | None = None,
    min_steps: int | None = None,
    lr: float | None = None,
    part: tuple[str, ...] = (),
    sources: Mapping[str, Callable[[], Samples]] | None = None,
    augment: Augment | None = None,
) -> float:
    """Minimise the sum of ``terms`` over ``samples``, changing ``student`` in place.

    Parameters
    ----------
    samples
        Inputs ``(K, ...)`` and labels ``(K,)`` on the student's device.
    terms
        What the loss is made of. A term with ``on`` draws mini-batches of its own from there.
    training
        Optimiser and the defaults of ``epochs``, ``min_steps`` and ``lr``.
    generator
        Draws the order of samples, and augmentation.
    part
        Names of the blocks that learn; empty means all.
    sources
        Where terms with ``on`` draw from.

    Returns
    -------
    float
        Mean loss over the steps of the last pass; 0 if there was nothing to do.

    Raises
    ------
    FedkdError
        A term needs labels that the samples do not have, or targets of another length.
    """
    if not len(samples.inputs):
        return 0.0
    batches = _Batches(samples, training.batch_size, generator, augment)
    epochs = training.local_epochs if epochs is None else epochs
    min_steps = training.min_steps if min_steps is None else min_steps
    steps = max(math.ceil(epochs * batches.per_epoch - 1e-9), min_steps)
    learning = _learning(student, part)
    others = {
        on: _Batches(_source(sources, on), training.batch_size, generator, augment)
        for term in terms
        if (on := _source_of(term)) is not None
    }
    losses = [
        _Loss(student, term, samples if on is None else others[on].samples, learning)
        for term in terms
        for on in [_source_of(term)]
    ]
    cuts = {loss.cut for loss in losses if loss.cut}
    optimiser = _optimiser(list(learning.values()), training, lr or training.lr)
    total = torch.zeros((), device=samples.inputs.device)
    for block in student.children():
        # Statistics of a block that does not learn stay as they are, too.
        block.train(any(parameter.requires_grad for parameter in block.parameters()))
    for step in range(steps):
        batch = batches.draw(student, cuts)
        drawn = {on: source.draw(student, cuts) for on, source in others.items()}
        optimiser.zero_grad(set_to_none=True)
        value = torch.zeros((), device=total.device)
        bounded = []
        for loss in losses:
            piece = loss(drawn[loss.on] if loss.on is not None else batch)
            if loss.reach is None:
                value = value + piece
            else:
                bounded.append((piece, loss.reach))
        if value.requires_grad:
            value.backward(retain_graph=bool(bounded))
        for index, (piece, reach) in enumerate(bounded):
            _backward_into(piece, reach, keep=index + 1 < len(bounded))
        optimiser.step()
        if step >= steps - batches.per_epoch:
            total += value.detach() + sum(piece.detach() for piece, _ in bounded)
    for parameter in student.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    return float(total) / max(1, min(steps, batches.per_epoch))


@torch.inference_mode()
def predict(student: nn.Sequential, inputs: Tensor) -> Tensor:
    """Logits ``(K, C)`` of inputs ``(K, ...)``, without training anything."""
    student.eval()
    pieces = [student(take(inputs, piece)) for piece in _pieces(len(inputs), inputs.device)]
    return torch.cat(pieces) if pieces else inputs.new_zeros((0, 0))


@torch.inference_mode()
def represent(student: nn.Sequential, inputs: Tensor, cut: str) -> tuple[Tensor, Tensor]:
    """Representations ``(K, ...)`` at ``cut`` of inputs ``(K, ...)``, and the logits ``(K, C)``."""
    student.eval()
    index = cut_index(student, cut)
    base, rest = student[:index], student[index:]
    pairs = [
        (held, rest(held))
        for piece in _pieces(len(inputs), inputs.device)
        for held in [base(take(inputs, piece))]
    ]
    return torch.cat([held for held, _ in pairs]), torch.cat([logits for _, logits in pairs])


def class_means(values: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """``mean`` ``(C, d)`` of rows ``(K, d)`` by class, 0 where none, and ``count`` ``(C,)``."""
    count = labels.bincount(minlength=classes)
    total = values.new_zeros(classes, values.shape[1]).index_add_(0, labels, values)
    return {"mean": total / count.clamp_min(1)[:, None], "count": count}


@torch.inference_mode()
def evaluate(student: nn.Sequential, samples: Samples) -> dict[str, float]:
    """Accuracy, mean cross-entropy in nats, and expected calibration error on ``samples``."""
    if samples.labels is None or not len(samples.labels):
        return {}
    logits = predict(student, samples.inputs)
    hits = logits.argmax(1) == samples.labels
    return {
        "accuracy": float(hits.double().mean()),
        "loss": float(F.cross_entropy(logits.double(), samples.labels)),
        "ece": float(expected_calibration_error(logits.softmax(1), samples.labels)),
    }


def take(inputs: Tensor, index: Tensor) -> Tensor:
    """``inputs[index]``, keeping images channels-last in memory."""
    if inputs.dim() != 4:
        return inputs.index_select(0, index)
    return inputs.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def _pieces(count: int, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, count, EVALUATION_BATCH):
        yield torch.arange(start, min(start + EVALUATION_BATCH, count), device=device)


@dataclass(frozen=True)
class _Batch:
    """``index`` (B,) into the source, ``labels`` (B,) where there are, ``logits`` (B, C).

    ``held`` has the representations at the cuts that a term asks for.
    """

    index: Tensor
    labels: Tensor | None
    logits: Tensor
    held: dict[str, Tensor]


class _Batches:
    """Mini-batches of a source without end, in a new order every pass.

    A last batch of one sample is left out where there are others: batch statistics need two.
    """

    def __init__(
        self, samples: Samples, size: int, generator: torch.Generator, augment: Augment | None
    ) -> None:
        self.samples, self.size, self.generator, self.augment = samples, size, generator, augment
        count = len(samples.inputs)
        self.per_epoch = max(1, math.ceil(count / size) - (count % size == 1))
        self._queue: list[Tensor] = []

    def draw(self, student: nn.Sequential, cuts: Set[str]) -> _Batch:
        if not self._queue:
            order = torch.randperm(len(self.samples.inputs), generator=self.generator)
            order = order.to(self.samples.inputs.device)
            self._queue = list(order.split(self.size))[: self.per_epoch][::-1]
        index = self._queue.pop()
        inputs = take(self.samples.inputs, index)
        if self.augment is not None and inputs.dim() == 4:
            inputs = self.augment(inputs, self.generator)
        labels = self.samples.labels
        held = {}
        for name, block in student.named_children():
            inputs = block(inputs)
            if name in cuts:
                held[name] = inputs
        return _Batch(index, None if labels is None else labels[index], inputs, held)


class _Loss:
    """One term, made ready: targets on the device, blocks looked up, needs checked."""

    def __init__(
        self,
        student: nn.Sequential,
        term: Term,
        samples: Samples,
        learning: dict[str, nn.Parameter],
    ) -> None:
        self.term = term
        self.on = _source_of(term)
        self.reach: list[nn.Parameter] | None = None
        self.cut = term.cut if isinstance(term, Prototype) else None
        device = samples.inputs.device
        if isinstance(term, CrossEntropy | Soft) and term.through is not None:
            self.cut = term.through.cut
            # Copies: batch statistics among them are written to.
            given = term.through.parameters.items()
            self.head = {name: value.to(device, copy=True) for name, value in given}
        if self.cut is not None:
            self.above = student[cut_index(student, self.cut) :]
        if isinstance(term, CrossEntropy | Soft) and term.through is not None:
            missing = self.above.state_dict().keys() ^ self.head.keys()
            if missing:
                raise FedkdError(
                    f"Head: its parameters are not those of the blocks above {self.cut!r}: "
                    f"{min(missing)} is in one of them only"
                )
        if isinstance(term, Soft):
            if isinstance(term.targets, str):
                raise FedkdError(
                    f"Soft: the student {term.targets!r} was not asked for its targets"
                )
            self.objective: Objective = registry.load("objectives", term.objective)
            squared = term.tau_squared and traits(self.objective).tau_squared
            self.scale = term.weight * (term.temperature**2 if squared else 1)
            self.targets = term.targets.to(device)
            if term.per == "sample" and len(self.targets) != len(samples.inputs):
                raise FedkdError(
                    f"Soft: {len(self.targets)} targets for {len(samples.inputs)} samples; "
                    "one row a sample is needed"
                )
            if term.reach:
                names = part_names(student, term.reach)
                self.reach = [learning[name] for name in names if name in learning]
        elif isinstance(term, Prototype):
            self.targets = term.targets.to(device)
        elif isinstance(term, Proximal):
            self.held = list(learning.values())
            anchor = term.anchor or {}
            self.anchor = [
                anchor.get(name, parameter).detach().to(device, copy=True)
                for name, parameter in learning.items()
            ]
        if isinstance(term, Soft | Prototype):
            self.partial = bool(self.targets[:, 0].isnan().any())

    def __call__(self, batch: _Batch) -> Tensor:
        term = self.term
        if isinstance(term, Proximal):
            pairs = zip(self.held, self.anchor, strict=True)
            return (
                term.weight / 2 * sum(((p - a).square().sum() for p, a in pairs), torch.zeros(()))
            )
        if isinstance(term, Prototype):
            given = batch.held[term.cut].flatten(1)
            targets, given = self._with_targets(self.targets[_labels(batch, "Prototype")], given)
            return term.weight * (given - targets).square().mean(1).sum() / len(batch.index)
        logits = batch.logits
        if term.through is not None:
            logits = torch.func.functional_call(
                self.above, self.head, (batch.held[term.through.cut],)
            )
        if isinstance(term, CrossEntropy):
            return term.weight * F.cross_entropy(logits, _labels(batch, "CrossEntropy"))
        rows = batch.index if term.per == "sample" else _labels(batch, "Soft per class")
        targets, logits = self._with_targets(self.targets[rows], logits)
        pieces = self.objective(logits, targets, term.temperature)
        return self.scale * pieces.sum() / len(batch.index)

    def _with_targets(self, targets: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Only the rows that have a target; the others count as samples without a loss."""
        if not self.partial:
            return targets, given
        there = ~targets[:, 0].isnan()
        return targets[there], given[there]


def _labels(batch: _Batch, term: str) -> Tensor:
    if batch.labels is None:
        raise FedkdError(f"{term}: the samples have no labels (the transfer set never has)")
    return batch.labels


def _source_of(term: Term) -> str | None:
    """Where a term draws its own mini-batches from; None: with the step."""
    return None if isinstance(term, Proximal) else term.on


def _source(sources: Mapping[str, Callable[[], Samples]] | None, on: str) -> Samples:
    if not sources or on not in sources:
        raise FedkdError(f"on = {on!r} is not known; known: {', '.join(sources or ())}")
    return sources[on]()


def _learning(student: nn.Sequential, part: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name; all others are frozen until the loop ends."""
    names = set(part_names(student, part))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in names)
    return {name: p for name, p in student.named_parameters() if name in names}


def _backward_into(loss: Tensor, parameters: list[nn.Parameter], keep: bool) -> None:
    """Add the gradient of ``loss`` to ``parameters`` and to nothing else."""
    if not parameters:
        return
    gradients = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _optimiser(
    parameters: list[nn.Parameter], training: TrainingTable, lr: float
) -> torch.optim.Optimizer:
    decay = training.weight_decay
    if training.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=training.momentum, weight_decay=decay, fused=True
        )
    if training.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
    return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=True)
