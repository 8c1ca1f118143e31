"""The one training loop, and prediction: what Fit, Predict and Evaluate come down to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import optimisers, registry
from fedkd.data.language import PAD
from fedkd.distillation.calibration import calibration_error, expected_calibration_error
from fedkd.distillation.objectives import Objective, traits
from fedkd.distillation.targets import among_logs
from fedkd.errors import FedkdError
from fedkd.privacy.dpsgd import DPSGD, copied, is_private, quietly
from fedkd.random import global_draws, key
from fedkd.sections import TrainingTable
from fedkd.students import cut_index, named_blocks, part_names, selected
from fedkd.students.build import TORCH_ONLY
from fedkd.work import CrossEntropy, Parameters, Prototype, Proximal, Samples, Soft, Term

NO_LABEL = -1
EVALUATION_BATCH = 512
EVALUATION_TOKENS = 4096
"""Tokens of text at a time, each of which takes a row as long as the vocabulary."""
Augment = Callable[[Tensor, torch.Generator], Tensor]


class BatchOfOne(FedkdError):
    """A batch is too small for the statistics that a student takes of it."""


class Optimiser(Protocol):
    """What the loop needs of an optimiser."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Change the parameters by their gradients."""


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
    dp: DPSGD | None = None,
    seed: int | None = None,
) -> float:
    """Minimise the sum of ``terms`` over ``samples``, changing ``student`` in place.

    Parameters
    ----------
    samples
        Inputs ``(K, ...)`` and labels ``(K,)`` on the student's device; of text ``(K, T)`` both.
    terms
        What the loss is made of. A term with ``on`` draws mini-batches of its own from there.
    training
        Optimiser and the defaults of ``epochs``, ``min_steps`` and ``lr``.
    generator
        Draws the order of samples, and augmentation.
    part
        Names of the blocks that learn; empty means all. What does not require a gradient before
        stays as it is in any case.
    sources
        Where terms with ``on`` draw from.
    dp
        Makes what private samples contribute DP-SGD's.
    seed
        Key of what the student draws by itself, as dropout does; made of the generator's own key
        when not given.

    Returns
    -------
    float
        Mean loss over the steps of the last pass; 0 if there was nothing to do.

    Raises
    ------
    FedkdError
        A term needs labels that the samples do not have, or targets of another length; nothing of
        the student learns; a batch is too small for its normalisation; or what ``dp`` cannot do is
        asked for.
    """
    if not len(samples.inputs):
        return 0.0
    if seed is None:
        seed = key(generator.initial_seed(), "student")
    with student_draws(student, seed, samples.inputs.device), requiring(student, part) as names:
        return _fit(
            student,
            names,
            part,
            samples,
            terms,
            training,
            generator,
            epochs=training.local_epochs if epochs is None else epochs,
            min_steps=training.min_steps if min_steps is None else min_steps,
            lr=lr or training.lr,
            sources=sources,
            augment=augment,
            dp=dp,
        )


def _fit(
    student: nn.Sequential,
    names: Sequence[str],
    part: tuple[str, ...],
    samples: Samples,
    terms: Sequence[Term],
    training: TrainingTable,
    generator: torch.Generator,
    *,
    epochs: float,
    min_steps: int,
    lr: float,
    sources: Mapping[str, Callable[[], Samples]] | None,
    augment: Augment | None,
    dp: DPSGD | None,
) -> float:
    """What :func:`fit` does, where ``names`` are those of the parameters that learn."""
    covered = [dp is not None and dp.covers(term) for term in terms]
    dp = dp if any(covered) else None
    kept, student = student, student if dp is None else copied(student)
    own = dp if dp is not None and dp.own else None
    batches = Batches(samples, training.batch_size, generator, augment, own)
    steps = max(math.ceil(epochs * batches.per_epoch - 1e-9), min_steps)
    if steps:
        check_learning(student, names, part)
    learning = {name: p for name, p in student.named_parameters() if name in {*names}}
    others = {
        on: Batches(
            *(_source(sources, on), training.batch_size, generator, augment),
            dp if is_private(on) else None,
        )
        for term in terms
        if (on := source_of(term)) is not None
    }
    losses = [
        Loss(student, term, samples if on is None else others[on].samples, learning)
        for term in terms
        for on in [source_of(term)]
    ]
    cuts = {loss.cut for loss in losses if loss.cut}
    if not learning:
        return 0.0
    optimiser = optimisers.optimiser(list(learning.values()), training, lr)
    if dp is not None:
        optimiser = dp.attach(student, optimiser)
    total = torch.zeros((), device=samples.inputs.device)
    set_modes(student, learning)
    for step in range(steps):
        batch = batches.draw(student, cuts)
        drawn = {on: source.draw(student, cuts) for on, source in others.items()}
        value = descend(losses, batch, drawn, optimiser, total, dp, covered)
        if step >= steps - batches.per_epoch:
            total += value
    if dp is not None:
        dp.finish(kept, learning)
    return float(total) / max(1, min(steps, batches.per_epoch))


