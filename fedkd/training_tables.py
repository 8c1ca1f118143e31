"""The tables of how students are trained: on clients, on the transfer set, on the server."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from fedkd.errors import shown
from fedkd.options import (
    MOST,
    MOST_COPIES,
    Epochs,
    Table,
)


class PrivateTraining(Table):
    """``[training.dp]``: DP-SGD (Abadi et al. 2016) on private samples, by Opacus."""

    noise_multiplier: float = Field(0.0, ge=0)
    """Standard deviation of the noise in units of the clipping norm; 0 for ordinary training."""
    max_grad_norm: float = Field(1.0, gt=0)
    """L2 norm that each sample's gradient is clipped to."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Delta that epsilon is stated at."""


class TrainingTable(Table):
    """``[training]``: local training on private data."""

    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    """Starts afresh in every piece of training, unless ``keep_optimiser``."""
    keep_optimiser: bool = False
    """Whether a client's optimiser goes on where it was (Adam's moments and steps, the momentum of
    ``sgd``) when it trains the same student again. Training on private samples and on the transfer
    set each have their own. It stays on the client, whatever parameters the student is given; an
    optimiser that has diverged starts afresh, and training for a test alone leaves it as it was.
    ``engine.remember`` then remembers no training."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """How the rate goes over the rounds: ``cosine`` from ``lr`` down to almost 0 in the last one,
    ``step`` times ``schedule_factor`` after every ``schedule_rounds``. Rates that a method sets
    itself, the server's, and that of training for a test alone stay as they are."""
    schedule_rounds: int = Field(10, ge=1, le=MOST)
    """Rounds between two steps of ``step``."""
    schedule_factor: float = Field(0.1, gt=0, le=1)
    """What the rate is multiplied by at each of them."""
    warmup_rounds: int = Field(0, ge=0, le=MOST)
    """First rounds, in which the rate rises evenly to what it is then."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of ``sgd``."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty (``adamw``: decoupled)."""
    batch_size: int = Field(64, ge=1, le=MOST)
    """Samples a step."""
    local_epochs: Epochs = 5.0
    """Passes over the private training samples a round; fractions allowed."""
    min_steps: int = Field(0, ge=0, le=MOST)
    """Fewest local steps a round, for clients with few samples."""
    part: tuple[str, ...] = ()
    """Blocks that learn on clients where the method does not name others, e.g. ``["head"]`` above a
    pretrained body; also ``"body"``. Empty: all. What a student's factory froze never learns."""
    class_variety: float = Field(0.0, ge=0, le=MOST)
    """Before what a client's student says is sent, it trains on the private samples once more, to
    keep what it says of one class various: cross-entropy less this times the divergence from its
    mean over the class (MCMI: Ye et al. 2024, who take 0.25). 0: not."""
    class_variety_epochs: Epochs = 1.0
    """Passes over the private samples in that training."""
    align_weights: bool = False
    """Whether, before what a client's student says is sent, its last layer's weights of classes
    with many samples there are made as long as those of the others (Zhao et al. 2020)."""
    dp: PrivateTraining = PrivateTraining()

    @model_validator(mode="after")
    def _private(self) -> TrainingTable:
        for name in ("class_variety", "align_weights"):
            if self.dp.noise_multiplier and (value := getattr(self, name)):
                raise ValueError(
                    f"training.{name} = {shown(value)} is not allowed with "
                    f"training.dp.noise_multiplier = {self.dp.noise_multiplier:g}: it goes by the "
                    "private samples of each class together, and no noise is on that"
                )
        return self

    def rate(self, round: int, rounds: int) -> float:
        """What the learning rate is multiplied by in ``round`` of ``rounds``, from 1 on."""
        warm = min(1.0, round / (self.warmup_rounds + 1))
        if self.schedule == "cosine":
            return warm * (1 + math.cos(math.pi * (round - 1) / rounds)) / 2
        if self.schedule == "step":
            return warm * self.schedule_factor ** ((round - 1) // self.schedule_rounds)
        return warm

    def length(self, epochs: float | None, min_steps: int | None) -> tuple[float, int]:
        """Passes and fewest steps of a piece of training; what it does not say is said here.

        One that asks for no pass, and for no steps, gets none, whatever ``min_steps`` is here.
        """
        least = 0 if epochs == 0 else self.min_steps
        return (
            self.local_epochs if epochs is None else epochs,
            least if min_steps is None else min_steps,
        )


class DistillTable(Table):
    """``[distill]``: how clients train on the transfer set, where not as ``[training]`` says.

    That is in a piece of training on the transfer set, as methods have it whose options have
    ``distill_epochs``. They say how long. A term that draws from the transfer set beside private
    data, and distillation on private data, go by ``[training]``.
    """

    optimiser: Literal["adam", "adamw", "sgd"] | None = None
    """As ``training.optimiser``, with its momentum and weight decay; not given: the same."""
    lr: float | None = Field(None, gt=0)
    """Learning rate; not given: ``training.lr``."""
    batch_size: int | None = Field(None, ge=1, le=MOST)
    """Samples a step; not given: ``training.batch_size``."""
    rows: Literal[
        "all", "random", "confident", "k_centre", "robust", "difference", "domains", "pick"
    ] = "all"
    """Which samples of the transfer set clients are asked for in a round, and learn from, by what
    was said of them before (docs/policies.md): all; drawn at random; the surest of each class; the
    farthest from each other; those that students are least sure of, safe against ``mistakes``;
    texts that the fused labels know better than a small model; by how far students lag in a class;
    or those with the largest ``pick``. Methods that have a rule of their own refuse."""
    share: float = Field(0.5, gt=0, le=1)
    """Share of the transfer set that these samples are; unless ``random``, samples that were never
    asked for come first."""
    mistakes: float = Field(0.1, ge=0, lt=1)
    """Of ``robust``: the share of the transfer set that may have wrong labels; 0 takes the samples
    that students are least sure of."""
    smoothing: float = Field(0.5, ge=0, le=1)
    """Of ``domains``: how much of a class's weight goes by how far students lag; the rest is the
    same for all. Alpha of DDK."""
    pick: Literal["kl", "teacher_entropy", "student_entropy"] = "kl"
    """Of ``pick``: the divergence from the fused labels to the mean of the clients', or the entropy
    of the former, or of the latter."""

    augmentation: Literal["none", "mixup", "cutmix"] = "none"
    """Images: mixtures in the place of samples of the transfer set, of two as a whole or with a
    rectangle of the other. They are made from ``seed`` when the data is loaded, known to all as
    the transfer set is, and nothing of them travels."""
    mixed: float = Field(1.0, gt=0, le=1)
    """Share of the samples that are mixed, drawn anew for each copy; the others stay."""
    beta: float = Field(1.0, gt=0, le=MOST)
    """What a sample keeps of itself is drawn from Beta(beta, beta); 1: evenly from 0 to 1."""
    copies: int = Field(1, ge=1, le=MOST_COPIES)
    """How often each sample stands in the transfer set, mixed otherwise each time: what ``rows``
    then chooses from."""

    targets: Literal["given", "surest"] = "given"
    """``given``: what the server sends. ``surest``: of each row that, or what the client's own
    student says as the step begins, whichever gives a class the higher probability; of equal ones
    its own (Roth, Thede et al. 2024)."""
    least_confidence: float = Field(0.0, ge=0, le=1)
    """Rows of what the server sends with no class as probable are left out, as too hard (FerKD:
    Shen 2023)."""
    most_confidence: float = Field(1.0, ge=0, le=1)
    """Rows of it with a class that is more probable are left out, as too easy."""

    @property
    def training(self) -> dict[str, Any]:
        """Those of its keys that stand in the place of keys of ``[training]``."""
        return self.model_dump(include={"optimiser", "lr", "batch_size"}, exclude_none=True)

    @model_validator(mode="after")
    def _ordered(self) -> DistillTable:
        if self.least_confidence > self.most_confidence:
            raise ValueError(
                f"distill.least_confidence = {self.least_confidence:g} is not allowed with "
                f"most_confidence = {self.most_confidence:g}; allowed: at most as much"
            )
        return self


class ServerTable(Table):
    """``[server]``: how the server trains students of its own, where not as the method has it.

    What is not given here is as the method's paper has it (its class says so by
    ``server_training``, and docs/methods.md), and what neither gives is as in ``[training]``.
    Options of methods say how long, and how modules are trained that are nobody's student, such as
    generators. No schedule of ``[training]`` is the server's.
    """

    optimiser: Literal["adam", "adamw", "sgd"] | None = None
    """As ``training.optimiser``. Where it is given, here or by the method, the server has neither
    the momentum nor the weight decay of ``[training]``."""
    lr: float | None = Field(None, gt=0)
    """Learning rate."""
    momentum: float | None = Field(None, ge=0, lt=1)
    """Momentum of ``sgd``."""
    weight_decay: float | None = Field(None, ge=0)
    """L2 penalty (``adamw``: decoupled)."""
    batch_size: int | None = Field(None, ge=1, le=MOST)
    """Samples a step."""
    keep_optimiser: bool | None = None
    """Whether a student's optimiser goes on where it was in the round before; else afresh."""
    schedule: Literal["constant", "cosine", "step", "plateau"] | None = None
    """How the rate goes over the rounds: as ``training.schedule``; with ``plateau`` times
    ``schedule_factor`` after ``schedule_rounds`` trainings in a row whose loss was no better than
    the best. Constant if nobody says."""
    schedule_rounds: int | None = Field(None, ge=1, le=MOST)
    """Rounds between two steps of ``step``; the patience of ``plateau``; 10 if nobody says."""
    schedule_factor: float | None = Field(None, gt=0, le=1)
    """What the rate is multiplied by at each of them; 0.1 if nobody says."""

    @property
    def patience(self) -> tuple[int, float]:
        """``schedule_rounds`` and ``schedule_factor``."""
        return self.schedule_rounds or 10, self.schedule_factor or 0.1

    def over(self, own: ServerTable) -> ServerTable:
        """What is said here, and where nothing is, ``own``, the method's table."""
        return own.model_copy(update=self.model_dump(exclude_none=True))

    def training(self, clients: TrainingTable, round: int, rounds: int) -> TrainingTable:
        """How a student is trained in ``round``; what is not said here is as ``clients`` train.

        The schedule is in the rate; that of ``plateau`` is not known here.
        """
        changes: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0} if self.optimiser else {}
        for name in ("optimiser", "lr", "momentum", "weight_decay", "batch_size"):
            if (value := getattr(self, name)) is not None:
                changes[name] = value
        changes |= {
            "keep_optimiser": bool(self.keep_optimiser),
            "schedule": self.schedule if self.schedule in ("cosine", "step") else "constant",
            "schedule_rounds": self.patience[0],
            "schedule_factor": self.patience[1],
            "warmup_rounds": 0,
        }
        table = clients.model_copy(update=changes)
        return table.model_copy(update={"lr": table.lr * table.rate(round, rounds)})