def descend(
    losses: Sequence[Loss],
    batch: Batch,
    drawn: Mapping[str, Batch],
    optimiser: Optimiser,
    zero: Tensor,
    dp: DPSGD | None = None,
    covered: Sequence[bool] = (),
) -> Tensor:
    """One step of the training loop, of one student or of a stack of them.

    Parameters
    ----------
    batch, drawn
        What was drawn from the step's own source, and from those of its terms, by name.
    zero
        Zeros of the shape of what the losses give: ``()``, of a stack ``(n,)``.
    dp, covered
        DP-SGD, and which of the losses it covers.

    Returns
    -------
    Tensor
        The loss before the step, without a graph.
    """
    optimiser.zero_grad(set_to_none=True)
    value = torch.zeros_like(zero)
    bounded = []
    clipped, count = torch.zeros_like(value), 0
    for loss, private in zip(losses, covered or [False] * len(losses), strict=True):
        source = drawn[loss.on] if loss.on is not None else batch
        if private and not source.drawn:
            continue
        piece = loss(source)
        if private:
            # What the terms do not reach, as a head above a prototype, has gradients of zero.
            reached = clipped if count else 0 * source.logits.sum()
            clipped, count = reached + piece, source.drawn
        elif loss.reach is None:
            value = value + piece
        else:
            bounded.append((piece, loss.reach))
    with nullcontext() if dp is None else quietly():
        if value.requires_grad:
            value.sum().backward(retain_graph=bool(bounded))
        for index, (piece, reach) in enumerate(bounded):
            _backward_into(piece.sum(), reach, keep=index + 1 < len(bounded))
    if dp is not None:
        with dp.per_sample(count):
            if count:
                clipped.backward()
        value = value + clipped.detach() * dp.share(count)
    optimiser.step()
    return value.detach() + sum(piece.detach() for piece, _ in bounded)


@torch.inference_mode()
def predict(student: nn.Sequential, inputs: Tensor, seed: int = 0) -> Tensor:
    """Logits ``(K, C)`` of inputs ``(K, ...)``, without training anything.

    Of token ids ``(K, T)``: logits ``(M, V)`` at the M positions that are not padding, row by row.
    A student that draws even now does so by ``seed``.
    """
    student.eval()
    with student_draws(student, seed, inputs.device):
        if not inputs.is_floating_point():
            pieces_of_tokens = (logits for _, logits in _of_tokens(student, inputs))
            return _gathered(len(items(inputs)), pieces_of_tokens)
        pieces = [student(take(inputs, piece)).float() for piece in _pieces(inputs)]
    return torch.cat(pieces) if pieces else inputs.new_zeros((0, 0))


@torch.inference_mode()
def represent(
    student: nn.Sequential, inputs: Tensor, cut: str, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Representations ``(K, ...)`` at ``cut`` of inputs ``(K, ...)``, and the logits ``(K, C)``.

    Of token ids ``(K, T)``: a row for each of the positions that are not padding. A student that
    draws even now does so by ``seed``.
    """
    student.eval()
    index = cut_index(student, cut)
    base, rest = student[:index], student[index:]
    pairs = []
    with student_draws(student, seed, inputs.device):
        for piece in _pieces(inputs):
            given = take(inputs, piece)
            held = base(given)
            chosen = None if given.is_floating_point() else items(given)
            # What comes next may write into what it is given.
            logits = rest(held.clone())
            pairs.append((_chosen(held, chosen).float(), _chosen(logits, chosen).float()))
    return torch.cat([held for held, _ in pairs]), torch.cat([logits for _, logits in pairs])


def class_means(values: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """``mean`` ``(C, d)`` of rows ``(K, d)`` by class, 0 where none, and ``count`` ``(C,)``.

    ``labels`` is ``(K,)``; a row with the label -1 is of no class.
    """
    if bool((labels < 0).any()):
        values, labels = values[labels >= 0], labels[labels >= 0]
    count = labels.bincount(minlength=classes)
    total = values.new_zeros(classes, values.shape[1]).index_add_(0, labels, values)
    return {"mean": total / count.clamp_min(1)[:, None], "count": count}


@torch.inference_mode()
def evaluate(student: nn.Sequential, samples: Samples, seed: int = 0) -> dict[str, float]:
    """Accuracy, mean cross-entropy in nats, and expected calibration error on ``samples``.

    On text, of the next token wherever there is one, and perplexity: the exponential of the loss.
    A student that draws even now does so by ``seed``.
    """
    if samples.labels is None or not len(samples.labels):
        return {}
    if samples.labels.dim() == 2:
        with student_draws(student, seed, samples.inputs.device):
            return _evaluate_tokens(student, samples.inputs, samples.labels)
    return quality(predict(student, samples.inputs, seed), samples.labels)


def quality(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """What :func:`evaluate` says of logits ``(K, C)`` and labels ``(K,)``.

    An answer in which there is a NaN is wrong, whatever class comes first.
    """
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return {
        "accuracy": float(right.double().mean()),
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "ece": float(expected_calibration_error(logits.softmax(1), labels)),
    }


def _evaluate_tokens(student: nn.Sequential, inputs: Tensor, labels: Tensor) -> dict[str, float]:
    student.eval()
    hits, losses, confidences = [], [], []
    for piece, logits in _of_tokens(student, inputs):
        said = labels[piece].flatten()[items(inputs[piece])]
        there = said >= 0
        logits, said = logits[there], said[there]
        norms = logits.logsumexp(1)
        best, predicted = logits.max(1)
        hits.append((predicted == said) & ~norms.isnan())
        losses.append(norms - logits.gather(1, said[:, None])[:, 0])
        confidences.append((best - norms).exp())
    hit = torch.cat(hits)
    loss = torch.cat(losses).double().mean()
    return {
        "accuracy": float(hit.double().mean()),
        "loss": float(loss),
        "ece": float(calibration_error(torch.cat(confidences), hit)),
        "perplexity": float(loss.exp()),
    }


def items(inputs: Tensor) -> Tensor:
    """Places ``(M,)`` of the tokens of ``(K, T)`` that are not padding, in ``inputs.flatten()``."""
    return (inputs != PAD).flatten().nonzero()[:, 0]


def item_labels(samples: Samples) -> Tensor | None:
    """A label for each row that :func:`predict` gives: ``(K,)``; of text ``(M,)``, -1 for none."""
    if samples.labels is None or samples.labels.dim() == 1:
        return samples.labels
    return samples.labels.flatten()[items(samples.inputs)]


def said(term: Soft, logits: Tensor) -> Tensor:
    """Targets of ``term`` that a student with ``logits`` ``(K, C)`` gives in its place."""
    if traits(registry.load("objectives", term.objective)).targets == "logits":
        return logits
    tau = term.temperature
    logits = logits / (tau.to(logits)[:, None] if isinstance(tau, Tensor) else tau)
    if term.among is None:
        return logits.softmax(1)
    return among_logs(F.log_softmax(logits, 1), term.among.to(logits.device)).exp()


def _chosen(given: Tensor, chosen: Tensor | None) -> Tensor:
    """Rows of ``(B, T, ...)`` at places ``chosen`` ``(M,)``, or all of it without."""
    return given if chosen is None else given.flatten(0, 1).index_select(0, chosen)


def _of_tokens(student: nn.Sequential, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time, and the logits ``(m, V)`` at their tokens."""
    for piece in _pieces(inputs):
        given = inputs.index_select(0, piece)
        yield piece, _chosen(student(given), items(given)).float()


def _gathered(count: int, pieces: Iterator[Tensor]) -> Tensor:
    """``torch.cat`` that never holds everything twice."""
    whole, start = torch.zeros(0, 0), 0
    for piece in pieces:
        if not start:
            whole = piece.new_empty(count, piece.shape[1])
        whole[start : start + len(piece)] = piece
        start += len(piece)
    return whole


def take(inputs: Tensor, index: Tensor) -> Tensor:
    """``inputs[index]``, keeping images channels-last in memory."""
    if inputs.dim() != 4:
        return inputs.index_select(0, index)
    return inputs.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def _pieces(inputs: Tensor) -> Iterator[Tensor]:
    count, size = len(inputs), EVALUATION_BATCH
    if not inputs.is_floating_point():
        size = max(1, EVALUATION_TOKENS // inputs.shape[1])
    for start in range(0, count, size):
        yield torch.arange(start, min(start + size, count), device=inputs.device)


@dataclass(frozen=True)
class Batch:
    """``index`` (B,) into the source, ``labels`` (B,) where there are, ``logits`` (B, C).

    ``held`` has the representations at the cuts that a term asks for. Of text, B is the number of
    tokens, ``index`` counts the tokens of the source, and ``chosen`` (B,) is their places in what
    the blocks give, as in ``held``; a label may be -1. ``drawn`` is the number of samples, and
    ``over`` what sums of losses are divided by if that may not depend on them.

    Of a stack of n students, B counts the samples of all of them, ``index`` goes into their targets
    behind one another, ``held`` is ``(n, b, ...)``, and ``owners`` (B,) says whose a sample is,
    ``shares`` (B,) what part it is of its owner's batch, and ``places`` (B,) where its owner's
    targets by class are.
    """

    index: Tensor
    labels: Tensor | None
    logits: Tensor
    held: dict[str, Tensor]
    chosen: Tensor | None = None
    drawn: int = 0
    over: int | None = None
    owners: Tensor | None = None
    shares: Tensor | None = None
    places: Tensor | None = None
    students: int = 1

    def mean(self, losses: Tensor, there: Tensor | None = None) -> Tensor:
        """The mean of losses ``(B,)``: ``()``, or of a stack ``(n,)``, one of each owner's.

        ``there`` ``(B,)`` says which samples have a loss, where some have none.
        """
        if self.owners is None or self.shares is None:
            return losses.sum() / (self.over or len(self.index))
        owners, shares = self.owners, self.shares
        if there is not None:
            owners, shares = owners[there], shares[there]
        return losses.new_zeros(self.students).index_add(0, owners, losses * shares)


class Batches:
    """Mini-batches of a source without end, in a new order every pass.

    A last batch of one sample is left out where there are others: batch statistics need two. With
    ``dp`` every sample is drawn, or not, by itself.
    """

    def __init__(
        self,
        samples: Samples,
        size: int,
        generator: torch.Generator,
        augment: Augment | None,
        dp: DPSGD | None = None,
    ) -> None:
        self.samples, self.size, self.generator, self.augment = samples, size, generator, augment
        count = len(samples.inputs)
        self.per_epoch = max(1, math.ceil(count / size) - (count % size == 1))
        self._queue: list[Tensor] = []
        self._numbers: Tensor | None = None
        if not samples.inputs.is_floating_point():
            there = samples.inputs != PAD
            self._numbers = there.flatten().cumsum(0).view_as(there) - 1
        self.dp = dp
        if dp is not None:
            self.per_epoch, self._drawn = dp.batches(count, size)

    def index(self) -> Tensor:
        """Which samples are next: ``(B,)``."""
        if self.dp is not None:
            self._queue = [next(self._drawn).to(self.samples.inputs.device)]
        if not self._queue:
            order = torch.randperm(len(self.samples.inputs), generator=self.generator)
            order = order.to(self.samples.inputs.device)
            self._queue = list(order.split(self.size))[: self.per_epoch][::-1]
        return self._queue.pop()

    def inputs(self, index: Tensor) -> Tensor:
        """Those samples' inputs ``(B, ...)``, augmented where that is asked for."""
        inputs = take(self.samples.inputs, index)
        if self.augment is not None and inputs.dim() == 4:
            inputs = self.augment(inputs, self.generator)
        return inputs

    def draw(self, student: nn.Sequential, cuts: Set[str]) -> Batch:
        """The next batch, and what ``student`` makes of it."""
        index = self.index()
        inputs = self.inputs(index)
        drawn, tokens = len(index), 1 if inputs.is_floating_point() else inputs.shape[1]
        over = None if self.dp is None else drawn * tokens
        labels = None if self.samples.labels is None else self.samples.labels[index]
        chosen = None
        if self._numbers is not None:
            chosen = items(inputs)
            index = self._numbers[index].flatten()[chosen]
            labels = None if labels is None else labels.flatten()[chosen]
        held = {}
        with nullcontext() if self.dp is None else self.dp.recording():
            for name, block in named_blocks(student) if drawn else ():
                inputs = self._forward(block, inputs, drawn)
                if name in cuts:
                    # The next block may write into what it is given.
                    held[name], inputs = inputs, inputs.clone()
            logits = (_chosen(inputs, chosen) if drawn else inputs).float()
        return Batch(index, labels, logits, held, chosen, drawn, over)

    def _forward(self, block: nn.Module, inputs: Tensor, drawn: int) -> Tensor:
        try:
            return block(inputs)
        except ValueError as error:
            kind = nn.modules.batchnorm._BatchNorm
            if drawn > 1 or not any(isinstance(layer, kind) for layer in block.modules()):
                raise
            raise BatchOfOne(
                f"batch normalisation cannot train on a batch of one sample, and here "
                f"{len(self.samples.inputs)} samples come in batches of {self.size}: use "
                "student.norm = 'group' or 'none', or raise data.min_samples, data.transfer.size "
                "or training.batch_size"
            ) from error


class Loss:
    """One term, made ready: targets on the device, blocks looked up, needs checked.

    Parameters
    ----------
    samples
        The source that the term draws from; of a stack, all its students' behind one another.
    learning
        The parameters that learn, by name; of a stack ``(n, ...)``, replaced as it gets smaller.
    stacked
        Students of a stack, 0 if it is of one alone: a head's and an anchor's parameters are then
        ``(n, ...)``, and targets are those of all students behind one another.
    """

    def __init__(
        self,
        student: nn.Sequential,
        term: Term,
        samples: Samples,
        learning: dict[str, nn.Parameter],
        stacked: int = 0,
    ) -> None:
        self.term = term
        self.on = source_of(term)
        self.stacked = stacked
        self.learning = learning
        self._reach: list[str] | None = None
        self.cut = term.cut if isinstance(term, Prototype) else None
        device = samples.inputs.device
        if isinstance(term, CrossEntropy | Soft) and term.through is not None:
            self.cut = term.through.cut
            # Copies: batch statistics among them are written to.
            given = term.through.parameters
            self.head = {name: value.to(device, copy=True) for name, value in given.items()}
        if self.cut is not None:
            self.above = student[cut_index(student, self.cut) :]
        if isinstance(term, CrossEntropy | Soft) and term.through is not None:
            state = self.above.state_dict()
            missing = state.keys() ^ self.head.keys()
            if missing:
                raise FedkdError(
                    f"Head: its parameters are not those of the blocks above {self.cut!r}: "
                    f"{min(missing)} is in one of them only"
                )
            self.head = {name: value.to(state[name].dtype) for name, value in self.head.items()}
        if isinstance(term, Soft):
            if isinstance(term.targets, str):
                raise FedkdError(
                    f"Soft: the student {term.targets!r} was not asked for its targets"
                )
            self.objective: Objective = registry.load("objectives", term.objective)
            # Logits are single precision, whatever a method has computed in.
            self.targets = term.targets.to(device, torch.float32)
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
        elif isinstance(term, Prototype):
            self.targets = term.targets.to(device, torch.float32)
        elif isinstance(term, Proximal):
            anchor = term.anchor or {}
            self.anchor = {
                name: anchor.get(name, parameter).detach().to(device, parameter.dtype, copy=True)
                for name, parameter in learning.items()
            }
        if isinstance(term, Soft | Prototype):
            self.classes = len(self.targets) // (stacked or 1)
            self.partial = bool(self.targets[:, 0].isnan().any())
            # Labels of text may be -1; those of images never are.
            by_class = isinstance(term, Prototype) or term.per == "class"
            self.by_label = by_class and not samples.inputs.is_floating_point()

    @property
    def reach(self) -> list[nn.Parameter] | None:
        """The parameters that the term's gradient may touch; None for all."""
        return None if self._reach is None else [self.learning[name] for name in self._reach]

    def keep(self, students: Tensor) -> None:
        """Go on with some students of a stack alone: their places ``(k,)`` in it."""
        for tensors in (getattr(self, "head", {}), getattr(self, "anchor", {})):
            tensors |= {name: tensor[students] for name, tensor in tensors.items()}

    def __call__(self, batch: Batch) -> Tensor:
        """The term's value on a batch: ``()``, of a stack ``(n,)``."""
        term = self.term
        if isinstance(term, Proximal):
            squares = [(p - self.anchor[name]).square() for name, p in self.learning.items()]
            if self.stacked:
                each = torch.stack([square.flatten(1).sum(1) for square in squares])
                return term.weight / 2 * each.sum(0)
            return term.weight / 2 * sum((square.sum() for square in squares), torch.zeros(()))
        if isinstance(term, Prototype):
            given = _chosen(batch.held[term.cut], batch.chosen).flatten(1)
            rows = self._by_class(batch, "Prototype")
            targets, given, _, there = self._with_targets(rows, given)
            return term.weight * batch.mean((given - targets).square().mean(1), there)
        logits = batch.logits
        if term.through is not None:
            logits = self._through(batch.held[term.through.cut])
            logits = _chosen(logits, batch.chosen).float()
        if isinstance(term, CrossEntropy):
            labels = _labels(batch, "CrossEntropy")
            if self.stacked:
                return term.weight * batch.mean(F.cross_entropy(logits, labels, reduction="none"))
            how = "sum" if batch.over else "mean"
            loss = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction=how)
            return term.weight * loss / (batch.over or 1)
        rows = batch.index if term.per == "sample" else self._by_class(batch, "Soft per class")
        targets, logits, rows, there = self._with_targets(rows, logits)
        tau = self.tau[rows] if isinstance(self.tau, Tensor) else self.tau
        if self.among is None:
            pieces = self.objective(logits, targets, tau)
        else:
            logs = among_logs(F.log_softmax(logits / tau, 1), self.among[rows])
            pieces = self.objective(logs, targets, 1.0)
        if self.weights is not None:
            pieces = self.weights[rows] * pieces
        scale = term.weight
        if self.squared and isinstance(tau, Tensor):
            pieces = tau[:, 0] ** 2 * pieces
        elif self.squared and isinstance(tau, float | int):
            scale *= tau**2
        return scale * batch.mean(pieces, there)

    def _through(self, held: Tensor) -> Tensor:
        """Logits of the term's head."""

        def above(head: Parameters, held: Tensor) -> Tensor:
            # Parameters that are shared come under each of their names.
            return torch.func.functional_call(self.above, head, (held,), tie_weights=False)

        return torch.vmap(above)(self.head, held) if self.stacked else above(self.head, held)

    def _by_class(self, batch: Batch, term: str) -> Tensor:
        """Rows of the targets that labels pick; those of a stack's students follow one another."""
        labels = _labels(batch, term)
        if batch.owners is None or batch.places is None:
            return labels
        return labels + batch.places * self.classes

    def _with_targets(
        self, rows: Tensor, given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Targets at ``rows``, and what is given, but only where there is a target, and where.

        Samples without one count as samples without a loss.
        """
        if self.by_label:
            there = rows >= 0
            rows, given = rows[there], given[there]
        targets = self.targets[rows]
        if not self.partial:
            return targets, given, rows, None
        there = ~targets[:, 0].isnan()
        return targets[there], given[there], rows[there], there

    def _check(self, term: Soft, samples: Samples) -> None:
        """Refuse targets, temperatures and candidates that do not fit together."""
        tokens = not samples.inputs.is_floating_point()
        count = len(items(samples.inputs)) if tokens else len(samples.inputs)
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
        if traits(self.objective).targets != "probabilities":
            raise FedkdError(
                f"Soft: objective = {term.objective!r} is not allowed with candidates: it takes "
                "logits, and all other classes together have none"
            )
        if among.shape != (len(targets), targets.shape[1] - 1):
            raise FedkdError(
                f"Soft: candidates of shape {tuple(among.shape)} for targets of shape "
                f"{tuple(targets.shape)}; one candidate a column of targets but the last is needed"
            )
        ordered = among.sort(1).values
        if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
            raise FedkdError("Soft: a row of candidates names a class twice; each once is needed")


def _labels(batch: Batch, term: str) -> Tensor:
    if batch.labels is None:
        raise FedkdError(f"{term}: the samples have no labels (the transfer set never has)")
    return batch.labels


def source_of(term: Term) -> str | None:
    """Where a term draws its own mini-batches from; None: with the step."""
    return None if isinstance(term, Proximal) else term.on


def _source(sources: Mapping[str, Callable[[], Samples]] | None, on: str) -> Samples:
    if not sources or on not in sources:
        raise FedkdError(f"on = {on!r} is not known; known: {', '.join(sources or ())}")
    return sources[on]()


@contextmanager
def requiring(student: nn.Sequential, part: tuple[str, ...]) -> Iterator[list[str]]:
    """Have only what learns require a gradient, then what did before; yields parameters' names."""
    names = learning_names(student, part)
    parameters = dict(student.named_parameters())
    others = [p for name, p in parameters.items() if p.requires_grad and name not in names]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield names
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        for parameter in parameters.values():
            parameter.grad = None


def learning_names(student: nn.Sequential, part: tuple[str, ...]) -> list[str]:
    """Names of the parameters that learn, in the student's order.

    Of those in the blocks that ``part`` names, these are the ones that require a gradient.
    """
    names = [name for name, p in student.named_parameters() if p.requires_grad]
    if not part:
        return names
    wanted = set(part_names(student, part))
    return [name for name in names if name in wanted]


def check_learning(student: nn.Sequential, names: Sequence[str], part: tuple[str, ...]) -> None:
    """Refuse to train where nothing learns.

    Raises
    ------
    FedkdError
        ``names``, those of the parameters that learn, are none.
    """
    if not names:
        raise FedkdError(
            f"Fit: nothing learns in the blocks {', '.join(selected(student, part))}: they have no "
            "parameter that requires a gradient"
        )


def set_modes(student: nn.Sequential, learning: Iterable[str]) -> None:
    """Have blocks train, but for those that have parameters of which none is ``learning``.

    Those are frozen: their dropout is off, and their statistics stay as they are. A block without
    parameters, as dropout or normalisation without weights, trains with the student.
    """
    names = {*learning}
    learns = {id(parameter) for name, parameter in student.named_parameters() if name in names}
    for _, block in named_blocks(student):
        own = {id(parameter) for parameter in block.parameters()}
        block.train(not own or not own.isdisjoint(learns))


def student_draws(
    student: nn.Module, seed: int, device: torch.device
) -> AbstractContextManager[None]:
    """While a student is at work: what it draws by itself comes from ``seed``."""
    return global_draws(seed, device, torch_only=vars(student).get(TORCH_ONLY, False))


def _backward_into(loss: Tensor, parameters: list[nn.Parameter], keep: bool) -> None:
    """Add the gradient of ``loss`` to ``parameters`` and to nothing else."""
    if not parameters:
        return
    gradients = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
